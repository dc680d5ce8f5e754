"""What the named solvers are: one record for each, read from the solvers themselves."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from scoresde.diffusions.named import DIFFUSIONS
from scoresde.errors.kinds import DTypeError, ScoreSDEError, show
from scoresde.errors.values import check_sequence
from scoresde.solvers.adaptive import ProbabilityFlow
from scoresde.solvers.named import ALIASES, SOLVERS, by_name
from scoresde.solvers.pairs import EMBEDDED
from scoresde.solvers.rows import Order
from scoresde.solvers.solver import Solver
from scoresde.solvers.tableau import Tableau

__all__ = ["Entry", "catalogue", "markdown"]

STEPS = 3


@dataclass(frozen=True)
class Entry:
    """A named solver with its default options.

    Args:
        name: the name in ``sample(solver=...)``.
        order: declared orders of convergence: deterministic, strong, weak.
        calls: evaluations of the model in a step; None where each sample chooses its own steps.
        stochastic: whether noise enters after the start state.
        serves: the built-in SDEs that it can sample from t_max on, with their default options.
        grid: its native time grid.
        paper: authors, year; "as ..." for another name of the same solver.
    """

    name: str
    order: Order
    calls: int | None
    stochastic: bool
    serves: tuple[str, ...]
    grid: str
    paper: str

    @property
    def from_pure_noise(self) -> bool:
        """Whether it steps out of alpha = 0, where the rectified flow starts."""
        return "RectifiedFlow" in self.serves


@functools.cache
def catalogue() -> tuple[Entry, ...]:
    """Return a record of every named solver, in alphabetical order."""
    return tuple(_describe(name) for name in sorted(SOLVERS))


def _describe(name: str) -> Entry:
    """Return the record of a name."""
    solver = by_name(name)
    if isinstance(solver, ProbabilityFlow):
        order = Order(deterministic=float(EMBEDDED[solver.method].order))
        return Entry(name, order, None, False, tuple(sorted(DIFFUSIONS)), "adaptive", "Dormand and Prince 1980")
    tables = {kind: _build_small(solver, kind) for kind in sorted(DIFFUSIONS)}
    built = {kind: table for kind, table in tables.items() if table is not None}
    paper = f"as {ALIASES[name].__name__}" if name in ALIASES else solver.paper
    stochastic = any(table.stochastic for table in built.values())
    return Entry(name, solver.order, solver.calls, stochastic, tuple(built), solver.grid.name, paper)


def _build_small(solver: Solver, kind: str) -> Tableau | None:
    """Return a small table, or None where the solver refuses the SDE."""
    sde = DIFFUSIONS[kind]()
    try:
        return solver.build(sde, solver.grid(sde, STEPS))
    except ScoreSDEError:
        return None


def markdown(entries: Sequence[Entry] | None = None) -> str:
    """Return the records as a Markdown table, the documentation's; all of them by default."""
    head = ("name", "evaluations a step", "order", "weak", "strong", "noise", "from alpha = 0", "grid", "source")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    listed = catalogue() if entries is None else check_sequence(entries, "entries", "Entry")
    for entry in listed:
        if not isinstance(entry, Entry):
            raise DTypeError(f"entries must be of solvers.list(), got {show(entry)}")
        orders = (entry.order.deterministic, entry.order.weak, entry.order.strong)
        cells = [
            f"`{entry.name}`",
            "chosen for each sample" if entry.calls is None else str(entry.calls),
            *("" if order is None else f"{order:g}" for order in orders),
            "yes" if entry.stochastic else "no",
            "yes" if entry.from_pure_noise else "no",
            entry.grid,
            entry.paper,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
