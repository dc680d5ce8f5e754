"""SDEs whose laws are known, and what the tests of the bridges draw."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from scoresde import (
    SDE,
    GaussianMixtureModel,
    GaussianSDE,
)
from scoresde.noise import TapeNoise, normal, stream
from scoresde.sampling import bridge
from scoresde.sampling.bridge.paths import DRAWS

F64 = torch.float64
pytest.importorskip("torchsde")
pytest.importorskip("torchdiffeq")


def mixture(sde: GaussianSDE, event: tuple[int, ...] = (2,)) -> GaussianMixtureModel:
    means = torch.linspace(-1.5, 1.0, 2 * math.prod(event)).reshape(2, *event)
    return GaussianMixtureModel(sde=sde, weights=torch.tensor([0.3, 0.7]), means=means, std=0.5)


def tape(shape: tuple[int, ...], count: int, key: str = "tape") -> list[Tensor]:
    return [normal(shape, stream(3, key, k), dtype=F64) for k in range(count)]


def scaled(sde: GaussianSDE, shape: tuple[int, ...]) -> Tensor:
    return float(sde.prior_std(sde.t_max)) * tape(shape, 1, "start")[0]


# ---------------------------------------------------------------------------------------------------------------------
# A user's own SDEs, with drift and diffusion only


class Relaxation(SDE):
    """dx = -(1 + t) (x - 1/2) dt + sqrt(1 + t) dw: linear, with the exact law below."""

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        rate = 1 + torch.as_tensor(t, dtype=x.dtype)
        return -rate.reshape(-1, *(1,) * (x.ndim - 1)) * (x - 0.5) if rate.ndim else -rate * (x - 0.5)

    def diffusion(self, t: Tensor | float) -> Tensor:
        return (1 + torch.as_tensor(t, dtype=F64)).sqrt()


LINEAR = Relaxation(t_min=1e-3, t_max=1.2)


def law(mean: float, variance: float, early: float, late: float) -> tuple[float, float]:
    """The law of the linear SDE at ``late``: with A = int (1 + t) dt, dv/dA = -2 v + 1."""
    decay = math.exp(-(late - early) * (1 + (late + early) / 2))
    return 0.5 + (mean - 0.5) * decay, 0.5 + (variance - 0.5) * decay**2


class DoubleWell(SDE):
    """dx = (x - x^3) dt + g dw with the stationary density exp((x^2 - x^4/2)/g^2), up to its mass."""

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        return x - x**3

    def diffusion(self, t: Tensor | float) -> Tensor:
        return torch.full_like(torch.as_tensor(t, dtype=F64), 0.7)


WELL = DoubleWell(t_min=1e-3, t_max=1.0)
GRID = np.linspace(-4, 4, 40_001)
DENSITY = np.exp((GRID**2 - GRID**4 / 2) / 0.49)
WELL_CDF = np.cumsum(DENSITY) / DENSITY.sum()


def linear_map(method: str, sde: SDE, times: Tensor) -> np.ndarray:
    """Weights on [1, start state, draw 1, ...] of a linear SDE's last state, read off the real simulation."""
    count = DRAWS[method] * (len(times) - 1)
    unit = torch.eye(2 + count, dtype=F64)
    out = bridge.simulate(sde, unit[1], times, method=method, noise=TapeNoise(list(unit[2:])))[-1]
    return torch.cat([out[:1], out[1:] - out[:1]]).numpy()


def law_error(method: str, sde: SDE, times: Tensor, first: tuple[float, float], last: tuple[float, float]) -> float:
    weights = linear_map(method, sde, times)
    mean, variance = weights[0] + weights[1] * first[0], weights[1] ** 2 * first[1] + (weights[2:] ** 2).sum()
    return math.hypot(mean - last[0], variance - last[1])


def line(early: float, late: float, steps: int) -> Tensor:
    return torch.linspace(early, late, steps + 1, dtype=F64)
