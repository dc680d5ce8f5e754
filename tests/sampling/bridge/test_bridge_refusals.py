"""What a bridge cannot do is refused; what fails says where."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import pytest
import torch
from bridge_laws import (
    F64,
    LINEAR,
    line,
)
from helpers import Net, gaussian
from torch import Tensor

from scoresde import (
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    Langevin,
    ProbabilityFlow,
    RectifiedFlow,
    ScoreModel,
    ShapeError,
    SolverError,
    sample,
)
from scoresde.models.scored_sde import ScoredSDE
from scoresde.noise import SampleNoise
from scoresde.sampling import bridge
from scoresde.sampling.flow import solve
from scoresde.solvers import grids

# ---------------------------------------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: bridge.TorchSDE("heun"), ConfigError, "unknown method 'heun'.*euler, milstein, srk"),
        (lambda: bridge.TorchSDE(dt=0.0), DomainError, r"dt must lie in \(0, inf\), got 0"),
        (lambda: bridge.TorchSDE(eta=-1.0), DomainError, r"eta must lie in \[0, inf\), got -1"),
        (lambda: bridge.ScipyODE("RK4"), ConfigError, "unknown method 'RK4'; did you mean 'RK45'"),
        (lambda: bridge.ScipyODE(rtol=0.0), DomainError, "rtol must lie in"),
        (lambda: bridge.ScipyODE(max_calls=0), DomainError, "max_calls must be at least 1"),
        (lambda: bridge.TorchDiffEq("rk4"), ConfigError, "unknown method 'rk4'"),
        (lambda: bridge.TorchDiffEq(atol=math.nan), DomainError, "atol"),
        (lambda: bridge.TorchDiffEq(rtol="1"), DTypeError, "rtol must be a number"),
    ],
)
def test_wrong_options_are_refused(make: Callable[[], object], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        make()


@pytest.mark.parametrize(
    ("package", "make", "words"),
    [
        ("torchsde", bridge.TorchSDE, r'pip install "\.\[torchsde\]"'),
        ("torchdiffeq", bridge.TorchDiffEq, r'pip install "\.\[torchdiffeq\]"'),
    ],
)
def test_a_missing_package_is_named(
    package: str, make: Callable[[], object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=words):
        make()


T = torch.tensor([0.9, 0.2], dtype=F64)
INNER = torch.tensor([0.9, 0.5, 0.2], dtype=F64)
START = {"x_init": torch.ones(2, 1)}
IN_SAMPLE: dict[str, tuple[dict[str, object], type[Exception], str]] = {
    "steps and dt": ({"solver": bridge.TorchSDE(dt=0.1), "steps": 3}, ConfigError, r"steps= or TorchSDE\(dt=\)"),
    "times and dt": ({"solver": bridge.TorchSDE(dt=0.1), "times": T}, ConfigError, r"times= or TorchSDE\(dt=\)"),
    "steps and times": ({"solver": bridge.TorchSDE(), "steps": 3, "times": T}, ConfigError, "steps= or a tensor"),
    "no step": ({"solver": bridge.TorchSDE(), "steps": 0}, DomainError, "steps must be at least 1"),
    "rising times": ({"solver": bridge.TorchSDE(), "times": T.flip(0)}, DomainError, r"flip\(0\)"),
    "to t = 0": ({"solver": bridge.TorchSDE(), "times": torch.tensor([0.5, 0.0])}, ConfigError, "end at t > 0"),
    "flow to t = 0": ({"solver": bridge.ScipyODE(), "times": torch.tensor([0.5, 0.0])}, ConfigError, "end at t > 0"),
    "kernels": ({"solver": bridge.TorchSDE(), "kernels": [Langevin()]}, ConfigError, "TorchSDE takes no kernels"),
    "freeze": ({"solver": bridge.TorchSDE(), "on_nonfinite": "freeze"}, ConfigError, "no on_nonfinite='freeze'"),
    "scipy's gradients": ({"solver": bridge.ScipyODE(), "differentiable": True}, ConfigError, "no differentiable"),
    "steps of a flow": ({"solver": bridge.TorchDiffEq(), "steps": 9}, ConfigError, "takes no steps"),
    "grid of a flow": ({"solver": bridge.TorchDiffEq(), "times": grids.uniform(4)}, ConfigError, "no a grid"),
    "final": ({"solver": bridge.TorchSDE(), "final": "end"}, ConfigError, "unknown final 'end'"),
    "tolerance in float32": ({"solver": bridge.TorchDiffEq(rtol=1e-9)}, DomainError, "at least 1.19209e-07"),
    "scipy's tolerance": ({"solver": bridge.ScipyODE(rtol=1e-15)}, DomainError, "rtol"),
    "inner times of scipy's flow": (
        {"solver": bridge.ScipyODE(), "times": INNER},
        ConfigError,
        "two ends, got 3 times",
    ),
    "inner times of a flow": ({"solver": bridge.TorchDiffEq(), "times": INNER}, ConfigError, "two ends, got 3 times"),
    "own SDE with a table": ({"sde": LINEAR, "final": "sample"}, DTypeError, "needs a solver of scoresde.bridge"),
    "own SDE to clean data": ({"sde": LINEAR, "solver": bridge.TorchSDE()}, ConfigError, "pass final='sample'"),
    "own SDE on a grid": (
        {"sde": LINEAR, "solver": bridge.TorchSDE(), "final": "sample", "times": grids.uniform(4)},
        ConfigError,
        "Relaxation has no alpha and sigma for a Grid",
    ),
    "own SDE without prior": (
        {"sde": LINEAR, "solver": bridge.TorchSDE(), "final": "sample", "x_init": None, "shape": (2, 1)},
        ConfigError,
        "Relaxation names no prior; pass prior= or x_init=",
    ),
}


@pytest.mark.parametrize("case", IN_SAMPLE)
def test_what_a_bridge_cannot_do_is_refused_before_any_call(case: str) -> None:
    options, kind, words = IN_SAMPLE[case]

    def score(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("called")

    with pytest.raises(kind, match=words):
        sample(score, **{"sde": VPSDE()} | START | options)


def test_a_score_model_has_no_meaning_under_a_plain_sde() -> None:
    with pytest.raises(ConfigError, match="Relaxation has no alpha and sigma"):
        sample(gaussian(), (2,), sde=LINEAR, solver=bridge.TorchSDE())
    with pytest.raises(DomainError, match="times, not points"):
        solve(ProbabilityFlow(), ScoredSDE(lambda x, t: x, LINEAR), torch.ones(1, 1), VPSDE().at(1.0), 0.5)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"times": line(1.0, 0.1, 3)}, DomainError, r"times must increase, from data to noise.*flip\(0\)"),
        ({"times": torch.tensor([0.1, 0.5, 0.4])}, DomainError, "must increase; it falls at index 2"),
        ({"times": torch.tensor([0.0, 0.5])}, DomainError, "must lie in"),
        ({"times": torch.tensor([0.1, 2.0])}, DomainError, "must lie in"),
        ({"times": [0.1, 0.5]}, DTypeError, "must be a floating tensor"),
        ({"x0": torch.tensor(1.0)}, ShapeError, "0-d"),
        ({"x0": torch.tensor([math.nan])}, DomainError, "x0 has 1 non-finite"),
        ({"method": "midpoint"}, ConfigError, "unknown method"),
        ({"substeps": 0}, DomainError, "substeps must be at least 1"),
        ({"seed": 1, "noise": SampleNoise(1)}, ConfigError, "seed and noise"),
        ({"seed": -1}, DomainError, "seed must lie in"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else None,
)
def test_simulate_checks_its_arguments(options: dict[str, object], kind: type[Exception], words: str) -> None:
    arguments = {"x0": torch.ones(2, 1), "times": line(0.1, 1.0, 3)} | options
    with pytest.raises(kind, match=words):
        bridge.simulate(LINEAR, **arguments)


@pytest.mark.parametrize("solver", [bridge.TorchSDE(), bridge.TorchSDE("srk", dt=0.1, eta=0.0)], ids=str)
def test_a_reverse_sde_starts_below_alpha_0(solver: bridge.TorchSDE) -> None:
    net, sde = Net(dtype=F64), RectifiedFlow()
    model = ScoreModel(net, sde, predicts="v")
    words = "^alpha is 0 at t = 1, where the reverse drift and the diffusion are infinite: start below it with times="
    with pytest.raises(DomainError, match=words):
        sample(model, (2, 2), solver=solver, seed=0)
    with pytest.raises(DomainError, match=words):
        bridge.simulate(sde.reverse(model), torch.ones(2, 2), torch.tensor([1.0, 0.5]), seed=0)
    assert net.calls == []
    solver = bridge.TorchSDE(solver.method, eta=solver.eta)
    x = sample(model, (8, 2), solver=solver, times=line(0.99, 0.01, 50), seed=0)
    assert bool(torch.isfinite(x).all())


def test_a_state_that_is_not_finite_names_its_step() -> None:
    net = Net(lambda x, k: torch.where(torch.tensor(k >= 3), math.nan, 1.0) * x, dtype=F64)
    with pytest.raises(SolverError, match=r"step 3 of torchsde's euler at t = 0\.7 gave non-finite .* 100\.0%") as e:
        sample(ScoreModel(net, VPSDE()), (4, 2), solver=bridge.TorchSDE(), times=line(1.0, 0.1, 9), seed=0)
    assert e.value.partial.shape == (4, 2)
    assert bool(torch.isfinite(e.value.partial).all())


@pytest.mark.parametrize(
    "solver", [bridge.ScipyODE(), bridge.TorchDiffEq(), bridge.TorchDiffEq(together=True)], ids=str
)
def test_a_failed_flow_raises_with_the_time_reached(solver: object) -> None:
    net = Net(lambda x, k: torch.where(torch.tensor(k > 20), math.nan, 1.0) * x, dtype=F64)
    with pytest.raises(SolverError, match=r"stopped at t = 0\.\d+ .*: the prediction is not finite") as e:
        sample(ScoreModel(net, VPSDE()), (4, 2), solver=solver, seed=0, dtype=F64)
    assert bool(torch.isfinite(e.value.partial).all())
    few = type(solver)(max_calls=5)
    with pytest.raises(SolverError, match=r"stopped at t = .*max_calls = 5 is used up; loosen"):
        sample(gaussian(), (4,), solver=few, seed=0)


@pytest.mark.parametrize("solver", [bridge.ScipyODE(), bridge.TorchDiffEq()], ids=str)
def test_a_step_that_underflows_stops_the_flow(solver: object) -> None:
    net = Net(dtype=F64)
    net.act = lambda x, k: x + 1 / (net.calls[-1][1] or 1e-300)  # a pole in the time, which some machines hit
    words = r"scipy's RK45 stopped at t = 0\.25896|torchdiffeq's dopri5 stopped: underflow"
    with pytest.raises(SolverError, match=words):
        sample(ScoreModel(net, VPSDE()), (1, 2), solver=solver, seed=0, dtype=F64)
