r"""A table run in parallel in time: the states of many rows are guessed together, and corrected together.

A table is a recursion, x_(i+1) = linear in x_i, x_(i-1), ..., the predictions P_i(x_i) so far and the noise. Written
with the prediction of a Gaussian of the data's mean m and variance c (one number), whose slope k_i is known,

    P_i(x) = k_i x + Q_i(x),

what is left to the network is the residual Q_i. One iteration asks the model at the guessed states of all rows of a
window in one batch, and runs the recursion once more with these numbers for Q_i, k_i x being taken at the new states.
The exact states are its only fixed point. The first row's state is exact, so that each iteration makes at least one
row final, and n of them the whole table; a row is final as soon as its state moves by no more than the tolerance. Then
the window moves on. Noise is drawn for its row and the same in every iteration.

For Gaussian data of variance c the residual is the same at every state, and the first iteration is exact. Without the
slope, with a row's noise prediction held, this is the Picard iteration of Shih et al. 2023, "Parallel sampling of
diffusion models", arXiv:2305.16317, which takes two to three times as many (``benchmarks/parallel.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from scoresde.diffusions.sde import SDE
from scoresde.errors.kinds import ConfigError, SolverError, printable
from scoresde.errors.names import check_choice
from scoresde.errors.values import keep_integer, keep_number
from scoresde.models.prediction import Condition, Predictor
from scoresde.models.scored_sde import ScoredSDE
from scoresde.noise import NoiseSource
from scoresde.ops import combine
from scoresde.sampling.executor import Run, check_variance
from scoresde.sampling.part import Part, Start, Watch
from scoresde.sampling.plan import Planner
from scoresde.sampling.stability import find_variance
from scoresde.sampling.table_run import TablePlan
from scoresde.solvers.build import build_table
from scoresde.solvers.grids import Grid
from scoresde.solvers.law import read_gaussian
from scoresde.solvers.named import SOLVERS, SolverName
from scoresde.solvers.solver import Solver
from scoresde.solvers.tableau import Tableau

__all__ = ["Picard"]

Held = tuple[Tensor, Tensor | None]
"""What is held of a row's prediction: the residual Q, and v of a learned variance."""


@dataclass(frozen=True)
class Picard(Planner):
    """Run a solver's table in parallel in time: fewer calls of the network one after another, each of a larger batch.

        sample(model, 16, solver=Picard("ddim"), steps=100, seed=0)

    The samples are those of the solver alone with the same seed, to about the tolerance: noise is the same. Whoever is
    short of time and not of processors gains: for n rows the network is called ``accepted`` times in a row in the place
    of n, and asked for ``nfe`` predictions of each sample in the place of n (fields of ``SampleResult``; ``rejected``
    is nfe - n). A batch waits for its slowest sample, so that the last digits depend on the others.

    Args:
        solver: a name, a Solver or a built Tableau.
        window: rows that are guessed at once: the network gets batches of up to window * ``chunk_size`` states, and
            three times as many are kept. None for all rows.
        tolerance: root mean square, over a sample's coordinates, of what a state x_i of a final row may still move by,
            in units of sqrt(alpha^2 + sigma^2). 0 waits until nothing moves.

    Raises:
        ConfigError: an unknown name; in ``sample``, kernels, on_step, on_nonfinite="freeze" or differentiable.
        DTypeError, DomainError: a window or a tolerance that is none, or what the solver alone raises.
    """

    solver: SolverName | Solver | Tableau
    window: int | None = None
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        if isinstance(self.solver, str):
            check_choice("solver", self.solver, SOLVERS)
        if self.window is not None:
            keep_integer(self, "window", 1)
        keep_number(self, "tolerance", 0.0)

    def plan(self, sde: SDE, steps: int | None, times: Tensor | Grid | None, final: str, watch: Watch) -> _PicardPlan:
        """Plan the table that ``build_table`` makes; see ``sample``."""
        refused = watch.beyond(trajectory=True)
        if refused:
            raise ConfigError(
                f"Picard runs many rows at once and takes no {', '.join(refused)}; the solver alone does: solver="
                f"{self.solver if isinstance(self.solver, str) else self.solver.name!r}"
            )
        table = build_table(sde, self.solver, steps=steps, times=times, final=final)
        return _PicardPlan(TablePlan(table, watch), self.window or max(1, table.nfe), self.tolerance)


@dataclass(frozen=True, eq=False)
class _PicardPlan:
    """Run a table on one chunk, window after window."""

    one_by_one: TablePlan
    window: int
    tolerance: float

    has_bar = True

    @property
    def table(self) -> Tableau:
        """The table that is run."""
        return self.one_by_one.table

    @property
    def times(self) -> tuple[float, ...]:
        """Start, every call's time after the first, and the end."""
        return self.one_by_one.times

    @property
    def draws(self) -> int:
        """How many draws one run takes after its start state."""
        return self.one_by_one.draws

    @property
    def start(self) -> Start | None:
        """Where the run starts."""
        return self.one_by_one.start

    def __call__(self, model: Predictor | ScoredSDE, x: Tensor, noise: NoiseSource, cond: Condition) -> Part:
        """Run the table on x, whose memory it may use."""
        assert isinstance(model, Predictor)  # build_table has refused the others
        watch, rows = self.one_by_one.watch, self.table.rows
        kept = [x.clone()] if watch.trajectory else []
        calls = predictions = 0
        window = _Window(self.table, model, x, noise, cond, self.window)
        state = window.run.buffers[window.run.result]
        with tqdm(total=len(rows), desc=printable(self.table.name), disable=not watch.progress, leave=False) as bar:
            while window.begin < len(rows):
                predictions += window.ask()
                calls += 1
                still = window.correct() <= self.tolerance
                count = max(1, int(still.long().cumprod(0).sum()))
                before = window.asked[count - 1]
                for state in window.settle(count):
                    kept += [state.clone()] if watch.trajectory else []
                self._check(window.begin - 1, before, state)
                bar.update(count)
        counts = torch.full((len(x),), predictions, dtype=torch.long, device="cpu")
        depth, trajectory = torch.full_like(counts, calls), torch.stack(kept) if watch.trajectory else None
        return Part(state, counts, trajectory, torch.zeros_like(counts), depth, counts - len(rows))

    def _check(self, index: int, before: Tensor, state: Tensor) -> None:
        """Raise where a final state is not finite; only the last can be, since such a one never counts as still."""
        bad = (~torch.isfinite(state)).reshape(len(state), -1).any(1)
        if bool(bad.any()):
            raise SolverError(
                f"step {index} of {self.table.name} at t = {self.table.rows[index].at.t:g} gave non-finite values in "
                f"{float(bad.double().mean()):.1%} of the samples",
                partial=before,
            )


class _Window:
    """The rows from ``begin`` on whose states are guessed, and what is held of their predictions.

    ``run`` stands at the row ``begin``, in its exact state. ``trial`` starts from there and goes on over the window.

    Args:
        table: the sampler.
        model: what is asked.
        x: start states (B, *), whose memory is used.
        noise: where the draws come from; a draw is the same whenever its row is passed.
        cond: conditions of the batch.
        width: rows of the window.
    """

    def __init__(
        self, table: Tableau, model: Predictor, x: Tensor, noise: NoiseSource, cond: Condition, width: int
    ) -> None:
        check_variance(table, learned=model.variance == "learned")
        self.table, self.model, self.noise, self.cond = table, model, noise, cond
        slopes, offsets = read_gaussian(table.points, table.prediction, find_variance(model.moments))
        weights = tuple(slopes.tolist()), (1.0,) * len(slopes)
        self.slopes = torch.from_numpy(slopes)
        self.mark = noise.mark()
        self.trial = Run(table, weights, x.clone(), noise)
        noise.restore(self.mark)
        self.run = Run(table, weights, x, noise)
        self.mark = noise.mark()
        self.begin = 0
        self.asked: list[Tensor] = []
        self.states: list[Tensor] = []
        mean = 0.0 if model.moments is None else model.moments.describe_values()[0]
        half = torch.full_like(x, 0.5) if table.spread else None
        self.held = [(torch.full_like(x, mean * b), half) for b in offsets[:width].tolist()]
        self.states = [self._pass(row, held) for row, held in enumerate(self.held)]
        noise.restore(self.mark)

    def _pass(self, row: int, held: Held) -> Tensor:
        """Take the trial over a row; return the state that the model would see there."""
        stage = self.trial.stages[row]
        state = self.trial.buffers[stage.x].clone()
        self.trial.advance(stage, *held)
        return state

    def ask(self) -> int:
        """Ask the model at the guessed states, all in one batch, and hold the residuals; return how many these are."""
        width, batch = len(self.states), len(self.states[0])
        x = torch.cat(self.states)
        rows = torch.arange(self.begin, self.begin + width, device="cpu").repeat_interleave(batch)
        cond = self.cond
        if cond is not None:
            cond = {name: value.repeat(width, *(1,) * (value.ndim - 1)) for name, value in cond.items()}
        prepared = self.model.prepare(self.table.points[rows][None], x, cond)
        output, fraction = prepared.outputs(0, x)
        a, b = (weight.expand(1, len(x))[0] for weight in prepared.readout.weights(self.table.prediction))
        residuals = torch.split(combine((a - self.slopes[rows], x), (b, output)), batch)
        fractions = [None] * width if fraction is None else torch.split(fraction, batch)
        self.held = list(zip(residuals, fractions, strict=True))
        return width

    def correct(self) -> Tensor:
        """Run the window with what is held; return how far its states moved, (width,), the farthest of the batch."""
        self.mark = self.noise.mark()
        for mine, exact in zip(self.trial.buffers[1:], self.run.buffers[1:], strict=True):
            mine.copy_(exact)
        self.asked, self.states = self.states, [self._pass(self.begin + j, held) for j, held in enumerate(self.held)]
        moved = torch.stack([_rms(new - old) for new, old in zip(self.states, self.asked, strict=True)])
        return moved.cpu() / self.table.points.r[self.begin : self.begin + len(moved)]

    def settle(self, count: int) -> Iterator[Tensor]:
        """Make ``count`` rows final and yield the state after each; as many rows behind the window join it."""
        end = self.begin + len(self.states)
        for row in range(end, min(end + count, len(self.table.rows))):
            self.held.append(self.held[-1])
            self.states.append(self._pass(row, self.held[-1]))
        self.noise.restore(self.mark)
        for held in self.held[:count]:
            stage = self.run.stages[self.begin]
            self.run.advance(stage, *held)
            self.begin += 1
            yield self.run.buffers[stage.new]
        self.states, self.held = self.states[count:], self.held[count:]


def _rms(x: Tensor) -> Tensor:
    """Return the largest root mean square of the samples (B, *)."""
    return x.reshape(len(x), -1).square().mean(1).sqrt().amax()
