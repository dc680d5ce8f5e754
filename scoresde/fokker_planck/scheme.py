r"""The density of an SDE over time, on a grid in one or two dimensions.

For dx = f(x, t) dt + g(t) dw the density obeys the Fokker-Planck equation

    dp/dt = -div J,     J = f p - D grad p,     D = g^2/2.

For a reverse SDE with drift f~, which runs from t_max down, the time s = t_max - t increases and the equation is the
same in s with -f~ in the place of f. Its solution is the forward SDE's marginal again, as is that of the probability
flow, where D = 0 and J = -f~ p.

*Space.* Cells of width h with one density each; the flux through a face is that of the stationary equation between two
centres with constant f and D (Scharfetter and Gummel 1969; Chang and Cooper 1970),

    J = (D/h) [B(-P) p_left - B(P) p_right],     P = f h/D,     B(z) = z/(e^z - 1).

A linear drift with constant D has its Gaussian stationary law exactly, at every h. No flux passes the box's border. The
error is of order h^2 where |P| is well below 2; as D -> 0 the flux becomes the upwind one, which is of order h and
smears the density as an additional diffusion |f| h/2 would: the probability flow needs many cells.

*Time.* Backward Euler keeps mass and positivity at any step but is of order one. A step tau and two of tau/2 give p_1
and p_2, and p_2 + (p_2 - p_1) is of order two. Along a line of cells p_2 - p_1 has the sum 0, so it is the divergence
of a flux; where that flux would take more out of a cell than is in it, it is cut down to what there is (Zalesak 1979).
So mass is kept to rounding, no density is negative, and the order is two wherever nothing is cut, which is all but the
far tails. In two dimensions a step is Strang's: half a step along x_1, one along x_2, half a step along x_1. The sum of
|p_2 - p_1| is the error estimate that chooses the steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.errors import DomainError, ShapeError
from scoresde.sde import SDE

__all__ = ["Array", "Scheme", "points"]

Array = np.ndarray[Any, np.dtype[np.float64]]


class Scheme:
    """An SDE on a grid: its fluxes at any time, and a step of any size.

    Args:
        sde: the SDE.
        centres: the cells' centres along each axis.
        edges: their edges.
        sign: 1 where time increases, -1 where it decreases.
    """

    def __init__(self, sde: SDE, centres: list[Array], edges: list[Array], sign: float) -> None:
        """Lay out the faces between cells."""
        self.sde, self.centres, self.sign = sde, centres, sign
        self.widths = [float(c[1] - c[0]) for c in centres]
        self.volume = math.prod(self.widths)
        self.faces = [
            points([edges[k][1:-1] if k == axis else c for k, c in enumerate(centres)]) for axis in range(len(centres))
        ]

    def fluxes(self, axis: int, t: float) -> tuple[Array, Array]:
        """Return the weights (lines, N - 1) of the densities left and right in the flux through the axis's faces."""
        time = torch.tensor(t, dtype=torch.float64)
        g = float(self.sde.diffusion(time))
        drift = self.sde.drift(self.faces[axis], time)
        if drift.shape != self.faces[axis].shape:
            raise ShapeError(f"drift must have x's shape {tuple(self.faces[axis].shape)}, got {tuple(drift.shape)}")
        shape = [len(c) - (k == axis) for k, c in enumerate(self.centres)]
        field = self.sign * drift[:, axis].double().numpy().reshape(shape)
        if not (math.isfinite(g) and np.isfinite(field).all()):
            what = f"the diffusion is {g}" if not math.isfinite(g) else "the drift is not finite in the box"
            raise DomainError(f"{what} at t = {t:g}; keep the times away from there")
        v, h, d = np.moveaxis(field, axis, -1).reshape(-1, shape[axis]), self.widths[axis], 0.5 * g * g
        with np.errstate(all="ignore"):
            peclet = v * h / d
            left, right = (d / h * _bernoulli(sign * peclet) for sign in (-1, 1))
        upwind = ~(np.abs(peclet) < 500)  # also where d is 0
        return np.where(upwind, np.maximum(v, 0), left), np.where(upwind, np.maximum(-v, 0), right)

    def sweep(self, p: Array, axis: int, t: float, tau: float) -> tuple[Array, float]:
        """Return the densities after a step tau along one axis, and the sum of |p_2 - p_1|."""
        lines = np.moveaxis(p, axis, -1)
        before, ratio = lines.reshape(-1, p.shape[axis]), tau / self.widths[axis]
        middle, end = (self.fluxes(axis, t + self.sign * share * tau) for share in (0.5, 1.0))
        once = _implicit(before, *end, ratio)
        twice = _implicit(_implicit(before, *middle, 0.5 * ratio), *end, 0.5 * ratio)
        after, change = _extrapolate(twice, twice - once)
        return np.moveaxis(after.reshape(lines.shape), -1, axis), change * self.volume

    def step(self, p: Array, t: float, tau: float) -> tuple[Array, float]:
        """Return the densities after a step tau from t, and the error estimate."""
        if p.ndim == 1:
            return self.sweep(p, 0, t, tau)
        p, first = self.sweep(p, 0, t, 0.5 * tau)
        p, second = self.sweep(p, 1, t, tau)
        p, third = self.sweep(p, 0, t + self.sign * 0.5 * tau, 0.5 * tau)
        return p, first + second + third


def _bernoulli(z: Array) -> Array:
    """Return z/(e^z - 1), 1 at 0."""
    near = np.abs(z) < 1e-8
    result: Array = np.where(near, 1 - 0.5 * z, z / np.expm1(np.where(near, 1.0, z)))
    return result


def _implicit(p: Array, left: Array, right: Array, ratio: float) -> Array:
    """Return the densities (lines, N) after one step of backward Euler, ratio = tau/h, all lines in one system."""
    from scipy.linalg import solve_banded

    bands = np.zeros((3, *p.shape))
    bands[0, :, 1:], bands[2, :, :-1] = -ratio * right, -ratio * left
    bands[1] = 1 - bands[0] - bands[2]
    solved: Array = solve_banded((1, 1), bands.reshape(3, -1), p.reshape(-1), overwrite_ab=True, check_finite=False)
    return solved.reshape(p.shape)


def _extrapolate(p: Array, change: Array) -> tuple[Array, float]:
    """Return p + change with its fluxes cut so that nothing becomes negative, and the sum of |change|."""
    # change = -(flux_right - flux_left), and no flux passes the ends of a line.
    flux = -np.cumsum(change, axis=1)[:, :-1]
    out = np.zeros_like(p)
    out[:, :-1] += np.maximum(flux, 0)
    out[:, 1:] += np.maximum(-flux, 0)
    share = np.minimum(1.0, (1 - 1e-9) * p / np.maximum(out, 1e-300))
    flux *= np.where(flux > 0, share[:, :-1], share[:, 1:])
    after = p.copy()
    after[:, :-1] -= flux
    after[:, 1:] += flux
    return after, float(np.abs(change).sum())


def points(axes: Sequence[Array]) -> Tensor:
    """Return the points (N, D) of a grid, the last axis fastest."""
    return torch.from_numpy(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes)))
