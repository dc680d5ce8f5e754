r"""Around a solver: churn, restart and ancestral noise, as legs of one path with jumps upwards between them.

Any diffusion may be run forwards exactly, x_s | x_t ~ N(a x_t, b^2) for s later than t. A sampler that goes down a leg,
jumps up and goes down again is therefore a table: the jump after a leg is folded into the leg's last row,

    x <- a (weights of the row) + b z,

and the row after it starts a new history. Where that row draws already, the two normal numbers become one with the root
of the sum of squares: the law is the same. A jump before the first leg is the table's lift.

* *Churn* raises the noise level nu = sigma/alpha before a step, from nu to (1 + gamma) nu.
* *Restart* jumps from t_min to t_max and integrates down again, K times.
* *Ancestral noise* runs each step to a level below its end and jumps up to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from scoresde.errors import ConfigError, DomainError, check_integer, check_number
from scoresde.grids import Grid, karras
from scoresde.readout import Point
from scoresde.sde import GaussianSDE, transition_weights
from scoresde.solvers.base import Solver
from scoresde.solvers.exponential import dpmpp_2s
from scoresde.solvers.onestep import OneStep
from scoresde.solvers.singlestep import HEUN, runge_kutta
from scoresde.tableau import Knot, Order, Row, Tableau

__all__ = ["churned", "dpmpp_2s_ancestral", "edm", "restart"]

Build = Callable[[GaussianSDE, Tensor], Tableau]


def _strung(points: list[Point]) -> Point:
    """Put points one after the other."""
    columns = zip(*((p.t, p.alpha, p.sigma, p.log_snr) for p in points), strict=True)
    t, alpha, sigma, log_snr = (torch.cat(column) for column in columns)
    return Point(t, alpha, sigma, log_snr)


def _legs(build: Build, sde: GaussianSDE, legs: list[Point]) -> tuple[str, list[list[Row]], list[tuple[float, float]]]:
    """Return the prediction, each leg's rows, and what lifts the state before each."""
    if isinstance(build, OneStep):
        late = _strung([leg[:-1] for leg in legs])
        steps = iter(build.steps(sde, late, _strung([leg[1:] for leg in legs])))
        rows = [[row for _ in range(len(leg.t) - 1) for row in next(steps)] for leg in legs]
        return build.written_in(late), rows, [(1.0, 0.0)] * len(legs)
    tables = [build(sde, leg.t) for leg in legs]
    return tables[0].prediction, [list(table.rows) for table in tables], [table.lift for table in tables]


def _raised(row: Row, scale: float, width: float) -> Row:
    """Follow a row by x <- scale x + width z."""
    fresh, *earlier = row.noise or (0.0,)
    noise = (math.hypot(scale * fresh, width), *(scale * w for w in earlier))
    state = tuple(scale * w for w in row.state)
    return replace(row, state=state, anchor=None, anchor_noise=(), noise=noise, increment=None)


def _path(
    name: str, build: Build, sde: GaussianSDE, legs: list[Point], ends: Point, order: Order, width: float = 1.0
) -> Tableau:
    """Return the table of a path from ``ends[0]`` along the legs to ``ends[-1]``, with a jump wherever two differ.

    ``width`` multiplies the noise of the jumps.
    """
    prediction, rows, lifts = _legs(build, sde, legs)
    places = [ends[:1], *(p for leg in legs for p in (leg[:1], leg[-1:])), ends[-1:]]
    a, b = transition_weights(_strung(places[::2]), _strung(places[1::2]))
    moved = (_strung(places[::2]).log_snr != _strung(places[1::2]).log_snr).tolist()
    jumps = [(p, width * q) if m else (1.0, 0.0) for p, q, m in zip(a.tolist(), b.tolist(), moved, strict=True)]
    # A leg's own lift follows the jump to its start.
    jumps = [
        (up * scale, math.hypot(up * weight, own))
        for (scale, weight), (up, own) in zip(jumps, [*lifts, (1.0, 0.0)], strict=True)
    ]
    for k, jump in enumerate(jumps[1:], start=1):
        if jump != (1.0, 0.0):
            rows[k - 1][-1] = _raised(rows[k - 1][-1], *jump)
            if k < len(rows):
                rows[k][0] = replace(rows[k][0], restart=True)
    start, end = Knot.of(ends[:1])[0], Knot.of(ends[-1:])[0]
    std = float(sde.prior_std(ends.t[0]))
    flat = tuple(row for leg in rows for row in leg)
    return Tableau(name, prediction, flat, start, end, std, lift=jumps[0], order=order)


def churned(
    solver: Solver,
    *,
    churn: float,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
    name: str | None = None,
) -> Solver:
    """Return a solver with EDM's churn: before a step at nu = sigma/alpha the noise level rises to (1 + gamma) nu.

    gamma = min(churn/N, sqrt(2) - 1) where s_min <= nu <= s_max, else 0, with N the number of noise levels above 0 on
    the grid. Around a one-step method it is algorithm 2 of Karras et al. 2022, "Elucidating the design space of
    diffusion-based generative models", written for x/alpha; a multistep method starts anew after each jump. The last
    jump of ``final="denoise"`` is not churned; a step of ``times`` into sigma = 0 is, as in the source.

    The law errs like the solver's deterministic or weak order; ``s_noise`` other than 1 leaves a bias.

    Args:
        solver: what is run from the raised level to the step's end.
        churn: S_churn, how much noise is exchanged over the whole run.
        s_min: smallest noise level at which noise is exchanged, in the unit of x/alpha.
        s_max: largest such noise level.
        s_noise: standard deviation of the noise that is added; above 1 it makes up for lost detail.
        name: name of the solver.

    Raises:
        DomainError: a number out of range, or, when built, a raised level that the SDE does not reach.
    """
    check_number(churn, "churn", 0.0)
    check_number(s_min, "s_min", 0.0)
    if s_max != math.inf:
        check_number(s_max, "s_max", s_min)
    check_number(s_noise, "s_noise", 0.0, open_low=True)
    order = _law(solver.order, s_noise == 1.0) if churn else solver.order
    title = name or f"{solver.name}, churned"

    def build(sde: GaussianSDE, times: Tensor) -> Tableau:
        points = sde.at(times)
        late = points[:-1]
        nu = late.sigma / late.alpha
        inside = (nu >= s_min) & (nu <= s_max) & torch.isfinite(nu)
        gamma = min(churn / max(int((points.sigma > 0).sum()), 1), 2**0.5 - 1) * inside
        if not bool(gamma.any()):
            return replace(solver.build(sde, times), name=title)
        return _path(title, solver.build, sde, _raised_legs(sde, points, gamma), points, order, s_noise)

    return replace(solver, name=title, build=build, order=order)


def _raised_legs(sde: GaussianSDE, points: Point, gamma: Tensor) -> list[Point]:
    """Split a path where it is lifted: each leg starts at a raised level."""
    lifted = gamma > 0
    try:
        raised = sde.at(sde.time(points.log_snr[:-1][lifted] - 2 * torch.log1p(gamma[lifted])))
    except DomainError as error:
        raise DomainError(f"churn lifts a noise level above what the SDE reaches; lower s_max: {error}") from error
    cuts = lifted.nonzero().flatten().tolist()
    legs = [points[: cuts[0] + 1]] if cuts[0] else []
    for k, (low, high) in enumerate(zip(cuts, [*cuts[1:], len(gamma)], strict=True)):
        legs.append(_strung([raised[k : k + 1], points[low + 1 : high + 1]]))
    return legs


def _law(order: Order, unbiased: bool = True) -> Order:
    """Return the order in law of a method of these orders with exact noise between its steps."""
    return Order(weak=order.deterministic if order.weak is None else order.weak) if unbiased else Order()


def edm(
    *,
    churn: float = 40.0,
    s_min: float = 0.05,
    s_max: float = 50.0,
    s_noise: float = 1.003,
    grid: Grid | None = None,
) -> Solver:
    """Return EDM's stochastic sampler: Heun's method in nu = sigma/alpha with churn; ``churned`` has the arguments.

    churn = 0 is the deterministic sampler. The defaults are the authors' for ImageNet at 64 pixels (their table 5); the
    levels are in the unit of the data, which the authors scale to a standard deviation of 0.5.

    Source: Karras et al. 2022, "Elucidating the design space of diffusion-based generative models", algorithm 2.
    """
    base = runge_kutta(HEUN, variable="nu", grid=grid, paper="Karras et al. 2022")
    return churned(base, churn=churn, s_min=s_min, s_max=s_max, s_noise=s_noise, name="edm")


def restart(
    solver: Solver, *, t_min: float, t_max: float, repeats: int = 1, steps: int | None = None, name: str | None = None
) -> Solver:
    """Return restart sampling: at t_min noise carries the state up to t_max, and it comes down again, several times.

    The state comes down on the grid's own times, or in ``steps`` intervals of EDM's spacing in sigma/alpha. t_min is
    taken at the grid's nearest time in log_snr. Restarts at several places are nested calls; a run whose times do not
    reach from t_max to t_min is left as it is, so that each place is found by its own call.

    Args:
        solver: what is run, also between the jumps; a multistep method starts anew after each.
        t_min: time of the jump.
        t_max: time to which it leads.
        repeats: number of jumps, K in the source.
        steps: intervals of each repeat; None for the grid's own.
        name: name of the solver.

    Source: Xu et al. 2023, "Restart sampling for improving generative processes", algorithm 1.

    Raises:
        DomainError: not 0 < t_min < t_max, or, when built, outside the SDE's interval of time, or at alpha = 0.
    """
    check_number(t_min, "t_min", 0.0, open_low=True)
    check_number(t_max, "t_max", t_min, open_low=True)
    check_integer(repeats, "repeats", 1)
    if steps is not None:
        check_integer(steps, "steps", 1)
    title = name or f"{solver.name}, restarted"
    order = _law(solver.order, steps is None)

    def build(sde: GaussianSDE, times: Tensor) -> Tableau:
        if not sde.t_min * (1 - 1e-6) <= t_min < t_max <= sde.t_max * (1 + 1e-6):
            raise DomainError(
                f"t_min and t_max must lie in [{sde.t_min:g}, {sde.t_max:g}], the SDE's times, got {t_min:g} and "
                f"{t_max:g}"
            )
        points, high = sde.at(times), sde.at(torch.tensor([t_max], dtype=torch.float64))
        if float(high.alpha) == 0:
            raise DomainError(f"t_max = {t_max:g} is where alpha = 0: nothing would be left of the state; lower it")
        # Float times of another spelling of the same grid may differ in the last places.
        if len(times) < 2 or not (times[0] >= t_max * (1 - 1e-9) and times[-1] <= t_min * (1 + 1e-9)):
            return replace(solver.build(sde, times), name=title)
        gaps = (points.log_snr - sde.log_snr(t_min)).abs()
        low = int(gaps[:-1].argmin()) if float(points.sigma[-1]) == 0 else int(gaps.argmin())
        if low == 0 or not bool(points.log_snr[low] > high.log_snr):
            raise ConfigError(
                f"the grid has no time near t_min = {t_min:g} below t_max = {t_max:g}; use more steps, or times= with "
                "t_min among them"
            )
        again = _strung([high, _between(sde, points, high, low, steps)])
        legs = [points[: low + 1], *([_strung([again, points[low : low + 1]])] * (repeats - 1))]
        legs.append(_strung([again, points[low:]]))
        return _path(title, solver.build, sde, legs, points, order)

    return replace(solver, name=title, build=build, order=order)


def _between(sde: GaussianSDE, points: Point, high: Point, low: int, steps: int | None) -> Point:
    """Return the interval ends between ``high`` and point number ``low``, without the two."""
    if steps is None:
        return points[(points.log_snr > high.log_snr) & (points.log_snr < points.log_snr[low])]
    ends = torch.cat([high.log_snr, points.log_snr[low : low + 1]])
    # EDM's spacing: nu^(1/7) falls evenly.
    roots = (-ends / 14).exp()
    inner = torch.arange(1, steps, dtype=torch.float64) / steps
    return sde.at(sde.time(-14 * (roots[0] + (roots[1] - roots[0]) * inner).log()))


def dpmpp_2s_ancestral(*, eta: float = 1.0) -> Solver:
    """Return k-diffusion's DPM-Solver++(2S) ancestral sampler; here eta is its own, which is DDIM's.

    Each step runs DPM-Solver++(2S), r = 1/2, from nu_t to nu_down below its end nu_s, and noise lifts the state to
    nu_s: nu_up = eta nu_s sqrt(1 - nu_s^2/nu_t^2), nu_down = sqrt(nu_s^2 - nu_up^2). Source: Crowson 2022, k-diffusion,
    ``sample_dpmpp_2s_ancestral``.

    Raises:
        DomainError: eta outside [0, 1].
    """
    check_number(eta, "eta", 0.0, 1.0)
    base = dpmpp_2s()
    order = Order(weak=1.0) if eta else base.order
    name = "dpmpp_2s_ancestral"

    def build(sde: GaussianSDE, times: Tensor) -> Tableau:
        points = sde.at(times)
        if eta == 0 or len(times) < 2:
            return replace(base.build(sde, times), name=name)
        late, early = points[:-1], points[1:]
        # nu_down may lie below the SDE's smallest level, but no call is made there: only its level counts.
        level = early.log_snr - torch.log1p(eta**2 * torch.expm1(late.log_snr - early.log_snr))
        below = Point(early.t, early.alpha, early.alpha * (-0.5 * level).exp(), level)
        legs = [_strung([late[i : i + 1], below[i : i + 1]]) for i in range(len(late.t))]
        return _path(name, base.build, sde, legs, points, order)

    return replace(base, name=name, build=build, order=order, grid=karras(), paper="Crowson 2022")
