"""One schema for tables, built in Python or read from a file: the error names the field, and names print safely."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from scoresde import VPSDE, ConfigError, DomainError, Stepper, Tableau, build_table, sample, solvers
from scoresde.errors import printable, show
from scoresde.models.exact import GaussianModel
from scoresde.sampling.samplers import parse_sampler
from scoresde.solvers.rows import Increment, Knot, Order, Row

TABLE = replace(
    solvers.sra1()(VPSDE(), torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)),
    order=Order(strong=1.5),
    lift=(1.1, 0.6),
)
TEXT = TABLE.to_json()
LEARNED = Tableau(
    "learned",
    "data",
    (Row(Knot(0.5, 0.8, 0.6), (0.5, 0.4), noise=(0.1,), spread=(0.1, 0.2)),),
    Knot(0.5, 0.8, 0.6),
    Knot(0.1, 0.9, 0.1),
    1.0,
)
NO_NUMBER = (None, True, "1", [1.0], {}, 1e308, -1e151, 10**400)


def leaves(value: object, path: str = "") -> Iterator[str]:
    """Yield the path of every value that is no list and no object, e.g. "rows[1].state[0]"."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for k, part in enumerate(value):
            yield from leaves(part, f"{path}[{k}]")
    else:
        yield path


def changed(path: str, value: object, document: Any = None) -> str:
    """Return the table's text with another value at a path."""
    got = json.loads(TEXT) if document is None else document
    keys = [int(key) if key.isdigit() else key for key in path.replace("]", "").replace("[", ".").split(".")]
    place = got
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return json.dumps(got)


def wrong(path: str) -> list[object]:
    """Return what cannot stand at a path of the table."""
    if path == "format":
        return [True, 0, "1", None, 1.0]
    if path in ("name", "prediction"):
        return [None, 3, ["data"], {}, *(["velocity", "nose"] if path == "prediction" else [])]
    if path.endswith("restart"):
        return [None, 0, 1, "false", []]
    if path.endswith(("spread", "increment")):
        return [True, 1.0, "0.1", [], [0.1], {"start": 1.0}]
    if path.endswith(("anchor", "power")) or path.startswith("order."):
        return [value for value in NO_NUMBER if value not in (None, [1.0])] + [math.nan, math.inf]
    low = [-5.0] if path.endswith((".t", ".alpha", ".sigma", ".start", ".end", "prior_std")) else []
    zero = [0.0] if path.endswith("at.sigma") else []
    return [*NO_NUMBER, math.nan, math.inf, *low, *zero]


PATHS = list(leaves(json.loads(TEXT)))


def test_every_field_of_the_table_is_walked() -> None:
    assert {"lift[1]", "order.weak", "end.sigma", "rows[1].increment.shape[1]", "rows[3].noise[0]"} <= set(PATHS)
    assert len(PATHS) > 60


@pytest.mark.parametrize("path", PATHS)
def test_a_wrong_value_in_a_file_is_named_by_its_path(path: str) -> None:
    for value in wrong(path):
        with pytest.raises(ConfigError) as caught:
            Tableau.from_json(changed(path, value))
        said = str(caught.value)
        assert "\n" not in said
        assert len(said) < 400
        if isinstance(value, float) and not math.isfinite(value):
            assert "is no number of JSON" in said
        elif path != "format":
            # An object of other fields, or a polynomial that is none, is named as a whole.
            assert path in said or path.rpartition("[")[0] in said


@pytest.mark.parametrize("path", [p for p in leaves(json.loads(TEXT)) if p.endswith("]") and p.startswith("rows")])
@pytest.mark.parametrize("value", [True, "1", None, (1.0,), 1e308, 10**400], ids=show)
def test_a_table_built_in_python_is_held_to_the_same(path: str, value: object) -> None:
    index, field, *part = path.replace("rows[", "").replace("]", "").replace("[", ".").split(".")
    row = TABLE.rows[int(index)]
    at = int(part[-1])
    if field == "increment":
        shape = (*row.increment.shape[:at], value, *row.increment.shape[at + 1 :])
        bad = replace(row, increment=replace(row.increment, shape=shape))
    else:
        weights = getattr(row, field)
        bad = replace(row, **{field: (*weights[:at], value, *weights[at + 1 :])})
    rows = (*TABLE.rows[: int(index)], bad, *TABLE.rows[int(index) + 1 :])
    with pytest.raises((ConfigError, DomainError)) as caught:
        replace(TABLE, rows=rows)
    assert path in str(caught.value)
    assert caught.value.parameter == path


ROW = TABLE.rows[0]


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"at": (0.9, 0.5, 0.5)}, "at"),
        ({"at": Knot(-5.0, 0.5, 0.5)}, "at.t"),
        ({"at": Knot(1e300, 0.5, 0.5)}, "at.t"),
        ({"at": Knot(0.5, -0.5, 0.5)}, "at.alpha"),
        ({"at": Knot(0.5, 0.5, 0.0)}, "at.sigma"),
        ({"state": [1.0, 0.5]}, "state"),
        ({"state": ()}, "state"),
        ({"anchor": ()}, "anchor"),
        ({"noise": None}, "noise"),
        ({"noise": 0.1}, "noise"),
        ({"anchor": None, "anchor_noise": (0.1,)}, "anchor_noise"),
        ({"restart": 1}, "restart"),
        ({"restart": None}, "restart"),
        ({"increment": (0.9, 0.5)}, "increment"),
        ({"increment": Increment(0.5, 0.9)}, "increment.end"),
        ({"increment": Increment(0.5, 0.5)}, "increment.end"),
        ({"increment": Increment(0.5, 0.1, "2")}, "increment.power"),
        ({"increment": Increment(0.5, 0.1, None, ())}, "increment.shape"),
        ({"increment": Increment(0.5, 0.1, None, (2.0,))}, "increment.shape"),
    ],
    ids=str,
)
def test_a_wrong_field_of_a_row(change: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(TABLE, rows=(replace(ROW, **change),))
    assert str(caught.value).startswith(f"rows[0].{path} of the table {TABLE.name!r} must be ")
    assert caught.value.parameter == f"rows[0].{path}"


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"rows": [ROW]}, "rows"),
        ({"rows": (3,)}, "rows[0]"),
        ({"name": None}, "name"),
        ({"prediction": ["data"]}, "prediction"),
        ({"lift": (1.0,)}, "lift"),
        ({"lift": 1.0}, "lift"),
        ({"lift": (1.0, "0")}, "lift[1]"),
        ({"prior_std": -1.0}, "prior_std"),
        ({"start": None}, "start"),
        ({"start": Knot(1.0, 0.0, 0.0)}, "start.sigma"),
        ({"end": Knot(1.0, math.nan, 0.0)}, "end.alpha"),
        ({"order": 2}, "order"),
        ({"order": Order(math.nan)}, "order.deterministic"),
        ({"order": Order(weak=-1.0)}, "order.weak"),
    ],
    ids=str,
)
def test_a_wrong_field_of_a_table(change: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(TABLE, **change)
    assert caught.value.parameter == path
    assert path.partition("[")[0] in str(caught.value)


@pytest.mark.parametrize("spread", [0.1, (0.1,), (0.1, "0.2"), (0.1, True), [0.1, 0.2], (0.1, 1e308), (0.1, math.nan)])
def test_a_spread_of_another_kind(spread: object) -> None:
    with pytest.raises(ConfigError, match="spread"):
        replace(LEARNED, rows=(replace(LEARNED.rows[0], spread=spread),))
    assert Tableau.from_json(LEARNED.to_json()) == LEARNED


def test_texts_that_are_no_table_at_all() -> None:
    first = json.dumps(json.loads(TEXT)["rows"][0])
    for text, words in (
        ("[" * 200_000, "nested too deeply"),
        ('{"a": ' * 200_000, "nested too deeply"),
        (TEXT.replace('"prior_std":', '"prior_std": 1.0, "prior_std":'), "the key 'prior_std' twice"),
        (TEXT.replace('"restart":', '"restart": false, "restart":', 1), "the key 'restart' twice"),
        (TEXT.replace(first, "[]"), r"rows\[0\]"),
        (TEXT.replace('"restart"', '"resart"', 1), r"rows\[0\] has an unknown key 'resart'"),
        (TEXT.replace('"t": 0.9, ', "", 1), "has no 't'"),
        (TEXT.replace('"format": 1, ', ""), "its format is None"),
        ("1" * 5000, "Exceeds the limit"),
        ('{"format": 1' + "0" * 5000, "Exceeds the limit"),
        ("null", "it is None, not an object"),
        ("", "Expecting value"),
    ):
        with pytest.raises(ConfigError, match=words):
            Tableau.from_json(text)
    for thing in (None, 3, b"\xff", ["{}"]):
        with pytest.raises(ConfigError, match="this is no saved table"):
            Tableau.from_json(thing)


def test_whole_and_numpy_numbers_are_numbers_and_stay_what_they_are() -> None:
    row = Row(Knot(1, 0, 1), (1, np.float64(0.1)), noise=(0,))
    table = Tableau("mixed", "data", (row,), row.at, Knot(0.5, 0.8, 0.6), 1)
    again = Tableau.from_json(table.to_json())
    assert again == table
    assert [type(w) for w in again.rows[0].state] == [int, float]


ESCAPE = "\x1b[2J\x1b]0;owned\x07 table\u202e\nline"
SHOWN = "\\x1b[2J\\x1b]0;owned\\x07 table\\u202e\\nline"


def test_a_name_that_a_terminal_would_obey_is_printed_as_escapes(tmp_path: Any, capsys: Any) -> None:
    table = Tableau.from_json(replace(build_table(VPSDE(), "ddim", steps=3), name=ESCAPE).to_json())
    assert table.name == ESCAPE
    file = tmp_path / "t.json"
    file.write_text(table.to_json())
    model = GaussianModel(sde=VPSDE(), mean=torch.zeros(2), covariance=torch.eye(2))
    sample(model, 2, solver=table, seed=0, progress=True)
    broken = ""
    for use in (
        lambda: replace(table, lift=(1.0, "0")),
        lambda: replace(table, rows=(replace(table.rows[0], state=(1.0,) * 9),)),
        lambda: sample(torch.nan_to_num, 2, solver=table),
        lambda: build_table(VPSDE(), f"dd{ESCAPE}"),
        lambda: parse_sampler(f"x{ESCAPE}", VPSDE()),
    ):
        with pytest.raises(Exception) as caught:  # noqa: PT011 every kind of error prints safely
            use()
        broken += str(caught.value)
    texts = [repr(table), str(table), repr(Stepper(table)), parse_sampler(str(file), VPSDE()).name, broken]
    texts.append(capsys.readouterr().err)
    for text in texts:
        assert SHOWN in text.replace("\\\\", "\\") or text is broken
        assert "\x1b" not in text.replace("\x1b[A", "")
        assert "\u202e" not in text


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("plain", "plain"),
        ("naïve 日本\u3000語 ژ\u200cش", "naïve 日本\u3000語 ژ\u200cش"),
        ("a\x00b\x7f\x9b", "a\\x00b\\x7f\\x9b"),
        ("a\u2028b\u2066\udc80", "a\\u2028b\\u2066\\udc80"),
        ("tab\tline\n", "tab\\tline\\n"),
    ],
)
def test_what_is_printable_stays(text: str, printed: str) -> None:
    assert printable(text) == printed
    assert printable(text, keep="\n\t") == printed.replace("\\t", "\t").replace("\\n", "\n")
    printed.encode()


class Silent:
    def __repr__(self) -> str:
        raise RuntimeError


def test_a_value_in_a_message_is_short_and_in_one_line() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (10**5000, "x" * 10_000, list(range(10**5)), Silent(), np.zeros((9, 9, 9)), torch.zeros(90, 90), deep):
        text = show(value)
        assert 0 < len(text) <= 100
        assert text.isprintable()
    assert show("a\x1bb") == repr("a\x1bb")
    assert show(10**5000) == "an integer of 16610 bits"
    while deep:
        deep = deep.pop()
