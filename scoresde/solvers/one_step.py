r"""What every one-step method shares: from the weights of its stages to the rows of a table, for all steps at once.

A step from t down to s makes k calls. Call j is made at the state x_j and gives the value V_j = a_j x_j + b_j P_j,
where P_j is the table's prediction and (a_j, b_j) a readout; z_1, z_2, ... are the step's draws. Every state is linear
in the state x that the step starts from, in the values so far and in the draws so far,

    x_{j+1} = on_x x + sum_i on_values_i V_i + sum_m on_draws_m z_m,

so that by substitution it is linear in x, P_1, ..., P_j and the draws: a row whose anchor stays at x until the step's
last state moves it.

Where lambda = log(alpha/sigma) is infinite, into sigma = 0 and out of alpha = 0, a method that has no step of its own
takes the limit of the first-order one with the data prediction D frozen,

    x_s = alpha_s D                                                  into sigma = 0,
    x_s = alpha_s D + sigma_s z  (eta > 0),  alpha_s D + sigma_s/sigma_t x_t  (eta = 0)     out of alpha = 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.diffusions.point import Pair, Point
from scoresde.diffusions.sde import GaussianSDE
from scoresde.diffusions.targets import target, view
from scoresde.solvers.forms import FORMS
from scoresde.solvers.rows import Increment, Knot, Order, Row
from scoresde.solvers.tableau import Tableau

__all__ = ["OneStep", "Stage", "increments", "readout"]


@dataclass(frozen=True, eq=False)
class Stage:
    """One call in each of n steps at once, and the state that follows it; the module's docstring has the formula.

    Args:
        at: where the call is made, (n,).
        readout: (a, b) of the value that the method multiplies, (n,) each.
        on_x: weight of the state that the step starts from, (n,).
        on_values: weights of the values so far, oldest first, (n,) each.
        on_draws: weights of the draws so far, oldest first; one more than at the stage before where this one draws.
        drawn: what the fresh draw is in each step; empty where there is none.
    """

    at: Point
    readout: Pair
    on_x: Tensor
    on_values: tuple[Tensor, ...]
    on_draws: tuple[Tensor, ...] = ()
    drawn: tuple[Increment, ...] = ()


Stages = Callable[[GaussianSDE, Point, Point, str], list[Stage]]


def readout(prediction: str, wanted: str, point: Point, name: str) -> Pair:
    """Return (a, b) such that ``wanted`` = a x + b P for the prediction P; DomainError where it has no finite value."""
    return view(target(prediction, point), target(wanted, point), point, f"{name!r}, written in the {prediction},")


def increments(start: Point, end: Point, power: float | None, *shape: float) -> tuple[Increment, ...]:
    """Name the parts of the path on n intervals."""
    return tuple(
        Increment(*ends, power, shape or (1.0,)) for ends in zip(start.t.tolist(), end.t.tolist(), strict=True)
    )


@dataclass(frozen=True)
class OneStep:
    """A one-step method: the ``build`` of a Solver, which can also say the rows of single steps.

    Args:
        name: name of the table.
        prediction: the prediction in which its rows are written; "flow" in the place of "noise" from alpha = 0.
        stages: (sde, late, early, prediction) -> the stages of n steps.
        limits: (late, early) -> (n,), where the limiting first-order step stands in.
        order: declared orders.
        eta: the reverse family's index.
    """

    name: str
    prediction: str
    stages: Stages
    limits: Callable[[Point, Point], Tensor]
    order: Order
    eta: float = 0.0

    def written_in(self, sde: GaussianSDE) -> str:
        """Return the prediction of its tables: one for all legs of a path, wherever they start."""
        from_noise = bool(sde.alpha(torch.tensor(sde.t_max, dtype=torch.float64)) == 0)
        return "flow" if self.prediction == "noise" and from_noise else self.prediction

    def legs(self, sde: GaussianSDE, late: Point, early: Point, cuts: Sequence[int]) -> list[list[Row]]:
        """Return the rows of the steps from ``late`` to ``early``, with a list for each leg that starts at ``cuts``."""
        steps = self.steps(sde, late, early)
        return [[row for step in steps[i:j] for row in step] for i, j in itertools.pairwise([*cuts, len(steps)])]

    def steps(self, sde: GaussianSDE, late: Point, early: Point) -> list[list[Row]]:
        """Return the rows of each step from ``late`` to ``early``, (n,) each; steps need not follow one another."""
        prediction, special = self.written_in(sde), self.limits(late, early)
        whole = ~special
        plain = _rows(self.stages(sde, late[whole], early[whole], prediction)) if bool(whole.any()) else []
        limit = _rows([self._limit(late[special], early[special], prediction)]) if bool(special.any()) else []
        ordinary, limiting = iter(plain), iter(limit)
        return [next(limiting) if odd else next(ordinary) for odd in special.tolist()]

    def _limit(self, late: Point, early: Point, prediction: str) -> Stage:
        """Return the step where lambda is infinite."""
        eta = torch.full_like(late.t, self.eta)
        on_x, on_noise = FORMS["data"].linear(late, early, 0.5 * (early.log_snr - late.log_snr), eta)
        draws = (on_noise,) if bool(on_noise.any()) else ()
        drawn = increments(late, early, -2 * self.eta**2) if draws else ()
        seen = readout(prediction, "data", late, self.name)
        return Stage(late, seen, on_x, (early.alpha,), draws, drawn)

    def __call__(self, sde: GaussianSDE, times: Tensor) -> Tableau:
        """Return the table on decreasing times."""
        points = sde.at(times)
        late, early = points[:-1], points[1:]
        rows = tuple(row for step in self.steps(sde, late, early) for row in step)
        start, end = Knot.of(points[:1])[0], Knot.of(points[-1:])[0]
        std = float(sde.prior_std(times[0]))
        return Tableau(self.name, self.written_in(sde), rows, start, end, std, order=self.order)


def _rows(stages: list[Stage]) -> list[list[Row]]:
    """Write n steps as rows; each quantity is its weights on [x, P_1, ..., P_k, z_1, ...], (n, 1 + k + draws)."""
    count, draws = len(stages), len(stages[-1].on_draws)
    unit = torch.eye(1 + count + draws, dtype=torch.float64)
    state = unit[0].expand(len(stages[0].on_x), -1)
    values: list[Tensor] = []
    columns, held = [], 0
    for j, stage in enumerate(stages):
        on_state, on_prediction = stage.readout
        values.append(on_state[:, None] * state + on_prediction[:, None] * unit[1 + j])
        state = stage.on_x[:, None] * unit[0]
        for weight, value in zip(stage.on_values, values, strict=True):
            state = state + weight[:, None] * value
        for weight, z in zip(stage.on_draws, unit[1 + count :], strict=False):
            state = state + weight[:, None] * z
        fresh = len(stage.on_draws) > held
        held = len(stage.on_draws)
        predictions = state[:, 1 : 2 + j].flip(1)
        noise = state[:, 1 + count : 1 + count + held].flip(1)
        if held and not fresh:
            noise = torch.cat([torch.zeros_like(noise[:, :1]), noise], 1)
        anchor = None if j + 1 == count else (1.0,)
        knots, on_x, on_predictions = Knot.of(stage.at), state[:, 0].tolist(), predictions.tolist()
        drawn = stage.drawn or (None,) * len(knots)
        columns.append(
            [
                Row(knot, (a, *p), anchor, tuple(z), increment=part)
                for knot, a, p, z, part in zip(knots, on_x, on_predictions, noise.tolist(), drawn, strict=True)
            ]
        )
    return [list(step) for step in zip(*columns, strict=True)]
