"""Augmentations: random changes of the data that only training sees, and that nothing inverts.

``fit(augment=...)`` applies one to every batch before the transform. A model is then one of the changed data, and no
part of it is kept: samples come back as they are, and likelihoods are those of the data given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from scoresde.errors.kinds import ConfigError, ShapeError, read_integer
from scoresde.errors.names import check_choice
from scoresde.errors.tensors import check_dense
from scoresde.errors.values import check_instance, check_integer, check_sequence, check_sizes, keep_integer, keep_number
from scoresde.noise import integers, uniform

__all__ = ["Augmentation", "RandomCrop", "RandomFlip"]

Augmentation = Callable[[Tensor, Generator], Tensor]


def _check_data(x: object) -> Tensor:
    data = check_instance(x, Tensor, "x", "a tensor")
    check_dense(data, "x")
    return data


@dataclass(frozen=True)
class RandomFlip:
    """Each sample is mirrored, along each of some dimensions by a draw of its own.

    Args:
        dims: dimensions of the data (B, C, *) counted from the end: -1 mirrors left and right, -2 top and bottom.
        probability: of a mirror image, in [0, 1].

    Raises:
        DTypeError, DomainError, ConfigError: no negative dimensions, no probability.
    """

    dims: tuple[int, ...] = (-1,)
    probability: float = 0.5

    def __post_init__(self) -> None:
        keep_number(self, "probability", 0.0, 1.0)
        one = read_integer(self.dims)
        given = check_sequence(self.dims, "dims", "dimensions") if one is None else (one,)
        dims = tuple(check_integer(d, "dims", -8, -1) for d in given)
        if not dims or len(set(dims)) < len(dims):
            raise ConfigError(f"dims must be different and count from the end, as (-1,) or (-1, -2), got {self.dims}")
        object.__setattr__(self, "dims", dims)

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        """Return data (B, *) of the same shape; ShapeError where they have too few dimensions."""
        if _check_data(x).ndim + min(self.dims) < 1:
            raise ShapeError(f"RandomFlip along {self.dims} needs more dimensions than data of {tuple(x.shape)} have")
        for dim in self.dims:
            turned = (uniform((len(x),), generator) < self.probability).to(x.device)
            x = torch.where(turned.reshape(-1, *(1,) * (x.ndim - 1)), x.flip(dim), x)
        return x


@dataclass(frozen=True)
class RandomCrop:
    """Each sample is a part of the data of this size, at a place of its own, uniform over all places.

    Args:
        size: of the last dimensions of the data (B, C, *), one number for each; one alone serves the last dimension of
            series and the last two of images: give as many as there are.
        padding: places beyond both ends from which a part may begin; with the data's own size it shifts them.
        fill: what lies there, the mirror image ("reflect") or 0 ("zeros").

    Raises:
        DTypeError, DomainError, ConfigError: sizes that are not positive, another fill.
    """

    size: tuple[int, ...]
    padding: int = 0
    fill: Literal["reflect", "zeros"] = "reflect"

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", check_sizes(self.size, "size", 1))
        keep_integer(self, "padding", 0)
        check_choice("fill", self.fill, ("reflect", "zeros"))
        if not self.size:
            raise ConfigError("RandomCrop needs at least one size, got none; (32, 32) cuts images")

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        """Return data (B, C, *size); ShapeError where the data are smaller."""
        there = tuple(_check_data(x).shape[-len(self.size) :])
        # A mirror image has one place less than the data themselves.
        room = self.padding if self.fill == "zeros" else min(self.padding, *(n - 1 for n in there))
        if x.ndim < 2 + len(self.size) or any(n + 2 * room < size for n, size in zip(there, self.size, strict=True)):
            raise ShapeError(
                f"RandomCrop of {self.size} with padding {self.padding} does not fit data of shape {tuple(x.shape)}"
            )
        for dim, (n, size) in enumerate(zip(there, self.size, strict=True), start=-len(self.size)):
            first = integers(n + 2 * room - size + 1, (len(x),), generator).to(x.device) - room
            place = first[:, None] + torch.arange(size, device=x.device)  # (B, size)
            inside = (place >= 0) & (place < n)
            place = (n - 1) - ((n - 1) - place.abs()).abs() if self.fill == "reflect" else place.clamp(0, n - 1)
            shape = [len(x), *(1,) * (x.ndim - 1)]
            shape[dim] = size
            x = torch.take_along_dim(x, place.reshape(shape), dim)
            if self.fill == "zeros" and room:
                x = torch.where(inside.reshape(shape), x, torch.zeros((), dtype=x.dtype, device=x.device))
        return x
