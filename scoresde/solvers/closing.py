r"""The last interval of a run that ends in clean data, in two calls of which none is near sigma = 0.

A stage at the smallest noise multiplies an error of the data prediction by 1/sigma. From a larger nu = sigma/alpha the
probability flow of y = x/alpha, dy/dnu = (y - D(y, nu))/nu, is carried to nu = 0 by the midpoint method,

    y_m = (y + D(y, nu))/2   at nu/2,        y_0 = 2 D(y_m, nu/2) - D(y, nu).

The law of y depends on nu^2, so that y(nu) is even. With y = y_0 + a nu^2 the stage is off by a nu^2/4, where D changes
with y by 1 - O(nu^2), and the midpoint rule is exact for the linear dy/dnu: the local error is O(nu^4). One call,
y_0 = D(y, nu), leaves O(nu^2).
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from scoresde.diffusions.sde import GaussianSDE
from scoresde.solvers.one_step import Stage, express, write_rows
from scoresde.solvers.rows import CLEAN
from scoresde.solvers.tableau import Tableau

__all__ = ["close"]


def close(table: Tableau, sde: GaussianSDE, calls: int) -> Tableau:
    """Append the step from the table's end to clean data, of one call or of two.

    It has one out of alpha = 0, and where nu/2 lies below the SDE's smallest level.
    """
    late = sde.at(torch.tensor([table.end.t], dtype=torch.float64, device="cpu"))
    level = late.log_snr + 2 * math.log(2)
    if calls == 1 or table.end.alpha == 0 or bool(level > sde.log_snr(sde.t_min)):
        return table.denoised()
    middle = sde.at(sde.time(level))
    one, half = torch.ones(1, dtype=torch.float64, device="cpu"), 0.5 * middle.alpha
    first, second = (express("data", table.prediction, point, table.name) for point in (late, middle))
    stages = [
        Stage(late, first, half / late.alpha, (half,)),
        Stage(middle, second, 0 * one, (-one, 2 * one)),
    ]
    (rows,) = write_rows(stages)
    return replace(table, rows=(*table.rows, *rows), end=CLEAN)
