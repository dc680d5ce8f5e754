r"""How a call of a model is read, and calls made ready for a loop.

A network's output F at x becomes every view of the prediction as P = a x + b F, with (a, b) from ``readout.view``. For
points that are known beforehand all of these numbers are computed before the loop starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from scoresde.diffusions.point import Pair, Point
from scoresde.diffusions.targets import target, view
from scoresde.ops import combine

__all__ = ["Condition", "Prediction", "PreparedModel", "Readout"]

Condition = Mapping[str, Tensor] | None


@dataclass(frozen=True, eq=False)
class Readout:
    """Everything that a call of the network needs, in float64 on the CPU, each of t's shape.

    Args:
        point: where.
        pair: the target (p, q) of the network's output.
        c_in: factor of the network's input.
        c_noise: what the network is told of the time.
    """

    point: Point
    pair: Pair
    c_in: Tensor
    c_noise: Tensor

    def weights(self, kind: str) -> Pair:
        """Return (a, b) such that the view ``kind`` is a x + b F; DomainError where it has no finite value."""
        return view(self.pair, target(kind, self.point), self.point, f"the {kind} prediction")


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says at (x, t); each view has x's shape.

    Args:
        x: the state (B, *).
        output: the network's output F, of x's shape.
        readout: how to read it.
        variance_fraction: v of a learned variance, of x's shape, 0 for the small one and 1 for the large one; it may
            lie outside. None where the model learns none.
    """

    x: Tensor
    output: Tensor
    readout: Readout
    variance_fraction: Tensor | None = None

    def view(self, kind: str) -> Tensor:
        """Return the view ``kind`` (a key of ``readout.TARGETS``); DomainError where it is not finite."""
        a, b = self.readout.weights(kind)
        return combine((a, self.x), (b, self.output))

    @property
    def data(self) -> Tensor:
        """The posterior mean of x_0."""
        return self.view("data")

    @property
    def noise(self) -> Tensor:
        """The posterior mean of the noise z."""
        return self.view("noise")

    @property
    def score(self) -> Tensor:
        """The gradient of the log density of x_t, -noise/sigma."""
        return self.view("score")

    @property
    def v(self) -> Tensor:
        """(alpha noise - sigma data)/r."""
        return self.view("v")

    @property
    def velocity(self) -> Tensor:
        """The probability-flow velocity dx/dt = alpha' data + sigma' noise."""
        return self.view("velocity")


class Network(Protocol):
    """What a prepared model needs of a ``ScoreModel``."""

    net: Callable[..., Tensor]
    variance: str

    @property
    def dtype(self) -> torch.dtype | None:
        """The type of the network's parameters."""

    def readout(self, point: Point) -> Readout:
        """Return the scalars of a call."""

    def c_noise_for(self, c_noise: Tensor, x: Tensor) -> Tensor:
        """Move c_noise to x's device."""

    def outputs(self, x: Tensor, c_noise: Tensor, cond: Condition) -> tuple[Tensor, Tensor | None]:
        """Call the network on its scaled input."""


class PreparedModel:
    """A model at n points that are known beforehand: scalars as Python floats, c_noise on the device.

    Args:
        model: the model.
        point: n points, fields of shape (n,).
        x: a state (B, *) of the loop; only its shape, type and device are used.
        cond: conditions of the batch.
    """

    def __init__(self, model: Network, point: Point, x: Tensor, cond: Condition) -> None:
        """Compute every readout at once."""
        self.model, self.cond = model, cond
        self.readout = model.readout(point)
        # 1e-15 is rounding of alpha^2 + sigma^2 = 1; a factor that close to 1 costs a pass over x and changes nothing.
        self.c_in = [None if abs(c - 1) < 1e-15 else c for c in self.readout.c_in.expand(point.t.shape).tolist()]
        moved = model.c_noise_for(self.readout.c_noise, x)
        self.c_noise = moved.reshape(-1, 1).expand(-1, x.shape[0]).unbind(0)
        self._weights: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {}
        self.cast = model.dtype if model.dtype not in (None, x.dtype) else None

    def weights(self, kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the numbers a and b of the view ``kind`` at every point; computed once."""
        if kind not in self._weights:
            a, b = self.readout.weights(kind)
            self._weights[kind] = tuple(a.tolist()), tuple(b.tolist())
        return self._weights[kind]

    def raw(self, i: int, x: Tensor) -> Tensor:
        """Return the network's output F at point i."""
        return self.outputs(i, x)[0]

    def outputs(self, i: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return F at point i, and v where the variance is learned."""
        c_in = self.c_in[i]
        if c_in is not None:
            x = x * c_in
        if self.cast is not None:
            x = x.to(self.cast)
        return self.model.outputs(x, self.c_noise[i], self.cond)
