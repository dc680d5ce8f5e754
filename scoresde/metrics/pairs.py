"""What the metrics share: the check of two sets, their distances, and the pieces of quantile functions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.errors.kinds import DomainError, ShapeError
from scoresde.errors.tensors import check_device, check_floating, check_samples
from scoresde.ops import Array, accept_arrays, chunks, working_dtype

__all__ = ["BLOCK", "check_pair", "cut_quantiles", "measure_distances", "sum_between", "sum_within"]

BLOCK = 2**22  # numbers held at once: 32 MiB of float64, whatever the sizes of the two sets


def check_pair(x: Array, y: Array, *, names: tuple[str, str] = ("x", "y"), least: int = 1) -> tuple[Tensor, Tensor]:
    """Check two sets of samples and return them flattened to (n, D) and (m, D) in the working dtype."""
    first, second = (check_floating(accept_arrays(one, name), name) for one, name in zip((x, y), names, strict=True))
    check_device(first.device, names[0], second.device, names[1])
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
    flat_first, flat_second = (one.detach().reshape(one.shape[0], -1).to(dtype) for one in (first, second))
    largest = max(float(one.abs().max()) for one in (flat_first, flat_second))
    if largest > (torch.finfo(dtype).max / (16 * flat_first.shape[1])) ** 0.5:
        raise DomainError(
            f"{names[0]} and {names[1]} reach {largest:g}, and the squares of their distances pass the largest number; "
            "scale both down"
        )
    return flat_first, flat_second


def cut_quantiles(n: int, m: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (i, j, w): on a piece of [0, 1] of length w the quantile functions are the order statistics i and j.

    The breakpoints are integers in units of 1/(n m), so that no piece is lost or doubled by rounding.
    """
    of_x = torch.arange(1, n + 1, dtype=torch.int64, device="cpu") * m
    of_y = torch.arange(1, m + 1, dtype=torch.int64, device="cpu") * n
    ends = torch.cat([of_x, of_y]).sort().values
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    starts, ends = starts[ends > starts], ends[ends > starts]
    weight = (ends - starts).to(torch.float64) / (n * m)
    return (starts // m).to(like.device), (starts // n).to(like.device), weight.to(like)


def measure_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return all Euclidean distances (n, m), as differences: the matrix-product form loses half of the digits."""
    result: Tensor = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    return result


def sum_between(x: Tensor, y: Tensor, measure: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Return the sum of ``measure`` over all pairs of x (n, D) and y (m, D), block by block."""
    return sum(float(measure(x[part], y).sum()) for part in chunks(x.shape[0], max(1, BLOCK // y.shape[0])))


def sum_within(x: Tensor, measure: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Return the sum of ``measure`` over ordered pairs i != j of x; blocks off the diagonal are computed once."""
    total = 0.0
    for part in chunks(x.shape[0], max(1, BLOCK // x.shape[0])):
        block, rest = x[part], x[part.stop :]
        total += float(measure(block, block).fill_diagonal_(0.0).sum()) + 2.0 * float(measure(block, rest).sum())
    return total
