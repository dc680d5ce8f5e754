r"""A U-Net that keeps magnitudes, of the layers of ``nn.magnitude`` (Karras et al. 2024, arXiv:2312.02696).

The levels are those of ``UNet``. A block of the way down begins with a pixel norm; neither step between two grids has
weights. x has a channel of ones beside it in the place of biases. The output is

    g' conv(h) + g'' c(e) x,

with gains that start at 0; the second part is there because pixel norms hide how far out an x is.

**Training.** What the network computes does not depend on the length of an output's weights, so their gradient is
perpendicular to them, and every step makes them longer and the next one turn less. ``normalise_`` brings them back to
magnitude 1, so that the learning rate alone says how fast the network changes. ``fit`` and ``Trainer`` call it after
each step of the optimiser and before the averages of the weights are moved; a forward pass changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scoresde.nn.blocks import enlarge, halve
from scoresde.nn.conditions import Counts
from scoresde.nn.embeddings import add_linear
from scoresde.nn.grids import LevelNetwork
from scoresde.nn.levels import Level, Parts
from scoresde.nn.magnitude import Gain, UnitAttention, UnitBlock, UnitConditioning, UnitMap, join, normalise
from scoresde.noise import check_seed, normal, stream

__all__ = ["MagnitudeUNet"]


class _Coarser(nn.Module):
    """All levels on a grid half as fine, back on the grid of x; neither step has weights."""

    def __init__(self, level: Level) -> None:
        super().__init__()
        self.level = level

    def forward(self, x: Tensor, terms: Iterator[Tensor]) -> Tensor:
        return enlarge(self.level(halve(x), terms), x.shape[2:])


@dataclass(frozen=True)
class _Parts(Parts):
    """The pieces of this U-Net."""

    def before(self, inputs: int, outputs: int) -> nn.Module:
        return UnitBlock(self.dims, inputs, outputs, normed=True)

    def after(self, inputs: int, outputs: int) -> nn.Module:
        return UnitBlock(self.dims, inputs, outputs, normed=False)

    def attention(self, width: int) -> nn.Module:
        return UnitAttention(width, self.heads)

    def coarser(self, width: int, level: Level, back: int) -> nn.Module:
        return _Coarser(level)

    def join(self, x: Tensor, kept: Tensor) -> Tensor:
        return join(x, kept)


class MagnitudeUNet(LevelNetwork):
    """A magnitude-preserving U-Net: net(x, c_noise, label=None, **conditions) -> a tensor of x's dtype and shape.

    x and channels beside it are to have magnitude 1, as a ``ScoreModel`` gives. A loop of your own calls
    ``normalise_`` after each step of the optimiser. Source: Karras et al. 2024, arXiv:2312.02696.

    Args:
        channels: C of x, which has shape (B, C, L), (B, C, H, W) or (B, C, D, H, W).
        dims: number of spatial dimensions, 1, 2 or 3.
        width: channels of the finest level.
        multipliers: for each level, from fine to coarse, its channels over ``width``.
        blocks: residual blocks of a level on the way down, and as many on the way up.
        attention: the levels, 0 the finest, with a self-attention after every block.
        heads: attention heads; must divide the channels of the levels with attention and of the coarsest one.
        classes, context_features, concat_channels, out_channels, seed: as of ``UNet``.

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
        self.read_grid(channels, dims, out_channels)
        widths, attend = self.read_levels(width, multipliers, blocks, attention, heads)
        self.read_conditions(classes, context_features, concat_channels)
        self.seed = check_seed(seed)
        vector = 4 * self.width
        with torch.device("meta"):
            self.conditioning = UnitConditioning(vector, self.kinds)
            self.input = UnitMap(self.channels + self.concat_inputs + 1, widths[0], self.dims, 3)
            self.level = Level(_Parts(self.dims, self.heads), widths[0], widths, self.blocks, attend)
            self.last = UnitMap(widths[0], self.out_channels, self.dims, 3)
            self.last_gain = Gain()
            self.splits = [module.terms for module in self.level.modules() if isinstance(module, UnitBlock)]
            self.modulation = UnitMap(vector, sum(self.splits))
            self.linear = UnitMap(vector, 1)
            self.linear_gain = Gain()
        self._draw()

    @torch.no_grad()
    def _draw(self) -> None:
        """Give the weights their memory and first values: normal numbers at magnitude 1, and gains of 0."""
        self.to_empty(device=torch.get_default_device())
        generator = stream(self.seed, "nn")
        for part in self.modules():
            if isinstance(part, Gain):
                part.value.zero_()
            elif isinstance(part, UnitMap | nn.Embedding) and not part.weight.is_meta:
                part.weight.copy_(normal(part.weight.shape, generator))
        self.normalise_()

    def normalise_(self) -> None:
        """Bring the weights of every output, in place, back to magnitude 1, which changes no output of the network."""
        normalise(self)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, **cond: Tensor | None) -> Tensor:
        """Return the network's output, of x's shape but for ``out_channels``; see ``UNet.forward``."""
        self.check_grid(x)
        told = cond if label is None else {"label": label, **cond}
        self.check_call(x, c_noise, told)
        vector: Tensor = self.conditioning(c_noise, told)
        terms = iter(torch.split(self.modulation(vector), self.splits, dim=1))
        state = x.to(vector.dtype)
        ones = torch.ones_like(state[:, :1])
        h = self.level(self.input(torch.cat([self.beside(state, told), ones], 1)), terms)
        skip = self.linear_gain(self.linear(vector)).reshape(-1, *(1,) * (self.dims + 1))
        return add_linear(self.last_gain(self.last(h)), skip, state).to(x.dtype)
