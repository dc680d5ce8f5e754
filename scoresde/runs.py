"""One chunk of samples: a table or an adaptive flow run on it, with the watch over what is not finite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Never

import torch
from torch import Tensor
from tqdm import tqdm

from scoresde.errors import ConfigError, SolverError, unknown
from scoresde.executor import Observer, execute
from scoresde.grids import check_times
from scoresde.kernels import Kernel
from scoresde.model import Condition, ScoreModel
from scoresde.noise import NoiseSource
from scoresde.ops import expand
from scoresde.sde import GaussianSDE
from scoresde.solvers import ProbabilityFlow
from scoresde.tableau import Knot, Tableau

__all__ = ["FINALS", "FlowRun", "Part", "TableRun"]

FINALS: dict[str, Callable[[Tableau], Tableau]] = {
    "denoise": Tableau.denoised,
    "sample": lambda table: table,
    "mean": Tableau.without_last_noise,
}


@dataclass(frozen=True, eq=False)
class Part:
    """The result of one chunk."""

    x: Tensor
    nfe: Tensor
    trajectory: Tensor | None
    status: Tensor
    accepted: Tensor
    rejected: Tensor


@dataclass(frozen=True, eq=False)
class TableRun:
    """Run a table on one chunk, with its checks."""

    table: Tableau
    kernels: Sequence[Kernel]
    on_step: Observer | None
    on_nonfinite: str
    trajectory: bool
    differentiable: bool
    progress: bool

    def __post_init__(self) -> None:
        """Refuse kernels where no row starts from a state of its own."""
        rows = self.table.rows
        if self.kernels and any(row.anchor not in (None, (1.0,)) or row.anchor_noise for row in rows):
            raise ConfigError(
                f"kernels need a solver whose steps end in a state; {self.table.name!r} corrects its anchor"
            )

    @property
    def start(self) -> Tableau:
        """The table that says where the run starts."""
        return self.table

    @property
    def draws(self) -> int:
        """How many draws one run takes after its start state."""
        table = self.table
        kernels = sum(kernel.draws for kernel in self.kernels) * self._applications
        return sum(row.draws for row in table.rows) + (table.lift[1] != 0.0) + kernels

    @property
    def times(self) -> tuple[float, ...]:
        """Start, every call's time after the first, and the end."""
        return (self.table.start.t, *(row.at.t for row in self.table.rows[1:]), self.table.end.t)

    def __call__(self, model: ScoreModel, x: Tensor, source: NoiseSource, cond: Condition) -> Part:
        """Run the table on x, whose memory it may use."""
        batch = x.shape[0]
        prepared = model.prepare(self.table.points, x, cond)
        freezes = self.on_nonfinite == "freeze"
        mark, begin = source.mark(), x if freezes else x.clone()
        states: list[Tensor] = [x.clone()] if self.trajectory else []
        status = torch.zeros(batch, dtype=torch.long)
        observers: list[Observer] = [] if self.on_step is None else [self.on_step]
        if self.trajectory:
            observers.append(lambda step: states.append(step.x.clone()))
        guard = _Freezer(status, x.clone()) if freezes else None
        with tqdm(total=self.table.nfe, desc=self.table.name, disable=not self.progress, leave=False) as bar:
            if self.progress:
                observers.append(lambda step: _tick(bar))
            out = execute(
                self.table,
                prepared,
                x,
                source,
                kernels=self.kernels,
                observers=observers,
                guard=guard,
                differentiable=self.differentiable,
            )
        if guard is None and not bool(torch.isfinite(out).all()):
            source.restore(mark)
            execute(self.table, prepared, begin, source, kernels=self.kernels, guard=self._locate)
            # A network that answers differently the second time may get here.
            share = float((~torch.isfinite(out)).reshape(batch, -1).any(1).double().mean())
            raise SolverError(f"{share:.1%} of the samples are not finite after {self.table.name}", partial=out)
        calls = self.table.nfe + sum(kernel.calls for kernel in self.kernels) * self._applications
        counts = torch.full((batch,), calls, dtype=torch.long)
        steps = torch.full((batch,), self.table.nfe, dtype=torch.long)
        kept = torch.stack(states) if self.trajectory else None
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


@dataclass(frozen=True, eq=False)
class FlowRun:
    """Run the adaptive probability flow on one chunk."""

    solver: ProbabilityFlow
    sde: GaussianSDE
    ends: Tensor | None
    final: str

    draws = 0

    def __post_init__(self) -> None:
        """Check the interval."""
        if self.final not in FINALS:
            raise unknown("final", self.final, FINALS)
        if self.ends is not None and float(check_times(self.sde, self.ends)[-1]) == 0:
            raise ConfigError("the adaptive probability flow must end at t > 0; final='denoise' goes to clean data")

    @property
    def times(self) -> tuple[float, ...]:
        """Start and end."""
        if self.ends is not None:
            return float(self.ends[0]), float(self.ends[-1])
        return self.sde.t_max, self.sde.t_min

    @property
    def start(self) -> Tableau:
        """An empty table that says where the flow starts."""
        first, last = Knot.of(self.sde.at(torch.tensor(self.times, dtype=torch.float64)))
        return Tableau("probability_flow", "flow", (), first, last, float(self.sde.prior_std(first.t)))

    def __call__(self, model: ScoreModel, x: Tensor, source: NoiseSource, cond: Condition) -> Part:
        """Carry x along the flow."""
        first, last = (self.sde.at(t) for t in self.times)
        result = self.solver.solve(model, x, first, last, cond)
        out, nfe = result.x, result.nfe
        if self.final == "denoise" and float(last.sigma) > 0:
            out, nfe = model.at(out, last, cond).data, nfe + 1
        return Part(out, nfe, None, torch.zeros_like(nfe), result.accepted, result.rejected)


def _tick(bar: tqdm[Never]) -> None:
    bar.update()
