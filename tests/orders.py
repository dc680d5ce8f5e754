"""Errors against exact flows and exact laws, for tests of orders; no Monte Carlo.

Deterministic: the probability flow of scalar data maps quantiles to quantiles, so the exact flow of any law is
F_s^{-1}(F_t(x)). Multistep methods start from exact history. Weak: the table's exact law for Gaussian data. Strong:
for Gaussian data both the reverse SDE and the table are linear in the driving path, so the mean square distance of
their solutions on the same path is an integral over each interval.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from helpers import MEAN, SDES, slope
from scipy.special import ndtr

from scoresde import EDMSDE, VESDE, VPSDE, GaussianSDE, RectifiedFlow, Solver, SubVPSDE, Tableau
from scoresde.solvers.grids import Grid
from scoresde.solvers.rows import Increment, Knot

# Every kind of diffusion; the rectified flow starts where the noise prediction still knows the data.
FLOWS: dict[str, GaussianSDE] = {
    **{name: SDES[name] for name in ("vp", "sub_vp", "ve")},
    "edm": EDMSDE(),
    "rectified": RectifiedFlow(t_max=0.99),
}
# They end where sigma is not yet small: at VE's t_min Euler-Maruyama's first-order error in the variance cancels, and
# under VP the ancestral draw's clock nu^-2 is too uneven over the last steps of a grid uniform in t.
LATE: dict[str, GaussianSDE] = {
    "vp": VPSDE(t_min=0.05),
    "sub_vp": SubVPSDE(t_min=0.05),
    "ve": VESDE(t_min=0.4),
    "edm": EDMSDE(sigma_min=0.2),
    "rectified": RectifiedFlow(t_min=0.1, t_max=0.99),
}

# A mixture of unequal components, away from the origin's symmetry, at five quantiles.
SHARES, MEANS, STDS = np.array([0.35, 0.65]), np.array([-1.0, 0.8]), np.array([0.45, 0.6])
LEVELS = np.array([0.07, 0.3, 0.45, 0.62, 0.9])


@functools.cache
def quantiles(at: Knot) -> np.ndarray:
    """States at the levels of the mixture's law at a point: bisection, then Newton's method."""
    mean, std = at.alpha * MEANS, np.hypot(at.alpha * STDS, at.sigma)
    low, high = np.full(len(LEVELS), (mean - 12 * std).min()), np.full(len(LEVELS), (mean + 12 * std).max())
    for _ in range(20):
        middle = (low + high) / 2
        below = ndtr((middle[:, None] - mean) / std) @ SHARES < LEVELS
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    x = (low + high) / 2
    for _ in range(4):
        z = (x[:, None] - mean) / std
        x = x - (ndtr(z) @ SHARES - LEVELS) / (np.exp(-z * z / 2) / std / math.sqrt(2 * math.pi) @ SHARES)
    return x


def flow_error(table: Tableau, first: int = 0) -> float:
    """Run the rows from number ``first`` on, with exact states and predictions before it."""
    rows = table.rows
    alpha, sigma = (np.array([getattr(row.at, name) for row in rows])[:, None, None] for name in ("alpha", "sigma"))
    shares, means, stds = (c[:, None] for c in (SHARES, MEANS, STDS))
    variance = (alpha * stds) ** 2 + sigma**2
    centre, height, width = alpha * means, shares / np.sqrt(variance), -0.5 / variance
    # In each component the prediction is constant + slope (x - centre): E[x_0 | x], E[z | x] or their difference.
    constants, slopes = {
        "data": (means + 0 * alpha, alpha * stds**2 / variance),
        "noise": (0 * means + 0 * alpha, sigma / variance),
        "flow": (0 * alpha - means, (sigma - alpha * stds**2) / variance),
    }[table.prediction]
    past = np.empty((len(rows), len(LEVELS)))

    def predict(i: int, x: np.ndarray) -> None:
        away = x - centre[i]
        density = height[i] * np.exp(width[i] * away * away)
        past[i] = (density * (constants[i] + slopes[i] * away)).sum(0) / density.sum(0)

    def combine(i: int, weights: tuple[float, ...], y: np.ndarray) -> np.ndarray:
        # Predictions newest first are the last rows of ``past``, backwards.
        return weights[0] * y + np.array(weights[:0:-1]) @ past[i + 2 - len(weights) : i + 1]

    for i in range(first):
        predict(i, quantiles(rows[i].at))
    x = y = quantiles(rows[first].at)
    if first and rows[first - 1].anchor is not None:
        y = quantiles(rows[first - 1].at)
    for i in range(first, len(rows)):
        row = rows[i]
        predict(i, x)
        x = combine(i, row.state, y)
        y = x if row.anchor is None else y if row.anchor == (1.0,) else combine(i, row.anchor, y)
    return float(np.sqrt(np.mean((x - quantiles(table.end)) ** 2)))


def flow_order(solver: Solver, sde: GaussianSDE, first: int = 0, grid: Grid | None = None) -> float:
    """Return the measured order where the error is asymptotic and yet far above rounding, on the solver's own grid."""
    steps = {1: (160, 320), 2: (160, 320), 3: (800, 1600), 4: (800, 1600), 5: (320, 640)}[solver.order.deterministic]
    errors = [flow_error(solver(sde, (grid or solver.grid)(sde, n)), first) for n in steps]
    return slope(errors, steps)


def total(at: Knot, variance: float) -> float:
    return at.alpha**2 * variance + at.sigma**2


def weak_error(table: Tableau) -> float:
    """Root mean square of the relative errors of the variance at three data variances, and of the mean."""
    errors = []
    for variance in (0.05, 0.4, 3.0):
        mean, got = table.law(MEAN, variance)
        errors += [got / total(table.end, variance) - 1, (mean - table.end.alpha * MEAN)]
    return float(np.sqrt(np.mean(np.square(errors))))


NODES, WEIGHTS = np.polynomial.legendre.leggauss(12)


def kernels(sde: GaussianSDE, increments: Sequence[Increment]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times in each interval, their quadrature weights, and q k there, normalised to an integral of its square of 1."""
    t, measure, kernel = (np.empty((len(increments), len(NODES))) for _ in range(3))
    for power in {increment.power for increment in increments}:
        chosen = [i for i, increment in enumerate(increments) if increment.power == power]
        start, end = (np.array([[getattr(increments[i], name)] for i in chosen]) for name in ("start", "end"))
        half = (start - end) / 2
        t[chosen], measure[chosen] = end + half * (NODES + 1), half * WEIGHTS
        times = torch.from_numpy(t[chosen])
        point, ends = sde.at(times), sde.at(torch.from_numpy(np.hstack([start, end])))
        if power is None:
            rate, passed, change = np.ones(1), start - t[chosen], 2 * half
        else:
            # The clock nu^p runs at the rate |p| nu^p g^2/(2 sigma^2), and log(nu) at the rate without the p nu^p.
            clocks = [-0.5 * p.log_snr if power == 0 else (p.sigma / p.alpha) ** power for p in (point, ends)]
            scale = 1.0 if power == 0 else abs(power) * clocks[0]
            rate = (0.5 * scale * (sde.diffusion(times) / point.sigma).square()).numpy()
            passed, change = (clocks[1][:, :1] - clocks[0]).abs().numpy(), clocks[1].diff().abs().numpy()
        for i, share in zip(chosen, passed / change, strict=True):
            kernel[i] = np.polynomial.polynomial.polyval(share, increments[i].shape)
        kernel[chosen] *= np.sqrt(rate / change)
    return t, measure, kernel


def kernel(sde: GaussianSDE, increment: Increment) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``kernels`` of one increment."""
    t, measure, k = kernels(sde, [increment])
    return t[0], measure[0], k[0]


def carried(sde: GaussianSDE, t: np.ndarray, end: Knot, eta: float, variance: float) -> np.ndarray:
    """What an increment dw at these times adds to the exact solution at the end."""
    point = sde.at(torch.from_numpy(t))
    factor = path_factor(point.alpha.numpy(), point.sigma.numpy(), end, eta, variance)
    return factor * eta * sde.diffusion(point.t).numpy()


def path_factor(alpha: np.ndarray, sigma: np.ndarray, end: Knot, eta: float, variance: float) -> np.ndarray:
    """For Gaussian data the reverse SDE is linear: what it makes of a deviation here by the end.

    With V the variance at each time, (V_end/V)^((1 + eta^2)/2) (alpha/alpha_end)^(eta^2).
    """
    ratio = total(end, variance) / (alpha**2 * variance + sigma**2)
    return ratio ** ((1 + eta**2) / 2) * (alpha / end.alpha) ** (eta**2)


def strong_error(sde: GaussianSDE, table: Tableau, eta: float, variance: float = 0.25) -> float:
    """Root mean square distance at the end from the exact solution with the same start state and the same path."""
    weights, end, begin = table.affine_map(MEAN, variance), table.end, table.start
    exact = path_factor(begin.alpha, begin.sigma, end, eta, variance)
    square = (weights[1] - exact) ** 2 * total(begin, variance)
    drawn = [row.increment for row in table.rows if row.draws]
    t, measure, k = kernels(sde, drawn)
    weight = np.array(weights[2:])
    assert weight.shape == (len(drawn),)
    square += float((measure * (carried(sde, t, end, eta, variance) - weight[:, None] * k) ** 2).sum())
    return math.sqrt(square)
