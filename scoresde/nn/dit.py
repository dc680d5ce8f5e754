r"""A transformer for signals and images: patches as tokens, adaptive norm, and rotary positions.

A patch of p or p x p places with its channels is a token; h_0 = A patch + a. With the conditioning vector
e(c_noise, conditions) a block is

    h <- h + g_1 attention(n(h, s_1, b_1)),    h <- h + g_2 mlp(n(h, s_2, b_2)),    n(h, s, b) = (1 + s) norm(h) + b,

norm the layer norm, all six vectors linear in e and 0 at first, so that a block starts as the identity (Peebles and Xie
2023, arXiv:2212.09748). The output is c(e) x + patches of (C n(h, s, b) + d); C, d and c start at 0.

**Positions.** Queries and keys are turned, pair of entries by pair of entries, by angles w_k m for a token at place m,

    (q_1, q_2) -> (q_1 cos w_k m - q_2 sin w_k m, q_1 sin w_k m + q_2 cos w_k m),    w_k = base^(-k/K), k = 0..K-1,

so that their product depends on differences of places alone (Su et al. 2021, arXiv:2104.09864, with base 10 000). In
two dimensions half of a head is turned by the row, and half by the column, with base 100 (Heo et al. 2024,
arXiv:2403.13298). There is no table of positions: a network serves other sizes than it was trained on.

Sizes need not be multiples of p: zeros are set behind the last places, and the output there is cut off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from scoresde.errors.kinds import ConfigError
from scoresde.errors.values import check_integer
from scoresde.nn.conditions import Conditioning, Counts
from scoresde.nn.embeddings import add_linear, initialise
from scoresde.nn.grids import GridNetwork
from scoresde.noise import check_seed

__all__ = ["DiT", "join_patches", "rotary_angles", "rotate", "split_patches"]

BASES = {1: 10_000.0, 2: 100.0}


def split_patches(x: Tensor, patch: int) -> Tensor:
    """Return x (B, C, *sizes), each size a multiple of ``patch``, as tokens (B, N, C patch^d), rows first."""
    batch, channels, *sizes = x.shape
    counts = [size // patch for size in sizes]
    if len(counts) == 1:
        return x.reshape(batch, channels, counts[0], patch).movedim(2, 1).flatten(2)
    rows, columns = counts
    tiles = x.reshape(batch, channels, rows, patch, columns, patch)
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * patch**2)


def join_patches(tokens: Tensor, patch: int, counts: Sequence[int]) -> Tensor:
    """Return tokens (B, N, C patch^d), of as many patches in each dimension, as values (B, C, *sizes)."""
    batch, channels = tokens.shape[0], tokens.shape[2] // patch ** len(counts)
    if len(counts) == 1:
        return tokens.reshape(batch, counts[0], channels, patch).movedim(1, 2).flatten(2)
    rows, columns = counts
    tiles = tokens.reshape(batch, rows, columns, channels, patch, patch)
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, rows * patch, columns * patch)


def rotary_angles(counts: Sequence[int], length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the angles (N, length/2) of the places of a grid, in at least float32, for heads of this length.

    Args:
        counts: places in each dimension; N is their product.
        length: of a query, a multiple of twice the number of dimensions.
        device: where they are made.
        dtype: of the network.
    """
    wide = torch.promote_types(torch.float32, dtype)
    pairs = length // (2 * len(counts))
    omega = BASES[len(counts)] ** (-torch.arange(pairs, dtype=wide, device=device) / pairs)
    axes = [torch.arange(n, dtype=wide, device=device) for n in counts]
    places = torch.meshgrid(*axes, indexing="ij")
    return torch.cat([torch.outer(m.flatten(), omega) for m in places], 1)


def rotate(q: Tensor, angles: Tensor) -> Tensor:
    """Return q (B, heads, N, length) with entry k turned with entry k + length/2 by the angles (N, length/2)."""
    first, second = q.chunk(2, dim=3)
    cos, sin = angles.cos().to(q.dtype), angles.sin().to(q.dtype)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], 3)


class _Block(nn.Module):
    """A block of the transformer, (B, N, width) -> (B, N, width), with six vectors (B, 1, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, h: Tensor, terms: Sequence[Tensor], angles: Tensor) -> Tensor:
        scale, shift, gate, scale_2, shift_2, gate_2 = terms
        heads = self.project(_norm(h, scale, shift)).unflatten(2, (3, self.heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (B, heads, N, width/heads)
        mixed = functional.scaled_dot_product_attention(rotate(q, angles), rotate(k, angles), v)
        h = torch.addcmul(h, gate, self.mix(mixed.transpose(1, 2).flatten(2)))
        inner = functional.gelu(self.widen(_norm(h, scale_2, shift_2)), approximate="tanh")
        return torch.addcmul(h, gate_2, self.narrow(inner))


def _norm(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift, functional.layer_norm(h, h.shape[-1:]), 1 + scale)


class DiT(GridNetwork):
    """A diffusion transformer: net(x, c_noise, label=None, **conditions) -> a tensor of x's dtype and shape.

    Args:
        channels: C of x, which has shape (B, C, L) or (B, C, H, W).
        dims: number of spatial dimensions, 1 or 2.
        patch: places of a patch in each dimension. Time and memory grow with the number of patches.
        width: length of a token.
        depth: number of blocks.
        heads: attention heads; ``width`` must be a multiple of 2 ``dims`` ``heads``.
        classes: number of class labels, or name -> number; None for a network without.
        context_features: length of a vector of conditions, or name -> length.
        concat_channels: channels beside those of x, or name -> channels; see ``nn.conditions``.
        out_channels: channels of the output, at least ``channels``, which they are by default; twice as many for a
            learned variance. The part c(e) x belongs to the first ``channels`` of them.
        seed: of the first values of the weights; the global generator is not used.

    Raises:
        DTypeError, DomainError: a size that is not a positive integer. ConfigError: heads that do not fit the width.
    """

    MOST_DIMS = 2
    ARGS = (
        "channels",
        "dims",
        "patch",
        "width",
        "depth",
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
        patch: int = 2,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        classes: Counts = None,
        context_features: Counts = None,
        concat_channels: Counts = None,
        out_channels: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.read_grid(channels, dims, out_channels)
        self.patch = check_integer(patch, "patch", 1)
        self.width = check_integer(width, "width", 1)
        self.depth = check_integer(depth, "depth", 1)
        self.heads = check_integer(heads, "heads", 1)
        if self.width % (2 * self.dims * self.heads):
            unit = 2 * self.dims * self.heads
            raise ConfigError(
                f"width={self.width} must be a multiple of 2 dims heads = {unit}, since rotary positions turn pairs of "
                f"entries in each dimension; choose width={unit * math.ceil(self.width / unit)} or other heads"
            )
        self.read_conditions(classes, context_features, concat_channels)
        self.seed = check_seed(seed)
        places = self.patch**self.dims
        with torch.device("meta"):
            self.conditioning = Conditioning(self.width, self.kinds)
            self.modulation = nn.Linear(self.width, self.width * (6 * self.depth + 2))
            self.input = nn.Linear(places * (self.channels + self.concat_inputs), self.width)
            self.blocks = nn.ModuleList([_Block(self.width, self.heads) for _ in range(self.depth)])
            self.output = nn.Linear(self.width, places * self.out_channels)
            self.skip = nn.Linear(self.width, 1)
        initialise(self, self.seed, zero=(self.modulation, self.output, self.skip))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, **cond: Tensor | None) -> Tensor:
        """Return the network's output, of x's shape but for ``out_channels``.

        x is (B, channels, *sizes) with ``dims`` sizes, each at least 1; the rest and errors are as in ``MLP.forward``.
        """
        self.check_grid(x)
        told = cond if label is None else {"label": label, **cond}
        self.check_call(x, c_noise, told)
        vector: Tensor = self.conditioning(c_noise, told)
        terms = self.modulation(vector)[:, None].chunk(6 * self.depth + 2, dim=2)  # each (B, 1, width)
        state = x.to(vector.dtype)
        sizes = x.shape[2:]
        behind = [n for size in reversed(sizes) for n in (0, -size % self.patch)]
        padded = functional.pad(self.beside(state, told), behind)
        counts = [size // self.patch for size in padded.shape[2:]]
        angles = rotary_angles(counts, self.width // self.heads, x.device, vector.dtype)
        h = self.input(split_patches(padded, self.patch))  # (B, N, width)
        for i, block in enumerate(self.blocks):
            h = block(h, terms[6 * i : 6 * i + 6], angles)
        out = join_patches(self.output(_norm(h, terms[-2], terms[-1])), self.patch, counts)
        for dim, size in enumerate(sizes, start=2):
            out = out.narrow(dim, 0, size)
        skip = self.skip(vector).reshape(-1, *(1,) * (self.dims + 1))
        return add_linear(out, skip, state).to(x.dtype)
