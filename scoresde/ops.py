"""Operations that every layer shares: broadcasting of coefficients and derivatives in time.

A coefficient c has shape () or (B,); a sample x has shape (B, *). ``expand`` is the only place in the package where
dimensions are added so that c multiplies x.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.errors import ShapeError

__all__ = ["combine", "expand", "time_derivative", "working_dtype"]


def expand(c: Tensor, x: Tensor) -> Tensor:
    """Cast ``c`` of shape () or (B,) to x's dtype and device and give it trailing dimensions to multiply x of (B, *).

    Raises ShapeError where c has another shape.
    """
    if c.ndim == 0:
        return c.to(x)
    if c.ndim != 1 or c.shape[0] != x.shape[0]:
        raise ShapeError(
            f"t must have shape () or ({x.shape[0]},) for x of shape {tuple(x.shape)}, got {tuple(c.shape)}"
        )
    return c.to(x).reshape(-1, *(1,) * (x.ndim - 1))


def combine(*terms: tuple[Tensor, Tensor]) -> Tensor:
    """Return the sum of c x over the terms (c, x), c of shape () or (B,) and x of shape (B, *).

    Computed in at least float32 and cast last to the type of the first x, so that a half type costs one rounding.
    """
    first = terms[0][1]
    wide = torch.promote_types(first.dtype, torch.float32)
    parts = [expand(c, x) * x for c, x in ((c, x.to(wide)) for c, x in terms)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total.to(first.dtype)


def working_dtype(device: torch.device) -> torch.dtype:
    """Return the type in which schedules are evaluated: float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def time_derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """Return d function/dt at t, elementwise, by automatic differentiation.

    The result is differentiable in t and in whatever parameters the function holds; it needs no grad mode.
    """
    # Backwards, since torch's forward mode compiles decompositions at its first use, with a deprecation warning.
    derivative: Tensor = torch.func.grad(lambda s: function(s).sum())(t)
    return derivative
