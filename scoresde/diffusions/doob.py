r"""Doob's h-transform: an SDE that is told where it ends.

Let h(x, t) be the probability, or its density, that a path of dx_i = f_i dt + g_i dw_i from x at t is in a set, or at a
point, at a later time T. h obeys the backward equation dh/dt + f grad h + 1/2 sum_i g_i^2 d_i^2 h = 0, and the paths
that end there are paths of

    dx_i = [f_i + g_i^2 d_i log h] dt + g_i dw_i

(Doob 1957, "Conditional Brownian motion and the boundary limits of harmonic functions"; Rogers and Williams 2000,
"Diffusions, Markov processes and martingales", IV.39): the density of a path is multiplied by h(x_t, t)/h(x_0, 0), a
martingale. A Gaussian diffusion has h in closed form, since x_T | x_t ~ N(a x_t, b^2):

    a point y                           log h = -|y - a x|^2/(2 b^2) + const,    g^2 grad log h = (g/b)^2 a (y - a x)
    a box, low_i <= x_i <= high_i       log h = sum_i log[Phi((high_i - a x_i)/b) - Phi((low_i - a x_i)/b)]

The first is the Brownian bridge where a = 1. A half-space is a box with an infinite side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from scoresde.diffusions.sde import SDE, GaussianSDE
from scoresde.errors.kinds import ConfigError, DomainError, DTypeError, ShapeError, show
from scoresde.errors.tensors import check_floating, check_numbers
from scoresde.errors.values import check_callable, check_number
from scoresde.ops import expand, flat, recording

__all__ = ["ConditionedSDE"]

LogProbability = Callable[[Tensor, Tensor], Tensor]
UNSAID = math.nan
FAR = 1e6  # standard deviations beyond which a side of a box is as far as infinity


@dataclass(frozen=True, eq=False)
class ConditionedSDE(SDE):
    """Doob's h-transform of an SDE: its paths that end at a point or in a set; an SDE again, for ``bridge.simulate``.

    ``ConditionedSDE.to_point(sde, y)`` and ``.to_box(sde, low, high)`` are exact for a Gaussian SDE; for any other give
    ``log_h`` yourself. At t_max, where it ends, the drift is the forward one: an Euler step asks for it before.

    Args:
        forward: any SDE.
        log_h: (x, t) -> log h of shape (B,), up to a constant, differentiable in x; t is a float64 CPU tensor of shape
            () or (B,).
        t_min: by default that of ``forward``.
        t_max: the time of the end, by default that of ``forward``.

    Raises:
        DTypeError: an SDE or a function that is none. ShapeError: when asked, a log_h that is not of shape (B,).
    """

    forward: SDE
    log_h: LogProbability = field(repr=False)
    t_min: float = field(default=UNSAID, kw_only=True)
    t_max: float = field(default=UNSAID, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.forward, SDE):
            raise DTypeError(f"forward must be an SDE, e.g. VPSDE(), got {show(self.forward)}")
        check_callable(self.log_h, "log_h", "(x, t) -> log h, (B,)", optional=False)
        for name in ("t_min", "t_max"):
            if getattr(self, name) is UNSAID:
                object.__setattr__(self, name, getattr(self.forward, name))
        super().__post_init__()

    @classmethod
    def to_point(cls, sde: GaussianSDE, point: Tensor, *, at: float | None = None) -> Self:
        """Return the SDE whose paths are at ``point`` at the time ``at``, by default t_max: a Gaussian bridge.

        Args:
            sde: a Gaussian SDE.
            point: one event, or one for each sample, (B, *).
            at: in (t_min, t_max].

        Raises:
            DTypeError, ShapeError, DomainError, ConfigError: bad arguments, an SDE without a closed transition.
        """
        end, (y,) = _read(sde, at, point=point)

        def log_h(x: Tensor, t: Tensor) -> Tensor:
            a, b = (expand(c, x) for c in sde.transition_weights(t, end))
            rest = _like(y, x) - a * x
            return flat(torch.where(b > 0, -0.5 * (rest / b.clamp_min(1e-300)).square(), 0.0 * x)).sum(1)

        return cls(sde, log_h, t_min=sde.t_min, t_max=end)

    @classmethod
    def to_box(cls, sde: GaussianSDE, low: Tensor | float, high: Tensor | float, *, at: float | None = None) -> Self:
        """Return the SDE whose paths are at the time ``at`` in the box low <= x <= high, coordinate by coordinate.

        Args:
            sde: a Gaussian SDE.
            low: a number or an event of numbers, -inf for no side.
            high: likewise, +inf for no side.
            at: in (t_min, t_max], by default t_max.

        Raises:
            DTypeError, ShapeError, DomainError, ConfigError: bad arguments, an SDE without a closed transition.
        """
        end, (below, above) = _read(sde, at, low=low, high=high)
        if not bool((below < above).all()):
            raise DomainError("low must be below high in every coordinate; swap them, or use to_point for a point")

        def log_h(x: Tensor, t: Tensor) -> Tensor:
            a, b = (expand(c, x) for c in sde.transition_weights(t, end))
            sides = ((_like(side, x) - a * x) / b.clamp_min(1e-300) for side in (below, above))
            u, v = (side.clamp(-FAR, FAR) for side in sides)
            return flat(torch.where(b > 0, _log_between(u, v), 0.0 * x)).sum(1)

        return cls(sde, log_h, t_min=sde.t_min, t_max=end)

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return f + g^2 grad log h, of x's shape; it has a graph where x requires a gradient. log h is in float64."""
        time = self.check_time(t, check_floating(x))
        keep = torch.is_grad_enabled() and x.requires_grad
        with recording():
            point = x.double() if keep else x.detach().double().requires_grad_(True)
            log_h: object = self.log_h(point, time)
            if not isinstance(log_h, Tensor) or log_h.shape != x.shape[:1]:
                got = tuple(log_h.shape) if isinstance(log_h, Tensor) else type(log_h).__name__
                raise ShapeError(f"log_h must return a tensor of shape ({len(x)},), got {got}")
            (slope,) = torch.autograd.grad(log_h.sum(), point, create_graph=keep)
        return self.forward.drift(x, time) + self.forward.diffusion_at(x, time).square() * slope.to(x.dtype)

    def diffusion(self, t: Tensor | float) -> Tensor:
        """Return the forward SDE's g(t)."""
        return self.forward.diffusion(t)

    def diffusion_at(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return the forward SDE's g(x, t)."""
        return self.forward.diffusion_at(x, t)

    def diffusion_divergence(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return the forward SDE's d g_i^2/dx_i."""
        return self.forward.diffusion_divergence(x, t)

    @property
    def is_additive(self) -> bool:
        """Whether the forward SDE's noise is."""
        return self.forward.is_additive


def _read(sde: object, at: float | None, **ends: Tensor | float) -> tuple[float, list[Tensor]]:
    """Return the time of the end and where it is, in float64."""
    if not isinstance(sde, GaussianSDE):
        cure = "give log_h= of your own, ConditionedSDE(sde, log_h)"
        raise ConfigError(f"the transitions of {show(sde)} have no closed form; {cure}")
    end = sde.t_max if at is None else check_number(at, "at", sde.t_min, sde.t_max, open_low=True)
    read = [check_numbers(value, name) for name, value in ends.items()]
    for name, value in zip(ends, read, strict=True):
        if bool(torch.isnan(value).any()) or (name == "point" and not bool(torch.isfinite(value).all())):
            allowed = "finite" if name == "point" else "numbers or infinite"
            raise DomainError(f"{name} must be {allowed}, got {show(value)}")
    return end, read


def _like(value: Tensor, x: Tensor) -> Tensor:
    """Return an end, of an event or of each sample, for states x (B, *)."""
    if value.shape not in (torch.Size(()), x.shape[1:], x.shape):
        raise ShapeError(
            f"the end must have the event {tuple(x.shape[1:])} of the states, or be {tuple(x.shape)}, got "
            f"{tuple(value.shape)}"
        )
    return value.to(x)


def _log_between(u: Tensor, v: Tensor) -> Tensor:
    """Return log(Phi(v) - Phi(u)) for u < v, where neither cancels: in the tail on the side of which both are."""
    flip = u + v > 0
    low, high = torch.where(flip, -v, u), torch.where(flip, -u, v)
    top: Tensor = torch.special.log_ndtr(high)
    gap = torch.special.log_ndtr(low) - top
    # log(1 - e^gap) for gap < 0.
    near = gap > -math.log(2)
    small, large = torch.where(near, gap, -1.0), torch.where(near, -1.0, gap)
    return top + torch.where(near, (-torch.expm1(small)).log(), torch.log1p(-large.exp()))
