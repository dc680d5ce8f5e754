r"""DDPM: a chain that preserves variance.

    q(x_i | x_{i-1}) = N(sqrt(1 - beta_i) x_{i-1}, beta_i),

so that with L_i = sum_{j <= i} log(1 - beta_j) = log(alpha_bar_i)

    alpha_i = e^{L_i/2},     sigma_i = sqrt(1 - e^{L_i}),     log_snr_i = L_i - log(1 - e^{L_i}).

The last beta may be 1 ("zero terminal SNR", Lin et al. 2024, arXiv:2305.08891): nothing of the data is left in x_{n-1},
and a network must predict the data, v or the velocity there. The chain carries log(1 - beta), since 1 - beta loses
digits. At the knots the transition of the chain's SDE has
a^2 = 1 - beta_i and b^2 = beta_i, and the forward posterior (Ho et al. 2020, eq. 6 and 7) is Bayes' rule between
neighbouring knots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.chains.base import Chain, rule_times
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.kinds import ConfigError, DomainError, ShapeError
from scoresde.errors.tensors import check_numbers
from scoresde.errors.values import check_integer, check_number

__all__ = ["DDPM"]


def _bad_beta(index: int, beta: float) -> DomainError:
    return DomainError(
        f"every beta must lie in (0, 1), the last one in (0, 1]; at index {index} it is {beta:g}: use more steps or "
        "rule='exact'"
    )


def _log_sinh(x: Tensor) -> Tensor:
    """Return log sinh x for x >= 0."""
    return x + (-torch.expm1(-2 * x)).log() - math.log(2)


def _log_cosh(x: Tensor) -> Tensor:
    """Return log cosh x."""
    return x.abs() + torch.log1p((-2 * x.abs()).exp()) - math.log(2)


@dataclass(frozen=True, eq=False, repr=False)
class DDPM(Chain):
    """Denoising diffusion probabilistic models: betas as a chain.

    Source: Ho et al. 2020, "Denoising diffusion probabilistic models", arXiv:2006.11239.

    Args:
        log_alphas: log(1 - beta_i), (n,), float64, all negative and finite; of two or more the last may be minus
            infinity.

    Raises:
        ShapeError: no vector. DomainError: a beta outside (0, 1), or a last one outside (0, 1].
    """

    log_alphas: Tensor

    def __post_init__(self) -> None:
        logs = check_numbers(self.log_alphas, "log_alphas")
        if logs.ndim != 1 or len(logs) == 0:
            raise ShapeError(f"log_alphas must be a vector with one number for each index, got {tuple(logs.shape)}")
        if bool(((logs > 0) & (logs < 1)).all()):
            raise DomainError("DDPM takes log(1 - beta), which is negative; for betas use DDPM.from_betas(betas)")
        good = torch.isfinite(logs) & (logs < 0)
        good[-1] |= (logs[-1] == -math.inf) & (len(logs) > 1)
        if not bool(good.all()):
            bad = int((~good).nonzero()[0])
            raise _bad_beta(bad, float(-torch.expm1(logs[bad])))
        object.__setattr__(self, "log_alphas", logs)
        self._check_times()

    @classmethod
    def from_betas(cls, betas: Tensor) -> DDPM:
        """Build the chain of given betas, each in (0, 1); the last may be 1, as rescaled schedules have it."""
        return cls._of(check_numbers(betas, "betas"), most=1.0)

    @classmethod
    def _of(cls, betas: Tensor, most: float = math.nextafter(1.0, 0.0)) -> DDPM:
        """Build the chain of betas up to ``most``: a rule that reaches 1 does so by accident."""
        bad = ~((betas > 0) & (betas <= most))
        if bad.any():
            first = int(bad.reshape(-1).nonzero()[0])
            raise _bad_beta(first, float(betas.reshape(-1)[first]))
        return cls(torch.log1p(-betas))

    @classmethod
    def linear(cls, n: int = 1000, *, beta_start: float | None = None, beta_end: float | None = None) -> DDPM:
        """Build Ho et al.'s chain: betas evenly spaced from 0.1/n to 20/n (1e-4 to 0.02 at n = 1000).

        Raises DomainError where a beta reaches 1, as at n <= 20 with the default ends.
        """
        n = check_integer(n, "n", 1)
        start = check_number(0.1 / n if beta_start is None else beta_start, "beta_start", 0.0, open_low=True)
        end = check_number(20.0 / n if beta_end is None else beta_end, "beta_end", start)
        return cls._of(torch.linspace(start, end, n, dtype=torch.float64, device="cpu"))

    @classmethod
    def cosine(cls, n: int = 1000, *, offset: float = 0.008, max_beta: float = 0.999) -> DDPM:
        """Build Nichol and Dhariwal's chain: alpha_bar = cos^2(pi/2 (t + offset)/(1 + offset)), normalised at t = 0.

        betas are cut at ``max_beta``. Source: Nichol and Dhariwal 2021, "Improved denoising diffusion probabilistic
        models", arXiv:2102.09672, eq. 17.
        """
        n = check_integer(n, "n", 1)
        offset = check_number(offset, "offset", 0.0)
        max_beta = check_number(max_beta, "max_beta", 0.0, 1.0, open_low=True, open_high=True)
        angle = (torch.arange(n + 1, dtype=torch.float64, device="cpu") / n + offset) / (1 + offset) * (math.pi / 2)
        # log(cos^2) loses digits where the cosine is near 1, log(1 - sin^2) where it is near 0.
        logs = torch.where(angle < math.pi / 4, torch.log1p(-angle.sin().square()), 2 * angle.cos().abs().log())
        steps = logs.diff()
        return cls(steps.clamp_min(math.log1p(-max_beta)))

    @classmethod
    def sigmoid(
        cls, n: int = 1000, *, start: float = -3.0, end: float = 3.0, tau: float = 1.0, clip: float = 1e-9
    ) -> DDPM:
        """Build the chain whose alpha_bar is a sigmoid, scaled to 1 at t = 0 and 0 at t = 1.

        With S the logistic function and u(t) = (start + (end - start) t)/tau,

            alpha_bar(t) = (S(u(1)) - S(u(t)))/(S(u(1)) - S(u(0))),     t = (i + 1)/n,     and not below ``clip``.

        Source: Jabri, Fleet and Chen 2022, "Scalable adaptive computation for iterative generation", arXiv:2212.11972;
        Chen 2023, "On the importance of noise scheduling for diffusion models", arXiv:2301.10972.

        Args:
            n: number of indices.
            start: argument of the sigmoid at t = 0, times tau.
            end: the same at t = 1, above ``start``.
            tau: temperature, positive; a smaller one makes the ends flatter and the middle steeper.
            clip: smallest alpha_bar, in (0, 1); it is reached at t = 1.

        Raises:
            DTypeError, DomainError: options out of range, or so flat an end that neighbouring alpha_bar are equal.
        """
        n = check_integer(n, "n", 1)
        tau = check_number(tau, "tau", 0.0, open_low=True)
        first = check_number(start, "start")
        low, width = first / tau, (check_number(end, "end", first, open_low=True) - first) / tau
        clip = check_number(clip, "clip", 0.0, 1.0, open_low=True, open_high=True)
        t = torch.arange(n + 1, dtype=torch.float64, device="cpu") / n
        u = low + width * t
        # S(a) - S(b) = sinh((a - b)/2)/(2 cosh(a/2) cosh(b/2)), so that alpha_bar and 1 - alpha_bar are both products.
        whole = _log_sinh(0.5 * width * torch.ones_like(t)) + _log_cosh(0.5 * u)
        left = _log_sinh(0.5 * width * (1 - t)) + _log_cosh(0.5 * u[:1]) - whole
        gone = _log_sinh(0.5 * width * t) + _log_cosh(0.5 * u[-1:]) - whole
        logs = torch.where(gone < left, torch.log1p(-gone.exp()), left).clamp_min(math.log(clip))
        steps = logs.diff()
        if bool((steps >= 0).any()):
            flat = int((steps >= 0).nonzero()[0])
            raise DomainError(
                f"alpha_bar stands still at index {flat}, at {math.exp(float(logs[flat + 1])):g}: the sigmoid's "
                "end is too flat; use a larger tau, start and end closer together, a smaller clip or fewer indices"
            )
        return cls(steps)

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
        times = rule_times(sde, n, rule)
        if float((sde.at(times[times > 0]).r - 1).abs().max()) > 1e-9:
            raise ConfigError(f"a DDPM chain preserves variance, {sde!r} does not; use VPSDE or another such SDE")
        if rule == "song":
            return cls._of(sde.diffusion(times).square() * sde.t_max / n)
        logs = torch.nn.functional.logsigmoid(sde.log_snr(times))
        return cls(logs.diff(prepend=torch.zeros(1, dtype=torch.float64, device="cpu")))

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
    def curves(self) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, sigma and log_snr at the knots, (n,) each."""
        logs = self.log_alphas_cumprod
        variance = -torch.expm1(logs)
        return (0.5 * logs).exp(), variance.sqrt(), logs - variance.log()

    @property
    def prior_std(self) -> float:
        """1."""
        return 1.0

    @property
    def knot_log_alpha(self) -> None:
        """None: the chain preserves variance."""
        return

    def take(self, kept: Tensor) -> DDPM:
        """Return the chain of the kept indices: the log(1 - beta) between two of them add up."""
        segment = torch.searchsorted(kept, torch.arange(int(kept[-1]) + 1, device="cpu"))
        logs = torch.zeros(len(kept), dtype=torch.float64, device="cpu").index_add(
            0, segment, self.log_alphas[: len(segment)]
        )
        return DDPM(logs, knot_times=self.times[kept])
