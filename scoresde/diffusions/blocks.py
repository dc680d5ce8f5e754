r"""Little linear maps, and how they act on events.

A linear map of a linear SDE is a stack of G matrices of K x K numbers, (..., G, K, K). An event's first axis is cut
into K *parts* of equal size, with N coordinates each; coordinate n of every part belongs to the *group* index[n]:

    (W x)_k[n] = sum_j W[index[n], k, j] x_j[n].

K = 1 is one number for each group of coordinates; G = 1 is one matrix for all, K = D a full matrix on vectors and K = 2
position and velocity. Products, inverses and roots of maps are those of their matrices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scoresde.errors.kinds import ShapeError

__all__ = ["Block", "Blocks", "invert", "root", "turned"]


def turned(maps: Tensor) -> Tensor:
    """Return the transposes of maps (..., K, K)."""
    return maps.transpose(-1, -2)


def invert(maps: Tensor) -> Tensor:
    """Return the inverses of maps (..., K, K); infinite where a 1 x 1 map is 0."""
    if maps.shape[-1] == 1:
        return 1 / maps
    inverse: Tensor = torch.linalg.inv(maps)
    return inverse


def root(covariance: Tensor) -> Tensor:
    """Return a symmetric root of covariances (..., K, K), of which rounding may have made some a little negative."""
    if covariance.shape[-1] == 1:
        return covariance.clamp_min(0.0).sqrt()
    values, vectors = torch.linalg.eigh(0.5 * (covariance + turned(covariance)))
    found: Tensor = (vectors * values.clamp_min(0.0).sqrt()[..., None, :]) @ turned(vectors)
    return found


@dataclass(frozen=True, eq=False)
class Blocks:
    """How maps act on events; the module's docstring has the formula.

    Args:
        parts: K.
        index: the group of each coordinate, integers of the event's shape, with K = 1; None for one group, and events
            of any shape whose first size is a multiple of K.
    """

    parts: int
    index: Tensor | None = None

    @property
    def groups(self) -> int:
        """G."""
        return 1 if self.index is None else int(self.index.max()) + 1

    @property
    def event(self) -> tuple[int, ...] | None:
        """The shape of an event; None where it is free."""
        return None if self.index is None else tuple(self.index.shape)

    def shares(self) -> Tensor:
        """Return the share of the coordinates that is in each group, (G,)."""
        if self.index is None:
            return torch.ones(1, dtype=torch.float64, device="cpu")
        return torch.bincount(self.index.reshape(-1), minlength=self.groups).double() / self.index.numel()

    def check(self, event: Sequence[int], name: str = "x") -> None:
        """Raise ShapeError unless maps act on events of this shape."""
        if self.event is not None and tuple(event) != self.event:
            got = ", ".join(["B", *map(str, event)])
            raise ShapeError(f"{name} must be (B, *) with the event {self.event} of the SDE's groups, got ({got})")
        if self.index is None and (not event or event[0] % self.parts):
            raise ShapeError(
                f"{name} must be (B, C, *) with C a multiple of {self.parts}, the size of the SDE's matrix, got "
                f"(B, {', '.join(map(str, event))})"
            )

    def spread(self, maps: Tensor) -> Tensor:
        """Return 1 x 1 maps (*, G, 1, 1) as factors of the coordinates, (*, *event), or (*) where there is one group.

        Only K = 1 has such factors.
        """
        numbers = maps[..., 0, 0]
        if self.index is None:
            return numbers[..., 0]
        return numbers[..., self.index.to(numbers.device)]

    def apply(self, maps: Tensor, x: Tensor) -> Tensor:
        """Return W x for x (B, *) and maps (G, K, K), or (B, G, K, K) for each sample's own, of x's type and device."""
        if self.parts == 1:
            factors = self.spread(maps)
            if self.index is None and factors.ndim:
                factors = factors.reshape(-1, *(1,) * (x.ndim - 1))
            return x * factors
        # Autocast is for networks.
        with torch.autocast(x.device.type, enabled=False):
            product: Tensor = maps[..., 0, :, :] @ x.reshape(len(x), self.parts, -1)
        return product.reshape(x.shape)

    def dense(self, maps: Tensor, event: Sequence[int]) -> Tensor:
        """Return maps (*, G, K, K) as matrices (*, D, D) on flat events of this shape."""
        self.check(event)
        size = math.prod(event)
        if self.parts == 1:
            factors = self.spread(maps)
            factors = factors[..., None].expand(*factors.shape, size) if self.index is None else factors
            return torch.diag_embed(factors.reshape(*maps.shape[:-3], size))
        one = torch.eye(size // self.parts, dtype=maps.dtype, device=maps.device)
        return torch.kron(maps[..., 0, :, :].contiguous(), one)


@dataclass(frozen=True, eq=False)
class Block:
    """A map as the weight of a sum: it is multiplied and added like a number, and applied to a state.

    Products are in the order of maps, (a * b) x = a (b x), and a number stands for its multiple of the identity.

    Args:
        blocks: how it acts.
        maps: (G, K, K), or (B, G, K, K) for each sample's own, in float64.
    """

    blocks: Blocks
    maps: Tensor
    _cast: dict[tuple[torch.dtype, torch.device], Tensor] = field(default_factory=dict, init=False, repr=False)

    def __mul__(self, other: float | Block) -> float | Block:
        if not isinstance(other, Block):
            return Block(self.blocks, self.maps * other) if other else 0.0
        return Block(self.blocks, self.maps @ other.maps)

    def __rmul__(self, other: float) -> float | Block:
        return self * other

    def __add__(self, other: float | Block) -> Block:
        if isinstance(other, Block):
            return Block(self.blocks, self.maps + other.maps)
        if not other:
            return self
        one = torch.eye(self.blocks.parts, dtype=self.maps.dtype, device=self.maps.device)
        return Block(self.blocks, self.maps + other * one)

    def __radd__(self, other: float) -> Block:
        return self + other

    def __format__(self, how: str) -> str:
        """Write one number, the range of the groups' numbers, or the size of a matrix."""
        k = self.blocks.parts
        low, high = format(float(self.maps.min()), how), format(float(self.maps.max()), how)
        return f"[{k} x {k}]" if k > 1 else low if low == high else f"{low}..{high}"

    def _like(self, x: Tensor) -> Tensor:
        """Return what multiplies x, moved there once: factors of the coordinates, or the maps."""
        key = x.dtype, x.device
        if key not in self._cast:
            factors = self.blocks.spread(self.maps) if self.blocks.parts == 1 else self.maps
            if self.blocks.parts == 1 and self.blocks.index is None:
                factors = factors.reshape(*factors.shape, *(1,) * (x.ndim - 1))
            self._cast[key] = factors.to(x)
        return self._cast[key]

    def times(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return W x, in ``out`` where that is given."""
        if self.blocks.parts == 1:
            return torch.mul(x, self._like(x), out=out)
        product = self.blocks.apply(self._like(x), x)
        return product if out is None else out.copy_(product)

    def add_to(self, total: Tensor, x: Tensor) -> Tensor:
        """Add W x to ``total`` in place."""
        if self.blocks.parts == 1:
            return total.addcmul_(x, self._like(x))
        return total.add_(self.blocks.apply(self._like(x), x))
