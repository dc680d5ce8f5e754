"""What a table is made of: points as plain numbers, pieces of the driving path, declared orders, and rows.

``solvers/schema.py`` holds them to what an executor may assume, ``solvers/documents.py`` rebuilds them from JSON.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from scoresde.diffusions.point import Point

__all__ = ["CLEAN", "Increment", "Knot", "Order", "Row", "Weights"]

Weights = tuple[float, ...]


@dataclass(frozen=True)
class Knot:
    """A point on a diffusion as plain numbers: time, signal scale, noise standard deviation."""

    t: float
    alpha: float
    sigma: float

    @property
    def log_snr(self) -> float:
        """log(alpha^2/sigma^2), infinite where one of them is 0."""
        if self.sigma == 0:
            return math.inf
        return -math.inf if self.alpha == 0 else 2 * (math.log(self.alpha) - math.log(self.sigma))

    def point(self) -> Point:
        """Return the same as a Point with fields of shape ()."""
        numbers = (self.t, self.alpha, self.sigma, self.log_snr)
        t, alpha, sigma, log_snr = (torch.tensor(c, dtype=torch.float64, device="cpu") for c in numbers)
        return Point(t, alpha, sigma, log_snr)

    @classmethod
    def of(cls, point: Point) -> list[Knot]:
        """Turn points with a vector of times into knots."""
        columns = (c.reshape(-1).tolist() for c in (point.t, point.alpha, point.sigma))
        return [cls(*numbers) for numbers in zip(*columns, strict=True)]


CLEAN = Knot(0.0, 1.0, 0.0)
"""Clean data, the end of ``final="denoise"``."""


@dataclass(frozen=True)
class Increment:
    """Which part of the driving Brownian path a fresh draw is: the integral of q k dw over [end, start], normalised.

    Args:
        start: time at which the interval starts (the later one).
        end: time at which it ends.
        power: the clock, whose change is the integral of k^2 dt: nu^power with nu = sigma/alpha, log(nu) where 0, or t
            where None.
        shape: coefficients of the polynomial q, constant first, in the share of the clock passed since ``start``; its
            square has the mean 1.
    """

    start: float
    end: float
    power: float | None = None
    shape: Weights = (1.0,)


@dataclass(frozen=True)
class Order:
    """Declared orders of convergence; None where the notion does not apply."""

    deterministic: float | None = None
    strong: float | None = None
    weak: float | None = None

    def __str__(self) -> str:
        """Name the orders that are declared, e.g. "order 1 strong, 2 weak"; nothing where there is none."""
        named = ((self.deterministic, ""), (self.strong, " strong"), (self.weak, " weak"))
        declared = ", ".join(f"{order:g}{kind}" for order, kind in named if order is not None)
        return declared and f"order {declared}"


@dataclass(frozen=True)
class Row:
    """One call of the model and what follows it; ``tableau`` says how it is executed.

    Args:
        at: where the model sees the current state.
        state: weights of [anchor, predictions newest first] in the next state.
        anchor: the same for the next anchor; None where the next state becomes the anchor.
        noise: weights of [fresh draw, earlier draws newest first] in the next state.
        anchor_noise: the same for the next anchor.
        increment: what the fresh draw is on the driving path.
        restart: forget the earlier predictions before this call, as after a jump upwards.
        spread: the smallest and the largest standard deviation of the fresh draw, between which a model with a learned
            variance chooses by its v, as small^(1 - v) large^v for each coordinate; both are positive and noise[0] is
            the small one. None where the draw's weight is noise[0] itself.
    """

    at: Knot
    state: Weights
    anchor: Weights | None = None
    noise: Weights = ()
    anchor_noise: Weights = ()
    increment: Increment | None = None
    restart: bool = False
    spread: tuple[float, float] | None = None

    @property
    def draws(self) -> bool:
        """Whether the row takes a fresh draw."""
        return bool((self.noise and self.noise[0]) or (self.anchor_noise and self.anchor_noise[0]))
