"""What a solver is: a frozen rule (sde, times) -> Tableau, with the facts that people need to choose it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from scoresde.diffusions.point import Point
from scoresde.diffusions.sde import GaussianSDE
from scoresde.solvers.grids import Grid, check_times, log_snr
from scoresde.solvers.rows import Increment, Knot, Order, Row
from scoresde.solvers.tableau import Tableau

__all__ = ["Solver", "one_stage_table"]


@dataclass(frozen=True)
class Solver:
    """A rule that turns an SDE and interval ends into a table of numbers.

    Args:
        name: what it is, for people.
        build: (sde, decreasing float64 times) -> Tableau.
        grid: the native time grid.
        calls: evaluations of the model in each step.
        order: declared orders.
        paper: authors, year, title.
        closes: whether its step into sigma = 0 is as good as its others. Under ``final="denoise"`` its last interval
            then ends at t = 0, in the place of a step to t_min and a jump from there.
    """

    name: str
    build: Callable[[GaussianSDE, Tensor], Tableau]
    grid: Grid = field(default_factory=log_snr)
    calls: int = 1
    order: Order = field(default_factory=Order)
    paper: str = ""
    closes: bool = False

    def __call__(self, sde: GaussianSDE, times: Tensor | Grid) -> Tableau:
        """Return the table on ``times``: a decreasing tensor of interval ends, or a Grid that fixes its steps.

        Raises what ``grids.check_times`` raises, and DomainError where the method has no such step.
        """
        ends = times(sde) if isinstance(times, Grid) else check_times(sde, times)
        return self.build(sde, ends)


def one_stage_table(
    name: str,
    prediction: str,
    points: Point,
    weights: tuple[Tensor, Tensor, Tensor],
    *,
    prior_std: float,
    power: float | None,
    order: Order,
) -> Tableau:
    """Build the table of a method without history: x <- weights[0] x + weights[1] P + weights[2] z on each interval."""
    knots = Knot.of(points)
    rows = []
    for i, (on_x, on_prediction, on_noise) in enumerate(zip(*(w.tolist() for w in weights), strict=True)):
        increment = Increment(knots[i].t, knots[i + 1].t, power) if on_noise else None
        rows.append(Row(knots[i], (on_x, on_prediction), noise=(on_noise,) if on_noise else (), increment=increment))
    return Tableau(name, prediction, tuple(rows), knots[0], knots[-1], prior_std, order=order)
