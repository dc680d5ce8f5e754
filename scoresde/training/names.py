"""What functions and objectives are called, with the numbers that they hold: by it a run knows its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sized
from functools import partial

__all__ = ["name_function"]


def name_function(function: object) -> str:
    """Return what a function or an objective is called, with the numbers and words of a dataclass or a partial."""
    if isinstance(function, partial):
        given = [*map(_show, function.args), *(f"{name}={_show(value)}" for name, value in function.keywords.items())]
        return f"{name_function(function.func)}({', '.join(given)})"
    if not dataclasses.is_dataclass(function) or isinstance(function, type):
        return str(getattr(function, "__qualname__", type(function).__name__))
    values = {field.name: getattr(function, field.name) for field in dataclasses.fields(function)}
    said = [f"{name}={value!r}" for name, value in values.items() if isinstance(value, Sized | int | float)]
    return f"{type(function).__name__}({', '.join(said)})"


def _show(value: object) -> str:
    if callable(value):
        return name_function(value)
    return repr(value) if isinstance(value, int | float | str | tuple | None) else type(value).__name__
