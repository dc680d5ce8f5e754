"""Samples for the tests of the metrics, and whether a mean agrees with a number."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import scipy.stats
import sklearn.ensemble  # noqa: F401 its first import moves Python's random state: rich draws its styles' names
import torch
from torch import Tensor

from scoresde.noise import normal, stream


def draw(*shape: int, key: int | str = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return normal(shape, stream(12, "test_two_sample", key), dtype=dtype)


def agrees_with(mean: float, observe: Callable[[int, int], Tensor], count: int) -> bool:
    """Two-stage z-test: alpha 1e-3, and on rejection a fresh seed with eight times the samples at 1e-5."""
    for stage, (size, alpha) in enumerate(((count, 1e-3), (8 * count, 1e-5))):
        values = observe(stage, size)
        z = float((values.mean() - mean) / (values.std() / math.sqrt(size)))
        if 2 * scipy.stats.norm.sf(abs(z)) > alpha:
            return True
    return False


class Halves:
    """Learns the two means of the first coordinate and splits between them; records what it was given."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> None:
        self.inputs, self.labels = x, y
        means = [x[y == label, 0].mean() for label in (0, 1)]
        self.middle, self.up = sum(means) / 2, means[1] > means[0]

    def predict(self, x: np.ndarray) -> np.ndarray:
        return ((x[:, 0] > self.middle) == self.up).astype(int)
