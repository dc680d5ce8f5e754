"""Checks of numbers, flags, texts and sequences."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from scoresde.errors.kinds import DomainError, DTypeError, read_integer, show

__all__ = [
    "LARGEST_NUMBER",
    "LARGEST_SIZE",
    "check_callable",
    "check_dtype",
    "check_flag",
    "check_instance",
    "check_integer",
    "check_mapping",
    "check_number",
    "check_path",
    "check_sequence",
    "check_sizes",
    "check_text",
    "check_value",
    "keep_integer",
    "keep_number",
    "misfit",
    "read_number",
]

LARGEST_NUMBER = 1e150  # whose square, and the square of whose reciprocal, are still numbers of float64
LARGEST_SIZE = 2**31 - 1
T = TypeVar("T")


def check_integer(value: object, name: str, minimum: int = 0, maximum: int = LARGEST_SIZE) -> int:
    """Return ``value`` as an int in [minimum, maximum]; DTypeError if it is no whole number, DomainError outside.

    ``read_integer`` says what is one. A size or a count is at most 2^31 - 1, unless its parameter states another limit.
    """
    number = read_integer(value)
    if number is None:
        raise misfit(name, value, "an integer")
    if number < minimum or number > maximum:
        bound = f"at most {maximum}" if number > maximum else f"at least {minimum}"
        # A limit that is far from any use is said to those who pass it.
        allowed = bound if 10**6 <= maximum <= LARGEST_SIZE else f"in [{minimum}, {maximum}]"
        raise DomainError(f"{name} must be {allowed}, got {show(number)}", parameter=name, got=number, allowed=allowed)
    return number


def keep_integer(owner: object, name: str, minimum: int = 0, maximum: int = LARGEST_SIZE) -> None:
    """Check the integer of this name of a frozen dataclass as ``check_integer`` does, and keep it as an int."""
    object.__setattr__(owner, name, check_integer(getattr(owner, name), name, minimum, maximum))


def check_number(
    value: object,
    name: str,
    low: float | None = None,
    high: float | None = None,
    *,
    open_low: bool = False,
    open_high: bool = False,
    largest: float = LARGEST_NUMBER,
) -> float:
    """Return ``value`` as a finite float in the stated interval, else raise DTypeError or DomainError.

    A number is Python's, NumPy's, or a real tensor or array without dimensions. Its size is at most ``largest``,
    whatever the interval, and one that must be positive is at least the reciprocal: formulas square both.
    """
    found = read_number(value)
    if found is None:
        raise misfit(name, value, "a number")
    number = found
    below = low is not None and (number <= low if open_low else number < low)
    above = high is not None and (number >= high if open_high else number > high)
    extreme = abs(number) > largest or (open_low and low == 0 and 0 < number < 1 / largest)
    if extreme and math.isfinite(number) and not (below or above):
        allowed = f"of a size between {1 / largest:g} and {largest:g}"
        raise DomainError(f"{name} must be {allowed}, got {show(number)}", parameter=name, got=number, allowed=allowed)
    if not math.isfinite(number) or below or above:
        left = "(-inf" if low is None else f"{'(' if open_low else '['}{low:g}"
        right = "inf)" if high is None else f"{high:g}{')' if open_high else ']'}"
        allowed = f"in {left}, {right}"
        given = show(value if isinstance(value, int) else number)
        raise DomainError(f"{name} must lie {allowed}, got {given}", parameter=name, got=number, allowed=allowed)
    return number


def check_value(value: object, name: str) -> float:
    """Return what a function called ``name`` returned as a float, perhaps NaN; DTypeError where it is no number."""
    found = read_number(value)
    if found is None:
        raise DTypeError(f"{name} must return a number, got {show(value)}", parameter=name, got=value)
    return found


def keep_number(
    owner: object,
    name: str,
    low: float | None = None,
    high: float | None = None,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Check the number of this name of a frozen dataclass as ``check_number`` does, and keep it as one of Python's."""
    given = getattr(owner, name)
    number = check_number(given, name, low, high, open_low=open_low, open_high=open_high)
    whole = read_integer(given)
    # Of whole numbers those that a float holds: a tensor takes no longer ones.
    object.__setattr__(owner, name, number if whole is None or abs(whole) > 2**53 else whole)


def read_number(value: object) -> float | None:
    """Return a real number of any make as a float; None for anything else, booleans among it."""
    if isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool"):
        return None
    if not isinstance(value, numbers.Real) and getattr(value, "shape", None) != ():
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):  # complex, words
        return None
    except OverflowError:  # 10**400
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]


def misfit(name: str, got: object, allowed: str) -> DTypeError:
    """Build the error for a value of the wrong type."""
    return DTypeError(
        f"{name} must be {allowed}, got {show(got)} of type {type(got).__name__}",
        parameter=name,
        got=got,
        allowed=allowed,
    )


def check_flag(value: object, name: str) -> bool:
    """Return ``value`` as a bool: True, False, 1 or 0 of Python's or NumPy's; DTypeError otherwise."""
    if not isinstance(value, bool | int | np.bool_) or value not in (0, 1):
        raise misfit(name, value, "True or False")
    return bool(value)


def check_dtype(dtype: object) -> torch.dtype:
    """Return a real floating type of at least 16 bits; DTypeError for anything else."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or dtype.itemsize < 2:
        raise DTypeError(
            f"dtype must be a real floating type of torch, e.g. torch.float32, got {show(dtype)}",
            parameter="dtype",
            got=dtype,
        )
    return dtype


def check_callable(value: object, name: str, example: str, *, optional: bool = True) -> None:
    """Raise DTypeError unless ``value`` is a function, or None where it is ``optional``; ``example`` says of what."""
    if not ((value is None and optional) or (callable(value) and not isinstance(value, type))):
        raise misfit(name, value, f"a function {example}")


def check_instance(value: object, kind: type[T], name: str, what: str) -> T:
    """Return ``value`` if it is a ``kind``; DTypeError otherwise, which says ``what`` it must be."""
    if not isinstance(value, kind):
        raise misfit(name, value, what)
    return value


def check_text(value: object, name: str) -> str:
    """Return ``value`` if it is a text; DTypeError otherwise."""
    return check_instance(value, str, name, "a text")


def check_sequence(value: object, name: str, parts: str) -> tuple[Any, ...]:
    """Return what is in a list, a tuple or any iterable but a text, a mapping or a tensor; DTypeError otherwise."""
    if isinstance(value, str | bytes | Mapping | Tensor | np.ndarray | type) or not isinstance(value, Iterable):
        raise misfit(name, value, f"a list of {parts}")
    return tuple(value)


def check_mapping(value: object, name: str, parts: str) -> Mapping[str, Any]:
    """Return a mapping of names; DTypeError for anything else."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise misfit(name, value, f"a dict from names to {parts}")
    return value


def check_sizes(value: object, name: str, minimum: int = 0) -> tuple[int, ...]:
    """Return the sizes of a shape, each at least ``minimum``; DTypeError or DomainError otherwise."""
    sizes = check_sequence(value, name, "sizes")
    return tuple(check_integer(size, f"{name}[{k}]", minimum) for k, size in enumerate(sizes))


def check_path(path: object, name: str = "path") -> Path:
    """Return ``path`` as a Path if it is a path or a string that is not empty, else raise DTypeError or DomainError."""
    if not isinstance(path, (str, PathLike)):
        raise misfit(name, path, "a string or a pathlib.Path")
    if not str(path):
        raise DomainError(f"{name} is empty", parameter=name, got="", cure="'.' is the present folder")
    if "\0" in str(path):
        raise DomainError(f"{name} has a NUL among its letters, got {show(str(path))}", parameter=name, got=str(path))
    return Path(path)
