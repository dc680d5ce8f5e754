"""Train the small network that stands in the explorer's page, and write explorer/network.json.

Half a minute on one core. The page is made from it by ``make explorer``.

Run: python tools/explorer_network.py
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from scoresde import VPSDE, ScoreModel, fit, nn
from scoresde.cli.explore import Served
from scoresde.cli.run_folder import RunFolder
from scoresde.data import swiss_roll

TARGET = Path(__file__).parents[1] / "explorer" / "network.json"


def write_network() -> None:
    """Train on the swiss roll, and write what the page needs of it."""
    torch.set_num_threads(1)
    model = ScoreModel(nn.MLP(2, width=32, depth=2), VPSDE())
    fit(model, swiss_roll(50_000, seed=0), steps=6000, batch_size=512)
    name = "a trained network: swiss roll"
    run = RunFolder(Path(name), model, {}, "swiss_roll", torch.Size((2,)), None, (), 0)
    TARGET.write_text(json.dumps(Served(run).network) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_network()
