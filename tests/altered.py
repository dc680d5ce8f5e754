"""Checkpoints that are altered under a manifest that fits: their parts, and two models that hold much."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from checkpoints import filled, small

from scoresde import Moments, RectifiedFlow, ScoreModel
from scoresde.models.manifest import sign
from scoresde.nn import MLP, UNet
from scoresde.sampling.calibration import Calibration, Rung
from scoresde.solvers.build import build_table
from scoresde.transforms import Compose, Dequantise, Logit


def signed(folder: Path, parts: dict[str, tuple[str, bytes]]) -> None:
    """Write parts, by their names each with its suffix and bytes, under a manifest that names them."""
    entries = {}
    for name, (suffix, data) in parts.items():
        digest = hashlib.sha256(data).hexdigest()
        file = f"{name}-{digest[:16]}.{suffix}"
        if not (folder / file).exists():
            (folder / file).write_bytes(data)
        entries[name] = {"file": file, "bytes": len(data), "sha256": digest}
    body = {"format": "scoresde checkpoint", "version": 1, "files": entries}
    (folder / "manifest.json").write_bytes(sign(body))


def read_parts(folder: Path) -> dict[str, tuple[str, bytes]]:
    entries = json.loads((folder / "manifest.json").read_text("utf-8"))["files"]
    return {
        name: (entry["file"].rpartition(".")[2], (folder / entry["file"]).read_bytes())
        for name, entry in entries.items()
    }


def full(folder: Path) -> None:
    """A model of vectors with everything that a checkpoint may hold."""
    model = small(0)
    model.net = filled(MLP(3, width=8, depth=1, classes=2), 3)
    model.dropout, model.class_names = {"label": 0.1}, {"label": ("cat", "dog")}
    model.groups[2] = torch.tensor([0, 1, 0])
    model.tables[2] = build_table(model.sde, "ancestral", steps=2, final="mean").to_json()
    rungs = (Rung(4, "dpmpp_2m", None, None, 0.1, 0.05), Rung(8, "dpmpp_2m", "curve", -3.0, 0.1, 0.05))
    model.calibration = Calibration(rungs, (0.9, 0.5, 0.1), (0.0, 0.5, 1.0), 12).to_json()
    model.save(folder, ema=filled(MLP(3, width=8, depth=1, classes=2), 4).state_dict())


def image(folder: Path) -> None:
    net = filled(UNet(1, width=4, multipliers=(1,), heads=2, out_channels=2, context_features=2))
    part = Dequantise(4, 0.0, 3.0)
    model = ScoreModel(
        net,
        RectifiedFlow(),
        predicts="velocity",
        variance="learned",
        condition_on="time",
        moments=Moments(torch.zeros(1, 4, 4), torch.ones(1, 4, 4)),
        transform=Compose((part, Logit(1e-6, *part.range))),
    )
    model.save(folder)
