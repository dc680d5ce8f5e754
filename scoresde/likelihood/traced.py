r"""A model with the trace of its Jacobian, as a model: whatever carries a state then carries its log density too.

Written with a prediction P the probability flow is dx = (A x + B P(x, t)) dt, A and B numbers. Let Phi be what x does
where P = 0, Phi' = A Phi. Along the flow

    d log p(x_t)/dt = -D A - B tr(dP/dx),      log p_0 = log p_T + D log(Phi_T/Phi_0) + l_T,      l' = B tr(dP/dx),

and m = Phi l solves m' = A m + B Phi tr(dP/dx): the equation of one more coordinate, whose prediction is
Phi tr(dP/dx). A table with its stages, its memory and its correctors, the adaptive flow and every bridge carry it with
the weights, and to the order, with which they carry x; nothing in them knows of a density.

| P | data | noise, score | v | flow | velocity |
|---|---|---|---|---|---|
| Phi | sigma | alpha | r | alpha + sigma | 1 |

The trace is that of ``probes``; each draw of its signs has a coordinate m of its own. States are (B, D + r): x
flattened, then m, in float64 where the device has it. The network computes in its own type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scoresde.diffusions.point import Point
from scoresde.diffusions.sde import GaussianSDE
from scoresde.diffusions.targets import target
from scoresde.likelihood.probes import Probes
from scoresde.likelihood.recompute import recompute
from scoresde.models.prediction import Condition, Predictor, Prepared, Readout
from scoresde.ops import flat, jacobian_products

__all__ = ["PHI", "SIGNS", "TracedModel"]

SIGNS = "signs of the probes"  # a sample's signs travel with its conditions


def _alpha(point: Point) -> Tensor:
    return point.alpha


def _sigma(point: Point) -> Tensor:
    return point.sigma


def _r(point: Point) -> Tensor:
    return point.r


def _sum(point: Point) -> Tensor:
    return point.alpha + point.sigma


def _one(point: Point) -> Tensor:
    return torch.ones_like(point.alpha)


PHI: dict[str, Callable[[Point], Tensor]] = {
    "data": _sigma,
    "noise": _alpha,
    "score": _alpha,
    "v": _r,
    "flow": _sum,
    "velocity": _one,
}


class TracedModel(Predictor):
    """A model on states [x, m]; its prediction is [P, Phi tr(dP/dx)].

    Args:
        model: the model.
        event: the event's shape.
        probes: what makes up the trace.
        kind: P, a key of ``PHI``.
    """

    def __init__(self, model: Predictor, event: Sequence[int], probes: Probes, kind: str) -> None:
        super().__init__(model.sde, moments=None, transform=None)
        self.model, self.event, self.probes, self.kind = model, tuple(event), probes, kind

    def with_sde(self, sde: GaussianSDE) -> TracedModel:
        """Return the same under another SDE."""
        return TracedModel(self.model.with_sde(sde), self.event, self.probes, self.kind)

    def prepare(self, point: Point, x: Tensor, cond: Condition = None) -> Prepared:
        """Make the model inside ready; ``cond`` holds each sample's signs beside its conditions."""
        return _PreparedTrace(self, point, x, dict(cond or {}))


class _PreparedTrace(Prepared):
    """A traced model at n points."""

    def __init__(self, traced: TracedModel, point: Point, x: Tensor, cond: dict[str, Tensor]) -> None:
        self.event, self.probes, self.size = traced.event, traced.probes, math.prod(traced.event)
        self.signs = cond.pop(SIGNS)
        self.inner = traced.model.prepare(point, self._state(x), cond or None)
        scalars = self.inner.readout.c_in, self.inner.readout.c_noise
        super().__init__(Readout(point, target(traced.kind, point), *scalars), x, learned=False)
        numbers = (*self.inner.readout.weights(traced.kind), PHI[traced.kind](point))
        self.on_x, self.on_output, self.phi = map(self._numbers, numbers)
        inputs = (*traced.model.parameters(), *cond.values())
        self.inputs = tuple(value for value in inputs if value.requires_grad)

    def _numbers(self, values: Tensor) -> Sequence[float | Tensor]:
        """Return one number for each point, or a column (B, 1) where every sample has points of its own."""
        return self._column(values) if self.readout.point.t.ndim == 2 else values.tolist()

    def _state(self, x: Tensor) -> Tensor:
        return x[:, : self.size].reshape(len(x), *self.event)

    def outputs(self, i: int, x: Tensor) -> tuple[Tensor, None]:
        """Return the prediction of x and the traces, times Phi."""
        if self.readout.point.t.requires_grad:  # a solver that differentiates its steps too keeps its whole graph
            return self._evaluate(i, x), None
        return recompute(lambda state: self._evaluate(i, state), x, self.inputs), None

    def _evaluate(self, i: int, x: Tensor) -> Tensor:
        state = self._state(x)
        vectors = self.probes.vectors(self.signs, state)
        output, products = jacobian_products(lambda y: self.inner.raw(i, y).to(y), state, vectors)
        traces = self.probes.add_up(products, state)
        on_x, on_output, phi = self.on_x[i], self.on_output[i], self.phi[i]
        prediction = on_x * flat(state) + on_output * flat(output)
        return torch.cat([prediction, phi * (on_x * self.size + on_output * traces)], 1)
