"""SDEs whose noise depends on the state or on the coordinate, with what is known of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde import SDE

F64 = torch.float64


class Growth(SDE):
    """Geometric Brownian motion, dx = rate x dt + spread x dw: log x is a Brownian motion with drift."""

    rate, spread = 0.3, 0.5

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        return self.rate * x

    def diffusion_at(self, x: Tensor, t: Tensor | float) -> Tensor:
        return self.spread * x

    def law(self, t: float, mean: float = 0.2, variance: float = 0.04) -> tuple[float, float]:
        """Mean and variance of log x at t, from a log-normal law at t_min."""
        tau = t - self.t_min
        return mean + (self.rate - self.spread**2 / 2) * tau, variance + self.spread**2 * tau

    def density(self, x: Tensor, t: float) -> Tensor:
        mean, variance = self.law(t)
        return (-0.5 * (x.log() - mean).square() / variance).exp() / (x * math.sqrt(2 * math.pi * variance))

    def score(self, x: Tensor, t: Tensor | float) -> Tensor:
        laws = [self.law(float(s)) for s in torch.as_tensor(t, dtype=F64).reshape(-1)]
        mean, variance = torch.tensor(laws, dtype=x.dtype).T[..., None].unbind(0)
        return -(1 + (x.log() - mean) / variance) / x


class Coupled(SDE):
    """Two coordinates, the noise of each of which depends on both."""

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        return -x

    def diffusion_at(self, x: Tensor, t: Tensor | float) -> Tensor:
        first, second = x.unbind(1)
        return torch.stack([1 + 0.3 * torch.sin(first + second), 0.5 + 0.1 * first * second], 1)


class Uneven(SDE):
    """dx_i = -rate_i x_i dt + size_i dw_i, two rates and two sizes: Gaussian in each coordinate."""

    rates, sizes = torch.tensor([0.5, 2.0], dtype=F64), torch.tensor([1.0, 0.3], dtype=F64)

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        return -self.rates.to(x) * x

    def diffusion_at(self, x: Tensor, t: Tensor | float) -> Tensor:
        return self.sizes.to(x)

    def law(self, mean: float, variance: float, span: float) -> tuple[Tensor, Tensor]:
        decay, end = (-self.rates * span).exp(), self.sizes.square() / (2 * self.rates)
        return mean * decay, end + (variance - end) * decay.square()


class Well(SDE):
    """dx = (x - x^3) dt + 0.7 dw."""

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        return x - x**3

    def diffusion(self, t: Tensor | float) -> Tensor:
        return torch.full_like(torch.as_tensor(t, dtype=F64), 0.7)


class Swirl(SDE):
    """A drift in the plane that is no gradient, with two sizes of noise."""

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        turn = torch.stack([x[:, 1], torch.sin(x[:, 1]) - 0.5 * x[:, 0]], 1)
        return turn - x * x.square().sum(1, keepdim=True)

    def diffusion_at(self, x: Tensor, t: Tensor | float) -> Tensor:
        return torch.tensor([0.7, 0.5], dtype=x.dtype)


class SquareRoot(SDE):
    """dx = 2 (1 - x) dt + 0.6 sqrt(x) dw, the process of Cox, Ingersoll and Ross, which settles in a gamma law."""

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        return 2.0 * (1.0 - x)

    def diffusion_at(self, x: Tensor, t: Tensor | float) -> Tensor:
        return 0.6 * x.clamp_min(1e-6).sqrt()


GROWTH, WELL, SWIRL = Growth(t_min=1e-3, t_max=1.0), Well(t_min=1e-3, t_max=1.0), Swirl(t_min=1e-3, t_max=1.0)
UNEVEN = Uneven(t_min=1e-3, t_max=1.0)
