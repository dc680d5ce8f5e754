r"""The density of an SDE over time, on a grid in one or two dimensions.

For dx = f(x, t) dt + g(t) dw the density obeys the Fokker-Planck equation

    dp/dt = -div J,     J = f p - grad(D p) = (f - grad D) p - D grad p,     D = g^2/2,

where grad(D p) stands for d_i(D_i p), one D for each coordinate, and f - grad D for f below.

For a reverse SDE with drift f~, which runs from t_max down, the time s = t_max - t increases and the equation is the
same in s with -f~ in the place of f. Its solution is the forward SDE's marginal again, as is that of the probability
flow, where D = 0 and J = -f~ p.

*Space.* Cells of width h with one density each; the flux through a face is that of the stationary equation between two
centres with constant f and D (Scharfetter and Gummel 1969; Chang and Cooper 1970),

    J = (D/h) [B(-P) p_left - B(P) p_right],     P = f h/D,     B(z) = z/(e^z - 1).

A linear drift with constant D has its Gaussian stationary law exactly, whatever h. No flux passes the box's border.
Next to the central flux, f (p_left + p_right)/2 - D (p_right - p_left)/h, this one has the additional diffusion
E = D [(P/2) coth(P/2) - 1]: of order h^2 for small |P|, but |f| h/2, the upwind flux's, as D -> 0. Where |P| is above 5
it is taken out again after each step, by the flux E (p_right - p_left)/h of the new densities. Backward Euler's factor
1/(1 + q + i s) of a wave then is (1 + q)/(1 + q + i s), so that any step is stable.

*Time.* Backward Euler keeps mass and positivity at any step but is of order one. A step tau and two of tau/2 give p_1
and p_2, and p_2 + (p_2 - p_1) is of order two. What is added to the positive densities of backward Euler, this and what
takes E out, has the sum 0 along a line of cells, so it is the divergence of a flux; where that flux would take more out
of a cell than is in it, it is cut down to what there is (Zalesak 1979). So mass is kept to rounding, no density is
negative, and the order is two wherever nothing is cut, which is all but the far tails. In two dimensions a step is
Strang's: half a step along x_1, one along x_2, half a step along x_1. The sum of |p_2 - p_1| is the error estimate that
chooses the steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoresde.diffusions.fields import drift_of, noise_of
from scoresde.diffusions.sde import SDE
from scoresde.errors.kinds import DomainError

__all__ = ["Array", "Scheme", "points"]

Array = np.ndarray[Any, np.dtype[np.float64]]

STEEP = 5.0  # |P| above which fluxes are made central: the Gaussian that is exact is below 1e-5 of its peak there


class Fluxes(NamedTuple):
    """The flux through each inner face, (lines, N - 1), is left p_left - right p_right.

    Args:
        left: weight of the density left of the face.
        right: weight of the density right of it.
        excess: weight of p_right - p_left that makes the flux central, 0 where |P| <= STEEP; None where it is 0
            everywhere.
    """

    left: Array
    right: Array
    excess: Array | None


class Scheme:
    """An SDE on a grid: its fluxes at any time, and a step of any size.

    Args:
        sde: the SDE.
        centres: the cells' centres along each axis.
        edges: their edges.
        sign: 1 where time increases, -1 where it decreases.
    """

    def __init__(self, sde: SDE, centres: list[Array], edges: list[Array], sign: float) -> None:
        self.sde, self.centres, self.sign = sde, centres, sign
        self.widths = [float(c[1] - c[0]) for c in centres]
        self.volume = math.prod(self.widths)
        self.faces = [
            points([edges[k][1:-1] if k == axis else c for k, c in enumerate(centres)]) for axis in range(len(centres))
        ]

    def fluxes(self, axis: int, t: float) -> Fluxes:
        """Return the weights of the fluxes through the axis's faces."""
        time = torch.tensor(t, dtype=torch.float64, device="cpu")
        x, h, shape = self.faces[axis], self.widths[axis], [len(c) - (k == axis) for k, c in enumerate(self.centres)]
        drift = drift_of(self.sde, x, time)

        def on_lines(values: Tensor) -> Array:
            """Return the axis's part of values at the faces, line by line, (lines, N - 1)."""
            part = values[:, axis].detach().double().numpy().reshape(shape)
            lines: Array = np.moveaxis(part, axis, -1).reshape(-1, shape[axis])
            return lines

        g, field = on_lines(noise_of(self.sde, x, time)), on_lines(drift)
        good = np.isfinite(g)
        if not (good.all() and np.isfinite(field).all()):
            what = "the drift is not finite in the box" if good.all() else f"the diffusion is {g[~good][0]}"
            raise DomainError(f"{what} at t = {t:g}; keep the times away from there")
        d, v = 0.5 * g * g, self.sign * field
        if not self.sde.is_additive:
            v = v - 0.5 * on_lines(self.sde.diffusion_divergence(x, time))
        with np.errstate(all="ignore"):
            peclet = v * h / d
            left, right = (d / h * _bernoulli(sign * peclet) for sign in (-1, 1))
        upwind = ~(np.abs(peclet) < 500)  # also where d is 0
        left, right = np.where(upwind, np.maximum(v, 0), left), np.where(upwind, np.maximum(-v, 0), right)
        steep = upwind | (np.abs(peclet) > STEEP)
        return Fluxes(left, right, np.where(steep, 0.5 * (left + right) - d / h, 0.0) if steep.any() else None)

    def sweep(self, p: Array, axis: int, t: float, tau: float) -> tuple[Array, float]:
        """Return the densities after a step tau along one axis, and the sum of |p_2 - p_1|."""
        lines = np.moveaxis(p, axis, -1)
        before, ratio = lines.reshape(-1, p.shape[axis]), tau / self.widths[axis]
        middle, end = (self.fluxes(axis, t + self.sign * share * tau) for share in (0.5, 1.0))
        positive = _implicit(_implicit(before, middle, 0.5 * ratio), end, 0.5 * ratio)
        once, twice = _central(_implicit(before, end, ratio), end, ratio), positive
        if end.excess is not None:
            half = _central(_implicit(before, middle, 0.5 * ratio), middle, 0.5 * ratio)
            twice = _central(_implicit(half, end, 0.5 * ratio), end, 0.5 * ratio)
        after = _limited(positive, 2 * twice - once - positive)
        error = float(np.abs(twice - once).sum()) * self.volume
        return np.moveaxis(after.reshape(lines.shape), -1, axis), error

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


def _implicit(p: Array, fluxes: Fluxes, ratio: float) -> Array:
    """Return the densities (lines, N) after one step of backward Euler, ratio = tau/h, all lines in one system."""
    from scipy.linalg import solve_banded

    bands = np.zeros((3, *p.shape))
    bands[0, :, 1:], bands[2, :, :-1] = -ratio * fluxes.right, -ratio * fluxes.left
    bands[1] = 1 - bands[0] - bands[2]
    solved: Array = solve_banded((1, 1), bands.reshape(3, -1), p.reshape(-1), overwrite_ab=True, check_finite=False)
    return solved.reshape(p.shape)


def _central(p: Array, fluxes: Fluxes, ratio: float) -> Array:
    """Return the densities with the steep fluxes of the last step made central ones."""
    return p if fluxes.excess is None else _carried(p, ratio * fluxes.excess * np.diff(p, axis=1))


def _carried(p: Array, flux: Array) -> Array:
    """Return the densities after ``flux`` (lines, N - 1) has passed from each cell to the next."""
    after = p.copy()
    after[:, :-1] -= flux
    after[:, 1:] += flux
    return after


def _limited(p: Array, change: Array) -> Array:
    """Return p + change, whose sum along a line is 0, with its fluxes cut so that nothing becomes negative."""
    # change = -(flux_right - flux_left), and no flux passes the ends of a line.
    flux = -np.cumsum(change, axis=1)[:, :-1]
    out = np.zeros_like(p)
    out[:, :-1] += np.maximum(flux, 0)
    out[:, 1:] += np.maximum(-flux, 0)
    share = np.minimum(1.0, (1 - 1e-9) * p / np.maximum(out, 1e-300))
    return _carried(p, flux * np.where(flux > 0, share[:, :-1], share[:, 1:]))


def points(axes: Sequence[Array]) -> Tensor:
    """Return the points (N, D) of a grid, the last axis fastest."""
    return torch.from_numpy(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes)))
