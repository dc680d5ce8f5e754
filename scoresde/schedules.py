r"""The named diffusions: each is two curves, written in the form that does not cancel.

| class | alpha | sigma | log_snr |
|---|---|---|---|
| VPSDE | e^{-B/2} | sqrt(1 - e^{-B}) | -B - log(1 - e^{-B}) |
| SubVPSDE | e^{-B/2} | 1 - e^{-B} | -2 log(2 sinh(B/2)) |
| VESDE | 1 | s_min (s_max/s_min)^t | -2 log sigma |
| CosineVPSDE | cos(theta_t)/cos(theta_0) | sqrt(1 - alpha^2) | log(alpha^2/sigma^2) |
| EDMSDE | 1 | t | -2 log t |
| RectifiedFlow | 1 - t | t | 2 log((1 - t)/t) |

B(t) is the integral of beta, beta(t) = beta_min + t (beta_max - beta_min). Conventions where the literature disagrees:

* VE at t = 0: here sigma(0) = sigma_min, so that x_t = x_0 + sigma(t) z. Song et al. write the transition from t = 0
  with the variance sigma(t)^2 - sigma_min^2 and then use sigma(t) for the marginal, as here.
* ``log_snr`` is log(alpha^2/sigma^2); papers on fast solvers call half of it lambda.
* The number of steps belongs to a time grid, never to an SDE.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import softplus

from scoresde.errors import DomainError, check_number
from scoresde.sde import GaussianSDE, schedule

__all__ = ["EDMSDE", "SCHEDULES", "VESDE", "VPSDE", "CosineVPSDE", "RectifiedFlow", "SubVPSDE"]


@dataclass(frozen=True)
class _LinearBeta(GaussianSDE):
    """What the diffusions with a linear beta(t) share."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        """Check 0 <= beta_min <= beta_max, not both 0."""
        super().__post_init__()
        check_number(self.beta_min, "beta_min", 0.0)
        check_number(self.beta_max, "beta_max", self.beta_min)
        if self.beta_max == 0:
            raise DomainError("beta_max must be positive, got 0: nothing would diffuse")

    @schedule
    def beta(self, t: Tensor) -> Tensor:
        """Evaluate the rate beta_min + t (beta_max - beta_min), in 1/t."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    @schedule
    def integral(self, t: Tensor) -> Tensor:
        """Return B(t), the integral of beta from 0 to t."""
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def inverse_integral(self, b: Tensor) -> Tensor:
        """Return the t with B(t) = b, without subtraction."""
        slope = self.beta_max - self.beta_min
        return 2 * b / (self.beta_min + (self.beta_min**2 + 2 * slope * b).sqrt())

    @schedule
    def alpha(self, t: Tensor) -> Tensor:
        """Return e^{-B/2}."""
        return (-0.5 * self.integral(t)).exp()

    @schedule
    def alpha_rate(self, t: Tensor) -> Tensor:
        """Return -beta alpha / 2."""
        return -0.5 * self.beta(t) * self.alpha(t)

    @schedule
    def drift_rate(self, t: Tensor) -> Tensor:
        """Return -beta/2."""
        return -0.5 * self.beta(t)

    @schedule
    def prior_std(self, t: Tensor) -> Tensor:
        """Return 1, at every t."""
        return torch.ones_like(t)


@dataclass(frozen=True)
class VPSDE(_LinearBeta):
    """Variance preserving: dx = -beta/2 x dt + sqrt(beta) dw, so alpha^2 + sigma^2 = 1; the limit of DDPM.

    Source: Song et al. 2021, "Score-based generative modeling through stochastic differential equations", eq. 11.

    Args:
        beta_min: beta(0), in 1/t.
        beta_max: beta(1), in 1/t.
        t_min: smallest time of use.
        t_max: time at which sampling starts.

    Raises:
        DomainError: unless 0 <= beta_min <= beta_max and 0 < t_min < t_max.
    """

    @schedule
    def sigma(self, t: Tensor) -> Tensor:
        """Return sqrt(1 - e^{-B})."""
        return (-torch.expm1(-self.integral(t))).sqrt()

    @schedule
    def sigma_rate(self, t: Tensor) -> Tensor:
        """Return beta e^{-B} / (2 sigma)."""
        return 0.5 * self.beta(t) * (-self.integral(t)).exp() / self.sigma(t)

    @schedule
    def diffusion(self, t: Tensor) -> Tensor:
        """Return sqrt(beta)."""
        return self.beta(t).sqrt()

    @schedule
    def log_snr(self, t: Tensor) -> Tensor:
        """Return -B - log(1 - e^{-B})."""
        b = self.integral(t)
        return -b - (-torch.expm1(-b)).log()

    @schedule
    def time(self, log_snr: Tensor) -> Tensor:
        """Return the t with B(t) = log(1 + e^{-log_snr})."""
        return self.inverse_integral(softplus(-log_snr, threshold=math.inf))


@dataclass(frozen=True)
class SubVPSDE(_LinearBeta):
    """Sub-VP: alpha = e^{-B/2} and sigma = 1 - e^{-B}, so nu = 2 sinh(B/2) and g^2 = beta (1 - e^{-2B}).

    Source: Song et al. 2021, eq. 12. Arguments and errors as for VPSDE.
    """

    @schedule
    def sigma(self, t: Tensor) -> Tensor:
        """Return 1 - e^{-B}."""
        return -torch.expm1(-self.integral(t))

    @schedule
    def sigma_rate(self, t: Tensor) -> Tensor:
        """Return beta e^{-B}."""
        return self.beta(t) * (-self.integral(t)).exp()

    @schedule
    def diffusion(self, t: Tensor) -> Tensor:
        """Return sqrt(beta (1 - e^{-2B}))."""
        return (self.beta(t) * -torch.expm1(-2 * self.integral(t))).sqrt()

    @schedule
    def log_snr(self, t: Tensor) -> Tensor:
        """Return -B - 2 log(1 - e^{-B})."""
        b = self.integral(t)
        return -b - 2 * (-torch.expm1(-b)).log()

    @schedule
    def time(self, log_snr: Tensor) -> Tensor:
        """Return the t with B(t) = 2 asinh(e^{-log_snr/2} / 2)."""
        return self.inverse_integral(2 * torch.asinh(0.5 * (-0.5 * log_snr).exp()))


@dataclass(frozen=True)
class _UnitAlpha(GaussianSDE):
    """What the diffusions that only add noise share."""

    @schedule
    def alpha(self, t: Tensor) -> Tensor:
        """Return 1."""
        return torch.ones_like(t)

    @schedule
    def alpha_rate(self, t: Tensor) -> Tensor:
        """Return 0."""
        return torch.zeros_like(t)


@dataclass(frozen=True)
class VESDE(_UnitAlpha):
    """Variance exploding: dx = g dw with alpha = 1 and sigma = sigma_min (sigma_max/sigma_min)^t, also at t = 0.

    Source: Song et al. 2021, eq. 9; NCSN's geometric noise levels.

    Args:
        sigma_min: sigma(0), in the unit of the data.
        sigma_max: sigma(1); about the largest distance between data points.
        t_min: smallest time of use.
        t_max: time at which sampling starts.

    Raises:
        DomainError: unless 0 < sigma_min < sigma_max and 0 < t_min < t_max.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        """Check 0 < sigma_min < sigma_max."""
        super().__post_init__()
        check_number(self.sigma_min, "sigma_min", 0.0, open_low=True)
        check_number(self.sigma_max, "sigma_max", self.sigma_min, open_low=True)

    @property
    def log_ratio(self) -> float:
        """log(sigma_max/sigma_min), the rate of log sigma."""
        return math.log(self.sigma_max / self.sigma_min)

    @schedule
    def sigma(self, t: Tensor) -> Tensor:
        """Return sigma_min (sigma_max/sigma_min)^t; the end points are exact."""
        return torch.pow(self.sigma_min, 1 - t) * torch.pow(self.sigma_max, t)

    @schedule
    def sigma_rate(self, t: Tensor) -> Tensor:
        """Return sigma log(sigma_max/sigma_min)."""
        return self.sigma(t) * self.log_ratio

    @schedule
    def diffusion(self, t: Tensor) -> Tensor:
        """Return sigma sqrt(2 log(sigma_max/sigma_min))."""
        return self.sigma(t) * math.sqrt(2 * self.log_ratio)

    @schedule
    def log_snr(self, t: Tensor) -> Tensor:
        """Return -2 log sigma."""
        return -2 * (math.log(self.sigma_min) + t * self.log_ratio)

    @schedule
    def time(self, log_snr: Tensor) -> Tensor:
        """Return log(sigma/sigma_min) / log(sigma_max/sigma_min)."""
        return (-0.5 * log_snr - math.log(self.sigma_min)) / self.log_ratio


@dataclass(frozen=True)
class CosineVPSDE(GaussianSDE):
    """Variance preserving with alpha = cos(theta_t)/cos(theta_0), theta_t = pi/2 (t + offset)/(1 + offset).

    alpha reaches 0 at t = 1; the default t_max = 0.9946 stops at log_snr = -9.6, near VPSDE's end. Source: Nichol and
    Dhariwal 2021, "Improved denoising diffusion probabilistic models", eq. 17, whose chain ``DDPM.cosine`` is.

    Args:
        offset: s, which keeps the first steps from being tiny.
        t_min: smallest time of use.
        t_max: time at which sampling starts, at most 1.

    Raises:
        DomainError: unless offset >= 0 and 0 < t_min < t_max <= 1.
    """

    t_max: float = field(default=0.9946, kw_only=True)
    offset: float = 0.008

    def __post_init__(self) -> None:
        """Check offset >= 0 and t_max <= 1."""
        super().__post_init__()
        check_number(self.offset, "offset", 0.0)
        check_number(self.t_max, "t_max", 0.0, 1.0)

    @property
    def speed(self) -> float:
        """D theta/dt."""
        return 0.5 * math.pi / (1 + self.offset)

    @property
    def first(self) -> float:
        """theta_0."""
        return self.speed * self.offset

    @schedule
    def alpha(self, t: Tensor) -> Tensor:
        """Return cos(theta_t)/cos(theta_0), with the cosine as the sine of what is left to pi/2."""
        return torch.sin(self.speed * (1 - t)) / math.cos(self.first)

    @schedule
    def sigma(self, t: Tensor) -> Tensor:
        """Return sqrt(sin(theta_t - theta_0) sin(theta_t + theta_0))/cos(theta_0)."""
        return self._squared(t).sqrt() / math.cos(self.first)

    def _tangent(self, t: Tensor) -> Tensor:
        """Return tan(theta_t), with no cancellation at either end."""
        return torch.sin(self.first + self.speed * t) / torch.sin(self.speed * (1 - t))

    def _squared(self, t: Tensor) -> Tensor:
        """Return cos(theta_0)^2 - cos(theta_t)^2 without cancellation."""
        return torch.sin(self.speed * t) * torch.sin(self.speed * t + 2 * self.first)

    @schedule
    def alpha_rate(self, t: Tensor) -> Tensor:
        """Return -sin(theta_t) theta'/cos(theta_0)."""
        return -self.speed * torch.sin(self.first + self.speed * t) / math.cos(self.first)

    @schedule
    def sigma_rate(self, t: Tensor) -> Tensor:
        """Return -alpha alpha'/sigma."""
        return -self.alpha(t) * self.alpha_rate(t) / self.sigma(t)

    @schedule
    def drift_rate(self, t: Tensor) -> Tensor:
        """Return -theta' tan(theta_t)."""
        return -self.speed * self._tangent(t)

    @schedule
    def diffusion(self, t: Tensor) -> Tensor:
        """Return sqrt(beta), beta = 2 theta' tan(theta_t)."""
        return (2 * self.speed * self._tangent(t)).sqrt()

    @schedule
    def log_snr(self, t: Tensor) -> Tensor:
        """Return 2 log cos(theta_t) - log(sin(theta_t - theta_0) sin(theta_t + theta_0))."""
        return 2 * torch.sin(self.speed * (1 - t)).log() - self._squared(t).log()

    @schedule
    def time(self, log_snr: Tensor) -> Tensor:
        """Return the t with cos(theta_t)^2 = cos(theta_0)^2 sigmoid(log_snr)."""
        inner = math.cos(self.first)
        sine = math.sin(self.first) ** 2 + inner**2 * torch.sigmoid(-log_snr)
        theta = torch.atan2(sine.sqrt(), inner * torch.sigmoid(log_snr).sqrt())
        # theta - theta_0 anew, without cancellation at small t.
        gap = torch.asin((inner**2 * torch.sigmoid(-log_snr) / torch.sin(theta + self.first)).clamp_max(1.0))
        return torch.where(theta - self.first < 0.5, gap, theta - self.first) / self.speed

    @schedule
    def prior_std(self, t: Tensor) -> Tensor:
        """Return 1, at every t."""
        return torch.ones_like(t)


class _SigmaIsTime:
    """What the diffusions share whose time is the noise level itself."""

    @schedule
    def sigma(self, t: Tensor) -> Tensor:
        """Return t."""
        return t.clone()

    @schedule
    def sigma_rate(self, t: Tensor) -> Tensor:
        """Return 1."""
        return torch.ones_like(t)


@dataclass(frozen=True)
class EDMSDE(_SigmaIsTime, _UnitAlpha):
    """EDM's diffusion: alpha = 1 and sigma = t, for t in [sigma_min, sigma_max].

    Source: Karras et al. 2022, "Elucidating the design space of diffusion-based generative models".

    Args:
        sigma_min: the smallest noise level, which is t_min.
        sigma_max: the largest noise level, which is t_max.

    Raises:
        DomainError: unless 0 < sigma_min < sigma_max.
    """

    t_min: float = field(init=False, repr=False, default=0.002)
    t_max: float = field(init=False, repr=False, default=80.0)
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        """Check 0 < sigma_min < sigma_max; they are the ends of time."""
        check_number(self.sigma_min, "sigma_min", 0.0, open_low=True)
        check_number(self.sigma_max, "sigma_max", self.sigma_min, open_low=True)
        object.__setattr__(self, "t_min", float(self.sigma_min))
        object.__setattr__(self, "t_max", float(self.sigma_max))

    @schedule
    def diffusion(self, t: Tensor) -> Tensor:
        """Return sqrt(2 t)."""
        return (2 * t).sqrt()

    @schedule
    def log_snr(self, t: Tensor) -> Tensor:
        """Return -2 log t."""
        return -2 * t.log()

    @schedule
    def time(self, log_snr: Tensor) -> Tensor:
        """Return e^{-log_snr/2}."""
        return (-0.5 * log_snr).exp()


@dataclass(frozen=True)
class RectifiedFlow(_SigmaIsTime, GaussianSDE):
    """The straight path: alpha = 1 - t and sigma = t, whose velocity is noise - data.

    At t_max = 1 alpha is 0: the data and v and velocity predictions are finite there, the noise and the score are not.
    Source: Liu et al. 2023, "Flow straight and fast"; Lipman et al. 2023, "Flow matching for generative modeling".

    Args:
        t_min: smallest time of use.
        t_max: time at which sampling starts, at most 1.
    """

    def __post_init__(self) -> None:
        """Check t_max <= 1."""
        super().__post_init__()
        check_number(self.t_max, "t_max", 0.0, 1.0)

    @schedule
    def alpha(self, t: Tensor) -> Tensor:
        """Return 1 - t."""
        return 1 - t

    @schedule
    def alpha_rate(self, t: Tensor) -> Tensor:
        """Return -1."""
        return -torch.ones_like(t)

    @schedule
    def diffusion(self, t: Tensor) -> Tensor:
        """Return sqrt(2 t/(1 - t))."""
        return (2 * t / (1 - t)).sqrt()

    @schedule
    def log_snr(self, t: Tensor) -> Tensor:
        """Return 2 log((1 - t)/t)."""
        return 2 * (torch.log1p(-t) - t.log())

    @schedule
    def time(self, log_snr: Tensor) -> Tensor:
        """Return sigmoid(-log_snr/2)."""
        return torch.sigmoid(-0.5 * log_snr)


SCHEDULES: dict[str, type[GaussianSDE]] = {
    "CosineVPSDE": CosineVPSDE,
    "EDMSDE": EDMSDE,
    "RectifiedFlow": RectifiedFlow,
    "SubVPSDE": SubVPSDE,
    "VESDE": VESDE,
    "VPSDE": VPSDE,
}
