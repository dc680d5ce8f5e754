"""From a solver, a number of steps and an end to the table that is run; ``sampling`` says what steps and ends mean."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.diffusions.linear import LinearSDE
from scoresde.diffusions.named import DIFFUSIONS
from scoresde.diffusions.sde import SDE, GaussianSDE
from scoresde.errors.kinds import ConfigError, DomainError, DTypeError, ScoreSDEError, show
from scoresde.errors.names import check_choice
from scoresde.solvers.adaptive import FlowSolver
from scoresde.solvers.closing import close
from scoresde.solvers.grids import Grid, check_one_way, choose_grid
from scoresde.solvers.named import SOLVERS, SolverName, by_name
from scoresde.solvers.solver import Solver
from scoresde.solvers.tableau import Tableau

__all__ = ["FINALS", "build_table", "choose_table"]

FINALS: dict[str, Callable[[Tableau], Tableau]] = {
    "denoise": Tableau.denoised,
    "sample": lambda table: table,
    "mean": Tableau.without_last_noise,
}


def build_table(
    sde: SDE,
    solver: Solver | Tableau | SolverName,
    *,
    steps: int | None = None,
    times: Tensor | Grid | None = None,
    final: str = "denoise",
) -> Tableau:
    """Return the table that ``sample`` runs with these options; ``solver`` may be a name of ``solvers.SOLVERS``.

    Raises:
        ConfigError: options that do not go together, an unknown name or ``final``. DomainError, DTypeError: bad steps
            or times, or a solver that the SDE cannot carry on them, with the names of those that it can.
    """
    check_choice("final", final, FINALS)
    made = by_name(solver) if isinstance(solver, str) else solver
    if isinstance(made, FlowSolver):
        raise DTypeError(f"{solver!r} chooses its own steps and has no table; take a solver that makes tables")
    if not isinstance(made, (Solver, Tableau)):
        raise DTypeError(
            f"solver must be a name, a Solver, a Tableau or a ProbabilityFlow, got {show(solver)}; "
            "a builder is called first: solver=solvers.ddim()"
        )
    if isinstance(sde, LinearSDE):
        raise DTypeError(
            f"sde must be a GaussianSDE, got {show(sde)}, whose tables have maps for weights: build_blocks"
        )
    if not isinstance(sde, GaussianSDE):
        raise DTypeError(
            f"sde must be a GaussianSDE, e.g. VPSDE(), got {show(sde)}; any other SDE needs a solver of scoresde.bridge"
        )
    check_one_way(steps, times)
    if isinstance(made, Tableau):
        if steps is not None or times is not None:
            raise ConfigError("a built Tableau has its own times; leave out steps= and times=, or pass its solver")
        return FINALS[final](made)
    try:
        return choose_table(sde, made, steps, times, final)
    except DomainError as error:
        able = [name for name in sorted(SOLVERS) if _can_carry(sde, name, steps, times, final)]
        if not able:
            raise
        raise DomainError(f"{error}; on these times {sde} carries {', '.join(able)}") from error


def choose_table(
    sde: GaussianSDE, solver: Solver, steps: int | None, times: Tensor | Grid | None, final: str
) -> Tableau:
    """Return the same for options that fit together; what it raises names no other solvers."""
    if isinstance(times, Tensor):
        return FINALS[final](solver(sde, times))
    grid, count = choose_grid(solver.grid, steps, times)
    # A built-in SDE cannot change behind the table's back; another one may (a learned schedule).
    constant = DIFFUSIONS.get(type(sde).__name__) is type(sde)
    return (_build_once if constant else _build)(sde, solver, grid, count, final)


def _can_carry(sde: GaussianSDE, name: str, steps: int | None, times: Tensor | Grid | None, final: str) -> bool:
    """Say whether the solver of this name has a table here."""
    solver = by_name(name)
    try:
        return isinstance(solver, Solver) and bool(choose_table(sde, solver, steps, times, final).rows)
    except ScoreSDEError:
        return False


def _build(sde: GaussianSDE, solver: Solver, grid: Grid, count: int, final: str) -> Tableau:
    if final != "denoise":
        return FINALS[final](solver.build(sde, grid(sde, count)))
    if solver.closes and float(sde.sigma(torch.zeros((), dtype=torch.float64, device="cpu"))) == 0:
        times = grid(sde, count)
        times[-1] = 0.0
        return solver.build(sde, times)
    if solver.leap:
        return close(solver.build(sde, grid(sde, count)[:-1]), sde, solver.leap)
    return solver.build(sde, grid(sde, count - 1, jumps=True)).denoised()


_build_once = functools.lru_cache(maxsize=64)(_build)
