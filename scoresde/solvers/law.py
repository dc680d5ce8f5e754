r"""The exact law of a table's output for Gaussian data, as a recursion on its rows.

For data N(m, c) and exact predictions, the prediction at a state x is affine in x. With V = alpha^2 c + sigma^2,

    E[x_0 | x] = m + alpha c/V (x - alpha m),        E[z | x] = sigma/V (x - alpha m),

and any prediction p x_0 + q z of a table is their combination. So every state is an affine function of the start state
and the draws, whose weights on [1, start state, draw 1, draw 2, ...] follow row by row, without sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from scoresde.diffusions.targets import target
from scoresde.solvers.rows import Knot, Row

__all__ = ["fix_variance", "map_rows", "predict_gaussian"]


def fix_variance(row: Row, v: float) -> Row:
    """Return a row whose learned variance stands at v; exactly small at 0 and large at 1."""
    if row.spread is None:
        return row
    small, large = row.spread
    return replace(row, noise=(small ** (1 - v) * large**v, *row.noise[1:]), spread=None)


def predict_gaussian(at: Knot, prediction: str, x: np.ndarray, mean: float, variance: float) -> np.ndarray:
    """Return the exact prediction for data N(mean, variance) of the state with weights ``x`` on [1, ...]."""
    one = np.zeros_like(x)
    one[0] = 1.0
    total = at.alpha**2 * variance + at.sigma**2
    centred = x - at.alpha * mean * one
    data = mean * one + at.alpha * variance / total * centred
    noise = at.sigma / total * centred
    p, q = target(prediction, at.point())
    return float(p) * data + float(q) * noise


def map_rows(
    rows: Sequence[Row], prediction: str, lift: tuple[float, float], mean: float, variance: float
) -> np.ndarray:
    """Return the output's weights on [1, start state, draw 1, ...]; the lift's draw is the first where it has one."""
    draws = sum(row.draws for row in rows) + (lift[1] != 0.0)
    unit = np.eye(2 + draws)
    x, z = lift[0] * unit[1], list[np.ndarray]()
    if lift[1] != 0.0:
        x = x + lift[1] * unit[2]
        z.append(unit[2])
    y, past = x, list[np.ndarray]()
    for row in rows:
        past = [predict_gaussian(row.at, prediction, x, mean, variance), *([] if row.restart else past)]
        if row.draws:
            z.insert(0, unit[2 + len(z)])
        terms, noises = [y, *past], z if row.draws else [np.zeros_like(x), *z]
        x, y = (
            sum((w * v for w, v in zip(weights, terms, strict=False)), np.zeros_like(x))
            + sum((w * v for w, v in zip(noise, noises, strict=False)), np.zeros_like(x))
            for weights, noise in (
                (row.state, row.noise),
                (row.state, row.noise) if row.anchor is None else (row.anchor, row.anchor_noise),
            )
        )
    return np.asarray(x)
