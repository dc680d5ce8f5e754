"""What the verbs share: the base of their options, the device, and how words become values."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import torch
import tyro
from tyro.constructors import PrimitiveConstructorSpec

from scoresde.cli.presets import PRESETS
from scoresde.cli.threads import count_idle_cores
from scoresde.errors.kinds import ConfigError
from scoresde.errors.names import unknown
from scoresde.solvers.named import SOLVERS

__all__ = [
    "NAMES",
    "Command",
    "Float",
    "Int",
    "OptionalFloat",
    "OptionalInt",
    "Work",
    "choose",
    "find_device",
    "is_interactive",
    "show_choices",
    "show_default",
    "show_default_by_kind",
]

T = TypeVar("T")

NAMES = (
    "Names: default, what suits the model as its calibration found, or what is usual; tuned, a table of scoresde tune; "
    f"{', '.join(SOLVERS)}; ddpm and smld, the discrete chains, under vp and ve; pc, predictor-corrector, "
    "two evaluations a step. probability_flow is adaptive and takes no steps. Or a .json file with a saved table."
)


def _read_as(kind: Callable[[str], T], metavar: str, called: str) -> PrimitiveConstructorSpec[T | None]:
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


Int = Annotated[int, _read_as(int, "INT", "a whole number")]
Float = Annotated[float, _read_as(float, "FLOAT", "a number")]
OptionalInt = Annotated[int | None, _read_as(int, "INT", "a whole number")]
OptionalFloat = Annotated[float | None, _read_as(float, "FLOAT", "a number")]


def show_choices(choices: Iterable[str]) -> object:
    """Return what tells tyro's help the names of a table."""
    return tyro.conf.arg(metavar="{" + ",".join(choices) + "}")


def show_default(what: str) -> object:
    """Return what tells tyro's help a default that depends on other options; "" for none."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {what})" if what else "(optional)")


def show_default_by_kind(field: str) -> object:
    """Return a default that depends on the data, in words."""
    values: dict[object, list[str]] = {}
    for kind, preset in PRESETS.items():
        values.setdefault(getattr(preset, field), []).append(kind)
    if len(values) == 1:
        return show_default(f"{next(iter(values)):g}")
    return show_default(", ".join(f"{value} for {' and '.join(kinds)}" for value, kinds in values.items()))


def choose(option: str, name: str, choices: Mapping[str, T], kind: str | None = None) -> T:
    """Return the entry of a table; ConfigError with the nearest name otherwise, in which the entries are a ``kind``."""
    if name not in choices:
        raise unknown(kind or option, name, choices, parameter=option)
    return choices[name]


# The options that were named on the command line or in a file, also those that say the default.
GIVEN: ContextVar[frozenset[str]] = ContextVar("GIVEN", default=frozenset())


def find_given(arguments: Iterable[str], settings: Iterable[str]) -> frozenset[str]:
    """Return the names of the options that arguments and a file's settings name."""
    flags = (one[2:].partition("=")[0].replace("-", "_") for one in arguments if one.startswith("--"))
    return frozenset([*settings, *(name.removeprefix("no_") for name in flags)])


@dataclass(frozen=True, kw_only=True)
class Command(ABC):
    """A verb and its options."""

    @abstractmethod
    def run(self) -> int:
        """Do it and return the exit code."""


@dataclass(frozen=True, kw_only=True)
class Work(Command):
    """A verb that computes.

    Args:
        config: a TOML file with options, a line "option = value" each; what stands on the command line wins.
        device: cpu, cuda, ...; auto takes CUDA where there is one.
        threads: number of threads on the CPU; more than there are idle cores make every step many times slower, and
            another number changes results in their last digits.
        debug: show the traceback of an error.
    """

    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(optional)")] = None
    device: str = "auto"
    threads: Annotated[
        OptionalInt,
        show_default(f"OMP_NUM_THREADS, else 1 for an MLP and the idle cores for a U-Net, now {count_idle_cores()}"),
    ] = None
    debug: bool = False


def find_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is the first CUDA device where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, dtype=torch.float32, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {name!r} is not usable here",
            parameter="device",
            got=name,
            cure="use cpu, or auto for the best there is",
        ) from error


def is_interactive() -> bool:
    """Return whether progress bars have a reader."""
    return sys.stderr.isatty()
