"""A measurement seen from a model's coordinates, where its data predictions are: values, Jacobians, singular values."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.errors.kinds import ConfigError
from scoresde.models.guidance.operators import Operator
from scoresde.noise import normal, stream
from scoresde.ops import recording
from scoresde.transforms.base import Transform

__all__ = ["Linearised", "Measured"]

MOST = 4096  # coordinates up to which a matrix is written down


class Measured:
    """A measurement seen from a model's coordinates: H(z) = A(transform^{-1}(z)), and its Jacobian at a point.

    Args:
        operator: A.
        transform: the model's, or None.
        event: the event's shape.
        std: of the noise.
    """

    def __init__(self, operator: Operator, transform: Transform | None, event: tuple[int, ...], std: float) -> None:
        self.operator, self.transform, self.event, self.std = operator, transform, event, std
        self._decomposition: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, z: Tensor) -> Tensor:
        """Return H(z), flattened, (B, m)."""
        x = z if self.transform is None else self.transform.inverse(z)
        out = self.operator(x)
        return out.reshape(len(z), math.prod(out.shape[1:]))

    def at(self, z: Tensor, *, keep: bool) -> Linearised:
        """Return H and its Jacobian at z; with ``keep`` the graph to z is kept."""
        return Linearised(self, z, keep)

    def is_linear(self) -> bool:
        """Return whether H - H(0) is linear on random data."""
        draw = stream(0, "linear")
        a, b = (normal((2, *self.event), draw, dtype=torch.float64) for _ in range(2))
        zero, both = self(torch.zeros_like(a)), self(a - 2 * b)
        parts = self(a) - zero - 2 * (self(b) - zero)
        scale = float(parts.abs().max()) + float(zero.abs().max()) + 1e-300
        return float((both - zero - parts).abs().max()) <= 1e-6 * scale

    def decompose(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return U, singular values and V^T of a linear H, where ``like`` is; ConfigError for too many coordinates."""
        size = math.prod(self.event)
        if size > MOST:
            raise ConfigError(
                f"singular values of {size} coordinates are too dear (at most {MOST}); use another method, e.g. 'mmps'"
            )
        if self._decomposition is None:
            basis = torch.eye(size, dtype=torch.float64, device="cpu").reshape(size, *self.event)
            matrix = (self(basis) - self(torch.zeros_like(basis[:1]))).T
            self._decomposition = torch.linalg.svd(matrix, full_matrices=False)
        u, s, vt = (part.to(like) for part in self._decomposition)
        return u, s, vt


class Linearised:
    """H at points z (B, *event): its values, and products with its Jacobian."""

    def __init__(self, measured: Measured, z: Tensor, keep: bool) -> None:
        self.measured, self.keep = measured, keep
        with recording():
            self.point = z if keep else z.detach().requires_grad_(True)
            self.graph = measured(self.point)
        self.value = self.graph if keep else self.graph.detach()
        self._base: Tensor | None = None

    def back(self, u: Tensor) -> Tensor:
        """Return H'^T u, (B, *event), for u (B, m)."""
        (out,) = torch.autograd.grad(
            self.graph, self.point, u.to(self.graph), retain_graph=True, create_graph=self.keep
        )
        return out

    def forward(self, v: Tensor) -> Tensor:
        """Return H' v, (B, m), for v (B, *event)."""
        if self.measured.operator.linear:
            if self._base is None:
                self._base = self.measured(torch.zeros_like(self.point[:1])).detach()
            return self.measured(v) - self._base
        with recording():
            slack = torch.zeros_like(self.graph).requires_grad_(True)
            (product,) = torch.autograd.grad(self.graph, self.point, slack, create_graph=True)
            (out,) = torch.autograd.grad(product, slack, v.to(product), retain_graph=True, create_graph=self.keep)
        return out
