r"""Orthogonal changes of basis: frequencies and scales. They keep lengths, so that noise N(0, 1) stays N(0, 1).

*Cosine.* The orthonormal discrete cosine transform (DCT-II) of each axis after the channels,
y_k = sqrt((2 - [k = 0])/n) sum_j cos(pi (2 j + 1) k/(2 n)) x_j, the modes of the heat equation with reflecting ends.

*Haar.* Each level replaces neighbours (a, b) along every axis after the channels by (a + b)/sqrt(2) in the first half
and (a - b)/sqrt(2) in the second; the next level does the same to what is in the first halves of all axes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Generator, Tensor

from scoresde.errors.kinds import ConfigError, ShapeError
from scoresde.errors.tensors import check_floating
from scoresde.errors.values import keep_integer
from scoresde.ops import working_dtype
from scoresde.transforms.base import read_options

__all__ = ["Cosine", "Haar", "Orthogonal", "ZeroVelocity"]


class Orthogonal:
    """What orthogonal transforms share; ``turn`` is each one's own."""

    @property
    def random(self) -> bool:
        """False: nothing is drawn."""
        return False

    def turn(self, x: Tensor, *, back: bool) -> Tensor:
        """Return coefficients of data (B, C, *), or data of coefficients where ``back``."""
        raise NotImplementedError

    def forward(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Map data (B, C, *) to coefficients of the same shape."""
        return self.turn(_check(x, "data"), back=False)

    def inverse(self, y: Tensor) -> Tensor:
        """Map coefficients (B, C, *) to data."""
        return self.turn(_check(y, "y"), back=True)

    def log_abs_det(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Return 0 for each of the data (B, C, *), (B,), in nats."""
        return _check(x, "data").new_zeros(x.shape[0], dtype=working_dtype(x.device))

    def within(self, event: tuple[int, ...], box: tuple[int, ...]) -> Orthogonal:
        """Return the transform of what a leading box of the coefficients of an event stands for."""
        if box != event:
            raise ConfigError(f"a box {box} of the coefficients {event} of {self} stands for no image; take drop=False")
        return self


def _check(x: Tensor, name: str) -> Tensor:
    if check_floating(x, name).ndim < 3:
        raise ShapeError(f"{name} must be (B, C, *) with at least one axis after the channels, got {tuple(x.shape)}")
    return x


@functools.lru_cache(maxsize=64)
def _cosines(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix of the transform of n numbers, (n, n)."""
    k = torch.arange(n, dtype=torch.float64, device="cpu")
    matrix = (math.pi * (2 * k + 1) * k[:, None] / (2 * n)).cos() * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix.to(device, dtype)


@dataclass(frozen=True)
class Cosine(Orthogonal):
    """The orthonormal cosine transform of every axis after the channels."""

    def turn(self, x: Tensor, *, back: bool) -> Tensor:
        """Multiply every axis after the channels by the matrix, or by its transpose."""
        wide = torch.promote_types(x.dtype, torch.float32)
        y = x.to(wide)
        with torch.autocast(x.device.type, enabled=False):
            for axis in range(2, x.ndim):
                matrix = _cosines(x.shape[axis], wide, x.device)
                y = (y.movedim(axis, -1) @ (matrix if back else matrix.T)).movedim(-1, axis)
        return y.to(x.dtype).contiguous()

    def to_dict(self) -> dict[str, object]:
        return {"kind": "Cosine"}

    @classmethod
    def from_dict(cls, config: Mapping[str, object]) -> Self:
        return cls(**read_options(config, cls))


@dataclass(frozen=True)
class Haar(Orthogonal):
    """The Haar wavelets of every axis after the channels.

    Args:
        levels: how often the coarse part is halved.

    Raises:
        DTypeError, DomainError: no positive integer. From a call, ShapeError: sizes that are no multiples of 2^levels.
    """

    levels: int = 1

    def __post_init__(self) -> None:
        keep_integer(self, "levels", 1, 30)

    def turn(self, x: Tensor, *, back: bool) -> Tensor:
        """Halve the coarse part level by level, or join it again."""
        sizes = x.shape[2:]
        if any(n % 2**self.levels for n in sizes):
            raise ShapeError(
                f"Haar(levels={self.levels}) needs sizes that are multiples of {2**self.levels} after the channels, "
                f"got {tuple(x.shape)}"
            )
        y = x.contiguous().clone()
        order = range(self.levels)
        for level in reversed(order) if back else order:
            inner = (slice(None), slice(None), *(slice(0, n // 2**level) for n in sizes))
            part = y[inner]
            for axis in range(2, x.ndim):
                part = _join(part, axis) if back else _halve(part, axis)
            y[inner] = part
        return y

    def within(self, event: tuple[int, ...], box: tuple[int, ...]) -> Orthogonal:
        """Return Haar of the levels that are inside of the box."""
        for gone in range(self.levels + 1):
            if box == (event[0], *(n // 2**gone for n in event[1:])):
                return self if not gone else Haar(self.levels - gone) if gone < self.levels else Same()
        return super().within(event, box)

    def to_dict(self) -> dict[str, object]:
        return {"kind": "Haar", "levels": self.levels}

    @classmethod
    def from_dict(cls, config: Mapping[str, object]) -> Self:
        return cls(**read_options(config, cls))


def _halve(x: Tensor, axis: int) -> Tensor:
    before = (slice(None),) * axis
    a, b = x[(*before, slice(0, None, 2))], x[(*before, slice(1, None, 2))]
    return torch.cat([a + b, a - b], axis) * math.sqrt(0.5)


def _join(y: Tensor, axis: int) -> Tensor:
    low, high = y.chunk(2, axis)
    return torch.stack([low + high, low - high], axis + 1).flatten(axis, axis + 1) * math.sqrt(0.5)


@dataclass(frozen=True)
class Same(Orthogonal):
    """The identity: the coarsest image is its own coefficients."""

    def turn(self, x: Tensor, *, back: bool) -> Tensor:
        """Return x."""
        return x


@dataclass(frozen=True)
class ZeroVelocity:
    """Data x (B, C, *) as the position in the state (x, 0) of (B, 2 C, *), the velocity's clean value being 0.

    It is the transform of a model under ``MatrixSDE.langevin()``; the inverse takes the position.
    """

    @property
    def random(self) -> bool:
        """False: nothing is drawn."""
        return False

    def forward(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Return (x, 0)."""
        if check_floating(x, "data").ndim < 2:
            raise ShapeError(f"data must be (B, C, *), got {tuple(x.shape)}")
        return torch.cat([x, torch.zeros_like(x)], 1)

    def inverse(self, y: Tensor) -> Tensor:
        """Return the first half of y (B, 2 C, *)."""
        if check_floating(y, "y").ndim < 2 or y.shape[1] % 2:
            raise ShapeError(f"y must be (B, 2 C, *), position and velocity, got {tuple(y.shape)}")
        return y[:, : y.shape[1] // 2]

    def log_abs_det(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Raise ConfigError: the state has more coordinates than the data."""
        raise ConfigError("a state with velocities has more coordinates than the data, which have no density from its")

    def to_dict(self) -> dict[str, object]:
        return {"kind": "ZeroVelocity"}

    @classmethod
    def from_dict(cls, config: Mapping[str, object]) -> Self:
        return cls(**read_options(config, cls))
