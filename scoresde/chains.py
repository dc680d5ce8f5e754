r"""Discrete chains: DDPM as a diffusion seen at its knots.

A chain of n indices i = 0 ... n - 1 has q(x_i | x_{i-1}) = N(sqrt(1 - beta_i) x_{i-1}, beta_i), so that with
L_i = sum_{j <= i} log(1 - beta_j) = log(alpha_bar_i)

    alpha_i = e^{L_i/2},     sigma_i = sqrt(1 - e^{L_i}),     log_snr_i = L_i - log(1 - e^{L_i}).

Index i sits at the time (i + 1)/n of the chain's SDE; clean data sit at time 0. The chain carries log(1 - beta), since
1 - beta loses digits. At the knots the SDE's transition has a^2 = 1 - beta_i and b^2 = beta_i, and all else is the
SDE's: the forward posterior (Ho et al. 2020, eq. 6 and 7) is Bayes' rule between neighbouring knots, and the chain's
samplers are the tables of ``solvers.ancestral`` and ``solvers.ddim`` on its knots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.errors import (
    ConfigError,
    DomainError,
    DTypeError,
    ShapeError,
    check_floating,
    check_integer,
    check_number,
    unknown,
)
from scoresde.ops import expand
from scoresde.readout import Point
from scoresde.sde import GaussianSDE, posterior_weights
from scoresde.solvers.ancestral import ancestral_table, ddim_table
from scoresde.tableau import Tableau
from scoresde.tabulated import TabulatedSDE

__all__ = ["DDPM"]

VARIANCES = ("small", "large")


def _bad_beta(index: int, beta: float) -> DomainError:
    return DomainError(
        f"every beta must lie in (0, 1); at index {index} it is {beta:g}: use more steps or rule='exact'"
    )


@dataclass(frozen=True, eq=False, repr=False)
class DDPM:
    """A variance-preserving chain.

    Source: Ho et al. 2020, "Denoising diffusion probabilistic models".

    Args:
        log_alphas: log(1 - beta_i), (n,), float64, all negative and finite.

    Raises:
        ShapeError: no vector. DomainError: a beta outside (0, 1).
    """

    log_alphas: Tensor

    def __post_init__(self) -> None:
        """Check the betas."""
        logs = torch.as_tensor(self.log_alphas).detach().to("cpu", torch.float64)
        if logs.ndim != 1 or len(logs) == 0:
            raise ShapeError(f"log_alphas must be a vector with one number for each index, got {tuple(logs.shape)}")
        if not bool(torch.isfinite(logs).all() and (logs < 0).all()):
            bad = int((~torch.isfinite(logs) | (logs >= 0)).nonzero()[0])
            raise _bad_beta(bad, float(-torch.expm1(logs[bad])))
        object.__setattr__(self, "log_alphas", logs)

    @classmethod
    def from_betas(cls, betas: Tensor) -> DDPM:
        """Build the chain of given betas, each in (0, 1)."""
        values = torch.as_tensor(betas).detach().to("cpu", torch.float64)
        bad = ~((values > 0) & (values < 1))
        if bad.any():
            first = int(bad.reshape(-1).nonzero()[0])
            raise _bad_beta(first, float(values.reshape(-1)[first]))
        return cls(torch.log1p(-values))

    @classmethod
    def linear(cls, n: int = 1000, *, beta_start: float | None = None, beta_end: float | None = None) -> DDPM:
        """Build Ho et al.'s chain: betas evenly spaced from 0.1/n to 20/n (1e-4 to 0.02 at n = 1000).

        Raises DomainError where a beta reaches 1, as at n <= 20 with the default ends.
        """
        check_integer(n, "n", 1)
        start = check_number(0.1 / n if beta_start is None else beta_start, "beta_start", 0.0, open_low=True)
        end = check_number(20.0 / n if beta_end is None else beta_end, "beta_end", start)
        return cls.from_betas(torch.linspace(start, end, n, dtype=torch.float64))

    @classmethod
    def cosine(cls, n: int = 1000, *, offset: float = 0.008, max_beta: float = 0.999) -> DDPM:
        """Build Nichol and Dhariwal's chain: alpha_bar = cos^2(pi/2 (t + offset)/(1 + offset)), normalised at t = 0.

        betas are cut at ``max_beta``. Source: "Improved denoising diffusion probabilistic models", 2021, eq. 17.
        """
        check_integer(n, "n", 1)
        check_number(offset, "offset", 0.0)
        check_number(max_beta, "max_beta", 0.0, 1.0, open_low=True, open_high=True)
        angle = (torch.arange(n + 1, dtype=torch.float64) / n + offset) / (1 + offset) * (math.pi / 2)
        # log(cos^2) loses digits where the cosine is near 1, log(1 - sin^2) where it is near 0.
        logs = torch.where(angle < math.pi / 4, torch.log1p(-angle.sin().square()), 2 * angle.cos().abs().log())
        steps = logs.diff()
        return cls(steps.clamp_min(math.log1p(-max_beta)))

    @classmethod
    def from_sde(cls, sde: GaussianSDE, n: int, *, rule: str = "exact") -> DDPM:
        """Build the chain of a variance-preserving SDE at the n times t_max (i + 1)/n.

        Args:
            sde: the SDE; alpha^2 + sigma^2 = 1.
            n: number of indices.
            rule: "exact": 1 - beta_i = (alpha_{t_i}/alpha_{t_{i-1}})^2, which has the SDE's marginals at every knot;
                "song": beta_i = beta(i t_max/(n - 1)) t_max/n, of first order in 1/n (Song et al. 2021, appendix C).

        Raises:
            ConfigError: an SDE that does not preserve variance, or an unknown rule. DomainError: a beta reaches 1.
        """
        check_integer(n, "n", 1)
        times = sde.t_max * torch.arange(1, n + 1, dtype=torch.float64) / n
        points = sde.at(times)
        if float((points.r - 1).abs().max()) > 1e-9:
            raise ConfigError(f"a DDPM chain preserves variance, {sde!r} does not; use VPSDE or another such SDE")
        if rule == "song":
            fractions = torch.linspace(0, 1, n, dtype=torch.float64) if n > 1 else torch.ones(1, dtype=torch.float64)
            return cls.from_betas(sde.diffusion(sde.t_max * fractions).square() * sde.t_max / n)
        if rule != "exact":
            raise unknown("rule", rule, ("exact", "song"))
        logs = torch.nn.functional.logsigmoid(points.log_snr)
        return cls(logs.diff(prepend=torch.zeros(1, dtype=torch.float64)))

    def __len__(self) -> int:
        """Return the number of indices n."""
        return len(self.log_alphas)

    def __repr__(self) -> str:
        """Name the length and the range of betas."""
        betas = self.betas
        return f"DDPM({len(self)} steps, beta {float(betas[0]):g} to {float(betas[-1]):g})"

    @property
    def betas(self) -> Tensor:
        """beta_i, (n,)."""
        return -torch.expm1(self.log_alphas)

    @property
    def log_alphas_cumprod(self) -> Tensor:
        """L_i = log(alpha_bar_i), (n,)."""
        return self.log_alphas.cumsum(0)

    @property
    def alphas_cumprod(self) -> Tensor:
        """alpha_bar_i, (n,)."""
        return self.log_alphas_cumprod.exp()

    @property
    def times(self) -> Tensor:
        """The knots' times (i + 1)/n, (n,)."""
        return torch.arange(1, len(self) + 1, dtype=torch.float64) / len(self)

    @property
    def points(self) -> Point:
        """Clean data and then every knot: fields of shape (n + 1,)."""
        logs = self.log_alphas_cumprod
        zero = torch.zeros(1, dtype=torch.float64)
        sigma = (-torch.expm1(logs)).sqrt()
        log_snr = logs - (-torch.expm1(logs)).log()
        return Point(
            torch.cat([zero, self.times]),
            torch.cat([zero + 1, (0.5 * logs).exp()]),
            torch.cat([zero, sigma]),
            torch.cat([zero + math.inf, log_snr]),
        )

    @property
    def posterior_variance(self) -> Tensor:
        """Variance of q(x_{i-1} | x_i, x_0), (n,); 0 at index 0."""
        points = self.points
        return posterior_weights(points[:-1], points[1:])[2].square()

    def sde(self) -> TabulatedSDE:
        """Return the variance-preserving SDE through the knots.

        Raises ConfigError for a chain of one index, through which no curve is defined.
        """
        if len(self) < 2:
            raise ConfigError("a chain of one index defines no SDE between knots; its tables work all the same")
        return TabulatedSDE(self.times, self.points.log_snr[1:])

    def check_index(self, index: object, x: Tensor, name: str = "index") -> Tensor:
        """Return integer indices on the CPU, of shape () or (B,), in [0, n).

        Raises:
            DTypeError: floats. ShapeError: another shape. DomainError: out of range.
        """
        if isinstance(index, int) and not isinstance(index, bool):
            index = torch.tensor(index)
        if not isinstance(index, Tensor) or index.dtype.is_floating_point or index.dtype == torch.bool:
            raise DTypeError(
                f"{name} of a chain must be an integer in [0, {len(self)}); a real time belongs to its .sde()"
            )
        if index.ndim > 1 or (index.ndim and index.shape[0] != x.shape[0]):
            raise ShapeError(f"{name} must have shape () or ({x.shape[0]},), got {tuple(index.shape)}")
        if bool(((index < 0) | (index >= len(self))).any()):
            raise DomainError(f"{name} must lie in [0, {len(self)}), got {int(index.min())} to {int(index.max())}")
        return index.cpu().long()

    def perturb(self, x0: Tensor, index: Tensor | int, noise: Tensor) -> Tensor:
        """Return x_i = sqrt(alpha_bar_i) x_0 + sqrt(1 - alpha_bar_i) noise, of x0's shape (B, *)."""
        if noise.shape != check_floating(x0, "x0").shape:
            raise ShapeError(f"noise must have the shape {tuple(x0.shape)} of x0, got {tuple(noise.shape)}")
        i = self.check_index(index, x0) + 1
        return expand(self.points.alpha[i], x0) * x0 + expand(self.points.sigma[i], x0) * noise

    def posterior(self, x0: Tensor, x_i: Tensor, index: Tensor | int) -> tuple[Tensor, Tensor]:
        """Return mean, of shape (B, *), and standard deviation, of the index's shape, of q(x_{i-1} | x_i, x_0)."""
        if x0.shape != check_floating(x_i, "x_i").shape:
            raise ShapeError(f"x0 and x_i must agree, got shapes {tuple(x0.shape)} and {tuple(x_i.shape)}")
        i, points = self.check_index(index, x0), self.points
        on_x, on_data, std = (w[i] for w in posterior_weights(points[:-1], points[1:]))
        return expand(on_x, x_i) * x_i + expand(on_data, x0) * x0, std.to(x0)

    def ancestral(self, *, variance: str = "small", steps: int | None = None) -> Tableau:
        """Return ancestral sampling as a table: x_{i-1} from the posterior with the data prediction for x_0.

        Args:
            variance: "small" (the posterior's) or "large" (beta_i); no noise enters the last step.
            steps: evaluations on evenly strided indices; all n by default.

        Raises:
            ConfigError: another variance. DomainError: more steps than indices.
        """
        if variance not in VARIANCES:
            raise unknown("variance", variance, VARIANCES)
        return ancestral_table(self._strided(steps), prior_std=1.0, variance=variance)

    def ddim(self, eta: float = 0.0, *, steps: int | None = None) -> Tableau:
        """Return DDIM on the chain as a table, with DDIM's own eta (0 deterministic, 1 ancestral)."""
        check_number(eta, "eta", 0.0)
        return ddim_table(self._strided(steps), prior_std=1.0, eta=eta)

    def _strided(self, steps: int | None) -> Point:
        """Return ``steps`` knots from the last one down, evenly strided, and clean data."""
        n = len(self)
        count = n if steps is None else check_integer(steps, "steps", 1, n)
        index = torch.linspace(n, 0, count + 1, dtype=torch.float64).round().long()
        return self.points[index]
