"""The exact mixtures that samplers are measured on, as models fast enough for thousands of samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde import VPSDE, GaussianMixtureModel, GaussianSDE, ScoreModel
from scoresde.data import digits
from scoresde.noise import normal, stream

SDE = VPSDE()


def ring(sde: GaussianSDE = SDE, std: float = 0.1) -> GaussianMixtureModel:
    """Eight modes of unequal weights on a circle of radius 2."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    return GaussianMixtureModel(sde=sde, weights=torch.arange(1.0, 9.0), means=means, std=std)


def ten(sde: GaussianSDE = SDE, std: float = 0.2) -> GaussianMixtureModel:
    """Ten modes in 32 dimensions, variance 1 in each coordinate."""
    means = normal((10, 32), stream(1, "means"), dtype=torch.float64)
    means = (means - means.mean(0)) / means.std(0, correction=0) * math.sqrt(1 - std**2)
    return GaussianMixtureModel(sde=sde, weights=torch.ones(10), means=means, std=std)


def curve(sde: GaussianSDE = SDE, std: float = 0.1) -> GaussianMixtureModel:
    """Forty modes along a trefoil knot in three dimensions, variance about 1 in each coordinate."""
    t = torch.arange(40, dtype=torch.float64) * 2 * math.pi / 40
    means = torch.stack([t.sin() + 2 * (2 * t).sin(), t.cos() - 2 * (2 * t).cos(), -(3 * t).sin()], 1)
    return GaussianMixtureModel(sde=sde, weights=torch.ones(40), means=means / means.std(0), std=std)


def patches(sde: GaussianSDE = SDE, std: float = 0.1) -> GaussianMixtureModel:
    """Sixty pictures of digits, 64 dimensions, in units of the spread of their pixels."""
    images = digits().images.double().flatten(1)[::25][:60]
    means = (images - images.mean()) / images.std()
    return GaussianMixtureModel(sde=sde, weights=torch.ones(len(means)), means=means, std=std)


def wide(sde: GaussianSDE = SDE) -> GaussianMixtureModel:
    """Twenty modes in 64 dimensions, variance about 1 in each coordinate, std 0.2."""
    means = normal((20, 64), stream(1, "wide"), dtype=torch.float64)
    return GaussianMixtureModel(sde=sde, weights=torch.ones(20), means=means, std=0.2)


def fast(model: GaussianMixtureModel) -> ScoreModel:
    """Return the same model for means of one std, by matrix products: E[x_0 | x] in O(B K) memory.

    With v = alpha^2 std^2 + sigma^2 the responsibilities are softmax(log w_k + (alpha x.m_k - alpha^2 |m_k|^2/2)/v).
    """
    sde, means, square = model.sde, model.means, float(model.std[0]) ** 2
    log_weights, half = model.weights.log(), 0.5 * means.square().sum(1)

    def data(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (float(c) for c in (sde.alpha(t[0].double()), sde.sigma(t[0].double())))
        v = (alpha * alpha * square) + sigma * sigma
        share = torch.softmax(torch.addmm(log_weights - alpha * alpha / v * half, x, means.T, alpha=alpha / v), 1)
        return torch.addmm(x, share, means, beta=alpha * square / v, alpha=sigma * sigma / v)

    return ScoreModel.from_callable(data, sde, predicts="data", moments=model.moments)
