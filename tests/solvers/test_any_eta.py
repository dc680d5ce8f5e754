"""Between the values 0 and 1 of eta too a step has the weights of its own formula, through the real sampler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import MEAN, SDES, VARIANCE, coefficients, gaussian

from scoresde import GaussianSDE, solvers

F64 = torch.float64


def ends(sde: GaussianSDE) -> tuple[float, float]:
    return 0.6 * sde.t_max, 0.55 * sde.t_max


def curves(sde: GaussianSDE, t: float) -> tuple[float, float]:
    at = torch.tensor(t, dtype=F64)
    return float(sde.alpha(at)), float(sde.sigma(at))


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0, 1.6])
@pytest.mark.parametrize("name", SDES)
def test_reverse_diffusion_is_its_formula(name: str, eta: float) -> None:
    """x_s = (2 - a) x + (1 + eta^2)/2 b^2 score + eta b z, for the exact score of Gaussian data."""
    sde = SDES[name]
    late, early = ends(sde)
    table = solvers.reverse_diffusion(eta=eta)(sde, torch.tensor([late, early], dtype=F64))
    alpha, sigma = curves(sde, late)
    a, b = (float(w) for w in sde.transition_weights(early, late))
    spread = alpha**2 * VARIANCE + sigma**2  # score = -(x - alpha m)/spread
    on_score = 0.5 * (1 + eta**2) * b**2
    exact = [on_score * alpha * MEAN / spread, 2 - a - on_score / spread, *([eta * b] if eta else [])]
    np.testing.assert_allclose(coefficients(gaussian(sde), table), exact, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("name", SDES)
def test_ddim_is_its_formula(name: str, eta: float) -> None:
    """x_s = alpha_s x_0 + sqrt(sigma_s^2 - w^2) noise + w z, w = eta sigma_s sqrt(1 - e^D)."""
    sde = SDES[name]
    late, early = ends(sde)
    table = solvers.ddim(eta)(sde, torch.tensor([late, early], dtype=F64))
    (alpha, sigma), (alpha_s, sigma_s) = curves(sde, late), curves(sde, early)
    w = eta * sigma_s * (1 - (alpha * sigma_s / (alpha_s * sigma)) ** 2) ** 0.5
    spread = alpha**2 * VARIANCE + sigma**2
    # The exact predictions of the data and of the noise, as weights on 1 and x.
    data = np.array([MEAN - alpha**2 * VARIANCE / spread * MEAN, alpha * VARIANCE / spread])
    noise = (np.array([0.0, 1.0]) - alpha * data) / sigma
    exact = [*(alpha_s * data + (sigma_s**2 - w**2) ** 0.5 * noise), *([w] if eta else [])]
    np.testing.assert_allclose(coefficients(gaussian(sde), table), exact, rtol=1e-9, atol=1e-12)
