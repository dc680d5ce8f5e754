"""CosineVPSDE: alpha is a cosine of time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scoresde.diffusions.curves import curve, in_float64
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.values import keep_number

__all__ = ["CosineVPSDE"]


@dataclass(frozen=True)
class CosineVPSDE(GaussianSDE):
    """Variance preserving with alpha = cos(theta_t)/cos(theta_0), theta_t = pi/2 (t + offset)/(1 + offset).

    alpha reaches 0 at t = 1; the default t_max = 0.9946 stops at log_snr = -9.6, near VPSDE's end. Source: Nichol and
    Dhariwal 2021, "Improved denoising diffusion probabilistic models", arXiv:2102.09672, eq. 17, whose chain
    ``DDPM.cosine`` is.

    Args:
        offset: s, which keeps the first steps from being tiny.
        t_min: smallest time of use.
        t_max: time at which sampling starts, at most 1.

    Raises:
        DomainError: unless 0 <= offset <= 100 and 0 < t_min < t_max <= 1.
    """

    t_max: float = field(default=0.9946, kw_only=True)
    offset: float = 0.008

    def __post_init__(self) -> None:
        super().__post_init__()
        keep_number(self, "offset", 0.0, 100.0)
        keep_number(self, "t_max", 0.0, 1.0)

    @property
    def speed(self) -> float:
        """D theta/dt."""
        return 0.5 * math.pi / (1 + self.offset)

    @property
    def first(self) -> float:
        """theta_0."""
        return self.speed * self.offset

    @curve
    def alpha(self, t: Tensor) -> Tensor:
        """Return cos(theta_t)/cos(theta_0), with the cosine as the sine of what is left to pi/2."""
        return torch.sin(self.speed * (1 - t)) / math.cos(self.first)

    @curve
    def sigma(self, t: Tensor) -> Tensor:
        """Return sqrt(sin(theta_t - theta_0) sin(theta_t + theta_0))/cos(theta_0)."""
        return self._squared(t).sqrt() / math.cos(self.first)

    def _tangent(self, t: Tensor) -> Tensor:
        """Return tan(theta_t), with no cancellation at either end."""
        return torch.sin(self.first + self.speed * t) / torch.sin(self.speed * (1 - t))

    def _squared(self, t: Tensor) -> Tensor:
        """Return cos(theta_0)^2 - cos(theta_t)^2 without cancellation."""
        return torch.sin(self.speed * t) * torch.sin(self.speed * t + 2 * self.first)

    @curve
    def alpha_rate(self, t: Tensor) -> Tensor:
        """Return -sin(theta_t) theta'/cos(theta_0)."""
        return -self.speed * torch.sin(self.first + self.speed * t) / math.cos(self.first)

    @curve
    def sigma_rate(self, t: Tensor) -> Tensor:
        """Return -alpha alpha'/sigma."""
        return -self.alpha(t) * self.alpha_rate(t) / self.sigma(t)

    @curve
    def drift_rate(self, t: Tensor) -> Tensor:
        """Return -theta' tan(theta_t)."""
        return -self.speed * self._tangent(t)

    @curve
    def diffusion(self, t: Tensor) -> Tensor:
        """Return sqrt(beta), beta = 2 theta' tan(theta_t)."""
        return (2 * self.speed * self._tangent(t)).sqrt()

    @curve
    def log_snr(self, t: Tensor) -> Tensor:
        """Return 2 log cos(theta_t) - log(sin(theta_t - theta_0) sin(theta_t + theta_0))."""
        return 2 * torch.sin(self.speed * (1 - t)).log() - self._squared(t).log()

    @in_float64
    def _invert(self, log_snr: Tensor) -> Tensor:
        """Return the t with cos(theta_t)^2 = cos(theta_0)^2 sigmoid(log_snr)."""
        inner = math.cos(self.first)
        sine = math.sin(self.first) ** 2 + inner**2 * torch.sigmoid(-log_snr)
        theta = torch.atan2(sine.sqrt(), inner * torch.sigmoid(log_snr).sqrt())
        # theta - theta_0 anew, without cancellation at small t; 0/0 at t = 0 without an offset.
        share, sum_ = inner**2 * torch.sigmoid(-log_snr), torch.sin(theta + self.first)
        gap = torch.asin(torch.where(share == 0, 0.0, share / sum_).clamp_max(1.0))
        return torch.where(theta - self.first < 0.5, gap, theta - self.first) / self.speed

    @curve
    def prior_std(self, t: Tensor) -> Tensor:
        """Return 1, at every t."""
        return torch.ones_like(t)
