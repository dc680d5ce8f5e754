"""Shift and scale."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoresde.errors.kinds import DTypeError, ShapeError, show
from scoresde.errors.tensors import check_floating
from scoresde.errors.values import check_number, read_number
from scoresde.ops import Array, Rows, accept_rows, gather_moments, parts, working_dtype
from scoresde.transforms.base import check_inside, check_interval, read_options

__all__ = ["Affine"]

FAR = 1e-3 / 2**-23  # a shift, in units of the scale


@dataclass(frozen=True)
class Affine:
    """y = (x - shift)/scale with x = shift + scale y; one number, or one for each leading coordinate of an event.

    Args:
        shift: in the data's unit; a float, or a tuple with one float for each channel.
        scale: in the data's unit, positive; as ``shift``.

    Raises:
        DTypeError: not numbers. DomainError: a number that is not finite, a scale that is not positive.
        ShapeError: an empty tuple, or two tuples of different lengths.
    """

    shift: float | tuple[float, ...] = 0.0
    scale: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        lengths = set()
        for name in ("shift", "scale"):
            given = getattr(self, name)
            many = isinstance(given, tuple)
            # Whole numbers stay as they are where a float holds them.
            numbers = tuple(
                v if type(v) is int and abs(v) <= 2**53 else read_number(v) for v in (given if many else (given,))
            )
            if None in numbers:
                raise DTypeError(f"{name} must be a number or a tuple of numbers, got {show(given)}")
            object.__setattr__(self, name, numbers if many else numbers[0])
            for number in numbers:
                # Of the size of the data, which no formula squares.
                low, most = (0.0, None)[name == "shift"], sys.float_info.max
                check_number(number, name, low, open_low=name == "scale", largest=most)
            lengths |= {len(numbers)} if many else set()
        if len(lengths) > 1 or 0 in lengths:
            raise ShapeError(
                f"shift and scale must have one number for each channel, got {sorted(lengths)} numbers; "
                "give tuples of one length, or one number for all channels"
            )

    @classmethod
    def standardise(cls, x: Array | Rows) -> Affine:
        """Measure mean and standard deviation of each leading coordinate (channel) of data (N, *) in float64."""
        rows = accept_rows(x, "data")
        if len(rows.shape) < 2 or len(rows) < 2:
            raise ShapeError(f"standardisation needs at least two samples of shape (C, *), got {tuple(rows.shape)}")

        def channels(part: Tensor) -> Tensor:
            return part.to("cpu", torch.float64).transpose(0, 1).reshape(rows.shape[1], -1)

        # Less its first value, so that a channel of one value has exactly no deviation.
        first = channels(rows[:1])[:, :1]
        unit = torch.ones_like(first)
        count, mean, scatter = gather_moments((channels(part) - first).T for part in parts(rows))
        if not bool(torch.isfinite(scatter).all()):
            # Values whose squares overflow.
            unit = torch.stack([channels(part).abs().amax(1) for part in parts(rows)]).amax(0)[:, None].clamp_min(1.0)
            count, mean, scatter = gather_moments((channels(part) / unit - first / unit).T for part in parts(rows))
        std = (scatter / (count - 1)).sqrt() * unit.squeeze(1)
        mean = (mean + first.squeeze(1) / unit.squeeze(1)) * unit.squeeze(1)
        return cls(tuple(mean.tolist()), tuple(torch.where(std > 0, std, torch.ones_like(std)).tolist()))

    @classmethod
    def from_range(cls, low: float, high: float) -> Affine:
        """Map [low, high], in the data's unit, to [-1, 1]: shift (low + high)/2, scale (high - low)/2.

        Raises:
            DTypeError, DomainError: not finite numbers with low < high.
        """
        low, high = check_interval(low, high)
        return cls(0.5 * low + 0.5 * high, 0.5 * high - 0.5 * low)

    def _numbers(self, value: float | tuple[float, ...], x: Tensor) -> Tensor:
        numbers = torch.tensor(value, dtype=torch.float64, device="cpu")
        if numbers.ndim and (x.ndim < 2 or x.shape[1] != len(numbers)):
            raise ShapeError(f"the transform serves {len(numbers)} channels, got data of shape {tuple(x.shape)}")
        return numbers.to(x).reshape(-1, *(1,) * (x.ndim - 2)) if numbers.ndim else numbers.to(x)

    @property
    def random(self) -> bool:
        """False: nothing is drawn."""
        return False

    @functools.cached_property
    def far(self) -> bool:
        """Whether the data lie so far from 0 that float32 would round them by a thousandth of their deviation."""
        shift, scale = (torch.tensor(value, dtype=torch.float64, device="cpu") for value in (self.shift, self.scale))
        known = torch.finfo(torch.float32)
        extreme = max(float(shift.abs().max()), float(scale.max())) > known.max or float(scale.min()) < known.tiny
        return float((shift.abs() / scale).max()) > FAR or extreme

    def _widen(self, x: Tensor) -> Tensor:
        """Return x in a type that holds the data and the numbers."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return wide.to(working_dtype(x.device)) if self.far and x.dtype == torch.float32 else wide

    def forward(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Map data (B, *) to the model's coordinates; DTypeError for integers, which would round the numbers.

        Data that are far from 0 are centred in float64, whatever their type.
        """
        wide = self._widen(check_floating(x, "data"))
        y = ((wide - self._numbers(self.shift, wide)) / self._numbers(self.scale, wide)).to(x.dtype)
        if self.far:
            where = f"where (x - shift)/scale is a number of {x.dtype}, for {self}"
            check_inside(torch.isfinite(y), x, where)
        return y

    def inverse(self, y: Tensor) -> Tensor:
        """Map the model's coordinates (B, *) to data, from float32 to float64 where the data are ``far`` from 0."""
        wide = self._widen(check_floating(y, "y"))
        data = self._numbers(self.shift, wide) + self._numbers(self.scale, wide) * wide
        return data.to(y.dtype) if wide.dtype == torch.float32 else data

    def log_abs_det(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Return -sum_i log scale_i over the D coordinates of an event, (B,), in nats; it does not depend on x."""
        check_floating(x, "data")
        wide = x.new_empty(x.shape[:2], dtype=working_dtype(x.device))
        scale, _ = self._numbers(self.scale, wide), self._numbers(self.shift, wide)  # each () or (C,)
        return (-scale.log().mean() * math.prod(x.shape[1:])).expand(x.shape[0])

    def to_dict(self) -> dict[str, object]:
        return {"kind": "Affine", "shift": self.shift, "scale": self.scale}

    @classmethod
    def from_dict(cls, config: Mapping[str, object]) -> Affine:
        return cls(**read_options(config, cls))
