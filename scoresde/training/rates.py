r"""The learning rate of a training: a linear rise over the warm-up, then a fall along a curve f with f(0) = 1.

With the peak p, r steps of warm-up and n steps in all, step k = 0, 1, ... has the rate p (k + 1)/(r + 1) for k < r and
p f((k - r)/(n - r)) from there on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from scoresde.errors.kinds import ConfigError
from scoresde.errors.names import check_choice
from scoresde.errors.values import check_number, keep_integer
from scoresde.training.names import name_function

__all__ = ["DECAYS", "DecayName", "LearningRate", "read_rate"]

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
        check_choice("decay", self.decay, DECAYS)

    def __call__(self, step: int) -> float:
        """Return the rate of a step."""
        rise = min(1000, self.steps // 20) if self.warmup is None else self.warmup
        if step < rise:
            return self.peak * ((step + 1) / (rise + 1))
        return self.peak * DECAYS[self.decay]((step - rise) / (self.steps - rise))


def read_rate(
    learning_rate: float | Callable[[int], float] | None,
    warmup: int | None,
    decay: DecayName | None,
    *,
    steps: int,
    own: bool,
) -> tuple[Callable[[int], float], dict[str, object]]:
    """Return the rate of each step, and what names it in a run.

    Args:
        learning_rate: a number, None for the usual one, or a function of the step, which leaves nothing to the others.
        warmup: see ``LearningRate``.
        decay: a key of ``DECAYS``; None for "cosine".
        steps: in all.
        own: whether the optimiser has rates of its own, of which this is then a share.
    """
    if callable(learning_rate):
        if warmup is not None or decay is not None:
            raise ConfigError(
                "warmup= and decay= shape a rate that is a number; a function has its own, leave them out"
            )
        named = f"your own: {name_function(learning_rate)}"
        return learning_rate, {"learning_rate": named, "warmup": None, "decay": None, "steps": None}
    peak = learning_rate if learning_rate is not None else 1.0 if own else 1e-3
    rate = LearningRate(peak, warmup, steps, "cosine" if decay is None else decay)
    options: dict[str, object] = {"learning_rate": rate.peak, "warmup": rate.warmup, "decay": rate.decay}
    # Where no rate depends on how many steps there are, a longer run makes the same ones.
    options["steps"] = None if rate.decay == "constant" and rate.warmup is not None else steps
    return rate, options
