r"""Time grids: where a sampler's intervals end.

A grid with n steps has n + 1 decreasing times, from t_max to t_min, built once in float64 with exact end points. Each
is uniform in a variable of its own:

| grid | uniform in |
|---|---|
| ``uniform()`` | t^(1/power) |
| ``even()`` | t, and under an SDE whose time is its noise level as ``diffused(power=2)`` |
| ``log_snr()`` | l = log(alpha^2/sigma^2), or with a width asinh((l - centre)/width) |
| ``karras(rho=7)`` | nu^(1/rho), nu = sigma/alpha (Karras et al. 2022, arXiv:2206.00364, eq. 5) |
| ``rectified()`` | u^(1/power), u = sigma/(alpha + sigma) |
| ``diffused()`` | b^(1/power), b = log(1 + nu^2): the integral of beta of the VP diffusion with the same nu |
| ``curve(levels, shares)`` | a given share of the steps above each u, as ``calibrate`` finds it |
| ``knots(times)`` | a chain's index: every time, or a strided choice of them |

A tensor of times is a grid already.

Where a jump to clean data follows (``final="denoise"``) the grids uniform in a function of log_snr or nu alone end at
log_snr = 14, where VPSDE does, if the SDE goes further: beyond it nothing is left to denoise, and a step over the long
rest would multiply a prediction's error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scoresde.diffusions.named import check_sde
from scoresde.diffusions.sde import SDE, GaussianSDE
from scoresde.errors.kinds import ConfigError, DomainError, DTypeError, ShapeError, printable
from scoresde.errors.tensors import check_numbers
from scoresde.errors.values import check_flag, check_instance, check_integer, check_number

__all__ = [
    "Grid",
    "check_times",
    "curve",
    "diffused",
    "even",
    "karras",
    "knots",
    "log_snr",
    "rectified",
    "uniform",
]


MOST_STEPS = 10**6  # of a table, whose rows are objects
CLOSEST = 1e-13  # of a time, between it and the next: less is rounding
FIRST_LOG_SNR, LAST_LOG_SNR = -10.0, 14.0  # VPSDE's own ends, for an SDE that goes further


@dataclass(frozen=True)
class Grid:
    """A rule for times; ``grid(sde, steps)`` gives a decreasing float64 tensor of shape (steps + 1,).

    Args:
        name: what it is, for people.
        rule: (sde, fractions in [0, 1]) -> times, 0 at t_max and 1 at t_min; or (sde, fractions) -> knots.
        steps: the number of steps where the grid fixes it.
        options: further arguments of ``rule``; with a rule that is a function of a module, grids compare by value and
            travel.
        until: the log_snr at which the grid ends, where the SDE goes further and a jump to clean data follows.
    """

    name: str
    rule: Callable[..., Tensor]
    steps: int | None = None
    options: tuple[float | None, ...] = ()
    until: float = math.inf

    def __call__(self, sde: GaussianSDE, steps: int | None = None, *, jumps: bool = False) -> Tensor:
        """Return steps + 1 times from sde.t_max down to sde.t_min (t_max alone for 0 steps).

        Args:
            sde: whose times.
            steps: number of intervals.
            jumps: whether a jump to clean data follows, so that the grid may end at ``until``.

        Raises:
            ConfigError: no number of steps. DTypeError, DomainError: a bad one, or times that do not decrease.
        """
        n = steps if steps is not None else self.steps
        if n is None:
            raise ConfigError(f"the grid {self.name!r} needs a number of steps; pass steps=")
        n, sde = check_integer(n, "steps", 0, MOST_STEPS), check_sde(sde)
        fractions = torch.arange(n + 1, dtype=torch.float64, device="cpu") / max(n, 1)
        if check_flag(jumps, "jumps") and float(sde.log_snr(sde.t_min)) > self.until:
            sde = sde.starting_at(float(sde.time(self.until)))
        times = self.rule(sde, fractions, *self.options)
        falls = times.diff() < -CLOSEST * times[:-1]
        if not bool(falls.all()):
            where = int((~falls).nonzero()[0])
            raise DomainError(
                f"the grid {printable(self.name)} with {n} steps hardly falls at t = {float(times[where]):g}: float64 "
                "cannot tell its times apart",
                parameter="times",
                got=float(times[where]),
                allowed="decreasing times",
                cure="take milder options of the grid, or fewer steps",
            )
        return times

    def __repr__(self) -> str:
        """Say in one line what the grid is."""
        return f"<Grid {printable(self.name)}{'' if self.steps is None else f', {self.steps} steps'}>"


def _pin(sde: GaussianSDE, times: Tensor) -> Tensor:
    """Make the end points exact."""
    times = times.clone()
    if len(times) > 1:
        times[-1] = sde.t_min
    times[0] = sde.t_max
    return times


def _interpolate(high: Tensor, low: Tensor, fractions: Tensor) -> Tensor:
    return high + (low - high) * fractions


def uniform(steps: int | None = None, *, power: float = 1.0) -> Grid:
    """Return the grid uniform in t^(1/power): power 1 is uniform in t, 2 is quadratic."""
    power = check_number(power, "power", 0.0, open_low=True)
    return Grid("uniform" if power == 1.0 else f"power {power:g}", _place_uniform, steps, (power,))


def _place_uniform(sde: GaussianSDE, fractions: Tensor, power: float) -> Tensor:
    ends = torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64, device="cpu") ** (1 / power)
    return _pin(sde, _interpolate(ends[0], ends[1], fractions) ** power)


def even(steps: int | None = None) -> Grid:
    """Return the grid uniform in t, the native one of solvers that step in t.

    Where t is the noise level itself, alpha = 1 and sigma = t as in ``EDMSDE``, steps of one length would nearly all
    fall on large noise: there it is ``diffused(power=2)``, close to VPSDE's own grid uniform in t.
    """
    return Grid("even", _place_even, steps)


def _place_even(sde: GaussianSDE, fractions: Tensor) -> Tensor:
    ends = sde.at(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64, device="cpu"))
    is_level = bool((ends.alpha == 1).all()) and bool((ends.sigma == ends.t).all())
    return _place_diffused(sde, fractions, 2.0) if is_level else _place_uniform(sde, fractions, 1.0)


def log_snr(steps: int | None = None, *, centre: float | None = None, width: float | None = None) -> Grid:
    """Return the grid uniform in l = log_snr, or with a width in asinh((l - centre)/width); the centre is 0 by default.

    The number of steps in a unit of l is proportional to 1/sqrt(1 + ((l - centre)/width)^2): within about a width of
    the centre the grid is uniform in l, beyond it the steps grow in proportion to the distance. No step is ever many
    times the one before, so that a multistep method keeps its order on it.

    Raises:
        ConfigError: a centre without a width. DomainError: a centre that is not finite, a width that is not positive.
    """
    if centre is not None:
        centre = check_number(centre, "centre")
        if width is None:
            raise ConfigError(f"centre={centre:g} has no effect without a width; pass width= too")
    middle = 0.0 if centre is None else centre
    if width is not None:
        width = check_number(width, "width", 0.0, open_low=True)
    name = "log_snr" if width is None else f"log_snr (centre = {middle:g}, width = {width:g})"
    return Grid(name, _place_log_snr, steps, (middle, width), LAST_LOG_SNR)


def _place_log_snr(sde: GaussianSDE, fractions: Tensor, middle: float, width: float | None) -> Tensor:
    # Where alpha reaches 0 the grid is uniform from VPSDE's own end on, and starts at t_max all the same.
    ends = _find_ends(sde)
    if width is None:
        return _pin(sde, sde.time(_interpolate(ends[0], ends[1], fractions)))
    ends = ((ends - middle) / width).asinh()
    return _pin(sde, sde.time(middle + width * _interpolate(ends[0], ends[1], fractions).sinh()))


def karras(steps: int | None = None, *, rho: float = 7.0) -> Grid:
    """Return EDM's grid, uniform in (sigma/alpha)^(1/rho)."""
    rho = check_number(rho, "rho", 0.0, open_low=True)
    return Grid(f"karras (rho = {rho:g})", _place_karras, steps, (rho,), LAST_LOG_SNR)


def _place_karras(sde: GaussianSDE, fractions: Tensor, rho: float) -> Tensor:
    ends = (-0.5 / rho * _find_ends(sde)).exp()
    return _pin(sde, sde.time(-2 * rho * _interpolate(ends[0], ends[1], fractions).log()))


def rectified(steps: int | None = None, *, power: float = 1.0) -> Grid:
    """Return the grid uniform in u^(1/power), u = sigma/(alpha + sigma), the rectified flow's own time."""
    power = check_number(power, "power", 0.0, open_low=True)
    return Grid("rectified" if power == 1.0 else f"rectified (power = {power:g})", _place_rectified, steps, (power,))


def _place_rectified(sde: GaussianSDE, fractions: Tensor, power: float) -> Tensor:
    low, high = sde.log_snr(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64, device="cpu"))
    first, last = (torch.sigmoid(-0.5 * end) ** (1 / power) for end in (low, high))
    u = _interpolate(first, last, fractions) ** power
    return _pin(sde, sde.time((2 * (torch.log1p(-u) - u.log())).clamp(low, high)))


def diffused(steps: int | None = None, *, power: float = 4.0) -> Grid:
    """Return the grid b = b_min + (b_max - b_min) w^power with w falling from 1 to 0, b = log(1 + sigma^2/alpha^2).

    Under a variance-preserving SDE b = -2 log alpha, the integral of beta. Since VPSDE's beta grows linearly, its b is
    close to b_max t^2, and power 4 close to a grid quadratic in its t; written in b it serves every SDE. From alpha = 0
    it is made as if it began at log_snr = -10.
    """
    power = check_number(power, "power", 0.0, open_low=True)
    return Grid(f"diffused (power = {power:g})", _place_diffused, steps, (power,))


def _place_diffused(sde: GaussianSDE, fractions: Tensor, power: float) -> Tensor:
    ends = _find_ends(sde)
    b = torch.nn.functional.softplus(-ends)
    log_snr = -torch.expm1(b[1] + (b[0] - b[1]) * (1 - fractions) ** power).log()
    return _pin(sde, sde.time(log_snr.clamp(ends[0], ends[1])))


def curve(levels: Sequence[float], shares: Sequence[float]) -> Grid:
    """Return the grid on which a given share of the steps lies above each level u = sigma/(alpha + sigma).

    Args:
        levels: u, falling.
        shares: as many, rising; between the levels, and beyond them, they are interpolated in u.

    Raises:
        ShapeError: other numbers of them, or fewer than two. DomainError: levels that do not fall, or shares that fall.
    """
    u, share = check_numbers(levels, "levels"), check_numbers(shares, "shares")
    if u.ndim != 1 or u.shape != share.shape or len(u) < 2:
        raise ShapeError(f"a curve needs as many shares as levels, two at least, got {share.numel()} and {u.numel()}")
    if not bool((u.diff() < 0).all()) or not bool((share.diff() > 0).all()):
        raise DomainError("the levels of a curve must fall and its shares rise")
    return Grid("curve", _place_on_curve, None, (*u.tolist(), *share.tolist()))


def _place_on_curve(sde: GaussianSDE, fractions: Tensor, *numbers: float) -> Tensor:
    levels, shares = np.array(numbers).reshape(2, -1)
    ends = sde.log_snr(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64, device="cpu"))
    first, last = (float(np.interp(-u, -levels, shares)) for u in torch.sigmoid(-0.5 * ends).tolist())
    u = torch.from_numpy(np.interp(first + (last - first) * fractions.numpy(), shares, levels))
    return _pin(sde, sde.time((2 * (torch.log1p(-u) - u.log())).clamp(ends[0], ends[1])))


def _find_ends(sde: GaussianSDE) -> Tensor:
    """Return log_snr at t_max, or where a grid in log_snr begins if alpha is 0 there, and at t_min."""
    ends = sde.log_snr(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64, device="cpu"))
    return torch.where(ends == -math.inf, FIRST_LOG_SNR, ends)


def knots(times: Tensor, steps: int | None = None) -> Grid:
    """Return the grid on given times, increasing as a chain's; with fewer steps, evenly spaced indices of them.

    Raises:
        DomainError: when called with more steps than there are intervals.
    """
    given = check_numbers(times, "times")
    if given.ndim != 1 or len(given) == 0:
        raise ShapeError(f"times must be a vector of at least one time, got shape {tuple(given.shape)}")
    chosen = tuple(given.tolist())
    return Grid(f"{len(chosen)} knots", _choose_knots, len(chosen) - 1 if steps is None else steps, chosen)


def _choose_knots(sde: GaussianSDE, fractions: Tensor, *times: float) -> Tensor:
    last = len(times) - 1
    if len(fractions) - 1 > last:
        raise DomainError(
            f"steps must be at most {last}, the number of intervals of the chain, got {len(fractions) - 1}"
        )
    index = ((1 - fractions) * last).round().long()
    return torch.tensor(times, dtype=torch.float64, device="cpu")[index]


STEPS = 20
"""Intervals where nobody says how many."""


def choose_grid(native: Grid, steps: int | None, times: Grid | None) -> tuple[Grid, int]:
    """Return the grid, the solver's own unless another is named, and its number of intervals (20 by default)."""
    grid = native if times is None else times
    count = steps if steps is not None else grid.steps
    return grid, check_integer(STEPS if count is None else count, "steps", 1, MOST_STEPS)


def check_one_way(steps: int | None, times: object) -> None:
    """Raise unless ``times`` is None, a Grid or a tensor without ``steps`` beside it."""
    if not (times is None or isinstance(times, (Tensor, Grid))):
        raise DTypeError(f"times must be a floating tensor or a Grid, got {type(times).__name__}; use torch.tensor")
    if isinstance(times, Tensor) and steps is not None:
        raise ConfigError("give steps= or a tensor of times=, not both")


def check_times(sde: SDE, times: object, *, rising: bool = False) -> Tensor:
    """Return a user's interval ends in float64 on the CPU: decreasing, inside [t_min, t_max], perhaps a last 0.

    With ``rising`` they increase, as for a simulation from data to noise.

    Raises:
        DTypeError: not a floating tensor. ShapeError: not a vector. DomainError: NaN, repeats, rising, out of range.
    """
    check_instance(sde, SDE, "sde", "an SDE, e.g. VPSDE()")  # type: ignore[type-abstract]
    if not isinstance(times, Tensor) or not times.dtype.is_floating_point:
        got = times.dtype if isinstance(times, Tensor) else type(times).__name__
        raise DTypeError(f"times must be a floating tensor or a Grid, got {got}")
    ends = check_numbers(times, "times")
    if ends.ndim != 1 or len(ends) == 0:
        raise ShapeError(f"times must be a vector of at least one time, got shape {tuple(ends.shape)}")
    if bool(torch.isnan(ends).any()):
        raise DomainError(f"times has a NaN at index {int(torch.isnan(ends).nonzero()[0])}")
    gaps = -ends.diff() if check_flag(rising, "rising") else ends.diff()
    way, wrong = ("increase", "falls") if rising else ("decrease", "rises")
    if len(ends) > 1 and bool((gaps > 0).all()):
        where, other = ("data to noise", "decrease") if rising else ("noise to data", "increase")
        raise DomainError(f"times must {way}, from {where}; these {other}: use times.flip(0)")
    if bool((gaps == 0).any()):
        raise DomainError(f"times repeats {float(ends[int((gaps == 0).nonzero()[0])]):g}; make the grid in float64")
    if bool((gaps > 0).any()):
        raise DomainError(f"times must {way}; it {wrong} at index {int((gaps > 0).nonzero()[0]) + 1}")
    sde.check_time(ends, name="times", zero=bool(ends[-1] == 0))
    return ends
