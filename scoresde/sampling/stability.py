"""Whether a table is sound, judged before the network is called, by what it makes of Gaussian data.

In few steps some methods multiply whatever they carry. For Gaussian data of the model's moments the law of a table's
output is known exactly (``Tableau.law``): where its variance is many times that of x at the table's end, the samples of
no network are of use.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator

from scoresde.diffusions.gaussian import Moments
from scoresde.diffusions.sde import SDE
from scoresde.errors.kinds import ScoreSDEError, UnstableSamplerWarning
from scoresde.solvers.build import build_table
from scoresde.solvers.named import DEFAULT, SolverName
from scoresde.solvers.solver import Solver
from scoresde.solvers.tableau import Tableau

__all__ = ["find_variance", "measure_excess", "measure_table", "warn_unstable"]

LIMIT, FINE = 4.0, 1.5
MOST_STEPS = 1000
NOISY: tuple[SolverName, ...] = ("dpmpp_2m_sde", "exponential_euler")


def find_variance(moments: Moments | None) -> float:
    """Return the data's mean variance of a coordinate in the model's units; 1 where it is not known."""
    return 1.0 if moments is None else float(moments.variance.mean())


@functools.lru_cache(maxsize=64)
def measure_excess(table: Tableau, variance: float) -> float:
    """Return the exact variance of a table's output for data N(0, variance), in units of that of x at its end.

    A learned variance stands at its largest. NaN where the exact variance is 0.
    """
    exact = table.end.alpha**2 * variance + table.end.sigma**2
    return table.at_fraction(1.0).law(0.0, variance)[1] / exact if exact else float("nan")


def measure_table(
    sde: SDE, solver: object, steps: int | None = None, moments: Moments | None = None
) -> tuple[float, float] | tuple[None, None]:
    """Return a sampler's amplification of a constant error in the data prediction and its excess; None without a table.

    Both for Gaussian data of the moments' mean variance.
    """
    if not isinstance(solver, Solver | Tableau):
        return None, None
    table, variance = build_table(sde, solver, steps=steps), find_variance(moments)
    return table.amplification("data", variance), measure_excess(table, variance)


def warn_unstable(table: Tableau, solver: object, sde: SDE, moments: Moments | None, final: str) -> None:
    """Warn where a table makes more than four times the variance, with a solver and a number of steps that do not."""
    variance = find_variance(moments)
    excess = measure_excess(table, variance)
    if not excess > LIMIT:
        return
    cures = list(_find_cures(table, solver, sde, variance, final))
    warnings.warn(
        f"{table.name!r} is unstable in {table.nfe} evaluations: of Gaussian data with the model's variance, "
        f"{variance:.3g}, it makes {excess:.3g} times the variance (Tableau.law)"
        + (f"; take {' or '.join(cures)}" if cures else ""),
        UnstableSamplerWarning,
        stacklevel=4,
    )


def _find_cures(table: Tableau, solver: object, sde: SDE, variance: float, final: str) -> Iterator[str]:
    """Yield the same solver in more steps, and another one in as many evaluations."""

    def is_fine(choice: Solver | SolverName, steps: int) -> bool:
        try:
            made = build_table(sde, choice, steps=steps, final=final)
        except ScoreSDEError:
            return False
        return 1 / FINE <= measure_excess(made, variance) <= FINE

    if isinstance(solver, Solver):
        steps = table.nfe // solver.calls + 1
        while steps <= MOST_STEPS and not is_fine(solver, steps):
            steps += max(1, steps // 4)
        if steps <= MOST_STEPS:
            yield f"steps={steps}"
    for name in (*(NOISY if table.stochastic else ()), DEFAULT):
        if is_fine(name, table.nfe):
            yield f"solver={name!r} with steps={table.nfe}"
            break
