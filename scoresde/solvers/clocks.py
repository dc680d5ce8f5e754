r"""The variables in which solvers step: each a monotone function of lambda = log(alpha/sigma), with its scaled flow.

With y = x/S and the flow prediction F = noise - data, the probability flow is dy/dv = A y + C F. The reverse family of
index eta adds the drift -eta^2 lambda' sigma/S noise, noise = (S y + alpha F)/(alpha + sigma), and white noise of rate
eta sigma/S sqrt(2 |lambda'|), where lambda' = d lambda/dv:

| variable | v | S | A | C | lambda' |
|---|---|---|---|---|---|
| t | t | 1 | (alpha' + sigma')/(alpha + sigma) | (alpha sigma' - sigma alpha')/(alpha + sigma) | -g^2/(2 sigma^2) |
| nu | sigma/alpha | alpha | alpha/(alpha + sigma) | alpha/(alpha + sigma) | -1/nu |
| rectified | u = sigma/(alpha + sigma) | alpha + sigma | 0 | 1 | -1/(u (1 - u)) |
| log_snr | lambda | sigma | alpha/(alpha + sigma) | -alpha/(alpha + sigma) | 1 |

A and C are those of dy = noise d nu and of dy = e^lambda data d lambda, read through F, which is finite where alpha or
sigma is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from scoresde.diffusions.point import Pair, Point
from scoresde.diffusions.sde import GaussianSDE
from scoresde.solvers.grids import Grid, even, karras, log_snr, rectified

__all__ = ["VARIABLES", "Variable", "VariableName"]

VariableName = Literal["t", "nu", "rectified", "log_snr"]


@dataclass(frozen=True)
class Variable:
    """A variable of integration.

    Args:
        name: its name.
        of_lambda: (sde, lambda) -> v.
        at: point -> v.
        time: (sde, v) -> t.
        scale: S at a point.
        field: (sde, point) -> (A, C).
        rate: (sde, point) -> lambda'.
        power: the clock v as in ``rows.Increment``.
        clocked: whether the clock has such a name.
        grid: the grid that is native to it.
    """

    name: VariableName
    of_lambda: Callable[[GaussianSDE, Tensor], Tensor]
    at: Callable[[Point], Tensor]
    time: Callable[[GaussianSDE, Tensor], Tensor]
    scale: Callable[[Point], Tensor]
    field: Callable[[GaussianSDE, Point], Pair]
    rate: Callable[[GaussianSDE, Point], Tensor]
    power: float | None
    grid: Grid
    clocked: bool = True


def _in_time(sde: GaussianSDE, p: Point) -> Pair:
    alpha_rate, sigma_rate, width = sde.alpha_rate(p.t), sde.sigma_rate(p.t), p.alpha + p.sigma
    return (alpha_rate + sigma_rate) / width, (p.alpha * sigma_rate - p.sigma * alpha_rate) / width


def _share(p: Point) -> Tensor:
    return p.alpha / (p.alpha + p.sigma)


VARIABLES: dict[VariableName, Variable] = {
    v.name: v
    for v in (
        Variable(
            "t",
            lambda sde, lam: sde.time(2 * lam),
            lambda p: p.t,
            lambda sde, t: t,
            lambda p: torch.ones_like(p.t),
            _in_time,
            lambda sde, p: -0.5 * (sde.diffusion(p.t) / p.sigma).square(),
            None,
            even(),
        ),
        Variable(
            "nu",
            lambda sde, lam: (-lam).exp(),
            lambda p: p.sigma / p.alpha,
            lambda sde, nu: sde.time(-2 * nu.log()),
            lambda p: p.alpha,
            lambda sde, p: (_share(p), _share(p)),
            lambda sde, p: -p.alpha / p.sigma,
            1.0,
            karras(),
        ),
        Variable(
            "rectified",
            lambda sde, lam: torch.sigmoid(-lam),
            lambda p: p.sigma / (p.alpha + p.sigma),
            lambda sde, u: sde.time(2 * (torch.log1p(-u) - u.log())),
            lambda p: p.alpha + p.sigma,
            lambda sde, p: (torch.zeros_like(p.t), torch.ones_like(p.t)),
            lambda sde, p: -(p.alpha + p.sigma).square() / (p.alpha * p.sigma),
            None,
            rectified(),
            clocked=False,
        ),
        Variable(
            "log_snr",
            lambda sde, lam: lam,
            lambda p: 0.5 * p.log_snr,
            lambda sde, lam: sde.time(2 * lam),
            lambda p: p.sigma,
            lambda sde, p: (_share(p), -_share(p)),
            lambda sde, p: torch.ones_like(p.t),
            0.0,
            log_snr(),
        ),
    )
}
