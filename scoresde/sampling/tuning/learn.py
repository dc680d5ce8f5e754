r"""Robust, sketched Gauss-Newton for the numbers of a table: its output against where the model's own flow leads.

Let r_b be what sample b's output misses by, (D,), rms_b its root mean square, and theta the numbers (P,) of
``solvers.tuned``. With c = max(2 median rms, 1e-3), the objective is the mean of log(1 + rms_b^2/c^2) (Cauchy): a
sample that ends in another mode counts little, where least squares would spend the table on it. Its gradient is that of
least squares with the weights w_b = 1/(1 + rms_b^2/c^2). Every sample has a copy of theta of its own, so that one
product with the transposed Jacobian yields a row for each; with R vectors o_k of random signs

    G = sum_b w_b J_b^T r_b,      A = 1/R sum_k sum_b w_b (J_b^T o_k)(J_b^T o_k)^T,

and the step solves (A + lam diag A) d = -G (Levenberg), lam/4 after a success and 5 lam after a failure. Each call of
the network is computed again on the way back, so that the memory does not grow with the number of steps.

Source: Marquardt 1963; Holland and Welsch 1977, "Robust regression using iteratively reweighted least-squares".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from tqdm.auto import tqdm

from scoresde.diffusions.point import Point
from scoresde.errors.kinds import DomainError
from scoresde.models.prediction import Predictor
from scoresde.noise import normal, stream
from scoresde.ops import expand, recording
from scoresde.sampling.tuning.pairs import Pairs
from scoresde.solvers.tuned import Layout, Part

__all__ = ["improve", "measure", "run"]

SKETCHES = 3
TRIALS = 10  # of the damping, in one iteration
FLOOR = 1e-3  # of c, where all errors are small


def run(model: Predictor, layout: Layout, values: Tensor, pairs: Pairs) -> Tensor:
    """Return the outputs (B, *) of the table of values (B, P), one for each sample, differentiably."""
    numbers = layout.coefficients(values)
    level = numbers.log_snr
    alpha, sigma = (torch.exp(0.5 * torch.nn.functional.logsigmoid(ratio)) for ratio in (level, -level))
    x = pairs.start
    prepared = model.prepare(Point(sigma / (alpha + sigma), alpha, sigma, level), x, pairs.cond)
    again = torch.is_grad_enabled()
    predictions: list[Tensor] = []
    for i in range(layout.count):

        def predict(state: Tensor, i: int = i) -> Tensor:
            return prepared.predict(i, state).data

        data = checkpoint(predict, x, use_reentrant=False, preserve_rng_state=False) if again else predict(x)
        predictions.append(data.to(x))
        x = expand(numbers.decay[i].to(x), x) * x
        for j, earlier in enumerate(predictions):
            x = x + expand(numbers.weights[i, j].to(x), x) * earlier
    return x


def measure(model: Predictor, layout: Layout, values: Tensor, pairs: Pairs, size: int) -> Tensor:
    """Return each sample's root mean square error, (B,), with the table of values (P,)."""
    with torch.no_grad():
        return torch.cat(
            [part.measure(run(model, layout, values.expand(len(part), -1), part)) for part in pairs.parts(size)]
        )


def improve(
    model: Predictor,
    layout: Layout,
    values: Tensor,
    train: Pairs,
    *,
    iterations: int,
    parts: Iterable[Part],
    size: int,
    seed: int,
    seen: Callable[[Tensor], None],
    progress: bool = False,
) -> int:
    """Take Gauss-Newton steps from ``values`` (P,), and show ``seen`` the values after each; return the evaluations.

    Args:
        model: the model.
        layout: what the values mean.
        values: the start, (P,).
        train: what is fitted.
        iterations: at most so many.
        parts: which values may move.
        size: largest batch given to the network at once.
        seed: of the sketches.
        seen: called with the values after every step that lowers the objective.
        progress: show a bar of the iterations.
    """
    damping, used, n, free = 1e-2, 0, layout.count, layout.places(parts)
    each = measure(model, layout, values, train, size)
    for iteration in tqdm(range(iterations), desc="tuning", unit="step", disable=not progress, leave=False):
        scale = max(2 * float(each.median()), FLOOR)
        weights = 1 / (1 + (each / scale).square())
        gradient, curvature = (
            torch.zeros(len(free), dtype=torch.float32, device="cpu").double(),
            torch.zeros(len(free), len(free), dtype=torch.float32, device="cpu").double(),
        )
        draw, done = stream(seed, "sketch", iteration, device=train.start.device), 0
        signs = [normal(tuple(train.start.shape), draw).sign() for _ in range(SKETCHES)]
        for part in train.parts(size):
            copies = values.expand(len(part), -1).clone().requires_grad_(True)
            with recording():
                out = run(model, layout, copies, part)
            missed = (out - part.end).detach()
            vectors = [missed, *(drawn[done : done + len(part)].to(out) for drawn in signs)]
            rows = [torch.autograd.grad(out, copies, v, retain_graph=True)[0][:, free] for v in vectors]
            w = weights[done : done + len(part), None]
            gradient = gradient + (w * rows[0]).sum(0)
            curvature = curvature + sum((w * row).T @ row for row in rows[1:]) / SKETCHES
            done += len(part)
        used += n * len(train) * (2 + len(vectors))
        diagonal = curvature.diagonal()
        if not bool(torch.isfinite(gradient).all() and torch.isfinite(curvature).all() and diagonal.max() > 0):
            return used
        now = _objective(each, scale)
        for _ in range(TRIALS):
            damped = curvature + torch.diag(damping * diagonal + 1e-12 * diagonal.max())
            proposal = values.index_add(0, free, torch.linalg.solve(damped, gradient), alpha=-1)
            try:
                after = measure(model, layout, proposal, train, size)
            except DomainError:  # a call at a level where the network's readout has no value
                after = each + math.inf
            used += n * len(train)
            if _objective(after, scale) < now:
                values, each, damping = proposal, after, damping / 4
                seen(values)
                break
            damping *= 5
        else:
            return used
    return used


def _objective(each: Tensor, scale: float) -> float:
    """Return the mean of log(1 + rms^2/scale^2); infinite where an error is not finite."""
    value = float(torch.log1p((each / scale).square()).mean())
    return value if value == value else float("inf")
