r"""What a table makes of Gaussian data, and of an error in the predictions, as one recursion on its rows.

For data N(m, c) and exact predictions, the prediction at a state x is affine in x. With V = alpha^2 c + sigma^2,

    E[x_0 | x] = m + alpha c/V (x - alpha m),        E[z | x] = sigma/V (x - alpha m),

and any prediction p x_0 + q z of a table is their combination. So every state is an affine function of the start state
and the draws, whose weights on [1, start state, draw 1, draw 2, ...] follow row by row, without sampling.

The same recursion carries what is added to the predictions: an error e_i in the i-th prediction of some other kind, of
which the table's own is P = a x + b Q, changes the table's by b e_i and every later prediction through the state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from scoresde.diffusions.point import Point
from scoresde.diffusions.targets import target, view
from scoresde.solvers.rows import Row

__all__ = ["fix_variance", "map_errors", "map_rows", "read_gaussian"]


def fix_variance(row: Row, v: float) -> Row:
    """Return a row whose learned variance stands at v; exactly small at 0 and large at 1."""
    if row.spread is None:
        return row
    small, large = row.spread
    return replace(row, noise=(small ** (1 - v) * large**v, *row.noise[1:]), spread=None)


def read_gaussian(points: Point, prediction: str, variance: float) -> tuple[np.ndarray, np.ndarray]:
    """Return (a, b) of the exact prediction a x + b m at each of n points, for data N(m, variance), (n,) each."""
    p, q = target(prediction, points)
    alpha, sigma = points.alpha, points.sigma
    slope = (p * alpha * variance + q * sigma) / (alpha.square() * variance + sigma.square())
    return slope.numpy(), (p - slope * alpha).numpy()


def map_rows(
    rows: Sequence[Row], points: Point, prediction: str, lift: tuple[float, float], mean: float, variance: float
) -> np.ndarray:
    """Return the output's weights on [1, start state, draw 1, ...]; the lift's draw is the first where it has one."""
    slopes, offsets = read_gaussian(points, prediction, variance)
    unit = np.eye(2 + sum(row.draws for row in rows) + (lift[1] != 0.0))
    start, draws = lift[0] * unit[1], unit[2:]
    if lift[1] != 0.0:
        start = start + lift[1] * draws[0]
    return _run(rows, slopes, offsets[:, None] * mean * unit[0], start, draws, drawn=int(lift[1] != 0.0))


def map_errors(rows: Sequence[Row], points: Point, prediction: str, wrong: str, variance: float) -> np.ndarray:
    """Return the output's weights on an error in each of the predictions ``wrong``, (n,).

    Raises DomainError where the table's prediction has no finite view of the other one.
    """
    slopes, _ = read_gaussian(points, prediction, variance)
    known = target(wrong, points)
    name = f"the {prediction} prediction, read from one of the {wrong},"
    _, weights = view(known, target(prediction, points), points, name)
    still = np.zeros(len(rows))
    return _run(rows, slopes, np.diag(weights.numpy()), still, np.broadcast_to(still, (len(rows) + 1, len(rows))))


def _run(
    rows: Sequence[Row], slopes: np.ndarray, added: np.ndarray, start: np.ndarray, draws: np.ndarray, drawn: int = 0
) -> np.ndarray:
    """Carry a state through the rows, whose predictions are slope x + what is added, (n,) and (n, k); ``draws`` (m, k).

    Everything is a vector of k weights. The first ``drawn`` draws are made before the first row.
    """
    zero = np.zeros_like(start)

    def add(weights: Sequence[float], terms: Sequence[np.ndarray]) -> np.ndarray:
        return sum((w * v for w, v in zip(weights, terms, strict=False) if w), zero)

    x = y = start
    past, z = list[np.ndarray](), list(draws[:drawn])
    for row, slope, more in zip(rows, slopes, added, strict=True):
        past = [slope * x + more, *past]  # no row after a restart weighs what came before
        if row.draws:
            z.insert(0, draws[len(z)])
        terms, noises = [y, *past], z if row.draws else [zero, *z]
        x = add(row.state, terms) + add(row.noise, noises)
        y = x if row.anchor is None else add(row.anchor, terms) + add(row.anchor_noise, noises)
    return x
