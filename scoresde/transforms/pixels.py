"""For values on a lattice and in an interval, as pixels are: dequantisation and the logit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Generator, Tensor

from scoresde.errors.kinds import ConfigError, DTypeError
from scoresde.errors.tensors import check_floating
from scoresde.errors.values import keep_integer, keep_number
from scoresde.noise import uniform
from scoresde.ops import working_dtype
from scoresde.transforms.base import check_holds, check_inside, keep_interval, read_options

__all__ = ["Dequantise", "Logit"]


@dataclass(frozen=True)
class Dequantise:
    """y = x + width (U - 1/2), U uniform on [0, 1): data on a lattice, spread over their bins.

    The lattice is low + k width, k = 0 ... levels - 1, width = (high - low)/(levels - 1). ``inverse`` returns the
    nearest level; inverse(forward(x)) is x for every draw. (Noise within four rounding errors of a bin's end is moved
    to there; rounding would carry some of it over to the next bin.)

    Args:
        levels: number of levels, at least 2.
        low: the lowest level, in the data's unit.
        high: the highest level.

    Raises:
        DTypeError, DomainError: fewer than two levels, not finite numbers with low < high.
    """

    levels: int
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        keep_integer(self, "levels", 2)
        keep_interval(self)

    @property
    def width(self) -> float:
        """The width of a bin, in the data's unit."""
        return (self.high - self.low) / (self.levels - 1)

    @property
    def range(self) -> tuple[float, float]:
        """The interval that ``forward`` fills: half a bin beyond the lattice on both sides."""
        return self.low - 0.5 * self.width, self.high + 0.5 * self.width

    def _level(self, x: Tensor) -> Tensor:
        """Return the nearest level's number k in the working dtype."""
        place = (x.to(working_dtype(x.device)) - self.low) / self.width
        return place.round().clamp(0, self.levels - 1)

    @property
    def random(self) -> bool:
        """True: ``forward`` draws."""
        return True

    def forward(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Add noise of one bin to data (B, *) on the lattice.

        Raises:
            ConfigError: no generator. DTypeError: integers, or a type too coarse for the bins.
            DomainError: data off the lattice, with the first place.
        """
        check_floating(x, "data")
        if generator is None:
            raise ConfigError('Dequantise draws noise: pass generator=, e.g. scoresde.noise.stream(seed, "dequantise")')
        wide = x.to(working_dtype(x.device))
        check_holds(self, x.dtype)
        # In units of a bin: the rounding error of the largest value in x's type.
        rounding = torch.finfo(x.dtype).eps * max(abs(self.low), abs(self.high)) / self.width
        if rounding > 1 / 16:
            raise DTypeError(f"data of {x.dtype} cannot tell places in a bin of width {self.width:g}; use x.float()")
        place = (wide - self.low) / self.width
        level = self._level(x)
        check_inside((place - level).abs() <= max(0.01, 2 * rounding), x, f"on the {self.levels} levels of {self}")
        draw = uniform(x.shape, generator).to(wide) - 0.5
        noise = draw.clamp(4 * rounding - 0.5, 0.5 - 4 * rounding)
        # x plus a constant: the level itself, and still of slope 1 in x.
        return (wide + (self.low + self.width * (level + noise) - wide).detach()).to(x.dtype)

    def inverse(self, y: Tensor) -> Tensor:
        """Return the nearest level; its derivative is 0."""
        return (self.low + self.width * self._level(check_floating(y, "y"))).to(y.dtype)

    def log_abs_det(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Return zeros (B,): noise shifts a value and stretches nothing. See ``width`` for the probability of a bin."""
        return check_floating(x, "data").new_zeros(x.shape[0], dtype=working_dtype(x.device))

    def to_dict(self) -> dict[str, object]:
        return {"kind": "Dequantise", **asdict(self)}

    @classmethod
    def from_dict(cls, config: Mapping[str, object]) -> Dequantise:
        return cls(**read_options(config, cls))


@dataclass(frozen=True)
class Logit:
    """y = log u - log(1 - u), u = epsilon + (1 - 2 epsilon) (x - low)/(high - low): an interval becomes the real line.

    Samples come back inside [low, high]: ``inverse`` is low + (high - low) (sigmoid(y) - epsilon)/(1 - 2 epsilon),
    clamped. Computed in float32 at least. After ``Dequantise`` use its ``range``, ``Logit(1e-6, *dequantise.range)``.

    Args:
        epsilon: margin that keeps y finite at the ends, in [0, 1/2); at 0 data at an end are refused.
        low: the lower end of the data, in their unit.
        high: the upper end.

    Raises:
        DTypeError, DomainError: epsilon out of range, not finite numbers with low < high.

    Source: Dinh, Sohl-Dickstein and Bengio 2017, "Density estimation using Real NVP", arXiv:1605.08803; with equal
    margins Papamakarios, Pavlakou and Murray 2017, "Masked autoregressive flow for density estimation",
    arXiv:1705.07057.
    """

    epsilon: float = 1e-6
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        keep_number(self, "epsilon", 0.0, 0.5, open_high=True)
        keep_interval(self)

    def _tails(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return log u and log(1 - u), each from its own end, so that neither loses digits."""
        inside = (x >= self.low) & (x <= self.high) if self.epsilon else (x > self.low) & (x < self.high)
        check_holds(self, x.dtype)
        ends = "[]" if self.epsilon else "()"
        check_inside(inside, x, f"in {ends[0]}{self.low:g}, {self.high:g}{ends[1]}, the range of {self}")
        # Contiguous, since a vectorised logarithm may differ in its last bit with the place in memory.
        wide, width = x.to(dtype).contiguous(), self.high - self.low
        # Clamped, since x is compared in its own type and subtracted in a wider one.
        below, above = ((part / width).clamp(0.0, 1.0) for part in (wide - self.low, self.high - wide))
        size = 1.0 - 2.0 * self.epsilon
        return (self.epsilon + size * below).log(), (self.epsilon + size * above).log()

    @property
    def random(self) -> bool:
        """False: nothing is drawn."""
        return False

    def forward(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Map data (B, *) in [low, high] to the real line; DomainError outside, with the first place."""
        check_floating(x, "data")
        lower, upper = self._tails(x, torch.promote_types(x.dtype, torch.float32))
        return (lower - upper).to(x.dtype)

    def inverse(self, y: Tensor) -> Tensor:
        """Map the real line to [low, high]."""
        wide = check_floating(y, "y").to(torch.promote_types(y.dtype, torch.float32)).contiguous()
        check_holds(self, y.dtype)
        share = ((wide.sigmoid() - self.epsilon) / (1.0 - 2.0 * self.epsilon)).clamp(0.0, 1.0)
        return (self.low + (self.high - self.low) * share).to(y.dtype)

    def log_abs_det(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Return sum_i log[(1 - 2 epsilon)/((high - low) u_i (1 - u_i))], (B,), in nats."""
        check_floating(x, "data")
        lower, upper = self._tails(x, working_dtype(x.device))
        slope = math.log((1.0 - 2.0 * self.epsilon) / (self.high - self.low))
        return (slope - lower - upper).reshape(x.shape[0], math.prod(x.shape[1:])).sum(1)

    def to_dict(self) -> dict[str, object]:
        return {"kind": "Logit", **asdict(self)}

    @classmethod
    def from_dict(cls, config: Mapping[str, object]) -> Logit:
        return cls(**read_options(config, cls))
