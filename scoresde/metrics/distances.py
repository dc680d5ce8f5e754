"""Sliced Wasserstein-2 and energy distance."""

from __future__ import annotations

import math

from torch import Generator

from scoresde.errors.kinds import DTypeError, show
from scoresde.errors.values import check_integer
from scoresde.metrics.pairs import BLOCK, check_pair, cut_quantiles, measure_distances, sum_between, sum_within
from scoresde.noise import normal, stream
from scoresde.ops import Array, chunks

__all__ = ["energy_distance", "sliced_wasserstein"]


def sliced_wasserstein(
    x: Array,
    y: Array,
    *,
    projections: int = 256,
    seed: int = 0,
    generator: Generator | None = None,
) -> float:
    """Return the sliced Wasserstein-2 distance of two sets, in units of the data.

    SW2 = sqrt(mean over directions of W2^2 of the projected sets), directions uniform on the sphere. A shift by m gives
    |m| / sqrt(D): it is a distance *per coordinate*. In one dimension it is W2, exactly. The error of the average over
    directions falls as 1/sqrt(projections); equal seeds use equal directions, so that two samplers can be compared.

    Args:
        x: samples (n, *), any event shape.
        y: samples (m, *) of the same event shape; n and m may differ.
        projections: number of directions, at least 1.
        seed: names the directions, the same on every device.
        generator: used for the directions instead of ``seed``.

    Raises:
        DTypeError, ShapeError, DomainError, ConfigError: not finite floating samples, an empty set, event shapes or
            devices that differ, no projections.

    Source: Rabin, Peyre, Delon, Bernot (2011); Bonneel, Rabin, Peyre, Pfister (2015).
    """
    first, second = check_pair(x, y)
    count = check_integer(projections, "projections", 1, 2**20)
    if not (generator is None or isinstance(generator, Generator)):
        raise DTypeError(f"generator must be a torch.Generator, got {show(generator)}; a number is seed=")
    dimension = first.shape[1]
    if dimension == 1:
        count = 1
        directions = first.new_ones(1, 1)
    else:
        source = stream(seed, "sliced_wasserstein") if generator is None else generator
        directions = normal((count, dimension), source).to(first)
        directions = directions / directions.norm(dim=1, keepdim=True)
    left, right, weight = cut_quantiles(first.shape[0], second.shape[0], first)
    total = 0.0
    for part in chunks(count, max(1, BLOCK // (first.shape[0] + second.shape[0]))):
        ordered_x = (directions[part] @ first.T).sort(dim=1).values  # (block, n)
        ordered_y = (directions[part] @ second.T).sort(dim=1).values  # (block, m)
        total += float(((ordered_x[:, left] - ordered_y[:, right]).square() * weight).sum())
    return math.sqrt(total / count)


def energy_distance(x: Array, y: Array) -> float:
    """Return the energy distance of two sets (V-statistic), in the square root of the data's unit.

    D = sqrt(2 mean|x_i - y_j| - mean|x_i - x_j| - mean|y_i - y_j|), means over all pairs, Euclidean norm over the
    flattened event. It is 0 only for equal laws, and agrees with ``scipy.stats.energy_distance`` in one dimension.
    Costs n m + n^2/2 + m^2/2 distances; the memory is bounded whatever n and m.

    Args:
        x: samples (n, *), any event shape.
        y: samples (m, *) of the same event shape; n and m may differ.

    Raises:
        DTypeError, ShapeError, DomainError, ConfigError: not finite floating samples, an empty set, event shapes or
            devices that differ.

    Source: Szekely, Rizzo (2004, 2013).
    """
    first, second = check_pair(x, y)
    n, m = first.shape[0], second.shape[0]
    between = 2.0 * sum_between(first, second, measure_distances) / (n * m)
    squared = between - sum_within(first, measure_distances) / n**2 - sum_within(second, measure_distances) / m**2
    return math.sqrt(max(squared, 0.0))
