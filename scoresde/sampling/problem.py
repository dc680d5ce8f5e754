r"""What a sampler of posteriors is given, and gives; draws from Gaussian likelihoods and priors.

N(y; H u, s^2) N(u; c, rho^2) is drawn exactly where H is linear, by perturbing and solving: with normal e and f,

    c' = c + rho e,    u = c' + rho^2 H^T (s^2 + rho^2 H H^T)^{-1} (y + s f - H c'),

and by steps of Metropolis-adjusted Langevin dynamics where it is not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.models.guidance.measured import Linearised, Measured
from scoresde.models.guidance.methods import solve
from scoresde.models.prediction import Predictor
from scoresde.noise import integers, normal, stream, uniform
from scoresde.ops import flat

__all__ = ["ITERATIONS", "TOLERANCE", "PosteriorSampler", "PosteriorSamples", "Problem"]

ITERATIONS, TOLERANCE = 500, 1e-10  # of conjugate gradients


@dataclass(frozen=True, eq=False)
class PosteriorSamples:
    """Samples of a posterior.

    Args:
        x: (n, *), in the user's units, of equal weight.
        nfe: calls of the network for each.
        log_evidence: log p(y) in nats, where the method estimates it.
        log_evidence_error: the standard error of that estimate, from the one run.
        ess: effective sample sizes after the steps of a method with weights.
    """

    x: Tensor
    nfe: int
    log_evidence: float | None = None
    log_evidence_error: float | None = None
    ess: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Problem:
    """What a sampler of posteriors is given.

    Args:
        model: the prior.
        measured: H.
        y: the measurement, flattened, (m,), in float64.
        n: number of samples.
        steps: calls of the network for each sample, about.
        cond: conditions of the batch.
        seed: of everything random.
        progress: show a bar.
    """

    model: Predictor
    measured: Measured
    y: Tensor
    n: int
    steps: int
    cond: Mapping[str, Tensor] | None
    seed: int
    progress: bool

    def fresh_seed(self, *key: int | str) -> int:
        """Return a seed that belongs to a part of the work."""
        return int(integers(2**31, (1,), stream(self.seed, "posterior", *key)))

    def normal(self, like: Tensor, *key: int | str) -> Tensor:
        """Return standard normal numbers like a tensor."""
        return normal(tuple(like.shape), stream(self.seed, "posterior", *key, device=like.device), dtype=like.dtype)

    def to_data(self, z: Tensor) -> Tensor:
        """Return states without noise (n, *) in the user's units."""
        transform = self.model.transform
        return z if transform is None else transform.inverse(z)

    def draw_gaussian(self, centre: Tensor, rho: float, key: str, langevin: int) -> Tensor:
        """Return draws of N(y; H u, s^2) N(u; centre, rho^2), (n, *), exact for a linear H."""
        wide, std = centre.double(), self.measured.std
        if self.measured.operator.linear:
            start = wide + rho * self.normal(wide, "prior", key)
            line = self.measured.at(start, keep=False)
            rest = self.y + std * self.normal(line.value, "likelihood", key) - line.value
            return (start + _pull(line, rest, rho, std)).to(centre)
        return self._walk(wide, rho, key, langevin).to(centre)

    def _walk(self, centre: Tensor, rho: float, key: str, steps: int) -> Tensor:
        """Take Metropolis-adjusted Langevin steps, whose lengths start from the inverse curvature at the centre.

        In the first half they follow the acceptance, sample by sample, towards 0.57 of the proposals.
        """
        std, column = max(self.measured.std, 1e-3 * rho), (-1, *(1,) * (centre.ndim - 1))

        def measure(u: Tensor) -> tuple[Tensor, Tensor]:
            """Return the log density (n,) and its gradient (n, *)."""
            line = self.measured.at(u, keep=False)
            rest, away = self.y - line.value, u - centre
            value = -0.5 * rest.square().sum(1) / std**2 - 0.5 * flat(away).square().sum(1) / rho**2
            return value, line.back(rest) / std**2 - away / rho**2

        v = self.normal(centre, "curvature", key)
        line = self.measured.at(centre, keep=False)
        for _ in range(8):
            v = line.back(line.forward(v / flat(v).norm(dim=1).reshape(column).clamp_min(1e-30)))
        step = 0.5 / (1 / rho**2 + flat(v).norm(dim=1) / std**2)
        u, (value, slope) = centre, measure(centre)
        for k in range(steps):
            e = step.reshape(column)
            proposal = u + e * slope + (2 * e).sqrt() * self.normal(u, "walk", key, k)
            after, back = measure(proposal)
            there, here = (flat(b - a - e * s) for a, b, s in ((u, proposal, slope), (proposal, u, back)))
            gain = after - value + (there.square().sum(1) - here.square().sum(1)) / (4 * step)
            draw = uniform((len(u),), stream(self.seed, "posterior", "accept", key, k, device=u.device)).to(gain)
            taken = (draw.log() < gain) & torch.isfinite(after)
            u, slope = (torch.where(taken.reshape(column), new, old) for new, old in ((proposal, u), (back, slope)))
            value = torch.where(taken, after, value)
            if k < steps // 2:
                step = step * torch.where(taken, 1.15, 0.83)
        return u.detach()


def _pull(line: Linearised, rest: Tensor, rho: float, std: float) -> Tensor:
    """Return rho^2 H^T (s^2 + rho^2 H H^T)^{-1} rest, (n, *)."""
    u = solve(lambda u: std**2 * u + rho**2 * line.forward(line.back(u)).detach(), rest, ITERATIONS, TOLERANCE)
    return rho**2 * line.back(u)


class PosteriorSampler(ABC):
    """A way to draw from a posterior that is no data prediction."""

    @abstractmethod
    def __call__(self, problem: Problem) -> PosteriorSamples:
        """Draw."""
