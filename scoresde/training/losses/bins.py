"""Losses by log-SNR: where on the way from noise to data a model errs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scoresde.diffusions.sde import SDE, GaussianSDE

__all__ = ["LossBins"]

BINS, WIDEST = 10, 20.0


class LossBins:
    """Mean losses in ten bins of equal width in log(alpha^2/sigma^2), over what the SDE covers of [-20, 20].

    The first and the last bin also take what lies beyond. Sums stay on the device until ``take_means`` is called. An
    SDE without log-SNR has the bins and nothing in them.
    """

    def __init__(self, sde: SDE, device: torch.device) -> None:
        ends = torch.tensor([-WIDEST, WIDEST], dtype=torch.float64, device="cpu")
        if isinstance(sde, GaussianSDE):
            times = torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64, device="cpu")
            ends = sde.log_snr(times).clamp(-WIDEST, WIDEST)
        self.edges = ends[0] + (ends[1] - ends[0]) * torch.arange(BINS + 1, dtype=torch.float64, device="cpu") / BINS
        self.sums = torch.zeros(2, BINS, dtype=torch.float32, device=device)

    @property
    def centres(self) -> list[float]:
        """The bins' middles."""
        return [round(float(c), 6) for c in 0.5 * (self.edges[1:] + self.edges[:-1])]

    def find(self, log_snr: Tensor) -> Tensor:
        """Return the bins' numbers of float64 CPU values, of their shape."""
        return torch.bucketize(log_snr.contiguous(), self.edges[1:-1])

    def add(self, index: Tensor, losses: Tensor) -> None:
        """Count finite losses (B,) into the bins ``index`` (B,), both on the device; nothing waits for it."""
        good = torch.isfinite(losses)
        values = torch.stack([losses.masked_fill(~good, 0.0), good.to(losses.dtype)]).to(self.sums.dtype)
        self.sums.index_add_(1, index, values)

    def take_means(self, gather: Callable[[Tensor], Sequence[Tensor]] | None = None) -> list[float | None]:
        """Return each bin's mean, None where it is empty, and begin anew; ``gather`` gives those of all processes."""
        total = self.sums if gather is None else torch.stack(list(gather(self.sums))).sum(0)
        sums, counts = total.tolist()
        self.sums.zero_()
        means = (s / n if n else math.nan for s, n in zip(sums, counts, strict=True))
        return [mean if math.isfinite(mean) else None for mean in means]
