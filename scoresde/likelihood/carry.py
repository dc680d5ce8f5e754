"""What carries a traced state from data to noise: an adaptive flow, a bridge, or a table run upwards."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scoresde.diffusions.point import Point
from scoresde.errors.kinds import ConfigError, DTypeError, show
from scoresde.likelihood.probes import Probes
from scoresde.likelihood.traced import PHI, TracedModel
from scoresde.models.prediction import Condition, Predictor
from scoresde.noise import TapeNoise
from scoresde.ops import flat
from scoresde.sampling.encode import build_upwards, choose_span, interval_ends
from scoresde.sampling.flow import flow_field
from scoresde.sampling.part import Watch
from scoresde.sampling.table_run import TablePlan
from scoresde.solvers.adaptive import FlowSolver, ProbabilityFlow
from scoresde.solvers.grids import Grid
from scoresde.solvers.named import by_name
from scoresde.solvers.solver import Solver
from scoresde.solvers.tableau import Tableau

__all__ = ["Carried", "Carrier", "choose_carrier"]

TOLERANCE = 1e-5
NO_NOISE = TapeNoise(())


@dataclass(frozen=True, eq=False)
class Carried:
    """A carried batch.

    Args:
        x: the states (B, *) at the noisy end.
        gain: log p at the clean end less log p at the noisy end, (B, r).
        nfe: evaluations, (B,).
        error: estimates of the gain's and the state's error together, (B,); None where there is none.
    """

    x: Tensor
    gain: Tensor
    nfe: Tensor
    error: Tensor | None


@dataclass(frozen=True, eq=False)
class Carrier(ABC):
    """Carries states from the point ``low`` up to the point ``high``, each a single point of the model's SDE."""

    low: Point
    high: Point
    kind: str

    @abstractmethod
    def run(self, traced: TracedModel, state: Tensor, cond: Condition) -> tuple[Tensor, Tensor, Tensor | None]:
        """Carry states (B, D + r) and return them, the evaluations (B,), and the errors (B, r) where known."""

    def carry(self, model: Predictor, x: Tensor, probes: Probes, cond: Condition) -> Carried:
        """Carry x (B, *) with its log density; ``cond`` holds the signs beside the conditions."""
        traced = TracedModel(model, x.shape[1:], probes, self.kind)
        integrals = x.new_zeros(len(x), probes.draws)
        state, nfe, error = self.run(traced, torch.cat([flat(x), integrals], 1), cond)
        size = math.prod(x.shape[1:])
        start, end = (float(PHI[self.kind](point)) for point in (self.low, self.high))
        gain = size * math.log(end / start) + state[:, size:] / end
        return Carried(state[:, :size].reshape(x.shape), gain, nfe, None if error is None else error.mean(1))


@dataclass(frozen=True, eq=False)
class FlowCarrier(Carrier):
    """By a solver of the flow's equation."""

    solver: FlowSolver

    def run(self, traced: TracedModel, state: Tensor, cond: Condition) -> tuple[Tensor, Tensor, Tensor | None]:
        """Carry states (B, D + r); see ``Carrier.run``."""
        size = math.prod(traced.event)

        def score(y: Tensor, slope: Tensor, u: Tensor) -> Tensor:
            # y is the state of the straight path, whose sigma is u: its noise is y + (1 - u) slope.
            u = u.to(y)[:, None]
            return -(y[:, :size] + (1 - u) * slope[:, :size]) / u

        field = flow_field(traced, state, self.low, self.high, cond, clean=True)
        result = self.solver.integrate(replace(field, integrals=traced.probes.draws, gradient=score), state)
        return result.x, result.nfe, result.error


@dataclass(frozen=True, eq=False)
class TableCarrier(Carrier):
    """By a table, run upwards."""

    table: Tableau
    differentiable: bool

    def run(self, traced: TracedModel, state: Tensor, cond: Condition) -> tuple[Tensor, Tensor, Tensor | None]:
        """Carry states (B, D + r); see ``Carrier.run``."""
        plan = TablePlan(self.table, Watch(differentiable=self.differentiable))
        part = plan(traced, state if self.differentiable else state.clone(), NO_NOISE, cond)
        return part.x, part.nfe, None


def choose_carrier(
    model: Predictor,
    solver: str | Solver | FlowSolver | None,
    steps: int | None,
    times: Tensor | Grid | None,
    differentiable: bool,
) -> tuple[Carrier, Carrier | None, float]:
    """Return what carries the states of a model, with these options of ``log_likelihood``.

    Returns:
        The carrier; a coarser one, whose difference times the last number estimates the error, where one is made.

    Raises:
        DTypeError: no solver of the flow. ConfigError: a solver that draws noise or cannot be differentiated, a built
            table, steps of an adaptive solver. DomainError, ShapeError: bad times.
    """
    sde = model.sde
    solver = by_name(solver) if isinstance(solver, str) else solver
    if isinstance(solver, Tableau):
        raise ConfigError("a built Tableau runs one way only; pass its solver with times=")
    if solver is None:
        tolerance = TOLERANCE if model.dtype is None else max(TOLERANCE, torch.finfo(model.dtype).eps)
        solver = ProbabilityFlow(rtol=tolerance, atol=tolerance)
    if isinstance(solver, FlowSolver):
        if differentiable and not solver.differentiable:
            raise ConfigError(
                "gradients do not pass through the adaptive flow; take a fixed solver, e.g. solver='heun', or "
                "bridge.TorchDiffEq(adjoint=True)"
            )
        t_high, t_low = choose_span(sde, steps, times, clean=True).tolist()
        low, high = sde.at(t_low), sde.at(t_high)
        return FlowCarrier(low, high, "flow", solver), None, 1.0
    if not isinstance(solver, Solver):
        raise DTypeError(f"solver must be a name, a Solver or a solver of the probability flow, got {show(solver)}")
    ends, _ = interval_ends(sde, solver, steps, times)
    low, high = sde.at(float(ends[-1])), sde.at(float(ends[0]))

    table = build_upwards(sde, solver, ends)
    if float(PHI[table.prediction](high)) == 0:
        raise ConfigError(
            f"alpha is 0 at t = {float(high.t):g}, where a density cannot be written with the {table.prediction} "
            "prediction; take the adaptive flow, solver='heun' or times= that start below it"
        )
    fine = TableCarrier(low, high, table.prediction, table, differentiable)
    # Every other interval end, with both ends.
    halved = torch.cat([ends[:-1:2], ends[-1:]])
    if differentiable or len(halved) < 3:
        return fine, None, 1.0
    coarse = replace(fine, table=build_upwards(sde, solver, halved))
    return fine, coarse, 1 / (2 ** (solver.order.deterministic or 1.0) - 1)
