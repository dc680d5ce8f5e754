"""Models made of models, and what a checkpoint cannot hold: what is saved comes back as it was, or is not saved."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import Own, filled, small
from torch import Tensor, nn

from scoresde import (
    VPSDE,
    Affine,
    CheckpointError,
    CombinedModel,
    Compose,
    ConfigError,
    EncoderDecoder,
    Latent,
    MappedModel,
    Moments,
    ScoreModel,
    build_table,
    guided,
    map_prediction,
    product,
    sample,
)
from scoresde.models import checkpoint
from scoresde.models.guidance.clamp import Clamp
from scoresde.models.prediction import Predictor
from scoresde.nn import MLP, Autoencoder, UNet
from scoresde.noise import normal, stream
from scoresde.sampling.calibration import Calibration, Rung

X = normal((30, 3), stream(0, "wholes"))
PICTURES = normal((12, 1, 4, 4), stream(1, "wholes"))
LABEL = {"label": torch.tensor([0, 1, 1])}


def conditional(seed: int = 0) -> ScoreModel:
    net = filled(MLP(3, width=8, depth=1, classes=2, context_features={"seen": 2}), seed)
    return ScoreModel(net, VPSDE(), predicts="v", moments=Moments.of(X), transform=Affine(1.0, 2.0))


def latent(seed: int = 0) -> ScoreModel:
    coder = filled(Autoencoder(1, 2, width=4, multipliers=(1, 2)), seed)
    transform = Latent(coder, Affine(0.1, 0.5))
    net = filled(UNet(2, width=4, multipliers=(1,), heads=2))
    return ScoreModel(net, VPSDE(), moments=Moments.of(transform.encode(PICTURES)), transform=transform)


def load(folder: Path, model: Predictor) -> Predictor:
    return (CombinedModel if isinstance(model, CombinedModel) else MappedModel).load(folder)


def own_moments(model: Predictor) -> Predictor:
    model.moments = Moments.of(3 + 2 * X)
    return model


def no_moments(model: Predictor) -> Predictor:
    model.moments = None
    return model


WHOLES: dict[str, Callable[[], Predictor]] = {
    "guided, its own coordinates": lambda: guided(conditional(), 2.0).in_its_own_coordinates(),
    "clamped, its own coordinates": lambda: map_prediction(conditional(), Clamp()).in_its_own_coordinates(),
    "clamped twice": lambda: map_prediction(map_prediction(conditional(), Clamp()).in_its_own_coordinates(), Clamp()),
    "guided, without moments": lambda: no_moments(guided(conditional(), 2.0)),
    "clamped, other moments": lambda: own_moments(map_prediction(conditional(), Clamp())),
    "powers that do not add up, moments of their own": lambda: own_moments(product([conditional(), conditional(1)])),
    "powers that do not add up": lambda: product([conditional(), conditional(1)]),
}


@pytest.mark.parametrize("name", WHOLES)
def test_a_whole_comes_back_with_what_was_set_on_it(name: str, tmp_path: Path) -> None:
    whole = WHOLES[name]()
    whole.save(tmp_path)
    again = load(tmp_path, whole)
    assert repr(again.transform) == repr(whole.transform)
    assert (again.moments is None) == (whole.moments is None)
    drawn = [sample(m, (3, 3), solver="heun", steps=3, seed=2, cond=LABEL) for m in (whole, again)]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("kind", ["guided", "clamped"])
def test_a_whole_keeps_its_tables_its_calibration_and_its_groups(kind: str, tmp_path: Path) -> None:
    whole = guided(conditional(), 2.0) if kind == "guided" else map_prediction(conditional(), Clamp())
    whole.tables = {3: build_table(whole.sde, "ddim", steps=3).to_json()}
    whole.calibration = Calibration((Rung(4, "ddim", None, None, 0.1, 0.05),), (), (), 8).to_json()
    whole.groups = {2: torch.tensor([0, 1, 0])}
    whole.save(tmp_path)
    again = load(tmp_path, whole)
    assert (again.tables.keys(), again.groups.keys()) == ({3}, {2})
    assert Calibration.from_json(again.calibration).rungs == Calibration.from_json(whole.calibration).rungs
    drawn = [sample(m, 3, solver="tuned", steps=3, seed=2, cond=LABEL) for m in (whole, again)]
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], sample(again, 3, solver="heun", steps=3, seed=2, cond=LABEL))


@pytest.mark.parametrize(
    "told",
    [
        {"label": np.int64(1)},
        {"label": torch.tensor(1)},
        {"seen": [math.nan, 0.5]},
        {"seen": np.array([math.nan, 0.5])},
        {"seen": torch.tensor([math.nan, 0.5])},
    ],
)
def test_conditions_to_lead_away_from_come_back_whatever_made_them(told: dict[str, object], tmp_path: Path) -> None:
    """A NaN is an entry of a vector that is missing, and JSON has none."""
    whole = guided(conditional(), 3.0, negative=told)
    whole.save(tmp_path)
    cond = {**LABEL, "seen": torch.ones(3, 2)}
    drawn = [sample(m, 3, steps=3, seed=2, cond=cond) for m in (whole, CombinedModel.load(tmp_path))]
    assert torch.equal(*drawn)
    assert bool(torch.isfinite(drawn[0]).all())


def test_copies_of_one_autoencoder_are_one_transform(tmp_path: Path) -> None:
    one = latent()
    other = latent()
    assert other.transform is not one.transform
    both = product([one, other], [1.5, -0.5])
    both.save(tmp_path)
    drawn = [sample(m, 2, steps=2, seed=0) for m in (both, CombinedModel.load(tmp_path))]
    assert torch.equal(*drawn)
    with pytest.raises(ConfigError, match="different transforms"):
        product([one, latent(1)])
    # Of what JSON cannot rebuild equal weights say nothing.
    halves = [Latent(EncoderDecoder(change, torch.sin)) for change in (torch.sin, torch.cos)]
    parts = [ScoreModel(filled(MLP(3, width=4, depth=0)), VPSDE(), transform=half) for half in halves]
    with pytest.raises(ConfigError, match="different transforms"):
        product(parts)


class OwnSDE(VPSDE):
    """An SDE of a user's own."""


@pytest.mark.parametrize(
    ("part", "what"),
    [
        (lambda: ScoreModel(filled(Own()), VPSDE()), "network Own"),
        (lambda: ScoreModel(MLP(3, width=4), OwnSDE()), "SDE OwnSDE"),
        (lambda: ScoreModel(MLP(3), VPSDE(), transform=Latent(EncoderDecoder(nn.Identity(), nn.Identity()))), "autoen"),
    ],
)
def test_a_part_of_ones_own_is_saved_by_itself(part: Callable[[], ScoreModel], what: str, tmp_path: Path) -> None:
    model = part()
    for whole in (map_prediction(model, Clamp()), map_prediction(product([model]), Clamp())):
        with pytest.raises(ConfigError, match=rf"a part has your own {what}.*save the model inside"):
            whole.save(tmp_path / "m")
    assert not (tmp_path / "m").exists()


# --- what a checkpoint cannot hold


def named(names: object) -> ScoreModel:
    model = small()
    model.class_names = {"label": names}
    return model


class Extra(Own):
    """A network whose state is more than tensors."""

    def get_extra_state(self) -> dict[str, int]:
        return {"scale": 1}


def with_buffer(value: Tensor) -> ScoreModel:
    net = Own()
    net.register_buffer("more", value)
    return ScoreModel(net, VPSDE())


def dropping(share: float) -> ScoreModel:
    model = small()
    model.dropout = {"label": share}
    return model


def nested() -> ScoreModel:
    inner = Latent(filled(Autoencoder(2, 2, width=4, multipliers=(1,))))
    coder = Autoencoder(1, 2, width=4, multipliers=(1, 2))
    return ScoreModel(MLP((2, 2, 2)), VPSDE(), transform=Latent(coder, Compose((Affine(), inner))))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: named((0, 1)), r"class_names.label\[0\] must be a text, got 0; a checkpoint cannot hold that"),
        (lambda: named((np.int64(0),)), "what is to be saved as 'model' is no JSON: Object of type int64"),
        (lambda: dropping(math.nan), "'model' is no JSON: Out of range float"),
        (lambda: dropping(1.5), r"dropout.label must lie in \[0, 1\], got 1.5; a checkpoint cannot hold that"),
        (lambda: ScoreModel(Extra(), VPSDE()), r"weights._extra_state is no tensor but \{'scale': 1\}"),
        (lambda: with_buffer(torch.zeros(2, dtype=torch.complex128)), "weights.more is of torch.complex128"),
        (lambda: with_buffer(torch.eye(2).to_sparse()), "weights.more is of torch.sparse_coo"),
        (lambda: small().to("meta"), "is on the meta device, which holds no values"),
        (lambda: latent().to("meta"), "of the autoencoder is on the meta device, which holds no values"),
        (nested, r"then= has another; make one autoencoder of both: EncoderDecoder"),
    ],
)
def test_nothing_is_saved_that_could_not_be_read(model: Callable[[], ScoreModel], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        model().save(tmp_path / "m")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m").exists()


# --- the device of what is loaded


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("make", [conditional, latent, lambda: guided(conditional(), 2.0)])
def test_what_is_loaded_is_on_the_cpu_whatever_the_default(make: Callable[[], Predictor], tmp_path: Path) -> None:
    model = make()
    model.save(tmp_path)
    cond = LABEL if make is not latent else None
    expected = sample(model, 3, steps=2, seed=0, cond=cond)
    with default_device("meta"):
        again = (ScoreModel if isinstance(model, ScoreModel) else CombinedModel).load(tmp_path)
        got = sample(again, 3, steps=2, seed=0, cond=cond)
    assert torch.equal(got, expected)


def test_a_network_without_values_is_not_loaded_into(tmp_path: Path) -> None:
    latent().save(tmp_path)
    net = UNet(2, width=4, multipliers=(1,), heads=2)
    coder = Autoencoder(1, 2, width=4, multipliers=(1, 2))
    for given in ({"net": copy.deepcopy(net).to("meta")}, {"autoencoder": copy.deepcopy(coder).to("meta")}):
        with pytest.raises(ConfigError, match=r"is on the meta device, .*give it memory first, net.to_empty"):
            ScoreModel.load(tmp_path, **given)
    again = ScoreModel.from_pretrained(tmp_path, net, autoencoder=coder)
    assert again.transform.autoencoder is coder


def test_a_transform_of_codes_takes_what_has_values() -> None:
    whole = latent().transform
    for use, name in ((whole.forward, "data"), (whole.inverse, "y")):
        with pytest.raises(ConfigError, match=f"{name} is on the meta device"):
            use(torch.zeros(2, 1, 4, 4, device="meta"))
        with pytest.raises(TypeError, match=f"{name} must be a torch.Tensor, got list"):
            use([1.0])
    away = copy.deepcopy(whole).to("meta")
    with pytest.raises(ConfigError, match="the autoencoder is on the meta device"):
        away.forward(PICTURES)


def test_what_the_system_does_not_tell_of_is_one_line(tmp_path: Path) -> None:
    far = tmp_path / ("x" * 5000)
    for use in (ScoreModel.load, checkpoint.read, small().save):
        with pytest.raises(CheckpointError, match=r"could not look at .*: File name too long") as caught:
            use(far)
        assert len(str(caught.value)) < 300
