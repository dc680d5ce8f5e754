r"""The levels of a U-Net, one inside another, whatever the blocks are made of.

A level applies its blocks, hands a grid half as fine to the next level, enlarges what comes back and applies as many
blocks again, which see beside their input what the first ones gave, the last one first. The coarsest level has two
blocks around a self-attention instead of a next level. ``Parts`` makes the pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scoresde.nn.blocks import CONVOLUTIONS, Attention, Block, enlarge

__all__ = ["Level", "Parts"]


@dataclass(frozen=True)
class Parts:
    """The pieces of a U-Net of group norms and residual blocks; see ``nn.blocks``.

    Args:
        dims: number of spatial dimensions.
        heads: of the attention.
        residual: steps to a coarser grid and back are blocks; else a convolution of stride 2, and the nearest place.
        rescale: sums of two parts are divided by sqrt(2).
        dropout: of the blocks.
    """

    dims: int
    heads: int
    residual: bool = False
    rescale: bool = False
    dropout: float = 0.0

    def before(self, inputs: int, outputs: int) -> nn.Module:
        """Make a block of the way down, which takes (x, terms)."""
        return self.after(inputs, outputs)

    def after(self, inputs: int, outputs: int) -> nn.Module:
        """Make a block of the middle and of the way up."""
        return Block(self.dims, inputs, outputs, rescale=self.rescale, dropout=self.dropout)

    def attention(self, width: int) -> nn.Module:
        """Make an attention."""
        return Attention(width, self.heads, rescale=self.rescale)

    def coarser(self, width: int, level: Level, back: int) -> nn.Module:
        """Make what goes from ``width`` channels to the coarser level and returns with the ``back`` channels of it."""
        if self.residual:
            return _ResidualCoarser(self, width, level, back)
        return _Coarser(CONVOLUTIONS[self.dims](width, width, 3, stride=2, padding=1), level)

    def join(self, x: Tensor, kept: Tensor) -> Tensor:
        """Set what was kept on the way down beside x."""
        return torch.cat([x, kept], dim=1)


class _Middle(nn.Module):
    """The middle of the coarsest grid, where attention over all positions is cheap: (B, C, *) -> (B, C, *)."""

    def __init__(self, parts: Parts, width: int) -> None:
        super().__init__()
        self.first = parts.after(width, width)
        self.attention = parts.attention(width)
        self.second = parts.after(width, width)

    def forward(self, x: Tensor, terms: Iterator[Tensor]) -> Tensor:
        out: Tensor = self.second(self.attention(self.first(x, next(terms))), next(terms))
        return out


class _Coarser(nn.Module):
    """All levels on a grid half as fine, back on the grid of x: (B, C, *) -> (B, widths[0], *)."""

    def __init__(self, down: nn.Module, level: Level) -> None:
        super().__init__()
        self.down = down
        self.level = level

    def forward(self, x: Tensor, terms: Iterator[Tensor]) -> Tensor:
        return enlarge(self.level(self.down(x), terms), x.shape[2:])


class _ResidualCoarser(nn.Module):
    """The same, where a residual block makes each of the two steps."""

    def __init__(self, parts: Parts, width: int, level: Level, back: int) -> None:
        super().__init__()
        self.down = parts.before(width, width)
        self.level = level
        self.up = parts.after(back, back)

    def forward(self, x: Tensor, terms: Iterator[Tensor]) -> Tensor:
        h = self.level(self.down(x, next(terms), half=True), terms)
        out: Tensor = self.up(h, next(terms), sizes=x.shape[2:])
        return out


class Level(nn.Module):
    """One level of the U-Net with all coarser ones inside it: (B, inputs, *) -> (B, widths[0], *).

    Args:
        parts: what makes the pieces.
        inputs: channels that come in.
        widths: channels of this level and of the coarser ones.
        blocks: number of blocks before the coarser levels, and after.
        attention: for each of these levels, whether a self-attention follows every block.
    """

    def __init__(
        self, parts: Parts, inputs: int, widths: Sequence[int], blocks: int, attention: Sequence[bool]
    ) -> None:
        super().__init__()
        self.parts = parts
        width, coarser = widths[0], widths[1:]
        into = [inputs] + [width] * (blocks - 1)
        back = [coarser[0] if coarser else width] + [width] * (blocks - 1)

        def attend() -> nn.Module:
            return parts.attention(width) if attention[0] else nn.Identity()

        # In the order of the calls, so that the modules' order is that of the terms.
        self.before = nn.ModuleList([parts.before(n, width) for n in into])
        self.inner: nn.Module = (
            parts.coarser(width, Level(parts, width, coarser, blocks, attention[1:]), coarser[0])
            if coarser
            else _Middle(parts, width)
        )
        self.after = nn.ModuleList([parts.after(n + width, width) for n in back])
        self.attend_before = nn.ModuleList([attend() for _ in into])
        self.attend_after = nn.ModuleList([attend() for _ in back])

    def forward(self, x: Tensor, terms: Iterator[Tensor]) -> Tensor:
        """Apply the level; ``terms`` gives what each of its blocks is told (B, its ``terms``), one after another."""
        kept: list[Tensor] = []
        for block, attend in zip(self.before, self.attend_before, strict=True):
            x = attend(block(x, next(terms)))
            kept.append(x)
        x = self.inner(x, terms)
        for block, attend in zip(self.after, self.attend_after, strict=True):
            x = attend(block(self.parts.join(x, kept.pop()), next(terms)))
        return x
