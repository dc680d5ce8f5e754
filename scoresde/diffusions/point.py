"""Points on a diffusion: time, the two curves, and log-SNR, as numbers carried together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from scoresde.diffusions.curves import unchecked
from scoresde.errors.kinds import DomainError

__all__ = ["Curves", "Pair", "Point"]


Pair = tuple[Tensor, Tensor]


class Curves(Protocol):
    """What a point asks of the SDE that it lies on."""

    def alpha_rate(self, t: Tensor) -> Tensor:
        """Return d alpha/dt."""

    def sigma_rate(self, t: Tensor) -> Tensor:
        """Return d sigma/dt."""


@dataclass(frozen=True, eq=False)
class Point:
    """One or many points on a diffusion, in float64 on the CPU; every field has the shape of ``t``.

    Args:
        t: time.
        alpha: signal scale.
        sigma: noise standard deviation.
        log_snr: log(alpha^2/sigma^2), carried and not recomputed.
        owner: the SDE that the point lies on, if any.
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor
    log_snr: Tensor
    owner: Curves | None = None

    @classmethod
    def joined(cls, parts: Iterable[Point]) -> Point:
        """Return points with vectors of times one after the other, as points of no SDE."""
        t, alpha, sigma, log_snr = map(torch.cat, zip(*(part.numbers for part in parts), strict=True))
        return cls(t, alpha, sigma, log_snr)

    @property
    def numbers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """t, alpha, sigma and log_snr."""
        return self.t, self.alpha, self.sigma, self.log_snr

    @property
    def r(self) -> Tensor:
        """The scale sqrt(alpha^2 + sigma^2) of unit-variance data."""
        return torch.hypot(self.alpha, self.sigma)

    @property
    def rates(self) -> Pair:
        """(d alpha/dt, d sigma/dt); DomainError where the point belongs to no SDE."""
        owner = self.owner
        if owner is None:
            raise DomainError("a velocity needs the rates of an SDE; this point carries none")
        return unchecked(lambda: (owner.alpha_rate(self.t), owner.sigma_rate(self.t)))

    def __getitem__(self, part: int | slice | Tensor | None) -> Point:
        """Return some of the points; a single one as one of a row for None."""
        return Point(self.t[part], self.alpha[part], self.sigma[part], self.log_snr[part], self.owner)

    def of_each(self, batch: int) -> Point:
        """Return a single point, or one for each of ``batch`` samples, as fields of shape (1, batch)."""
        t, alpha, sigma, log_snr = (c.expand(batch)[None] for c in self.numbers)
        return Point(t, alpha, sigma, log_snr, self.owner)
