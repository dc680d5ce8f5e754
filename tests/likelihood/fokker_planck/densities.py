"""SDEs and exact densities for the tests of the Fokker-Planck equation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import (
    SDE,
    Densities,
    GaussianMixtureModel,
)

F64 = torch.float64
Density = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Linear(SDE):
    """dx = A (x - m) dt + g dw."""

    matrix: tuple[tuple[float, ...], ...] = ((-1.0,),)
    centre: tuple[float, ...] = (0.0,)
    g: float = 1.0

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        return (x - torch.tensor(self.centre, dtype=x.dtype)) @ torch.tensor(self.matrix, dtype=x.dtype).T

    def diffusion(self, t: Tensor | float) -> Tensor:
        return self.g * torch.ones_like(torch.as_tensor(t))


@dataclass(frozen=True, eq=False)
class DoubleWell(SDE):
    """Two wells of depth 1/(2 g^2) at -1 and 1."""

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        return x - x**3

    def diffusion(self, t: Tensor | float) -> Tensor:
        return 0.7 * torch.ones_like(torch.as_tensor(t))


def normal(mean: Tensor, covariance: Tensor) -> Density:
    law = torch.distributions.MultivariateNormal(mean, covariance, validate_args=False)
    return lambda x: law.log_prob(x).exp()


def mixture(sde: SDE, d: int = 1) -> GaussianMixtureModel:
    means = torch.tensor([[-1.0, 0.3], [0.8, -0.4]], dtype=F64)[:, :d]
    return GaussianMixtureModel(sde=sde, weights=torch.tensor([0.3, 0.7]), means=means, std=0.4)


def exact(model: GaussianMixtureModel, t: float) -> Density:
    return lambda x: model.log_prob(x, t).exp()


def distance(got: Densities, k: int, density: Density) -> float:
    """Sum of absolute differences of probability at the k-th time."""
    x = torch.stack(torch.meshgrid(*got.axes, indexing="ij"), -1).reshape(-1, len(got.axes))
    return float((got.values[k].reshape(-1) - density(x)).abs().sum()) * got.volume
