r"""Training objectives on a chain, at its integer indices.

With x_i = alpha_i x_0 + sigma_i z and the model's data prediction x0_hat, per coordinate of an event of dimension D:

    L_simple = |z_hat - z|^2 / D,                     the denoising loss with the weight "simple" at the knot i;
    L_{i-1}  = KL(q(x_{i-1} | x_i, x_0) || p(x_{i-1} | x_i)) / D     for i >= 1, in nats;
    L_hybrid = L_simple + w n L_{i-1}.

The sum of L_{i-1} over all indices is the part of the variational bound that depends on the network, so n times its
mean at uniform indices. Let s be the posterior's standard deviation and p's s e^{v r}, r = log(large/small), with v = 0
for the small variance, v = 1 for the large one and v from the network for the learned one. As both means are the
posterior's, at x_0 and at x0_hat, and |x0_hat - x_0|^2 = |z_hat - z|^2/SNR_i, each coordinate has

    KL = v r + (e^{-2 v r} - 1)/2 + (SNR_{i-1}/SNR_i - 1)/2 (z_hat - z)^2 e^{-2 v r}.

At i = 0 the posterior has no density and the decoder stands in, -log N(x_0; x0_hat, s_0^2 e^{2 v r}): for a fixed
variance s_0 = sigma_0/alpha_0 and v = 0, as in ``bounds``; for a learned one between the posterior's of index 1 and
b_0, as in ``Chain.reverse``. At a last index where alpha = 0 the noise is x_i itself and its error 0: L_simple is 0,
and the last term of the KL is SNR_{i-1}/2 (x0_hat - x_0)^2 e^{-2 v r}.

In L_hybrid the mean of p is held fixed inside L_{i-1}, which then trains the variance alone: L_simple trains the mean.

*Importance-sampled indices.* With probabilities p_i proportional to sqrt(E[L_i^2]) and the loss divided by n p_i its
expectation stays and its variance is the smallest; the expectations come from the last losses of each index.

Ho et al. 2020, "Denoising diffusion probabilistic models", arXiv:2006.11239, eq. 5, 12 and 14; Nichol and Dhariwal
2021, "Improved denoising diffusion probabilistic models", arXiv:2102.09672, sections 3.1 and 3.3.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.chains.base import Chain
from scoresde.diffusions.point import Point
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.kinds import ConfigError, DomainError, ShapeError, show
from scoresde.errors.names import check_choice
from scoresde.errors.tensors import check_numbers
from scoresde.errors.values import check_flag, check_instance, check_integer, check_number, keep_number
from scoresde.models.prediction import Condition
from scoresde.models.score_model import ScoreModel
from scoresde.noise import draw_noise, on_cpu, uniform
from scoresde.ops import expand, move
from scoresde.solvers.ancestral import VARIANCES, Variance
from scoresde.training.losses.denoising import Multipliers, check_batch, check_scalars, measure_errors, read_scalars

__all__ = ["ChainLoss", "ImportanceIndices"]


def _weigh_by_snr(point: Point, sde: GaussianSDE) -> Tensor:
    return torch.where(point.log_snr == -math.inf, 1.0, point.log_snr.exp())


class ImportanceIndices:
    """Indices drawn in proportion to the root mean square of their last losses, uniform until each has enough.

    A ``ChainLoss`` that is given one feeds it whenever gradients are recorded. It keeps its history on the CPU, so each
    update waits for the losses' device; a checkpoint of ``fit`` keeps it.

    Args:
        n: number of indices.
        history: losses kept for each index; all indices need as many before the law leaves the uniform one.
        uniform_share: share of the uniform law that is mixed in, so that no index is forgotten.

    Raises:
        DTypeError, DomainError: options out of range.

    Source: Nichol and Dhariwal 2021, section 3.3.
    """

    def __init__(self, n: int, *, history: int = 10, uniform_share: float = 1e-3) -> None:
        self.n, self.history = check_integer(n, "n", 1), check_integer(history, "history", 1)
        self.uniform_share = check_number(uniform_share, "uniform_share", 0.0, 1.0)
        self._squares = torch.zeros(self.n, self.history, dtype=torch.float64, device="cpu")
        self._counts = torch.zeros(self.n, dtype=torch.long, device="cpu")

    def __repr__(self) -> str:
        full = "full" if bool((self._counts >= self.history).all()) else "not full yet"
        return f"<ImportanceIndices of {self.n}, a history of {self.history}, {full}>"

    def update(self, index: Tensor, losses: Tensor) -> None:
        """Take in the losses (B,) at the indices (B,), oldest forgotten first; what is not finite is left out.

        Raises DTypeError, ShapeError, DomainError where they are not numbers, not as many, or the indices out of range.
        """
        places, values = check_numbers(index, "index"), check_numbers(losses, "losses")
        if places.ndim != 1 or places.shape != values.shape:
            raise ShapeError(f"index and losses must be (B,), got {tuple(places.shape)} and {tuple(values.shape)}")
        if not bool(((places >= 0) & (places < self.n) & (places == places.floor())).all()):
            raise DomainError(f"index must be of integers in [0, {self.n}), got {show(places.tolist())}")
        for i, loss in zip(places.long().tolist(), values.tolist(), strict=True):
            if math.isfinite(loss):
                self._squares[i, self._counts[i] % self.history] = loss**2
                self._counts[i] += 1

    def state_dict(self) -> dict[str, Tensor]:
        """Return the history: squares (n, history) and how many losses each index has had."""
        return {"squares": self._squares, "counts": self._counts}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from ``state_dict``; ShapeError where it is of other sizes."""
        for name, mine in self.state_dict().items():
            if state[name].shape != mine.shape:
                raise ShapeError(
                    f"{name} of the indices have shape {tuple(state[name].shape)}, not {tuple(mine.shape)}"
                )
            mine.copy_(state[name])

    @property
    def probabilities(self) -> Tensor:
        """The law of the next index, (n,), float64 on the CPU."""
        even = torch.full((self.n,), 1 / self.n, dtype=torch.float64, device="cpu")
        size = self._squares.mean(1).sqrt()
        if bool((self._counts < self.history).any()) or not float(size.sum()) > 0:
            return even
        return (1 - self.uniform_share) * size / size.sum() + self.uniform_share * even


class _Constants(NamedTuple):
    """What a loss needs of each index, (n,): see the module's docstring.

    Args:
        gain: the factor of the noise's squared error in twice the divergence, or of the data's where alpha = 0.
        simple: 1, and 0 where alpha = 0 and the noise has no error.
        ratio: r.
        constant: log s_0 and what belongs to it at index 0, else 0.
        first: 1 at index 0, else 0.
        fixed: v of a fixed variance.
    """

    gain: Tensor
    simple: Tensor
    ratio: Tensor
    constant: Tensor
    first: Tensor
    fixed: Tensor


def _check_chain(chain: object) -> Chain:
    return check_instance(chain, Chain, "chain", "a chain, e.g. DDPM.linear(1000)")  # type: ignore[type-abstract]


@dataclass(frozen=True, eq=False)
class ChainLoss:
    """An objective on a chain: ``loss(model, x0, generator)`` -> losses (B,), whose mean is to be minimised.

    Made by ``ChainLoss.simple``, ``.bound`` and ``.hybrid``; also the ``objective=`` of ``fit`` and ``Trainer``. The
    model may live on the chain's own SDE or any other: it is called at the knots' log-SNR.

    Args:
        chain: the chain.
        on_simple: factor of L_simple.
        on_bound: factor of L_{i-1}.
        variance: of p(x_{i-1} | x_i), "small", "large" or "learned".
        fixed_mean: whether L_{i-1} sends no gradient to the mean.
        indices: the law of the indices; None for uniform ones.

    Raises:
        DTypeError, ConfigError: no chain, an unknown variance, indices of another number.
    """

    chain: Chain
    on_simple: float
    on_bound: float
    variance: Variance = "small"
    fixed_mean: bool = False
    indices: ImportanceIndices | None = None

    def __post_init__(self) -> None:
        _check_chain(self.chain)
        check_choice("variance", self.variance, VARIANCES)
        for name in ("on_simple", "on_bound"):
            keep_number(self, name, 0.0)
        check_flag(self.fixed_mean, "fixed_mean")
        if self.indices is not None:
            check_instance(self.indices, ImportanceIndices, "indices", "an ImportanceIndices, or None")
        if self.indices is not None and self.indices.n != len(self.chain):
            raise ConfigError(f"indices are for {self.indices.n} indices, the chain has {len(self.chain)}")

    def __repr__(self) -> str:
        factors = f"{self.on_simple:g} L_simple + {self.on_bound:g} L_bound"
        drawn = "" if self.indices is None else f", {self.indices!r}"
        return f"<ChainLoss {factors}, {self.variance} variance, on {self.chain!r}{drawn}>"

    @classmethod
    def simple(cls, chain: Chain, *, indices: ImportanceIndices | None = None) -> ChainLoss:
        """Return L_simple, the squared error of the noise (Ho et al. 2020, eq. 14)."""
        return cls(chain, 1.0, 0.0, indices=indices)

    @classmethod
    def bound(
        cls, chain: Chain, *, variance: Variance = "small", indices: ImportanceIndices | None = None
    ) -> ChainLoss:
        """Return L_{i-1} in nats per coordinate (Ho et al. 2020, eq. 12); n times its mean is the bound's part.

        Args:
            chain: the chain.
            variance: "small", "large" or "learned".
            indices: their law; importance sampling lowers the noise of this loss.
        """
        return cls(chain, 0.0, 1.0, variance, indices=indices)

    @classmethod
    def hybrid(cls, chain: Chain, *, weight: float = 1e-3, indices: ImportanceIndices | None = None) -> ChainLoss:
        """Return L_simple + weight n L_{i-1} with the learned variance, for a model with ``variance="learned"``.

        Source: Nichol and Dhariwal 2021, eq. 16, with their weight.
        """
        on_bound = check_number(weight, "weight", 0.0)
        on_bound *= len(_check_chain(chain))
        return cls(chain, 1.0, on_bound, "learned", fixed_mean=True, indices=indices)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the history of the indices' law, if there is one."""
        return {} if self.indices is None else self.indices.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from ``state_dict``."""
        if self.indices is not None and state:
            self.indices.load_state_dict(state)

    @functools.cached_property
    def _constants(self) -> _Constants:
        log_snr = self.chain.points.log_snr
        gone = log_snr[1:] == -math.inf
        gain = torch.where(gone, log_snr[:-1].exp(), (log_snr[:-1] - log_snr[1:]).expm1())
        small, large = self.chain.learned_range
        if self.variance != "learned":
            # sigma_0/alpha_0, at which the decoder's precision is SNR_0.
            small[0] = (-0.5 * log_snr[1]).exp()
        gain[0] = (-log_snr[1]).exp() / small[0].square()
        first = torch.zeros_like(gain)
        first[0] = 1.0
        constant = first * (small[0].log() + 0.5 * math.log(2 * math.pi))
        fraction = (1 - first) * (self.variance == "large")
        return _Constants(gain, (~gone).double(), (large / small).log(), constant, first, fraction)

    def __call__(
        self,
        model: ScoreModel,
        x0: Tensor,
        generator: torch.Generator | None = None,
        cond: Condition = None,
        *,
        index: Tensor | int | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Return the losses (B,) in float32 or x0's wider type.

        Args:
            model: the model; its parameters receive the gradient.
            x0: data (B, *) in the model's coordinates.
            generator: on the CPU; indices are drawn from it (evenly spread over the chain), then the noise. May be left
                out where both are given.
            cond: tensors passed to the network, each with first dimension B.
            index: integers of shape () or (B,) in [0, n) instead of drawn ones; the losses are then not reweighted.
            noise: standard normal numbers of x0's shape instead of drawn ones.

        Raises:
            DTypeError, ShapeError, DomainError: x0, index or noise of a wrong type, shape or range. ConfigError: no
                generator, or one on another device than the CPU, tensors on different devices, a learned variance and
                a model without one.
        """
        cond = check_batch(model, x0, noise, cond)
        if self.variance == "learned" and model.variance != "learned":
            raise ConfigError(
                'this loss has a learned variance, the model has none; pass ScoreModel(..., variance="learned")'
            )
        dtype = torch.promote_types(x0.dtype, torch.float32)
        batch = x0.shape[0]
        if batch == 0:
            return x0.new_zeros((0,), dtype=dtype)
        weight = torch.ones(batch, dtype=torch.float64, device="cpu")
        if index is None:
            i, weight = self._draw(batch, on_cpu(generator))
        else:
            i = self.chain.check_index(index, x0).expand(batch)
        noise = draw_noise(x0, on_cpu(generator)) if noise is None else noise
        point = self.chain.points[i + 1]
        scalars = read_scalars(model, point, _weigh_by_snr)
        check_scalars(scalars, point.t)
        # One copy to the device for all of them.
        numbers = torch.stack([*scalars.multipliers, *(row[i] for row in self._constants), weight]).to(dtype)
        c_noise = move(model.c_noise_for(scalars.c_noise, numbers), x0.device)
        *rows, weight = move(numbers, x0.device).unbind(0)
        size = len(Multipliers._fields)
        multipliers, constants = Multipliers(*rows[:size]), _Constants(*rows[size:])
        losses = self._measure(model, x0.to(dtype), noise.to(dtype), multipliers, constants, c_noise, cond)
        if self.indices is not None and torch.is_grad_enabled():
            self.indices.update(i, losses)
        return losses * weight

    def _draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return indices (B,), evenly spread over their law, and 1/(n p)."""
        n = len(self.chain)
        u = torch.arange(batch, dtype=torch.float64, device="cpu").div_(batch)
        u = u.add_(uniform((1,), generator, dtype=torch.float64)).remainder_(1.0)
        if self.indices is None:
            return (u * n).long().clamp_max(n - 1), torch.ones_like(u)
        law = self.indices.probabilities
        i = torch.searchsorted(law.cumsum(0), u, right=True).clamp_max(n - 1)
        return i, 1 / (n * law[i])

    def _measure(
        self,
        model: ScoreModel,
        x0: Tensor,
        noise: Tensor,
        multipliers: Multipliers,
        constants: _Constants,
        c_noise: Tensor,
        cond: Condition,
    ) -> Tensor:
        """Return the losses (B,) as they are, not divided by n p."""
        error, fraction = measure_errors(model, x0, noise, multipliers, c_noise, cond)
        gain, simple, ratio, constant, first, fixed = constants
        squares = expand(multipliers.loss, x0) * error.square()  # of the noise's error, or the data's
        loss = self.on_simple * simple * squares.reshape(len(x0), -1).mean(1)
        if self.on_bound:
            v = expand(fixed, x0) if self.variance != "learned" or fraction is None else fraction.to(x0.dtype)
            spread = -2 * expand(ratio, x0) * v
            squares = squares.detach() if self.fixed_mean else squares
            # At index 0 there is no posterior to compare the variance with.
            terms = (1 - expand(first, x0)) * spread.expm1() - spread + expand(gain, x0) * squares * spread.exp()
            loss = loss + self.on_bound * (0.5 * terms.reshape(len(x0), -1).mean(1) + constant)
        return loss
