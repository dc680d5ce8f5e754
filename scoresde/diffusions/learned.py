r"""A forward process that is learned: log-SNR as a monotone network of time, between two ends.

With u = (t - t_0)/(t_max - t_0), t_0 the t_min that it was made with, and s the logistic function,

    log_snr(t) = high - (high - low) (F(u) - F(0))/(F(1) - F(0)),        F(u) = u + sum_k e^{a_k} s(e^{b_k} u - c_k),

which falls from high to low whatever the numbers a, b, c are, and is smooth; alpha^2 = sigmoid(log_snr) and
sigma^2 = sigmoid(-log_snr). The rates are in closed form,

    d alpha/dt = alpha sigma^2 l/2,      d sigma/dt = -sigma alpha^2 l/2,      g^2 = -sigma^2 l,      l = d log_snr/dt,

and differentiable in the numbers. To whatever asks it is two curves, as any other diffusion; ``fit`` changes its
numbers (``training.schedule`` says by which gradient).

Source: Kingma et al. 2021, "Variational diffusion models", arXiv:2107.00630, section 4.1 and appendix H; there the
positive weights are those of a network with a linear path around it, as here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from scoresde.diffusions.curves import curve, in_float64
from scoresde.diffusions.sde import SDE, GaussianSDE
from scoresde.diffusions.tabulated import TabulatedSDE
from scoresde.errors.values import check_flag, check_integer, check_number

__all__ = ["MOST_UNITS", "LearnedSchedule"]

LOWEST, NEAREST, HIGHEST = -30.0, 1.0, 30.0  # low lies in [LOWEST, -NEAREST], high in [NEAREST, HIGHEST]
SMALLEST, LARGEST = -20.0, 7.0  # of a and b, whose exponentials are at most 1100
MOST_UNITS = 1024
STEEPEST = 3.0  # steepness of the first units, in units of their distance
FARTHEST_BEND = 1e6
KNOTS, FARTHEST = 4096, 60.0  # of the inverse: places where it is tabulated, log_snr up to which it goes


@dataclass(frozen=True, init=False, eq=False, repr=False)
class LearnedSchedule(GaussianSDE):
    """Variance preserving, with log_snr a monotone network of t; the module's docstring has the formula.

    It begins nearly linear in t. ``fit`` trains it beside a network that is told log_snr: the numbers of its shape for
    the least variance of the loss, the ends, where ``learn_ends``, for the bound itself. It changes in place there, as
    the network does; the result's model has one of its own. Two of them are never equal, but for the same object.

    Args:
        units: number of logistic functions, 1 to 1024.
        low: log_snr at t_max, in [-30, -1].
        high: log_snr at t_min, in [1, 30].
        learn_ends: whether ``fit`` moves low and high as well.
        t_min: smallest time of use.
        t_max: time at which sampling starts.

    Attributes:
        ends: low and high as they are now, (2,), float64 on the CPU.
        bends: a, b and c, (3, units), likewise.

    Raises:
        DTypeError, DomainError: numbers of another kind, or outside of these ranges.
    """

    ends: Tensor
    bends: Tensor
    learn_ends: bool
    start: float

    def __init__(
        self,
        units: int = 16,
        *,
        low: float = -10.0,
        high: float = 13.5,
        learn_ends: bool = True,
        t_min: float = 1e-5,
        t_max: float = 1.0,
    ) -> None:
        put = object.__setattr__
        put(self, "t_min", t_min)
        put(self, "t_max", t_max)
        SDE.__post_init__(self)
        units = check_integer(units, "units", 1, MOST_UNITS)
        ends = check_number(low, "low", LOWEST, -NEAREST), check_number(high, "high", NEAREST, HIGHEST)
        put(self, "learn_ends", check_flag(learn_ends, "learn_ends"))
        put(self, "start", self.t_min)
        put(self, "ends", torch.tensor(ends, dtype=torch.float64, device="cpu"))
        # Steps at evenly spaced places, as high together as the linear path.
        places = (torch.arange(units, dtype=torch.float64, device="cpu") + 0.5) / units
        steep = torch.full_like(places, STEEPEST * units)
        put(self, "bends", torch.stack([torch.full_like(places, 1 / units).log(), steep.log(), steep * places]))

    def __repr__(self) -> str:
        low, high = self.ends.tolist()
        fixed = "" if self.learn_ends else ", learn_ends=False"
        return f"LearnedSchedule({self.bends.shape[1]}, low={low:.6g}, high={high:.6g}{fixed})"

    def _network(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return F and dF/du at u (*)."""
        a, b, c = self.bends.to(u)
        b = b.exp()
        s = torch.sigmoid(u[..., None] * b - c)
        return u + (a.exp() * s).sum(-1), 1 + (a.exp() * b * s * (1 - s)).sum(-1)

    def _bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return F at the ends of [0, 1]."""
        first, last = self._network(like.new_tensor([0.0, 1.0]))[0].unbind()
        return first, last

    def _share(self, t: Tensor) -> Tensor:
        return (t - self.start) / (self.t_max - self.start)

    @curve
    def log_snr(self, t: Tensor) -> Tensor:
        """Return log_snr: high at the first t_min, low at t_max."""
        first, last = self._bounds(t)
        low, high = self.ends.to(t)
        value: Tensor = high + (low - high) * (self._network(self._share(t))[0] - first) / (last - first)
        return value

    @curve
    def log_snr_rate(self, t: Tensor) -> Tensor:
        """Return d log_snr/dt < 0."""
        first, last = self._bounds(t)
        low, high = self.ends.to(t)
        slope: Tensor = (low - high) / ((last - first) * (self.t_max - self.start))
        return slope * self._network(self._share(t))[1]

    @curve
    def alpha(self, t: Tensor) -> Tensor:
        """Return sqrt(sigmoid(log_snr))."""
        return (0.5 * logsigmoid(self.log_snr(t))).exp()

    @curve
    def sigma(self, t: Tensor) -> Tensor:
        """Return sqrt(sigmoid(-log_snr))."""
        return (0.5 * logsigmoid(-self.log_snr(t))).exp()

    @curve
    def alpha_rate(self, t: Tensor) -> Tensor:
        """Return alpha sigma^2 l/2, l = d log_snr/dt."""
        return self.alpha(t) * self.drift_rate(t)

    @curve
    def sigma_rate(self, t: Tensor) -> Tensor:
        """Return -sigma alpha^2 l/2."""
        return -0.5 * self.sigma(t) * self.alpha(t).square() * self.log_snr_rate(t)

    @curve
    def drift_rate(self, t: Tensor) -> Tensor:
        """Return sigma^2 l/2."""
        return 0.5 * self.sigma(t).square() * self.log_snr_rate(t)

    @curve
    def diffusion(self, t: Tensor) -> Tensor:
        """Return sigma sqrt(-l)."""
        return self.sigma(t) * (-self.log_snr_rate(t)).sqrt()

    @curve
    def prior_std(self, t: Tensor) -> Tensor:
        """Return 1, at every t."""
        return torch.ones_like(t)

    @in_float64
    def _invert(self, log_snr: Tensor) -> Tensor:
        """Return the t with this log_snr, by Newton's method between knots of a table; also beyond the ends."""
        first, last = self._bounds(log_snr)
        bottom, top = self.ends.to(log_snr)
        wanted = first + (last - first) * (top - log_snr.clamp(-FARTHEST, FARTHEST)) / (top - bottom)
        # dF/du >= 1 bounds u beyond [0, 1].
        reach = 0.0 if wanted.numel() == 0 else float(torch.maximum(first - wanted, wanted - last).max().clamp_min(0.0))
        knots = torch.linspace(-reach, 1 + reach, KNOTS, dtype=wanted.dtype, device=wanted.device)
        values = self._network(knots)[0]
        i = (torch.searchsorted(values, wanted.contiguous()) - 1).clamp(0, KNOTS - 2)
        low, high = knots[i], knots[i + 1]
        u = low + (high - low) * (wanted - values[i]) / (values[i + 1] - values[i])
        for _ in range(5):
            value, slope = self._network(u)
            u = (u - (value - wanted) / slope).clamp(low, high)
        t: Tensor = self.start + (self.t_max - self.start) * u
        return t

    def tabulated(self, knots: int = 257) -> TabulatedSDE:
        """Return the schedule as it is now as a table of evenly spaced knots, which no training changes.

        Args:
            knots: their number, at least 3; of 257 log_snr is the same to some 1e-4.
        """
        t = torch.linspace(self.t_min, self.t_max, check_integer(knots, "knots", 3), dtype=torch.float64, device="cpu")
        return TabulatedSDE(t, self.log_snr(t))

    def copy(self) -> Self:
        """Return another with the same numbers, which changes by itself."""
        other = self.starting_at(self.t_min)
        for name in ("ends", "bends"):
            object.__setattr__(other, name, getattr(self, name).detach().clone())
        return other

    def keep_in_range(self) -> None:
        """Move numbers that a training brought out of their ranges to the next that is inside, in place."""
        self.ends[0].clamp_(LOWEST, -NEAREST)
        self.ends[1].clamp_(NEAREST, HIGHEST)
        self.bends[:2].clamp_(SMALLEST, LARGEST)

    @property
    def config(self) -> dict[str, object]:
        """What is not learned, as JSON has it."""
        kept = {"units": self.bends.shape[1], "learn_ends": self.learn_ends}
        return {"kind": type(self).__name__, **kept, "t_min": self.t_min, "t_max": self.t_max, "start": self.start}

    def to_dict(self) -> dict[str, object]:
        """Return what ``from_dict`` rebuilds, JSON-able, to the last bit."""
        return {**self.config, "ends": self.ends.tolist(), "bends": self.bends.tolist()}

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> LearnedSchedule:
        """Rebuild a schedule from ``to_dict``'s description, without its kind.

        Raises:
            DomainError, DTypeError: numbers out of range, or not as many as units.
        """
        low, high = options["ends"]
        times = {"t_min": options["start"], "t_max": options["t_max"]}
        sde = cls(options["units"], low=low, high=high, learn_ends=options["learn_ends"], **times)
        a_and_b, any_c = (SMALLEST, LARGEST), (-FARTHEST_BEND, FARTHEST_BEND)
        for row, values, ends in zip(sde.bends, options["bends"], (a_and_b, a_and_b, any_c), strict=True):
            row.copy_(_read(values, len(row), *ends))
        return sde if options["t_min"] == sde.t_min else sde.starting_at(options["t_min"])


def _read(values: Sequence[object], count: int, low: float, high: float) -> Tensor:
    check_integer(len(values), "the length of bends", count, count)
    numbers = [check_number(value, "bends", low, high) for value in values]
    return torch.tensor(numbers, dtype=torch.float64, device="cpu")
