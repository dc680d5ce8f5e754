"""Densities on a grid at several times: their moments, marginals and values between the grid's points."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.errors.kinds import ShapeError
from scoresde.errors.tensors import check_samples
from scoresde.errors.values import check_integer, check_number

__all__ = ["Densities"]


@dataclass(frozen=True, eq=False)
class Densities:
    """Densities on a grid at several times, in float64 on the CPU; what ``evolve_density`` returns.

    Args:
        axes: the cells' centres along each axis.
        times: (T,), in the order of the computation.
        values: (T, N_1) or (T, N_1, N_2), in 1/x or 1/x^2.
        steps: time steps that were taken.
    """

    axes: tuple[Tensor, ...]
    times: Tensor
    values: Tensor
    steps: int

    def __repr__(self) -> str:
        """Say where and when the densities are."""
        grid = " x ".join(f"{len(axis)} cells on [{float(axis[0]):.4g}, {float(axis[-1]):.4g}]" for axis in self.axes)
        span = f"t = {float(self.times[0]):g} to {float(self.times[-1]):g}"
        return f"<Densities at {len(self.times)} times, {span}, {grid}, {self.steps} steps>"

    @property
    def volume(self) -> float:
        return math.prod(float(axis[1] - axis[0]) for axis in self.axes)

    @property
    def mass(self) -> Tensor:
        """The integral of the density, (T,): 1 to rounding."""
        return self.values.flatten(1).sum(1) * self.volume

    @property
    def mean(self) -> Tensor:
        """Mean of each coordinate, (T, D)."""
        return self._moments()[0]

    @property
    def variance(self) -> Tensor:
        """Variance of each coordinate, (T, D)."""
        return self._moments()[1]

    def marginal(self, axis: int) -> Tensor:
        """Return the density of one coordinate, (T, N)."""
        axis = check_integer(axis, "axis", 0, len(self.axes) - 1)
        others = [k + 1 for k in range(len(self.axes)) if k != axis]
        share = self.volume / float(self.axes[axis][1] - self.axes[axis][0])
        return self.values.sum(others) * share if others else self.values

    def at(self, x: Tensor, t: float) -> Tensor:
        """Return the density at points x (B, D) and a time t, (B,), linear between centres and times; 0 outside.

        Raises:
            ShapeError, DomainError: points of another dimension, a time outside the computed ones.
        """
        from scipy.interpolate import RegularGridInterpolator

        points = check_samples(x).detach().to("cpu", torch.float64)
        if points.ndim != 2 or points.shape[1] != len(self.axes):
            raise ShapeError(f"x must have shape (B, {len(self.axes)}), got {tuple(points.shape)}")
        low, high = sorted((float(self.times[0]), float(self.times[-1])))
        t = check_number(t, "t", low, high)
        order = torch.argsort(self.times)
        times = self.times[order]
        k = min(max(int(torch.searchsorted(times, t)), 1), len(times) - 1)
        share = (t - float(times[k - 1])) / float(times[k] - times[k - 1])
        field = torch.lerp(self.values[order[k - 1]], self.values[order[k]], share)
        read = RegularGridInterpolator(
            [axis.numpy() for axis in self.axes], field.numpy(), bounds_error=False, fill_value=0.0
        )
        return torch.from_numpy(read(points.numpy()))

    def _moments(self) -> tuple[Tensor, Tensor]:
        means, variances = [], []
        for k, axis in enumerate(self.axes):
            p = self.marginal(k) * (axis[1] - axis[0])
            mean = p @ axis
            means.append(mean)
            variances.append((p * (axis - mean[:, None]).square()).sum(1))
        return torch.stack(means, 1), torch.stack(variances, 1)
