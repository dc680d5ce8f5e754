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

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scoresde.diffusions.point import Point
from scoresde.diffusions.sde import GaussianSDE, transition_weights
from scoresde.errors.kinds import ConfigError, DomainError, DTypeError, show
from scoresde.errors.values import check_integer, check_number, read_number
from scoresde.solvers.exponential import dpmpp_2s
from scoresde.solvers.grids import Grid, karras
from scoresde.solvers.multistep import Multistep
from scoresde.solvers.one_step import OneStep
from scoresde.solvers.rows import Order, Row
from scoresde.solvers.runge_kutta import HEUN, runge_kutta
from scoresde.solvers.solver import Method, Solver
from scoresde.solvers.tableau import Tableau

NATIVE = replace(karras(), until=-2 * math.log(0.002))
"""EDM's grid to its authors' smallest level. A stage at a lower one would multiply a data prediction's error."""

Build = Callable[[GaussianSDE, Tensor], Tableau]
Jump = tuple[float, float]


def _write_legs(
    build: Build, sde: GaussianSDE, late: Point, early: Point, cuts: list[int]
) -> tuple[str, list[list[Row]], list[Jump]]:
    """Return the prediction, the rows of the legs that start at the steps ``cuts``, and what lifts each leg's start."""
    if isinstance(build, OneStep | Multistep):
        return build.choose_prediction(sde), build.write_legs(sde, late, early, cuts), [(1.0, 0.0)] * len(cuts)
    bounds = list(itertools.pairwise([*cuts, len(late.t)]))
    tables = [build(sde, torch.cat([late.t[low:high], early.t[high - 1 : high]])) for low, high in bounds]
    written = sorted({table.prediction for table in tables})
    if len(written) > 1:
        raise ConfigError(f"a path has one prediction; the solver writes its legs in {' and '.join(written)}")
    return written[0], [list(table.rows) for table in tables], [table.lift for table in tables]


def _raise(row: Row, scale: float, width: float) -> Row:
    """Follow a row by x <- scale x + width z."""
    fresh, *earlier = row.noise or (0.0,)
    noise = (math.hypot(scale * fresh, width), *(scale * w for w in earlier))
    state = tuple(scale * w for w in row.state)
    return replace(row, state=state, anchor=None, anchor_noise=(), noise=noise, increment=None)


@dataclass(frozen=True)
class _Around(Method):
    """What all three share: the solver that runs the legs, and the name and orders of the tables of its paths."""

    name: str
    solver: Solver
    order: Order

    def write_path(self, sde: GaussianSDE, late: Point, early: Point, ends: Point, width: float = 1.0) -> Tableau:
        """Return the table of the steps from ``late`` to ``early``, (n,), on a path from ``ends[0]`` to ``ends[-1]``.

        Where a step does not start at the end of the one before it, there is a jump, whose noise ``width`` multiplies.
        """
        before, after = Point.joined([ends[:1], early]), Point.joined([late, ends[-1:]])
        moved = (before.log_snr != after.log_snr).tolist()
        cuts = [i for i in range(len(late.t)) if i == 0 or moved[i]]
        prediction, rows, lifts = _write_legs(self.solver.build, sde, late, early, cuts)
        a, b = (w.tolist() for w in transition_weights(before, after))
        jumps: list[Jump] = []
        for i, (scale, weight) in zip([*cuts, -1], [*lifts, (1.0, 0.0)], strict=True):
            # A leg's own lift follows the jump to its start.
            p, q = (a[i], width * b[i]) if moved[i] else (1.0, 0.0)
            jumps.append((scale * p, math.hypot(scale * q, weight)))
        for k, jump in enumerate(jumps[1:], start=1):
            if jump != (1.0, 0.0):
                rows[k - 1][-1] = _raise(rows[k - 1][-1], *jump)
                if k < len(rows):
                    rows[k][0] = replace(rows[k][0], restart=True)
        flat = itertools.chain.from_iterable(rows)
        return Tableau.between(sde, ends, flat, name=self.name, prediction=prediction, lift=jumps[0], order=self.order)

    def leave(self, sde: GaussianSDE, times: Tensor) -> Tableau:
        """Return the solver's own table under this name."""
        return replace(self.solver.build(sde, times), name=self.name)

    def wrap(self) -> Solver:
        """Return the solver with this around it."""
        return replace(self.solver, name=self.name, build=self, order=self.order)


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
    the grid; no level rises above the SDE's own at t_max, beyond which no network was trained. Around a one-step method
    it is algorithm 2 of Karras et al. 2022, "Elucidating the design space of diffusion-based generative models",
    arXiv:2206.00364, written for x/alpha. The last jump of ``final="denoise"`` is not churned; a step of ``times`` into
    sigma = 0 is, as in the source.

    The law converges with the deterministic or weak order of a one-step method. A multistep method starts anew after
    each jump, which leaves it order 1. ``s_noise`` other than 1 leaves a bias.

    Args:
        solver: what is run from the raised level to the step's end.
        churn: S_churn, how much noise is exchanged over the whole run.
        s_min: smallest noise level at which noise is exchanged, in the unit of x/alpha.
        s_max: largest such noise level.
        s_noise: standard deviation of the noise that is added; above 1 it makes up for lost detail.
        name: name of the solver.

    Raises:
        DTypeError: what is wrapped is no Solver. DomainError: a number out of range.
    """
    _check_solver(solver, "churned")
    churn = check_number(churn, "churn", 0.0)
    s_min = check_number(s_min, "s_min", 0.0)
    if isinstance(s_max, int) or read_number(s_max) != math.inf:
        s_max = check_number(s_max, "s_max", s_min)
    s_noise = check_number(s_noise, "s_noise", 0.0, open_low=True)
    order = _limit_order(_weaken(solver.order, s_noise == 1.0), solver.build, 1.0) if churn else solver.order
    return _Churned(
        f"{solver.name}, churned" if name is None else name, solver, order, churn, s_min, s_max, s_noise
    ).wrap()


@dataclass(frozen=True)
class _Churned(_Around):
    """A solver with EDM's churn; ``churned`` checks its options."""

    churn: float
    s_min: float
    s_max: float
    s_noise: float

    def __str__(self) -> str:
        span = f"{self.s_min:g} to {self.s_max:g}"
        return f"{self.solver.name}, churn = {self.churn:g} from {span}, s_noise = {self.s_noise:g}"

    def __call__(self, sde: GaussianSDE, times: Tensor) -> Tableau:
        points = sde.at(times)
        late = points[:-1]
        nu = late.sigma / late.alpha
        inside = (nu >= self.s_min) & (nu <= self.s_max) & torch.isfinite(nu)
        gamma = min(self.churn / max(int((points.sigma > 0).sum()), 1), 2**0.5 - 1) * inside.double()
        room = torch.expm1(0.5 * (late.log_snr - sde.log_snr(sde.t_max)))
        gamma = torch.where(room > 1e-9, torch.minimum(gamma, room), 0.0)
        if not bool(gamma.any()):
            return self.leave(sde, times)
        raised = _lift(sde, late, gamma)
        return self.write_path(sde, raised, points[1:], points, self.s_noise)


def _lift(sde: GaussianSDE, points: Point, gamma: Tensor) -> Point:
    """Return the points where nu is (1 + gamma) times as large; those with gamma = 0 keep their last bit."""
    up = gamma > 0
    high = sde.at(sde.time(points.log_snr[up] - 2 * torch.log1p(gamma[up])))
    pairs = zip(points.numbers, high.numbers, strict=True)
    t, alpha, sigma, log_snr = (old.masked_scatter(up, new) for old, new in pairs)
    return Point(t, alpha, sigma, log_snr)


def _check_solver(solver: object, wrapper: str) -> None:
    if not isinstance(solver, Solver):
        raise DTypeError(
            f"{wrapper} needs a solver that makes tables, got {show(solver)} of type {type(solver).__name__}; "
            "for a name, solvers.by_name(name)"
        )


def _limit_order(order: Order, build: Build, most: float) -> Order:
    """Return the weak order where a leg begins anew: the first step of a multistep method is of first order."""
    return order if isinstance(build, OneStep) or order.weak is None else Order(weak=min(order.weak, most))


def _weaken(order: Order, unbiased: bool = True) -> Order:
    """Return the order in law of a method of these orders with exact noise between its steps."""
    return Order(weak=order.deterministic if order.weak is None else order.weak) if unbiased else Order()


def edm(
    *, churn: float = 40.0, s_min: float = 0.05, s_max: float = 50.0, s_noise: float = 1.003, grid: Grid | None = None
) -> Solver:
    """Return EDM's stochastic sampler: Heun's method in nu = sigma/alpha with churn; ``churned`` has the arguments.

    churn = 0 is the deterministic sampler. The defaults are the authors' for ImageNet at 64 pixels (their table 5); the
    levels are in the unit of the data, which the authors scale to a standard deviation of 0.5.

    Source: Karras et al. 2022, "Elucidating the design space of diffusion-based generative models", arXiv:2206.00364,
    algorithm 2.
    """
    base = runge_kutta(HEUN, variable="nu", grid=NATIVE if grid is None else grid, paper="Karras et al. 2022")
    return churned(base, churn=churn, s_min=s_min, s_max=s_max, s_noise=s_noise, name="edm")


def restart(
    solver: Solver, *, t_min: float, t_max: float, repeats: int = 1, steps: int | None = None, name: str | None = None
) -> Solver:
    """Return restart sampling: at t_min noise carries the state up to t_max, and it comes down again, several times.

    The state comes down on the grid's own times, or in ``steps`` intervals of EDM's spacing in sigma/alpha. t_min is
    taken at the grid's nearest time in log_snr. Restarts at several places are nested calls; a run whose times do not
    reach from t_max to t_min is left as it is, so that each place is found by its own call.

    Args:
        solver: what is run, also between the jumps; a multistep method starts anew after each, which leaves it order 2
            at most.
        t_min: time of the jump.
        t_max: time to which it leads.
        repeats: number of jumps, K in the source.
        steps: intervals of each repeat; None for the grid's own.
        name: name of the solver.

    Source: Xu et al. 2023, "Restart sampling for improving generative processes", arXiv:2306.14878, algorithm 1.

    Raises:
        DTypeError: what is wrapped is no Solver.
        DomainError: not 0 < t_min < t_max, or, when built, outside the SDE's interval of time, or at alpha = 0.
    """
    _check_solver(solver, "restart")
    t_min = check_number(t_min, "t_min", 0.0, open_low=True)
    t_max = check_number(t_max, "t_max", t_min, open_low=True)
    repeats = check_integer(repeats, "repeats", 1)
    if steps is not None:
        steps = check_integer(steps, "steps", 1)
    order = _limit_order(_weaken(solver.order, steps is None), solver.build, 2.0)
    return _Restarted(
        f"{solver.name}, restarted" if name is None else name, solver, order, t_min, t_max, repeats, steps
    ).wrap()


@dataclass(frozen=True)
class _Restarted(_Around):
    """A solver with jumps from t_min to t_max; ``restart`` checks its options."""

    t_min: float
    t_max: float
    repeats: int
    steps: int | None

    def __str__(self) -> str:
        steps = "" if self.steps is None else f" of {self.steps} steps"
        return f"{self.solver.name}, {self.repeats} from t = {self.t_min:g} to {self.t_max:g}{steps}"

    def __call__(self, sde: GaussianSDE, times: Tensor) -> Tableau:
        t_min, t_max = self.t_min, self.t_max
        if not sde.t_min * (1 - 1e-6) <= t_min < t_max <= sde.t_max * (1 + 1e-6):
            raise DomainError(
                f"t_min and t_max must lie in [{sde.t_min:g}, {sde.t_max:g}], the SDE's times, got {t_min:g} and "
                f"{t_max:g}"
            )
        points, high = sde.at(times), sde.at(torch.tensor([t_max], dtype=torch.float64, device="cpu"))
        if float(high.alpha) == 0:
            raise DomainError(f"t_max = {t_max:g} is where alpha = 0: nothing would be left of the state; lower it")
        # Float times of another spelling of the same grid may differ in the last places.
        if len(times) < 2 or not (times[0] >= t_max * (1 - 1e-9) and times[-1] <= t_min * (1 + 1e-9)):
            return self.leave(sde, times)
        gaps = (points.log_snr - sde.log_snr(t_min)).abs()
        low = int(gaps[:-1].argmin()) if float(points.sigma[-1]) == 0 else int(gaps.argmin())
        if low == 0 or not bool(points.log_snr[low] > high.log_snr + 1e-5):
            raise ConfigError(
                f"the grid has no time near t_min = {t_min:g} below t_max = {t_max:g}; use more steps, or times= with "
                "t_min among them"
            )
        again = Point.joined([high, _place_ends(sde, points, high, low, self.steps)])
        legs = [points[: low + 1], *([Point.joined([again, points[low : low + 1]])] * (self.repeats - 1))]
        legs.append(Point.joined([again, points[low:]]))
        late, early = Point.joined([leg[:-1] for leg in legs]), Point.joined([leg[1:] for leg in legs])
        return self.write_path(sde, late, early, points)


def _place_ends(sde: GaussianSDE, points: Point, high: Point, low: int, steps: int | None) -> Point:
    """Return the interval ends between ``high`` and point number ``low``, without the two."""
    if steps is None:
        # A knot that is t_max but for rounding would make a step of no length.
        return points[(points.log_snr > high.log_snr + 1e-5) & (points.log_snr < points.log_snr[low])]
    ends = torch.cat([high.log_snr, points.log_snr[low : low + 1]])
    # EDM's spacing: nu^(1/7) falls evenly.
    roots = (-ends / 14).exp()
    inner = torch.arange(1, steps, dtype=torch.float64, device="cpu") / steps
    return sde.at(sde.time(-14 * (roots[0] + (roots[1] - roots[0]) * inner).log()))


def dpmpp_2s_ancestral(*, eta: float = 1.0) -> Solver:
    """Return k-diffusion's DPM-Solver++(2S) ancestral sampler; here eta is its own, which is DDIM's.

    Each step runs DPM-Solver++(2S), r = 1/2, from nu_t to nu_down below its end nu_s, and noise lifts the state to
    nu_s: nu_up = eta nu_s sqrt(1 - nu_s^2/nu_t^2), nu_down = sqrt(nu_s^2 - nu_up^2). Source: Crowson 2022, k-diffusion,
    ``sample_dpmpp_2s_ancestral``.

    Raises:
        DomainError: eta outside [0, 1].
    """
    eta = check_number(eta, "eta", 0.0, 1.0)
    base = dpmpp_2s()
    order = _weaken(base.order) if eta else base.order
    made = _Ancestral2S("dpmpp_2s_ancestral", base, order, eta).wrap()
    return replace(made, grid=karras(), paper="Crowson 2022", leap=0)


@dataclass(frozen=True)
class _Ancestral2S(_Around):
    """DPM-Solver++(2S) to a level below each step's end and noise up to it; ``dpmpp_2s_ancestral`` checks eta."""

    eta: float

    def __str__(self) -> str:
        return f"eta = {self.eta:g}"

    def __call__(self, sde: GaussianSDE, times: Tensor) -> Tableau:
        points = sde.at(times)
        if self.eta == 0 or len(times) < 2:
            return self.leave(sde, times)
        late, early = points[:-1], points[1:]
        # nu_down may lie below the SDE's smallest level, but no call is made there: only its level counts.
        gap, share = late.log_snr - early.log_snr, torch.tensor(self.eta, dtype=torch.float64, device="cpu").square()
        level = early.log_snr - torch.logaddexp(torch.log1p(-share), share.log() + gap)
        below = Point(early.t, early.alpha, early.alpha * (-0.5 * level).exp(), level)
        return self.write_path(sde, late, below, points)
