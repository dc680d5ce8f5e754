"""Functions of time: which times they take, and in which type they are computed.

A curve is defined on [0, t_max], where ``GaussianSDE.time`` finds its times; ``check_time`` asks for [t_min, t_max],
where a score is learned. Looking costs microseconds, and on a device a wait: a curve that calls others looks once, and
``GaussianSDE.at``, which the loops use, not at all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from scoresde.errors.kinds import DomainError, DTypeError, show
from scoresde.errors.tensors import check_dense, check_values
from scoresde.errors.values import read_number
from scoresde.ops import working_dtype

__all__ = ["CURVES", "ROOM", "check_domain", "curve", "in_float64", "inside", "read_times", "unchecked"]

CURVES = ("alpha", "sigma", "log_snr", "alpha_rate", "sigma_rate", "diffusion", "drift_rate", "prior_std")
ROOM = 1e-6  # a float32 time may lie half a unit in its last place outside the float64 interval
Method = Callable[[Any, Tensor | float], Tensor]
T = TypeVar("T")

_unchecked: ContextVar[bool] = ContextVar("unchecked", default=False)


class _Timed(Protocol):
    t_max: float


def unchecked(compute: Callable[[], T]) -> T:
    """Return compute(), in which curves take any time: the caller knows where it asks."""
    if torch.compiler.is_compiling():
        return compute()
    token = _unchecked.set(True)
    try:
        return compute()
    finally:
        _unchecked.reset(token)


def inside(function: Method) -> Method:
    """Let ``function(self, t)`` refuse times outside [0, t_max]: DomainError."""

    @functools.wraps(function)
    def wrapped(self: _Timed, t: Tensor | float) -> Tensor:
        # A traced graph (torch.export, torch.compile) holds no values to look at.
        if torch.compiler.is_compiling() or _unchecked.get():
            return function(self, t)
        check_domain(t, self.t_max)
        times = read_times(t)  # so that a curve of one's own may use torch's functions alone
        return unchecked(lambda: function(self, times))

    wrapped.inside = True  # type: ignore[attr-defined]
    return wrapped


def read_times(t: object, name: str = "t") -> Tensor:
    """Return a tensor of real numbers as it is, and a number as a tensor in float64 on the CPU; DTypeError otherwise.

    Raises ShapeError, ConfigError, too, for a tensor without values that one could compute with.
    """
    if not isinstance(t, Tensor):
        number = read_number(t)
        if number is None:
            raise DTypeError(f"{name} must be a number or a floating tensor, got {show(t)} of type {type(t).__name__}")
        return torch.tensor(number, dtype=torch.float64, device="cpu")
    check_dense(t, name)
    check_values(t, name)
    if t.is_complex():
        raise DTypeError(f"{name} must be real, got {t.dtype}")
    return t


def check_domain(t: Tensor | float, t_max: float) -> None:
    """Raise DomainError where a time lies outside [0, t_max] or is NaN."""
    time = read_times(t).detach()
    if not time.is_floating_point():
        return  # for the function to refuse
    good = (time >= 0.0) & (time <= t_max * (1 + ROOM))
    try:
        fine = bool(good.all())
    except RuntimeError:  # under torch.func.vmap there are no values to look at
        return
    if not fine:
        bad = float(time[~good].reshape(-1)[0]) if time.ndim else float(time)
        allowed = f"in [0, {t_max:g}]"
        raise DomainError(f"t must lie {allowed}, got {bad:g}", parameter="t", got=bad, allowed=allowed)


def in_float64(function: Callable[[Any, Tensor], Tensor]) -> Method:
    """Let ``function(self, t)`` take numbers and tensors of any floating type: float64 inside, t's own type outside."""

    @functools.wraps(function)
    def wrapped(self: object, t: Tensor | float) -> Tensor:
        if not isinstance(t, Tensor):
            return function(self, torch.tensor(float(t), dtype=torch.float64, device="cpu"))
        if not t.dtype.is_floating_point:
            raise DTypeError(f"a continuous time must be floating, got {t.dtype}; an index i of n is (i + 1)/n")
        work = working_dtype(t.device)
        return function(self, t) if t.dtype == work else function(self, t.to(work)).to(t.dtype)

    return wrapped


def curve(function: Callable[[Any, Tensor], Tensor]) -> Method:
    """Let ``function(self, t)`` take times in [0, t_max] of any floating type; see ``inside`` and ``in_float64``."""
    return inside(in_float64(function))
