"""The reverse family: its drift against the exact Gaussian score, its marginals, torchsde's protocol, faults."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scoresde import (
    SDE,
    VESDE,
    VPSDE,
    ConfigError,
    DomainError,
    GaussianModel,
    GaussianSDE,
    SolverError,
    SubVPSDE,
    TabulatedSDE,
)
from scoresde.noise import normal, stream

F64 = torch.float64
KNOTS = torch.linspace(0.01, 0.95, 30, dtype=F64)
SDES = {
    "vp": VPSDE(),
    "sub_vp": SubVPSDE(),
    "ve": VESDE(),
    "tabulated": TabulatedSDE(KNOTS, -2 * (KNOTS * torch.pi / 2).tan().log(), -KNOTS),
}
MEAN = torch.tensor([0.7, -1.0], dtype=F64)
COVARIANCE = torch.tensor([[0.5, 0.2], [0.2, 1.3]], dtype=F64)


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 1.7])
def test_reverse_drift_uses_the_score_and_keeps_the_marginals(sde: GaussianSDE, eta: float) -> None:
    model = GaussianModel(sde=sde, mean=MEAN, covariance=COVARIANCE)
    reverse, t = sde.reverse(model, eta), sde.t_min + 0.4 * (sde.t_max - sde.t_min)
    p, f, g = sde.at(t), sde.drift_rate(t), sde.diffusion(t)
    total = p.alpha**2 * COVARIANCE + p.sigma**2 * torch.eye(2, dtype=F64)
    x = p.alpha * MEAN + total.trace().sqrt() * torch.cat([torch.zeros(1, 2), torch.eye(2), torch.ones(1, 2)]).to(F64)
    score = -torch.linalg.solve(total, (x - p.alpha * MEAN).T).T
    expected = f * x - (1 + eta**2) / 2 * g**2 * score
    torch.testing.assert_close(reverse.drift(x, t), expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))
    assert float(reverse.diffusion(t)) == eta * float(g)
    # Run backwards, covariance V of dx = A x dt + eta g dw obeys dV/dt = A V + V A^T - eta^2 g^2: the forward law's.
    matrix = ((reverse.drift(x[1:3], t) - reverse.drift(x[:1], t)) / total.trace().sqrt()).T
    backward = matrix @ total + total @ matrix.T - eta**2 * g**2 * torch.eye(2, dtype=F64)
    forward = 2 * f * total + g**2 * torch.eye(2, dtype=F64)
    torch.testing.assert_close(backward, forward, rtol=1e-9, atol=1e-9 * float((g**2 * total).abs().max()))
    assert torch.equal(reverse.prior().variance, sde.prior().variance)
    assert (reverse.t_min, reverse.t_max) == (sde.t_min, sde.t_max)


def test_reverse_takes_a_bare_score_and_times_of_shape_b() -> None:
    sde = SubVPSDE()
    model = GaussianModel(sde=sde, mean=MEAN, covariance=COVARIANCE)
    x, t = normal((3, 2), stream(2), dtype=F64), torch.tensor([0.1, 0.5, 1.0], dtype=F64)
    bare = sde.reverse(lambda x, t: model(x, t).score)
    together = bare.drift(x, t)
    assert torch.equal(together, sde.reverse(model).drift(x, t))
    for k in range(3):
        torch.testing.assert_close(together[k], bare.drift(x[k : k + 1], float(t[k]))[0], rtol=1e-13, atol=0)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_torchsde_protocol(eta: float) -> None:
    """torchsde's own Euler scheme on the same Brownian path is our formula, step by step backwards in t."""
    torchsde = pytest.importorskip("torchsde")
    sde = VPSDE(t_min=0.01)
    model = GaussianModel(sde=sde, mean=MEAN, covariance=COVARIANCE)
    reverse = sde.reverse(model, eta)
    assert (reverse.noise_type, reverse.sde_type) == ("diagonal", "ito")
    x = normal((4, 2), stream(3), dtype=F64)
    ends, count = (0.0, 0.99), 33
    path = torchsde.BrownianInterval(*ends, size=(4, 2), dtype=F64, entropy=5)
    times = torch.tensor(ends, dtype=F64)
    got = torchsde.sdeint(reverse, x, times, bm=path, method="euler", dt=0.03)[-1]
    for k in range(count):
        s, after = 0.03 * k, min(0.03 * (k + 1), 0.99)
        p = sde.at(sde.t_max - s)
        total = p.alpha**2 * COVARIANCE + p.sigma**2 * torch.eye(2, dtype=F64)
        score = -torch.linalg.solve(total, (x - p.alpha * MEAN).T).T
        beta = sde.beta(1.0 - s)
        drift = -0.5 * beta * x - 0.5 * (1 + eta**2) * beta * score
        x = x - drift * (after - s) + eta * beta.sqrt() * path(s, after)
    # A query's ends are rounded, which moves a Brownian path by the square root of 1e-16.
    torch.testing.assert_close(got, x, rtol=1e-6, atol=1e-6)


class DoubleWell(SDE):
    """A nonlinear SDE of a user's own."""

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        return x - x**3

    def diffusion(self, t: Tensor | float) -> Tensor:
        return torch.as_tensor(0.5, dtype=F64)


def test_a_nonlinear_sde_reverses_too() -> None:
    sde, x = DoubleWell(), torch.tensor([[2.0], [-1.0]], dtype=F64)
    reverse = sde.reverse(lambda x, t: -x, eta=1.0)
    torch.testing.assert_close(reverse.drift(x, 0.5), x - x**3 + 0.25 * x, rtol=1e-15, atol=0)
    with pytest.raises(ConfigError, match=r"DoubleWell names no prior; pass prior= or x_init="):
        sde.prior()
    with pytest.raises(SolverError, match=r"the score must have the shape \(2, 1\) of x, got \(2,\)"):
        sde.reverse(lambda x, t: x[:, 0]).drift(x, 0.5)
    with pytest.raises(DomainError, match=r"eta must lie in \[0, inf\), got -1"):
        sde.reverse(lambda x, t: x, eta=-1)
