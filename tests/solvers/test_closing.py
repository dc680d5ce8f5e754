"""The last interval into clean data, in two calls: the midpoint rule in nu = sigma/alpha, through the real sampler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import MEAN, SDES, VARIANCE, coefficients, gaussian

from scoresde import solvers
from scoresde.solvers.closing import close

F64 = torch.float64


@pytest.mark.parametrize("name", SDES)
def test_the_last_interval_is_the_midpoint_rule(name: str) -> None:
    """y_m = (y + D(y, nu))/2 at nu/2 and y_0 = 2 D(y_m, nu/2) - D(y, nu), for the exact D of Gaussian data."""
    sde = SDES[name]
    times = torch.tensor([0.9, 0.5], dtype=F64) * sde.t_max
    table = solvers.ddim()(sde, times)
    alpha, sigma = float(sde.alpha(times[1])), float(sde.sigma(times[1]))

    def data(y: np.ndarray, nu: float) -> np.ndarray:
        return (VARIANCE * y + nu**2 * MEAN * np.array([1.0, 0.0])) / (VARIANCE + nu**2)

    y, nu = coefficients(gaussian(sde), table) / alpha, sigma / alpha
    middle = 0.5 * (y + data(y, nu))
    exact = 2 * data(middle, 0.5 * nu) - data(y, nu)
    closed = close(table, sde, 2)
    assert closed.nfe == table.nfe + 2
    np.testing.assert_allclose(coefficients(gaussian(sde), closed), exact, rtol=1e-9, atol=1e-12)


def test_one_call_gives_the_data_prediction() -> None:
    sde = SDES["vp"]
    table = solvers.ddim()(sde, torch.tensor([0.9, 0.5], dtype=F64))
    assert close(table, sde, 1) == table.denoised()
