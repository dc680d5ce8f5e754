"""What values of JSON may be: checks of types, ranges and names, made of each other.

A check is a function (value, path) that raises where the value is not what stands there; ``record``, ``listing`` and
``mapping`` make checks of checks. The path, ``trained_sde.beta_max`` say, is in the error. Fields that a record does
not name are refused, since a later version that writes one means something by it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from scoresde.errors.kinds import CheckpointError, ConfigError, ScoreSDEError
from scoresde.errors.names import unknown
from scoresde.errors.values import LARGEST_NUMBER, LARGEST_SIZE, check_integer, check_number

__all__ = [
    "Check",
    "anything",
    "as_object",
    "at",
    "blame",
    "boolean",
    "choice",
    "digest",
    "either",
    "integer",
    "join",
    "listing",
    "mapping",
    "misfit",
    "number",
    "optional",
    "pair",
    "record",
    "text",
]

Check = Callable[[object, str], None]
LARGEST = 10**12  # count of anything
DIGEST = re.compile("[0-9a-f]{64}")
SHOWN = 60  # letters of a value in a message


@contextmanager
def blame(what: Path | str) -> Iterator[None]:
    """Raise what the package raises inside as CheckpointError, behind the name of what is at fault."""
    try:
        yield
    except CheckpointError:
        raise
    except ScoreSDEError as error:
        said = str(error)
        shown = said if len(said) <= 10 * SHOWN else f"{said[: 8 * SHOWN]} ... {said[-SHOWN:]}"
        raise CheckpointError(f"{what}: {shown}", parameter=error.parameter) from error


def misfit(path: str, allowed: str, got: object) -> ConfigError:
    """Build the error for a value that is not what stands at a path."""
    whole = repr(got)
    shown = whole if len(whole) <= SHOWN else f"{whole[:SHOWN]}..."
    return ConfigError(
        f"{path or 'it'} must be {allowed}, got {shown}",
        parameter=path,
        got=shown,
        allowed=allowed,
        cure="take another copy of the checkpoint, or update scoresde if a later one wrote it",
    )


def anything(value: object, path: str) -> None:
    """Take whatever JSON holds."""


def text(value: object, path: str) -> None:
    """Take a text."""
    if not isinstance(value, str):
        raise misfit(path, "a text", value)


def digest(value: object, path: str) -> None:
    """Take a SHA-256, as 64 digits."""
    if not isinstance(value, str) or not DIGEST.fullmatch(value):
        raise misfit(path, "a SHA-256 of 64 digits", value)


def boolean(value: object, path: str) -> None:
    """Take true or false."""
    if not isinstance(value, bool):
        raise misfit(path, "true or false", value)


def integer(low: int = 0, high: int = LARGEST) -> Check:
    """Return the check of a whole number in [low, high]."""

    def check(value: object, path: str) -> None:
        if type(value) is not int:
            raise misfit(path, "a whole number", value)
        check_integer(value, path, low, high)

    return check


def number(
    low: float | None = None, high: float | None = None, *, open_low: bool = False, largest: float = LARGEST_NUMBER
) -> Check:
    """Return the check of a finite number in [low, high], or (low, high], of a size of at most ``largest``."""

    def check(value: object, path: str) -> None:
        # Of whole numbers those that a float holds: what comes after takes no longer ones.
        if not isinstance(value, int | float) or (type(value) is int and abs(value) > 2**53):
            raise misfit(path, "a number", value)
        check_number(value, path, low, high, open_low=open_low, largest=largest)

    return check


def choice(names: Iterable[str]) -> Check:
    """Return the check of one of some names."""
    known = tuple(names)

    def check(value: object, path: str) -> None:
        text(value, path)
        if value not in known:
            raise unknown(path, value, known)

    return check


def optional(inner: Check) -> Check:
    """Return the check of null or what ``inner`` takes."""

    def check(value: object, path: str) -> None:
        if value is not None:
            inner(value, path)

    return check


def listing(inner: Check, least: int = 0, most: int | None = None) -> Check:
    """Return the check of a list of ``least`` to ``most`` values, each as ``inner`` has it."""

    def check(value: object, path: str) -> None:
        if not isinstance(value, list):
            raise misfit(path, "a list", value)
        check_integer(len(value), f"the length of {path}", least, LARGEST_SIZE if most is None else most)
        for k, one in enumerate(value):
            inner(one, f"{path}[{k}]")

    return check


def mapping(inner: Check) -> Check:
    """Return the check of an object of any keys, whose values are as ``inner`` has them."""

    def check(value: object, path: str) -> None:
        for key, one in as_object(value, path).items():
            inner(one, join(path, key))

    return check


def record(needed: Mapping[str, Check], other: Mapping[str, Check] | None = None, *, more: bool = False) -> Check:
    """Return the check of an object with the fields ``needed``, perhaps those of ``other``, and any where ``more``."""
    known = {**needed, **(other or {})}

    def check(value: object, path: str) -> None:
        found = as_object(value, path)
        for name in needed:
            if name not in found:
                raise misfit(join(path, name), "there", None)
        for name, one in found.items():
            if name in known:
                known[name](one, join(path, name))
            elif not more:
                raise unknown(f"field {path}".strip(), name, known, parameter=join(path, name))

    return check


def either(**kinds: Check) -> Check:
    """Return the check of a value by its kind in JSON: ``either(list=..., dict=..., int=...)``."""

    def check(value: object, path: str) -> None:
        kind = type(value).__name__
        if kind not in kinds:
            raise misfit(path, " or ".join(f"of the kind {name}" for name in kinds), value)
        kinds[kind](value, path)

    return check


def as_object(value: object, path: str) -> dict[str, object]:
    """Return a value if it is an object."""
    if not isinstance(value, dict):
        raise misfit(path, "an object", value)
    return value


def join(path: str, key: str) -> str:
    """Return the path of an entry of an object."""
    shown = key if key.isidentifier() else repr(key)
    return f"{path}.{shown}" if path else shown


def pair(inner: Check) -> Check:
    """Return the check of a list of two values."""
    return listing(inner, 2, 2)


@contextmanager
def at(path: str) -> Iterator[None]:
    """Put the path before what the package says of a thing that is made of a document."""
    try:
        yield
    except ScoreSDEError as error:
        raise ConfigError(f"{path}: {error}", parameter=path) from error
