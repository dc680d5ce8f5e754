"""The floor of a metric, and one row of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from scoresde.errors.kinds import DomainError
from scoresde.errors.tensors import check_samples
from scoresde.errors.values import check_callable, check_integer, check_value
from scoresde.noise import permutation, stream
from scoresde.ops import Array, accept_arrays

__all__ = ["Comparison", "Floor", "Metric", "floor"]

Metric = Callable[[Tensor, Tensor], float]


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
        amplification: what the sampler's table makes of a constant error of 1 in the data prediction; None without a
            table.
        excess: the exact variance that its table makes of Gaussian data of the data's variance, in units of it.
    """

    sampler: str
    nfe: float
    seconds: float
    samples: int
    distances: Mapping[str, float]
    floors: Mapping[str, float] = field(default_factory=dict)
    floor_stds: Mapping[str, float] = field(default_factory=dict)
    amplification: float | None = None
    excess: float | None = None

    def to_dict(self) -> dict[str, object]:
        """Return the row as plain dictionaries and numbers, ready for JSON."""
        return asdict(self)


def floor(
    metric: Metric,
    reference: Array,
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
    pool = check_samples(accept_arrays(reference, "reference"), "reference")
    check_callable(metric, "metric", "of two sets, e.g. energy_distance", optional=False)
    first = check_integer(size, "size", 1)
    second = first if other is None else check_integer(other, "other", 1)
    count = check_integer(repeats, "repeats", 2, 10**6)
    if first + second > pool.shape[0]:
        raise DomainError(
            f"size + other must be at most {pool.shape[0]}, the samples in reference, got {first} + {second}; "
            "the two sets must be disjoint, so give a larger reference or smaller sets"
        )
    values = []
    for repeat in range(count):
        chosen = permutation(pool.shape[0], stream(seed, "floor", repeat)).to(pool.device)
        value = metric(pool[chosen[:first]], pool[chosen[first : first + second]])
        values.append(check_value(value, "metric"))
    result = torch.tensor(values, dtype=torch.float64, device="cpu")
    return Floor(mean=float(result.mean()), std=float(result.std()), size=first, other=second, repeats=count)
