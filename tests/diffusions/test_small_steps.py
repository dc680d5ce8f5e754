"""Between two times that are all but one, differences of variances keep their digits."""

from __future__ import annotations

import mpmath
import pytest
import torch
from torch import Tensor

from scoresde import DDPM, TabulatedSDE

F64 = torch.float64
GAP = 7e-13  # in log-SNR, from 0 on, so that D itself is exact


def close_knots() -> TabulatedSDE:
    """The first two knots are GAP apart in log-SNR, alpha^2 = sigma^2 = 1/2 but for that."""
    return TabulatedSDE(torch.tensor([1.0, 2.0, 3.0], dtype=F64), torch.tensor([0.0, -GAP, -1.0], dtype=F64))


def fall(gap: float) -> float:
    """1 - e^-gap."""
    with mpmath.workdps(40):
        return float(-mpmath.expm1(-mpmath.mpf(gap)))


def number(value: Tensor) -> float:
    return float(value.reshape(-1)[0])


def test_transition_and_posterior_of_neighbouring_times() -> None:
    """b^2 = sigma_t^2 (1 - e^D), and the posterior's alpha_s (1 - e^D) and sigma_s^2 (1 - e^D)."""
    sde = close_knots()
    _, b = sde.transition_weights(1.0, 2.0)
    on_xt, on_x0, std = sde.posterior_weights(1.0, 2.0)
    assert number(b) == pytest.approx((0.5 * fall(GAP)) ** 0.5, rel=1e-11, abs=0)
    assert number(on_x0) == pytest.approx(0.5**0.5 * fall(GAP), rel=1e-11, abs=0)
    assert number(std) == pytest.approx((0.5 * fall(GAP)) ** 0.5, rel=1e-11, abs=0)
    assert number(on_xt) == pytest.approx(1.0, rel=1e-11, abs=0)


def test_a_chain_of_tiny_betas() -> None:
    """beta_i = 2^-50: the variance at index i is 1 - (1 - beta)^(i + 1) to its last digits, and the table's too."""
    chain = DDPM.from_betas(torch.full((5,), 7e-16, dtype=F64))
    exact = torch.tensor([(k + 1) * 7e-16 for k in range(5)], dtype=F64)
    torch.testing.assert_close(chain.curves[1].square(), exact, rtol=1e-13, atol=0)
    # Bayes' variance between indices k and k + 1: beta (1 - abar_k)/(1 - abar_{k+1}).
    torch.testing.assert_close(chain.posterior_variance[1:], 7e-16 * exact[:-1] / exact[1:], rtol=1e-12, atol=0)
