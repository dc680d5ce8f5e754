r"""Fields through scipy's ``solve_ivp`` and torchdiffeq: the probability flow in the coordinates of ``sampling.flow``.

Both keep the package's rule that a sample does not depend on its batch by solving sample by sample;
``TorchDiffEq(together=True)`` shares one step among all of them, as torchdiffeq does by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scoresde.errors.kinds import ConfigError, SolverError
from scoresde.errors.names import check_choice
from scoresde.errors.values import keep_integer, keep_number
from scoresde.solvers.adaptive import Field, FlowResult, FlowSolver, check_tolerances

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["ScipyODE", "TorchDiffEq"]

SCIPY = ("RK23", "RK45", "DOP853", "Radau", "BDF", "LSODA")
TORCHDIFFEQ = ("adaptive_heun", "bosh3", "dopri5", "dopri8", "fehlberg2")


def _torchdiffeq() -> ModuleType:
    try:
        import torchdiffeq
    except ImportError as error:
        raise ConfigError('this needs torchdiffeq; in the repository run pip install ".[torchdiffeq]"') from error
    module: ModuleType = torchdiffeq
    return module


@dataclass(eq=False)
class _Counted:
    """The slope of a field, counted, held inside the field's interval and watched; u is a number or a 0-d tensor."""

    field: Field
    name: str
    max_calls: int
    calls: int = 0
    accepted: int = 0
    rejected: int = 0

    def __call__(self, u: Tensor | float, y: Tensor) -> Tensor:
        # A probe for the first step, or rounding to float32, may leave the interval. u keeps its graph: torchdiffeq
        # differentiates its choice of steps too, and the solution does not depend on it only where both parts are kept.
        at = (
            (u if isinstance(u, Tensor) else torch.tensor(u, dtype=torch.float64, device="cpu"))
            .to("cpu", torch.float64)
            .clamp(*sorted((self.field.start, self.field.end)))
        )
        self.calls += 1
        if self.calls > self.max_calls:
            raise self.error(float(at.detach()), y, f"max_calls = {self.max_calls} is used up; loosen rtol and atol")
        slope = self.field.slope(y, at)
        if not bool(torch.isfinite(slope).all()):
            raise self.error(float(at.detach()), y, "the prediction is not finite")
        return slope

    def error(self, u: float, y: Tensor, why: str) -> SolverError:
        """Build the error that says where."""
        return SolverError(
            f"{self.name} stopped at t = {self.field.time(u):.6g} ({self.field.name} = {u:.6g}): {why}",
            partial=y.detach(),
        )

    def callback_accept_step(self, t: Tensor, y: Tensor, dt: Tensor) -> None:
        """Count a step that torchdiffeq accepts."""
        self.accepted += 1

    def callback_reject_step(self, t: Tensor, y: Tensor, dt: Tensor) -> None:
        """Count a step that torchdiffeq rejects."""
        self.rejected += 1


@dataclass(frozen=True)
class ScipyODE(FlowSolver):
    """Integrate the probability flow with ``scipy.integrate.solve_ivp``, sample by sample, in float64 on the CPU.

    Args:
        method: "RK23", "RK45", "DOP853" (Runge-Kutta), "Radau", "BDF", "LSODA" (implicit, by finite differences).
        rtol: relative tolerance per coordinate.
        atol: absolute tolerance per coordinate.
        max_calls: evaluations allowed for a sample.

    The rejected steps are known for the Runge-Kutta methods and -1 for the others.

    Raises:
        DomainError: tolerances not positive. ConfigError: unknown method.
    """

    double = True

    method: str = "RK45"
    rtol: float = 1e-5
    atol: float = 1e-5
    max_calls: int = 100_000

    def __post_init__(self) -> None:
        keep_number(self, "rtol", 0.0, open_low=True)
        keep_number(self, "atol", 0.0, open_low=True)
        keep_integer(self, "max_calls", 1)
        check_choice("method", self.method, SCIPY)

    def integrate(self, field: Field, x: Tensor) -> FlowResult:
        """Carry x (B, *) along a field, sample by sample; see ``FlowSolver.integrate``."""
        from scipy import integrate

        # scipy raises a smaller rtol to this with a warning.
        check_tolerances(self.rtol / 100, self.atol, x.dtype)
        stages = {"RK23": integrate.RK23, "RK45": integrate.RK45, "DOP853": integrate.DOP853}

        def one(field: Field, y: Tensor) -> tuple[Tensor, _Counted]:
            counted = _Counted(field, f"scipy's {self.method}", self.max_calls)
            flat = (y / field.scales[0]).reshape(-1)

            def slope(u: float, values: object) -> object:
                now = torch.as_tensor(values, dtype=y.dtype, device="cpu").to(y.device).reshape(y.shape)
                return counted(u, now).reshape(-1).to("cpu", torch.float64).numpy()

            result = integrate.solve_ivp(
                slope, (field.start, field.end), flat.cpu().numpy(), method=self.method, rtol=self.rtol, atol=self.atol
            )
            reached = torch.as_tensor(result.y[:, -1], dtype=y.dtype, device="cpu").to(y.device).reshape(y.shape)
            if result.status != 0:
                raise counted.error(float(result.t[-1]), reached, str(result.message))
            counted.accepted = len(result.t) - 1
            counted.rejected = -1
            if self.method in stages:
                # Two evaluations choose the first step, each attempt costs n_stages.
                counted.rejected = (counted.calls - 2) // stages[self.method].n_stages - counted.accepted
            return reached * field.scales[1], counted

        with torch.no_grad():
            return _one_by_one(one, field, x.detach())


@dataclass(frozen=True)
class TorchDiffEq(FlowSolver):
    """Integrate the probability flow with an adaptive method of torchdiffeq, which can be differentiated.

    Args:
        method: "dopri5", "dopri8", "bosh3", "adaptive_heun" or "fehlberg2".
        rtol: relative tolerance per coordinate, at least the state's machine epsilon.
        atol: absolute tolerance per coordinate, likewise.
        adjoint: with ``differentiable=True``, gradients by the adjoint equation (Chen et al. 2018, "Neural ordinary
            differential equations") in memory that does not grow with the steps.
        together: one step for the whole batch, chosen by its root mean square error: faster, but a sample then depends
            on its neighbours.
        max_calls: evaluations allowed for a solution.

    Raises:
        DomainError: tolerances not positive. ConfigError: unknown method, torchdiffeq is missing.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    adjoint: bool = False
    together: bool = False
    max_calls: int = 100_000

    differentiable = True

    def __post_init__(self) -> None:
        keep_number(self, "rtol", 0.0, open_low=True)
        keep_number(self, "atol", 0.0, open_low=True)
        keep_integer(self, "max_calls", 1)
        check_choice("method", self.method, TORCHDIFFEQ)
        _torchdiffeq()

    def integrate(self, field: Field, x: Tensor) -> FlowResult:
        """Carry x (B, *) along a field; see ``FlowSolver.integrate``."""
        check_tolerances(self.rtol, self.atol, x.dtype)
        if not self.together:
            return _one_by_one(self._carry, field, x)
        moves = field.start != field.end and len(x) > 0
        out, counted = self._carry(field, x) if moves else (x, _Counted(field, "", 1))
        counts = torch.tensor(
            [[counted.calls], [counted.accepted], [counted.rejected]], dtype=torch.int64, device="cpu"
        ).expand(3, len(x))
        return FlowResult(out, *counts.clone())

    def _carry(self, field: Field, x: Tensor) -> tuple[Tensor, _Counted]:
        """Solve for one state, a sample or a batch."""
        torchdiffeq = _torchdiffeq()
        counted = _Counted(field, f"torchdiffeq's {self.method}", self.max_calls)
        times = torch.tensor([field.start, field.end], dtype=torch.float64, device="cpu")
        # Told of the end, the method steps onto it; else it steps past and interpolates, where there may be no flow.
        options = {"step_t": times[1:].clone()}
        y = x / field.scales[0]
        solve, extra = torchdiffeq.odeint, {}
        if self.adjoint:
            solve = torchdiffeq.odeint_adjoint
            extra = {"adjoint_params": field.parameters, "adjoint_options": {"step_t": times[:1].clone()}}
        try:
            out = solve(
                counted, y, times, rtol=self.rtol, atol=self.atol, method=self.method, options=options, **extra
            )[-1]
        except AssertionError as error:
            raise SolverError(f"torchdiffeq's {self.method} stopped: {error}; loosen rtol and atol") from error
        return out * field.scales[1], counted


def _one_by_one(solve: Callable[[Field, Tensor], tuple[Tensor, _Counted]], field: Field, x: Tensor) -> FlowResult:
    """Solve sample by sample, each in the field of its own condition."""
    parts = []
    counts = torch.zeros(3, len(x), dtype=torch.long, device="cpu")
    for k in range(len(x)):
        part = x[k : k + 1]
        if field.start != field.end:
            part, counted = solve(field.only(k), part)
            counts[:, k] = torch.tensor(
                [counted.calls, counted.accepted, counted.rejected], dtype=torch.int64, device="cpu"
            )
        parts.append(part)
    return FlowResult(torch.cat(parts) if parts else x, *counts)
