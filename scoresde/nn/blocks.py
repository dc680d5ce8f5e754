r"""What a U-Net is made of: residual blocks, attention over all positions, steps to a coarser grid and back.

With two vectors (s, b) that are linear in the conditioning vector, a block is

    h = conv(silu(norm x)),    block(x) = r (P x + conv(silu((1 + s) norm h + b))),

norm a group norm, P the identity or, where the width changes, a 1x1 convolution, r = 1, or 1/sqrt(2) so that the sum of
two parts of one variance keeps it (Song et al. 2021, arXiv:2011.13456, section H). An attention adds to its input in
the same manner. A block that *resamples* moves both its parts to the other grid, R,

    h = conv(R silu(norm x)),    block(x) = r (P R x + conv(silu((1 + s) norm h + b))),

R the mean over 2 x 2 places on the way down, and the nearest place on the way up (Brock et al. 2019, arXiv:1809.11096;
the "residual" steps of DDPM++ in arXiv:2011.13456).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CONVOLUTIONS", "Attention", "Block", "enlarge", "group_norm", "halve"]

CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}
HALF = math.sqrt(0.5)


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a group norm of up to eight groups of at least four channels, as far as they divide the channels."""
    return nn.GroupNorm(math.gcd(channels, min(8, max(1, channels // 4))), channels)


def halve(x: Tensor) -> Tensor:
    """Return x (B, C, *) on a grid half as fine, sizes rounded up: the mean of the two places, or one, of each."""
    if x.ndim == 3:
        return functional.avg_pool1d(x, 2, ceil_mode=True)
    if x.ndim == 4:
        return functional.avg_pool2d(x, 2, ceil_mode=True)
    # The mean over two dimensions, and of that over the third: not every processor has the pool of three in every type.
    planes = functional.avg_pool2d(x.flatten(1, 2), 2, ceil_mode=True)
    planes = planes.reshape(*x.shape[:3], *planes.shape[2:])
    mean = functional.avg_pool2d(planes.flatten(3), (2, 1), ceil_mode=True)
    return mean.reshape(*mean.shape[:3], *planes.shape[3:])


def enlarge(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return x (B, C, *) on a finer grid of these sizes: each place has the value of the nearest one."""
    return functional.interpolate(x, size=list(sizes), mode="nearest")


class Block(nn.Module):
    """A residual block (B, inputs, *) -> (B, outputs, *), scaled and shifted by two vectors (B, outputs).

    Args:
        dims: number of spatial dimensions.
        inputs: channels of x.
        outputs: channels of the result.
        rescale: take r = 1/sqrt(2).
        dropout: the share of what the second convolution sees that is 0 in a step of training.
    """

    def __init__(self, dims: int, inputs: int, outputs: int, *, rescale: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        conv = CONVOLUTIONS[dims]
        self.ones = (1,) * dims
        self.rescale, self.terms = rescale, 2 * outputs
        self.norm = group_norm(inputs)
        self.first = conv(inputs, outputs, 3, padding=1)
        self.modulated_norm = group_norm(outputs)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.second = conv(outputs, outputs, 3, padding=1)
        self.skip = nn.Identity() if inputs == outputs else conv(inputs, outputs, 1)

    def forward(self, x: Tensor, modulation: Tensor, *, half: bool = False, sizes: Sequence[int] = ()) -> Tensor:
        """Return the block's output, on a grid half as fine, or on a finer one of some sizes, where that is asked."""
        scale, shift = modulation.reshape(*modulation.shape, *self.ones).chunk(2, dim=1)
        h = functional.silu(self.norm(x))
        if half:
            h, x = halve(h), halve(x)
        if sizes:
            h, x = enlarge(h, sizes), enlarge(x, sizes)
        h = self.first(h)
        h = torch.addcmul(shift, self.modulated_norm(h), 1 + scale)
        out: Tensor = self.skip(x) + self.second(self.dropout(functional.silu(h)))
        return out * HALF if self.rescale else out


class Attention(nn.Module):
    """Self-attention over the positions of (B, C, *), added to its input."""

    def __init__(self, channels: int, heads: int, *, rescale: bool = False) -> None:
        super().__init__()
        self.heads, self.rescale = heads, rescale
        self.norm = group_norm(channels)
        self.project = nn.Linear(channels, 3 * channels)
        self.output = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, N, C)
        heads = self.project(tokens).unflatten(2, (3, self.heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (B, heads, N, C/heads)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, N, C)
        added: Tensor = self.output(mixed)
        out = x + added.transpose(1, 2).reshape(x.shape)
        return out * HALF if self.rescale else out
