r"""The probability flow as an ordinary differential equation dy/du = slope(y, u), in the coordinates that suit it.

For a Gaussian diffusion, y = x/(alpha + sigma) and u = sigma/(alpha + sigma): the coordinates of the rectified path, in
which the flow of every Gaussian diffusion is the same equation, finite at both ends,

    dy/du = noise(y, u) - data(y, u).

For any other SDE there are no such coordinates: y = x, u = t and dx/dt = f(x, t) - g(t)^2/2 score(x, t) (Song et al.
2021, "Score-based generative modeling through stochastic differential equations", eq. 13).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scoresde.diffusions.point import Point
from scoresde.diffusions.sde import SDE, ReverseSDE
from scoresde.errors.kinds import ConfigError, DomainError, SolverError
from scoresde.errors.tensors import check_samples
from scoresde.models.prediction import Condition, Predictor, select
from scoresde.models.scored_sde import RUNS_AWAY, ScoredSDE, runs_away
from scoresde.noise import NoiseSource
from scoresde.ops import working_dtype
from scoresde.sampling.part import Part, Start, Watch, check_final, denoised
from scoresde.sampling.plan import plan
from scoresde.solvers.adaptive import Field, FlowResult, FlowSolver, Stage
from scoresde.solvers.grids import Grid, check_times

__all__ = ["FlowPlan", "flow_field", "solve"]


def solve(
    solver: FlowSolver,
    model: Predictor | ScoredSDE,
    x: Tensor,
    start: Point | float,
    end: Point | float,
    cond: Condition = None,
) -> FlowResult:
    """Carry x (B, *) along the probability flow from one point to another, in either direction.

    Args:
        solver: what integrates it.
        model: the model, or a score under any SDE.
        x: state at ``start``, in its scale.
        start: a time of the model's SDE, or for a ScoreModel a single point of any Gaussian SDE.
        end: the same, with sigma > 0.
        cond: conditions of the batch.

    Raises:
        DTypeError, ShapeError, DomainError: x is no finite floating (B, *), or tolerances are below its epsilon.
        SolverError: the end was not reached; ``partial`` holds the states reached, in the coordinates y.
    """
    wide = working_dtype(x.device) if solver.double else torch.promote_types(check_samples(x).dtype, torch.float32)
    state = check_samples(x).to(wide)
    try:
        result = solver.integrate(flow_field(model, state, start, end, cond), state)
    except SolverError as error:
        reached = error.partial
        if not isinstance(model, ScoredSDE) or isinstance(start, Point) or isinstance(end, Point) or reached is None:
            raise
        # A backend that goes sample by sample has only the one that failed, and not its condition.
        told = cond if len(reached) == len(x) else None
        flow = model.sde.reverse(lambda x, t: model(x, t, told), 0.0)
        if start < end or told is not cond or not runs_away(flow, reached, start, -1.0):
            raise
        raise SolverError(f"{str(error).partition('; loosen')[0]}; {RUNS_AWAY}", partial=reached) from error
    return replace(result, x=result.x.to(x.dtype))


def flow_field(
    model: Predictor | ScoredSDE,
    like: Tensor,
    start: Point | float,
    end: Point | float,
    cond: Condition = None,
    *,
    clean: bool = False,
) -> Field:
    """Return the probability flow of a model.

    Args:
        model: the model, or a score under any SDE.
        like: a state (B, *); its type, device and number of dimensions are used.
        start: a time of the model's SDE, or for a ScoreModel a single point of any Gaussian SDE.
        end: the same.
        cond: conditions of the batch.
        clean: whether an end may have sigma = 0.

    Raises:
        DomainError: a point where only a time has a meaning, or sigma = 0 at an end.
    """
    inputs = (*model.parameters(), *(() if cond is None else cond.values()))
    parameters = tuple(p for p in inputs if p.requires_grad)
    if isinstance(model, ScoredSDE):
        return replace(_plain_field(model, start, end, cond), parameters=parameters)
    ends = [p if isinstance(p, Point) else model.sde.at(p) for p in (start, end)]
    scales = [float(p.alpha + p.sigma) for p in ends]
    u = [float(p.sigma) / scale for p, scale in zip(ends, scales, strict=True)]
    if min(u) <= 0 and not clean:
        raise DomainError("the probability flow must start and end where sigma > 0; stop at t_min")

    def stages(u: Tensor, rows: Tensor) -> Stage:
        points = _straight(u)
        part = like[:1].expand(len(rows), *like.shape[1:])  # only its shape, type and device are used
        prepared = model.prepare(points, part, _rows_of(cond, rows))
        on_y, on_output = prepared.columns("flow")

        def stage(i: int, y: Tensor) -> Tensor:
            return (on_y[i] * y).addcmul_(on_output[i], prepared.raw(i, y).to(y))

        return stage

    def time(u: float) -> float:
        return float(model.sde.match(_straight(torch.tensor(u, dtype=torch.float64, device="cpu"))).t)

    return Field(stages, u[0], u[1], (scales[0], scales[1]), time, "sigma/(alpha + sigma)", parameters)


def _straight(u: Tensor) -> Point:
    """Return the points of the straight path at times u, which are those of any SDE at equal log-SNR."""
    return Point(u, 1 - u, u, -2 * torch.logit(u))


def _plain_field(model: ScoredSDE, start: Point | float, end: Point | float, cond: Condition) -> Field:
    """Return the flow in x and t."""
    if isinstance(start, Point) or isinstance(end, Point):
        raise DomainError("an SDE without alpha and sigma has times, not points; pass start and end as times")

    def stages(u: Tensor, rows: Tensor) -> Stage:
        here = _rows_of(cond, rows)
        flow = ReverseSDE(model.sde, lambda x, t: model(x, t, here), 0.0, t_min=model.sde.t_min, t_max=model.sde.t_max)
        return lambda i, y: flow.drift(y, u[i])

    return Field(stages, float(start), float(end), (1.0, 1.0), lambda u: u, "t")


def _rows_of(cond: Condition, rows: Tensor) -> Condition:
    """Return the conditions of some samples; the mapping itself where these are all."""
    if cond is None or all(len(v) == len(rows) for v in cond.values()):
        return cond
    return select(cond, rows)


@dataclass(frozen=True, eq=False)
class FlowPlan:
    """Follow the probability flow between two times, chunk by chunk."""

    solver: FlowSolver
    sde: SDE
    times: tuple[float, ...]
    final: str

    table = None
    draws = 0
    has_bar = False

    @property
    def start(self) -> Start | None:
        """Where the flow starts."""
        return Start.at(self.sde, self.times[0])

    def __call__(self, model: Predictor | ScoredSDE, x: Tensor, noise: NoiseSource, cond: Condition) -> Part:
        """Carry x along the flow."""
        first, last = self.times
        result = solve(self.solver, model, x, first, last, cond)
        out, nfe = result.x, result.nfe
        if self.final == "denoise":
            out, nfe = denoised(model, out, last, cond), nfe + 1
        return Part(out, nfe, None, torch.zeros_like(nfe), result.accepted, result.rejected)


@plan.register(FlowSolver)
def _plan_flow(
    solver: FlowSolver, sde: SDE, steps: int | None, times: Tensor | Grid | None, final: str, watch: Watch
) -> FlowPlan:
    """Plan a flow: it chooses its own steps, so that ``times`` may name its two ends and nothing else.

    Raises:
        ConfigError: steps, a grid, or a watch that only a table has.
    """
    refused = watch.beyond(differentiable=solver.differentiable)
    refused += ["steps"] * (steps is not None) + ["a grid"] * isinstance(times, Grid)
    if refused:
        raise ConfigError(
            f"the adaptive probability flow chooses its own steps and takes no {', '.join(refused)}; use a fixed "
            "solver, e.g. solver='heun'; times= may name its start and end"
        )
    check_final(sde, final)
    if times is None:
        return FlowPlan(solver, sde, (sde.t_max, sde.t_min), final)
    ends = check_times(sde, times)
    if len(ends) > 2:
        raise ConfigError(
            "the adaptive probability flow chooses its own steps: times= gives its two ends, got "
            f"{len(ends)} times; use a fixed solver, e.g. solver='heun'"
        )
    if float(ends[-1]) == 0:
        raise ConfigError("the adaptive probability flow must end at t > 0; final='denoise' goes to clean data")
    return FlowPlan(solver, sde, (float(ends[0]), float(ends[-1])), final)
