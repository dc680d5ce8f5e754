r"""Vectors that probe the trace of a Jacobian: one parameter from Hutchinson's estimate to the exact trace.

Cut the D coordinates into k groups. Probe g carries independent random signs on its group and 0 elsewhere; the estimate
is the sum of the k products,

    sum_g e_g^T M e_g,      mean tr M,      variance 2 x sum of sym(M)_ij^2 over the pairs i != j inside a group,

so that k = 1 is Hutchinson's (1989) with Rademacher's signs, whose diagonal costs nothing, and k = D is the trace.
Coordinates whose entries are large belong in different groups ("dilution" in lattice field theory: Foley et al. 2005,
arXiv:hep-lat/0505023; "probing": Tang and Saad 2012, "A probing method for computing the diagonal of a matrix
inverse"). With r independent draws of the signs their spread gives the standard error.

Nearby pixels belong apart, so that a lattice of ``dims`` axes is coloured periodically: with the periods a_1 ... a_n
and a shift s of the last axis from cell to cell, as many colours as the product of the periods; those periods are taken
whose nearest places of one colour are the farthest apart. Channels, the first axis of an event with more than one, are
kept apart as far as k allows. ``likelihood.colour`` learns the groups from a model instead.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.errors.kinds import ConfigError, DTypeError, ShapeError, show
from scoresde.noise import SampleNoise, stream

__all__ = ["Probes", "check_groups", "lattice"]


@dataclass(frozen=True, eq=False)
class Probes:
    """The probes of a trace, and what the signs of each sample are.

    Args:
        groups: the group of each coordinate, from 0, of the event's shape; None for the exact trace.
        draws: independent draws of the signs; 1 for the exact trace.
    """

    groups: Tensor | None
    draws: int = 1

    @property
    def count(self) -> int | None:
        """The number of groups; None for the exact trace."""
        return None if self.groups is None else int(self.groups.max()) + 1

    def signs(self, x: Tensor, seed: int, first_sample: int, number: int = 0) -> Tensor:
        """Return signs (B, draws, *event) for states like x (B, *), each sample's its own; empty where exact.

        Another ``number`` gives others.
        """
        if self.groups is None:
            return x.new_zeros(len(x), 0)
        drawn = torch.empty((len(x), self.draws, *x.shape[1:]), dtype=torch.float32, device=x.device)
        source = SampleNoise(stream(seed, "likelihood", "signs").initial_seed(), first_sample)
        source.rewind(number)
        source.fill(drawn)
        return torch.where(drawn < 0, -1, 1).to(torch.int8)

    def vectors(self, signs: Tensor, x: Tensor) -> Iterator[Tensor]:
        """Yield the vectors for states like x: for each draw, those of all groups; of x's shape or its event's."""
        if self.groups is None:
            places = torch.arange(math.prod(x.shape[1:]), device=x.device).reshape(x.shape[1:])
            for i in range(places.numel()):
                yield (places == i).to(x.dtype)
            return
        groups = self.groups.to(x.device)
        for draw, group in itertools.product(range(self.draws), range(self.count or 0)):
            yield torch.where(groups == group, signs[:, draw], 0).to(x.dtype)

    def add_up(self, products: Sequence[Tensor], x: Tensor) -> Tensor:
        """Return the traces (B, draws) from the products, each (B,), of all vectors."""
        if not products or not len(x):
            return x.new_zeros(len(x), self.draws)
        return torch.stack(tuple(products)).reshape(self.draws, -1, len(x)).sum(1).T


@functools.lru_cache(maxsize=32)
def lattice(event: tuple[int, ...], k: int) -> Tensor:
    """Return at most k groups for an event, by its lattice: places of one group as far apart as they can be.

    Args:
        event: (D,) and (C, L) are series, (C, H, W) and (C, D, H, W) grids; C channels share every place.
        k: the largest number of groups.
    """
    size = math.prod(event)
    if k >= size:
        return torch.arange(size, device="cpu").reshape(event)
    sizes = event[1:] if len(event) > 1 else event
    channels = event[0] if len(event) > 1 else 1
    apart = channels if k >= channels else 1  # groups of channels
    periods, shift = _choose_periods(sizes, k // apart)
    cells = torch.meshgrid(*(torch.arange(n, device="cpu") for n in sizes), indexing="ij")
    number = torch.zeros(sizes, dtype=torch.long, device="cpu")
    steps = sum((c // a for c, a in zip(cells[:-1], periods[:-1], strict=True)), torch.zeros_like(number))
    for axis, (cell, period) in enumerate(zip(cells, periods, strict=True)):
        place = cell + shift * steps if axis == len(sizes) - 1 else cell
        number = number * period + place % period
    if len(event) == 1:
        return number
    channel = torch.arange(channels, device="cpu").reshape(-1, *(1,) * len(sizes)) % apart
    return _renumber(channel * math.prod(periods) + number)


def _choose_periods(sizes: Sequence[int], k: int) -> tuple[tuple[int, ...], int]:
    """Return the periods and the shift with at most k colours whose nearest places of one colour are farthest apart."""
    best: tuple[tuple[float, int], tuple[int, ...], int] = ((-1.0, 0), (1,) * len(sizes), 0)
    for periods in itertools.product(*(range(1, min(n, k) + 1) for n in sizes)):
        if math.prod(periods) > k:
            continue
        for shift in range(periods[-1] if len(sizes) > 1 else 1):
            rank = (_least_distance(sizes, periods, shift), math.prod(periods))
            if rank > best[0]:
                best = rank, periods, shift
    return best[1], best[2]


def _least_distance(sizes: Sequence[int], periods: Sequence[int], shift: int) -> float:
    """Return the squared distance of the nearest two places of one colour; infinite where there are none."""
    nearest, last = math.inf, periods[-1]
    reaches = [range(-((n - 1) // a), (n - 1) // a + 1) for n, a in zip(sizes[:-1], periods[:-1], strict=True)]
    for steps in itertools.product(*reaches):
        others = sum((step * a) ** 2 for step, a in zip(steps, periods[:-1], strict=True))
        along = -shift * sum(steps) % last
        for offset in {along or last, along, along - last}:
            if abs(offset) < sizes[-1] and (others or offset):
                nearest = min(nearest, others + offset**2)
    return nearest


def _renumber(groups: Tensor) -> Tensor:
    """Return the same groups, numbered from 0 without a gap."""
    numbers: Tensor = torch.unique(groups, return_inverse=True)[1]
    return numbers.reshape(groups.shape)


def check_groups(groups: object, event: Sequence[int]) -> Tensor:
    """Return groups of coordinates, numbered from 0 without a gap.

    Raises:
        DTypeError: no tensor of integers. ShapeError: of another event. ConfigError: a negative number.
    """
    if not isinstance(groups, Tensor) or groups.is_floating_point() or groups.is_complex():
        raise DTypeError(f"groups must be a tensor of integers, the group of each coordinate, got {show(groups)}")
    if tuple(groups.shape) != tuple(event):
        raise ShapeError(f"groups must have the event's shape {tuple(event)}, got {tuple(groups.shape)}")
    if groups.numel() and int(groups.min()) < 0:
        raise ConfigError("groups must be numbered from 0")
    return _renumber(groups.long())
