r"""The variables in which solvers step: each a monotone function of lambda = log(alpha/sigma), with its scaled flow.

With y = x/S, the probability flow is dy/dv = A y + C P for the prediction P:

| variable | v | S | A | P | C |
|---|---|---|---|---|---|
| t | t | 1 | d log alpha/dt | noise | g^2 / (2 sigma) |
| nu | sigma/alpha | alpha | 0 | noise | 1 |
| rectified | u = sigma/(alpha + sigma) | alpha + sigma | 0 | flow (noise - data) | 1 |
| log_snr | lambda | sigma | 0 | data | e^lambda |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.grids import Grid, karras, log_snr, rectified, uniform
from scoresde.readout import Pair, Point
from scoresde.sde import GaussianSDE

__all__ = ["VARIABLES", "Variable"]


@dataclass(frozen=True)
class Variable:
    """A variable of integration.

    Args:
        name: its name.
        of_lambda: (sde, lambda) -> v.
        to_lambda: (sde, v) -> lambda.
        scale: S at a point.
        field: (sde, point) -> (A, C).
        prediction: the kind of P.
        grid: the grid that is native to it.
    """

    name: str
    of_lambda: Callable[[GaussianSDE, Tensor], Tensor]
    to_lambda: Callable[[GaussianSDE, Tensor], Tensor]
    scale: Callable[[Point], Tensor]
    field: Callable[[GaussianSDE, Point], Pair]
    prediction: str
    grid: Grid


def _constant(sde: GaussianSDE, p: Point) -> Pair:
    return torch.zeros_like(p.t), torch.ones_like(p.t)


VARIABLES: dict[str, Variable] = {
    v.name: v
    for v in (
        Variable(
            "t",
            lambda sde, lam: sde.time(2 * lam),
            lambda sde, t: 0.5 * sde.log_snr(t),
            lambda p: torch.ones_like(p.t),
            lambda sde, p: (sde.drift_rate(p.t), 0.5 * sde.diffusion(p.t).square() / p.sigma),
            "noise",
            uniform(),
        ),
        Variable(
            "nu",
            lambda sde, lam: (-lam).exp(),
            lambda sde, nu: -nu.log(),
            lambda p: p.alpha,
            _constant,
            "noise",
            karras(),
        ),
        Variable(
            "rectified",
            lambda sde, lam: torch.sigmoid(-lam),
            lambda sde, u: torch.log1p(-u) - u.log(),
            lambda p: p.alpha + p.sigma,
            _constant,
            "flow",
            rectified(),
        ),
        Variable(
            "log_snr",
            lambda sde, lam: lam,
            lambda sde, lam: lam,
            lambda p: p.sigma,
            lambda sde, p: (torch.zeros_like(p.t), p.alpha / p.sigma),
            "data",
            log_snr(),
        ),
    )
}
