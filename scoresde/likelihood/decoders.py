r"""The last step of a bound: the law of the data given the state with the least noise.

Let m be the model's data prediction at that state, x = alpha x_0 + sigma z, and nu = sigma/alpha. If the data's density
is flat on the scale nu, x_0 given x is N(x/alpha, nu^2), whence the standard deviation nu where none is stated.

* Continuous data: -log N(x_0; m, s^2), summed over the D coordinates. The small posterior variance is 0 at the last
  step and gives no density.
* Data on levels of width w: -log of the probability of the datum's bin under N(m, s^2),

      log [Phi((x_0 + w/2 - m)/s) - Phi((x_0 - w/2 - m)/s)],

  where the first and the last bin are open (Ho et al. 2020, eq. 13). With a <= b and a + b <= 0, which a reflection
  makes true, it is log Phi(b) + log(1 - e^{log Phi(a) - log Phi(b)}), which holds far out in both tails.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from scoresde.errors.kinds import ConfigError, DomainError, DTypeError
from scoresde.errors.tensors import PART
from scoresde.errors.values import keep_integer, keep_number
from scoresde.ops import working_dtype
from scoresde.transforms.base import Transform, check_inside, keep_interval

__all__ = [
    "Decoder",
    "GaussianDecoder",
    "Levels",
    "LevelsDecoder",
    "bin_ends",
    "check_decoder",
    "event_sum",
    "find_levels",
    "gaussian_nats",
]

MOST_LEVELS = 256


@runtime_checkable
class Decoder(Protocol):
    """The law of the data given the model's data prediction at the state with the least noise."""

    @property
    def discrete(self) -> bool:
        """Whether the data are levels, so that the bound is one on minus the log of a probability."""
        ...

    @property
    def std(self) -> float | None:
        """Standard deviation in the model's coordinates; None for sigma/alpha of the state."""
        ...

    def check(self, y: Tensor, transform: Transform | None) -> None:
        """Raise where data y (B, *), in the model's coordinates, are none of this decoder's."""
        ...

    def nats(self, y: Tensor, mean: Tensor, std: float, transform: Transform | None) -> Tensor:
        """Return minus the log probability (density) of y given ``mean``, (B,), in float64."""
        ...


def check_decoder(decoder: object) -> Decoder:
    """Return the decoder, ``GaussianDecoder()`` for None; DTypeError where it is none."""
    if decoder is None:
        return GaussianDecoder()
    if not isinstance(decoder, Decoder):
        raise DTypeError(
            f"decoder must be GaussianDecoder(std) or LevelsDecoder(levels, low, high), got {type(decoder).__name__}"
        )
    return decoder


def event_sum(values: Tensor) -> Tensor:
    """Return the sum of values (B, *) over the coordinates of each event, (B,), in float64 where the device has it."""
    wide = values.to(working_dtype(values.device))
    return wide.reshape(len(values), math.prod(values.shape[1:])).sum(1)


def gaussian_nats(error: Tensor, log_std: Tensor | float) -> Tensor:
    """Return minus the log density of N(0, std^2) at ``error`` (B, *), (B,); log_std is a number or (B, *)."""
    wide = error.to(working_dtype(error.device))
    log_std = torch.as_tensor(log_std, dtype=wide.dtype, device=wide.device)
    return event_sum(0.5 * (wide * (-log_std).exp()).square() + log_std + 0.5 * math.log(2 * math.pi))


@dataclass(frozen=True)
class GaussianDecoder:
    """N(data prediction, std^2), for continuous data.

    Args:
        std: in the model's coordinates, positive; None for sigma/alpha at the state with the least noise.

    Raises:
        DTypeError, DomainError: a std that is no positive number.
    """

    std: float | None = None

    def __post_init__(self) -> None:
        if self.std is not None:
            keep_number(self, "std", 0.0, open_low=True)

    @property
    def discrete(self) -> bool:
        """False: a density."""
        return False

    def check(self, y: Tensor, transform: Transform | None) -> None:
        """Accept all data."""

    def nats(self, y: Tensor, mean: Tensor, std: float, transform: Transform | None) -> Tensor:
        """Return |y - mean|^2/(2 std^2) + D log(2 pi std^2)/2, (B,)."""
        return gaussian_nats(y - mean, math.log(std))


class Levels(Protocol):
    """Levels low + k width, k = 0 ... levels - 1, in the data's units."""

    @property
    def levels(self) -> int: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def bin_ends(
    levels: Levels, y: Tensor, transform: Transform | None, *, outer: float = 0.5
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the lower and the upper ends of the bins of data y (B, *), and where a bin is the first or the last.

    Args:
        levels: the levels.
        y: data in the model's coordinates; the ends are there too, in float64 where the device has it.
        transform: from data to the model's coordinates.
        outer: how far, in bins, the first and the last bin reach outwards.

    Raises:
        ConfigError: a transform that draws. DomainError: data off the levels, a transform that does not increase.
    """
    if transform is not None and transform.random:
        raise ConfigError(
            f"{transform!r} spreads the levels over their bins, and {levels!r} does the same: take the levels "
            "themselves without Dequantise, or GaussianDecoder with it"
        )
    width = (levels.high - levels.low) / (levels.levels - 1)
    work = y.to(working_dtype(y.device))
    x = work if transform is None else transform.inverse(work)
    place = (x - levels.low) / width
    rounding = torch.finfo(y.dtype).eps * max(abs(levels.low), abs(levels.high)) / width
    level = place.round()
    good = ((place - level).abs() <= max(0.01, 4 * rounding)) & (level >= 0) & (level < levels.levels)
    check_inside(good, x, f"on the {levels.levels} levels of {levels}")
    first, last = level == 0, level == levels.levels - 1
    lower = levels.low + width * (level - torch.where(first, outer, 0.5))
    upper = levels.low + width * (level + torch.where(last, outer, 0.5))
    if transform is not None:
        lower, upper = transform.forward(lower), transform.forward(upper)
    if not bool((lower < upper).all()):
        raise DomainError(
            f"{transform!r} does not increase from one end of a bin to the other; levels need a transform that acts on "
            "each coordinate by itself and increases"
        )
    return lower, upper, first, last


def find_levels(x: Tensor) -> LevelsDecoder | None:
    """Return the decoder of the levels on which data (B, *) lie, at most 256 and evenly spaced; None for any others.

    A look at some 130 000 of the values.
    """
    values = x.detach().reshape(-1)[:PART]
    found = torch.from_numpy(np.unique(values.double().cpu().numpy()))
    if not 2 <= len(found) <= MOST_LEVELS or len(values) < 4 * len(found):
        return None
    gaps = found.diff()
    # The values are rounded to their type.
    room = 8 * torch.finfo(x.dtype).eps * float(found.abs().max())
    step = float(gaps.min())
    places = (found - found[0]) / step
    if room > 0.1 * step or float((places - places.round()).abs().max()) * step > room + 1e-6 * step * len(found):
        return None
    count = round(float(places[-1])) + 1
    return LevelsDecoder(count, float(found[0]), float(found[-1])) if count <= MOST_LEVELS else None


@dataclass(frozen=True)
class LevelsDecoder:
    """The probability of the datum's bin under N(data prediction, std^2), for data on levels.

    The levels are low + k width, k = 0 ... levels - 1, width = (high - low)/(levels - 1), in the *data's* units. A
    model's transform carries the bins' ends to its coordinates, so that it must act on each coordinate by itself and
    increase there, and draw no noise (not ``Dequantise``).

    Args:
        levels: number of levels, at least 2.
        low: the lowest level.
        high: the highest level.
        std: in the model's coordinates, positive; None for sigma/alpha at the state with the least noise.

    Raises:
        DTypeError, DomainError: fewer than two levels, not finite numbers with low < high, a std that is not positive.

    Source: Ho et al. 2020, "Denoising diffusion probabilistic models", eq. 13.
    """

    levels: int
    low: float = -1.0
    high: float = 1.0
    std: float | None = None

    def __post_init__(self) -> None:
        keep_integer(self, "levels", 2)
        keep_interval(self)
        if self.std is not None:
            keep_number(self, "std", 0.0, open_low=True)

    @property
    def discrete(self) -> bool:
        """True: a probability."""
        return True

    @property
    def width(self) -> float:
        """The width of a bin, in the data's unit."""
        return (self.high - self.low) / (self.levels - 1)

    def check(self, y: Tensor, transform: Transform | None) -> None:
        """Raise ConfigError for a transform that draws, DomainError for data off the levels."""
        self._edges(y, transform)

    def _edges(self, y: Tensor, transform: Transform | None) -> tuple[Tensor, Tensor]:
        """Return the lower and upper ends of the bins of y, in the model's coordinates; infinite at the outer ones."""
        # There the level itself stands in until the transform has been applied.
        lower, upper, first, last = bin_ends(self, y, transform, outer=0.0)
        return lower.masked_fill(first, -math.inf), upper.masked_fill(last, math.inf)

    def nats(self, y: Tensor, mean: Tensor, std: float, transform: Transform | None) -> Tensor:
        """Return minus the log probability of the bins of y, summed over the event, (B,)."""
        lower, upper = ((end - mean.to(end)) / std for end in self._edges(y, transform))
        reflect = lower + upper > 0
        a, b = torch.where(reflect, -upper, lower), torch.where(reflect, -lower, upper)
        below, above = torch.special.log_ndtr(a), torch.special.log_ndtr(b)
        return -event_sum(above + (-torch.expm1(below - above)).log())
