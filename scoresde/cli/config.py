"""Options from a TOML file: ``--config run.toml``, one ``option = value`` a line, named as on the command line.

The keys are strict: an unknown one is refused with its line and the nearest that there is, as is a value of another
type. What the command line says replaces what the file says.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scoresde.errors.kinds import ConfigError, ScoreSDEError

if TYPE_CHECKING:
    from scoresde.cli.options import Command

__all__ = ["Settings", "read_settings"]

NOT_IN_A_FILE: Final = ("config", "debug")


@dataclass(frozen=True)
class Settings:
    """What a file says.

    Args:
        file: where.
        values: option to value.
        lines: option to the number of its line.
    """

    file: Path
    values: Mapping[str, object]
    lines: Mapping[str, int]

    def where(self, option: str) -> str:
        """Say where an option stands."""
        return f"line {self.lines[option]} of {self.file}"

    def locate(self, error: ScoreSDEError, arguments: Sequence[str]) -> None:
        """Add the line to the message of an error about an option of the file, unless the command line gives it too."""
        given = {argument.partition("=")[0].removeprefix("--").replace("-", "_") for argument in arguments}
        for option, value in self.values.items():
            meant = error.parameter == option or (error.got is not None and error.got in _list(value))
            if meant and option not in given:
                error.args = (f"{error} ({self.where(option)})",)
                return


def _list(value: object) -> list[str]:
    """Return the texts of an option, and the names with which they begin: "ddim" of "ddim:20"."""
    texts = value if isinstance(value, tuple) else (value,) if isinstance(value, str) else ()
    return [part for text in texts for part in (text, text.partition(":")[0])]


def read_settings(arguments: Sequence[str], command: type[Command]) -> Settings | None:
    """Return what the file after ``--config`` says about the options of ``command``; None without one.

    Raises:
        ConfigError: a file that cannot be read or is no TOML, an unknown key, a value of another type.
    """
    hints = typing.get_type_hints(command)
    path = _find_path(arguments) if "config" in hints else None
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"--config {path} cannot be read: {error.strerror}; name a TOML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config {path} is no text in UTF-8; name a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_explain_syntax(path, text, str(error))) from error
    allowed = [field.name for field in dataclasses.fields(command) if field.name not in NOT_IN_A_FILE]
    lines = {key: _find_line(text, key) for key in table}
    values: dict[str, object] = {}
    for key, value in table.items():
        at = f"(line {lines[key]} of {path})"
        if key not in allowed:
            near = difflib.get_close_matches(key.replace("-", "_"), allowed, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"keys: {', '.join(sorted(allowed))}"
            raise ConfigError(f"unknown key {key!r} {at}; {hint}")
        kinds = typing.get_args(hints[key]) if isinstance(hints[key], types.UnionType) else (hints[key],)
        read = next((made for kind in kinds if (made := _read(kind, value)) is not None), None)
        if read is None:
            needed = next(words for kind, words in WORDS.items() if kind in kinds)
            raise ConfigError(f"{key} must be {needed}, got {value!r} {at}")
        values[key] = read
    return Settings(path, values, lines)


def _find_path(arguments: Sequence[str]) -> Path | None:
    """Return the file that the arguments name; the last one counts, as for every option."""
    found = None
    for k, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option == "--config" and (equals or k + 1 < len(arguments)):
            found = Path(value if equals else arguments[k + 1])
    return found


WORDS: Final[dict[Any, str]] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text in quotes",
    Path: "a path in quotes",
    tuple[str, ...]: "a list of texts",
}


def _read(kind: Any, value: object) -> object | None:  # noqa: ANN401 a type, or a generic alias
    """Return a TOML value as an option of this type; None where it is none."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and number:
        return float(typing.cast(float, value))
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind == tuple[str, ...] and isinstance(value, list) and all(isinstance(one, str) for one in value):
        return tuple(value)
    same = kind in (bool, int, str) and type(value) is kind
    return value if same else None


def _explain_syntax(path: Path, text: str, said: str) -> str:
    """Say in one line what is wrong with a file that is no TOML."""
    place = re.search(r"\(at line (\d+)", said)
    what = said.partition(" (at ")[0].rstrip(".")
    if place is None:
        return f"{path} is no TOML: {said}; write option = value, a line each"
    number = int(place[1])
    if what == "Cannot overwrite a value":
        key = text.splitlines()[number - 1].partition("=")[0].strip()
        return f"the key {key!r} stands twice in {path}, again on line {number}; keep one of them"
    return f"{path}, line {number}: {what[0].lower()}{what[1:]}; write option = value, texts in quotes"


def _find_line(text: str, key: str) -> int:
    """Return the number of the line on which a key of the top level is set; tomllib does not tell."""
    rows = text.splitlines()
    start = re.compile(rf"""\s*\[*\s*["']?{re.escape(key)}["']?\s*[=.\]]""")
    for k, row in enumerate(rows):
        if start.match(row):
            with_it = _read_keys("\n".join(rows[:k]))
            if with_it is not None and key not in with_it:
                return k + 1
    return 1


def _read_keys(text: str) -> set[str] | None:
    """Return the keys of a file's beginning; None where it ends inside a value."""
    try:
        return set(tomllib.loads(text))
    except tomllib.TOMLDecodeError:
        return None
