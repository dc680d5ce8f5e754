"""The probability flow through scipy and torchdiffeq."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from bridge_laws import (
    F64,
    LINEAR,
    law,
    mixture,
    scaled,
    tape,
)
from helpers import SDES, Net, slope
from scipy import integrate
from torch import Tensor

from scoresde import (
    VPSDE,
    ProbabilityFlow,
    ScoreModel,
    sample,
)
from scoresde.sampling import bridge
from scoresde.sampling.flow import solve
from scoresde.solvers import grids

# ---------------------------------------------------------------------------------------------------------------------
# The probability flow


def reference(model: ScoreModel, x: Tensor, early: float, late: float) -> Tensor:
    """scipy on dx/dt = alpha' data + sigma' noise at 1e-12, written here."""

    def velocity(t: float, values: np.ndarray) -> np.ndarray:
        now = torch.from_numpy(values).reshape(x.shape)
        return model(now, t).velocity.reshape(-1).numpy()

    return torch.from_numpy(
        integrate.solve_ivp(velocity, (late, early), x.reshape(-1).numpy(), "DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
    ).reshape(x.shape)


FLOWS = {
    "ours, dopri5": ProbabilityFlow(rtol=1e-10, atol=1e-10),
    "ours, bosh3": ProbabilityFlow(rtol=1e-8, atol=1e-8, method="bosh3"),
    "scipy RK45": bridge.ScipyODE(rtol=1e-8, atol=1e-8),
    "scipy DOP853": bridge.ScipyODE("DOP853", rtol=1e-9, atol=1e-9),
    "scipy LSODA": bridge.ScipyODE("LSODA", rtol=1e-9, atol=1e-9),
    "torchdiffeq dopri5": bridge.TorchDiffEq(rtol=1e-8, atol=1e-8, together=True),
    "torchdiffeq dopri8": bridge.TorchDiffEq("dopri8", rtol=1e-8, atol=1e-8),
}


@pytest.mark.parametrize("sde", ["vp", "ve"])
def test_all_flows_agree_with_scipy_on_a_mixture(sde: str) -> None:
    model = mixture(SDES[sde], (1, 2))
    early = {"vp": 1e-3, "ve": model.sde.t_min}[sde]
    x, times = scaled(model.sde, (2, 1, 2)), torch.tensor([1.0, early], dtype=F64)
    exact = reference(model, x, early, 1.0)
    for name, solver in FLOWS.items():
        got = sample(model, x_init=x, solver=solver, times=times, final="sample", full_output=True)
        assert float((got.x - exact).abs().max()) < 3e-7 * (1 + float(exact.abs().max())), name
        assert got.times == (1.0, early)
    end = sample(model, x_init=x, solver=FLOWS["ours, dopri5"], final="sample")
    heun = [sample(model, x_init=x, solver="heun", times=grids.rectified(n), final="sample") for n in (80, 160)]
    errors = [float((got - end).norm()) for got in heun]
    assert slope(errors, (80, 160)) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize(
    "solver",
    [kind(rtol=1e-9, atol=1e-9) for kind in (ProbabilityFlow, bridge.ScipyODE, bridge.TorchDiffEq)],
    ids=lambda s: type(s).__name__,
)
def test_the_flow_of_a_users_sde_is_the_exact_one(solver: object) -> None:
    """Gaussian laws: the flow keeps the number of standard deviations from the mean."""
    data = (1.4, 0.2)

    def score(x: Tensor, t: Tensor) -> Tensor:
        mean, variance = torch.tensor([law(*data, 0.1, float(s)) for s in t], dtype=F64).T
        return -(x - mean[:, None]) / variance[:, None]

    x = torch.linspace(-1, 3, 5, dtype=F64)[:, None]
    mean, variance = law(*data, 0.1, 1.2)
    times = torch.tensor([1.2, 0.1], dtype=F64)
    got = sample(score, sde=LINEAR, x_init=x, solver=solver, times=times, final="sample")
    torch.testing.assert_close(got, data[0] + (x - mean) * math.sqrt(data[1] / variance), rtol=0, atol=1e-7)


@pytest.mark.parametrize("method", ["RK23", "RK45", "DOP853", "dopri5", "bosh3"])
def test_backends_report_what_they_did(method: str) -> None:
    net = Net(lambda x, k: torch.sin(3 * x), dtype=F64)
    make = bridge.ScipyODE if method in ("RK23", "RK45", "DOP853") else bridge.TorchDiffEq
    stages = {"RK23": 3, "RK45": 6, "DOP853": 12, "dopri5": 6, "bosh3": 3}[method]
    solver = make(method, rtol=1e-3, atol=1e-3)
    r = sample(ScoreModel(net, VPSDE()), (3, 2), solver=solver, seed=1, dtype=F64, full_output=True)
    # Two evaluations choose the first step, one denoises the whole batch.
    assert int(r.nfe.sum()) - 2 == len(net.calls)
    assert torch.equal(r.nfe, 2 + stages * (r.accepted + r.rejected) + 1)
    assert int(r.rejected.sum()) > 0
    assert len(set(r.nfe.tolist())) > 1


def test_samples_are_solved_one_by_one_unless_together() -> None:
    scale = torch.tensor([1.0, 12.0, 1.0])
    net = Net(lambda x, k: torch.sin(x), dtype=F64)
    net.forward = lambda x, c_noise, scale: torch.sin(scale[:, None] * x)
    model, x = ScoreModel(net, VPSDE(), predicts="data"), tape((3, 2), 1)[0]
    options = {"x_init": x, "full_output": True}
    for solver in (bridge.ScipyODE(rtol=1e-3, atol=1e-3), bridge.TorchDiffEq(rtol=1e-3, atol=1e-3)):
        whole = sample(model, solver=solver, cond={"scale": scale}, **options)
        for k in range(3):
            own = {"cond": {"scale": scale[k : k + 1]}, "x_init": x[k : k + 1], "full_output": True}
            alone = sample(model, solver=solver, **own)
            torch.testing.assert_close(alone.x[0], whole.x[k], rtol=1e-12, atol=1e-12)
            assert int(alone.nfe) == int(whole.nfe[k])
        assert int(whole.nfe[1]) > int(whole.nfe[0])
    together = sample(
        model, solver=bridge.TorchDiffEq(rtol=1e-3, atol=1e-3, together=True), cond={"scale": scale}, **options
    )
    assert len(set(together.nfe.tolist())) == 1
    torch.testing.assert_close(together.x[0], whole.x[0], rtol=1e-2, atol=1e-2)
    assert not torch.allclose(together.x, whole.x, rtol=1e-9, atol=1e-9)


def test_no_sample_and_no_interval() -> None:
    net = Net()
    for solver in (bridge.ScipyODE(), bridge.TorchDiffEq(), bridge.TorchDiffEq(together=True)):
        r = solve(solver, ScoreModel(net, VPSDE()), torch.ones(2, 2), 0.5, 0.5)
        assert (r.x.tolist(), r.nfe.tolist()) == ([[1.0, 1.0], [1.0, 1.0]], [0, 0])
        assert solve(solver, ScoreModel(net, VPSDE()), torch.ones(0, 2), 1.0, 0.5).x.shape == (0, 2)
    assert sample(ScoreModel(net, VPSDE()), (0, 2), solver=bridge.TorchSDE()).shape == (0, 2)
    assert net.calls == []
