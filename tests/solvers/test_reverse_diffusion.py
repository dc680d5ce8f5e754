"""Reverse diffusion at any index of the family: the weights of its own formula, through the real sampler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import MEAN, SDES, VARIANCE, coefficients, gaussian

from scoresde import solvers


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0, 1.6])
@pytest.mark.parametrize("name", SDES)
def test_a_step_is_its_formula(name: str, eta: float) -> None:
    """x_s = (2 - a) x + (1 + eta^2)/2 b^2 score + eta b z, for the exact score of Gaussian data."""
    sde = SDES[name]
    late, early = 0.6 * sde.t_max, 0.55 * sde.t_max
    table = solvers.reverse_diffusion(eta=eta)(sde, torch.tensor([late, early], dtype=torch.float64))
    alpha, sigma = (float(curve(torch.tensor(late, dtype=torch.float64))) for curve in (sde.alpha, sde.sigma))
    a, b = (float(w) for w in sde.transition_weights(early, late))
    spread = alpha**2 * VARIANCE + sigma**2  # score = -(x - alpha m)/spread
    on_score = 0.5 * (1 + eta**2) * b**2
    exact = [on_score * alpha * MEAN / spread, 2 - a - on_score / spread, *([eta * b] if eta else [])]
    np.testing.assert_allclose(coefficients(gaussian(sde), table), exact, rtol=1e-10, atol=1e-13)
