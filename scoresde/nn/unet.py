r"""A U-Net for signals, images and volumes.

A level applies its blocks, hands a grid half as fine to the next level, enlarges what comes back and applies as many
blocks again, which see beside their input what the first ones gave, the last one first (Ronneberger et al. 2015,
arXiv:1505.04597; Ho et al. 2020, arXiv:2006.11239, without their skip connections from the resampling layers). The
coarsest level has two blocks around a self-attention (Vaswani et al. 2017, arXiv:1706.03762) instead of a next level.
``nn.blocks`` has the formulas of the pieces. The output is c(e) x + conv(silu(norm h)) for the conditioning vector
e(c_noise, conditions), where the learned number c keeps the part linear in x from the bounds of the norm.

Level k has the grid of sizes n/2^k, rounded up: attention "at 16 x 16" of images of 32 x 32 is attention=(1,). The
DDPM++ of Song et al. 2021 (arXiv:2011.13456) is resample="residual", rescale_skips=True, blocks=4, multipliers=(1, 2,
2, 2), attention=(1,), width=128.

Sizes need not be powers of two: a step down halves them rounding up, a step up goes to the size it came from. One
mechanism serves one, two and three dimensions: only the convolution's class differs. Second convolutions, attention
outputs, the last convolution and c start at 0. Dropout's draws are torch's own: ``fit`` seeds them for each step and
gives torch its state back; a loop of one's own draws from the global generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from scoresde.errors.names import check_choice
from scoresde.errors.values import check_flag, check_number
from scoresde.nn.blocks import CONVOLUTIONS, Attention, Block, group_norm
from scoresde.nn.conditions import Conditioning, Counts
from scoresde.nn.embeddings import add_linear, initialise
from scoresde.nn.grids import LevelNetwork
from scoresde.nn.levels import Level, Parts
from scoresde.noise import check_seed

__all__ = ["UNet"]

RESAMPLE = ("conv", "residual")


class UNet(LevelNetwork):
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
        resample: how to reach a coarser grid and return: "conv", a convolution of stride 2 and the nearest place, or
            "residual", a block for each of the two steps, which takes means and the nearest place.
        rescale_skips: divide the sum of a block's or an attention's input and output by sqrt(2).
        dropout: share of the inputs of every block's second convolution that are 0 in a step of training, in [0, 1).
        classes: number of class labels, or name -> number; None for a network without.
        context_features: length of a vector of conditions, or name -> length.
        concat_channels: channels beside those of x, or name -> channels; see ``nn.conditions``.
        out_channels: channels of the output, at least ``channels``, which they are by default; twice as many for a
            learned variance. The part c(e) x belongs to the first ``channels`` of them.
        seed: of the first values of the weights; the global generator is not used.

    Raises:
        DTypeError, DomainError: a size that is not a positive integer, a level that does not exist, or another share.
        ConfigError: no level at all, heads that do not divide the channels, or another ``resample``.
    """

    ARGS = (
        "channels",
        "dims",
        "width",
        "multipliers",
        "blocks",
        "attention",
        "heads",
        "resample",
        "rescale_skips",
        "dropout",
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
        resample: Literal["conv", "residual"] = "conv",
        rescale_skips: bool = False,
        dropout: float = 0.0,
        classes: Counts = None,
        context_features: Counts = None,
        concat_channels: Counts = None,
        out_channels: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.read_grid(channels, dims, out_channels)
        widths, attend = self.read_levels(width, multipliers, blocks, attention, heads)
        check_choice("resample", resample, RESAMPLE)
        self.resample: Literal["conv", "residual"] = resample
        self.rescale_skips = check_flag(rescale_skips, "rescale_skips")
        self.dropout = check_number(dropout, "dropout", 0, 1, open_high=True)
        self.read_conditions(classes, context_features, concat_channels)
        self.seed = check_seed(seed)

        vector = 4 * self.width
        with torch.device("meta"):
            self.conditioning = Conditioning(vector, self.kinds)
            conv = CONVOLUTIONS[self.dims]
            self.input = conv(self.channels + self.concat_inputs, widths[0], 3, padding=1)
            parts = Parts(
                self.dims,
                self.heads,
                residual=self.resample == "residual",
                rescale=self.rescale_skips,
                dropout=self.dropout,
            )
            self.level = Level(parts, widths[0], widths, self.blocks, attend)
            self.norm = group_norm(widths[0])
            self.output = conv(widths[0], self.out_channels, 3, padding=1)
            blocks_in_order = [module for module in self.level.modules() if isinstance(module, Block)]
            # One product for the scales and shifts of all blocks costs less than one for each.
            self.splits = [block.terms for block in blocks_in_order]
            self.modulation = nn.Linear(vector, sum(self.splits))
            self.skip = nn.Linear(vector, 1)
        last_layers: list[nn.Module] = [block.second for block in blocks_in_order]
        last_layers += [module.output for module in self.level.modules() if isinstance(module, Attention)]
        initialise(self, self.seed, zero=(*last_layers, self.output, self.skip))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, **cond: Tensor | None) -> Tensor:
        """Return the network's output, of x's shape but for ``out_channels``.

        x is (B, channels, *sizes) with ``dims`` sizes, each at least 1; the rest and errors are as in ``MLP.forward``.
        """
        self.check_grid(x)
        told = cond if label is None else {"label": label, **cond}
        self.check_call(x, c_noise, told)
        vector: Tensor = self.conditioning(c_noise, told)
        terms = iter(torch.split(self.modulation(vector), self.splits, dim=1))
        state = x.to(vector.dtype)
        h = self.level(self.input(self.beside(state, told)), terms)
        skip = self.skip(vector).reshape(-1, *(1,) * (self.dims + 1))
        return add_linear(self.output(functional.silu(self.norm(h))), skip, state).to(x.dtype)
