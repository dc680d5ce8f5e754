r"""A residual network for vectors.

With h_0 = A x + a and the conditioning vector e(c_noise, conditions),

    h_{i+1} = h_i + B_i silu(A_i n(h_i, e)),    n(h, e) = (1 + s_i(e)) norm(h) + b_i(e),

norm being the layer norm and (s_i, b_i) a linear map of e: the noise level sets the scale and the shift of every block
(adaptive norm: Perez et al. 2018, FiLM, arXiv:1709.07871; Peebles and Xie 2023, arXiv:2212.09748). The output is

    c(e) x + C silu(n(h_depth, e)) + d,

c a learned number for each e. Without its first term the norm would bound the output, and an x far out, whose noise is
nearly x itself, would be told too little noise; divided by a small alpha that error throws a sample out of the data.
B_i, C, d and c start at 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from scoresde.errors.kinds import ConfigError, ShapeError, read_integer
from scoresde.errors.values import check_integer, check_sizes
from scoresde.nn.conditions import ConditionalNetwork, Conditioning, Counts
from scoresde.nn.embeddings import add_linear, initialise
from scoresde.noise import check_seed

__all__ = ["MLP"]


class MLP(ConditionalNetwork):
    """A residual multilayer perceptron: net(x, c_noise, label=None, **conditions) -> a tensor of x's dtype and shape.

    Args:
        event_shape: shape of one sample, or D for (D,); any shape is flattened.
        width: length of the hidden vectors.
        depth: number of residual blocks.
        classes: number of class labels, or name -> number; None for a network without.
        context_features: length of a vector of conditions, or name -> length.
        concat_channels: channels beside those of x, or name -> channels; see ``nn.conditions``.
        out_channels: first size of the output's event, at least that of ``event_shape``, which it is by default; twice
            as large for a learned variance. The part c(e) x belongs to its first entries.
        seed: of the first values of the weights; the global generator is not used.

    Raises:
        DTypeError, DomainError: a size that is not a positive integer. ConfigError: channels of an event (),
            conditions whose names serve twice.
    """

    ARGS = ("event_shape", "width", "depth", "classes", "context_features", "concat_channels", "out_channels", "seed")

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        width: int = 128,
        depth: int = 3,
        classes: Counts = None,
        context_features: Counts = None,
        concat_channels: Counts = None,
        out_channels: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        one = read_integer(event_shape)
        sizes = check_sizes(event_shape if one is None else (one,), "event_shape", 1)
        self.event_shape = sizes
        self.width = check_integer(width, "width", 1)
        self.depth = check_integer(depth, "depth", 0)
        self.read_conditions(classes, context_features, concat_channels)
        if (out_channels is not None or concat_channels is not None) and not sizes:
            name = "concat_channels" if out_channels is None else "out_channels"
            raise ConfigError(f"{name} needs an event_shape with a first size, got ()")
        self.out_channels = None if out_channels is None else check_integer(out_channels, "out_channels", sizes[0])
        self.seed = check_seed(seed)
        self.size = math.prod(self.event_shape)
        self.out_shape = self.event_shape if self.out_channels is None else (self.out_channels, *self.event_shape[1:])
        with torch.device("meta"):
            self.conditioning = Conditioning(width, self.kinds)
            self.modulation = nn.Linear(width, 2 * width * (depth + 1))
            self.input = nn.Linear(self.size + self.concat_inputs * math.prod(self.event_shape[1:]), width)
            self.first = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
            self.second = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
            self.output = nn.Linear(width, math.prod(self.out_shape))
            self.skip = nn.Linear(width, 1)
        initialise(self, self.seed, zero=(*self.second, self.output, self.skip))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, **cond: Tensor | None) -> Tensor:
        """Return the network's output, of x's shape but for ``out_channels``.

        Args:
            x: (B, *event_shape); computed in the type of the weights.
            c_noise: (B,), the log-SNR in nats, or what else the network is trained with.
            label: integers (B,) in 0..classes-1; -1, or None for the whole batch, is the null class.
            cond: the other conditions by name; see ``nn.conditions``.

        Raises:
            ShapeError: x, c_noise or a condition of another shape. ConfigError: a condition that the network was not
                built with. DTypeError, DomainError: a class that is not an integer in -1..classes-1, other conditions
                that are not floating.
        """
        if x.shape[1:] != self.event_shape:
            event = ", ".join(["B", *map(str, self.event_shape)])
            raise ShapeError(
                f"x must have shape ({event}), got {tuple(x.shape)}; "
                f"MLP({tuple(x.shape[1:])}) takes this x, or reshape it"
            )
        told = cond if label is None else {"label": label, **cond}
        self.check_call(x, c_noise, told)
        vector: Tensor = self.conditioning(c_noise, told)
        terms = self.modulation(vector).chunk(2 * self.depth + 2, dim=1)
        flat = x.reshape(x.shape[0], self.size).to(vector.dtype)
        seen = self.beside(x.to(vector.dtype), told).flatten(1) if self.concat_inputs else flat
        h: Tensor = self.input(seen)  # (B, width)
        for i, (first, second) in enumerate(zip(self.first, self.second, strict=True)):
            h = h + second(functional.silu(first(self._norm(h, terms[2 * i], terms[2 * i + 1]))))
        out = add_linear(self.output(functional.silu(self._norm(h, terms[-2], terms[-1]))), self.skip(vector), flat)
        return out.reshape(-1, *self.out_shape).to(x.dtype)

    def _norm(self, h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return torch.addcmul(shift, functional.layer_norm(h, (self.width,)), 1 + scale)
