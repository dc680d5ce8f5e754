r"""Tables under a linear SDE.

*Groups.* One table for each group of coordinates, made by the solver itself from the group's own diffusion on the
shared times, and the tables joined: each weight is one number a group. A group that rests before its own ``t_max``
waits, x <- x, and begins its table there, which is then one of the times. Any solver serves whose calls are at the ends
of steps; one with stages inside would place them by each group's own log-SNR, and the calls would be at other times.

*A matrix.* With the data prediction frozen the exact step of the reverse family of index eta is
x_s = Psi x_t + (M_s - Psi M_t) x_0 + V z (``LinearSDE.frozen_maps``): ancestral sampling at eta = 1, DDIM at 0.
Euler-Maruyama is x_s = x_t + (t - s) (-F x_t + (1 + eta^2)/2 Q score) + eta sqrt(t - s) Q^{1/2} z.

*Splitting* (the symmetric splitting CLD sampler, SSCS; Dockhorn et al. 2022, arXiv:2112.07068, section 3.3). The
reverse SDE is the sum of an Ornstein-Uhlenbeck process and what is left of the score,

    A   dx = (-F x - Q Sigma_inf^{-1} x) ds + dw'  in the time s = -t,        B   dx = Q (score + Sigma_inf^{-1} x) ds,

with Sigma_inf the stationary covariance, F Sigma_inf + Sigma_inf F^T + Q = 0. A is solved exactly: it is a linear SDE
with the matrix -F - Q Sigma_inf^{-1} = Sigma_inf F^T Sigma_inf^{-1} and the stationary law N(0, Sigma_inf). A step is
half of A, an Euler step of B at the state and the time reached, and half of A: of first order, for the Euler step. The
second half of a step and the first of the next one are one draw: the table has a lift, and rows that end in a whole
step of A.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from scoresde.diffusions.blocks import Block, Blocks, root
from scoresde.diffusions.grouped import GroupedSDE
from scoresde.diffusions.linear import LinearSDE
from scoresde.diffusions.matrix import MatrixSDE, exponentiate
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.kinds import ConfigError, DomainError, DTypeError, show
from scoresde.errors.names import check_choice
from scoresde.solvers.ancestral import DDIM, Ancestral
from scoresde.solvers.block_table import BlockTableau, as_weights, knots_of
from scoresde.solvers.grids import Grid, check_one_way, check_times, choose_grid, even
from scoresde.solvers.named import by_name
from scoresde.solvers.rows import Order, Row
from scoresde.solvers.runge_kutta import EULER, RungeKutta
from scoresde.solvers.solver import Method, Solver
from scoresde.solvers.tableau import Tableau

__all__ = ["build_blocks", "splitting"]

FINALS = ("denoise", "sample", "mean")
CLOSE = 1e-9  # of a time, between calls that are to be one


def build_blocks(
    sde: LinearSDE,
    solver: object,
    *,
    steps: int | None = None,
    times: Tensor | Grid | None = None,
    final: str = "denoise",
) -> BlockTableau:
    """Return the table of a solver under a linear SDE; ``solver`` may be a name of ``solvers.SOLVERS``.

    Args:
        sde: a GroupedSDE or a MatrixSDE.
        solver: with groups any solver whose calls are at the ends of its steps, e.g. "ancestral", "ddim", "dpmpp_2m";
            with a matrix "ancestral", "ddim" (eta 0 or 1), "euler_maruyama" or ``splitting()``.
        steps: number of intervals, 20 by default.
        times: interval ends as a decreasing tensor, or a Grid.
        final: "denoise", "sample" or "mean", as for ``sample``.

    Raises:
        ConfigError: options that do not go together, a solver that this SDE cannot carry. DTypeError, DomainError: no
            solver, bad steps or times.
    """
    check_choice("final", final, FINALS)
    if not isinstance(sde, LinearSDE):
        raise DTypeError(f"sde must be a GroupedSDE or a MatrixSDE, got {show(sde)}; a GaussianSDE takes build_table")
    made = by_name(solver) if isinstance(solver, str) else solver
    if isinstance(made, BlockTableau):
        if steps is not None or times is not None:
            raise ConfigError("a built table has its own times; leave out steps= and times=, or pass its solver")
        if made.sde is not sde:
            raise ConfigError(f"the table was made under {made.sde!r}, and the model lives on another SDE")
        return _end(made, final)
    if not isinstance(made, Solver):
        raise DTypeError(
            f"solver must be a name or a Solver with tables under a linear SDE, e.g. 'ancestral', got {show(solver)}"
        )
    check_one_way(steps, times)
    if isinstance(times, Tensor):
        ends = check_times(sde, times)
    else:
        grid, count = choose_grid(made.grid, steps, times)
        jumps = final == "denoise"
        ends = grid(sde.clock, count - jumps, jumps=jumps)
    if isinstance(sde, GroupedSDE):
        return _build_groups(sde, made, ends, final)
    assert isinstance(sde, MatrixSDE)
    if float(ends[-1]) == 0:
        raise DomainError(
            f"under a matrix a table ends at t_min = {sde.t_min:g}, from where final='denoise' jumps; leave out the 0"
        )
    return _end(_build_matrix(sde, made, ends), final)


def _end(table: BlockTableau, final: str) -> BlockTableau:
    if final == "denoise":
        return cast(BlockTableau, table.denoised())
    return cast(BlockTableau, table.without_last_noise()) if final == "mean" else table


def _build_groups(sde: GroupedSDE, solver: Solver, ends: Tensor, final: str) -> BlockTableau:
    """Return the groups' tables, joined."""
    inner = [end for end in sorted(set(sde.ends.tolist())) if float(ends[-1]) < end < float(ends[0])]
    # A time that is nearly a group's end gives way to it.
    kept = [t for t in ends.tolist() if all(abs(t - end) > CLOSE * end for end in inner)]
    times = torch.tensor(sorted({*kept, *inner}, reverse=True), dtype=torch.float64, device="cpu")
    calls = solver.calls
    tables: list[Tableau] = []
    known: dict[tuple[object, ...], Tableau] = {}
    for one in sde.sdes:
        key = (type(one), *vars(one).values())
        if key not in known:
            own = times[times <= one.t_max * (1 + CLOSE)]
            table = solver.build(one, own.clamp_max(one.t_max))
            known[key] = (
                table.denoised() if final == "denoise" else table.without_last_noise() if final == "mean" else table
            )
        tables.append(known[key])
    return _join(sde, tables, times, calls)


def _join(sde: GroupedSDE, tables: list[Tableau], times: Tensor, calls: int) -> BlockTableau:
    """Join tables of one structure, of which some begin later, into one whose weights are one number a group."""
    lead = max(tables, key=lambda table: table.nfe)
    waits = [lead.nfe - table.nfe for table in tables]
    if any(table.lift != (1.0, 0.0) or table.spread or any(r.restart for r in table.rows) for table in tables):
        raise ConfigError(f"{lead.name!r} jumps upwards or has a learned variance, which no table of groups has")
    rows = []
    for i, first in enumerate(lead.rows):
        each = [None if i < wait else table.rows[i - wait] for table, wait in zip(tables, waits, strict=True)]
        here = [row for row in each if row is not None]
        if any(abs(row.at.t - first.at.t) > CLOSE * first.at.t for row in here):
            raise ConfigError(
                f"{lead.name!r} calls the model inside its steps, at places that are each group's own; take a solver "
                "of one call a step (ancestral, ddim, dpmpp_2m, unipc, euler_maruyama, ...)"
            )
        if len({row.draws for row in here}) > 1:
            raise ConfigError(f"some groups draw noise where others do not in {lead.name!r}; take other times")
        state = _weigh(sde.blocks, [(1.0,) if row is None else row.state for row in each])
        noise = _weigh(sde.blocks, [() if row is None else row.noise for row in each])
        anchor: tuple[float, ...] | None = None
        anchor_noise: tuple[float, ...] = ()
        if any(row.anchor is not None for row in here):
            # Where some groups' anchors move by themselves, that of another one moves to its next state.
            moves = [((1.0,), ()) if row is None else _move_anchor(row) for row in each]
            anchor, anchor_noise = (_weigh(sde.blocks, [move[k] for move in moves]) for k in range(2))
        noise, anchor_noise = noise if any(noise) else (), anchor_noise if any(anchor_noise) else ()
        rows.append(Row(first.at, state, anchor, noise, anchor_noise))
    # What a call is told of the time is the whole SDE's.
    at = torch.tensor([row.at.t for row in rows], dtype=torch.float64, device="cpu")
    whole = [Row(k, r.state, r.anchor, r.noise, r.anchor_noise) for k, r in zip(knots_of(sde, at), rows, strict=True)]
    start, end = knots_of(sde, torch.tensor([lead.start.t, lead.end.t], dtype=torch.float64, device="cpu"))
    return BlockTableau(lead.name, lead.prediction, tuple(whole), start, end, 1.0, order=lead.order, sde=sde)


def _move_anchor(row: Row) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the weights and the noise weights of a row's next anchor."""
    return (row.state, row.noise) if row.anchor is None else (row.anchor, row.anchor_noise)


def _weigh(blocks: Blocks, each: list[tuple[float, ...]]) -> tuple[float, ...]:
    """Return the groups' weights as numbers where all are equal, else as maps."""
    length = max(map(len, each))
    columns = [[w[k] if k < len(w) else 0.0 for w in each] for k in range(length)]
    return as_weights(
        *(
            c[0]
            if len(set(c)) == 1
            else Block(blocks, torch.tensor(c, dtype=torch.float64, device="cpu")[:, None, None])
            for c in columns
        )
    )


def _build_matrix(sde: MatrixSDE, solver: Solver, ends: Tensor) -> BlockTableau:
    """Return a table with one matrix for all."""
    method = solver.build
    if isinstance(method, Ancestral) and method.variance == "small":
        return _write_frozen(sde, ends, method.eta, solver.name, solver.order)
    if isinstance(method, DDIM) and method.eta in (0.0, 1.0):
        return _write_frozen(sde, ends, method.eta, solver.name, solver.order)
    if isinstance(method, RungeKutta) and method.variable == "t" and method.method is EULER:
        return _write_euler(sde, ends, method.eta, solver.name, solver.order)
    if isinstance(method, Splitting):
        return _write_splitting(sde, ends, solver.name, solver.order)
    raise ConfigError(
        f"{solver.name!r} has no form with a matrix; take 'ancestral' (any eta), 'ddim' (eta 0 or 1), 'euler_maruyama' "
        "in t, or solvers.splitting()"
    )


def _write_frozen(sde: MatrixSDE, ends: Tensor, eta: float, name: str, order: Order) -> BlockTableau:
    late, early, knots = sde.at(ends[:-1]), sde.at(ends[1:]), knots_of(sde, ends)
    maps = zip(*sde.frozen_maps(late, early, eta), strict=True)
    rows = []
    for knot, (on_x, on_data, on_noise) in zip(knots, maps, strict=False):
        x, data, z = (Block(sde.blocks, part) for part in (on_x, on_data, on_noise))
        rows.append(Row(knot, as_weights(x, data), noise=as_weights(z) if eta else ()))
    return BlockTableau(name, "data", tuple(rows), knots[0], knots[-1], 1.0, order=order, sde=sde)


def _write_euler(sde: MatrixSDE, ends: Tensor, eta: float, name: str, order: Order) -> BlockTableau:
    knots, steps = knots_of(sde, ends), (ends[:-1] - ends[1:]).tolist()
    drift, noise = sde.coefficients(ends[:-1])
    rows = []
    for knot, dt, f, q, v in zip(knots, steps, drift, noise, root(noise), strict=False):
        state = as_weights(Block(sde.blocks, -dt * f) + 1.0, Block(sde.blocks, 0.5 * (1 + eta**2) * dt * q))
        drawn = as_weights(Block(sde.blocks, eta * dt**0.5 * v)) if eta else ()
        rows.append(Row(knot, state, noise=drawn))
    return BlockTableau(name, "score", tuple(rows), knots[0], knots[-1], 1.0, order=order, sde=sde)


def splitting(*, grid: Grid | None = None) -> Solver:
    """Return the symmetric splitting sampler (SSCS) of a MatrixSDE with a stationary law; the module has the formulas.

    One evaluation a step; weak order 1.

    Args:
        grid: native time grid, even in t by default.

    Source: Dockhorn, Vahdat and Kreis 2022, arXiv:2112.07068.
    """
    native = even() if grid is None else grid
    return Solver("splitting", Splitting(), native, 1, Order(weak=1.0), "Dockhorn et al. 2022")


@dataclass(frozen=True)
class Splitting(Method):
    """The symmetric splitting of the reverse SDE."""

    def __str__(self) -> str:
        return "Ornstein-Uhlenbeck and score"

    def __call__(self, sde: GaussianSDE, times: Tensor) -> Tableau:
        """Raise ConfigError: it is written with maps."""
        raise ConfigError(
            f"the splitting is a table under a MatrixSDE, and got {sde!r}; take 'ancestral', which solves more exactly"
        )


def _find_stationary(sde: MatrixSDE) -> Tensor:
    """Return Sigma_inf, (K, K); DomainError where there is none."""
    assert sde.noise is not None
    k, matrix = len(sde.matrix), sde.matrix.detach()
    one = torch.eye(k, dtype=torch.float64, device="cpu")
    if float(torch.linalg.eigvals(matrix).real.max()) >= 0:
        raise DomainError("the splitting needs a stationary law: eigenvalues of the matrix with negative real parts")
    lyapunov = torch.kron(matrix, one) + torch.kron(one, matrix)
    found: Tensor = torch.linalg.solve(lyapunov, -sde.noise.detach().reshape(-1)).reshape(k, k)
    return 0.5 * (found + found.T)


def _write_splitting(sde: MatrixSDE, ends: Tensor, name: str, order: Order) -> BlockTableau:
    assert sde.noise is not None
    stationary, knots = _find_stationary(sde), knots_of(sde, ends)
    back = torch.linalg.solve(stationary, sde.matrix.detach() @ stationary).T  # Sigma F^T Sigma^{-1}
    integral = sde.integral(ends)
    halves = 0.5 * (integral[:-1] - integral[1:])
    middles = knots_of(sde, sde.inverse_integral(0.5 * (integral[:-1] + integral[1:])))
    half = functools.partial(exponentiate, back, sde.noise.detach())
    # From the middle of a step to the middle of the next one, and to the end from the last.
    spans = torch.cat([halves[:1], halves[:-1] + halves[1:], halves[-1:]])
    moves, covariances = half(spans)
    moved = [Block(sde.blocks, m[None]) for m in moves]
    drawn = [Block(sde.blocks, root(c)[None]) for c in covariances]
    pull = sde.noise.detach() @ torch.linalg.inv(stationary)
    rows = []
    for i, knot in enumerate(middles):
        b = float(2 * halves[i])
        on_x, on_score = Block(sde.blocks, b * pull[None]) + 1.0, Block(sde.blocks, b * sde.noise.detach()[None])
        after, z = moved[i + 1], drawn[i + 1]
        rows.append(Row(knot, as_weights(after * on_x, after * on_score), noise=as_weights(z)))
    lift = cast(tuple[float, float], (moved[0], drawn[0]))
    return BlockTableau(name, "score", tuple(rows), knots[0], knots[-1], 1.0, lift=lift, order=order, sde=sde)
