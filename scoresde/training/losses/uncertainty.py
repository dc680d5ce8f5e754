r"""A weight that is learned beside the network: L = e^{-u} l + u, with l the weighted loss and u a function of log-SNR.

At given losses the best u is log E[l] at its log-SNR, where every noise level weighs the same whatever the weight that
l began with. u is linear between values at evenly spaced log-SNR, which all start at 0, where L is l.

Source: Kendall, Gal and Cipolla 2018, arXiv:1705.07115; for diffusions Karras et al. 2024, arXiv:2312.02696, section 2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scoresde.diffusions.sde import GaussianSDE

__all__ = ["Uncertainty"]

KNOTS, WIDEST = 33, 20.0


class Uncertainty(nn.Module):
    """u of log(alpha^2/sigma^2), over what the SDE covers of [-20, 20] and constant beyond."""

    def __init__(self, sde: GaussianSDE, device: torch.device) -> None:
        super().__init__()
        ends = sde.log_snr(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64, device="cpu"))
        self.low, self.high = (float(end) for end in ends.clamp(-WIDEST, WIDEST))
        self.values = nn.Parameter(torch.zeros(KNOTS, dtype=torch.float32, device=device))

    def places(self, log_snr: Tensor) -> Tensor:
        """Return where float64 values lie between the knots, from 0 to their number less one, of their shape."""
        return ((log_snr - self.low) / (self.high - self.low) * (KNOTS - 1)).clamp(0, KNOTS - 1)

    def forward(self, places: Tensor) -> Tensor:
        """Return u at places (B,)."""
        left = places.floor().clamp_max(KNOTS - 2)
        index = left.long()
        u: Tensor = torch.lerp(self.values[index], self.values[index + 1], (places - left).to(self.values.dtype))
        return u

    def weigh(self, losses: Tensor, places: Tensor) -> Tensor:
        """Return e^{-u} l + u, (B,)."""
        u: Tensor = self(places)
        return losses * torch.exp(-u) + u
