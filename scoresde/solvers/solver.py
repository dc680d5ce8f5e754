"""What a solver is: a frozen rule (sde, times) -> Tableau, with the facts that people need to choose it.

Solvers made with the same options are equal and travel (``pickle``, ``copy.deepcopy``, ``torch.save``, processes): what
builds their tables is a ``Method``, a frozen record of the options, and never a function made on the spot.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from scoresde.diffusions.point import Point
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.kinds import DTypeError, show
from scoresde.solvers.grids import Grid, check_times, log_snr
from scoresde.solvers.rows import Order
from scoresde.solvers.tableau import Tableau

__all__ = ["Method", "PointMethod", "Solver"]


class Method(ABC):
    """The ``build`` of a Solver: a frozen dataclass of its options, called with (sde, times)."""

    @abstractmethod
    def __str__(self) -> str:
        """Say the options that matter in a few words."""

    @abstractmethod
    def __call__(self, sde: GaussianSDE, times: Tensor) -> Tableau:
        """Return the table on decreasing float64 times."""


class PointMethod(Method):
    """A method that asks nothing of an SDE but its points, so that the knots of a chain serve as well."""

    @abstractmethod
    def on(self, points: Point, prior_std: float) -> Tableau:
        """Return the table on decreasing points, for a zero-mean start state of this standard deviation."""

    def __call__(self, sde: GaussianSDE, times: Tensor) -> Tableau:
        """Return the table on decreasing float64 times."""
        return self.on(sde.at(times), float(sde.prior_std(times[0])))


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
        closes: whether its step into sigma = 0, from the last noise level to clean data, is as good as its others.
            Under ``final="denoise"`` its last interval then ends at t = 0, in the place of a step to t_min and a jump
            from there.
        leap: calls of the step to clean data that stands in the place of the last interval under ``final="denoise"``, 1
            or 2 (``solvers/closing.py``); 0 where the grid first goes to t_min, or where the solver closes. For methods
            whose stage at t_min would multiply a prediction's error.
    """

    name: str
    build: Callable[[GaussianSDE, Tensor], Tableau]
    grid: Grid = field(default_factory=log_snr)
    calls: int = 1
    order: Order = field(default_factory=Order)
    paper: str = ""
    closes: bool = False
    leap: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise DTypeError(f"name must be a text, got {show(self.name)}", parameter="name")
        if not isinstance(self.grid, Grid):
            raise DTypeError(
                f"grid must be a Grid, e.g. grids.karras(), got {show(self.grid)}",
                parameter="grid",
                cure="times of your own go to times=",
            )
        if not callable(self.build):
            raise DTypeError(f"build must be a function (sde, times) -> Tableau, got {show(self.build)}")

    def __call__(self, sde: GaussianSDE, times: Tensor | Grid) -> Tableau:
        """Return the table on ``times``: a decreasing tensor of interval ends, or a Grid that fixes its steps.

        Raises what ``grids.check_times`` raises, and DomainError where the method has no such step.
        """
        ends = times(sde) if isinstance(times, Grid) else check_times(sde, times)
        return self.build(sde, ends)

    def __hash__(self) -> int:
        """Hash what tells solvers apart at a glance: tables are kept by their solver, and options may be long."""
        build = type(self.build) if isinstance(self.build, Method) else self.build
        return hash((self.name, build, self.grid.name, self.calls, self.closes, self.leap))

    def __repr__(self) -> str:
        """Say in one line what the solver is."""
        options = str(self.build) if isinstance(self.build, Method) else ""
        parts = [
            f"{self.name} ({options})" if options else self.name,
            f"{self.calls} evaluation{'s' if self.calls > 1 else ''} a step",
            str(self.order),
            f"grid {self.grid.name}",
        ]
        return f"<Solver {', '.join(part for part in parts if part)}>"
