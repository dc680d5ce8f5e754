"""Checkpoints that were altered under a good manifest: CheckpointError with the field, or a model that is what it says.

Every field of every document of several models is replaced by values that do not belong there, removed, and joined by
another; the manifest is written anew for each. What loads must be the altered document's model: taken apart again it
gives the same document, and it answers with finite numbers.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from altered import full, image, read_parts, signed
from checkpoints import filled, small
from torch import Tensor

from scoresde import (
    VESDE,
    VPSDE,
    Affine,
    CheckpointError,
    CosineVPSDE,
    GroupedSDE,
    Haar,
    Latent,
    LinearModel,
    MatrixSDE,
    Moments,
    ScoreModel,
    ScoreSDEError,
    TabulatedSDE,
)
from scoresde.models import checkpoint
from scoresde.models.guidance.clamp import Clamp, DynamicThreshold
from scoresde.models.guidance.combine import CombinedModel, guided, product
from scoresde.models.manifest import sign
from scoresde.models.mapped import MappedModel, map_prediction
from scoresde.models.prediction import Predictor
from scoresde.models.saving_parts import take_apart_whole
from scoresde.nn import EGNN, MLP, Autoencoder, DiT, MagnitudeUNet
from scoresde.noise import normal, stream
from scoresde.sampling.calibration import Calibration
from scoresde.solvers.tableau import Tableau

NUMBERS = [-1, 0.5, 1e308, 2**64, True]
OTHERS = [None, "x", [], {"a": 1}]

Loader = Callable[[Path], Predictor]


def alter(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], object]]:
    """Yield a field's path and what to put there, for every field; None of a key that is new."""
    if path:
        kin = NUMBERS if isinstance(value, int | float) else NUMBERS[:1]
        yield from ((path, other) for other in [*kin, *OTHERS])
    if isinstance(value, dict):
        for key in value:
            yield from alter(value[key], (*path, key))
        yield (*path, "new_field"), 1
    elif isinstance(value, list) and value:
        # The last of a list stands for all of it.
        yield from alter(value[-1], (*path, len(value) - 1))


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


def tabulated(folder: Path) -> None:
    t = torch.linspace(0.1, 1.0, 5, dtype=torch.float64)
    sde = TabulatedSDE(t, 6 - 12 * t, -t)
    model = ScoreModel(filled(MLP((2, 2), width=4, depth=0)), sde, predicts="edm", moments=None)
    model.with_sde(CosineVPSDE()).save(folder)


def linear(folder: Path) -> None:
    sde = GroupedSDE.levels((1, 4), (1.0,))  # nothing rests: the network has one size
    LinearModel(filled(MLP((1, 4), width=4, depth=0)), sde, drop=False, basis=Haar(1), transform=Haar(1)).save(folder)


def turned(folder: Path) -> None:
    sde = MatrixSDE(torch.tensor([[-0.5, 0.2], [-0.2, -0.5]]))
    LinearModel(filled(MLP(2, width=4, depth=0)), sde).save(folder)


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


def coded(folder: Path) -> None:
    transform = Latent(filled(Autoencoder(1, 2, width=4, multipliers=(1, 2))), Affine(0.1, 2.0))
    net = filled(MagnitudeUNet(2, width=4, multipliers=(1,), heads=2, context_features=2))
    ScoreModel(net, VPSDE(), moments=Moments(torch.zeros(2, 2, 2), torch.ones(())), transform=transform).save(folder)


def patches(folder: Path) -> None:
    net = filled(DiT(1, width=16, depth=1, heads=2, classes=2, out_channels=2))
    moments = Moments(torch.zeros(1, 4, 3), torch.ones(()))
    ScoreModel(net, VPSDE(), predicts="v", moments=moments, variance="learned").save(folder)


def points(folder: Path) -> None:
    net = filled(EGNN(2, features=1, width=4, depth=1, classes={"kind": 2}))
    ScoreModel(net, VPSDE(), predicts="data", moments=Moments(torch.zeros(4, 3), torch.ones(()))).save(folder)


LABEL = {"label": torch.tensor([0, 1])}
KINDS: dict[str, tuple[Callable[[Path], None], Loader, tuple[int, ...], dict[str, Tensor] | None]] = {
    "full": (full, ScoreModel.load, (3,), LABEL),
    "image": (image, ScoreModel.load, (1, 4, 4), None),
    "tabulated": (tabulated, ScoreModel.load, (2, 2), None),
    "linear": (linear, ScoreModel.load, (1, 4), None),
    "turned": (turned, ScoreModel.load, (2,), None),
    "combined": (combined, CombinedModel.load, (3,), LABEL),
    "multiplied": (multiplied, CombinedModel.load, (3,), None),
    "clamped": (clamped, MappedModel.load, (3,), None),
    "thresholded": (thresholded, MappedModel.load, (3,), None),
    "coded": (coded, ScoreModel.load, (2, 2, 2), None),
    "patches": (patches, ScoreModel.load, (1, 4, 3), LABEL),
    "points": (points, ScoreModel.load, (4, 3), None),
}


FIELDS = {
    "image": ("network", "transform", "variance"),
    "tabulated": ("trained_sde", "sde", "sigma_data"),
    "linear": ("trained_sde", "linear"),
    "turned": ("trained_sde",),
    "coded": ("transform",),
    "patches": ("network", "variance"),
    "points": ("network", "variance"),
}


def judge(
    folder: Path,
    load: Loader,
    event: tuple[int, ...],
    cond: dict[str, Tensor] | None,
    name: str,
    path: tuple[str | int, ...],
    document: object,
) -> str:
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
    except BaseException as error:
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
    except BaseException as error:
        return f"it does not answer: {type(error).__name__}: {error}"


@pytest.mark.parametrize("kind", KINDS)
def test_an_altered_document_is_refused_by_its_field_or_is_what_it_says(kind: str, tmp_path: Path) -> None:
    save, load, event, cond = KINDS[kind]
    save(tmp_path / "m")
    parts = read_parts(tmp_path / "m")
    assert answers(load(tmp_path / "m"), event, cond)
    wrong = []
    (tmp_path / "altered").mkdir()
    for name, (suffix, data) in parts.items():
        # The parts of a product are models as others are, and so is most of an image's.
        if suffix != "json" or name.endswith("_model"):
            continue
        document = json.loads(data)
        for path, value in alter(document):
            if path[0] not in FIELDS.get(kind, path):
                continue
            changed = put(document, path, value)
            signed(tmp_path / "altered", {**parts, name: ("json", json.dumps(changed).encode())})
            found = judge(tmp_path / "altered", load, event, cond, name, path, changed)
            if found:
                wrong.append(f"{name}{path} = {str(value)[:40]}: {found}")
    assert wrong == [], "\n".join(wrong[:40]) + f"\n{len(wrong)} in all"


def refusal(folder: Path) -> str:
    """Return what a CheckpointError says of a checkpoint; "" where it is read."""
    try:
        checkpoint.read(folder)
    except CheckpointError as error:
        return str(error)
    return ""


TRAINING = {"step": 4, "updates": 4, "seed": 1, "own": [1, None]}
RUN = {"identity": {"data": "64 of 3", "sde": {"kind": "VPSDE"}}, "changes": [{"step": 2, "was": {"seed": 0}}]}


def test_a_run_is_held_to_its_fields(tmp_path: Path) -> None:
    """What training keeps beside the fields that are checked is its own to read."""
    documents, tensors = small(0).contents()
    checkpoint.write(tmp_path / "m", {**documents, "training": TRAINING, "run": RUN}, tensors)
    parts = read_parts(tmp_path / "m")
    (tmp_path / "altered").mkdir()
    count = 0
    for name, document in (("training", TRAINING), ("run", RUN)):
        for path, value in alter(document):
            own = path[0] == "own" or path[-1] == "new_field" or path[:2] == ("identity", "sde") or "was" in path[:-1]
            signed(tmp_path / "altered", {**parts, name: ("json", json.dumps(put(document, path, value)).encode())})
            said = refusal(tmp_path / "altered")
            fits = own or (path == ("identity", "data") and value == "x")
            fits = fits or (path == ("changes",) and value == [])
            fits = fits or (path[-1] == "was" and value == {"a": 1})
            assert bool(said) != fits, (path, value, said)
            assert fits or any(str(key) in said for key in path), (path, value, said)
            count += not fits
    assert count > 50


def test_every_field_of_a_manifest_is_held_to_what_a_save_writes(tmp_path: Path) -> None:
    small(0).save(tmp_path)
    body = json.loads((tmp_path / "manifest.json").read_text("utf-8"))
    del body["sha256"]
    count = 0
    for path, value in alter(body):
        if value == 1 and path == ("version",):
            continue
        (tmp_path / "manifest.json").write_bytes(sign(put(body, path, value)))
        if refusal(tmp_path):
            count += 1
        else:
            # What stands beside the fields is signed, too, and says nothing.
            assert path == ("new_field",), (path, value)
    assert count > 80
