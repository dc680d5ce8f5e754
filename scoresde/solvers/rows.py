"""What a table is made of: points as plain numbers, pieces of the driving path, declared orders, and rows.

``check_rows`` holds a list of rows to what an executor may assume, ``read_row`` rebuilds one from JSON.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from scoresde.diffusions.point import Point
from scoresde.errors import ConfigError, DomainError, DTypeError

__all__ = ["CLEAN", "Increment", "Knot", "Order", "Row", "Weights", "check_rows", "read_row"]

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
        t, alpha, sigma, log_snr = (torch.tensor(c, dtype=torch.float64) for c in numbers)
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


def check_rows(rows: Sequence[Row], name: str, *, drawn: int) -> None:
    """Check that every weight of the table called ``name`` is finite and multiplies something that exists.

    Args:
        rows: what is checked.
        name: of the table, for the messages.
        drawn: number of draws before the first row.

    Raises:
        ConfigError, DTypeError, DomainError: the first row that cannot run, and why.
    """
    held = 0
    for i, row in enumerate(rows):
        held = 1 if row.restart else held + 1
        draws = row.draws
        drawn += draws
        past = drawn + (not draws)
        anchor = row.anchor or ()
        # A sum is finite only where every term is: one look at a sound row, which nearly every row is.
        try:
            total = sum((row.at.t, row.at.alpha, row.at.sigma, *row.state, *anchor, *row.noise, *row.anchor_noise))
        except TypeError as error:
            raise DTypeError(f"row {i} of {name!r} holds something that is no number: {row}") from error
        longest = max(len(row.state), len(anchor)) - 1, max(len(row.noise), len(row.anchor_noise))
        if not row.state or not math.isfinite(total) or longest[0] > held or longest[1] > past:
            _check_weights(row, f"row {i} of {name!r}", held, past)
        if row.anchor_noise and row.anchor is None:
            raise ConfigError(f"row {i} of {name!r} gives noise to an anchor that follows the state")
    if any(row.spread is not None for row in rows):
        for i, row in enumerate(rows):
            _check_spread(row, f"row {i} of {name!r}", rows[:i])


def _check_weights(row: Row, where: str, held: int, past: int) -> None:
    """Check a row against the numbers of predictions and of draws that there are."""
    if not row.state:
        raise ConfigError(f"{where} has no weights of the state; (1.0,) leaves it as it is")
    if not all(map(math.isfinite, (row.at.t, row.at.alpha, row.at.sigma))):
        raise DomainError(f"{where} is called at {row.at}, which is not finite")
    for kind, weights, limit in (
        ("state", row.state, held + 1),
        ("anchor", row.anchor or (), held + 1),
        ("noise", row.noise, past),
        ("anchor_noise", row.anchor_noise, past),
    ):
        if not all(map(math.isfinite, weights)):
            raise DomainError(
                f"{where} (t = {row.at.t:g}) has {kind} weights {weights}, not all finite: "
                "the method has no such step here; move the grid's ends or take another solver"
            )
        if len(weights) > limit:
            raise ConfigError(f"{where} weighs {len(weights)} {kind} terms, but {limit} exist")


def _check_spread(row: Row, where: str, before: Sequence[Row]) -> None:
    """Check a row's spread, and that it names no draw again whose weight is the model's to choose."""
    low_high = row.spread or (1.0, 1.0)
    sound = all(math.isfinite(w) and w > 0 for w in low_high) and row.noise[:1] == low_high[:1]
    if row.spread is not None and (not sound or row.anchor is not None):
        raise ConfigError(
            f"{where} has the spread {row.spread}, the noise weights {row.noise} and the anchor {row.anchor}; a spread "
            "is (small, large), both positive and finite, noise[0] is small, and the new state is the anchor"
        )
    for again in (row.noise[1:], row.anchor_noise[1:]):
        if any(again):
            earlier = [one for one in before if one.draws][::-1]
            if any(w and one.spread is not None for w, one in zip(again, earlier, strict=False)):
                raise ConfigError(f"{where} uses a draw again that an earlier row has spread")


def read_row(entry: dict[str, object]) -> Row:
    """Rebuild a row from JSON, whose lists were tuples; TypeError where it holds something of another kind."""
    got = dict(entry)
    at, increment = got.pop("at"), got.pop("increment")
    if not isinstance(at, dict) or not (increment is None or isinstance(increment, dict)):
        raise TypeError("a row's point is not an object")
    tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in got.items()}
    part = None
    if increment is not None:
        part = Increment(**{**increment, "shape": tuple(increment.get("shape", (1.0,)))})
    return Row(at=Knot(**at), increment=part, **tuples)  # type: ignore[arg-type]
