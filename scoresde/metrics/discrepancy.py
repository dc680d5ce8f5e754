r"""The maximum mean discrepancy with a Gaussian kernel.

    k(x, y) = exp(-|x - y|^2/(2 h^2)),        MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),

with independent x, x' ~ P and y, y' ~ Q. It is 0 only for P = Q. The U-statistic leaves out the pairs of a sample with
itself, which makes it unbiased:

    sum_{i != j} k(x_i, x_j)/(n (n - 1)) + sum_{i != j} k(y_i, y_j)/(m (m - 1)) - 2 sum_{ij} k(x_i, y_j)/(n m).

The bandwidth h decides at which scale laws are compared. The median heuristic takes the median distance between pooled
samples: a law's own size, so differences that are much finer go unseen.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from scoresde.errors.kinds import DomainError
from scoresde.errors.values import check_number
from scoresde.metrics.pairs import check_pair, measure_distances, sum_between, sum_within
from scoresde.ops import Array

__all__ = ["check_bandwidth", "kernel", "median_bandwidth", "median_distance", "mmd"]

MEDIAN_OF = 2048  # pooled samples whose distances give the median: two million of them


def kernel(x: Tensor, y: Tensor, bandwidth: float) -> Tensor:
    """Return the kernel of all pairs, (n, m)."""
    return (-0.5 * (measure_distances(x, y) / bandwidth).square()).exp()


def mmd(x: Array, y: Array, *, bandwidth: float | None = None) -> float:
    """Return the *squared* maximum mean discrepancy of two sets (U-statistic); it has no unit and lies in [-2, 2].

    It is unbiased: its floor is 0, with a spread of the order of 1/n, and it may be negative. Two numbers can be
    compared only at equal bandwidth: measure ``median_bandwidth`` once, on real data, and pass it. Costs
    n m + n^2/2 + m^2/2 distances; the memory is bounded whatever n and m.

    Args:
        x: samples (n, *), any event shape, n >= 2.
        y: samples (m, *) of the same event shape, m >= 2; n and m may differ.
        bandwidth: h > 0, in units of the data; None for ``median_bandwidth(x, y)``.

    Raises:
        DTypeError, ShapeError, DomainError, ConfigError: not finite floating samples, fewer than two, event shapes or
            devices that differ, a bandwidth that is not positive, or no median since all samples are equal.

    Source: Gretton, Borgwardt, Rasch, Schoelkopf, Smola (2012), lemma 6.
    """
    first, second = check_pair(x, y, least=2)
    width = check_bandwidth(bandwidth, first, second)
    measure = functools.partial(kernel, bandwidth=width)
    within = [sum_within(one, measure) / (len(one) * (len(one) - 1)) for one in (first, second)]
    return sum(within) - 2.0 * sum_between(first, second, measure) / (len(first) * len(second))


def median_bandwidth(x: Array, y: Array) -> float:
    """Return the median distance between two different samples of x and y together, in units of the data.

    Distances of 0 are left out. Of more than 2048 samples, that many are taken, evenly spaced in the order of one
    projection: like the median itself, this choice does not see which sample is of which set.

    Args:
        x: samples (n, *), any event shape.
        y: samples (m, *) of the same event shape.

    Raises:
        DTypeError, ShapeError, ConfigError: not finite floating samples, an empty set, event shapes or devices that
            differ. DomainError: all samples are equal.

    Source: Garreau, Jitkrittum, Kanagawa (2017), arXiv:1707.07269, who study the heuristic.
    """
    return median_distance(torch.cat(check_pair(x, y)))


def median_distance(pooled: Tensor) -> float:
    """Return the median of the positive distances in a set (N, D)."""
    if len(pooled) > MEDIAN_OF:
        order = (pooled @ torch.arange(pooled.shape[1], device="cpu").to(pooled).cos()).argsort()
        pooled = pooled[
            order[torch.linspace(0, len(pooled) - 1, MEDIAN_OF, dtype=torch.float32, device="cpu").round().to(order)]
        ]
    apart = torch.pdist(pooled)
    apart = apart[apart > 0]
    if len(apart) == 0:
        raise DomainError("all samples are equal, so their distances have no median; pass bandwidth=")
    return float(apart.median())


def check_bandwidth(bandwidth: float | None, x: Tensor, y: Tensor) -> float:
    """Return the bandwidth, measured on x (n, D) and y (m, D) if it is None."""
    if bandwidth is None:
        return median_distance(torch.cat([x, y]))
    return check_number(bandwidth, "bandwidth", 0.0, open_low=True)
