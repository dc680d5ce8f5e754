"""Gradients through the bridges."""

from __future__ import annotations

import math

import pytest
import torch
from bridge_laws import (
    F64,
    line,
    tape,
)
from helpers import gaussian
from torch import Tensor, nn

from scoresde import (
    SDE,
    VPSDE,
    ScoreModel,
    sample,
)
from scoresde.sampling import bridge

# ---------------------------------------------------------------------------------------------------------------------
# Gradients


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5, dtype=F64))

    def forward(self, x: Tensor, c_noise: Tensor, shift: Tensor) -> Tensor:
        return self.weight * torch.tanh(x + 0.1 * c_noise[:, None].to(x)) + shift[:, None]


def gradients(solver: object, **options: object) -> tuple[Tensor, Tensor, Tensor]:
    """Of a sum of squares with respect to the start state, the network's parameter and the condition."""
    net = Weighted()
    x, shift = tape((2, 3), 1, "start")[0].requires_grad_(), torch.tensor([0.1, -0.2], dtype=F64, requires_grad=True)
    out = sample(
        ScoreModel(net, VPSDE(), predicts="data"),
        x_init=x,
        cond={"shift": shift},
        solver=solver,
        differentiable=True,
        final="sample",
        **options,
    )
    return torch.autograd.grad(out.square().sum(), (x, net.weight, shift))


def distance(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> float:
    return max(float((p - q).abs().max() / (1 + q.abs().max())) for p, q in zip(a, b, strict=True))


def test_gradients_through_the_steps_are_the_tables() -> None:
    options = {"times": line(1.0, 0.02, 12), "noise": tape((2, 3), 12)}
    exact = gradients("euler_maruyama", **options)
    assert distance(gradients(bridge.TorchSDE(), **options), exact) < 1e-9


def test_adjoint_gradients_converge_with_the_step() -> None:
    errors = []
    for steps in (25, 100):
        options = {"times": line(1.0, 0.1, steps), "seed": 3}
        exact = gradients(bridge.TorchSDE(), **options)
        errors.append(distance(gradients(bridge.TorchSDE(adjoint=True), **options), exact))
    assert errors[1] < 0.4 * errors[0]
    assert 0 < errors[1] < 0.05


@pytest.mark.parametrize("adjoint", [False, True])
def test_gradients_of_the_flow_are_the_exact_flows(adjoint: bool) -> None:
    """For Gaussian data the flow is affine with the slope sqrt(V_end/V_start)."""
    model = gaussian()
    x = torch.tensor([-1.0, 0.3], dtype=F64, requires_grad=True)
    solver = bridge.TorchDiffEq(rtol=1e-8, atol=1e-8, adjoint=adjoint)
    out = sample(model, x_init=x, solver=solver, times=line(1.0, 0.1, 1), final="sample", differentiable=True)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    with torch.no_grad():
        ends = model.flow(torch.tensor([0.0, 1.0], dtype=F64), 1.0, 0.1)
    torch.testing.assert_close(gradient, (ends[1] - ends[0]).expand(2), rtol=1e-6, atol=0)


def test_adjoint_and_direct_gradients_of_the_flow_agree() -> None:
    options = {"times": torch.tensor([1.0, 0.1], dtype=F64)}
    direct = gradients(bridge.TorchDiffEq(rtol=1e-7, atol=1e-7), **options)
    for together in (False, True):
        adjoint = gradients(bridge.TorchDiffEq(rtol=1e-7, atol=1e-7, adjoint=True, together=together), **options)
        assert distance(adjoint, direct) < 2e-6
    assert min(float(g.abs().max()) for g in direct) > 1e-3


def test_simulate_passes_gradients_to_what_the_sde_holds() -> None:
    rate = torch.tensor(1.3, dtype=F64, requires_grad=True)

    class Learned(SDE):
        def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
            return -rate * x

        def diffusion(self, t: Tensor | float) -> Tensor:
            return torch.tensor(0.0, dtype=F64)

    sde, x = Learned(t_min=1e-3, t_max=1.0), torch.ones(1, 1, dtype=F64)
    for adjoint, tolerance in ((None, 1e-4), ([rate], 2e-2)):
        method = "srk" if adjoint is None else "euler"
        end = bridge.simulate(sde, x, line(0.1, 0.9, 100), method=method, adjoint=adjoint)
        (got,) = torch.autograd.grad(end[-1].sum(), rate)
        assert float(got) == pytest.approx(-0.8 * math.exp(-0.8 * 1.3), rel=tolerance)
