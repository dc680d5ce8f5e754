"""A table run on one chunk, with the watch over what is not finite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Never

import torch
from torch import Tensor
from tqdm.auto import tqdm

from scoresde.diffusions.linear import LinearSDE
from scoresde.diffusions.sde import SDE
from scoresde.errors.kinds import ConfigError, SolverError, printable
from scoresde.models.prediction import Condition, Predictor
from scoresde.models.scored_sde import ScoredSDE
from scoresde.noise import NoiseSource
from scoresde.ops import expand
from scoresde.sampling.executor import execute
from scoresde.sampling.part import Observer, Part, Start, Watch
from scoresde.sampling.plan import plan
from scoresde.solvers.block_build import build_blocks
from scoresde.solvers.block_table import BlockTableau
from scoresde.solvers.build import build_table
from scoresde.solvers.grids import Grid
from scoresde.solvers.solver import Solver
from scoresde.solvers.tableau import Tableau

__all__ = ["TablePlan"]


@dataclass(frozen=True, eq=False)
class TablePlan:
    """Run a table on one chunk, with its checks."""

    table: Tableau
    watch: Watch

    has_bar = True

    def __post_init__(self) -> None:
        """Refuse kernels where no row starts from a state of its own."""
        rows = self.table.rows
        if self.watch.kernels and any(row.anchor not in (None, (1.0,)) or row.anchor_noise for row in rows):
            raise ConfigError(
                f"kernels need a solver whose steps end in a state; {self.table.name!r} corrects its anchor: "
                "pass another one, e.g. solver='dpmpp_2m'"
            )

    @property
    def start(self) -> Start | None:
        """Where the run starts; under a linear SDE that has maps, and its own prior."""
        if isinstance(self.table, BlockTableau):
            return None
        return Start(self.table.start, self.table.prior_std)

    @property
    def draws(self) -> int:
        """How many draws one run takes after its start state."""
        table = self.table
        kernels = sum(kernel.draws for kernel in self.watch.kernels) * self._applications
        return sum(row.draws for row in table.rows) + (table.lift[1] != 0.0) + kernels

    @property
    def times(self) -> tuple[float, ...]:
        """Start, every call's time after the first, and the end."""
        return (self.table.start.t, *(row.at.t for row in self.table.rows[1:]), self.table.end.t)

    def __call__(self, model: Predictor | ScoredSDE, x: Tensor, noise: NoiseSource, cond: Condition) -> Part:
        """Run the table on x, whose memory it may use."""
        assert isinstance(model, Predictor)  # build_table has refused the others
        batch = x.shape[0]
        prepared = model.prepare(self.table.points, x, cond)
        freezes = self.watch.on_nonfinite == "freeze"
        mark, begin = noise.mark(), x if freezes else x.clone()
        states: list[Tensor] = [x.clone()] if self.watch.trajectory else []
        status = torch.zeros(batch, dtype=torch.long, device="cpu")
        observers: list[Observer] = [] if self.watch.on_step is None else [self.watch.on_step]
        if self.watch.trajectory:
            observers.append(lambda step: states.append(step.x.clone()))
        guard = _Freezer(status, x.clone()) if freezes else None
        with tqdm(
            total=self.table.nfe, desc=printable(self.table.name), disable=not self.watch.progress, leave=False
        ) as bar:
            if self.watch.progress:
                observers.append(lambda step: _tick(bar))
            out = execute(
                self.table,
                prepared,
                x,
                noise,
                kernels=self.watch.kernels,
                observers=observers,
                guard=guard,
                differentiable=self.watch.differentiable,
            )
        if guard is None and not bool(torch.isfinite(out).all()):
            noise.restore(mark)
            execute(self.table, prepared, begin, noise, kernels=self.watch.kernels, guard=self._locate)
            # A network that answers differently the second time may get here.
            share = float((~torch.isfinite(out)).reshape(batch, -1).any(1).double().mean())
            raise SolverError(f"{share:.1%} of the samples are not finite after {self.table.name}", partial=out)
        calls = self.table.nfe + sum(kernel.calls for kernel in self.watch.kernels) * self._applications
        counts = torch.full((batch,), calls, dtype=torch.long, device="cpu")
        steps = torch.full((batch,), self.table.nfe, dtype=torch.long, device="cpu")
        kept = torch.stack(states) if self.watch.trajectory else None
        return Part(out, counts, kept, status, steps, torch.zeros_like(steps))

    @property
    def _applications(self) -> int:
        """How often the kernels are applied: before each row that starts a step."""
        rows = self.table.rows
        return sum(i == 0 or rows[i - 1].anchor is None for i in range(len(rows)))

    def _locate(self, index: int, old: Tensor, new: Tensor) -> Tensor:
        """Raise at the first step whose state is not finite."""
        bad = (~torch.isfinite(new)).reshape(len(new), -1).any(1)
        if bool(bad.any()):
            t = self.table.rows[index].at.t
            share = float(bad.double().mean())
            raise SolverError(
                f"step {index} of {self.table.name} at t = {t:g} gave non-finite values in {share:.1%} of the samples; "
                "on_nonfinite='freeze' keeps the others",
                partial=old,
            )
        return new


@dataclass(eq=False)
class _Freezer:
    """Keep samples at their last finite state and note it in ``status``."""

    status: Tensor
    good: Tensor

    def __call__(self, index: int, old: Tensor, new: Tensor) -> Tensor:
        bad = (~torch.isfinite(new)).reshape(len(new), -1).any(1) | (self.status == 1).to(new.device)
        self.status[bad.cpu()] = 1
        self.good = torch.where(expand(bad, new).bool(), self.good, new)
        return self.good


def _tick(bar: tqdm[Never]) -> None:
    bar.update()


@plan.register(Solver)
@plan.register(Tableau)
def _plan_table(
    solver: Solver | Tableau, sde: SDE, steps: int | None, times: Tensor | Grid | None, final: str, watch: Watch
) -> TablePlan:
    """Plan the table that ``build_table`` makes, or under a linear SDE ``build_blocks``."""
    if isinstance(sde, LinearSDE):
        if watch.kernels:
            raise ConfigError("kernels step in one score, and a linear SDE has one in maps; leave out kernels=")
        return TablePlan(build_blocks(sde, solver, steps=steps, times=times, final=final), watch)
    return TablePlan(build_table(sde, solver, steps=steps, times=times, final=final), watch)
