r"""From data to a state with a little noise, and what that is worth in nats.

The flow's density is that of a state at t_min, x = alpha y + sigma z, not of data y. Three ways lead from one to the
other, each log p(y) >= E[log p_t(x) + w] or, for the first, equal to it but for a stated error:

* *Density.* x = alpha y, w = D log alpha: the density of x/alpha = y + nu z, nu = sigma/alpha, taken at y. By the heat
  equation d p/d(nu^2) = (1/2) Laplacian p it differs from the data's by

      log p_0(y) = log p_nu(y) - (nu^2/2) (tr H + |s|^2) + O(nu^4) = log p_nu(y) - (1/2) (|eps|^2 - sigma tr d eps/dx),

  s and H the gradient and the Hessian of log p_nu, eps the noise prediction: the term that Tweedie's formula leaves.
* *A decoder*: x drawn from q = N(alpha y, sigma^2), w = log p(y | x) - log q(x | y), a variational bound of one layer.
  Its -log q holds the entropy of the last noise.
* *Dequantisation* of data on levels: x drawn inside the bin, alpha times its ends, w = -log q(x). The bin's mass under
  p_t is the level's probability. Either uniformly (Theis et al. 2016, arXiv:1511.01844), or from N(alpha y, sigma^2)
  cut at the bin's ends (Zheng et al. 2023, arXiv:2305.03935), as are the states that a network was trained on.

  The state is taken at the noise at which half a bin is 2 sigma/alpha (Zheng et al. take 3), unless t_min has more.

With K draws log mean exp is a tighter bound (Burda et al. 2016, arXiv:1509.00519).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from scoresde.diffusions.point import Point
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.kinds import DTypeError
from scoresde.errors.names import check_choice
from scoresde.errors.values import keep_integer
from scoresde.likelihood.bound import choose_std
from scoresde.likelihood.decoders import Decoder, bin_ends, event_sum
from scoresde.models.prediction import Condition, Predictor
from scoresde.transforms.base import Transform, keep_interval

__all__ = ["Dequantisation", "Start", "choose_start"]

TAU = 2.0
Law = Literal["uniform", "truncated_normal"]


class Start(ABC):
    """A way from data to the state at t_min.

    ``discrete`` says whether log p is then that of levels, ``draws`` whether it is a bound by draws, and ``calls`` how
    often the network is asked on the way.
    """

    discrete: bool = False
    draws: bool = True
    calls: int = 0

    def check(self, y: Tensor, transform: Transform | None) -> None:  # noqa: B027 all data suit, unless it says more
        """Raise where data y (B, *), in the model's coordinates, are none of this way's."""

    def choose_time(self, sde: GaussianSDE, transform: Transform | None, like: Tensor) -> float:
        """Return the time at which it leads to, for data like ``like``, where none is named."""
        return sde.t_min

    @abstractmethod
    def begin(self, model: Predictor, y: Tensor, point: Point, z: Tensor, cond: Condition) -> tuple[Tensor, Tensor]:
        """Return the state (B, *) at ``point`` of data y (B, *), and its worth in nats (B,), in float64 on the CPU.

        Args:
            model: asked by a decoder.
            y: data in the model's coordinates.
            point: a single point.
            z: standard normal, of y's shape.
            cond: conditions of the batch.
        """


class _Density(Start):
    """x = alpha y."""

    draws = False

    def begin(self, model: Predictor, y: Tensor, point: Point, z: Tensor, cond: Condition) -> tuple[Tensor, Tensor]:
        alpha, size = float(point.alpha), math.prod(y.shape[1:])
        return alpha * y, torch.full((len(y),), size * math.log(alpha), dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class _Decoded(Start):
    """x from N(alpha y, sigma^2), and a decoder back."""

    decoder: Decoder

    calls = 1

    @property
    def discrete(self) -> bool:  # type: ignore[override]
        return self.decoder.discrete

    def check(self, y: Tensor, transform: Transform | None) -> None:
        self.decoder.check(y, transform)

    def begin(self, model: Predictor, y: Tensor, point: Point, z: Tensor, cond: Condition) -> tuple[Tensor, Tensor]:
        alpha, sigma = float(point.alpha), float(point.sigma)
        x = alpha * y + sigma * z
        mean, std = model.at(x, point, cond).data, choose_std(self.decoder, point)
        size = math.prod(y.shape[1:])
        entropy = 0.5 * event_sum(z.square()) + size * (math.log(sigma) + 0.5 * math.log(2 * math.pi))
        return x, (entropy - self.decoder.nats(y, mean, std, model.transform)).to("cpu", torch.float64)


@dataclass(frozen=True)
class Dequantisation(Start):
    """Data on levels as draws inside their bins; the likelihood is then that of the levels.

    The levels are low + k width, k = 0 ... levels - 1, width = (high - low)/(levels - 1), in the *data's* units; a bin
    reaches half a width to both sides. A model's transform must act on each coordinate by itself and increase there.

    Args:
        levels: number of levels, at least 2.
        low: the lowest level.
        high: the highest level.
        law: "truncated_normal", or "uniform" in the model's coordinates.

    Raises:
        DTypeError, DomainError: fewer than two levels, not finite numbers with low < high. ConfigError: unknown law.
    """

    levels: int
    low: float = -1.0
    high: float = 1.0
    law: Law = "truncated_normal"

    discrete = True

    def __post_init__(self) -> None:
        keep_integer(self, "levels", 2)
        keep_interval(self)
        check_choice("law of dequantisation", self.law, get_args(Law))

    def check(self, y: Tensor, transform: Transform | None) -> None:
        """Raise DomainError for data off the levels, ConfigError for a transform that draws."""
        bin_ends(self, y, transform)

    def choose_time(self, sde: GaussianSDE, transform: Transform | None, like: Tensor) -> float:
        """Return the time at which half a bin, in the model's coordinates, is ``TAU`` times sigma/alpha.

        There the states of data on levels fill their bins. With less noise a network must know the levels to the last
        digit, or the bound is far from tight; with more, it says less. It is at least the SDE's own t_min.
        """
        level = torch.full_like(like[:1], self.low + (self.high - self.low) / (self.levels - 1) * (self.levels // 2))
        middle = level if transform is None else transform.forward(level)
        lower, upper, _, _ = bin_ends(self, middle, transform)
        half = 0.5 * float((upper - lower).median())
        nu = max(half / TAU, float(torch.exp(-0.5 * sde.log_snr(sde.t_min))))
        return float(sde.time(-2 * math.log(nu)))

    def begin(self, model: Predictor, y: Tensor, point: Point, z: Tensor, cond: Condition) -> tuple[Tensor, Tensor]:
        """Return a state in the bins of y, and -log q of it; see ``Start.begin``."""
        alpha, sigma = float(point.alpha), float(point.sigma)
        lower, upper, _, _ = bin_ends(self, y, model.transform)
        share = torch.special.ndtr(z.to(lower))
        if self.law == "uniform":
            width = alpha * (upper - lower)
            return (alpha * lower + share * width).to(y), event_sum(width.log()).to("cpu", torch.float64)
        centre = alpha * y.to(lower)
        below, above = ((alpha * end - centre) / sigma for end in (lower, upper))
        least, most = torch.special.ndtr(below), torch.special.ndtr(above)
        cut = torch.special.ndtri(least + share * (most - least)).clamp(below, above)
        nats = 0.5 * cut.square() + math.log(sigma) + 0.5 * math.log(2 * math.pi) + (most - least).log()
        return (centre + sigma * cut).to(y), event_sum(nats).to("cpu", torch.float64)


def choose_start(decoder: object) -> Start:
    """Return the way of a decoder, a dequantisation, or None for the density; DTypeError for anything else."""
    if decoder is None:
        return _Density()
    if isinstance(decoder, Start):
        return decoder
    if isinstance(decoder, Decoder):
        return _Decoded(decoder)
    raise DTypeError(
        "decoder must be GaussianDecoder(), LevelsDecoder(levels, low, high) or Dequantisation(levels, low, high), "
        f"got {type(decoder).__name__}"
    )
