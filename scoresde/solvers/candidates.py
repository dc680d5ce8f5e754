"""The fixed tables among which the best for a model is looked for: a solver on a grid that ends at some level.

``list_candidates`` has all, ``list_few`` those that a calibration compares, and ``USUAL`` what is taken without one.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch

from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.kinds import ConfigError
from scoresde.solvers import grids
from scoresde.solvers.adaptive import FlowSolver
from scoresde.solvers.build import choose_table
from scoresde.solvers.catalogue import catalogue
from scoresde.solvers.grids import Grid
from scoresde.solvers.multistep import multistep
from scoresde.solvers.named import by_name
from scoresde.solvers.published import unipc
from scoresde.solvers.solver import Solver
from scoresde.solvers.tableau import Tableau

__all__ = ["USUAL", "Candidate", "find_candidate", "list_candidates", "list_few", "list_starts"]

GRIDS: tuple[Grid | None, ...] = (
    None,  # the solver's own
    grids.log_snr(centre=3.0, width=4.5),
    grids.log_snr(width=4.0),
    grids.log_snr(width=2.0),
    grids.rectified(),
    grids.rectified(power=1.5),
    grids.rectified(power=2.0),
    grids.diffused(power=3.9),
)
ENDS = (math.inf, 12.0, 10.0, 8.5, 7.0, 5.5, 4.0)  # log_snr of the last call but for the solver's own way to 0


@dataclass(frozen=True)
class Candidate:
    """A solver on a grid that ends at a level.

    Args:
        name: of the solver.
        solver: it.
        grid: None for its own.
        end: log_snr at which the grid ends; inf for the SDE's own end.
    """

    name: str
    solver: Solver
    grid: Grid | None
    end: float

    def build(self, sde: GaussianSDE, steps: int) -> Tableau:
        """Return the table of this many calls, or raise a ScoreSDEError where there is none."""
        solver, short = self.solver, sde
        if self.end < float(sde.log_snr(torch.tensor(sde.t_min, dtype=torch.float64, device="cpu"))):
            short = sde.starting_at(float(sde.time(torch.tensor(self.end, dtype=torch.float64, device="cpu"))))
        elif self.end < math.inf:
            raise ConfigError(f"{sde} ends before log_snr = {self.end:g}")
        last = solver.calls if solver.closes else solver.leap or 1
        count = max(1, (steps - last) // solver.calls + 1)
        table = choose_table(short, solver, count, self.grid, "denoise")
        if table.nfe != steps:
            raise ConfigError(f"{self.name} makes no table of {steps} calls")
        return table

    def __str__(self) -> str:
        """Say the solver, the grid and the end."""
        grid = (self.solver.grid if self.grid is None else self.grid).name
        return f"{self.name}, {grid}" + ("" if self.end == math.inf else f", to log_snr {self.end:g}")


def _flow(order: int, *, first_alone: bool) -> Solver:
    return multistep(
        prediction="flow",
        variable="rectified",
        order=order,
        corrector=order + 1,
        first_alone=first_alone,
        name="flow_abm",
    )


@functools.cache
def list_candidates(*, noise: bool) -> tuple[Candidate, ...]:
    """Return what ``select`` tries: solvers, each on its own grid and on others, to several ends.

    The deterministic ones, grids and ends are those without which some exact mixture of four kinds and five widths, at
    5 to 30 evaluations, has no table near the best of 2000: with them the least error is 1.02 times theirs on average.
    """
    if noise:
        solvers: dict[str, Solver | FlowSolver] = {e.name: by_name(e.name) for e in catalogue() if e.stochastic}
    else:
        named = ("ddim", "deis", "dpmpp_2m", "dpmpp_3m", "exponential_ab", "flow_ab", "flow_abm", "ipndm", "unipc")
        solvers = {
            **{name: by_name(name) for name in named},
            "exponential_ab (order 2)": multistep(order=2, name="exponential_ab"),
            "unipc (order 2)": unipc(order=2),
            **{f"flow_abm (order {order})": _flow(order, first_alone=True) for order in (2, 4)},
            **{f"flow_abm (order {order}, first kept)": _flow(order, first_alone=False) for order in (2, 3)},
        }
    return tuple(
        Candidate(name, solver, grid, end)
        for name, solver in solvers.items()
        if isinstance(solver, Solver)
        for grid in GRIDS
        if grid != solver.grid
        for end in ENDS
    )


FEW = (
    ("flow_abm", None, math.inf),
    ("flow_abm (order 4)", grids.diffused(power=3.9), math.inf),
    ("flow_abm (order 4)", grids.log_snr(width=2.0), 10.0),
    ("flow_abm (order 2, first kept)", grids.rectified(power=1.5), math.inf),
    ("flow_abm (order 2, first kept)", grids.rectified(power=2.0), math.inf),
    ("flow_abm (order 2, first kept)", grids.log_snr(width=2.0), 10.0),
    ("flow_abm (order 2, first kept)", grids.diffused(power=3.9), 7.0),
    ("flow_ab", grids.log_snr(centre=3.0, width=4.5), 10.0),
    ("flow_ab", grids.log_snr(width=4.0), math.inf),
    ("unipc", grids.rectified(power=2.0), 10.0),
    ("unipc (order 2)", grids.rectified(power=1.5), math.inf),
    ("unipc (order 2)", grids.log_snr(centre=3.0, width=4.5), 4.0),
    ("dpmpp_2m", grids.log_snr(width=2.0), 4.0),
)
ON_A_CURVE = (
    "flow_abm (order 2, first kept)",
    "flow_abm (order 3, first kept)",
    "flow_abm (order 2)",
    "flow_ab",
    "unipc (order 2)",
)


def list_few(curve: Grid) -> tuple[Candidate, ...]:
    """Return what a calibration compares: a few of the fixed tables, and some solvers on the model's own grid.

    Each was added because it lowers the least error at 5 to 30 evaluations the most, over ten exact mixtures and one
    network; on ten other mixtures and another network the best of them is within 1.0 to 2.3 times the best of all.
    """
    chosen = (*FEW, *((name, curve, math.inf) for name in ON_A_CURVE))
    return tuple(find_candidate(name, grid, end) for name, grid, end in chosen)


def find_candidate(name: str, grid: Grid | None, end: float) -> Candidate:
    """Return a candidate by the name of its solver; KeyError where there is none."""
    return Candidate(name, _solvers()[name], grid, end)


@functools.cache
def _solvers() -> dict[str, Solver]:
    return {one.name: one.solver for one in list_candidates(noise=False)}


@functools.cache
def list_starts() -> tuple[Candidate, ...]:
    """Return the few of them from which a table is tuned."""
    names = {"dpmpp_2m", "exponential_ab", "flow_abm (order 2)", "flow_abm (order 3, first kept)", "unipc"}
    kept = (GRIDS[1], GRIDS[5])
    return tuple(
        replace(one, grid=grid)
        for one in list_candidates(noise=False)
        if one.name in names and one.grid == GRIDS[2] and one.end in (math.inf, 8.5, 5.5)
        for grid in kept
    )


USUAL: tuple[tuple[int, tuple[str, Grid | None, float]], ...] = (
    (2, ("flow_abm", None, math.inf)),
    (5, ("dpmpp_2m", grids.log_snr(width=2.0), 4.0)),
    (10, ("flow_abm (order 2, first kept)", grids.rectified(power=1.5), math.inf)),
)
"""Up to how many evaluations what is taken, before the default solver on its own grid."""
