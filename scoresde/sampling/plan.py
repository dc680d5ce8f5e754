"""One chunk of samples: a table, a flow or a path run on it, with the watch over what is not finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Never

import torch
from torch import Tensor
from tqdm import tqdm

from scoresde.diffusions.sde import SDE, GaussianSDE
from scoresde.errors import ConfigError, SolverError, check_integer, unknown
from scoresde.models.prediction import Condition
from scoresde.models.score_model import ScoreModel
from scoresde.noise import NoiseSource
from scoresde.ops import expand
from scoresde.sampling.bridge.paths import DRAWS, TorchSDE, check_start, walk
from scoresde.sampling.executor import Observer, execute
from scoresde.sampling.flow import ScoredSDE
from scoresde.sampling.kernels import Kernel
from scoresde.solvers.adaptive import FlowSolver
from scoresde.solvers.build import FINALS
from scoresde.solvers.grids import Grid, check_times
from scoresde.solvers.rows import Knot
from scoresde.solvers.tableau import Tableau

__all__ = ["FlowRun", "Part", "PathRun", "TableRun", "run_without_table"]

Model = ScoreModel | ScoredSDE


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
                f"kernels need a solver whose steps end in a state; {self.table.name!r} corrects its anchor: "
                "pass another one, e.g. solver='dpmpp_2m'"
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

    def __call__(self, model: Model, x: Tensor, source: NoiseSource, cond: Condition) -> Part:
        """Run the table on x, whose memory it may use."""
        assert isinstance(model, ScoreModel)  # build_table has refused the others
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
    """Run a solver of the probability flow on one chunk."""

    solver: FlowSolver
    sde: SDE
    ends: Tensor | None
    final: str

    draws = 0

    def __post_init__(self) -> None:
        """Check the interval."""
        _check_final(self.sde, self.final)
        if self.ends is None:
            return
        ends = check_times(self.sde, self.ends)
        if len(ends) > 2:
            raise ConfigError(
                "the adaptive probability flow chooses its own steps: times= gives its two ends, got "
                f"{len(ends)} times; use a fixed solver, e.g. solver='heun'"
            )
        if float(ends[-1]) == 0:
            raise ConfigError("the adaptive probability flow must end at t > 0; final='denoise' goes to clean data")

    @property
    def times(self) -> tuple[float, ...]:
        """Start and end."""
        if self.ends is not None:
            return float(self.ends[0]), float(self.ends[-1])
        return self.sde.t_max, self.sde.t_min

    @property
    def start(self) -> Tableau | None:
        """An empty table that says where the flow starts."""
        return _empty_table("probability_flow", self.sde, *self.times)

    def __call__(self, model: Model, x: Tensor, source: NoiseSource, cond: Condition) -> Part:
        """Carry x along the flow."""
        first, last = self.times
        result = self.solver.solve(model, x, first, last, cond)
        out, nfe = result.x, result.nfe
        if self.final == "denoise":
            out, nfe = _denoised(model, out, last, cond), nfe + 1
        return Part(out, nfe, None, torch.zeros_like(nfe), result.accepted, result.rejected)


@dataclass(frozen=True, eq=False)
class PathRun:
    """Run a scheme of torchsde on one chunk."""

    solver: TorchSDE
    sde: SDE
    knots: Tensor
    final: str
    trajectory: bool

    def __post_init__(self) -> None:
        """Check both ends."""
        _check_final(self.sde, self.final)
        check_start(self.sde, self.knots)
        if float(check_times(self.sde, self.knots)[-1]) == 0:
            raise ConfigError("a path must end at t > 0; final='denoise' goes to clean data")

    @property
    def draws(self) -> int:
        """How many draws one run takes after its start state."""
        noisy = len(self.knots) - 1 - (self.final == "mean" and len(self.knots) > 1)
        return DRAWS[self.solver.method] * noisy if self.solver.eta > 0 else 0

    @property
    def times(self) -> tuple[float, ...]:
        """Start, the ends of the steps, and the time of clean data where the run goes there."""
        return (*self.knots.tolist(), *([0.0] if self.final == "denoise" else []))

    @property
    def start(self) -> Tableau | None:
        """An empty table that says where the path starts."""
        return _empty_table(f"torchsde's {self.solver.method}", self.sde, float(self.knots[0]), float(self.knots[-1]))

    def __call__(self, model: Model, x: Tensor, source: NoiseSource, cond: Condition) -> Part:
        """Walk along the reverse SDE."""
        reverse = self.sde.reverse(lambda x, t: model(x, t, cond), self.solver.eta)
        inputs = (*model.parameters(), *(() if cond is None else cond.values()))
        adjoint = [p for p in inputs if p.requires_grad] if self.solver.adjoint else None
        noise, silent = (source, self.final == "mean") if self.solver.eta > 0 else (None, False)
        states, calls = [x], 0
        method = self.solver.method
        for state, so_far in walk(reverse, x, self.knots, noise, method=method, adjoint=adjoint, silent_end=silent):
            states, calls = [*states, state] if self.trajectory else [state], so_far
        if self.final == "denoise":
            states, calls = [*states, _denoised(model, states[-1], float(self.knots[-1]), cond)], calls + 1
        counts = torch.full((x.shape[0],), calls, dtype=torch.long)
        steps = torch.full_like(counts, len(self.times) - 1)
        kept = torch.stack(states) if self.trajectory else None
        return Part(states[-1], counts, kept, torch.zeros_like(counts), steps, torch.zeros_like(counts))


def run_without_table(
    solver: FlowSolver | TorchSDE,
    sde: SDE,
    steps: int | None,
    times: Tensor | Grid | None,
    final: str,
    asked: Mapping[str, bool],
) -> FlowRun | PathRun:
    """Return the run of a solver that is no table.

    Args:
        solver: the solver.
        sde: the SDE.
        steps: as in ``sample``.
        times: as in ``sample``.
        final: as in ``sample``.
        asked: options of the executor, and whether the caller asks for them.

    Raises:
        ConfigError: an option that the solver does not have.
    """
    able = {"trajectory": isinstance(solver, TorchSDE), "differentiable": solver.differentiable}
    refused = [name for name, wanted in asked.items() if wanted and not able.get(name, False)]
    if isinstance(solver, TorchSDE):
        if refused:
            raise ConfigError(f"TorchSDE takes no {', '.join(refused)}; solver='euler_maruyama' does")
        return PathRun(solver, sde, _knots(solver, sde, steps, times, final), final, asked["trajectory"])
    refused += ["steps"] * (steps is not None) + ["a grid"] * isinstance(times, Grid)
    if refused:
        raise ConfigError(
            f"the adaptive probability flow chooses its own steps and takes no {', '.join(refused)}; use a fixed "
            "solver, e.g. solver='heun'; times= may name its start and end"
        )
    assert not isinstance(times, Grid)
    return FlowRun(solver, sde, times, final)


def _knots(solver: TorchSDE, sde: SDE, steps: int | None, times: Tensor | Grid | None, final: str) -> Tensor:
    """Return the ends of the steps of a path; with ``steps`` the last one is the jump to clean data."""
    if times is not None and solver.dt is not None:
        raise ConfigError("give times= or TorchSDE(dt=), not both")
    if isinstance(times, Grid):
        if not isinstance(sde, GaussianSDE):
            raise ConfigError(f"{type(sde).__name__} has no alpha and sigma for a Grid; pass a tensor of times")
        steps = steps if steps is not None else times.steps
    elif times is not None:
        if steps is not None:
            raise ConfigError("give steps= or a tensor of times=, not both")
        return check_times(sde, times)
    if solver.dt is None:
        steps = check_integer(20 if steps is None else steps, "steps", 1) - (final == "denoise")
    if isinstance(times, Grid) and isinstance(sde, GaussianSDE):
        return times(sde, steps)
    return solver.grid(sde, steps)


def _check_final(sde: SDE, final: str) -> None:
    if final not in FINALS:
        raise unknown("final", final, FINALS)
    if final == "denoise" and not isinstance(sde, GaussianSDE):
        raise ConfigError(
            f"final='denoise' needs alpha and sigma, which {type(sde).__name__} has not; pass final='sample' or 'mean'"
        )


def _empty_table(name: str, sde: SDE, first: float, last: float) -> Tableau | None:
    """Return a table without rows between two times; None where there are no alpha and sigma."""
    if not isinstance(sde, GaussianSDE):
        return None
    start, end = Knot.of(sde.at(torch.tensor([first, last], dtype=torch.float64)))
    return Tableau(name, "flow", (), start, end, float(sde.prior_std(first)))


def _denoised(model: Model, x: Tensor, t: float, cond: Condition) -> Tensor:
    assert isinstance(model, ScoreModel)  # _check_final has refused the others
    return model.at(x, model.sde.at(t), cond).data


def _tick(bar: tqdm[Never]) -> None:
    bar.update()
