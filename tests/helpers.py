"""Exact models, the four kinds of SDE, and the coefficients that the real sampler applies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from scoresde import VESDE, VPSDE, GaussianModel, GaussianSDE, ScoreModel, SubVPSDE, Tableau, TabulatedSDE, sample

ROOT = Path(__file__).resolve().parents[1]
MEAN, VARIANCE = 0.7, 0.25
VARIANCE_PRESERVING = VPSDE()


def tabulated() -> TabulatedSDE:
    """A cosine schedule through 40 knots, not variance preserving, so that nothing is special about it."""
    t = torch.linspace(0.005, 0.99, 40, dtype=torch.float64)
    angle = t * math.pi / 2
    return TabulatedSDE(t, 2 * (angle.cos() / angle.sin()).log(), angle.cos().log() - 0.3 * t)


SDES: dict[str, GaussianSDE] = {
    "vp": VARIANCE_PRESERVING,
    "sub_vp": SubVPSDE(),
    "ve": VESDE(),
    "tabulated": tabulated(),
}


def gaussian(sde: GaussianSDE = VARIANCE_PRESERVING, mean: float = MEAN, variance: float = VARIANCE) -> GaussianModel:
    """The exact model of scalar data, event shape ()."""
    numbers = (torch.tensor(c, dtype=torch.float64) for c in (mean, variance))
    return GaussianModel(sde=sde, **dict(zip(("mean", "covariance"), numbers, strict=True)))


def draws(table: Tableau) -> int:
    return sum(row.draws for row in table.rows) + (table.lift[1] != 0.0)


def coefficients(model: ScoreModel, table: Tableau, **options: object) -> np.ndarray:
    """Weights on [1, start state, draw 1, ...] of what ``sample`` returns: x and each z is 0 or 1, float64 throughout.

    Sample 0 has zeros everywhere, sample 1 a start state of 1, sample 1 + k a draw k of 1.
    """
    unit = torch.eye(2 + draws(table), dtype=torch.float64)
    out = sample(model, x_init=unit[1], noise=list(unit[2:]), solver=table, final="sample", **options)
    assert isinstance(out, Tensor)
    constant = out[:1]
    return torch.cat([constant, out[1:] - constant]).numpy()


def slope(errors: Sequence[float], steps: Sequence[int]) -> float:
    """Order of convergence: minus the slope of log error against log steps."""
    return -float(np.polyfit(np.log(steps), np.log(np.abs(errors)), 1)[0])


class Net(nn.Module):
    """A small network with a parameter, which records its calls and can be told to misbehave."""

    def __init__(self, act: Callable[[Tensor, int], Tensor] | None = None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5, dtype=dtype))
        self.act = act
        self.calls: list[tuple[tuple[int, ...], float]] = []
        self.inputs: list[Tensor] = []
        self.modes: list[bool] = []

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Tensor) -> Tensor:
        self.calls.append((tuple(x.shape), float(c_noise.reshape(-1)[0]) if len(c_noise) else math.nan))
        self.inputs.append(x.detach().clone())
        self.modes.append(self.training)
        if self.act is not None:
            return self.act(x, len(self.calls) - 1)
        shift = sum((c.to(x).reshape(len(x), *(1,) * (x.ndim - 1)) for c in cond.values()), torch.zeros(()).to(x))
        return self.weight * torch.tanh(x + 0.1 * c_noise.reshape(-1, *(1,) * (x.ndim - 1)).to(x)) + shift
