"""Drift and noise of an SDE that a user wrote, looked at where they are used: once, in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from scoresde.errors.kinds import ShapeError, show

if TYPE_CHECKING:
    from scoresde.diffusions.sde import SDE

__all__ = ["drift_of", "noise_of"]


def _check_field(found: object, x: Tensor, name: str) -> Tensor:
    """Return what a ``drift`` or a diffusion gave at the states x, in x's shape; ShapeError if it has no such shape.

    Only a diffusion is broadcast.
    """
    if isinstance(found, Tensor):
        pairs = zip(reversed(found.shape), reversed(x.shape), strict=False)
        broadcasts = name != "drift" and found.ndim <= x.ndim and all(size in (1, of) for size, of in pairs)
        if broadcasts or found.shape == x.shape:
            return found.expand_as(x)
    got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"{show(found)}, which is no tensor"
    shape = f"x's shape {tuple(x.shape)}" if name == "drift" else f"a shape that broadcasts to x's {tuple(x.shape)}"
    raise ShapeError(f"{name} must have {shape}, got {got}")


def drift_of(sde: SDE, x: Tensor, t: Tensor | float) -> Tensor:
    """Return the drift at states x (B, *), of their shape; ShapeError where a user's own has another."""
    return _check_field(sde.drift(x, t), x, "drift")


def noise_of(sde: SDE, x: Tensor, t: Tensor | float) -> Tensor:
    """Return g at states x (B, *), of their shape; ShapeError where a user's own does not broadcast to it."""
    return _check_field(sde.diffusion_at(x, t), x, "diffusion_at")
