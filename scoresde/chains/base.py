r"""What every discrete chain shares: its knots, their times, sub-chains, and the samplers on them as tables.

A chain has indices i = 0 ... n - 1 at the points (alpha_i, sigma_i), log_snr decreasing; index -1 stands for clean
data, alpha = 1 and sigma = 0. By default index i sits at the time (i + 1)/n of the chain's SDE and clean data sit at 0.
A choice of the knots, with their own times, is a chain again; ``laws`` has the laws between them. The chain's samplers
are the tables of ``solvers`` on its knots.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from scoresde.chains.laws import KnotLaws
from scoresde.diffusions.point import Point
from scoresde.diffusions.sde import GaussianSDE
from scoresde.diffusions.tabulated import TabulatedSDE
from scoresde.errors import (
    ConfigError,
    DomainError,
    ShapeError,
    check_integer,
    check_number,
    unknown,
)
from scoresde.solvers.ancestral import VARIANCES, Variance, ancestral_table, ddim_table
from scoresde.solvers.langevin import annealed_langevin_table
from scoresde.solvers.rows import CLEAN
from scoresde.solvers.tableau import Tableau

__all__ = ["Chain", "rule_times"]

RULES = ("exact", "song")


@dataclass(frozen=True, eq=False, repr=False)
class Chain(KnotLaws):
    """A diffusion at n knots. A kind of chain says what its knots are; all else is derived.

    Args:
        knot_times: times of the knots, (n,), increasing and positive; (i + 1)/n by default. A sub-chain keeps those of
            the chain it was taken from.
    """

    knot_times: Tensor | None = field(default=None, kw_only=True)

    @property
    @abstractmethod
    def prior_std(self) -> float:
        """Standard deviation of the zero-mean start state, where the data's moments are unknown."""

    @property
    @abstractmethod
    def knot_log_alpha(self) -> Tensor | None:
        """Log alpha at the knots, (n,); None where the chain preserves variance."""

    @abstractmethod
    def take(self, kept: Tensor) -> Self:
        """Return the chain of the kept indices, which increase."""

    def _check_times(self) -> None:
        if self.knot_times is None:
            return
        times = torch.as_tensor(self.knot_times).detach().to("cpu", torch.float64)
        if times.shape != (len(self),):
            raise ShapeError(f"knot_times must have shape ({len(self)},), one for each index, got {tuple(times.shape)}")
        if not bool(torch.isfinite(times).all() and (times.diff() > 0).all() and times[0] > 0):
            raise DomainError(f"knot_times must be positive, finite and increase with the index, got {times.tolist()}")
        object.__setattr__(self, "knot_times", times)

    @property
    def times(self) -> Tensor:
        """The knots' times, (n,): (i + 1)/n unless the chain is a choice of another's knots."""
        if self.knot_times is not None:
            return self.knot_times
        return torch.arange(1, len(self) + 1, dtype=torch.float64) / len(self)

    @property
    def points(self) -> Point:
        """Clean data and then every knot: fields of shape (n + 1,)."""
        return Point.joined([CLEAN.point().of_each(1)[0], Point(self.times, *self.curves)])

    def sde(self) -> TabulatedSDE:
        """Return the SDE through the knots.

        Raises ConfigError for a chain of one index, through which no curve is defined.
        """
        if len(self) < 2:
            raise ConfigError("a chain of one index defines no SDE between knots; its tables work all the same")
        return TabulatedSDE(self.times, self.curves[2], self.knot_log_alpha)

    def strided(self, steps: int) -> Self:
        """Return the chain of ``steps`` evenly spaced indices, the last one among them, at their own times.

        Raises DTypeError or DomainError unless ``steps`` is an integer in [1, n].
        """
        n = len(self)
        check_integer(steps, "steps", 1, n)
        return self.take(torch.linspace(0, n, steps + 1, dtype=torch.float64).round().long()[1:] - 1)

    def ancestral(self, *, variance: Variance = "small", steps: int | None = None) -> Tableau:
        """Return ancestral sampling as a table: x_{i-1} from the posterior with the data prediction for x_0.

        Args:
            variance: "small" (the posterior's), "large" (b_i^2) or "learned" (between them, by a model with
                ``variance="learned"``); no noise enters the last step.
            steps: evaluations on evenly strided indices; all n by default.

        Source: Ho et al. 2020, eq. 6 and 7; Song et al. 2021, appendix F, for a chain that only adds noise.

        Raises:
            ConfigError: another variance. DomainError: more steps than indices.
        """
        if variance not in VARIANCES:
            raise unknown("variance", variance, VARIANCES)
        return ancestral_table(self._downwards(steps), prior_std=self.prior_std, variance=variance)

    def ddim(self, eta: float = 0.0, *, steps: int | None = None) -> Tableau:
        """Return DDIM on the chain as a table, with DDIM's own eta (0 deterministic, 1 ancestral)."""
        check_number(eta, "eta", 0.0)
        return ddim_table(self._downwards(steps), prior_std=self.prior_std, eta=eta)

    def annealed_langevin(
        self, *, repeats: int = 5, step: float | None = None, denoise: bool = True, steps: int | None = None
    ) -> Tableau:
        """Return annealed Langevin dynamics on the chain's noise levels, from the last one down, as a table.

        Args:
            repeats: Langevin steps at each level.
            step: their size in units of sigma_i^2; by default NCSNv2's choice; see ``solvers.annealed_langevin``.
            denoise: end with the data prediction at the lowest level, one more evaluation, as NCSNv2 does.
            steps: number of evenly strided levels; all n by default.
        """
        points = self._downwards(steps)
        points = points if denoise else points[:-1]
        return annealed_langevin_table(points, prior_std=self.prior_std, repeats=repeats, step=step)

    def _downwards(self, steps: int | None) -> Point:
        """Return the knots from the last one down, all or evenly strided, and clean data."""
        chain = self if steps is None else self.strided(steps)
        return chain.points[torch.arange(len(chain), -1, -1)]


def rule_times(sde: GaussianSDE, n: int, rule: str) -> Tensor:
    """Return the n times that a rule of ``from_sde`` looks at: t_max (i + 1)/n for "exact", t_max i/(n - 1) for "song".

    Raises DTypeError, DomainError for n and ConfigError for an unknown rule.
    """
    check_integer(n, "n", 1)
    if rule not in RULES:
        raise unknown("rule", rule, RULES)
    if rule == "song" and n > 1:
        return sde.t_max * torch.linspace(0, 1, n, dtype=torch.float64)
    return sde.t_max * torch.arange(1, n + 1, dtype=torch.float64) / n
