"""Every option of ``scoresde train`` does what the library's own does: the same weights and records, to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli_helpers import main

from scoresde import ScoreModel, SubVPSDE, training
from scoresde.cli.files import open_data
from scoresde.cli.threads import use_threads

OPTIONS = {
    "steps": 7,
    "batch_size": 5,
    "learning_rate": 3e-3,
    "warmup": 2,
    "weight": "min_snr",
    "times": "log_snr",
    "weight_decay": 0.5,
    "clip_norm": 0.25,
    "ema_decay": 0.7,
    "label_dropout": 0.4,
    "seed": 6,
}


def table(folder: Path) -> Path:
    """Forty rows of two kinds, words that do not come in the order of their letters; a kind tells the first number."""
    kinds = ["tree" if k % 3 else "bush" for k in range(40)]
    rows = [f"{k % 7 + 10 * (kind == 'tree')},{(k * k) % 11},{kind}" for k, kind in enumerate(kinds)]
    file = folder / "plants.csv"
    file.write_text("\n".join(["height,width,kind", *rows]), encoding="utf-8")
    return file


@pytest.mark.parametrize("clip_norm", [0.25, 0.0])
def test_train_with_every_option_is_the_library_s_fit(tmp_path: Path, clip_norm: float) -> None:
    source, out = f"{table(tmp_path)}:kind", tmp_path / "run"
    options = {**OPTIONS, "clip_norm": clip_norm}
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    more = ["--sde", "subvp", "--predicts", "v", "--conditional", "--held-out-loss", "--threads", "1"]
    assert main(["train", "--data", source, "--out", str(out), *words, *more]) == 0

    data = open_data(source)
    assert data.classes == ("bush", "tree")
    (samples, labels), (others, other_labels) = data.load(), data.test()
    assert labels is not None
    assert other_labels is not None
    for part, kinds in ((samples, labels), (others, other_labels)):
        assert torch.equal(kinds, (part[torch.arange(len(part))][:, 0] > 8).long())
    assert (len(samples), len(others)) == (32, 8)
    net = data.network((2,), classes=2, seed=6)
    model = ScoreModel(net, SubVPSDE(), predicts="v", transform=data.transform())
    expected = {name: value for name, value in options.items() if name != "label_dropout"}
    expected |= {"clip_norm": clip_norm or None, "cond_dropout": {"label": 0.4}, "cond": {"label": labels}}
    expected |= {"held_out": others, "held_out_cond": {"label": other_labels}}
    with use_threads(1):
        result = training.fit(model, samples, progress=False, **expected)
    saved = ScoreModel.load(out / "checkpoint")
    for ours, theirs in zip(result.model.net.parameters(), saved.net.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    records = [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]
    assert records[-1]["held_out_loss"] == result.log[-1]["held_out_loss"]
    assert len(records) == len(result.log)
    assert saved.dropout == {"label": 0.4}
