"""A model made from a model: the same samples under the identity, bounds under a clip, and all that it keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scoresde import (
    MALA,
    VESDE,
    VPSDE,
    Affine,
    ConfigError,
    DomainError,
    DTypeError,
    GaussianModel,
    GaussianSDE,
    Langevin,
    Prediction,
    ProbabilityFlow,
    RectifiedFlow,
    SampleResult,
    ScoreModel,
    ShapeError,
    SolverError,
    decode,
    encode,
    map_prediction,
    sample,
    solvers,
)
from scoresde.diffusions.targets import TARGETS
from scoresde.nn import MLP
from scoresde.noise import normal, stream

F64 = torch.float64
SOLVERS = ["ddim", "flow_abm", "edm", "ancestral", "heun"]
SDES = {"VP": VPSDE(), "VE": VESDE(), "straight": RectifiedFlow()}


def exact(sde: GaussianSDE = SDES["VP"], mean: float = 0.3, variance: float = 0.25) -> GaussianModel:
    return GaussianModel(sde=sde, mean=torch.full((2,), mean, dtype=F64), covariance=torch.tensor(variance, dtype=F64))


def clip(prediction: Prediction) -> Tensor:
    return prediction.data.clamp(-1, 1)


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
@pytest.mark.parametrize("solver", [*SOLVERS, ProbabilityFlow()], ids=[*SOLVERS, "adaptive"])
@pytest.mark.parametrize("kind", TARGETS)
def test_the_identity_gives_the_samples_of_the_model(kind: str, solver: object, sde: GaussianSDE) -> None:
    model = exact(sde)
    same = map_prediction(model, lambda p: p.view(kind), kind)
    options = {"solver": solver, "seed": 0, "dtype": F64}
    if isinstance(sde, RectifiedFlow) and kind in ("noise", "score"):
        with pytest.raises(DomainError, match="has no finite value at t = 1"):
            sample(same, (20, 2), **options)
        return
    expected = sample(model, (20, 2), **options)
    # What the prediction loses where alpha or sigma is small, the largest being nu = 50 of VE and 1/alpha = 150 of VP.
    torch.testing.assert_close(sample(same, (20, 2), **options), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", TARGETS)
def test_the_identity_under_another_sde(kind: str) -> None:
    model = exact()
    same = map_prediction(model, lambda p: p.view(kind), kind)
    for other in (VESDE(), VPSDE(beta_max=10.0)):
        expected = sample(model, (20, 2), sde=other, seed=0, dtype=F64)
        torch.testing.assert_close(sample(same, (20, 2), sde=other, seed=0, dtype=F64), expected, rtol=1e-9, atol=1e-9)
        assert same.with_sde(other).sde is other
    assert same.sde is model.sde


@pytest.mark.parametrize(
    ("solver", "felt"),
    # Heun's second stage of a long step looks beyond where its sample ends.
    [("ddim", 1e-2), ("dpmpp_2m", 1e-2), (ProbabilityFlow(), 1e-2), ("edm", 0.3)],
    ids=["ddim", "dpmpp_2m", "adaptive", "edm"],
)
def test_a_clip_bounds_what_is_sampled(solver: object, felt: float) -> None:
    """Data N(0.9, 0.5^2) beyond 1 are drawn back to it; those inside stay where the model puts them."""
    model = exact(mean=0.9)
    free, clipped = (
        sample(m, (4000, 2), solver=solver, seed=0, dtype=F64) for m in (model, map_prediction(model, clip))
    )
    assert float(free.max()) > 2
    assert float(clipped.abs().max()) <= 1 + 1e-9
    # Where the prediction never reaches a bound the clip is not felt.
    inside = (free > -0.7) & (free < 0.4)
    assert int(inside.sum()) > 500
    assert float((clipped - free)[inside].abs().max()) < felt
    # Where the prediction is on the bound at all late times, the sample ends there.
    assert float((clipped > 0.999).double().mean()) > 0.25


def test_a_clip_in_a_multistep_method_that_extrapolates_is_near_the_bound() -> None:
    x = sample(map_prediction(exact(mean=0.9), clip), (500, 2), solver="flow_abm", seed=0, dtype=F64)
    assert float(x.abs().max()) < 1.01


def test_data_far_from_zero_keep_their_mean_and_spread() -> None:
    """100 +- 10 clipped at [80, 120]: a normal law cut at two deviations has 0.98 of its spread, or a little less."""
    model = exact(mean=100.0, variance=100.0)
    x = sample(map_prediction(model, lambda p: p.data.clamp(80, 120)), (4000, 2), seed=0)
    assert abs(float(x.mean()) - 100) < 0.5
    assert 9.0 < float(x.std()) < 10.0
    assert 79.9 < float(x.min()) < float(x.max()) < 120.1


def test_encoding_follows_the_clipped_flow() -> None:
    model = exact(mean=0.9)
    clipped = map_prediction(model, clip)
    x = 0.9 + 0.5 * normal((30, 2), stream(0), dtype=F64)
    flow = ProbabilityFlow(rtol=1e-8, atol=1e-8)
    z = encode(clipped, x, solver=flow)
    assert float((z - encode(model, x, solver=flow)).abs().max()) > 0.01
    torch.testing.assert_close(decode(clipped, z, solver=flow), x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        encode(map_prediction(model, lambda p: p.data), x, solver="heun", steps=20),
        encode(model, x, solver="heun", steps=20),
        rtol=1e-9,
        atol=1e-9,
    )


def test_kernels_observers_and_trajectories() -> None:
    model = exact()
    same, seen = map_prediction(model, lambda p: p.score, "score"), []
    options = {"solver": "euler_maruyama", "steps": 5, "kernels": [Langevin(snr=0.1)], "seed": 0, "dtype": F64}
    expected = sample(model, (6, 2), trajectory=True, full_output=True, **options)
    got = sample(
        same, (6, 2), trajectory=True, full_output=True, on_step=lambda s: seen.append(s.prediction.data), **options
    )
    assert isinstance(got, SampleResult)
    assert isinstance(expected, SampleResult)
    torch.testing.assert_close(got.trajectory, expected.trajectory, rtol=1e-9, atol=1e-9)
    assert torch.equal(got.nfe, expected.nfe)
    assert len(seen) == 5
    with pytest.raises(ConfigError, match="MALA compares energies, and this model has none"):
        sample(same, (6, 2), kernels=[MALA()], solver="euler_maruyama", steps=2)


class Twice(nn.Module):
    """Noise and variance of (B, 2, 3) from one number, with a label."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
        level = label.to(x).reshape(-1, 1, 1).expand_as(x)
        return torch.cat([self.weight * x, 0.2 * level.tanh()], 1)


def test_a_learned_variance_and_conditions_pass_through() -> None:
    model = ScoreModel(Twice(), VPSDE(), variance="learned")
    same = map_prediction(model, lambda p: p.noise, "noise")
    assert same.variance == "learned"
    options = {
        "solver": solvers.ancestral(variance="learned"),
        "steps": 8,
        "cond": {"label": torch.arange(5)},
        "seed": 3,
    }
    expected = sample(model, (5, 2, 3), **options)
    torch.testing.assert_close(sample(same, (5, 2, 3), **options), expected, rtol=1e-5, atol=1e-5)
    fraction = same(torch.ones(5, 2, 3), 0.5, cond={"label": torch.arange(5)}).variance_fraction
    expected_fraction = 0.5 + 0.1 * torch.arange(5.0).tanh()
    torch.testing.assert_close(fraction, expected_fraction.reshape(5, 1, 1).expand(5, 2, 3))
    with pytest.raises(ConfigError, match="unknown condition 'lable'; did you mean 'label'"):
        sample(same, (5, 2, 3), cond={"lable": torch.arange(5)})


def test_what_a_mapped_model_keeps() -> None:
    net = MLP(2, width=8).double()
    model = ScoreModel(net, VPSDE(), moments=exact().moments, transform=Affine(1.0, 2.0))
    mapped = map_prediction(model, clip)
    assert (mapped.moments, mapped.transform, mapped.sde) == (model.moments, model.transform, model.sde)
    assert (mapped.device, mapped.dtype) == (torch.device("cpu"), F64)
    assert [id(p) for p in mapped.parameters()] == [id(p) for p in model.parameters()]
    model.eval()
    assert not map_prediction(model, clip).training
    x = sample(mapped, (50, 2), seed=0, steps=5)
    # In the data's units: 1 + 2 y with y in [-1, 1], up to the extrapolation of a multistep method.
    assert -1.1 < float(x.min()) < float(x.max()) < 3.1
    modes: list[bool] = []
    sample(map_prediction(model, lambda p: (modes.append(net.training), p.data)[1]), (2, 2), steps=2)
    assert not any(modes)


def test_maps_of_maps_apply_from_the_inside_out() -> None:
    model = exact()
    doubled = map_prediction(map_prediction(model, lambda p: p.data + 1), lambda p: 2 * p.data)
    x = normal((4, 2), stream(0), dtype=F64)
    torch.testing.assert_close(doubled(x, 0.3).data, 2 * (model(x, 0.3).data + 1))
    assert "MappedModel(MappedModel(GaussianModel(" in repr(doubled)


@pytest.mark.parametrize("solver", ["ddim", ProbabilityFlow(), "heun"], ids=str)
def test_the_change_sees_a_state_and_a_time_of_the_models_own_sde(solver: object) -> None:
    """Whatever coordinates a solver works in: x/alpha grows to sigma/alpha, and t lies in the SDE's interval."""
    model, seen = exact(VESDE()), []

    def look(p: Prediction) -> Tensor:
        t = p.readout.point.t.expand(len(p.x))
        expected = model(p.x, t.clamp(model.sde.t_min, model.sde.t_max))
        torch.testing.assert_close(p.data, expected.data, rtol=1e-7, atol=1e-7)
        seen.append(float(p.x.abs().max()))
        return p.data

    sample(map_prediction(model, look), (3, 2), solver=solver, seed=0, dtype=F64, steps=None)
    assert max(seen) > 20


def test_gradients_flow_through_the_change() -> None:
    push = torch.tensor(0.1, dtype=F64, requires_grad=True)
    mapped = map_prediction(exact(), lambda p: p.data + push)
    x = sample(mapped, (2, 2), steps=3, seed=0, dtype=F64, differentiable=True)
    (slope,) = torch.autograd.grad(x.sum(), push)
    step = 1e-6
    with torch.no_grad():
        push += step
        moved = sample(mapped, (2, 2), steps=3, seed=0, dtype=F64)
    assert float(slope) == pytest.approx(float((moved - x.detach()).sum()) / step, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda p: 1.0, DTypeError, "change must return a tensor of x's shape, got float"),
        (
            lambda p: p.data > 0,
            DTypeError,
            "change must return a real floating tensor on cpu, as its input, got torch.bool",
        ),
        (lambda p: p.data[:, :1], ShapeError, r"change must return x's shape \(3, 2\), got \(3, 1\)"),
        (lambda p: p.x.mul_(2), SolverError, "change wrote to the prediction's state; clone p.x first"),
    ],
)
def test_changes_that_misbehave(change: Callable[[Prediction], Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sample(map_prediction(exact(), change), (3, 2), steps=2)


def test_bad_arguments_and_saving(tmp_path: Path) -> None:
    with pytest.raises(DTypeError, match="model must be a ScoreModel, got MLP"):
        map_prediction(MLP(2), clip)
    with pytest.raises(DTypeError, match="change must be a function Prediction -> tensor, got 3"):
        map_prediction(exact(), 3)
    with pytest.raises(ConfigError, match="unknown prediction 'eps'; it is called 'noise' here"):
        map_prediction(exact(), clip, "eps")
    with pytest.raises(ConfigError, match=r"a file cannot; save the model that it wraps, mapped\.model\.save"):
        map_prediction(exact(), clip).save(tmp_path)
    assert not any(tmp_path.iterdir())
