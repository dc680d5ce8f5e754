"""The metrics take NumPy arrays as they take tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch

from scoresde.errors import DTypeError
from scoresde.metrics import (
    classifier_two_sample_test,
    energy_distance,
    floor,
    frechet_distance,
    frechet_distance_of_moments,
    marginal_distances,
    median_bandwidth,
    mmd,
    sliced_wasserstein,
    two_sample_test,
)
from scoresde.noise import normal, stream

METRICS: dict[str, Callable[..., object]] = {
    "sliced Wasserstein": sliced_wasserstein,
    "energy": energy_distance,
    "mmd": mmd,
    "bandwidth": median_bandwidth,
    "Frechet": frechet_distance,
    "marginals": lambda x, y: marginal_distances(x, y).tolist(),
    "largest marginal": lambda x, y: marginal_distances(x, y, distance="kolmogorov_smirnov").max().item(),
    "permutation test": lambda x, y: two_sample_test(x, y, permutations=9),
    "of a statistic": lambda x, y: two_sample_test(x, y, statistic=energy_distance, permutations=9),
    "classifier": classifier_two_sample_test,
    "floor": lambda x, y: floor(energy_distance, x, 5, repeats=2),
}
X, Y = normal((30, 2, 2), stream(0, "arrays")).numpy(), normal((20, 2, 2), stream(1, "arrays")).numpy()


@pytest.mark.parametrize("name", METRICS)
def test_arrays_and_tensors_give_the_same(name: str) -> None:
    x, y = X.copy(), np.asfortranarray(Y)
    x.flags.writeable = False
    expected = METRICS[name](torch.tensor(X), torch.tensor(Y))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert METRICS[name](x, y) == expected
        assert METRICS[name](x, torch.tensor(Y)) == expected
    assert np.array_equal(x, X)
    assert np.array_equal(y, Y)


def test_moments_may_be_arrays() -> None:
    mean, covariance = np.zeros(2), np.eye(2)
    assert frechet_distance_of_moments(mean, covariance, mean + 1, 4 * covariance) == pytest.approx(4.0)
    with pytest.raises(DTypeError, match=r"mean_x must be a torch.Tensor, got list"):
        frechet_distance_of_moments([0.0, 0.0], covariance, mean, covariance)


@pytest.mark.parametrize("name", METRICS)
def test_lists_and_words_are_refused(name: str) -> None:
    with pytest.raises(DTypeError, match=r"must be a torch.Tensor, got list"):
        METRICS[name](X.tolist(), Y)
    with pytest.raises(DTypeError, match="must be an array of numbers, got dtype <U32"):
        METRICS[name](X.astype(str), Y)
