"""Models whose densities are known, for the tests of the flow's likelihood."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde import (
    EDMSDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    GaussianMixtureModel,
    GaussianModel,
    GaussianSDE,
    RectifiedFlow,
    SubVPSDE,
)
from scoresde.noise import normal, stream

SDES: dict[str, GaussianSDE] = {
    "vp": VPSDE(),
    "cosine": CosineVPSDE(),
    "sub_vp": SubVPSDE(),
    "ve": VESDE(),
    "edm": EDMSDE(),
    "rectified": RectifiedFlow(),
}


def ring(sde: GaussianSDE = SDES["vp"], std: float = 0.1) -> GaussianMixtureModel:
    """Eight modes of unequal weights on a circle of radius 2."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    return GaussianMixtureModel(sde=sde, weights=torch.arange(1.0, 9.0), means=means, std=std)


def many(sde: GaussianSDE = SDES["vp"]) -> GaussianMixtureModel:
    """Five modes in 12 dimensions."""
    means = normal((5, 12), stream(3, "means"), dtype=torch.float64)
    return GaussianMixtureModel(sde=sde, weights=torch.ones(5), means=means, std=0.3)


def correlated(sde: GaussianSDE = SDES["vp"]) -> GaussianModel:
    """Two pairs of correlated coordinates, (0, 1) and (2, 3)."""
    covariance = torch.eye(4, dtype=torch.float64) * 0.5
    covariance[0, 1] = covariance[1, 0] = 0.3
    covariance[2, 3] = covariance[3, 2] = -0.2
    return GaussianModel(sde=sde, mean=torch.tensor([0.5, -1.0, 0.0, 2.0], dtype=torch.float64), covariance=covariance)


def data_of(model: GaussianModel | GaussianMixtureModel, n: int, seed: int = 5) -> Tensor:
    return model.sample_data(n, stream(seed, "data")).double()


def at_the_end(model: GaussianModel | GaussianMixtureModel, x: Tensor) -> Tensor:
    """Return the log density of x_{t_min}/alpha at data x, which the flow's likelihood is but for the solver."""
    t = model.sde.t_min
    point = model.sde.at(t)
    alpha = float(point.alpha)
    size = math.prod(x.shape[1:])
    if isinstance(model, GaussianModel):
        density = model.moments.at(alpha, float(point.sigma)).log_prob(alpha * x)
    else:
        density = model.log_prob(alpha * x, t)
    return density + size * math.log(alpha)
