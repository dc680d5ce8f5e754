"""Distances between two sets of samples, each beside its sampling floor.

Let x be n samples of a law P and y m samples of a law Q, both flattened to D coordinates. Three numbers, each a
float computed in float64 where the device has it:

* sliced Wasserstein-2, in units of the data.  SW2^2 = E_theta W2^2(theta.x, theta.y), theta uniform on the unit sphere.
  In one dimension W2^2 = int_0^1 (F^-1(u) - G^-1(u))^2 du with the two empirical quantile functions. Both are constant
  between the points {i/n} and {j/m}, so the integral is a finite sum, exact for unequal n and m.
* energy distance, in the square root of the data's unit.  D^2 = 2 E|x - y| - E|x - x'| - E|y - y'|, with the mean over
  *all* pairs, a pair of a sample with itself included (the V-statistic: never negative, biased upwards by about
  E|x - x'| (1/n + 1/m) for equal laws; the floor shows that bias).
* Frechet distance, in squared units of the features, as FID is reported.  The squared Wasserstein-2 distance of the
  two fitted Gaussians, |mu_x - mu_y|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2).

**The floor.** A finite set differs from another finite set of the same law. ``floor`` measures by how much: the mean
and the standard deviation of the metric between two disjoint random subsets of a reference, of the sizes that are
compared. A sampler whose distance is within two standard deviations of the floor cannot be told from
the data by this metric at these sizes; a distance below the floor says nothing more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import Generator, Tensor

from scoresde.errors import (
    ConfigError,
    DomainError,
    DTypeError,
    ShapeError,
    check_floating,
    check_integer,
    check_samples,
)
from scoresde.noise import normal, permutation, stream
from scoresde.ops import working_dtype

__all__ = [
    "Comparison",
    "Floor",
    "energy_distance",
    "floor",
    "frechet_distance",
    "frechet_distance_of_moments",
    "sliced_wasserstein",
]

Metric = Callable[[Tensor, Tensor], float]

_BLOCK = 2**22  # numbers held at once: 32 MiB of float64, whatever the sizes of the two sets


@dataclass(frozen=True, kw_only=True)
class Floor:
    """The distance between two independent sets of one law, in the units of the metric that measured it.

    ``mean`` and ``std`` are over ``repeats`` pairs of disjoint subsets with ``size`` and ``other`` samples. The pairs
    share one reference, so ``std`` is the spread of a single comparison; the mean is known to about
    ``std / sqrt(repeats)`` as long as the reference is several times larger than ``size + other``.
    """

    mean: float
    std: float
    size: int
    other: int
    repeats: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One row of a comparison: a sampler, what it cost, and how far its samples are from the data.

    Args:
        sampler: the name shown to the reader; rows of one name are one sampler at several costs.
        nfe: network evaluations per sample (a mean, where it differs between samples).
        seconds: wall-clock seconds for all ``samples``.
        samples: number of samples that were drawn.
        distances: metric name to value.
        floors: metric name to the mean of its sampling floor at these sizes; a metric may have none.
        floor_stds: metric name to the standard deviation of that floor.
    """

    sampler: str
    nfe: float
    seconds: float
    samples: int
    distances: Mapping[str, float]
    floors: Mapping[str, float] = field(default_factory=dict)
    floor_stds: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Return the row as plain dictionaries and numbers, ready for JSON."""
        return asdict(self)


def sliced_wasserstein(
    x: Tensor,
    y: Tensor,
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
    first, second = _pair(x, y)
    count = check_integer(projections, "projections", 1)
    dimension = first.shape[1]
    if dimension == 1:
        count = 1
        directions = first.new_ones(1, 1)
    else:
        source = stream(seed, "sliced_wasserstein") if generator is None else generator
        directions = normal((count, dimension), source).to(first)
        directions = directions / directions.norm(dim=1, keepdim=True)
    left, right, weight = _quantile_pieces(first.shape[0], second.shape[0], first)
    total = 0.0
    for part in _slices(count, max(1, _BLOCK // (first.shape[0] + second.shape[0]))):
        ordered_x = (directions[part] @ first.T).sort(dim=1).values  # (block, n)
        ordered_y = (directions[part] @ second.T).sort(dim=1).values  # (block, m)
        total += float(((ordered_x[:, left] - ordered_y[:, right]).square() * weight).sum())
    return math.sqrt(total / count)


def energy_distance(x: Tensor, y: Tensor) -> float:
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
    first, second = _pair(x, y)
    n, m = first.shape[0], second.shape[0]
    between = 0.0
    for part in _slices(n, max(1, _BLOCK // m)):
        between += float(_distances(first[part], second).sum())
    squared = 2.0 * between / (n * m) - _inner_sum(first) / n**2 - _inner_sum(second) / m**2
    return math.sqrt(max(squared, 0.0))


def frechet_distance(features_x: Tensor, features_y: Tensor) -> float:
    """Return the squared Frechet (Wasserstein-2) distance of Gaussians fitted to two sets of features.

    |mu_x - mu_y|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) with A, B the covariances (divisor n - 1), in squared units of
    the features: the number that is known as FID for Inception features. Computed in float64 on the CPU.

    With factors A = F^T F, B = G^T G (the triangular factors of the centred sets), the trace is min |F - O G|^2 over
    orthogonal O, solved by the singular vectors of F G^T. No covariance is formed, squared or inverted: singular
    covariances (fewer samples than features) are exact, and the result is never negative.

    Args:
        features_x: features (n, *), n >= 2.
        features_y: features (m, *) of the same event shape, m >= 2; n and m may differ.

    Raises:
        DTypeError, ShapeError, DomainError, ConfigError: not finite floating features, fewer than two samples, event
            shapes or devices that differ.

    Source: Dowson, Landau (1982); Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter (2017).
    """
    first, second = _pair(features_x, features_y, names=("features_x", "features_y"), least=2)
    first, second = first.to("cpu", torch.float64), second.to("cpu", torch.float64)
    mean_x, mean_y = first.mean(dim=0), second.mean(dim=0)
    return _frechet(mean_x, _triangular(first - mean_x), mean_y, _triangular(second - mean_y))


def frechet_distance_of_moments(mean_x: Tensor, covariance_x: Tensor, mean_y: Tensor, covariance_y: Tensor) -> float:
    """Return the squared Frechet distance of N(mean_x, covariance_x) and N(mean_y, covariance_y).

    The formula of ``frechet_distance``, from moments that are known or stored. Singular covariances are allowed.

    Args:
        mean_x: mean (D,).
        covariance_x: symmetric positive semidefinite matrix (D, D).
        mean_y: mean (D,).
        covariance_y: symmetric positive semidefinite matrix (D, D).

    Raises:
        DTypeError, ShapeError: not floating tensors of these shapes.
        DomainError: non-finite values, or a matrix that is not symmetric positive semidefinite to rounding.
    """
    moments: list[tuple[Tensor, Tensor]] = []
    for mean, covariance, label in ((mean_x, covariance_x, "x"), (mean_y, covariance_y, "y")):
        centre = check_samples(mean, f"mean_{label}").detach().to("cpu", torch.float64)
        if centre.ndim != 1 or centre.numel() == 0:
            raise ShapeError(f"mean_{label} must have shape (D,), got {tuple(mean.shape)}; flatten it")
        if moments and centre.shape != moments[0][0].shape:
            raise ShapeError(f"mean_y must have shape {tuple(mean_x.shape)}, that of mean_x, got {tuple(mean.shape)}")
        moments.append((centre, _spectral(covariance, centre.numel(), f"covariance_{label}")))
    return _frechet(*moments[0], *moments[1])


def floor(
    metric: Metric,
    reference: Tensor,
    size: int,
    *,
    other: int | None = None,
    repeats: int = 16,
    seed: int = 0,
) -> Floor:
    """Return the sampling floor of ``metric``: its value between two independent sets of one law, in its own units.

    Each repeat draws ``size + other`` samples of the reference without replacement and measures the first ``size``
    against the rest. If the reference is an independent sample of a law, the two sets are independent samples of that
    law, so the mean is unbiased; nothing is drawn twice, which would make the sets look closer than they are.

    Use the sizes of the comparison: ``size`` generated samples against ``other`` held-out ones.

    Args:
        metric: a function of two sets, for instance ``energy_distance``.
        reference: real samples (N, *); N >= size + other.
        size: samples in the first set, at least 1.
        other: samples in the second set; as many as in the first by default.
        repeats: number of draws, at least 2.
        seed: names the draws.

    Raises:
        DTypeError, ShapeError, DomainError: a bad reference or count, or a reference too small for two disjoint sets.
    """
    pool = check_samples(reference, "reference")
    if not callable(metric):
        raise DTypeError(f"metric must be a function of two tensors, got {type(metric).__name__}; pass energy_distance")
    first = check_integer(size, "size", 1)
    second = first if other is None else check_integer(other, "other", 1)
    count = check_integer(repeats, "repeats", 2)
    if first + second > pool.shape[0]:
        raise DomainError(
            f"size + other must be at most {pool.shape[0]}, the samples in reference, got {first} + {second}; "
            "the two sets must be disjoint, so give a larger reference or smaller sets"
        )
    values = []
    for repeat in range(count):
        chosen = permutation(pool.shape[0], stream(seed, "floor", repeat)).to(pool.device)
        values.append(float(metric(pool[chosen[:first]], pool[chosen[first : first + second]])))
    result = torch.tensor(values, dtype=torch.float64)
    return Floor(mean=float(result.mean()), std=float(result.std()), size=first, other=second, repeats=count)


def _pair(x: Tensor, y: Tensor, *, names: tuple[str, str] = ("x", "y"), least: int = 1) -> tuple[Tensor, Tensor]:
    """Check two sets of samples and return them flattened to (n, D) and (m, D) in the working dtype."""
    first, second = check_floating(x, names[0]), check_floating(y, names[1])
    if first.device != second.device:
        raise ConfigError(f"{names[0]} is on {first.device} and {names[1]} on {second.device}; move one with .to(...)")
    if first.shape[1:] != second.shape[1:]:
        raise ShapeError(
            f"{names[0]} and {names[1]} must have the same event shape, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}; the dimensions after the first must agree"
        )
    for tensor, name in ((first, names[0]), (second, names[1])):
        if tensor.shape[0] < least or tensor.numel() == 0:
            raise ShapeError(f"{name} must hold at least {least} non-empty samples, got shape {tuple(tensor.shape)}")
        check_samples(tensor, name)
    dtype = working_dtype(first.device)
    return (
        first.detach().reshape(first.shape[0], -1).to(dtype),
        second.detach().reshape(second.shape[0], -1).to(dtype),
    )


def _quantile_pieces(n: int, m: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (i, j, w): on a piece of [0, 1] of length w the quantile functions are the order statistics i and j.

    The breakpoints are integers in units of 1/(n m), so that no piece is lost or doubled by rounding.
    """
    of_x = torch.arange(1, n + 1, dtype=torch.int64) * m
    of_y = torch.arange(1, m + 1, dtype=torch.int64) * n
    ends = torch.cat([of_x, of_y]).sort().values
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    starts, ends = starts[ends > starts], ends[ends > starts]
    weight = (ends - starts).to(torch.float64) / (n * m)
    return (starts // m).to(like.device), (starts // n).to(like.device), weight.to(like)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Return all Euclidean distances (n, m), as differences: the matrix-product form loses half of the digits."""
    result: Tensor = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    return result


def _slices(length: int, step: int) -> list[slice]:
    """Cut 0..length into slices of at most ``step``."""
    return [slice(start, start + step) for start in range(0, length, step)]


def _inner_sum(x: Tensor) -> float:
    """Return the sum of |x_i - x_j| over all ordered pairs; blocks off the diagonal are computed once."""
    total = 0.0
    for part in _slices(x.shape[0], max(1, _BLOCK // x.shape[0])):
        block, rest = x[part], x[part.stop :]
        total += float(_distances(block, block).sum()) + 2.0 * float(_distances(block, rest).sum())
    return total


def _triangular(centred: Tensor) -> Tensor:
    """Return F (D, D) with F^T F the covariance of centred samples (n, D)."""
    upper = torch.linalg.qr(centred, mode="r").R / math.sqrt(centred.shape[0] - 1)  # (min(n, D), D)
    missing = upper.shape[1] - upper.shape[0]
    return torch.cat([upper, upper.new_zeros(missing, upper.shape[1])])


def _spectral(covariance: Tensor, size: int, name: str) -> Tensor:
    """Return F (D, D) with F^T F = covariance, from its eigenvalues; check that it is a covariance."""
    matrix = check_samples(covariance, name).detach().to("cpu", torch.float64)
    if matrix.shape != (size, size):
        raise ShapeError(
            f"{name} must have shape ({size}, {size}) for a mean of {size} values, got {tuple(matrix.shape)}"
        )
    # a matrix stored in float32 is symmetric and non-negative only to float32 rounding
    slack = 8 * size * torch.finfo(covariance.dtype).eps * float(matrix.abs().max())
    skew = float((matrix - matrix.T).abs().max())
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    if skew > slack or float(values[0]) < -slack:
        raise DomainError(
            f"{name} must be symmetric positive semidefinite, got asymmetry {skew:.3g} and smallest eigenvalue "
            f"{float(values[0]):.3g}; pass a covariance, for instance torch.cov(samples.T)"
        )
    factor: Tensor = values.clamp(min=0.0).sqrt()[:, None] * vectors.T
    return factor


def _frechet(mean_x: Tensor, factor_x: Tensor, mean_y: Tensor, factor_y: Tensor) -> float:
    """Return |mean_x - mean_y|^2 + min over orthogonal O of |factor_x - O factor_y|^2 (orthogonal Procrustes)."""
    left, _, right = torch.linalg.svd(factor_x @ factor_y.T)
    spread = factor_x - left @ (right @ factor_y)
    return float((mean_x - mean_y).square().sum() + spread.square().sum())
