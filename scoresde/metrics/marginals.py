r"""One-dimensional distances, coordinate by coordinate.

With the empirical distribution functions F of n and G of m samples of one coordinate:

    Wasserstein-1:        W1 = int |F(u) - G(u)| du = int_0^1 |F^-1(p) - G^-1(p)| dp,
    Kolmogorov-Smirnov:   KS = sup |F(u) - G(u)|.

Both see a coordinate alone: laws that differ only in how their coordinates depend on each other have distance 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from scoresde.errors.names import check_choice
from scoresde.metrics.pairs import BLOCK, check_pair, cut_quantiles
from scoresde.ops import Array, chunks

__all__ = ["DISTANCES", "marginal_distances"]


def _wasserstein(x: Tensor, y: Tensor) -> Tensor:
    """Return W1 (D,) of sets (n, D) and (m, D)."""
    left, right, weight = cut_quantiles(x.shape[0], y.shape[0], x)
    ordered_x, ordered_y = x.sort(dim=0).values, y.sort(dim=0).values
    return weight @ (ordered_x[left] - ordered_y[right]).abs()


def _kolmogorov_smirnov(x: Tensor, y: Tensor) -> Tensor:
    """Return KS (D,) of sets (n, D) and (m, D); the largest gap is at a sample, just behind its jump."""
    places = torch.cat([x, y]).T.contiguous()  # (D, n + m)
    shares = [
        torch.searchsorted(one.T.sort(dim=1).values.contiguous(), places, right=True).to(x) / one.shape[0]
        for one in (x, y)
    ]
    return (shares[0] - shares[1]).abs().amax(dim=1)


DISTANCES: Final[Mapping[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "wasserstein": _wasserstein,
    "kolmogorov_smirnov": _kolmogorov_smirnov,
}


def marginal_distances(x: Array, y: Array, *, distance: str = "wasserstein") -> Tensor:
    """Return the one-dimensional distance of each coordinate, of the event's shape.

    "wasserstein" is in the unit of the coordinate: a shift by d gives |d|. Its floor is 1.29 s sqrt(1/n + 1/m) for a
    Gaussian coordinate of standard deviation s. "kolmogorov_smirnov" lies in [0, 1] and does not change under a
    monotone map; its floor is 0.87 sqrt(1/n + 1/m) for every continuous law. (Both are means, for large n and m; the
    largest of D coordinates is above them: ``floor(lambda x, y: float(marginal_distances(x, y).max()), ...)``.)

    Args:
        x: samples (n, *), any event shape.
        y: samples (m, *) of the same event shape; n and m may differ.
        distance: a key of ``marginals.DISTANCES``.

    Raises:
        DTypeError, ShapeError, DomainError, ConfigError: not finite floating samples, an empty set, event shapes or
            devices that differ, an unknown distance.

    Source: Villani (2009), remark 2.19; Smirnov (1939).
    """
    check_choice("distance", distance, DISTANCES)
    first, second = check_pair(x, y)
    parts = chunks(first.shape[1], max(1, BLOCK // (first.shape[0] + second.shape[0])))
    return torch.cat([DISTANCES[distance](first[:, part], second[:, part]) for part in parts]).reshape(x.shape[1:])
