"""What scoresde raises and warns with, and how a value is shown in a message."""

from __future__ import annotations

import copy
import operator
import unicodedata
from typing import Self

from torch import Tensor

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DTypeError",
    "DataError",
    "DomainError",
    "ProcessError",
    "ScoreSDEError",
    "ShapeError",
    "SolverError",
    "TrainingWarning",
    "UnstableSamplerWarning",
    "printable",
    "read_integer",
    "show",
]

SHOWN = 100  # characters of a value in a message


class ScoreSDEError(Exception):
    """Base of every error that scoresde raises on purpose.

    The message is ``message``, with "; ``cure``" behind it where there is a cure. The fields tell a program what the
    message tells a person; each is None where the error does not say it. They are plain values, so that every error can
    be pickled, and none keeps a tensor alive. The message is ``printable``.

    Args:
        message: what is wrong.
        parameter: the name of the argument that is wrong.
        got: its value if that is a number or a text, the value's ``repr`` otherwise.
        allowed: what may stand there, in words, or the names to choose from.
        cure: what to do.
    """

    def __init__(
        self,
        message: str = "",
        *,
        parameter: str | None = None,
        got: object = None,
        allowed: str | tuple[str, ...] | None = None,
        cure: str | None = None,
    ) -> None:
        super().__init__(printable(message if cure is None else f"{message}; {cure}", keep="\n"))
        self.parameter, self.allowed, self.cure = parameter, allowed, cure
        self.got = got if isinstance(got, str | int | float | None) else repr(got)

    def with_cure(self, cure: str) -> Self:
        """Return the same error with another cure, in the words of who called: a command line has options, say."""
        other = copy.copy(self)
        message = str(self).removesuffix(printable(f"; {self.cure}", keep="\n"))
        other.args = (printable(f"{message}; {cure}", keep="\n"),)
        other.cure = cure
        return other


class ShapeError(ScoreSDEError, ValueError):
    """A tensor has the wrong shape."""


class DomainError(ScoreSDEError, ValueError):
    """A number lies outside the domain where the formula holds."""


class ConfigError(ScoreSDEError, ValueError):
    """A choice or a combination of options is not possible."""


class DTypeError(ScoreSDEError, TypeError):
    """A value has the wrong type."""


class SolverError(ScoreSDEError, RuntimeError):
    """A solver could not finish; ``partial`` holds the state it had reached, if there was one."""

    def __init__(self, message: str, *, partial: Tensor | None = None) -> None:
        super().__init__(message)
        self.partial = partial


class CheckpointError(ScoreSDEError, RuntimeError):
    """A checkpoint is damaged, foreign, or could not be written."""


class DataError(ScoreSDEError, RuntimeError):
    """Data could not be read or do not fit together."""


class ProcessError(ScoreSDEError, RuntimeError):
    """Another process of the job has died, or did not come within the time-out."""


class TrainingWarning(UserWarning):
    """A training is likely to learn less than it could; the message says why and what to take instead."""


class UnstableSamplerWarning(UserWarning):
    """A sampler's table makes far too much of Gaussian data with the model's moments, whatever the network."""


def printable(text: str, *, keep: str = "") -> str:
    """Return a text without what a terminal obeys: control and direction characters are written as escapes.

    Letters of any script stay, and the joiners between them. So do the characters ``keep``.
    """
    if text.isprintable():
        return text
    keep += "\u200c\u200d"
    kinds = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in kinds and c not in keep else c for c in text
    )


def show(value: object) -> str:
    """Return the ``repr`` of a value for a message: printable, in one line, and short."""
    number = read_integer(value)
    if number is not None and number.bit_length() > 256:
        return f"an integer of {number.bit_length()} bits"
    try:
        text = printable(repr(value), keep="\n")
    except Exception:  # an object's own, or too deep a nesting
        text = f"a value of type {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 13]}...{text[-10:]}"


def read_integer(value: object) -> int | None:
    """Return a whole number of any make as an int: Python's, NumPy's, a tensor or an array without dimensions.

    None for anything else, booleans among it.
    """
    if type(value) is int:
        return value
    kind = getattr(value, "dtype", None)
    if isinstance(value, bool) or getattr(value, "ndim", 0) != 0 or str(kind) in ("bool", "torch.bool"):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except (TypeError, RuntimeError):
        return None
