"""Points on a diffusion: time, the two curves, and log-SNR, as numbers carried together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Pair", "Point"]


Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Point:
    """One or many points on a diffusion, in float64 on the CPU; every field has the shape of ``t``.

    Args:
        t: time.
        alpha: signal scale.
        sigma: noise standard deviation.
        log_snr: log(alpha^2/sigma^2), carried and not recomputed.
        rates: returns (d alpha/dt, d sigma/dt) when asked; None where the point belongs to no SDE.
        owner: the SDE that the point lies on, if any.
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor
    log_snr: Tensor
    rates: Callable[[], Pair] | None = None
    owner: object = None

    @property
    def r(self) -> Tensor:
        """The scale sqrt(alpha^2 + sigma^2) of unit-variance data."""
        return torch.hypot(self.alpha, self.sigma)

    def __getitem__(self, part: int | slice | Tensor) -> Point:
        """Return some of the points; they carry no rates."""
        return Point(self.t[part], self.alpha[part], self.sigma[part], self.log_snr[part])
