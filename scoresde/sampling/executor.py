r"""The loop: it runs every tableau.

A table is compiled into straight-line sums over numbered buffers before the loop starts: all coefficients are Python
floats, so that the loop does no schedule arithmetic, waits for no device and allocates nothing. Where a prediction is
not needed again, the readout P = a x + b F is folded into its row: x <- state[0] y + state[1] a x + state[1] b F + ...
A sum is never written over a buffer that it reads, so that a network may return its own input or a view of it.

A learned variance is the one coefficient that the network chooses: the draw z of such a row, whose weight is
small^(1 - v) large^v, is split into z (large/small)^v where v < 1/2 and z (small/large)^(1 - v) elsewhere, each 0 where
the other is not. The row adds the first with the weight small and the second with the weight large, so that v = 0 and
v = 1 are these variances to the last bit.

Under a linear SDE some weights are maps (``diffusions.blocks.Block``); they are multiplied, added and compiled like
numbers, and only the sums know them (``_mix_up``).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from scoresde.diffusions.blocks import Block
from scoresde.errors.kinds import ConfigError
from scoresde.models.prediction import Prediction, Prepared
from scoresde.noise import NoiseSource
from scoresde.sampling.kernels import Kernel
from scoresde.sampling.part import Observer, Step
from scoresde.solvers.block_table import BlockTableau
from scoresde.solvers.rows import Row
from scoresde.solvers.tableau import Tableau

__all__ = ["Run", "Stage", "check_variance", "execute"]

Term = tuple[float, int]
OUTPUT, START = 0, 1  # the buffers of the network's output and of the start state


class _Sum(NamedTuple):
    """buffer[out] <- weight * buffer[first] + the weighted rest."""

    out: int
    weight: float
    first: int
    rest: tuple[Term, ...]


class Stage(NamedTuple):
    """One row as buffer numbers: call at x, draw into ``draw`` (0: none), then the sums.

    ``spread`` is (buffer of the draw's large part, log large - log small) for a learned variance.
    """

    x: int
    y: int
    draw: int
    sums: tuple[_Sum, ...]
    new: int
    spread: tuple[int, float] | None = None


class _Program:
    """A compiled table: the stages, the lift before them, and how many buffers they need.

    Two rows, whose predictions are P = 2 x + 5 F and P = 3 x + 7 F (a = (2, 3), b = (5, 7)), F being in buffer 0 after
    each call and the start state in buffer 1:

        row 0   x <- 0.5 x + 0.4 P_0                2 <- 2 (1) + 5 (0)                      P_0, which row 1 reads again
                                                    3 <- 0.5 (1) + 0.4 (2)                  the new state
        row 1   x <- 0.6 x + 0.3 P_0 - 0.1 P_1      1 <- 1.5 (3) + 2.1 (0) - 0.1 (2)        with its P_0 folded in:
                                                    1.5 = 0.6 + 0.3 * 3 and 2.1 = 0.3 * 7; buffer 1 was free again

    ``a`` and ``b`` are the numbers of the readout at each row. A draw, and an anchor that moves by itself, take buffers
    of their own in the same way.
    """

    def __init__(self, table: Tableau, a: Sequence[float], b: Sequence[float]) -> None:
        self.size = START + 1
        self._free: list[int] = []
        scale, weight = table.lift
        x = y = START
        draws: list[int] = []
        past: list[int] = []
        self.lift: tuple[Stage, ...] = ()
        if table.lift != (1.0, 0.0):
            draws = [self._take()] if weight != 0.0 else []
            x = y = self._take()
            terms = [(scale, START), *((weight, k) for k in draws)]
            self.lift = (Stage(START, START, draws[0] if draws else 0, (_sum(x, terms),), x),)
        drawn = max((len(w) for row in table.rows for w in (row.noise, row.anchor_noise)), default=0)
        stages, memory = [], table.memory
        for row, needed, on_x, on_output in zip(table.rows, _reused(table.rows), a, b, strict=True):
            sums = []
            if row.restart:
                self._free += past
                past = []
            if row.draws:
                # A buffer that no later row reads serves the next draw.
                draws = [draws.pop() if len(draws) >= drawn else self._take(), *draws]
            follows, still = row.anchor is None, row.anchor == (1.0,) and not row.anchor_noise
            newest = [(on_x, x), (on_output, OUTPUT)]
            kept = 0
            if needed or not (follows or still):
                kept = self._take()
                sums.append(_sum(kept, newest))
                newest = [(1.0, kept)]
            noises = draws if row.draws else [OUTPUT, *draws]
            new = new_y = self._take()
            terms = _terms(row.state, y, newest, past, row.noise, noises)
            spread = None
            if row.spread is not None:
                small, large = row.spread
                spread = self._take(), math.log(large / small)
                terms.append((large, spread[0]))
            sums.append(_sum(new, terms))
            if not follows:
                new_y = y
                if not still:
                    new_y = self._take()
                    sums.append(_sum(new_y, _terms(row.anchor or (), y, newest, past, row.anchor_noise, noises)))
            stages.append(Stage(x, y, draws[0] if row.draws else 0, tuple(sums), new, spread))
            if spread is not None:
                self._free.append(spread[0])
            if needed:
                past.insert(0, kept)
                if len(past) > memory:
                    self._free.append(past.pop())
            elif kept:
                self._free.append(kept)
            # The old state and anchor are free once nothing names them.
            self._free += {x, y} - {new_y}
            x, y = new, new_y
        self.stages = tuple(stages)
        self.result = x

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        self.size += 1
        return self.size - 1


@functools.lru_cache(maxsize=32)
def _compiled(table: Tableau, a: tuple[float, ...], b: tuple[float, ...]) -> _Program:
    return _Program(table, a, b)


def _sum(out: int, terms: Sequence[Term]) -> _Sum:
    (weight, first), *rest = terms
    return _Sum(out, weight, first, tuple((w, k) for w, k in rest if w != 0.0))


def _terms(
    weights: Sequence[float],
    y: int,
    newest: Sequence[Term],
    past: Sequence[int],
    noise: Sequence[float],
    draws: Sequence[int],
) -> list[Term]:
    """Return one row's weights of the anchor, the newest prediction's terms, the earlier ones and the noise."""
    on_y, on_newest = weights[0], weights[1] if len(weights) > 1 else 0.0
    terms = [(on_newest * w, k) for w, k in newest]
    terms += [*zip(weights[2:], past, strict=False), *zip(noise, draws, strict=False)]
    if terms[0][1] == y:
        return [(terms[0][0] + on_y, y), *terms[1:]]
    return [(on_y, y), *terms]


def _reused(rows: Sequence[Row]) -> list[bool]:
    """Say of each row whether a later row needs its prediction."""
    needed = [False] * len(rows)
    for j, row in enumerate(rows):
        for weights in (row.state, row.anchor or ()):
            for k, _ in enumerate(weights[2:], start=1):
                needed[j - k] = True
    return needed


def execute(
    table: Tableau,
    model: Prepared,
    x: Tensor,
    noise: NoiseSource,
    *,
    kernels: Sequence[Kernel] = (),
    observers: Sequence[Observer] = (),
    guard: Callable[[int, Tensor, Tensor], Tensor] | None = None,
    differentiable: bool = False,
) -> Tensor:
    """Run a tableau on the state x (B, *), whose memory is used unless ``differentiable``.

    Args:
        table: the sampler.
        model: the model, prepared at ``table.points``.
        x: start state.
        noise: where the draws come from.
        kernels: applied before each row whose state is its anchor.
        observers: called after each row.
        guard: (row, anchor, new state) -> new state, where every step is to be checked.
        differentiable: keep the graph; every sum is then a new tensor.

    Raises:
        ConfigError: a table with a learned variance and a model without one, before any call.
    """
    check_variance(table, learned=model.learned)
    run = Run(table, model.weights(table.prediction), x, noise, differentiable=differentiable)
    outputs, buffers = model.outputs, run.buffers
    for i, stage in enumerate(run.stages):
        if kernels and stage.x == stage.y:
            for kernel in kernels:
                buffers[stage.x] = kernel(buffers[stage.x], i, model, noise)
        run.advance(stage, *outputs(i, buffers[stage.x]))
        if guard is not None:
            buffers[stage.new] = guard(i, buffers[stage.y], buffers[stage.new])
        if observers:
            s = table.rows[i + 1].at.t if i + 1 < len(table.rows) else table.end.t
            prediction = Prediction(buffers[stage.x], buffers[OUTPUT], model.reading(i), run.fraction)
            for observer in observers:
                observer(Step(i, table.rows[i].at.t, s, buffers[stage.new], prediction))
    return buffers[run.result]


def check_variance(table: Tableau, *, learned: bool) -> None:
    """Raise ConfigError for a table with a learned variance and a model without one."""
    if table.spread and not learned:
        raise ConfigError(
            f"{table.name!r} takes its variance from the network, and this model learns none; pass "
            'ScoreModel(..., variance="learned"), or use the table with variance="small" or "large"'
        )


class Run:
    """A table under way: its buffers, and one row at a time, whose output is given.

    Args:
        table: the sampler.
        weights: a and b of the prediction P = a x + b F at each row.
        x: start state (B, *), whose memory is used unless ``differentiable``.
        noise: where the draws come from.
        differentiable: keep the graph; every sum is then a new tensor.
    """

    def __init__(
        self,
        table: Tableau,
        weights: tuple[tuple[float, ...], tuple[float, ...]],
        x: Tensor,
        noise: NoiseSource,
        *,
        differentiable: bool = False,
    ) -> None:
        # Maps are of a table of their own, and no keys.
        mixed = isinstance(table, BlockTableau)
        program = _Program(table, *weights) if mixed else _compiled(table, *weights)
        self._add_up = _mix_up if mixed else _add_up
        self.stages, self.result, self.noise, self.fresh = program.stages, program.result, noise, differentiable
        # ``held`` is where a sum is written: the buffers themselves, or None for a new tensor.
        self.buffers = [x, x, *(torch.empty_like(x) for _ in range(program.size - 2))]
        self.held: list[Tensor | None] = [None] * program.size if differentiable else list(self.buffers)
        self.fraction: Tensor | None = None
        for stage in program.lift:
            if stage.draw:
                noise.fill(self.buffers[stage.draw])
            self._add_up(self.buffers, self.held, stage.sums)

    def advance(self, stage: Stage, output: Tensor, fraction: Tensor | None = None) -> None:
        """Do what follows a call of the network: its output F, and v where it learns a variance."""
        buffers, self.fraction = self.buffers, fraction
        buffers[OUTPUT] = output
        if stage.draw:
            if self.fresh:
                buffers[stage.draw] = torch.empty_like(buffers[stage.x])
            self.noise.fill(buffers[stage.draw])
        if stage.spread is not None:
            assert fraction is not None
            _split(buffers, self.held, stage.draw, stage.spread, fraction)
        self._add_up(buffers, self.held, stage.sums)


def _add_up(buffers: list[Tensor], held: Sequence[Tensor | None], sums: Sequence[_Sum]) -> None:
    for out, weight, first, rest in sums:
        total = torch.mul(buffers[first], weight, out=held[out])
        for w, k in rest:
            total.add_(buffers[k], alpha=w)
        buffers[out] = total


def _mix_up(buffers: list[Tensor], held: Sequence[Tensor | None], sums: Sequence[_Sum]) -> None:
    """Do the same where weights are numbers or maps."""
    for out, weight, first, rest in sums:
        x, scale = buffers[first], cast(float | Block, weight)
        total = scale.times(x, held[out]) if isinstance(scale, Block) else torch.mul(x, scale, out=held[out])
        for w, k in cast(tuple[tuple[float | Block, int], ...], rest):
            if isinstance(w, Block):
                w.add_to(total, buffers[k])
            else:
                total.add_(buffers[k], alpha=w)
        buffers[out] = total


def _split(
    buffers: list[Tensor], held: Sequence[Tensor | None], draw: int, spread: tuple[int, float], v: Tensor
) -> None:
    """Split a draw into its parts for the small and for the large variance; a v that is no number stays one."""
    other, ratio = spread
    v = v.to(buffers[draw].dtype)
    below = v < 0.5
    scaled = buffers[draw] * (ratio * torch.where(below, v, v - 1)).exp()
    nothing = torch.zeros((), dtype=scaled.dtype, device=scaled.device)
    for part, values in ((draw, (scaled, nothing)), (other, (nothing, scaled))):
        buffers[part] = torch.where(below, *values, out=held[part])
