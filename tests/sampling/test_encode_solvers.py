"""Encoding with every named solver under every diffusion: the exact flow, the way back, or the reason why not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scoresde import (
    ConfigError,
    DomainError,
    GaussianModel,
    GaussianSDE,
    RectifiedFlow,
    Solver,
    decode,
    encode,
    solvers,
)
from scoresde.diffusions.named import DIFFUSIONS
from scoresde.solvers.runge_kutta import EULER

F64 = torch.float64
X = torch.tensor([[1.3, -2.2], [0.2, -1.5], [1.0, -2.0]], dtype=F64)
STEPS = 90
FIXED = {name: solver for name in solvers.SOLVERS if isinstance(solver := solvers.by_name(name), Solver)}
# Those that draw noise unless they are told not to.
QUIET = [
    solvers.ancestral(eta=0.0),
    solvers.ddim(eta=0.0),
    solvers.dpmpp_2m_sde(eta=0.0),
    solvers.dpmpp_2s_ancestral(eta=0.0),
    solvers.dpmpp_3m_sde(eta=0.0),
    solvers.edm(churn=0.0),
    solvers.euler_ancestral(eta=0.0),
    solvers.exponential_euler(eta=0.0),
    solvers.seeds_1(eta=0.0),
    solvers.seeds_2(eta=0.0),
    solvers.seeds_3(eta=0.0),
    solvers.sra1(eta=0.0, variable="nu"),
]
# Written in the noise, which says nothing of the data at alpha = 0, where the rectified path ends.
IN_THE_NOISE = {"deis", "ipndm", "lms"}


def gaussian(sde: GaussianSDE) -> GaussianModel:
    covariance = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=F64)
    return GaussianModel(sde=sde, mean=torch.tensor([1.0, -2.0], dtype=F64), covariance=covariance)


def errors(model: GaussianModel, solver: Solver) -> tuple[float, float]:
    """Return the relative error of the latents, and the distance of what comes back."""
    z = encode(model, X, solver=solver, steps=STEPS)
    exact = model.flow(X, model.sde.t_min, model.sde.t_max)
    return float((z - exact).norm() / exact.norm()), float((decode(model, z, solver=solver, steps=STEPS) - X).norm())


@pytest.mark.parametrize("kind", DIFFUSIONS)
def test_a_deterministic_solver_encodes_or_says_why_it_cannot(kind: str) -> None:
    model = gaussian(DIFFUSIONS[kind]())
    drawing = {name for name, solver in FIXED.items() if solver.order.deterministic is None}
    assert {"ancestral", "euler_ancestral", "edm"} <= drawing
    assert not {"ddim", "heun", "unipc"} & drawing
    for name in drawing:
        reason = "belong together only without noise, and .* draws some|keeps x/alpha .*, and alpha is 0 at t = 1"
        with pytest.raises((ConfigError, DomainError), match=reason):
            encode(model, X, solver=name, steps=5)
    for solver in [*(FIXED[name] for name in sorted(FIXED.keys() - drawing)), *QUIET]:
        if kind == "RectifiedFlow" and solver.name in IN_THE_NOISE:
            with pytest.raises(DomainError, match=r"at t = 1 alpha is 0 and the noise prediction of .* says nothing"):
                encode(model, X, solver=solver, steps=5)
            continue
        away, back = errors(model, solver)
        limit = 0.15 if solver.order.deterministic == 1 else 4e-3
        assert away < limit, (solver.name, away)
        assert back < limit, (solver.name, back)


@pytest.mark.parametrize(
    "solver",
    [
        solvers.ddim(),
        solvers.ancestral(eta=0.0),
        solvers.reverse_diffusion(eta=0.0),
        solvers.runge_kutta(EULER, variable="nu"),
        solvers.dpmpp_2m(),
        solvers.dpmpp_2s(),
        solvers.unipc(),
    ],
    ids=lambda s: s.name,
)
def test_a_step_upwards_into_alpha_0_freezes_the_data(solver: Solver) -> None:
    """x_1 = sigma_1/sigma_t (x_t - alpha_t D): all signal is taken out of the state, and the rest is noise."""
    model, t = gaussian(RectifiedFlow()), 0.8
    data: Tensor = model(X, t).data
    got = encode(model, X, solver=solver, times=torch.tensor([1.0, t], dtype=F64))
    torch.testing.assert_close(got, (X - (1 - t) * data) / t, rtol=1e-12, atol=1e-12)


def test_reverse_diffusion_without_noise_goes_up_by_the_variance_that_comes() -> None:
    """Written out: x_s = (2 - a) x_t + b^2/2 score, where a > 1 and b^2 < 0 belong to the way up."""
    model = gaussian(DIFFUSIONS["VPSDE"]())
    s, t = 0.3, 0.4
    a, b = model.sde.transition_weights(s, t)
    got = encode(model, X, solver=solvers.reverse_diffusion(eta=0.0), times=torch.tensor([t, s], dtype=F64))
    expected = (2 - 1 / a) * X - 0.5 * (b / a).square() * model(X, s).score
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
