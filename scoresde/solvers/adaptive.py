r"""The adaptive probability flow: an embedded Runge-Kutta method whose step, error and acceptance are per sample.

It integrates a ``Field``, an equation in coordinates of its own, and knows no model: ``sampling.flow`` has the
probability flow's field, for a Gaussian diffusion in y = x/(alpha + sigma) and u = sigma/(alpha + sigma).

Each sample carries its own u and its own step, so that a batch gives what its members give alone. The error of a sample
is the root mean square over its coordinates of err/(atol + rtol max(|y|, |y_new|)); a step is accepted where it is at
most 1, and the next one is scaled by a PI controller (Hairer, Norsett and Wanner 1993, "Solving ordinary differential
equations I", II.4; Gustafsson 1991).

*Integrals along the way.* The last coordinates of a state may be integrals, on which no slope depends (a log density).
Their error is judged apart, in their own unit and against atol alone. Let V(y, u) be what an integral I still gains
from the state y on. A step's local error (dy, dI) changes the end value by dI + grad V . dy to first order; the sum of
the moduli over the accepted steps estimates the error of the result (the dual-weighted residual of Becker and Rannacher
2001, "An optimal control approach to a posteriori error estimation in finite element methods", sample by sample).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from scoresde.errors.kinds import DomainError, SolverError
from scoresde.errors.names import check_choice
from scoresde.errors.values import keep_integer, keep_number
from scoresde.solvers.pairs import EMBEDDED, Embedded, EmbeddedName

__all__ = ["Field", "FlowResult", "FlowSolver", "ProbabilityFlow", "Stage", "check_tolerances"]

Array = np.ndarray[Any, np.dtype[np.float64]]
Places = np.ndarray[Any, np.dtype[np.int64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

FIRST_STEP = 0.05  # of the whole interval


Stage = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class FlowResult:
    """The end state and what it cost, sample by sample.

    Args:
        x: end state (B, *).
        nfe: evaluations in which the sample took part, (B,).
        accepted: accepted steps, (B,).
        rejected: rejected steps, (B,).
        error: estimates of the errors of the field's integrals, (B, integrals), in float64; None where the solver
            makes none.
    """

    x: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    error: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Field:
    """The right-hand side of an equation dy/du = slope(y, u), and how a state enters and leaves its coordinates.

    Args:
        stages: (u of shape (S, n), rows (n,)) -> function (i, y) giving the slope of y (n, *) at u[i], a tensor of its
            own: y is written over afterwards. ``u`` is in float64 on the CPU, ``rows`` says which samples of the batch
            these are.
        start: u at the start.
        end: u at the end.
        scales: x/y at the start and at the end.
        time: u -> t, for messages.
        name: of u.
        parameters: the tensors beside y that the slope depends on and that take gradients.
        integrals: how many of the last coordinates of y, then of shape (B, D), are integrals along the way.
        gradient: (y (n, D), its slope, u (n,)) -> the gradient (n, D - integrals) of what an integral still gains.
    """

    stages: Callable[[Tensor, Tensor], Stage]
    start: float
    end: float
    scales: tuple[float, float]
    time: Callable[[float], float]
    name: str
    parameters: tuple[Tensor, ...] = ()
    integrals: int = 0
    gradient: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None

    def slope(self, y: Tensor, u: Tensor) -> Tensor:
        """Return the slope of a whole batch y (B, *) at one u, in float64 on the CPU."""
        return self.stages(u.expand(1, y.shape[0]), torch.arange(y.shape[0], device="cpu"))(0, y)

    def only(self, k: int) -> Field:
        """Return the field of sample k alone, as a batch of one."""
        return replace(self, stages=lambda u, rows: self.stages(u, rows + k))


class FlowSolver(ABC):
    """A way to integrate a field; ``sampling.flow`` makes a model's field and has it integrated.

    ``differentiable`` says whether gradients pass through it, ``double`` whether it carries states in float64.
    """

    differentiable: ClassVar[bool] = False
    double: ClassVar[bool] = False

    @abstractmethod
    def integrate(self, field: Field, x: Tensor) -> FlowResult:
        """Carry x (B, *), finite and in at least float32, from the field's start to its end, in either direction.

        Raises:
            DomainError: tolerances below the state's epsilon. SolverError: the end was not reached; ``partial`` holds
                the states reached, (B, *), in the coordinates y.
        """


@dataclass(frozen=True)
class ProbabilityFlow(FlowSolver):
    """Integrate the probability flow adaptively, per sample.

    Args:
        rtol: relative tolerance per coordinate, at least the state's machine epsilon.
        atol: absolute tolerance per coordinate, in the unit of the rectified coordinates; of integrals, in their own.
        method: a key of ``EMBEDDED``: "dopri5" (order 5), "bosh3" (order 3) or "dop853" (order 8).
        max_steps: accepted and rejected steps allowed for a sample.

    Raises:
        DomainError: tolerances not positive. ConfigError: unknown method.
    """

    rtol: float = 1e-4
    atol: float = 1e-4
    method: EmbeddedName = "dopri5"
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        keep_number(self, "rtol", 0.0, open_low=True)
        keep_number(self, "atol", 0.0, open_low=True)
        keep_integer(self, "max_steps", 1)
        check_choice("method", self.method, EMBEDDED)

    @torch.no_grad()
    def integrate(self, field: Field, x: Tensor) -> FlowResult:
        """Carry x (B, *) along a field; see ``FlowSolver.integrate``.

        Raises:
            DomainError: tolerances below x's epsilon. SolverError: step underflow, too many steps or slopes that are
                not finite, with the time reached.
        """
        check_tolerances(self.rtol, self.atol, x.dtype)
        pair = EMBEDDED[self.method]
        span, shape = field.end - field.start, x.shape
        end_y = (x / field.scales[0]).reshape(shape[0], math.prod(shape[1:]))
        accepted, taken = torch.zeros(2, shape[0], dtype=torch.long, device="cpu").numpy()
        now, tried, nodes = _Active.at_start(field, shape[0] if span else 0), 0, np.array(pair.nodes)[:, None]
        y, errors = end_y, torch.zeros(shape[0], field.integrals, dtype=torch.float64, device="cpu")
        slope = _flatten(now.stages(field, now.u[None]), shape)(0, y) if len(now.rows) else y
        while len(now.rows):
            tried += 1
            remaining = field.end - now.u
            # A step that would leave a hundredth of itself goes to the end.
            now.h = np.where(now.h / remaining > 1 / 1.01, remaining, now.h)
            stage = _flatten(now.stages(field, now.u + nodes * now.h), shape)
            proposal, slopes = _advance(pair, stage, y, slope, now.h)
            last, error = slopes[-1], _sum_weighted(pair.error, slopes)
            size = self._measure(error, y, proposal, now.h, field.integrals)
            if pair.second is not None:
                lower = self._measure(_sum_weighted(pair.second, slopes), y, proposal, now.h, field.integrals)
                size = size / np.hypot(1, 0.1 * lower / np.maximum(size, np.finfo(float).tiny))
            ok = size <= 1
            done = ok & (now.h == remaining)
            wrong = self._find_stuck(size, now.h / span, done, tried)
            if wrong is not None:
                end_y[_places(now.rows, y)] = y.clone()  # which is its own memory before the first step
                raise _build_error(field, now.u, *wrong, end_y.reshape(shape))
            if field.integrals:
                defect = _weigh_error(field, error, proposal, last, now.u + now.h) * torch.from_numpy(now.h)[:, None]
                errors[now.rows[ok]] += defect[ok].abs()
            if ok.all():
                y, slope = proposal, last
            else:
                moved = _places(ok, y)[:, None]
                y, slope = torch.where(moved, proposal, y), torch.where(moved, last, slope)
            now.scale_steps(size, ok, pair.order)
            if done.any():
                ended, keep = now.rows[done], ~done
                end_y[_places(ended, y)] = y[_places(done, y)]
                accepted[ended], taken[ended] = now.accepted[done], tried
                now, there = now.select(keep), _places(keep.nonzero()[0], y)
                y, slope = y[there], slope[there]
        nfe = taken * len(pair.stages) + (taken > 0)
        counts = map(torch.from_numpy, (nfe, accepted, taken - accepted))
        result = FlowResult((end_y * field.scales[1]).reshape(shape), *counts)
        return replace(result, error=errors) if field.integrals else result

    def _measure(self, error: Tensor, y: Tensor, proposal: Tensor, h: Array, integrals: int) -> Array:
        """Return the sizes (n,) of errors (n, D) of a unit step, for steps h: 1 is what the tolerances allow."""
        # The factors h and rtol, one for each sample, are left to the norm.
        count = y.shape[1] - integrals
        scale = y.abs()
        torch.maximum(scale, proposal.abs(), out=scale).add_(self.atol / self.rtol)
        scaled = torch.div(error, scale, out=scale)[:, :count]
        norm = torch.linalg.vector_norm(scaled, dim=1).div_(self.rtol * math.sqrt(max(1, count)))
        if integrals:
            norm = torch.maximum(norm, error[:, count:].abs().amax(1) / self.atol)
        size: Array = norm.to("cpu", torch.float64).numpy() * np.abs(h)
        return size

    def _find_stuck(self, size: Array, h: Array, done: Mask, tried: int) -> tuple[Mask, str] | None:
        """Return which samples cannot go on, and why."""
        for wrong, why in (
            (~np.isfinite(size), "the prediction is not finite"),
            (~done & (h < 1e-14), "the step underflows; loosen rtol and atol"),
            (~done & (tried >= self.max_steps), f"max_steps = {self.max_steps} is used up; loosen rtol and atol"),
        ):
            if wrong.any():
                return wrong, why
        return None


@dataclass(eq=False)
class _Active:
    """The samples under way, as vectors (n,).

    Args:
        rows: which samples of the batch.
        u: where each is.
        h: its next step.
        before: the error of its last accepted step.
        accepted: its accepted steps.
    """

    rows: Places
    u: Array
    h: Array
    before: Array
    accepted: Places

    @classmethod
    def at_start(cls, field: Field, count: int) -> _Active:
        """Return ``count`` samples at the field's start."""
        u = np.full(count, field.start)
        h = np.full(count, FIRST_STEP * (field.end - field.start))
        return cls(np.arange(count), u, h, np.ones(count), np.zeros(count, dtype=np.int64))

    def stages(self, field: Field, u: Array) -> Stage:
        """Return the field's slopes at u (S, n)."""
        return field.stages(torch.from_numpy(u), torch.from_numpy(self.rows))

    def scale_steps(self, size: Array, ok: Mask, order: int) -> None:
        """Take the steps that are ok and scale the next ones by the PI controller.

        After a rejection the error alone scales; it is above 1, so the step shrinks by a tenth at least.
        """
        error = np.maximum(size, 1e-10)
        log_error = np.log(error) / order
        smooth = 0.9 * np.exp(0.4 / order * np.log(self.before) - 0.7 * log_error)
        alone = 0.9 * np.exp(-log_error)
        self.u = np.where(ok, self.u + self.h, self.u)
        self.h = self.h * np.where(ok, smooth.clip(0.2, 10.0), np.maximum(alone, 0.1))
        self.before = np.where(ok, np.maximum(error, 1e-4), self.before)
        self.accepted = self.accepted + ok

    def select(self, keep: Mask) -> _Active:
        """Return some of the samples."""
        return _Active(*(value[keep] for value in vars(self).values()))


def _places(where: Mask | Places, y: Tensor) -> Tensor:
    """Return a mask or places as a tensor where y is."""
    return torch.from_numpy(where).to(y.device)


def _flatten(stage: Stage, shape: torch.Size) -> Stage:
    """Return the same slopes for states (n, D)."""
    return lambda i, y: stage(i, y.view(-1, *shape[1:])).reshape(y.shape)


def _advance(pair: Embedded, stage: Stage, y: Tensor, slope: Tensor, h: Array) -> tuple[Tensor, list[Tensor]]:
    """Return the states (n, D) after a step h (n,), and the slopes of all stages, the last one there."""
    step, slopes = torch.from_numpy(h).to(y)[:, None], [slope]
    proposal = torch.empty_like(y)  # every stage's state in its turn: fresh memory costs more than the sums
    for i, weights in enumerate(pair.stages):
        torch.addcmul(y, step, _sum_weighted(weights, slopes, out=proposal), out=proposal)
        slopes.append(stage(i, proposal))
    return proposal, slopes


def _weigh_error(field: Field, error: Tensor, y: Tensor, slope: Tensor, u: Array) -> Tensor:
    """Return what errors (n, D) at states y change the field's integrals by, (n, integrals), in float64 on the CPU."""
    count = y.shape[1] - field.integrals
    change = error[:, count:].to("cpu", torch.float64)
    if field.gradient is None:
        return change
    gradient = field.gradient(y, slope, torch.from_numpy(u))
    return change + (gradient * error[:, :count]).sum(1, keepdim=True).to("cpu", torch.float64)


def _sum_weighted(weights: tuple[float, ...], slopes: list[Tensor], out: Tensor | None = None) -> Tensor:
    """Return the weighted sum of the slopes, written to ``out`` where it is given."""
    # Element by element: a product of matrices would round by the size of the batch.
    total = torch.mul(slopes[0], weights[0], out=out)
    for slope, weight in zip(slopes[1:], weights[1:], strict=True):
        if weight:
            total.add_(slope, alpha=weight)
    return total


def check_tolerances(rtol: float, atol: float, dtype: torch.dtype) -> None:
    """Raise DomainError where a tolerance is below the state's epsilon."""
    epsilon = torch.finfo(dtype).eps
    if min(rtol, atol) < epsilon:
        raise DomainError(f"rtol and atol must be at least {epsilon:g} for {dtype}, got {rtol:g}, {atol:g}")


def _build_error(field: Field, u: Array, wrong: Mask, why: str, partial: Tensor) -> SolverError:
    """Build the error that says where and for how many."""
    at = float(u[wrong][0])
    return SolverError(
        f"the probability flow stopped at t = {field.time(at):.6g} ({field.name} = {at:.6g}) for "
        f"{wrong.mean():.1%} of the active samples: {why}",
        partial=partial,
    )
