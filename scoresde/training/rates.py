r"""The learning rate of a training: a linear rise over the warm-up, then a fall along a curve f with f(0) = 1.

With the peak p, r steps of warm-up and n steps in all, step k = 0, 1, ... has the rate p (k + 1)/(r + 1) for k < r and
p f((k - r)/(n - r)) from there on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from scoresde.errors import check_number, keep_integer, unknown

__all__ = ["DECAYS", "DecayName", "LearningRate"]

DecayName = Literal["cosine", "linear", "constant"]


def _fall_as_cosine(u: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * u))


def _fall_linearly(u: float) -> float:
    return 1 - u


def _stay(u: float) -> float:
    return 1.0


DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": _fall_as_cosine,
    "linear": _fall_linearly,
    "constant": _stay,
}


@dataclass(frozen=True)
class LearningRate:
    """The rate of each step; a call takes the step k.

    Args:
        peak: the rate after the warm-up.
        warmup: steps of linear rise, at most ``steps``; None for a twentieth of them, at most 1000.
        steps: steps in all.
        decay: a key of ``DECAYS``.

    Raises:
        DTypeError, DomainError, ConfigError: a peak that is not positive, a warm-up that is too long, an unknown decay.
    """

    peak: float
    warmup: int | None
    steps: int
    decay: str

    def __post_init__(self) -> None:
        peak = check_number(self.peak, "learning_rate", 0.0, open_low=True)
        object.__setattr__(self, "peak", peak)
        keep_integer(self, "steps")
        if self.warmup is not None:
            keep_integer(self, "warmup", 0, self.steps)
        if self.decay not in DECAYS:
            raise unknown("decay", self.decay, DECAYS)

    def __call__(self, step: int) -> float:
        """Return the rate of a step."""
        rise = min(1000, self.steps // 20) if self.warmup is None else self.warmup
        if step < rise:
            return self.peak * ((step + 1) / (rise + 1))
        return self.peak * DECAYS[self.decay]((step - rise) / (self.steps - rise))
