r"""The adaptive probability flow: an embedded Runge-Kutta method whose step, error and acceptance are per sample.

In the coordinates of the rectified path, y = x/(alpha + sigma) and u = sigma/(alpha + sigma), the probability flow of
every Gaussian diffusion is the same equation, finite at both ends:

    dy/du = noise(y, u) - data(y, u).

Each sample carries its own u and its own step, so that a batch gives what its members give alone. The error of a sample
is the root mean square over its coordinates of err/(atol + rtol max(|y|, |y_new|)); a step is accepted where it is at
most 1, and the next one is scaled by a PI controller (Hairer, Norsett and Wanner 1993, "Solving ordinary differential
equations I", II.4; Gustafsson 1991).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scoresde.errors import DomainError, SolverError, check_integer, check_number, unknown
from scoresde.ops import expand
from scoresde.readout import Point

if TYPE_CHECKING:
    from scoresde.model import Condition, ScoreModel

__all__ = ["EMBEDDED", "Embedded", "FlowResult", "ProbabilityFlow"]


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


EMBEDDED: dict[str, Embedded] = {
    # Bogacki and Shampine 1989, "A 3(2) pair of Runge-Kutta formulas".
    "bosh3": Embedded(
        ((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
        (2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
        3,
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


@dataclass(frozen=True)
class ProbabilityFlow:
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
    method: str = "dopri5"
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        """Check the options."""
        check_number(self.rtol, "rtol", 0.0, open_low=True)
        check_number(self.atol, "atol", 0.0, open_low=True)
        check_integer(self.max_steps, "max_steps", 1)
        if self.method not in EMBEDDED:
            raise unknown("method", self.method, EMBEDDED)

    def solve(self, model: ScoreModel, x: Tensor, start: Point, end: Point, cond: Condition = None) -> FlowResult:
        """Carry x (B, *) from one point to another, in either direction.

        Args:
            model: the model.
            x: state at ``start``, in its scale.
            start: a single point.
            end: a single point, with sigma > 0.
            cond: conditions of the batch.

        Raises:
            DomainError: tolerances below the state's epsilon. SolverError: step underflow, too many steps or
                non-finite predictions, with the time reached; ``partial`` holds the states reached, (B, *), in the
                rectified coordinates y.
        """
        state = x.to(torch.promote_types(x.dtype, torch.float32))
        epsilon = torch.finfo(state.dtype).eps
        if min(self.rtol, self.atol) < epsilon:
            raise DomainError(
                f"rtol and atol must be at least {epsilon:g} for {state.dtype}, got {self.rtol:g}, {self.atol:g}"
            )
        pair = EMBEDDED[self.method]
        u_end = float(end.sigma / (end.alpha + end.sigma))
        u_start = float(start.sigma / (start.alpha + start.sigma))
        y_all = state / float(start.alpha + start.sigma)
        batch = y_all.shape[0]
        counts = torch.zeros(3, batch, dtype=torch.long)
        active = torch.arange(batch if u_end != u_start else 0)
        y, u = y_all.clone(), torch.full((batch,), u_start, dtype=torch.float64)
        h = torch.full((batch,), 0.02 * (u_end - u_start), dtype=torch.float64)
        before = torch.ones(batch, dtype=torch.float64)
        slope = self._slope(model, y, u, cond) if len(active) else y
        counts[0, active] += 1
        while len(active):
            remaining = u_end - u
            h = torch.where((u + 1.01 * h - u_end) * (u_end - u_start) > 0, remaining, h)
            slopes = [slope]
            for weights in pair.stages:
                push = sum((w * k for w, k in zip(weights, slopes, strict=True) if w), torch.zeros_like(y))
                proposal = y + expand(h, y) * push
                slopes.append(self._slope(model, proposal, u + sum(weights) * h, cond))
            error = sum((w * k for w, k in zip(pair.error, slopes, strict=True) if w), torch.zeros_like(y))
            scale = self.atol + self.rtol * torch.maximum(y.abs(), proposal.abs())
            ratio = (expand(h, y) * error / scale).reshape(len(active), -1).square().mean(1).sqrt()
            size = ratio.to("cpu", torch.float64)
            counts[0, active] += len(pair.stages)
            ok = size <= 1
            counts[1, active] += ok
            counts[2, active] += ~ok
            done = ok & (h == remaining)
            wrong = self._wrong(size, h, done, counts[1:, active].sum(0))
            if wrong is not None:
                y_all[active.to(y.device)] = y
                raise self._error(model, u, *wrong, y_all)
            u = torch.where(done, torch.full_like(u, u_end), torch.where(ok, u + h, u))
            accepted = ok.to(y.device)
            y = torch.where(expand(accepted, y).bool(), proposal, y)
            slope = torch.where(expand(accepted, y).bool(), slopes[-1], slope)
            h, before = self._next_step(h, size, before, ok, pair.order)
            if bool(done.any()):
                gone = active[done].to(y.device)
                y_all[gone] = y[done.to(y.device)]
                keep = ~done
                there = keep.to(y.device)
                y, slope, u, h, before, active = y[there], slope[there], u[keep], h[keep], before[keep], active[keep]
                cond = None if cond is None else {k: v[keep.to(v.device)] for k, v in cond.items()}
        out = (y_all * float(end.alpha + end.sigma)).to(x.dtype)
        return FlowResult(out, counts[0], counts[1], counts[2])

    @staticmethod
    def _slope(model: ScoreModel, y: Tensor, u: Tensor, cond: Condition) -> Tensor:
        """Return dy/du: the flow prediction on the rectified path, where alpha = 1 - u and sigma = u."""
        point = Point(u, 1 - u, u, 2 * (torch.log1p(-u) - u.log()))
        return model.at(y, point, cond).view("flow")

    def _wrong(self, size: Tensor, h: Tensor, done: Tensor, taken: Tensor) -> tuple[Tensor, str] | None:
        """Return which samples cannot go on, and why."""
        for wrong, why in (
            (~torch.isfinite(size), "the prediction is not finite"),
            (~done & (h.abs() < 1e-14), "the step underflows; loosen rtol and atol"),
            (~done & (taken >= self.max_steps), f"max_steps = {self.max_steps} is used up; loosen rtol and atol"),
        ):
            if bool(wrong.any()):
                return wrong, why
        return None

    @staticmethod
    def _error(model: ScoreModel, u: Tensor, wrong: Tensor, why: str, partial: Tensor) -> SolverError:
        """Build the error that says where and for how many."""
        at = u[wrong][0]
        t = float(model.sde.time(2 * (torch.log1p(-at) - at.log())))
        return SolverError(
            f"the probability flow stopped at t = {t:.6g} (sigma/(alpha + sigma) = {float(at):.6g}) for "
            f"{float(wrong.double().mean()):.1%} of the active samples: {why}",
            partial=partial,
        )

    @staticmethod
    def _next_step(h: Tensor, size: Tensor, before: Tensor, ok: Tensor, order: int) -> tuple[Tensor, Tensor]:
        """Scale the steps by the PI controller: after a rejection by the error alone, and never up."""
        power = 1.0 / order
        error = size.clamp_min(1e-10)
        smooth = 0.9 * error ** (-0.7 * power) * before ** (0.4 * power)
        factor = torch.where(ok, smooth.clamp(0.2, 5.0), (0.9 * error**-power).clamp(0.1, 0.9))
        return h * factor, torch.where(ok, error.clamp_min(1e-4), before)
