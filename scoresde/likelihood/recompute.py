"""Gradients of a long solution in memory that holds its states alone: what a call computed is computed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["recompute"]


def recompute(function: Callable[[Tensor], Tensor], x: Tensor, inputs: Sequence[Tensor] = ()) -> Tensor:
    """Return function(x), keeping nothing of it but x for the gradients with respect to x and ``inputs``.

    ``torch.utils.checkpoint`` serves a function that calls ``autograd.grad`` itself only where the gradients are
    gathered by ``backward()``; this one serves ``autograd.grad`` too. The gradients are not differentiable again.

    Args:
        function: x -> a tensor; it may read ``inputs``.
        x: its argument.
        inputs: the other tensors that take gradients.
    """
    if not torch.is_grad_enabled():
        return function(x)
    out: Tensor = _Recomputed.apply(function, x, *inputs)  # type: ignore[no-untyped-call]
    return out


class _Recomputed(torch.autograd.Function):
    """The function itself forwards; backwards it is evaluated again, with its graph."""

    @staticmethod
    def forward(ctx: Any, function: Callable[[Tensor], Tensor], x: Tensor, *inputs: Tensor) -> Tensor:  # noqa: ANN401
        ctx.function = function
        ctx.save_for_backward(x, *inputs)
        return function(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, *inputs = ctx.saved_tensors
        with torch.enable_grad():
            point = x.detach().requires_grad_(True)
            found = torch.autograd.grad(ctx.function(point), (point, *inputs), gradient, allow_unused=True)
        return None, *found
