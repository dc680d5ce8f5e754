"""Linear SDEs of every kind, their exact models, and the affine map that the real sampler applies."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde import GroupedSDE, LinearMixtureModel, LinearModel, LinearSDE, MatrixSDE, Moments, Tableau, sample
from scoresde.noise import normal, stream

TURNING = -0.5 * torch.eye(3, dtype=torch.float64) + 0.3 * torch.tensor(
    [[0, 1, 0], [-1, 0, 2], [0, -2, 0]], dtype=torch.float64
)
SDES: dict[str, LinearSDE] = {
    "rates": GroupedSDE.with_rates((0.5, 1.0, 2.0)),
    "blur": GroupedSDE.blurring((1, 2, 2), blur=1.0),
    "levels": GroupedSDE.levels((1, 4), (0.4,)),
    "matrix": MatrixSDE(TURNING, t_min=1e-3),
    "langevin": MatrixSDE.langevin(),
}
EVENTS = {"rates": (3,), "blur": (1, 2, 2), "levels": (1, 4), "matrix": (3,), "langevin": (2,)}


def draw(*shape: int, key: str = "case") -> Tensor:
    """Normal numbers in float64."""
    return normal(shape, stream(7, key), dtype=torch.float64)


def covariance(size: int) -> Tensor:
    a = draw(size, size, key="covariance")
    return a @ a.T / size + 0.1 * torch.eye(size, dtype=torch.float64)


def exact(name: str) -> LinearMixtureModel:
    """The exact model of correlated Gaussian data under one of the SDEs."""
    event = EVENTS[name]
    size = math.prod(event)
    means = draw(1, *event, key="mean")
    return LinearMixtureModel(sde=SDES[name], weights=torch.ones(1), means=means, covariances=covariance(size))


def moments(model: LinearModel) -> Moments:
    assert model.moments is not None
    return model.moments


def full(law: object) -> Tensor:
    """The covariance of a Gaussian as a matrix."""
    variance, basis = law.variance, law.basis  # type: ignore[attr-defined]
    return torch.diag(variance.reshape(-1)) if basis is None else (basis * variance) @ basis.T


def sampled_law(model: LinearModel, table: Tableau) -> tuple[Tensor, Tensor]:
    """Mean and covariance of what ``sample`` makes, read from unit start states and unit draws."""
    event = tuple(moments(model).mean.shape)
    size = math.prod(event)
    draws = sum(row.draws for row in table.rows) + (table.lift != (1.0, 0.0))
    unit = torch.zeros(1 + draws, 1 + size * (1 + draws), size, dtype=torch.float64)
    for k in range(1 + draws):
        unit[k, 1 + k * size : 1 + (k + 1) * size] = torch.eye(size, dtype=torch.float64)
    tape = unit.reshape(1 + draws, -1, *event)
    source = {"noise": list(tape[1:])} if draws else {"seed": 0}
    out = sample(model, x_init=tape[0], solver=table, final="sample", **source)
    assert isinstance(out, Tensor)
    out = out.reshape(len(out), size)
    onward = (out[1:] - out[0]).T
    prior = model.linear.prior(table.start.t, moments(model))
    start, own = onward[:, :size], onward[:, size:]
    return out[0] + start @ prior.mean.reshape(-1), start @ full(prior) @ start.T + own @ own.T
