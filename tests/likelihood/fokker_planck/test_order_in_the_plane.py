"""The splitting in the plane keeps its order where the coefficients change in time."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from densities import F64, normal
from helpers import slope
from torch import Tensor

from scoresde import SDE, evolve_density


@dataclass(frozen=True, eq=False)
class Turning(SDE):
    """dx = a(t) A (x - m) dt + g(t) dw: a rotation that quickens and noise that grows."""

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        matrix = torch.tensor([[-0.5, 2.0], [-2.0, -0.5]], dtype=x.dtype)
        return 4 * t**2 * (x - torch.tensor([0.2, 0.0], dtype=x.dtype)) @ matrix.T

    def diffusion(self, t: Tensor | float) -> Tensor:
        return 1.2 * torch.as_tensor(t)


def test_order_two_in_time_with_coefficients_that_change() -> None:
    """Against many steps on the same cells."""
    mean, covariance = torch.tensor([1.0, 0.2], dtype=F64), torch.tensor([[0.35, 0.1], [0.1, 0.25]], dtype=F64)
    box, times = [(-3.6, 4.6, 46), (-4.2, 3.8, 44)], torch.tensor([0.1, 0.9], dtype=F64)
    best = evolve_density(Turning(), normal(mean, covariance), box, times, steps=100).values[1]
    counts, errors = [8, 16, 32], []
    for steps in counts:
        got = evolve_density(Turning(), normal(mean, covariance), box, times, steps=steps)
        errors.append(float((got.values[1] - best).abs().sum()) * got.volume)
    assert slope(errors, counts) == pytest.approx(2.0, abs=0.3), errors  # at the wrong time of a sweep: 1.2 or 1.3
