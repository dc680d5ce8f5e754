"""Errors and the checks that every public boundary shares.

The rule: raise before any network call; say which parameter, what was got, what is allowed and what to do. A message is
for people; who handles an error reads its fields. Everything inside the boundary may then assume sound input.
"""

from __future__ import annotations

import copy
import difflib
import functools
import inspect
import math
import numbers
import operator
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "LARGEST_NUMBER",
    "LARGEST_SIZE",
    "PART",
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
    "check_callable",
    "check_choice",
    "check_dense",
    "check_device",
    "check_dtype",
    "check_finite",
    "check_flag",
    "check_floating",
    "check_instance",
    "check_integer",
    "check_mapping",
    "check_number",
    "check_numbers",
    "check_outcome",
    "check_path",
    "check_samples",
    "check_sequence",
    "check_sizes",
    "check_text",
    "check_value",
    "check_values",
    "explain_keywords",
    "is_name",
    "keep_integer",
    "keep_number",
    "pick",
    "printable",
    "read_integer",
    "read_number",
    "show",
    "unknown",
]

PART = 1 << 17  # values that are looked at together, where data may be large: 1 MiB in float64, which is given back
LARGEST_NUMBER = 1e150  # whose square, and the square of whose reciprocal, are still numbers of float64
LARGEST_SIZE = 2**31 - 1
SHOWN = 100  # characters of a value in a message
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


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


def check_floating(x: object, name: str = "x", *, empty: bool = False) -> Tensor:
    """Return ``x`` if it is a real floating tensor of shape (B, *), else raise DTypeError or ShapeError.

    There may be no samples; a sample has at least one number, unless ``empty``.
    """
    if not isinstance(x, Tensor):
        raise DTypeError(
            f"{name} must be a torch.Tensor, got {type(x).__name__}",
            parameter=name,
            got=type(x).__name__,
            allowed="a torch.Tensor",
            cure=_tell_how(x, name),
        )
    check_dense(x, name)
    if not x.dtype.is_floating_point:
        cure = "take its real and imaginary parts as channels" if x.is_complex() else f"convert it with {name}.float()"
        raise DTypeError(
            f"{name} must have a real floating dtype, got {x.dtype}",
            parameter=name,
            got=x.dtype,
            allowed="a real floating dtype",
            cure=cure,
        )
    if x.ndim == 0:
        raise ShapeError(
            f"{name} must have shape (B, *), got a 0-d tensor",
            parameter=name,
            got=tuple(x.shape),
            allowed="shape (B, *)",
            cure=f"add a batch dimension with {name}[None]",
        )
    if not empty and 0 in x.shape[1:]:
        raise ShapeError(
            f"{name} has samples of shape {tuple(x.shape[1:])}, which hold no number",
            parameter=name,
            got=tuple(x.shape),
            allowed="samples of at least one number",
        )
    return x


def _tell_how(x: object, name: str) -> str:
    """Say how a value becomes a tensor."""
    if not isinstance(x, list | tuple):
        return f"use torch.as_tensor({name})"
    sizes = sorted({str(tuple(_size(part))) for part in x})
    if len(sizes) > 1:
        return f"its samples have several sizes, {', '.join(sizes[:3])}: pad or cut them to one, and stack them"
    return f"use torch.stack({name})" if x and isinstance(x[0], Tensor) else f"use torch.as_tensor({name})"


def _size(x: object) -> tuple[int, ...]:
    """Return the sizes of nested lists and of what is in them, by their first parts."""
    if isinstance(x, list | tuple):
        return (len(x), *(_size(x[0]) if x else ()))
    return tuple(x.shape) if isinstance(x, Tensor | np.ndarray) else ()


def check_samples(x: object, name: str = "x", *, empty: bool = False) -> Tensor:
    """Return ``x`` if it is a finite real floating tensor of shape (B, *); count and place bad values if not."""
    tensor = check_floating(x, name, empty=empty)
    check_values(tensor, name)
    # The two extremes tell it without a copy of the data: a NaN is both.
    if tensor.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(tensor.detach()))).all()):
        for _ in check_finite(torch.split(tensor, max(1, PART * len(tensor) // tensor.numel())), name):
            pass
    return tensor


def check_finite(parts: Iterable[Tensor], name: str) -> Iterator[Tensor]:
    """Pass on samples that come in parts (n, *), and count and place bad values: DomainError behind the last part."""
    count = total = low = 0
    first: tuple[int, ...] = ()
    got = math.nan
    for part in parts:
        good = torch.isfinite(part)
        if not bool(good.all()):
            if not count:
                place = tuple(int(i) for i in (~good).nonzero()[0])
                first, got = (place[0] + low, *place[1:]), float(part[place])
            count += int((~good).sum())
        total, low = total + part.numel(), low + len(part)
        yield part
    if count:
        raise DomainError(
            f"{name} has {count} non-finite values of {total}, the first at index {first}",
            parameter=name,
            got=got,
            allowed="finite values",
            cure="drop or repair these samples",
        )


def check_outcome(values: Tensor, what: str, at: Tensor | None = None) -> Tensor:
    """Return values (B, *) to which a network's predictions have led; SolverError, with the share, if any is no number.

    Args:
        values: one or more for each sample.
        what: names them, for the message.
        at: the times of the predictions, (B,); the message names the first that failed.
    """
    if not bool(torch.isfinite(values).all()):
        bad = (~torch.isfinite(values)).reshape(len(values), -1).any(1)
        place = "" if at is None else f" at t = {float(at.reshape(-1)[int(bad.nonzero()[0])]):g}"
        raise SolverError(
            f"{what}{place} is not finite in {float(bad.double().mean()):.1%} of the samples, since the network's "
            "prediction is not, or is too large"
        )
    return values


def check_device(device: torch.device, name: str, other: torch.device, other_name: str) -> None:
    """Raise ConfigError, naming both, unless ``name`` and ``other_name`` are on one device."""
    if device != other:
        raise ConfigError(
            f"{name} is on {device}, {other_name} on {other}",
            parameter=name,
            got=str(device),
            allowed=str(other),
            cure="move one of them with .to()",
        )


def check_path(path: object, name: str = "path") -> Path:
    """Return ``path`` as a Path if it is a path or a string that is not empty, else raise DTypeError or DomainError."""
    if not isinstance(path, (str, PathLike)):
        raise _misfit(name, path, "a string or a pathlib.Path")
    if not str(path):
        raise DomainError(f"{name} is empty", parameter=name, got="", cure="'.' is the present folder")
    if "\0" in str(path):
        raise DomainError(f"{name} has a NUL among its letters, got {show(str(path))}", parameter=name, got=str(path))
    return Path(path)


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


def check_integer(value: object, name: str, minimum: int = 0, maximum: int = LARGEST_SIZE) -> int:
    """Return ``value`` as an int in [minimum, maximum]; DTypeError if it is no whole number, DomainError outside.

    ``read_integer`` says what is one. A size or a count is at most 2^31 - 1, unless its parameter states another limit.
    """
    number = read_integer(value)
    if number is None:
        raise _misfit(name, value, "an integer")
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
        raise _misfit(name, value, "a number")
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


def _misfit(name: str, got: object, allowed: str) -> DTypeError:
    """Build the error for a value of the wrong type."""
    return DTypeError(
        f"{name} must be {allowed}, got {show(got)} of type {type(got).__name__}",
        parameter=name,
        got=got,
        allowed=allowed,
    )


def unknown(kind: str, got: object, choices: Iterable[str], *, parameter: str | None = None) -> ConfigError:
    """Build the error for an unknown name: the nearest match, whatever its case and dashes, then every choice.

    Args:
        kind: of the names, in words.
        got: the name that is none of them.
        choices: those that are.
        parameter: the argument's name, where it is not the kind's.
    """
    names = sorted(choices)
    folded = {_fold(name): name for name in names}
    near = difflib.get_close_matches(_fold(show(got)), folded, n=1)
    hint = f"did you mean {folded[near[0]]!r}? " if near else ""
    return ConfigError(
        f"unknown {kind} {show(got)}",
        parameter=kind if parameter is None else parameter,
        got=got,
        allowed=tuple(names),
        cure=f"{hint}choices: {', '.join(names)}",
    )


def _fold(name: str) -> str:
    """Return the letters and digits of a name; "++" is "pp", and "DPM-Solver++" is "dpmpp", as many write it."""
    return re.sub("[^a-z0-9]", "", name.casefold().replace("solver++", "++").replace("++", "pp"))


def is_name(got: object, choices: Iterable[str]) -> bool:
    """Say whether ``got`` is one of the names, whatever else it may be: a list, an array, None."""
    return isinstance(got, str) and got in choices


def check_choice(kind: str, got: object, choices: Iterable[str], *, parameter: str | None = None) -> None:
    """Raise ``unknown`` unless ``got`` is one of the names; see ``is_name``."""
    names = list(choices)
    if not is_name(got, names):
        raise unknown(kind, got, names, parameter=parameter)


def check_flag(value: object, name: str) -> bool:
    """Return ``value`` as a bool: True, False, 1 or 0 of Python's or NumPy's; DTypeError otherwise."""
    if not isinstance(value, bool | int | np.bool_) or value not in (0, 1):
        raise _misfit(name, value, "True or False")
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
        raise _misfit(name, value, f"a function {example}")


def check_instance(value: object, kind: type[T], name: str, what: str) -> T:
    """Return ``value`` if it is a ``kind``; DTypeError otherwise, which says ``what`` it must be."""
    if not isinstance(value, kind):
        raise _misfit(name, value, what)
    return value


def check_text(value: object, name: str) -> str:
    """Return ``value`` if it is a text; DTypeError otherwise."""
    return check_instance(value, str, name, "a text")


def check_sequence(value: object, name: str, parts: str) -> tuple[Any, ...]:
    """Return what is in a list, a tuple or any iterable but a text, a mapping or a tensor; DTypeError otherwise."""
    if isinstance(value, str | bytes | Mapping | Tensor | np.ndarray | type) or not isinstance(value, Iterable):
        raise _misfit(name, value, f"a list of {parts}")
    return tuple(value)


def check_mapping(value: object, name: str, parts: str) -> Mapping[str, Any]:
    """Return a mapping of names; DTypeError for anything else."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise _misfit(name, value, f"a dict from names to {parts}")
    return value


def check_sizes(value: object, name: str, minimum: int = 0) -> tuple[int, ...]:
    """Return the sizes of a shape, each at least ``minimum``; DTypeError or DomainError otherwise."""
    sizes = check_sequence(value, name, "sizes")
    return tuple(check_integer(size, f"{name}[{k}]", minimum) for k, size in enumerate(sizes))


def check_numbers(value: object, name: str) -> Tensor:
    """Return a tensor, an array, a number or nested sequences of real numbers as a dense float64 tensor on the CPU.

    Raises DTypeError for anything else. The numbers may be infinite or NaN.
    """
    try:
        found = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise _misfit(name, value, "a tensor, or numbers in sequences of one length") from error
    check_dense(found, name)
    check_values(found, name)
    if found.is_complex():
        raise DTypeError(f"{name} must be real, got {found.dtype}; take real and imaginary parts as channels")
    return found.detach().to("cpu", torch.float64)


def check_values(x: Tensor, name: str) -> None:
    """Raise ConfigError for a tensor on the meta device."""
    if x.device.type == "meta":
        raise ConfigError(f"{name} is on the meta device, which holds no values", parameter=name, got="meta")


def check_dense(x: Tensor, name: str) -> None:
    """Raise for a tensor without values that one could compute with: nested, sparse, or of 8 bits."""
    if x.is_nested or x.layout != torch.strided:
        what = "nested, whose samples have sizes of their own" if x.is_nested else f"laid out as {x.layout}"
        how = f"torch.nested.to_padded_tensor({name}, 0.0)" if x.is_nested else f"{name}.to_dense()"
        raise ShapeError(f"{name} is {what}", parameter=name, allowed="a dense tensor", cure=f"make it dense: {how}")
    if x.dtype.is_floating_point and x.dtype.itemsize < 2:
        raise DTypeError(
            f"{name} must have a type of at least 16 bits, got {x.dtype}",
            parameter=name,
            got=x.dtype,
            cure=f"convert it with {name}.float()",
        )


def pick(kind: str, choice: object, table: Mapping[str, Callable[..., Tensor]]) -> Callable[..., Tensor]:
    """Return the entry ``choice`` of a table, or ``choice`` itself where it is a function; ConfigError otherwise."""
    if isinstance(choice, str) and choice in table:
        return table[choice]
    if callable(choice) and not isinstance(choice, type):
        return choice
    raise unknown(kind, choice, table)


def explain_keywords(**synonyms: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function answer keywords that it does not take with a DTypeError that names the right one.

    ``@explain_keywords(lr="learning_rate", epochs="steps= with steps = epochs * len(data) / batch_size")`` says what to
    use for words of other libraries: a parameter of the function, or a sentence. For any other word the nearest
    parameter is named, whatever its case and underscores, or all of them where none is near. Of a function with
    overloads it decorates the implementation.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        parameters = inspect.signature(function).parameters.values()
        names = {p.name: None for p in parameters if p.kind is not p.POSITIONAL_ONLY and p.name != "self"}

        @functools.wraps(function)
        def explained(*args: P.args, **kwargs: P.kwargs) -> R:
            if not kwargs.keys() <= names.keys():
                cures = [_explain(word, names, synonyms) for word in kwargs if word not in names]
                raise DTypeError(f"{function.__qualname__.removesuffix('.__init__')}() takes no {'; no '.join(cures)}")
            return function(*args, **kwargs)

        return explained

    return decorate


def _explain(word: str, names: Iterable[str], synonyms: Mapping[str, str]) -> str:
    """Return an unknown keyword and what to use instead."""
    folded = {_fold(name): name for name in names}
    near = difflib.get_close_matches(_fold(word), folded, n=1)
    cure = synonyms.get(word, folded[near[0]] if near else f"one of {', '.join(names)}")
    return f"{word}=, use {cure}{'=' if cure.isidentifier() else ''}"
