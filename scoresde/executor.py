r"""The loop: it runs every tableau.

All coefficients are Python floats before it starts, so that the loop does no schedule arithmetic, waits for no device
and allocates nothing after its first steps. Where a prediction is not needed again, the readout P = a x + b F is folded
into the row: x <- state[0] y + state[1] a x + state[1] b F + ...
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.kernels import Kernel
from scoresde.model import Prediction, PreparedModel, Readout
from scoresde.noise import NoiseSource
from scoresde.tableau import Row, Tableau

__all__ = ["Observer", "Step", "execute"]

Term = tuple[float, Tensor]


@dataclass(frozen=True, eq=False)
class Step:
    """What an observer sees after a row: read-only; x is reused by the loop, clone it to keep it.

    Args:
        index: number of the row.
        t: time of the call.
        s: time of the new state.
        x: the new state (B, *).
        prediction: what the model said at t.
    """

    index: int
    t: float
    s: float
    x: Tensor
    prediction: Prediction


Observer = Callable[[Step], None]


class _Pool:
    """Buffers of one shape, used again; without grad only, since autograd keeps what it saw."""

    def __init__(self, like: Tensor, reuse: bool) -> None:
        self.like, self.reuse = like, reuse
        self.free: list[Tensor] = []

    def take(self) -> Tensor | None:
        if not self.reuse:
            return None
        return self.free.pop() if self.free else torch.empty_like(self.like)

    def give(self, *used: Tensor) -> None:
        if self.reuse:
            self.free.extend(used)


def _combine(out: Tensor | None, terms: Sequence[Term]) -> Tensor:
    """Return the weighted sum of the terms, in ``out`` where it is given."""
    (w, first), *rest = terms
    if w == 1.0 and rest:
        v, second = rest.pop(0)
        total = torch.add(first, second, alpha=v, out=out)
    else:
        total = torch.mul(first, w, out=out)
    for v, term in rest:
        total.add_(term, alpha=v)
    return total


def _reused(rows: Sequence[Row]) -> list[bool]:
    """Say of each row whether a later row needs its prediction."""
    needed = [False] * len(rows)
    for j, row in enumerate(rows):
        for weights in (row.state, row.anchor or ()):
            for k, w in enumerate(weights[2:], start=1):
                needed[j - k] |= w != 0.0
    return needed


def execute(
    table: Tableau,
    model: PreparedModel,
    x: Tensor,
    noise: NoiseSource,
    *,
    kernels: Sequence[Kernel] = (),
    observers: Sequence[Observer] = (),
    guard: Callable[[int, Tensor, Tensor], Tensor] | None = None,
    differentiable: bool = False,
) -> Tensor:
    """Run a tableau on the state x (B, *), which is overwritten unless ``differentiable``.

    Args:
        table: the sampler.
        model: the model, prepared at ``table.points()``.
        x: start state.
        noise: where the draws come from.
        kernels: applied before each row whose state is its anchor.
        observers: called after each row.
        guard: (row, old state, new state) -> new state, where every step is to be checked.
        differentiable: keep the graph.
    """
    a, b = model.weights(table.prediction)
    pool = _Pool(x, reuse=not differentiable)
    scale, lift = table.lift
    draws: list[Tensor] = []
    if lift != 0.0:
        draws = [_draw(noise, x)]
        x = _combine(pool.take(), [(scale, x), (lift, draws[0])])
    y, past, memory = x, list[Tensor](), table.memory
    drawn = max((len(w) for row in table.rows for w in (row.noise, row.anchor_noise)), default=0)
    for i, (row, needed) in enumerate(zip(table.rows, _reused(table.rows), strict=True)):
        if kernels and x is y:
            for kernel in kernels:
                x = y = kernel(x, i, model, noise)
        output = model.raw(i, x)
        if row.restart:
            past.clear()
        follows, still = row.anchor is None, row.anchor == (1.0,) and not row.anchor_noise
        if row.draws:
            # A buffer that no later row reads serves the next draw.
            draws = [_draw(noise, x, draws.pop() if len(draws) >= drawn else None), *draws]
        if needed or not (follows or still):
            current = _combine(pool.take(), [(a[i], x), (b[i], output)])
            newest: list[Term] = [(1.0, current)]
        else:
            current = None
            newest = [(a[i], x), (b[i], output)]
        new = _advance(pool.take(), row.state, row.noise, y, newest, past, draws, row.draws)
        if guard is not None:
            new = guard(i, y, new)
        new_y = y
        if not (follows or still):
            new_y = _advance(pool.take(), row.anchor or (), row.anchor_noise, y, newest, past, draws, row.draws)
        elif follows:
            new_y = new
        if observers:
            s = table.rows[i + 1].at.t if i + 1 < len(table.rows) else table.end.t
            prediction = Prediction(x, output, _at(model.readout, i))
            for observer in observers:
                observer(Step(i, row.at.t, s, new, prediction))
        if current is not None:
            past.insert(0, current)
            if len(past) > memory:
                pool.give(past.pop())
        # The old state and anchor are free once nothing names them.
        if x is not y and x is not new_y:
            pool.give(x)
        if y is not new_y:
            pool.give(y)
        x, y = new, new_y
    return x


def _advance(
    out: Tensor | None,
    weights: Sequence[float],
    noise: Sequence[float],
    y: Tensor,
    newest: Sequence[Term],
    past: Sequence[Tensor],
    draws: Sequence[Tensor],
    fresh: bool,
) -> Tensor:
    """Apply one row's weights to the anchor, the newest prediction's terms, the earlier ones and the noise."""
    on_y, on_newest = weights[0], weights[1] if len(weights) > 1 else 0.0
    terms = [(on_newest * w, v) for w, v in newest] if on_newest else []
    if terms and terms[0][1] is y:
        terms[0] = (terms[0][0] + on_y, y)
    elif on_y or not terms:
        terms.insert(0, (on_y, y))
    if len(weights) > 2:
        terms += [(w, p) for w, p in zip(weights[2:], past, strict=False) if w]
    if noise:
        terms += [(w, z) for w, z in zip(noise if fresh else noise[1:], draws, strict=False) if w]
    return _combine(out, terms)


def _draw(noise: NoiseSource, x: Tensor, out: Tensor | None = None) -> Tensor:
    z = torch.empty_like(x) if out is None else out
    noise.fill(z)
    return z


def _at(readout: Readout, i: int) -> Readout:
    """Return the readout of one row."""
    shape = readout.point.t.shape
    p, q = (c.expand(shape)[i] for c in readout.pair)
    return Readout(readout.point[i], (p, q), readout.c_in.expand(shape)[i], readout.c_noise[i])
