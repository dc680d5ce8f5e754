r"""Markov kernels applied at a time: correctors that a sampler runs before each of its steps.

Langevin dynamics at a fixed time, x <- x + e score + sqrt(2 e) z, leaves the marginal p_t invariant as e -> 0. Song et
al. choose e from a signal-to-noise ratio: e = 2 (snr |z|/|score|)^2.

Where the score is the gradient of a known log density -E, a Metropolis test removes the bias of a finite e: the
proposal x' is accepted with the probability

    min(1, exp(E(x) - E(x')) q(x | x')/q(x' | x)),     q(x' | x) = N(x'; x + e score(x), 2 e),

so that p_t is kept whatever e is (MALA, the Metropolis-adjusted Langevin algorithm).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from scoresde.errors.kinds import ConfigError
from scoresde.errors.names import check_choice
from scoresde.errors.values import keep_integer, keep_number
from scoresde.models.prediction import Prepared
from scoresde.noise import NoiseSource
from scoresde.ops import expand

__all__ = ["MALA", "Kernel", "Langevin", "take_tested_steps"]


class Kernel(Protocol):
    """What a sampler needs of a kernel: its number of evaluations, and one application."""

    @property
    def calls(self) -> int:
        """Evaluations of the model in one application."""

    @property
    def draws(self) -> int:
        """Draws of noise in one application."""

    def __call__(self, x: Tensor, index: int, model: Prepared, noise: NoiseSource) -> Tensor:
        """Return the next state, of x's shape (B, *); ``index`` is the prepared point, x must not be written to."""


NormRule = Callable[[Tensor, Tensor, float], Tensor]

# (|z| (B,), |score| (B,), sigma) -> the ratio |z|/|score| that sets the steps, (B,).
NORMS: dict[str, NormRule] = {
    "level": lambda z, score, sigma: torch.full_like(score, sigma),
    "sample": lambda z, score, sigma: z / score,
    "batch": lambda z, score, sigma: (z.mean() / score.mean()).expand_as(score),
}


@dataclass(frozen=True)
class Langevin:
    """Langevin steps with a step size from a signal-to-noise ratio: with a predictor, Song's predictor-corrector.

    Before each step of the predictor, at that step's time, as in the published loop. The ratio |z|/|score| in the step
    size is one of three:

    * "level": sigma, its value where the noise is wider than the data's detail. The step depends on no sample and on
      no draw, so that the kernel keeps p_t as snr shrinks.
    * "batch": the ratio of the batch's mean norms, as published: a sample then depends on its neighbours.
    * "sample": each sample's own. A step that grows with its own noise and shrinks with the state's score has another
      stationary law, close to p_t |score|^2: in the 3072 coordinates of a small image that is little, in two
      dimensions the variance doubles and more.

    Source: Song et al. 2021, "Score-based generative modeling through stochastic differential equations", alg. 4 and 5
    (their factor 1 - beta_i of the variance-preserving case, within 2 % of 1, belongs to a discretisation and is left
    out). Where the ratio is not finite, at a score of exactly zero, the sample stays.

    Args:
        snr: signal-to-noise ratio, positive; 0.16 in the source.
        steps: Langevin steps at each time.
        norms: "level", "sample" or "batch".

    Raises:
        DomainError: snr <= 0 or steps < 1. ConfigError: unknown norms.
    """

    snr: float = 0.16
    steps: int = 1
    norms: str = "level"

    def __post_init__(self) -> None:
        keep_number(self, "snr", 0.0, open_low=True)
        keep_integer(self, "steps", 1)
        check_choice("norms", self.norms, NORMS)

    @property
    def calls(self) -> int:
        """One evaluation for each Langevin step."""
        return self.steps

    @property
    def draws(self) -> int:
        """One draw for each Langevin step."""
        return self.steps

    def __call__(self, x: Tensor, index: int, model: Prepared, noise: NoiseSource) -> Tensor:
        """Return the state after ``steps`` Langevin steps at the prepared point ``index``."""
        a, b = (weights[index] for weights in model.weights("score"))
        sigma = float(model.readout.point.sigma[index])
        for _ in range(self.steps):
            z = torch.empty_like(x)
            score = a * x + b * model.raw(index, x)
            noise.fill(z)
            z_norm, score_norm = (v.reshape(len(v), -1).norm(dim=1) for v in (z, score))
            ratio = NORMS[self.norms](z_norm, score_norm, sigma)
            step = torch.where(torch.isfinite(ratio), 2 * (self.snr * ratio).square(), 0.0)
            x = take_langevin_step(x, score, step, z)
        return x


@dataclass(frozen=True)
class MALA:
    """Langevin steps, each accepted or rejected for each sample by Metropolis' rule: p_t is kept exactly.

    The step is e = 2 (snr sigma)^2, as ``Langevin(norms="level")``. A sample that rejects stays where it is. The model
    must have an energy (``EnergyModel``); no gradient is kept through the choice.

    Source: Roberts and Tweedie 1996, "Exponential convergence of Langevin distributions and their discrete
    approximations".

    Args:
        snr: signal-to-noise ratio, positive.
        steps: proposals at each time. An application costs one evaluation more, at the state it starts from, and two
            draws a proposal; the first coordinate of the second draw decides.

    Raises:
        DomainError: snr <= 0 or steps < 1. ConfigError: when called, a model without an energy, or a state that
            carries a graph (``differentiable=True``).
    """

    snr: float = 0.16
    steps: int = 1

    def __post_init__(self) -> None:
        keep_number(self, "snr", 0.0, open_low=True)
        keep_integer(self, "steps", 1)

    @property
    def calls(self) -> int:
        """One evaluation at the start and one for each proposal."""
        return self.steps + 1

    @property
    def draws(self) -> int:
        """One draw for each proposal and one for its test."""
        return 2 * self.steps

    def __call__(self, x: Tensor, index: int, model: Prepared, noise: NoiseSource) -> Tensor:
        """Return the state after ``steps`` proposals at the prepared point ``index``."""
        if x.requires_grad:
            raise ConfigError("MALA accepts or rejects, which has no gradient; use Langevin() with differentiable=True")
        step = 2 * (self.snr * float(model.readout.point.sigma[index])) ** 2
        return take_tested_steps(lambda y: model.energies(index, y), x, step, self.steps, noise)[0]


def take_langevin_step(x: Tensor, score: Tensor, step: Tensor | float, z: Tensor) -> Tensor:
    """Return the Langevin step x + step score + sqrt(2 step) z; ``step`` is a number or has shape (B,)."""
    size = step if isinstance(step, Tensor) else torch.tensor(step, dtype=torch.float64, device="cpu")
    return x + expand(size, x) * score + expand((2 * size).sqrt(), x) * z


def take_tested_steps(
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]],
    x: Tensor,
    step: float,
    steps: int,
    noise: NoiseSource,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return states (B, *) after ``steps`` Langevin proposals, each tested, and how many each sample accepted, (B,).

    Args:
        evaluate: x -> its energies (B,) and its scores (B, *).
        x: states (B, *).
        step: the step e.
        steps: number of proposals.
        noise: two draws a proposal; the first coordinate of the second decides.
        on_step: called with the number of the proposal and the states after it.
    """
    size = torch.tensor(step, dtype=torch.float64, device="cpu")
    energy, score = evaluate(x)
    count = torch.zeros(len(x), dtype=torch.long, device=x.device)
    for k in range(steps):
        z, test = torch.empty_like(x), torch.empty_like(x)
        noise.fill(z)
        noise.fill(test)
        proposal = take_langevin_step(x, score, size, z)
        new_energy, new_score = evaluate(proposal)
        back = (x - proposal - step * new_score) / (2 * step) ** 0.5
        forth_norm, back_norm, decision = (v.reshape(len(x), math.prod(x.shape[1:])) for v in (z, back, test))
        gain = energy - new_energy + 0.5 * (forth_norm.square().sum(1) - back_norm.square().sum(1))
        # log of a uniform number; a gain that is not a number rejects.
        accepted = torch.special.log_ndtr(decision[:, 0]) < gain
        x, score = (
            torch.where(expand(accepted, x).bool(), new, old) for new, old in ((proposal, x), (new_score, score))
        )
        energy = torch.where(accepted, new_energy, energy)
        count += accepted
        if on_step is not None:
            on_step(k, x)
    return x, count
