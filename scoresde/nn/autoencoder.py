r"""A small convolutional autoencoder for signals and images, plain or variational.

The encoder halves the grid between its levels and gives, at each place of the coarsest one, a mean m(x) and, where it
is variational, a log variance l(x) of each latent channel; the decoder runs back and gives a mean d(z) of the data.

*Variational* (Kingma and Welling 2014, arXiv:1312.6114): q(z | x) = N(m, e^l), p(z) = N(0, 1), p(x | z) = N(d(z), s^2).
With D coordinates of x and K of z the losses are minus the evidence lower bound, in nats:

    L(x) = E_q |x - d(z)|^2/(2 s^2) + D/2 log(2 pi s^2) + KL,    KL = 1/2 sum_k (m_k^2 + e^{l_k} - 1 - l_k).

The scale s is one number, learned with the rest unless it is given: the bound itself balances both terms then (Rybkin,
Daniilidis and Levine 2021, arXiv:2006.13202). It is e^{10 a} of a parameter a, so that Adam, whose steps are all of one
size, finds it in a tenth of the steps.

*Plain*: z = m(x), and the losses are the first terms at that z, with no KL: nothing holds the codes together, neither
their scale nor what lies between them. For a diffusion ``Latent.standardise`` brings both kinds of codes to unit
variance. A block is x + conv(silu(norm conv(silu(norm x)))), whose second convolution starts at 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from scoresde.errors.kinds import ConfigError, ShapeError
from scoresde.errors.tensors import check_floating
from scoresde.errors.values import check_flag, check_integer, check_number, check_sizes
from scoresde.nn.blocks import CONVOLUTIONS, group_norm
from scoresde.nn.embeddings import initialise
from scoresde.noise import check_seed, normal

__all__ = ["Autoencoder"]

START_LOG_STD = -1.0  # of the decoder, about the scale of data whose mean alone is known
RATE = 10.0
LIMIT = 20.0  # of a log variance, in nats


class _Block(nn.Module):
    """A residual block (B, C, *) -> (B, C, *)."""

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        conv = CONVOLUTIONS[dims]
        self.norm, self.first = group_norm(width), conv(width, width, 3, padding=1)
        self.second_norm, self.second = group_norm(width), conv(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(functional.silu(self.norm(x)))
        out: Tensor = x + self.second(functional.silu(self.second_norm(h)))
        return out


class _End(nn.Module):
    """A block, and a convolution of its normalised output to the channels that are wanted."""

    def __init__(self, dims: int, width: int, channels: int) -> None:
        super().__init__()
        self.block, self.norm = _Block(dims, width), group_norm(width)
        self.output = CONVOLUTIONS[dims](width, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.output(functional.silu(self.norm(self.block(x))))
        return out


class Autoencoder(nn.Module):
    """A convolutional autoencoder, x (B, channels, *) -> z (B, latent_channels, * / factor) and back.

    Args:
        channels: C of x, which has shape (B, C, L) or (B, C, H, W).
        latent_channels: channels of z.
        dims: number of spatial dimensions, 1 or 2.
        width: channels of the finest level.
        multipliers: for each level, from fine to coarse, its channels over ``width``; each but the first halves the
            grid, so that ``factor`` = 2^(levels - 1).
        variational: whether the encoder gives a law of z, and the losses are minus the evidence lower bound.
        std: s, the standard deviation of the data about what is decoded, in the data's unit; None to learn it.
        seed: of the first values of the weights; the global generator is not used.

    Raises:
        DTypeError, DomainError: a size that is no positive integer, a std that is not positive.
        ConfigError: no level at all.
    """

    ARGS: ClassVar = ("channels", "latent_channels", "dims", "width", "multipliers", "variational", "std", "seed")

    def __init__(
        self,
        channels: int,
        latent_channels: int = 4,
        *,
        dims: int = 2,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        variational: bool = True,
        std: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.channels = check_integer(channels, "channels", 1)
        self.latent_channels = check_integer(latent_channels, "latent_channels", 1)
        self.dims = check_integer(dims, "dims", 1, 2)
        self.width = check_integer(width, "width", 1)
        self.multipliers = check_sizes(multipliers, "multipliers", 1)
        if not self.multipliers:
            raise ConfigError("multipliers must name at least one level, got none; (1, 2) makes two levels")
        self.variational = check_flag(variational, "variational")
        self.std = None if std is None else check_number(std, "std", 0.0, open_low=True)
        self.seed = check_seed(seed)
        self.factor = 2 ** (len(self.multipliers) - 1)
        conv, widths = CONVOLUTIONS[self.dims], [self.width * m for m in self.multipliers]
        with torch.device("meta"):
            down: list[nn.Module] = [conv(self.channels, widths[0], 3, padding=1)]
            up: list[nn.Module] = [conv(self.latent_channels, widths[-1], 3, padding=1)]
            for fine, coarse in itertools.pairwise(widths):
                down += [_Block(self.dims, fine), conv(fine, coarse, 3, stride=2, padding=1)]
            for coarse, fine in itertools.pairwise(widths[::-1]):
                up += [_Block(self.dims, coarse), nn.Upsample(scale_factor=2), conv(coarse, fine, 3, padding=1)]
            codes = self.latent_channels * (2 if self.variational else 1)
            self.encoder = nn.Sequential(*down, _End(self.dims, widths[-1], codes))
            self.decoder = nn.Sequential(*up, _End(self.dims, widths[0], self.channels))
            self.scale = nn.Parameter(torch.empty(())) if self.std is None else None
        initialise(self, self.seed, zero=tuple(m.second for m in self.modules() if isinstance(m, _Block)))
        if self.scale is not None:
            with torch.no_grad():
                self.scale.fill_(START_LOG_STD / RATE)

    @property
    def config(self) -> dict[str, object]:
        """The constructor's arguments, JSON-able: ``Autoencoder(**config)`` is one again, with its first weights."""
        values = {name: getattr(self, name) for name in self.ARGS}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @property
    def log_std(self) -> Tensor:
        """The log of s, 0-d."""
        if self.scale is None:
            return next(self.parameters()).new_tensor(math.log(self.std or 1.0))
        return RATE * self.scale

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return mean and log variance of q(z | x), each (B, latent_channels, *); None for the latter where plain.

        They are computed in the type of the weights, and have that of x.

        Raises:
            ShapeError: x is not (B, channels, *) with sizes that ``factor`` divides. DTypeError: x is not floating.
        """
        sizes = tuple(check_floating(x).shape[2:])
        if len(sizes) != self.dims or x.shape[1] != self.channels or any(n == 0 or n % self.factor for n in sizes):
            wanted = ", ".join(["B", str(self.channels), *"HW"[2 - self.dims :]])
            raise ShapeError(
                f"x must have shape ({wanted}) with sizes that {self.factor} divides, got {tuple(x.shape)}; pad or "
                "crop it, or build the autoencoder with fewer multipliers"
            )
        out: Tensor = self.encoder(x.to(self._dtype)).to(x.dtype)
        if not self.variational:
            return out, None
        mean, log_variance = out.chunk(2, dim=1)
        return mean, log_variance.clamp(-LIMIT, LIMIT)

    def decode(self, z: Tensor) -> Tensor:
        """Return the mean of the data (B, channels, *) given z (B, latent_channels, *), in the type of z.

        Raises ShapeError for z of another shape, DTypeError for z that is not floating.
        """
        check_floating(z, "z")
        if z.ndim != self.dims + 2 or z.shape[1] != self.latent_channels or not all(z.shape[2:]):
            wanted = ", ".join(["B", str(self.latent_channels), *"HW"[2 - self.dims :]])
            raise ShapeError(f"z must have shape ({wanted}), got {tuple(z.shape)}")
        out: Tensor = self.decoder(z.to(self._dtype))
        return out.to(z.dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def losses(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return L(x) in nats, (B,), with one draw of z for each sample; see the module's docstring."""
        mean, log_variance = self.posterior(x)
        z, divergence = mean, mean.new_zeros(len(x))
        if log_variance is not None:
            z = mean + (0.5 * log_variance).exp() * normal(mean.shape, generator, dtype=mean.dtype).to(mean.device)
            divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)
        error, size = (x - self.decode(z)).flatten(1), math.prod(x.shape[1:])
        misfit = 0.5 * error.square().sum(1) * (-2 * self.log_std).exp()
        return misfit + size * (self.log_std + 0.5 * math.log(2 * math.pi)) + divergence
