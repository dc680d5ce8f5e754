"""The standard error of a classification: the jackknife over its draws, written out."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import softmax

from scoresde import Classification
from scoresde.noise import normal, stream

F64 = torch.float64


def test_the_standard_error_is_the_jackknifes() -> None:
    """sqrt((n - 1)/n sum_k (theta_k - mean theta)^2), theta_k without draw k (Efron and Stein 1981)."""
    each = normal((5, 4, 3), stream(0, "each"), dtype=F64)
    prior = torch.tensor([0.2, 0.5, 0.3], dtype=F64).log()
    found = Classification(torch.arange(3), each, prior)
    values = each.numpy()
    without = np.stack([softmax(np.delete(values, k, 0).mean(0) + prior.numpy(), axis=1) for k in range(5)])
    exact = np.sqrt(4 / 5 * np.square(without - without.mean(0)).sum(0))
    np.testing.assert_allclose(found.standard_error.numpy(), exact, rtol=1e-10)
    np.testing.assert_allclose(found.probabilities.numpy(), softmax(values.mean(0) + prior.numpy(), axis=1), rtol=1e-12)
