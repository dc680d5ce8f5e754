"""Diffusions whose time is a noise level, or that keep the data's scale: VESDE, EDMSDE, RectifiedFlow."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scoresde.diffusions.curves import curve, in_float64
from scoresde.diffusions.sde import GaussianSDE, check_span
from scoresde.errors.kinds import DomainError
from scoresde.errors.values import LARGEST_NUMBER, keep_number

__all__ = ["EDMSDE", "VESDE", "RectifiedFlow"]


@dataclass(frozen=True)
class _UnitAlpha(GaussianSDE):
    """What the diffusions that only add noise share."""

    @curve
    def alpha(self, t: Tensor) -> Tensor:
        """Return 1."""
        return torch.ones_like(t)

    @curve
    def alpha_rate(self, t: Tensor) -> Tensor:
        """Return 0."""
        return torch.zeros_like(t)


@dataclass(frozen=True)
class VESDE(_UnitAlpha):
    """Variance exploding: dx = g dw with alpha = 1 and sigma = sigma_min (sigma_max/sigma_min)^t, also at t = 0.

    Source: Song et al. 2021, arXiv:2011.13456, eq. 9; the geometric noise levels of NCSN, Song and Ermon 2019,
    arXiv:1907.05600.

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
        super().__post_init__()
        keep_number(self, "sigma_min", 0.0, open_low=True)
        keep_number(self, "sigma_max", self.sigma_min, open_low=True)
        check_span(self.sigma_min, self.sigma_max, "sigma_min", "sigma_max")
        most = math.log(self.sigma_min) + self.t_max * self.log_ratio
        if not most <= math.log(LARGEST_NUMBER):
            raise DomainError(
                f"sigma(t_max) must be at most {LARGEST_NUMBER:g}, got e^{most:g}",
                parameter="t_max",
                got=float(self.t_max),
                cure="time runs from 0 to 1 here: take t_max = 1, and a larger sigma_max instead",
            )

    @property
    def log_ratio(self) -> float:
        """log(sigma_max/sigma_min), the rate of log sigma."""
        return math.log(self.sigma_max / self.sigma_min)

    @curve
    def sigma(self, t: Tensor) -> Tensor:
        """Return sigma_min (sigma_max/sigma_min)^t; the end points are exact."""
        return torch.pow(self.sigma_min, 1 - t) * torch.pow(self.sigma_max, t)

    @curve
    def sigma_rate(self, t: Tensor) -> Tensor:
        """Return sigma log(sigma_max/sigma_min)."""
        return self.sigma(t) * self.log_ratio

    @curve
    def diffusion(self, t: Tensor) -> Tensor:
        """Return sigma sqrt(2 log(sigma_max/sigma_min))."""
        return self.sigma(t) * math.sqrt(2 * self.log_ratio)

    @curve
    def log_snr(self, t: Tensor) -> Tensor:
        """Return -2 log sigma."""
        return -2 * (math.log(self.sigma_min) + t * self.log_ratio)

    @in_float64
    def _invert(self, log_snr: Tensor) -> Tensor:
        """Return log(sigma/sigma_min) / log(sigma_max/sigma_min)."""
        return (-0.5 * log_snr - math.log(self.sigma_min)) / self.log_ratio


class _SigmaIsTime:
    """What the diffusions share whose time is the noise level itself."""

    @curve
    def sigma(self, t: Tensor) -> Tensor:
        """Return t."""
        return t.clone()

    @curve
    def sigma_rate(self, t: Tensor) -> Tensor:
        """Return 1."""
        return torch.ones_like(t)


@dataclass(frozen=True)
class EDMSDE(_SigmaIsTime, _UnitAlpha):
    """EDM's diffusion: alpha = 1 and sigma = t, for t in [sigma_min, sigma_max].

    Source: Karras et al. 2022, "Elucidating the design space of diffusion-based generative models", arXiv:2206.00364.

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
        keep_number(self, "sigma_min", 0.0, open_low=True)
        keep_number(self, "sigma_max", self.sigma_min, open_low=True)
        check_span(self.sigma_min, self.sigma_max, "sigma_min", "sigma_max")
        object.__setattr__(self, "t_min", float(self.sigma_min))
        object.__setattr__(self, "t_max", float(self.sigma_max))

    @curve
    def diffusion(self, t: Tensor) -> Tensor:
        """Return sqrt(2 t)."""
        return (2 * t).sqrt()

    @curve
    def log_snr(self, t: Tensor) -> Tensor:
        """Return -2 log t."""
        return -2 * t.log()

    @in_float64
    def _invert(self, log_snr: Tensor) -> Tensor:
        """Return e^{-log_snr/2}."""
        return (-0.5 * log_snr).exp()


@dataclass(frozen=True)
class RectifiedFlow(_SigmaIsTime, GaussianSDE):
    """The straight path: alpha = 1 - t and sigma = t, whose velocity is noise - data.

    At t_max = 1 alpha is 0: the data and v and velocity predictions are finite there, the noise and the score are not.
    Source: Liu et al. 2023, "Flow straight and fast", arXiv:2209.03003; Lipman et al. 2023, "Flow matching for
    generative modeling", arXiv:2210.02747.

    Args:
        t_min: smallest time of use.
        t_max: time at which sampling starts, at most 1.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        keep_number(self, "t_max", 0.0, 1.0)

    @curve
    def alpha(self, t: Tensor) -> Tensor:
        """Return 1 - t."""
        return 1 - t

    @curve
    def alpha_rate(self, t: Tensor) -> Tensor:
        """Return -1."""
        return -torch.ones_like(t)

    @curve
    def diffusion(self, t: Tensor) -> Tensor:
        """Return sqrt(2 t/(1 - t))."""
        return (2 * t / (1 - t)).sqrt()

    @curve
    def log_snr(self, t: Tensor) -> Tensor:
        """Return 2 log((1 - t)/t)."""
        return 2 * (torch.log1p(-t) - t.log())

    @in_float64
    def _invert(self, log_snr: Tensor) -> Tensor:
        """Return sigmoid(-log_snr/2)."""
        return torch.sigmoid(-0.5 * log_snr)
