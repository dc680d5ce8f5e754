r"""Single-step methods: explicit Runge-Kutta on the probability flow, in the variable of choice.

With y = x/S the probability flow is dy/dv = A y + C P (``solvers/variables.py`` lists S, v, A, C and P). The stages of
a Runge-Kutta method are combinations of the anchor and of the predictions made in this step, so each is a row whose
anchor stays still; the last row moves it. A step into sigma = 0 with a stage there, where no noise prediction exists,
is Euler's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.errors import unknown
from scoresde.grids import Grid
from scoresde.sde import GaussianSDE
from scoresde.solvers.base import Solver
from scoresde.solvers.variables import VARIABLES, Variable
from scoresde.tableau import Knot, Order, Row, Tableau

__all__ = ["EULER", "HEUN", "Butcher", "heun", "runge_kutta"]


@dataclass(frozen=True)
class Butcher:
    """An explicit Runge-Kutta method: stage matrix (rows of growing length), weights, order."""

    name: str
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    order: int

    @property
    def nodes(self) -> tuple[float, ...]:
        """The stages' places in the step."""
        return tuple(sum(row) for row in self.stages)


EULER = Butcher("euler", ((),), (1.0,), 1)
HEUN = Butcher("heun", ((), (1.0,)), (0.5, 0.5), 2)


def runge_kutta(method: Butcher, *, variable: str = "rectified", grid: Grid | None = None, paper: str = "") -> Solver:
    """Return an explicit Runge-Kutta method on the probability flow in ``variable`` (a key of ``VARIABLES``).

    Raises ConfigError for another variable.
    """
    if variable not in VARIABLES:
        raise unknown("variable", variable, VARIABLES)
    clock = VARIABLES[variable]
    order = Order(deterministic=float(method.order))

    def build(sde: GaussianSDE, times: Tensor) -> Tableau:
        late, early = times[:-1], times[1:]
        # A stage at the end of a step into sigma = 0 would need a noise prediction there.
        closes = len(early) > 0 and float(sde.sigma(early[-1])) == 0 and 1.0 in method.nodes
        whole = len(early) - closes
        rows = _steps(method, clock, sde, late[:whole], early[:whole])
        rows += _steps(EULER, clock, sde, late[whole:], early[whole:])
        start, end = Knot.of(sde.at(times[[0, -1]]))
        name = f"{method.name} ({variable})"
        return Tableau(name, clock.prediction, tuple(rows), start, end, float(sde.prior_std(times[0])), order=order)

    return Solver(method.name, build, grid or clock.grid, len(method.stages), order, paper)


def _steps(method: Butcher, clock: Variable, sde: GaussianSDE, late: Tensor, early: Tensor) -> list[Row]:
    """Return the rows of n steps; quantities are weights on [anchor, P of stage 1, ...], (n, 1 + stages)."""
    if len(late) == 0:
        return []
    count = len(method.stages)
    v0, v1 = (clock.of_lambda(sde, 0.5 * sde.log_snr(t)) for t in (late, early))
    h = (v1 - v0)[:, None]
    ends = {0.0: late, 1.0: early}
    inner = {c: sde.time(2 * clock.to_lambda(sde, v0 + c * (v1 - v0))) for c in {*method.nodes} - {*ends}}
    stages = [sde.at((ends | inner)[c]) for c in method.nodes]
    scale = [clock.scale(p)[:, None] for p in (*stages, sde.at(early))]
    start = state = torch.eye(1 + count, dtype=torch.float64)[0] / scale[0]
    slopes: list[Tensor] = []
    columns = []
    for j, point in enumerate(stages):
        rate, push = clock.field(sde, point)
        slope = rate[:, None] * state
        slope[:, 1 + j] += push
        slopes.append(slope)
        following = method.weights if j + 1 == count else method.stages[j + 1]
        state = start + h * sum((w * k for w, k in zip(following, slopes, strict=True)), torch.zeros_like(start))
        weights = scale[j + 1] * state
        newest_first = torch.cat([weights[:, :1], weights[:, 1 : j + 2].flip(1)], 1).tolist()
        anchor = None if j + 1 == count else (1.0,)
        columns.append([Row(k, tuple(w), anchor) for k, w in zip(Knot.of(point), newest_first, strict=True)])
    return [row for step in zip(*columns, strict=True) for row in step]


def heun(*, variable: str = "rectified", grid: Grid | None = None) -> Solver:
    """Return Heun's method on the probability flow: two evaluations a step, order 2.

    In nu it is the deterministic sampler of Karras et al. 2022, "Elucidating the design space of diffusion-based
    generative models", algorithm 1; in t the classical Heun method of Song et al.'s probability flow.
    """
    return runge_kutta(HEUN, variable=variable, grid=grid, paper="Karras et al. 2022")
