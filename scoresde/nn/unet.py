r"""A U-Net for signals, images and volumes.

A level applies its blocks, hands a grid half as fine to the next level, enlarges what comes back and applies as many
blocks again, which see beside their input what the first ones gave, the last one first (Ronneberger et al. 2015,
arXiv:1505.04597; Ho et al. 2020, arXiv:2006.11239, without their skip connections from the resampling layers). The
coarsest level has two blocks around a self-attention (Vaswani et al. 2017, arXiv:1706.03762) instead of a next level.
With the conditioning vector e(c_noise, conditions) a block is

    h = conv(silu(norm x)),    block(x) = P x + conv(silu((1 + s(e)) norm h + b(e))),

norm a group norm, P the identity or, where the width changes, a 1x1 convolution, (s, b) linear in e. The output is
c(e) x + conv(silu(norm h)), where the learned number c keeps the part linear in x from the bounds of the norm.

Sizes need not be powers of two: a step down halves them rounding up, a step up goes to the size it came from. One
mechanism serves one, two and three dimensions: only the convolution's class differs. Second convolutions, attention
outputs, the last convolution and c start at 0. There is no dropout: its draws would come from the global generator.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from scoresde.errors import ConfigError, ShapeError, check_integer, check_sizes
from scoresde.nn.conditions import ConditionalNetwork, Conditioning, Counts
from scoresde.nn.embeddings import add_linear, initialise
from scoresde.noise import check_seed

__all__ = ["UNet"]

CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}


def _group_norm(channels: int) -> nn.GroupNorm:
    # Up to eight groups of at least four channels, as far as they divide the channels.
    return nn.GroupNorm(math.gcd(channels, min(8, max(1, channels // 4))), channels)


class _Block(nn.Module):
    """A residual block (B, inputs, *) -> (B, outputs, *), scaled and shifted by two vectors (B, outputs)."""

    def __init__(self, dims: int, inputs: int, outputs: int) -> None:
        super().__init__()
        conv = CONVOLUTIONS[dims]
        self.ones = (1,) * dims
        self.norm = _group_norm(inputs)
        self.first = conv(inputs, outputs, 3, padding=1)
        self.modulated_norm = _group_norm(outputs)
        self.second = conv(outputs, outputs, 3, padding=1)
        self.skip = nn.Identity() if inputs == outputs else conv(inputs, outputs, 1)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        scale, shift = modulation.reshape(*modulation.shape, *self.ones).chunk(2, dim=1)
        h = self.first(functional.silu(self.norm(x)))
        h = torch.addcmul(shift, self.modulated_norm(h), 1 + scale)
        out: Tensor = self.skip(x) + self.second(functional.silu(h))
        return out


class _Attention(nn.Module):
    """Self-attention over the positions of (B, C, *), added to its input."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _group_norm(channels)
        self.project = nn.Linear(channels, 3 * channels)
        self.output = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, N, C)
        heads = self.project(tokens).unflatten(2, (3, self.heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (B, heads, N, C/heads)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, N, C)
        out: Tensor = self.output(mixed)
        return x + out.transpose(1, 2).reshape(x.shape)


class _Middle(nn.Module):
    """The middle of the coarsest grid, where attention over all positions is cheap: (B, C, *) -> (B, C, *)."""

    def __init__(self, dims: int, width: int, heads: int) -> None:
        super().__init__()
        self.first = _Block(dims, width, width)
        self.attention = _Attention(width, heads)
        self.second = _Block(dims, width, width)

    def forward(self, x: Tensor, terms: Iterator[Tensor]) -> Tensor:
        out: Tensor = self.second(self.attention(self.first(x, next(terms))), next(terms))
        return out


class _Coarser(nn.Module):
    """All levels on a grid half as fine, back on the grid of x: (B, C, *) -> (B, widths[0], *)."""

    def __init__(
        self, dims: int, inputs: int, widths: Sequence[int], blocks: int, attention: Sequence[bool], heads: int
    ) -> None:
        super().__init__()
        self.down = CONVOLUTIONS[dims](inputs, inputs, 3, stride=2, padding=1)
        self.level = _Level(dims, inputs, widths, blocks, attention, heads)

    def forward(self, x: Tensor, terms: Iterator[Tensor]) -> Tensor:
        return functional.interpolate(self.level(self.down(x), terms), size=x.shape[2:], mode="nearest")


class _Level(nn.Module):
    """One level of the U-Net with all coarser ones inside it: (B, inputs, *) -> (B, widths[0], *).

    Args:
        dims: number of spatial dimensions.
        inputs: channels that come in.
        widths: channels of this level and of the coarser ones.
        blocks: number of blocks before the coarser levels, and after.
        attention: for each of these levels, whether a self-attention follows every block.
        heads: of the attention.
    """

    def __init__(
        self, dims: int, inputs: int, widths: Sequence[int], blocks: int, attention: Sequence[bool], heads: int
    ) -> None:
        super().__init__()
        width, coarser = widths[0], widths[1:]
        into = [inputs] + [width] * (blocks - 1)
        back = [coarser[0] if coarser else width] + [width] * (blocks - 1)

        def attend() -> nn.Module:
            return _Attention(width, heads) if attention[0] else nn.Identity()

        # In the order of the calls, so that the modules' order is that of the terms.
        self.before = nn.ModuleList([_Block(dims, n, width) for n in into])
        self.inner: nn.Module = (
            _Coarser(dims, width, coarser, blocks, attention[1:], heads) if coarser else _Middle(dims, width, heads)
        )
        self.after = nn.ModuleList([_Block(dims, n + width, width) for n in back])
        self.attend_before = nn.ModuleList([attend() for _ in into])
        self.attend_after = nn.ModuleList([attend() for _ in back])

    def forward(self, x: Tensor, terms: Iterator[Tensor]) -> Tensor:
        """Apply the level; ``terms`` gives the scales and shifts (B, 2 C) of its blocks, one after another."""
        kept: list[Tensor] = []
        for block, attend in zip(self.before, self.attend_before, strict=True):
            x = attend(block(x, next(terms)))
            kept.append(x)
        x = self.inner(x, terms)
        for block, attend in zip(self.after, self.attend_after, strict=True):
            x = attend(block(torch.cat([x, kept.pop()], dim=1), next(terms)))
        return x


class UNet(ConditionalNetwork):
    """A U-Net: net(x, c_noise, label=None, **conditions) -> a tensor of x's dtype and shape.

    Args:
        channels: C of x, which has shape (B, C, L), (B, C, H, W) or (B, C, D, H, W).
        dims: number of spatial dimensions, 1, 2 or 3.
        width: channels of the finest level.
        multipliers: for each level, from fine to coarse, its channels over ``width``.
        blocks: residual blocks of a level on the way down, and as many on the way up.
        attention: the levels, 0 the finest, with a self-attention after every block. Its memory grows with the square
            of the number of positions; the middle of the coarsest level always has one.
        heads: attention heads; must divide the channels of the levels with attention and of the coarsest one.
        classes: number of class labels, or name -> number; None for a network without.
        context_features: length of a vector of conditions, or name -> length.
        concat_channels: channels beside those of x, or name -> channels; see ``nn.conditions``.
        out_channels: channels of the output, at least ``channels``, which they are by default; twice as many for a
            learned variance. The part c(e) x belongs to the first ``channels`` of them.
        seed: of the first values of the weights; the global generator is not used.

    Raises:
        DTypeError, DomainError: a size that is not a positive integer, or a level that does not exist.
        ConfigError: no level at all, or heads that do not divide the channels.
    """

    ARGS = (
        "channels",
        "dims",
        "width",
        "multipliers",
        "blocks",
        "attention",
        "heads",
        "classes",
        "context_features",
        "concat_channels",
        "out_channels",
        "seed",
    )

    def __init__(
        self,
        channels: int,
        *,
        dims: int = 2,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 4),
        blocks: int = 1,
        attention: Sequence[int] = (),
        heads: int = 4,
        classes: Counts = None,
        context_features: Counts = None,
        concat_channels: Counts = None,
        out_channels: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.channels = check_integer(channels, "channels", 1)
        self.dims = check_integer(dims, "dims", 1, 3)
        self.width = check_integer(width, "width", 1)
        self.multipliers = check_sizes(multipliers, "multipliers", 1)
        if not self.multipliers:
            raise ConfigError("multipliers must name at least one level, got none; (1, 2) makes two levels")
        self.blocks = check_integer(blocks, "blocks", 1)
        last = len(self.multipliers) - 1
        self.attention = tuple(
            sorted({check_integer(a, "attention", 0, last) for a in check_sizes(attention, "attention")})
        )
        self.heads = check_integer(heads, "heads", 1)
        widths = [self.width * m for m in self.multipliers]
        for level in {*self.attention, last}:
            if widths[level] % self.heads:
                raise ConfigError(
                    f"heads={self.heads} must divide the {widths[level]} channels of level {level}; "
                    f"choose heads={math.gcd(self.heads, widths[level])} or another width"
                )
        self.read_conditions(classes, context_features, concat_channels)
        self.out_channels = (
            self.channels if out_channels is None else check_integer(out_channels, "out_channels", self.channels)
        )
        self.seed = check_seed(seed)

        vector = 4 * self.width
        with torch.device("meta"):
            self.conditioning = Conditioning(vector, self.kinds)
            conv = CONVOLUTIONS[self.dims]
            self.input = conv(self.channels + self.concat_inputs, widths[0], 3, padding=1)
            attend = [level in self.attention for level in range(last + 1)]
            self.level = _Level(self.dims, widths[0], widths, self.blocks, attend, self.heads)
            self.norm = _group_norm(widths[0])
            self.output = conv(widths[0], self.out_channels, 3, padding=1)
            blocks_in_order = [module for module in self.level.modules() if isinstance(module, _Block)]
            # One product for the scales and shifts of all blocks costs less than one for each.
            self.splits = [2 * block.second.out_channels for block in blocks_in_order]
            self.modulation = nn.Linear(vector, sum(self.splits))
            self.skip = nn.Linear(vector, 1)
        last_layers: list[nn.Module] = [block.second for block in blocks_in_order]
        last_layers += [module.output for module in self.level.modules() if isinstance(module, _Attention)]
        initialise(self, self.seed, zero=(*last_layers, self.output, self.skip))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, **cond: Tensor | None) -> Tensor:
        """Return the network's output, of x's shape but for ``out_channels``.

        x is (B, channels, *sizes) with ``dims`` sizes, each at least 1; the rest and errors are as in ``MLP.forward``.
        """
        if x.ndim != self.dims + 2 or x.shape[1] != self.channels:
            sizes = ", ".join(["B", str(self.channels), *"DHW"[3 - self.dims :]])
            cure = f"UNet({x.shape[1]}, dims={x.ndim - 2}) takes this x" if 3 <= x.ndim <= 5 else "reshape x"
            raise ShapeError(f"x must have shape ({sizes}), got {tuple(x.shape)}; {cure}")
        told = cond if label is None else {"label": label, **cond}
        self.check_call(x, c_noise, told)
        vector: Tensor = self.conditioning(c_noise, told)
        terms = iter(torch.split(self.modulation(vector), self.splits, dim=1))
        state = x.to(vector.dtype)
        h = self.level(self.input(self.beside(state, told)), terms)
        skip = self.skip(vector).reshape(-1, *(1,) * (self.dims + 1))
        return add_linear(self.output(functional.silu(self.norm(h))), skip, state).to(x.dtype)
