"""VPSDE and SubVPSDE: beta(t) is linear and alpha = e^{-B/2}, with B its integral."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from scoresde.diffusions.curves import curve, in_float64
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.kinds import DomainError
from scoresde.errors.values import keep_number

__all__ = ["VPSDE", "SubVPSDE"]


LARGEST_INTEGRAL = 1400.0  # of beta, at which alpha = e^-700


@dataclass(frozen=True)
class _LinearBeta(GaussianSDE):
    """What the diffusions with a linear beta(t) share."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        keep_number(self, "beta_min", 0.0)
        keep_number(self, "beta_max", self.beta_min)
        if self.beta_max == 0:
            raise DomainError("beta_max must be positive, got 0: nothing would diffuse")
        most = self.t_max * (self.beta_min + 0.5 * self.t_max * (self.beta_max - self.beta_min))
        if not most <= LARGEST_INTEGRAL:
            raise DomainError(
                f"the integral of beta up to t_max must be at most {LARGEST_INTEGRAL:g}, got {most:g}: alpha would be "
                "no number of float64",
                parameter="beta_max",
                got=float(self.beta_max),
                cure="take a smaller beta_max or t_max",
            )

    @curve
    def beta(self, t: Tensor) -> Tensor:
        """Evaluate the rate beta_min + t (beta_max - beta_min), in 1/t."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    @curve
    def integral(self, t: Tensor) -> Tensor:
        """Return B(t), the integral of beta from 0 to t."""
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def inverse_integral(self, b: Tensor) -> Tensor:
        """Return the t with B(t) = b, without subtraction."""
        slope = self.beta_max - self.beta_min
        rate = self.beta_min + (self.beta_min**2 + 2 * slope * b).sqrt()
        return torch.where(b == 0, 0.0, 2 * b / rate)

    @curve
    def alpha(self, t: Tensor) -> Tensor:
        """Return e^{-B/2}."""
        return (-0.5 * self.integral(t)).exp()

    @curve
    def alpha_rate(self, t: Tensor) -> Tensor:
        """Return -beta alpha / 2."""
        return -0.5 * self.beta(t) * self.alpha(t)

    @curve
    def drift_rate(self, t: Tensor) -> Tensor:
        """Return -beta/2."""
        return -0.5 * self.beta(t)

    @curve
    def prior_std(self, t: Tensor) -> Tensor:
        """Return 1, at every t."""
        return torch.ones_like(t)


@dataclass(frozen=True)
class VPSDE(_LinearBeta):
    """Variance preserving: dx = -beta/2 x dt + sqrt(beta) dw, so alpha^2 + sigma^2 = 1; the limit of DDPM.

    Source: Song et al. 2021, "Score-based generative modeling through stochastic differential equations",
    arXiv:2011.13456, eq. 11.

    Args:
        beta_min: beta(0), in 1/t.
        beta_max: beta(1), in 1/t.
        t_min: smallest time of use.
        t_max: time at which sampling starts.

    Raises:
        DomainError: unless 0 <= beta_min <= beta_max and 0 < t_min < t_max.
    """

    @curve
    def sigma(self, t: Tensor) -> Tensor:
        """Return sqrt(1 - e^{-B})."""
        return (-torch.expm1(-self.integral(t))).sqrt()

    @curve
    def sigma_rate(self, t: Tensor) -> Tensor:
        """Return beta e^{-B} / (2 sigma)."""
        return 0.5 * self.beta(t) * (-self.integral(t)).exp() / self.sigma(t)

    @curve
    def diffusion(self, t: Tensor) -> Tensor:
        """Return sqrt(beta)."""
        return self.beta(t).sqrt()

    @curve
    def log_snr(self, t: Tensor) -> Tensor:
        """Return -B - log(1 - e^{-B})."""
        b = self.integral(t)
        return -b - (-torch.expm1(-b)).log()

    @in_float64
    def _invert(self, log_snr: Tensor) -> Tensor:
        """Return the t with B(t) = log(1 + e^{-log_snr})."""
        return self.inverse_integral(softplus(-log_snr, threshold=math.inf))


@dataclass(frozen=True)
class SubVPSDE(_LinearBeta):
    """Sub-VP: alpha = e^{-B/2} and sigma = 1 - e^{-B}, so nu = 2 sinh(B/2) and g^2 = beta (1 - e^{-2B}).

    Source: Song et al. 2021, arXiv:2011.13456, eq. 12. Arguments and errors as for VPSDE.
    """

    @curve
    def sigma(self, t: Tensor) -> Tensor:
        """Return 1 - e^{-B}."""
        return -torch.expm1(-self.integral(t))

    @curve
    def sigma_rate(self, t: Tensor) -> Tensor:
        """Return beta e^{-B}."""
        return self.beta(t) * (-self.integral(t)).exp()

    @curve
    def diffusion(self, t: Tensor) -> Tensor:
        """Return sqrt(beta (1 - e^{-2B}))."""
        return (self.beta(t) * -torch.expm1(-2 * self.integral(t))).sqrt()

    @curve
    def log_snr(self, t: Tensor) -> Tensor:
        """Return -B - 2 log(1 - e^{-B})."""
        b = self.integral(t)
        return -b - 2 * (-torch.expm1(-b)).log()

    @in_float64
    def _invert(self, log_snr: Tensor) -> Tensor:
        """Return the t with B(t) = 2 asinh(e^{-log_snr/2} / 2)."""
        return self.inverse_integral(2 * torch.asinh(0.5 * (-0.5 * log_snr).exp()))
