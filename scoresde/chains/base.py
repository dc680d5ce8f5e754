r"""What every discrete chain shares: its knots, their times, the laws between them, sub-chains, and samplers as tables.

A chain has indices i = 0 ... n - 1 at the points (alpha_i, sigma_i), log_snr decreasing; index -1 stands for clean
data, alpha = 1 and sigma = 0. By default index i sits at the time (i + 1)/n of the chain's SDE and clean data sit at 0.
A choice of the knots, with their own times, is a chain again. The chain's samplers are the tables of ``solvers`` on its
knots. With (a_i, b_i) the transition between neighbouring knots,

    q(x_i | x_{i-1}) = N(a_i x_{i-1}, b_i^2),     a_i = alpha_i/alpha_{i-1},     b_i^2 = sigma_i^2 - a_i^2 sigma_{i-1}^2
    q(x_i | x_0)     = N(alpha_i x_0, sigma_i^2)
    q(x_{i-1} | x_i, x_0) by Bayes' rule: variance b_i^2 sigma_{i-1}^2/sigma_i^2, which is 0 at i = 0.

All are the formulas of ``sde.transition_weights`` and ``sde.posterior_weights`` at the knots.

p(x_{i-1} | x_i) is the posterior with a prediction of the data in the place of x_0. Its variance is the posterior's
("small"), the transition's b_i^2 ("large"), or between them by a number v that a network gives for each coordinate
("learned": log variance = v log large + (1 - v) log small; Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 15).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch
from torch import Tensor

from scoresde.diffusions.point import Pair, Point
from scoresde.diffusions.sde import GaussianSDE, posterior_weights, transition_weights
from scoresde.diffusions.tabulated import TabulatedSDE
from scoresde.errors.kinds import ConfigError, DomainError, DTypeError, ShapeError, read_integer, show
from scoresde.errors.names import check_choice
from scoresde.errors.tensors import check_dense, check_device, check_floating, check_numbers, check_values
from scoresde.errors.values import check_flag, check_integer, check_number
from scoresde.ops import accept_arrays, combine, expand
from scoresde.solvers.ancestral import DDIM, VARIANCES, Ancestral, Variance
from scoresde.solvers.langevin import AnnealedLangevin
from scoresde.solvers.rows import CLEAN
from scoresde.solvers.tableau import Tableau

__all__ = ["Chain", "rule_times"]

RULES = ("exact", "song")
INTEGERS = torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8


@dataclass(frozen=True, eq=False, repr=False)
class Chain(ABC):
    """A diffusion at n knots. A kind of chain says what its knots are; all else is derived.

    Args:
        knot_times: times of the knots, (n,), increasing and positive; (i + 1)/n by default. A sub-chain keeps those of
            the chain it was taken from.
    """

    knot_times: Tensor | None = field(default=None, kw_only=True)

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of indices n."""

    @property
    @abstractmethod
    def curves(self) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, sigma and log_snr at the knots, (n,) each, in float64."""

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
        times = check_numbers(self.knot_times, "knot_times")
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
        return torch.arange(1, len(self) + 1, dtype=torch.float64, device="cpu") / len(self)

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
        steps = check_integer(steps, "steps", 1, n)
        return self.take(torch.linspace(0, n, steps + 1, dtype=torch.float64, device="cpu").round().long()[1:] - 1)

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
        check_choice("variance", variance, VARIANCES)
        return Ancestral(1.0, variance).on(self._downwards(steps), self.prior_std)

    def ddim(self, eta: float = 0.0, *, steps: int | None = None) -> Tableau:
        """Return DDIM on the chain as a table, with DDIM's own eta (0 deterministic, 1 ancestral)."""
        eta = check_number(eta, "eta", 0.0)
        return DDIM(eta).on(self._downwards(steps), self.prior_std)

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
        denoise, points = check_flag(denoise, "denoise"), self._downwards(steps)
        return AnnealedLangevin(repeats, step).on(points if denoise else points[:-1], self.prior_std)

    def _downwards(self, steps: int | None) -> Point:
        """Return the knots from the last one down, all or evenly strided, and clean data."""
        chain = self if steps is None else self.strided(steps)
        return chain.points[torch.arange(len(chain), -1, -1, device="cpu")]

    @property
    def transition_weights(self) -> Pair:
        """a_i and b_i of q(x_i | x_{i-1}) = N(a_i x_{i-1}, b_i^2), (n,) each."""
        points = self.points
        return transition_weights(points[:-1], points[1:])

    @property
    def posterior_variance(self) -> Tensor:
        """Variance of q(x_{i-1} | x_i, x_0), (n,); 0 at index 0."""
        points = self.points
        return posterior_weights(points[:-1], points[1:])[2].square()

    @property
    def learned_range(self) -> Pair:
        """Small and large standard deviation of p(x_{i-1} | x_i), (n,) each, with index 1's small one at index 0 too.

        The posterior's is 0 there. A chain of one index has its large one in both.
        """
        small, large = self.posterior_variance.sqrt(), self.transition_weights[1]
        small[0] = small[1] if len(self) > 1 else large[0]
        return small, large

    def check_index(self, index: object, x: Tensor, name: str = "index") -> Tensor:
        """Return integer indices on the CPU, of shape () or (B,), in [0, n).

        Raises:
            DTypeError: floats. ShapeError: another shape. DomainError: out of range.
        """
        if (number := read_integer(index)) is not None:
            if abs(number) >= 2**63:
                raise DomainError(f"{name} must lie in [0, {len(self)}), got {show(number)}")
            index = torch.tensor(number, dtype=torch.int64, device="cpu")
        elif isinstance(index, np.ndarray):
            index = accept_arrays(index, name)
        if isinstance(index, Tensor):
            check_dense(index, name)
            check_values(index, name)
        if not isinstance(index, Tensor) or index.dtype not in INTEGERS:
            raise DTypeError(
                f"{name} of a chain must be an integer in [0, {len(self)}); a real time belongs to its .sde()"
            )
        if index.ndim > 1 or (index.ndim and index.shape[0] != x.shape[0]):
            raise ShapeError(f"{name} must have shape () or ({x.shape[0]},), got {tuple(index.shape)}")
        if bool(((index < 0) | (index >= len(self))).any()):
            raise DomainError(f"{name} must lie in [0, {len(self)}), got {int(index.min())} to {int(index.max())}")
        return index.cpu().long()

    def marginal(self, x0: Tensor, index: Tensor | int) -> tuple[Tensor, Tensor]:
        """Return mean, of shape (B, *), and standard deviation, of the index's shape, of q(x_i | x_0)."""
        i = self.check_index(index, check_floating(x0, "x0"))
        alpha, sigma, _ = self.curves
        return combine((alpha[i], x0)), sigma[i].to(x0)

    def perturb(self, x0: Tensor, index: Tensor | int, noise: Tensor) -> Tensor:
        """Return x_i = alpha_i x_0 + sigma_i noise, of x0's type; ``noise`` has x0's shape (B, *) and device."""
        if check_floating(x0, "x0").shape != check_floating(noise, "noise").shape:
            raise ShapeError(f"noise must have the shape {tuple(x0.shape)} of x0, got {tuple(noise.shape)}")
        check_device(noise.device, "noise", x0.device, "x0")
        i = self.check_index(index, x0)
        alpha, sigma, _ = self.curves
        return combine((alpha[i], x0), (sigma[i], noise))

    def transition(self, x_before: Tensor, index: Tensor | int) -> tuple[Tensor, Tensor]:
        """Return mean, of shape (B, *), and standard deviation, of the index's shape, of q(x_i | x_{i-1}).

        ``x_before`` is x_{i-1}, the clean data where the index is 0.
        """
        i = self.check_index(index, check_floating(x_before, "x_before"))
        a, b = self.transition_weights
        return combine((a[i], x_before)), b[i].to(x_before)

    def posterior(self, x0: Tensor, x_i: Tensor, index: Tensor | int) -> tuple[Tensor, Tensor]:
        """Return mean, of shape (B, *), and standard deviation, of the index's shape, of q(x_{i-1} | x_i, x_0)."""
        if check_floating(x0, "x0").shape != check_floating(x_i, "x_i").shape:
            raise ShapeError(f"x0 and x_i must agree, got shapes {tuple(x0.shape)} and {tuple(x_i.shape)}")
        check_device(x0.device, "x0", x_i.device, "x_i")
        i, points = self.check_index(index, x0), self.points
        on_x, on_data, std = (w[i] for w in posterior_weights(points[:-1], points[1:]))
        return combine((on_x, x_i), (on_data, x0)), std.to(x0)

    def reverse(
        self,
        data: Tensor,
        x_i: Tensor,
        index: Tensor | int,
        *,
        variance: str = "small",
        fraction: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return mean, of shape (B, *), and standard deviation of p(x_{i-1} | x_i), given a prediction of the data.

        Args:
            data: the prediction of x_0 at x_i, (B, *).
            x_i: the state, (B, *).
            index: i, an integer or integers of shape (B,).
            variance: "small" (the posterior's), "large" (b_i^2), both with a standard deviation of the index's shape,
                or "learned", of x_i's shape.
            fraction: v of the learned variance, of x_i's shape, 0 for small and 1 for large; it may lie outside. At
                index 0, where small is 0, index 1's takes its place, as in the source.

        Source: Ho et al. 2020; Nichol and Dhariwal 2021, "Improved denoising diffusion probabilistic models", eq. 15.

        Raises:
            ConfigError: another variance, or a fraction without (or not with) the learned one. ShapeError, DTypeError,
                DomainError: as ``posterior``, and a fraction of another shape.
        """
        check_choice("variance", variance, VARIANCES)
        if (fraction is None) == (variance == "learned"):
            raise ConfigError(f"fraction= belongs to variance='learned', and it needs one; got variance={variance!r}")
        mean, std = self.posterior(data, x_i, index)
        if variance == "small":
            return mean, std
        i, (small, large) = self.check_index(index, x_i), self.learned_range
        if fraction is None:
            return mean, large[i].to(x_i)
        if check_floating(fraction, "fraction").shape != x_i.shape:
            raise ShapeError(f"fraction must have the shape {tuple(x_i.shape)} of x_i, got {tuple(fraction.shape)}")
        check_device(fraction.device, "fraction", x_i.device, "x_i")
        low, high = (expand(s[i].log(), x_i) for s in (small, large))
        return mean, (fraction * high + (1 - fraction) * low).exp()


def rule_times(sde: GaussianSDE, n: int, rule: str) -> Tensor:
    """Return the n times that a rule of ``from_sde`` looks at: t_max (i + 1)/n for "exact", t_max i/(n - 1) for "song".

    Raises DTypeError, DomainError for n and ConfigError for an unknown rule.
    """
    n = check_integer(n, "n", 1)
    check_choice("rule", rule, RULES)
    if not isinstance(sde, GaussianSDE):
        raise DTypeError(f"sde must be a GaussianSDE, e.g. VPSDE(), got {show(sde)}", parameter="sde")
    if rule == "song" and n > 1:
        return sde.t_max * torch.linspace(0, 1, n, dtype=torch.float64, device="cpu")
    return sde.t_max * torch.arange(1, n + 1, dtype=torch.float64, device="cpu") / n
