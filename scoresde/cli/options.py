"""What the verbs share: the base of their options, the device, and how words become values."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, TypeVar

import torch
import tyro
from tyro.constructors import PrimitiveConstructorSpec

from scoresde.errors import ConfigError, unknown
from scoresde.solvers import SOLVERS

__all__ = [
    "NAMES",
    "Command",
    "Float",
    "Int",
    "OptionalFloat",
    "OptionalInt",
    "chosen",
    "device",
    "interactive",
    "words",
]

T = TypeVar("T")

NAMES = (
    f"Names: {', '.join(SOLVERS)}; ddpm, the discrete chain, under vp; pc, predictor-corrector, two evaluations "
    "a step. probability_flow is adaptive and takes no steps."
)


def _number(kind: Callable[[str], T], metavar: str, called: str) -> PrimitiveConstructorSpec[T | None]:
    """Return how tyro reads a number, with a message for a person."""

    def read(texts: list[str]) -> T | None:
        try:
            return kind(texts[0])
        except ValueError as error:
            raise ValueError(f"{called} is needed, got {texts[0]!r}") from error

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda value: value is None or isinstance(value, int | float),
        str_from_instance=lambda value: [str(value)],
    )


Int = Annotated[int, _number(int, "INT", "a whole number")]
Float = Annotated[float, _number(float, "FLOAT", "a number")]
OptionalInt = Annotated[int | None, _number(int, "INT", "a whole number")]
OptionalFloat = Annotated[float | None, _number(float, "FLOAT", "a number")]


def words(choices: Mapping[str, object], default: str = "") -> object:
    """Return what tells tyro's help the names of a table."""
    return tyro.conf.arg(metavar="{" + ",".join(choices) + "}", help_behavior_hint=default or None)


def chosen(option: str, name: str, choices: Mapping[str, T]) -> T:
    """Return the entry of a table; ConfigError with the nearest name otherwise."""
    if name not in choices:
        raise unknown(option, name, choices)
    return choices[name]


@dataclass(frozen=True, kw_only=True)
class Command(ABC):
    """A verb and its options."""

    @abstractmethod
    def run(self) -> int:
        """Do it and return the exit code."""


def device(name: str) -> torch.device:
    """Return the device of a name; "auto" is the first CUDA device where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} is not usable here; use cpu, or auto for the best there is") from error


def interactive() -> bool:
    """Return whether progress bars have a reader."""
    return sys.stderr.isatty()
