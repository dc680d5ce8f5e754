"""What networks of signals, images and volumes share: x is (B, channels, *sizes) with ``dims`` sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from scoresde.errors.kinds import ConfigError, ShapeError
from scoresde.errors.values import check_integer, check_sizes
from scoresde.nn.conditions import ConditionalNetwork

__all__ = ["GridNetwork", "LevelNetwork"]


class GridNetwork(ConditionalNetwork):
    """A network of values on a grid, of any sizes."""

    MOST_DIMS = 3
    channels: int
    dims: int
    out_channels: int

    def read_grid(self, channels: int, dims: int, out_channels: int | None) -> None:
        """Take the options of the constructor that say what x is; DTypeError, DomainError for what cannot be."""
        self.channels = check_integer(channels, "channels", 1)
        self.dims = check_integer(dims, "dims", 1, self.MOST_DIMS)
        self.out_channels = (
            self.channels if out_channels is None else check_integer(out_channels, "out_channels", self.channels)
        )

    def check_grid(self, x: Tensor) -> None:
        """Raise ShapeError unless x is (B, channels, *sizes), each size at least 1."""
        if x.ndim == self.dims + 2 and x.shape[1] == self.channels and all(x.shape[2:]):
            return
        sizes = ", ".join(["B", str(self.channels), *"DHW"[3 - self.dims :]])
        fits = 3 <= x.ndim <= self.MOST_DIMS + 2 and all(x.shape[1:])
        cure = f"{type(self).__name__}({x.shape[1]}, dims={x.ndim - 2}) takes this x" if fits else "reshape x"
        raise ShapeError(f"x must have shape ({sizes}), got {tuple(x.shape)}; {cure}")


class LevelNetwork(GridNetwork):
    """A network of several grids, each half as fine as the one before."""

    width: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    heads: int

    def read_levels(
        self, width: int, multipliers: Sequence[int], blocks: int, attention: Sequence[int], heads: int
    ) -> tuple[list[int], list[bool]]:
        """Take the options of the constructor; return the channels of each level and whether it has attention.

        Raises:
            DTypeError, DomainError: a size that is not a positive integer, or a level that does not exist.
            ConfigError: no level at all, or heads that do not divide the channels.
        """
        self.width = check_integer(width, "width", 1)
        self.multipliers = check_sizes(multipliers, "multipliers", 1)
        if not self.multipliers:
            raise ConfigError("multipliers must name at least one level, got none; (1, 2) makes two levels")
        self.blocks = check_integer(blocks, "blocks", 1)
        last = len(self.multipliers) - 1
        levels = check_sizes(attention, "attention")
        self.attention = tuple(sorted({check_integer(a, "attention", 0, last) for a in levels}))
        self.heads = check_integer(heads, "heads", 1)
        widths = [self.width * m for m in self.multipliers]
        for level in {*self.attention, last}:
            if widths[level] % self.heads:
                raise ConfigError(
                    f"heads={self.heads} must divide the {widths[level]} channels of level {level}; "
                    f"choose heads={math.gcd(self.heads, widths[level])} or another width"
                )
        return widths, [level in self.attention for level in range(last + 1)]
