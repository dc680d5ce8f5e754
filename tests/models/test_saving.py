"""Saving a model: the same bits come back, and what cannot be saved says what to save instead."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import Own, filled, same_weights, small
from torch import Tensor, nn

from scoresde import (
    VESDE,
    VPSDE,
    Affine,
    CheckpointError,
    ConfigError,
    DTypeError,
    EmpiricalModel,
    EnergyModel,
    GaussianModel,
    GaussianSDE,
    ScoreModel,
    SubVPSDE,
    sample,
)
from scoresde.models.parameterization import PARAMETERIZATIONS, Parameterization
from scoresde.nn import MLP, UNet
from scoresde.noise import normal, stream


def test_everything_comes_back_to_the_bit(tmp_path: Path) -> None:
    model = small()
    model.save(tmp_path / "m")
    loaded = ScoreModel.load(tmp_path / "m")
    assert same_weights(model, loaded)
    assert (loaded.sde, loaded.transform, loaded.parameterization) == (
        model.sde,
        model.transform,
        model.parameterization,
    )
    for name in ("mean", "variance", "basis"):
        assert torch.equal(getattr(loaded.moments, name), getattr(model.moments, name))
    drawn = [sample(m, (5, 3), steps=4, seed=1) for m in (model, loaded)]
    assert torch.equal(*drawn)
    kinds = {f.suffix for f in (tmp_path / "m").iterdir()}
    assert kinds == {".json", ".safetensors"}


@pytest.mark.parametrize("predicts", PARAMETERIZATIONS)
def test_every_readout_comes_back(tmp_path: Path, predicts: str) -> None:
    net = filled(UNet(1, width=8, multipliers=(1,), classes=3))
    model = ScoreModel(net, VESDE(), predicts=predicts, sigma_data=0.7, condition_on="time")
    model.save(tmp_path)
    loaded = ScoreModel.load(tmp_path)
    assert loaded.moments is None
    assert loaded.transform is None
    x, label = normal((2, 1, 4, 4), stream(1)), {"label": torch.tensor([0, -1])}
    assert torch.equal(loaded(x, 0.4, cond=label).data, model(x, 0.4, cond=label).data)


def test_average_and_raw_weights_stay_apart(tmp_path: Path) -> None:
    raw, average = small(0), small(1)
    raw.save(tmp_path, ema=average.net.state_dict())
    assert same_weights(ScoreModel.load(tmp_path, weights="raw"), raw)
    assert same_weights(ScoreModel.load(tmp_path, weights="ema"), average)
    assert same_weights(ScoreModel.load(tmp_path), average)
    raw.save(tmp_path)
    assert same_weights(ScoreModel.load(tmp_path), raw)
    with pytest.raises(CheckpointError, match=r"holds no 'ema'; it holds model, moments, weights"):
        ScoreModel.load(tmp_path, weights="ema")
    with pytest.raises(ConfigError, match=r"unknown weights 'emma'; did you mean 'ema'\?"):
        ScoreModel.load(tmp_path, weights="emma")


def test_another_sde_after_training_comes_back(tmp_path: Path) -> None:
    model = ScoreModel(filled(MLP(3, width=8, depth=1)), VPSDE(), predicts="velocity").with_sde(VESDE())
    model.save(tmp_path)
    loaded = ScoreModel.load(tmp_path)
    assert (loaded.sde, loaded.trained_sde) == (VESDE(), VPSDE())
    x = normal((2, 3), stream(1))
    assert torch.equal(loaded(x, 0.3).score, model(x, 0.3).score)


def test_bf16_and_tied_weights_come_back(tmp_path: Path) -> None:
    half = ScoreModel(filled(MLP(3, width=8, depth=1)).to(torch.bfloat16), VPSDE())
    half.save(tmp_path / "half")
    assert same_weights(ScoreModel.load(tmp_path / "half"), half)

    tied = MLP(3, width=8, depth=2)
    tied.second[1].weight = tied.second[0].weight
    ScoreModel(filled(tied), VPSDE()).save(tmp_path / "tied")
    other = MLP(3, width=8, depth=2)
    other.second[1].weight = other.second[0].weight
    assert same_weights(ScoreModel.load(tmp_path / "tied", net=other), ScoreModel(tied, VPSDE()))
    assert other.second[1].weight is other.second[0].weight


class Ramp(GaussianSDE):
    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.as_tensor(t)


def test_your_own_network_and_sde_are_passed_in(tmp_path: Path) -> None:
    model = ScoreModel(filled(Own()), Ramp())
    model.save(tmp_path)
    with pytest.raises(CheckpointError, match=r"your own SDE Ramp, which JSON cannot rebuild; pass it: .*sde=Ramp\("):
        ScoreModel.load(tmp_path)
    with pytest.raises(CheckpointError, match=r"your own network Own, .* pass it: ScoreModel.load\(folder, net=Own\("):
        ScoreModel.load(tmp_path, sde=Ramp())
    assert same_weights(ScoreModel.load(tmp_path, Own(), Ramp()), model)
    with pytest.raises(CheckpointError, match=r"holds 2 tensors; net must be a torch.nn.Module"):
        ScoreModel.load(tmp_path, lambda x, c: x, Ramp())


def test_another_sde_than_the_trained_one_is_refused(tmp_path: Path) -> None:
    small().save(tmp_path)
    with pytest.raises(CheckpointError, match=r"made with VPSDE\(.*12.3.*got sde=SubVPSDE\(.*with_sde"):
        ScoreModel.load(tmp_path, sde=SubVPSDE())
    assert ScoreModel.load(tmp_path, sde=VPSDE(beta_max=12.3)).sde == VPSDE(beta_max=12.3)


def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    by_function = ScoreModel(MLP(3), VPSDE(), condition_on=lambda t: t)
    literal = ScoreModel.from_callable(MLP(3), VPSDE())
    for model, what in (
        (by_function, "condition_on is a function"),
        (literal, "made by from_callable holds a function"),
    ):
        with pytest.raises(ConfigError, match=what):
            model.save(tmp_path / "m")
    assert not (tmp_path / "m").exists()


# ---------------------------------------------------------------------------------------------------------------------
# What to save instead


def own_time(t: Tensor) -> Tensor:
    return 1000 * t


SUM = Parameterization("sum", lambda p, d: (torch.ones_like(p.alpha), torch.ones_like(p.alpha)))
EXACT = "is a formula and has no weights to save; keep what it was made from and make it again"
WEIGHTS = r"save the weights, safetensors\.torch\.save_file\(net.state_dict\(\), file\), and give the model anew its"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ScoreModel.from_callable(lambda x, t: -x, VPSDE()), "made by from_callable .* keep the function and wrap it"),
        (ScoreModel.from_callable(Own(), VPSDE(), predicts="velocity"), "made by from_callable holds a function"),
        (ScoreModel(Own(), VPSDE(), condition_on=own_time), f"condition_on is a function.*{WEIGHTS} condition_on="),
        (ScoreModel(Own(), VPSDE(), predicts=SUM), f"'sum' is your own.*{WEIGHTS} predicts="),
        (GaussianModel(sde=VPSDE(), mean=torch.zeros(3), covariance=torch.ones(3)), f"GaussianModel {EXACT}"),
        (
            GaussianModel(sde=VPSDE(), mean=torch.zeros(3), covariance=torch.ones(3)).with_sde(VESDE()),
            f"GaussianModel {EXACT}",
        ),
        (EmpiricalModel(sde=VPSDE(), data=torch.zeros(4, 3)), f"EmpiricalModel {EXACT}"),
    ],
)
def test_what_cannot_be_saved_says_what_to_keep(tmp_path: Path, model: ScoreModel, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model.save(tmp_path / "m")
    assert not (tmp_path / "m").exists()


class Bowl(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return (self.gain * x.square()).flatten(1).sum(1)


def test_an_energy_model_comes_back_as_one(tmp_path: Path) -> None:
    model = EnergyModel(filled(Bowl()), VPSDE(), moments=small().moments, transform=Affine(1.0, 2.0))
    model.save(tmp_path)
    with pytest.raises(CheckpointError, match=r"the energy network Bowl, .* ScoreModel.load\(folder, net=Bowl\("):
        ScoreModel.load(tmp_path)
    loaded = ScoreModel.load(tmp_path, net=Bowl())
    assert isinstance(loaded, EnergyModel)
    assert same_weights(loaded, model)
    x = normal((4, 3), stream(0))
    assert torch.equal(loaded.energy(x, 0.3), model.energy(x, 0.3))
    assert torch.equal(loaded.moments.covariance, model.moments.covariance)
    assert loaded.transform == model.transform


def test_a_run_folder_has_its_checkpoint_inside(tmp_path: Path) -> None:
    model = small(0)
    model.save(tmp_path / "run" / "checkpoint")
    (tmp_path / "run" / "log.jsonl").write_text("{}\n", "utf-8")
    assert same_weights(ScoreModel.load(tmp_path / "run"), model)
    assert same_weights(ScoreModel.load(tmp_path / "run" / "checkpoint"), model)
    # A checkpoint's own folder comes before what lies in it.
    small(1).save(tmp_path / "own")
    small(2).save(tmp_path / "own" / "checkpoint")
    assert same_weights(ScoreModel.load(tmp_path / "own"), small(1))
    with pytest.raises(CheckpointError, match="run2 is no folder"):
        ScoreModel.load(tmp_path / "run2")
    with pytest.raises(DTypeError, match=r"folder must be a string or a pathlib\.Path, got 3"):
        ScoreModel.load(3)
