"""A table as JSON: a document that is read strictly, every key known and named once, every number one of JSON.

What stands in a field is judged by ``solvers/schema.py``, when the table is made of it.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from typing import Any, Never

from scoresde.errors.kinds import ConfigError, show
from scoresde.solvers.rows import Increment, Knot, Order, Row

__all__ = ["parse", "parse_object", "read_fields"]

CURE = "make one with Tableau.to_json()"
Keys = dict[str, None]
FIELDS: Keys = dict.fromkeys(("name", "prediction", "rows", "start", "end", "prior_std", "lift", "order"))
# The keys of each record: those that there are, and those that must be there.
KEYS: dict[type, tuple[Keys, Keys]] = {
    kind: (
        dict.fromkeys(one.name for one in fields(kind)),
        dict.fromkeys(one.name for one in fields(kind) if one.default is MISSING),
    )
    for kind in (Knot, Order, Increment, Row)
}


def parse(text: str) -> dict[str, Any]:
    """Return the document of a table's JSON text; ConfigError where it is none, or names a key twice."""
    found = parse_object(text, "table", CURE)
    version = found.pop("format", None)
    if type(version) is int and version > 1:
        raise ConfigError("this table was written by a newer version; upgrade scoresde", parameter="format")
    if type(version) is not int or version != 1:
        raise ConfigError(f"this is no saved table: its format is {show(version)}", cure=CURE)
    return found


def parse_object(text: str, what: str, cure: str) -> dict[str, Any]:
    """Return the object that a text of JSON is, without NaN and without a key twice.

    Args:
        text: of JSON.
        what: it is to be, and
        cure: what makes one, for errors.

    Raises:
        ConfigError: anything else.
    """

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"it has the key {show(twice)} twice")
        return found

    def constant(word: str) -> Never:
        raise ValueError(f"{word} is no number of JSON")

    try:
        found = json.loads(text, object_pairs_hook=collect, parse_constant=constant)
        if not isinstance(found, dict):
            raise TypeError(f"it is {show(found)}, not an object")
    except (TypeError, AttributeError, RecursionError, ValueError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(f"this is no saved {what}: {why}", cure=cure) from error
    return found


def read_fields(document: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a Tableau from a document: lists become tuples, objects rows, points and orders.

    A field that is no list or no object stays as it is, for the table's own checks; ConfigError for unknown keys.
    """
    name = document.get("name", "")
    _check_keys(document, FIELDS, FIELDS, "the table")
    made = {key: _to_tuple(value) for key, value in document.items()}
    for key in ("start", "end"):
        made[key] = _build(Knot, made[key], key, name)
    made["order"] = _build(Order, made["order"], "order", name)
    if isinstance(made["rows"], tuple):
        made["rows"] = tuple(_read_row(row, f"rows[{i}]", name) for i, row in enumerate(made["rows"]))
    return made


def _read_row(entry: object, path: str, name: object) -> object:
    """Return a row; the entry itself where it is no object."""
    if not isinstance(entry, dict):
        return entry
    row = {key: _to_tuple(value) for key, value in entry.items()}
    for key, kind in (("at", Knot), ("increment", Increment)):
        if key in row:
            row[key] = _build(kind, row[key], f"{path}.{key}", name)
    return _build(Row, row, path, name)


def _build(kind: type[Knot | Order | Increment | Row], entry: object, path: str, name: object) -> object:
    """Return a record made of an object's values; the entry itself where it is no object."""
    if not isinstance(entry, dict):
        return entry
    _check_keys(entry, *KEYS[kind], path)
    made: dict[str, Any] = {key: _to_tuple(value) for key, value in entry.items()}
    return kind(**made)


def _check_keys(entry: dict[str, object], known: Keys, needed: Keys, path: str) -> None:
    """Raise for a key that is not known, and for one that is needed and not there."""
    if needed.keys() <= entry.keys() <= known.keys():
        return
    for key in (*(key for key in entry if key not in known), *(key for key in needed if key not in entry)):
        what = "an unknown key" if key in entry else "no"
        raise ConfigError(
            f"this is no saved table: {path} has {what} {show(key)}",
            parameter=path,
            allowed=tuple(known),
            cure=CURE,
        )


def _to_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
