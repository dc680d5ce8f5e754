r"""Layers whose activations, weights and updates keep their magnitude: the rules of EDM2.

The magnitude of an array is its root mean square. Every layer keeps that of unit inputs (Karras et al. 2024,
arXiv:2312.02696, section 2 and appendix B):

| layer | rule |
|---|---|
| a linear map or a convolution | each output's weights w are used as w/abs(w); there are no biases |
| silu | silu(x)/0.596 |
| a weighted sum | ((1 - t) a + t b)/sqrt((1 - t)^2 + t^2), t = 0.3 for what a block or an attention adds |
| a, b side by side | a and b are scaled by c/sqrt(N_a) and c/sqrt(N_b), c = sqrt((N_a + N_b)/2) |
| pixel norm | x over its magnitude at each place, where a block of the way down begins |
| attention | of queries, keys and values with the magnitude of 1 in each head (cosine attention) |
| noise level | sqrt(2) (sin, cos) of ``nn.embeddings``, whose magnitude is 1 |
| conditioning | h (1 + g L e) for a linear map L and a number g of each block, which starts at 0 |
| output | g' conv(h), g' = 0 at the start |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from scoresde.nn.conditions import look_up, mask_missing
from scoresde.nn.embeddings import FREQUENCIES, fourier_features

__all__ = [
    "Gain",
    "UnitAttention",
    "UnitBlock",
    "UnitConditioning",
    "UnitMap",
    "join",
    "normalise",
    "unit",
    "unit_rows",
    "unit_silu",
    "unit_sum",
]

SILU = 0.596  # the magnitude of silu(z) for a normal z
BALANCE = 0.3
TINY = 1e-8  # of a squared magnitude: a place where all is 0 stays 0
MAPS: Mapping[int, Callable[..., Tensor]] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def unit(x: Tensor, dim: int = 1) -> Tensor:
    """Return x over its magnitude along ``dim``."""
    return x * (x.square().mean(dim, keepdim=True) + TINY).rsqrt().to(x.dtype)  # which autocast takes as float32


def unit_rows(weight: Tensor) -> Tensor:
    """Return weights (outputs, *) with those of each output at norm 1."""
    return functional.normalize(weight.flatten(1), dim=1).reshape(weight.shape)


def unit_silu(x: Tensor) -> Tensor:
    """Return silu(x)/0.596."""
    return functional.silu(x) / SILU


def unit_sum(a: Tensor, b: Tensor, t: float = BALANCE) -> Tensor:
    """Return (1 - t) a + t b over the magnitude that it has for independent a and b."""
    length = math.hypot(1 - t, t)
    return ((1 - t) / length) * a + (t / length) * b


def join(a: Tensor, b: Tensor) -> Tensor:
    """Return a (B, N_a, *) beside b (B, N_b, *), scaled so that both count alike and the whole has magnitude 1."""
    half = (a.shape[1] + b.shape[1]) / 2
    return torch.cat([a * math.sqrt(half / a.shape[1]), b * math.sqrt(half / b.shape[1])], 1)


class UnitMap(nn.Module):
    """A linear map (``dims`` 0) or a convolution without bias, each output's weights used at norm 1."""

    def __init__(self, inputs: int, outputs: int, dims: int = 0, kernel: int = 1) -> None:
        super().__init__()
        self.dims, self.padding = dims, kernel // 2
        self.weight = nn.Parameter(torch.empty(outputs, inputs, *(kernel,) * dims))

    def forward(self, x: Tensor) -> Tensor:
        weight = unit_rows(self.weight)
        if not self.dims:
            return functional.linear(x, weight)
        return MAPS[self.dims](x, weight, padding=self.padding)


class Gain(nn.Module):
    """A learned number, 0 at first, that a map's output is multiplied by."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.empty(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.value * x


class UnitConditioning(nn.Module):
    """c_noise (B,), classes and vectors -> one vector (B, width) of magnitude 1; see ``nn.conditions.Conditioning``."""

    def __init__(self, width: int, kinds: Mapping[str, tuple[str, int]]) -> None:
        super().__init__()
        self.features = UnitMap(2 * FREQUENCIES, width)
        self.kinds = {name: kind for name, kind in kinds.items() if kind[0] != "concat_channels"}
        for name, (option, count) in self.kinds.items():
            part = nn.Embedding(count + 1, width)  # row 0 is the null class
            two = nn.ModuleList([UnitMap(2 * count, width), UnitMap(width, width)])
            self.add_module(f"of_{name}", part if option == "classes" else two)

    def forward(self, c_noise: Tensor, cond: Mapping[str, Tensor | None]) -> Tensor:
        features = math.sqrt(2) * fourier_features(c_noise)
        h: Tensor = self.features(features.to(self.features.weight.dtype))
        for name, (_, count) in self.kinds.items():
            part, value = self.get_submodule(f"of_{name}"), cond.get(name)
            if isinstance(part, nn.Embedding):
                row = part.weight[:1].expand(h.shape[0], -1) if value is None else look_up(part, value, name)
                h = h + math.sqrt(row.shape[1]) * unit_rows(row)
            elif isinstance(part, nn.ModuleList):
                first, second = part
                seen = h.new_zeros(h.shape[0], 2 * count) if value is None else mask_missing(value, h)
                h = h + second(unit_silu(first(seen)))
        return unit_silu(h / math.sqrt(1 + len(self.kinds)))


class UnitBlock(nn.Module):
    """A residual block (B, inputs, *) -> (B, outputs, *), scaled by a vector (B, outputs)."""

    def __init__(self, dims: int, inputs: int, outputs: int, *, normed: bool) -> None:
        super().__init__()
        self.normed, self.terms, self.ones = normed, outputs, (1,) * dims
        self.skip = nn.Identity() if inputs == outputs else UnitMap(inputs, outputs, dims)
        self.enter = UnitMap(outputs if normed else inputs, outputs, dims, 3)
        self.gain = Gain()
        self.leave = UnitMap(outputs, outputs, dims, 3)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        if self.normed:
            x = unit(self.skip(x))
        scale = 1 + self.gain(modulation.reshape(*modulation.shape, *self.ones))
        h = self.leave(unit_silu(self.enter(unit_silu(x)) * scale))
        return unit_sum(x if self.normed else self.skip(x), h)


class UnitAttention(nn.Module):
    """Cosine attention over the positions of (B, C, *), added to its input."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = UnitMap(channels, 3 * channels)
        self.leave = UnitMap(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)  # (B, N, C)
        heads = unit(self.project(tokens).unflatten(2, (3, self.heads, -1)), dim=4)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (B, heads, N, C/heads)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, N, C)
        added: Tensor = self.leave(mixed)
        return unit_sum(x, added.transpose(1, 2).reshape(x.shape))


@torch.no_grad()
def normalise(network: nn.Module) -> None:
    """Bring the weights of every output of such layers, in place, back to magnitude 1."""
    for part in network.modules():
        if isinstance(part, UnitMap | nn.Embedding):
            part.weight.copy_(unit_rows(part.weight) * math.sqrt(part.weight[0].numel()))
