r"""The adaptive probability flow: an embedded Runge-Kutta method whose step, error and acceptance are per sample.

It integrates a ``Field``, an equation in coordinates of its own, and knows no model: ``sampling.flow`` has the
probability flow's field, for a Gaussian diffusion in y = x/(alpha + sigma) and u = sigma/(alpha + sigma).

Each sample carries its own u and its own step, so that a batch gives what its members give alone. The error of a sample
is the root mean square over its coordinates of err/(atol + rtol max(|y|, |y_new|)); a step is accepted where it is at
most 1, and the next one is scaled by a PI controller (Hairer, Norsett and Wanner 1993, "Solving ordinary differential
equations I", II.4; Gustafsson 1991).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from scoresde.errors import DomainError, SolverError, check_integer, check_number, unknown

__all__ = ["EMBEDDED", "Embedded", "Field", "FlowResult", "FlowSolver", "ProbabilityFlow", "Stage", "check_tolerances"]

FIRST_STEP = 0.02  # of the whole interval


@dataclass(frozen=True)
class Embedded:
    """An embedded pair whose last stage is the first of the next step (first same as last).

    Args:
        stages: rows of the stage matrix after the first; the last one is the solution.
        error: weights of the stages in solution minus embedded solution.
        order: of the solution.
    """

    stages: tuple[tuple[float, ...], ...]
    error: tuple[float, ...]
    order: int


EmbeddedName = Literal["bosh3", "dopri5"]
EMBEDDED: dict[EmbeddedName, Embedded] = {
    # Bogacki and Shampine 1989, "A 3(2) pair of Runge-Kutta formulas".
    "bosh3": Embedded(
        ((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)), (2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8), 3
    ),
    # Dormand and Prince 1980, "A family of embedded Runge-Kutta formulae".
    "dopri5": Embedded(
        (
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
        5,
    ),
}


Stage = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class FlowResult:
    """The end state and what it cost, sample by sample.

    Args:
        x: end state (B, *).
        nfe: evaluations in which the sample took part, (B,).
        accepted: accepted steps, (B,).
        rejected: rejected steps, (B,).
    """

    x: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor


@dataclass(frozen=True, eq=False)
class Field:
    """The right-hand side of an equation dy/du = slope(y, u), and how a state enters and leaves its coordinates.

    Args:
        stages: (u of shape (S, n), rows (n,)) -> function (i, y) giving the slope of y (n, *) at u[i]. ``u`` is in
            float64 on the CPU, ``rows`` says which samples of the batch these are.
        start: u at the start.
        end: u at the end.
        scales: x/y at the start and at the end.
        time: u -> t, for messages.
        name: of u.
        parameters: the tensors beside y that the slope depends on and that take gradients.
    """

    stages: Callable[[Tensor, Tensor], Stage]
    start: float
    end: float
    scales: tuple[float, float]
    time: Callable[[float], float]
    name: str
    parameters: tuple[Tensor, ...] = ()

    def slope(self, y: Tensor, u: Tensor) -> Tensor:
        """Return the slope of a whole batch y (B, *) at one u, in float64 on the CPU."""
        return self.stages(u.expand(1, y.shape[0]), torch.arange(y.shape[0]))(0, y)

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
        atol: absolute tolerance per coordinate, in the unit of the rectified coordinates.
        method: a key of ``EMBEDDED``: "dopri5" (order 5) or "bosh3" (order 3).
        max_steps: accepted and rejected steps allowed for a sample.

    Raises:
        DomainError: tolerances not positive. ConfigError: unknown method.
    """

    rtol: float = 1e-4
    atol: float = 1e-4
    method: EmbeddedName = "dopri5"
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        check_number(self.rtol, "rtol", 0.0, open_low=True)
        check_number(self.atol, "atol", 0.0, open_low=True)
        check_integer(self.max_steps, "max_steps", 1)
        if self.method not in EMBEDDED:
            raise unknown("method", self.method, EMBEDDED)

    def integrate(self, field: Field, x: Tensor) -> FlowResult:
        """Carry x (B, *) along a field; see ``FlowSolver.integrate``.

        Raises:
            DomainError: tolerances below x's epsilon. SolverError: step underflow, too many steps or slopes that are
                not finite, with the time reached.
        """
        check_tolerances(self.rtol, self.atol, x.dtype)
        pair = EMBEDDED[self.method]
        span, shape, count = field.end - field.start, x.shape, len(pair.stages)
        end_y = (x / field.scales[0]).reshape(shape[0], math.prod(shape[1:]))
        counts = torch.zeros(3, shape[0], dtype=torch.long)
        active = torch.arange(shape[0] if span else 0)
        y, u = end_y.clone(), torch.full((shape[0],), field.start, dtype=torch.float64)
        h, before = torch.full_like(u, FIRST_STEP * span), torch.ones_like(u)
        slopes = y.new_empty(count + 1, *y.shape)
        nodes = torch.tensor([sum(row) for row in pair.stages], dtype=torch.float64)[:, None]
        if len(active):
            slopes[0] = field.stages(u[None], active)(0, y.reshape(shape)).reshape(y.shape)
            counts[0] += 1
        while len(active):
            remaining = field.end - u
            h = torch.where((u + 1.01 * h - field.end) * span > 0, remaining, h)
            step = h.to(y)[:, None]
            stage = field.stages(u + nodes * h, active)
            proposal = y
            for i, weights in enumerate(pair.stages):
                proposal = torch.addcmul(y, step, _sum_weighted(weights, slopes))
                slopes[i + 1] = stage(i, proposal.view(-1, *shape[1:])).reshape(y.shape)
            scale = torch.maximum(y.abs(), proposal.abs()).mul_(self.rtol).add_(self.atol)
            error = _sum_weighted(pair.error, slopes).mul_(step).div_(scale)
            size = error.square_().mean(1).sqrt_().to("cpu", torch.float64)
            ok = size <= 1
            done = ok & (h == remaining)
            counts[:, active] += torch.stack([torch.full_like(active, count), ok.long(), (~ok).long()])
            wrong = self._find_stuck(size, h / span, done, counts[1:, active].sum(0))
            if wrong is not None:
                end_y[active.to(y.device)] = y
                raise _build_error(field, u, *wrong, end_y.reshape(shape))
            u = torch.where(ok, u + h, u)
            if bool(ok.all()):
                y, slopes[0] = proposal, slopes[count]
            else:
                accepted = ok.to(y.device)[:, None]
                y, slopes[0] = torch.where(accepted, proposal, y), torch.where(accepted, slopes[count], slopes[0])
            h, before = self._scale_steps(h, size, before, ok, pair.order)
            if bool(done.any()):
                end_y[active[done].to(y.device)] = y[done.to(y.device)]
                keep = (~done).nonzero()[:, 0]
                there = keep.to(y.device)
                u, h, before, active, y, first = (
                    u[keep],
                    h[keep],
                    before[keep],
                    active[keep],
                    y[there],
                    slopes[0, there],
                )
                slopes = y.new_empty(count + 1, *y.shape)
                slopes[0] = first
        return FlowResult((end_y * field.scales[1]).reshape(shape), *counts)

    def _find_stuck(self, size: Tensor, h: Tensor, done: Tensor, taken: Tensor) -> tuple[Tensor, str] | None:
        """Return which samples cannot go on, and why."""
        for wrong, why in (
            (~torch.isfinite(size), "the prediction is not finite"),
            (~done & (h < 1e-14), "the step underflows; loosen rtol and atol"),
            (~done & (taken >= self.max_steps), f"max_steps = {self.max_steps} is used up; loosen rtol and atol"),
        ):
            if bool(wrong.any()):
                return wrong, why
        return None

    @staticmethod
    def _scale_steps(h: Tensor, size: Tensor, before: Tensor, ok: Tensor, order: int) -> tuple[Tensor, Tensor]:
        """Scale the steps by the PI controller: after a rejection by the error alone, and never up."""
        # Powers as exp(p log): torch's own pow rounds by the place in the batch.
        error = size.clamp_min(1e-10)
        log_error = error.log() / order
        smooth = 0.9 * (0.4 / order * before.log() - 0.7 * log_error).exp()
        factor = torch.where(ok, smooth.clamp(0.2, 5.0), (0.9 * (-log_error).exp()).clamp(0.1, 0.9))
        return h * factor, torch.where(ok, error.clamp_min(1e-4), before)


def _sum_weighted(weights: tuple[float, ...], slopes: Tensor) -> Tensor:
    """Return the weighted sum of the first slopes."""
    # Element by element: a product of matrices would round by the size of the batch.
    total = slopes[0] * weights[0]
    for slope, weight in zip(slopes[1:], weights[1:], strict=False):
        if weight:
            total.add_(slope, alpha=weight)
    return total


def check_tolerances(rtol: float, atol: float, dtype: torch.dtype) -> None:
    """Raise DomainError where a tolerance is below the state's epsilon."""
    epsilon = torch.finfo(dtype).eps
    if min(rtol, atol) < epsilon:
        raise DomainError(f"rtol and atol must be at least {epsilon:g} for {dtype}, got {rtol:g}, {atol:g}")


def _build_error(field: Field, u: Tensor, wrong: Tensor, why: str, partial: Tensor) -> SolverError:
    """Build the error that says where and for how many."""
    at = float(u[wrong][0])
    return SolverError(
        f"the probability flow stopped at t = {field.time(at):.6g} ({field.name} = {at:.6g}) for "
        f"{float(wrong.double().mean()):.1%} of the active samples: {why}",
        partial=partial,
    )
