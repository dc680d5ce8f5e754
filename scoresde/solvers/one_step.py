r"""What every one-step method shares: from the weights of its stages to the rows of a table, for all steps at once.

A step from t down to s makes k calls. Call j is made at the state x_j and gives the value V_j = a_j x_j + b_j P_j,
where P_j is the table's prediction; z_1, z_2, ... are the step's draws. Every state is linear
in the state x that the step starts from, in the values so far and in the draws so far,

    x_{j+1} = on_x x + sum_i on_values_i V_i + sum_m on_draws_m z_m,

so that by substitution it is linear in x, P_1, ..., P_j and the draws: a row whose anchor stays at x until the step's
last state moves it.

Where lambda = log(alpha/sigma) is infinite, at sigma = 0 and at alpha = 0, a method that has no step of its own takes
the limit of the first-order one with the data prediction D frozen,

    x_s = alpha_s D                                                  into sigma = 0,
    x_s = alpha_s D + sigma_s z  (eta > 0),  alpha_s D + sigma_s/sigma_t x_t  (eta = 0)     out of alpha = 0,
    x_s = sigma_s/sigma_t (x_t - alpha_t D)  (eta = 0)                                      upwards into alpha = 0.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.diffusions.point import Pair, Point
from scoresde.diffusions.sde import GaussianSDE
from scoresde.diffusions.targets import target, view
from scoresde.solvers.forms import FORMS, FormName, freeze_data
from scoresde.solvers.rows import Increment, Knot, Order, Row
from scoresde.solvers.solver import Method
from scoresde.solvers.tableau import Tableau

__all__ = ["OneStep", "Stage", "express", "name_increments", "write_rows"]


@dataclass(frozen=True, eq=False)
class Stage:
    """One call in each of n steps at once, and the state that follows it; the module's docstring has the formula.

    Args:
        at: where the call is made, (n,).
        value: (a, b) of the value that the method multiplies, a x + b P, (n,) each.
        on_x: weight of the state that the step starts from, (n,).
        on_values: weights of the values so far, oldest first, (n,) each.
        on_draws: weights of the draws so far, oldest first; one more than at the stage before where this one draws.
        drawn: what the fresh draw is in each step; empty where there is none.
    """

    at: Point
    value: Pair
    on_x: Tensor
    on_values: tuple[Tensor, ...]
    on_draws: tuple[Tensor, ...] = ()
    drawn: tuple[Increment, ...] = ()


def express(wanted: str, prediction: str, point: Point, name: str) -> Pair:
    """Return (a, b) such that ``wanted`` = a x + b P for the prediction P; DomainError where it has no finite value."""
    return view(target(prediction, point), target(wanted, point), point, f"{name!r}, written in the {prediction},")


def name_increments(start: Point, end: Point, power: float | None, *shape: float) -> tuple[Increment, ...]:
    """Name the parts of the path on n intervals."""
    return tuple(
        Increment(*ends, power, shape or (1.0,)) for ends in zip(start.t.tolist(), end.t.tolist(), strict=True)
    )


@dataclass(frozen=True)
class OneStep(Method):
    """A one-step method, which can also say the rows of single steps.

    Args:
        name: name of the table.
        prediction: the prediction in which its rows are written; "flow" in the place of "noise" from alpha = 0.
        eta: the reverse family's index.
        order: declared orders.
    """

    name: str
    prediction: FormName
    eta: float
    order: Order

    @abstractmethod
    def stages(self, sde: GaussianSDE, late: Point, early: Point, prediction: str) -> list[Stage]:
        """Return the stages of the n steps from ``late`` to ``early``, for rows in this prediction."""

    @abstractmethod
    def limits(self, late: Point, early: Point) -> Tensor:
        """Tell the steps in whose place the limiting first-order one stands, (n,)."""

    def choose_prediction(self, sde: GaussianSDE) -> FormName:
        """Return the prediction of its tables: one for all legs of a path, wherever they start."""
        from_noise = bool(sde.alpha(torch.tensor(sde.t_max, dtype=torch.float64, device="cpu")) == 0)
        return "flow" if self.prediction == "noise" and from_noise else self.prediction

    def write_legs(self, sde: GaussianSDE, late: Point, early: Point, cuts: Sequence[int]) -> list[list[Row]]:
        """Return the rows of the steps from ``late`` to ``early``, with a list for each leg that starts at ``cuts``."""
        steps = self.write_steps(sde, late, early)
        return [[row for step in steps[i:j] for row in step] for i, j in itertools.pairwise([*cuts, len(steps)])]

    def write_steps(self, sde: GaussianSDE, late: Point, early: Point) -> list[list[Row]]:
        """Return the rows of each step from ``late`` to ``early``, (n,) each; steps need not follow one another."""
        prediction, special = self.choose_prediction(sde), self.limits(late, early)
        whole = ~special
        plain = write_rows(self.stages(sde, late[whole], early[whole], prediction)) if bool(whole.any()) else []
        limit = write_rows([self._limit(late[special], early[special], prediction)]) if bool(special.any()) else []
        ordinary, limiting = iter(plain), iter(limit)
        return [next(limiting) if odd else next(ordinary) for odd in special.tolist()]

    def _limit(self, late: Point, early: Point, prediction: str) -> Stage:
        """Return the step where lambda is infinite."""
        eta = torch.full_like(late.t, self.eta)
        on_x, on_noise = FORMS["data"].linear(late, early, 0.5 * (early.log_snr - late.log_snr), eta)
        draws = (on_noise,) if bool(on_noise.any()) else ()
        drawn = name_increments(late, early, -2 * self.eta**2) if draws else ()
        seen = express("data", prediction, late, self.name)
        return Stage(late, seen, on_x, (freeze_data(late, early),), draws, drawn)

    def __call__(self, sde: GaussianSDE, times: Tensor) -> Tableau:
        """Return the table on decreasing times."""
        points = sde.at(times)
        rows = itertools.chain.from_iterable(self.write_steps(sde, points[:-1], points[1:]))
        return Tableau.between(
            sde, points, rows, name=self.name, prediction=self.choose_prediction(sde), order=self.order
        )


def write_rows(stages: list[Stage]) -> list[list[Row]]:
    """Write n steps as rows; each quantity is its weights on [x, P_1, ..., P_k, z_1, ...], (n, 1 + k + draws)."""
    count, draws = len(stages), len(stages[-1].on_draws)
    unit = torch.eye(1 + count + draws, dtype=torch.float64, device="cpu")
    state = unit[0].expand(len(stages[0].on_x), -1)
    values: list[Tensor] = []
    columns, held = [], 0
    for j, stage in enumerate(stages):
        on_state, on_prediction = stage.value
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
