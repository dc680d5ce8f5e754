"""What a table must be, field by field, whether it was built in Python or read from a file.

* Times are finite and not negative; alpha >= 0 and sigma >= 0, and not both are 0; a call has sigma > 0, since nothing
  is left to denoise where sigma = 0, and most predictions have no value there.
* Weights are finite numbers, and each multiplies something that exists: a prediction since the last restart, or a draw.
* No number is larger than 1e150, whose square is still a number: the exact law squares them.
* An increment goes from a later time to an earlier one, and the square of its polynomial has the mean 1.

Whoever runs a table asks nothing again. A sound row is known by one sum; only another is searched for its fault.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from scoresde.errors.kinds import ConfigError, DomainError, show
from scoresde.errors.values import read_number
from scoresde.solvers.rows import Increment, Knot, Order, Row

__all__ = ["LARGEST", "check_head", "check_rows"]

LARGEST = 1e150


def check_head(name: object, *, start: object, end: object, prior_std: object, lift: object, order: object) -> None:
    """Check the fields of a table beside its prediction and its rows; ConfigError with the name of the field."""
    if not isinstance(name, str):
        raise _refuse("name", name, "a text", "")
    _check_numbers(lift, "lift", name, count=2)
    _check_one(prior_std, "prior_std", name, 0.0)
    _check_knot(start, "start", name)
    _check_knot(end, "end", name)
    _check_order(order, name)


def check_rows(rows: object, name: str, *, drawn: int) -> None:
    """Check the rows of the table called ``name``.

    Args:
        rows: what is checked.
        name: of the table, for the messages.
        drawn: number of draws before the first row.

    Raises:
        ConfigError: the first field that is no such thing, and why. DomainError: a weight that is not finite.
    """
    if type(rows) is not tuple:
        raise _refuse("rows", rows, "a tuple of Row", name)
    held = 0
    for i, row in enumerate(rows):
        if type(row) is not Row:
            raise _refuse(f"rows[{i}]", row, "a Row", name)
        if not _is_plain(row):
            _check_kinds(row, f"rows[{i}]", name)
        held = 1 if row.restart else held + 1
        draws = row.draws
        drawn += draws
        past = drawn + (not draws)
        longest = max(len(row.state), len(row.anchor or ())) - 1, max(len(row.noise), len(row.anchor_noise))
        if longest[0] > held or longest[1] > past:
            _check_lengths(row, f"rows[{i}]", name, held, past)
    if any(row.spread is not None for row in rows):
        for i, row in enumerate(rows):
            _check_spread(row, f"rows[{i}]", name, rows[:i])


def _is_plain(row: Row) -> bool:
    """Say at a glance whether a row's fields are of the right kinds and in range; False where it takes another look."""
    at, part = row.at, row.increment
    anchor = (1.0,) if row.anchor is None else row.anchor
    if type(at) is not Knot or not row.state or not anchor or (row.anchor is None and row.anchor_noise):
        return False
    if {type(row.state), type(anchor), type(row.noise), type(row.anchor_noise)} != {tuple}:
        return False
    numbers = (at.t, at.alpha, at.sigma, *row.state, *anchor, *row.noise, *row.anchor_noise)
    if part is not None:
        if type(part) is not Increment or type(part.shape) is not tuple:
            return False
        numbers += (part.start, part.end, 0.0 if part.power is None else part.power, *part.shape)
    # A NaN makes the sum NaN, which is no smaller than anything.
    if not (set(map(type, numbers)) == {float} and sum(map(abs, numbers)) <= LARGEST and type(row.restart) is bool):
        return False
    if not (at.t >= 0 and at.alpha >= 0 and at.sigma > 0):
        return False
    return part is None or (part.start > part.end >= 0 and _is_normal(part.shape))


@functools.lru_cache(maxsize=64)
def _is_normal(shape: tuple[float, ...]) -> bool:
    """Say whether the square of a polynomial has the mean 1 over [0, 1]."""
    mean = sum(a * b / (j + k + 1) for j, a in enumerate(shape) for k, b in enumerate(shape))
    return abs(mean - 1) <= 1e-6


def _check_kinds(row: Row, path: str, name: str) -> None:
    """Search a row for the first field of the wrong kind or out of range."""
    _check_knot(row.at, f"{path}.at", name, called=True)
    for field in ("state", "anchor", "noise", "anchor_noise"):
        weights = getattr(row, field)
        if weights is None and field == "anchor":
            continue
        if weights == () and field in ("state", "anchor"):
            cure = "(1.0,) leaves the state as it is" + ("; None follows the state" if field == "anchor" else "")
            raise _refuse(f"{path}.{field}", weights, "at least one weight", name, cure)
        _check_numbers(weights, f"{path}.{field}", name, at=row.at.t)
    if row.anchor is None and row.anchor_noise:
        raise _refuse(f"{path}.anchor_noise", row.anchor_noise, "() for an anchor that follows the state", name)
    if type(row.restart) is not bool:
        raise _refuse(f"{path}.restart", row.restart, "true or false", name)
    part = row.increment
    if part is None:
        return
    if type(part) is not Increment:
        raise _refuse(f"{path}.increment", part, "an Increment or None", name)
    if part.power is not None:
        _check_one(part.power, f"{path}.increment.power", name)
    _check_one(part.start, f"{path}.increment.start", name, 0.0)
    _check_one(part.end, f"{path}.increment.end", name, 0.0)
    if not part.start > part.end:
        raise _refuse(f"{path}.increment.end", part.end, f"earlier than its start, {part.start:g}", name)
    _check_numbers(part.shape, f"{path}.increment.shape", name)
    if not _is_normal(part.shape):
        raise _refuse(f"{path}.increment.shape", part.shape, "a polynomial whose square has the mean 1", name)


def _check_lengths(row: Row, path: str, name: str, held: int, past: int) -> None:
    """Raise at the first weights that multiply what does not exist."""
    limits = {"state": held + 1, "anchor": held + 1, "noise": past, "anchor_noise": past}
    for field, limit in limits.items():
        count = len(getattr(row, field) or ())
        if count > limit:
            raise ConfigError(
                f"{path}.{field} of the table {show(name)} weighs {count} terms, but {limit} exist",
                parameter=f"{path}.{field}",
                got=count,
                allowed=f"at most {limit}",
            )


def _check_spread(row: Row, path: str, name: str, before: Sequence[Row]) -> None:
    """Check a row's spread, and that it names no draw again whose weight is the model's to choose."""
    spread: object = row.spread
    if spread is not None:
        pair = spread if isinstance(spread, tuple) else ()
        sound = len(pair) == 2 and set(map(type, pair)) <= {float, int} and all(0 < w <= LARGEST for w in pair)
        if not sound or row.noise[:1] != pair[:1] or row.anchor is not None:
            cure = f"noise[0] is small, and the new state is the anchor; got the noise {row.noise}, anchor {row.anchor}"
            raise _refuse(f"{path}.spread", spread, "(small, large), both positive and finite", name, cure)
    for field in ("noise", "anchor_noise"):
        again = getattr(row, field)[1:]
        if any(again):
            earlier = [one for one in before if one.draws][::-1]
            if any(w and one.spread is not None for w, one in zip(again, earlier, strict=False)):
                where = f"{path}.{field}"
                raise ConfigError(
                    f"{where} of the table {show(name)} uses a draw again that an earlier row has spread",
                    parameter=where,
                )


def _check_knot(knot: object, path: str, name: str, *, called: bool = False) -> None:
    """Check a point, where a model is ``called`` or where a state lives."""
    if type(knot) is not Knot:
        raise _refuse(path, knot, "a Knot of t, alpha and sigma", name)
    for field in ("t", "alpha", "sigma"):
        _check_one(getattr(knot, field), f"{path}.{field}", name, 0.0)
    if knot.sigma == 0 and (called or knot.alpha == 0):
        raise _refuse(f"{path}.sigma", knot.sigma, "positive" if called else "positive where alpha = 0", name)


def _check_order(order: object, name: str) -> None:
    """Check declared orders: each None or a positive number."""
    if type(order) is not Order:
        raise _refuse("order", order, "an Order", name)
    for field in ("deterministic", "strong", "weak"):
        one = getattr(order, field)
        if one is not None:
            _check_one(one, f"order.{field}", name, 0.0)


def _check_numbers(numbers: object, path: str, name: str, *, count: int | None = None, at: float | None = None) -> None:
    """Check a tuple of numbers, of ``count`` where that is fixed; ``at`` is the time of the call that they follow."""
    if type(numbers) is not tuple or (count is not None and len(numbers) != count):
        raise _refuse(path, numbers, f"a tuple of {'' if count is None else f'{count} '}numbers", name)
    for k, number in enumerate(numbers):
        _check_one(number, f"{path}[{k}]", name, at=at)


def _check_one(number: object, path: str, name: str, low: float | None = None, at: float | None = None) -> None:
    """Check one number."""
    if isinstance(number, bool) or not isinstance(number, float | int):
        raise _refuse(path, number, "a number", name)
    value = read_number(number) or 0.0
    if not math.isfinite(value) and at is not None:
        raise DomainError(
            f"{path} of the table {show(name)} (t = {at:g}) is {show(number)}, which is not finite",
            parameter=path,
            got=value,
            allowed="a finite number",
            cure="the method has no such step here; move the grid's ends or take another solver",
        )
    if not abs(value) <= LARGEST or (low is not None and value < low):
        allowed = f"in [{-LARGEST if low is None else low:g}, {LARGEST:g}]"
        raise _refuse(path, number, allowed, name)


def _refuse(path: str, got: object, allowed: str, name: str, cure: str | None = None) -> ConfigError:
    """Build the error for a field of the table called ``name``."""
    return ConfigError(
        f"{path} of the table {show(name)} must be {allowed}, got {show(got)}",
        parameter=path,
        got=got,
        allowed=allowed,
        cure=cure,
    )
