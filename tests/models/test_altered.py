"""Checkpoints that were altered under a good manifest: CheckpointError with the field, or a model that is what it says.

Every field of every document of several models is replaced by values that do not belong there, removed, and joined by
another; the manifest is written anew for each. What loads must be the altered document's model: taken apart again it
gives the same document, and it answers with finite numbers.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from checkpoints import Own, filled, same_weights, small
from torch import Tensor

from scoresde import (
    CheckpointError,
    CosineVPSDE,
    Moments,
    RectifiedFlow,
    ScoreModel,
    ScoreSDEError,
    TabulatedSDE,
    VESDE,
    VPSDE,
)
from scoresde.models import checkpoint, saving
from scoresde.models.guidance.clamp import Clamp, DynamicThreshold
from scoresde.models.guidance.combine import CombinedModel, guided, product
from scoresde.models.mapped import MappedModel, map_prediction
from scoresde.models.prediction import Predictor
from scoresde.models.saving_parts import take_apart_whole
from scoresde.nn import MLP, UNet
from scoresde.noise import normal, stream
from scoresde.sampling.calibration import Calibration, Rung
from scoresde.solvers.build import build_table
from scoresde.solvers.tableau import Tableau
from scoresde.transforms import Compose, Dequantise, Logit

DEEP = json.loads("[" * 60 + "]" * 60)
NUMBERS = [-1, 0, 0.5, 10**400, 1e308, 2**63]
OTHERS = [None, True, "x", [], {}, [None], {"a": 1}, DEEP]
WORDS = ["NaN", "-Infinity"]  # no JSON, and Python reads it

Loader = Callable[[Path], Predictor]


def signed(folder: Path, parts: dict[str, tuple[str, bytes]]) -> None:
    """Write parts, by their names each with its suffix and bytes, under a manifest that names them."""
    entries = {}
    for name, (suffix, data) in parts.items():
        digest = hashlib.sha256(data).hexdigest()
        file = f"{name}-{digest[:16]}.{suffix}"
        (folder / file).write_bytes(data)
        entries[name] = {"file": file, "bytes": len(data), "sha256": digest}
    body = {"format": "scoresde checkpoint", "version": 1, "files": entries}
    (folder / "manifest.json").write_bytes(checkpoint._manifest(body))


def read_parts(folder: Path) -> dict[str, tuple[str, bytes]]:
    entries = json.loads((folder / "manifest.json").read_text("utf-8"))["files"]
    return {
        name: (entry["file"].rpartition(".")[2], (folder / entry["file"]).read_bytes())
        for name, entry in entries.items()
    }


def alter(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], object]]:
    """Yield a field's path and what to put there, for every field; None of a key that is new."""
    if path:
        kin = NUMBERS if isinstance(value, int | float) else NUMBERS[:2]
        yield from ((path, other) for other in [*kin, *OTHERS])
    if isinstance(value, dict):
        for key in value:
            yield from alter(value[key], (*path, key))
        yield (*path, "new_field"), 1
    elif isinstance(value, list) and value:
        # The ends of a long list stand for all of it.
        for k in {0, len(value) - 1}:
            yield from alter(value[k], (*path, k))


def put(document: dict[str, Any], path: tuple[str | int, ...], value: object) -> dict[str, Any]:
    made = copy.deepcopy(document)
    place: Any = made
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return made


def normalise(value: object) -> object:
    """Tell true from 1, and 1 from nothing but 1.0."""
    if isinstance(value, dict):
        return {key: normalise(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [normalise(one) for one in value]
    return (type(value).__name__, value) if isinstance(value, bool) else value


def answers(model: Predictor, event: tuple[int, ...], cond: dict[str, Tensor] | None) -> bool:
    x = normal((2, *event), stream(5))
    with torch.no_grad():
        outs = [model(x, t, cond=cond).data for t in (model.sde.t_min, model.sde.t_max)]
    if model.transform is not None:
        model.transform.inverse(torch.zeros_like(x))
    return all(bool(torch.isfinite(out).all()) for out in outs)


def full(folder: Path) -> None:
    """A model of vectors with everything that a checkpoint may hold."""
    model = small(0)
    model.net = filled(MLP(3, width=8, depth=1, classes=2), 3)
    model.dropout, model.class_names = {"label": 0.1}, {"label": ("cat", "dog")}
    model.groups[2] = torch.tensor([0, 1, 0])
    model.tables[3] = build_table(model.sde, "dpmpp_2m", steps=3, final="mean").to_json()
    model.tables[2] = build_table(model.sde, "ancestral", steps=2, final="mean").to_json()
    rungs = (Rung(4, "dpmpp_2m", None, None, 0.1, 0.05), Rung(8, "dpmpp_2m", "curve", -3.0, 0.1, 0.05))
    model.calibration = Calibration(rungs, (0.9, 0.5, 0.1), (0.0, 0.5, 1.0), 12).to_json()
    model.save(folder, ema=filled(MLP(3, width=8, depth=1, classes=2), 4).state_dict())


def image(folder: Path) -> None:
    net = filled(UNet(1, width=8, multipliers=(1,), heads=2, out_channels=2, context_features=2))
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


def tabulated(folder: Path) -> None:
    t = torch.linspace(0.1, 1.0, 5, dtype=torch.float64)
    sde = TabulatedSDE(t, 6 - 12 * t, -t)
    model = ScoreModel(filled(MLP((2, 2), width=4, depth=0)), sde, predicts="edm", moments=None)
    model.with_sde(CosineVPSDE()).save(folder)


def combined(folder: Path) -> None:
    one = ScoreModel(filled(MLP(3, width=4, depth=0, classes=2)), VPSDE(), predicts="v")
    guided(one, 2.0, interval=(0.1, 5.0), rescale=0.5, negative={"label": 1}).save(folder)


def multiplied(folder: Path) -> None:
    parts = [ScoreModel(filled(MLP(3, width=4, depth=0), k), VPSDE(), predicts="v") for k in (0, 1)]
    product(parts, [1.5, -0.5]).save(folder)


def clamped(folder: Path) -> None:
    inner = ScoreModel(filled(MLP(3, width=4, depth=0)), VPSDE(), predicts="v")
    map_prediction(inner, Clamp(-2.0, 2.0)).with_sde(VESDE()).save(folder)


def thresholded(folder: Path) -> None:
    inner = ScoreModel(filled(MLP(3, width=4, depth=0)), VPSDE(), predicts="v")
    map_prediction(inner, DynamicThreshold(0.9, 2.0)).save(folder)


LABEL = {"label": torch.tensor([0, 1])}
KINDS: dict[str, tuple[Callable[[Path], None], Loader, tuple[int, ...], dict[str, Tensor] | None]] = {
    "full": (full, ScoreModel.load, (3,), LABEL),
    "image": (image, ScoreModel.load, (1, 4, 4), None),
    "tabulated": (tabulated, ScoreModel.load, (2, 2), None),
    "combined": (combined, CombinedModel.load, (3,), LABEL),
    "multiplied": (multiplied, CombinedModel.load, (3,), None),
    "clamped": (clamped, MappedModel.load, (3,), None),
    "thresholded": (thresholded, MappedModel.load, (3,), None),
}


def judge(folder: Path, load: Loader, event: tuple[int, ...], cond: dict[str, Tensor] | None, name: str,
          path: tuple[str | int, ...], document: object) -> str:
    """Return what is wrong with the answer to an altered checkpoint; "" where nothing is."""
    try:
        model = load(folder)
    except CheckpointError as error:
        said = str(error)
        keys = [str(key) for key in path if isinstance(key, str)]
        if "\n" in said or len(said) > 1500:
            return f"not one line of a length to read: {said[:3000]}"
        named = name in said and any(key in said for key in keys[-1:] + keys[-2:-1] + keys[-3:-2])
        return "" if named or "it is nested" in said or "no JSON" in said else f"names no field: {said}"
    except BaseException as error:  # noqa: BLE001 whatever comes is reported with its field
        return f"{type(error).__name__}: {error}"
    if normalise(json.loads(json.dumps(take_apart_whole(model)[0][name]))) != normalise(document):
        return f"another model: {take_apart_whole(model)[0][name]}"
    if name in ("tables", "calibration"):
        try:
            for text in model.tables.values():
                Tableau.from_json(text)
            if model.calibration is not None:
                Calibration.from_json(model.calibration).candidate(8)
        except ScoreSDEError:
            pass  # what its numbers mean together is the sampler's to say
        return ""
    try:
        return "" if answers(model, event, cond) else "its answer is not finite"
    except BaseException as error:  # noqa: BLE001
        return f"it does not answer: {type(error).__name__}: {error}"


@pytest.mark.parametrize("kind", KINDS)
def test_an_altered_document_is_refused_by_its_field_or_is_what_it_says(kind: str, tmp_path: Path) -> None:
    save, load, event, cond = KINDS[kind]
    save(tmp_path / "m")
    parts = read_parts(tmp_path / "m")
    assert answers(load(tmp_path / "m"), event, cond)
    wrong, refused, taken = [], 0, 0
    (tmp_path / "altered").mkdir()
    for name, (suffix, data) in parts.items():
        if suffix != "json" or (kind != "full" and name.endswith(("b_model", "tables", "calibration"))):
            continue
        document = json.loads(data)
        for path, value in alter(document):
            changed = put(document, path, value)
            signed(tmp_path / "altered", {**parts, name: ("json", json.dumps(changed).encode())})
            found = judge(tmp_path / "altered", load, event, cond, name, path, changed)
            if found:
                wrong.append(f"{name}{path} = {str(value)[:40]}: {found}")
    assert wrong == [], "\n".join(wrong[:40]) + f"\n{len(wrong)} in all"
