"""The weights of a step between two times that are all but one keep their digits."""

from __future__ import annotations

import mpmath
import pytest
import torch

from scoresde import Solver, TabulatedSDE, solvers

F64 = torch.float64
GAP = 7e-13  # in log-SNR, from 0 on, so that it is exact; half of it is the step h
SDE = TabulatedSDE(torch.tensor([1.0, 2.0, 3.0], dtype=F64), torch.tensor([0.0, -GAP, -1.0], dtype=F64))
TIMES = torch.tensor([2.0, 1.0], dtype=F64)


def fall(gap: float) -> float:
    """1 - e^-gap."""
    with mpmath.workdps(40):
        return float(-mpmath.expm1(-mpmath.mpf(gap)))


STOCHASTIC = {
    "ancestral": (solvers.ancestral(eta=1.0), 1.0),
    "ancestral, eta": (solvers.ancestral(eta=0.6), 0.6),
    "ddim": (solvers.ddim(1.0), 1.0),
    "reverse_diffusion": (solvers.reverse_diffusion(eta=1.0), 1.0),
    "exponential, data": (solvers.exponential(order=1, eta=1.0), 1.0),
    "exponential, noise": (solvers.exponential(prediction="noise", order=1, eta=0.6), 0.6),
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_noise_of_a_small_step(name: str) -> None:
    """All of them draw sigma sqrt(1 - e^(-2 eta^2 h)) but for terms of the next order in h."""
    solver, eta = STOCHASTIC[name]
    (row,) = solver(SDE, TIMES).rows
    assert row.noise[0] == pytest.approx((0.5 * fall(eta**2 * GAP)) ** 0.5, rel=1e-10, abs=0)


@pytest.mark.parametrize(
    ("solver", "eta"),
    [(solvers.ancestral(eta=0.0), 0.0), (solvers.ancestral(eta=0.6), 0.6), (solvers.ancestral(), 1.0)],
    ids=["0", "0.6", "1"],
)
def test_the_datas_weight_in_a_small_step(solver: Solver, eta: float) -> None:
    """alpha (1 - e^(-(1 + eta^2) h))."""
    (row,) = solver(SDE, TIMES).rows
    assert row.state[1] == pytest.approx(0.5**0.5 * fall(0.5 * (1 + eta**2) * GAP), rel=1e-10, abs=0)
