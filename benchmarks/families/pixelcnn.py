r"""A PixelCNN: log p(x) = sum_i log p(x_i | x_1 ... x_{i-1}), pixel by pixel in reading order (arXiv:1601.06759).

One network gives all 64 conditional laws at once, since its convolutions are masked: the first sees the pixels before,
the others those before and the features of the pixel itself. Sampling asks it once a pixel.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from families.common import LEVELS, SIDE, Split, count, train
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["PixelCNN", "fit"]


class Masked(nn.Conv2d):
    """A convolution that sees the places before its own in reading order, and its own where ``own``."""

    def __init__(self, inputs: int, outputs: int, size: int, *, own: bool) -> None:
        super().__init__(inputs, outputs, size, padding=size // 2)
        mask = torch.zeros(size, size)
        mask.view(-1)[: size * size // 2 + own] = 1
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.mask, self.bias)


class Block(nn.Module):
    """A residual block of masked convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [nn.SiLU(), Masked(width, width, 3, own=True), nn.SiLU(), nn.Dropout(0.2), nn.Conv2d(width, width, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class PixelCNN(nn.Module):
    """Logits of the levels of each pixel, given the pixels before."""

    kind = "exact"

    def __init__(self, width: int = 64, blocks: int = 6, levels: int = LEVELS) -> None:
        super().__init__()
        self.levels = levels
        self.first = Masked(2, width, 5, own=False)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.out = nn.Sequential(nn.SiLU(), nn.Conv2d(width, levels, 1))

    @property
    def size(self) -> int:
        """The number of parameters."""
        return count(self)

    def forward(self, levels: Tensor) -> Tensor:
        """Return logits (N, levels, H, W) for levels (N, H, W)."""
        x = 2 * levels[:, None].float() / (self.levels - 1) - 1
        # A plane of ones tells the edge of the image from a pixel of value 0.
        return self.out(self.blocks(self.first(torch.cat([x, torch.ones_like(x)], 1))))

    def nats(self, levels: Tensor) -> Tensor:
        """Return -log p(x), (N,)."""
        return functional.cross_entropy(self(levels), levels, reduction="none").flatten(1).sum(1)

    @torch.no_grad()
    def log_prob(self, levels: Tensor) -> Mapping[str, Tensor]:
        """Return log p(x), (N,)."""
        return {"value": -self.nats(levels)}

    @torch.no_grad()
    def sample(self, n: int, side: int = SIDE) -> Tensor:
        """Return n images as levels, a pixel at a time."""
        levels = torch.zeros(n, side, side, dtype=torch.long)
        for i in range(side):
            for j in range(side):
                levels[:, i, j] = torch.distributions.Categorical(logits=self(levels)[:, :, i, j]).sample()
        return levels


def fit(split: Split, *, quick: bool = False) -> PixelCNN:
    """Train it."""
    net = PixelCNN()
    train(net, net.nats, split, steps=30 if quick else 1200, name="PixelCNN")
    return net
