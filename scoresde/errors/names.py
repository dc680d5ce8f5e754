"""Names to choose from: the error for one that is none of them says which is meant."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import ParamSpec, TypeVar

from torch import Tensor

from scoresde.errors.kinds import ConfigError, DTypeError, show

__all__ = ["check_choice", "explain_keywords", "is_name", "pick", "unknown"]

P = ParamSpec("P")
R = TypeVar("R")


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
