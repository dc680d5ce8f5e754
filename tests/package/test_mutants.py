"""The planted errors still apply, their tests are there, and the runner tells a dead one from one that lives."""

from __future__ import annotations

import ast
import datetime
import sys
from pathlib import Path

import pytest
from helpers import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import mutants
from mutations import MUTANTS, Mutant

EVERY_ROOM = {
    "chains", "cli", "diffusions", "likelihood", "likelihood.fokker_planck", "metrics", "models", "models.guidance",
    "noise", "sampling", "solvers", "training", "training.losses", "transforms",
}  # fmt: skip


def test_there_are_mutants_of_every_room_that_computes() -> None:
    assert len(MUTANTS) >= 60
    assert {mutant.room for mutant in MUTANTS} == EVERY_ROOM
    assert len({mutant.what for mutant in MUTANTS}) == len(MUTANTS)
    assert len({(mutant.file, mutant.pattern, mutant.replacement) for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_a_mutant_applies_once_and_its_tests_exist(mutant: Mutant) -> None:
    text = (ROOT / "scoresde" / mutant.file).read_text(encoding="utf-8")
    wrong = mutant.apply(text)  # ValueError where the pattern is not there once
    assert ast.dump(ast.parse(wrong)) != ast.dump(ast.parse(text))
    assert mutant.tests
    for test in mutant.tests:
        file, _, name = test.partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, test


def test_every_mutant_has_its_day() -> None:
    for count in (10, 37, 74, len(MUTANTS)):
        first, days = datetime.date(2026, 1, 1), -(-count // mutants.DAILY)
        chosen = [mutants.choose_daily(first + datetime.timedelta(k), count) for k in range(days)]
        assert {place for day in chosen for place in day} == set(range(count))
        assert all(len(day) == mutants.DAILY for day in chosen)
    rooms = {MUTANTS[place].room for place in mutants.choose_daily(first, len(MUTANTS))}
    assert len(rooms) >= 4


def test_the_runner_tells_what_died_what_lived_and_what_no_longer_applies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package, tests = tmp_path / "scoresde" / "room", tmp_path / "tests" / "room"
    package.mkdir(parents=True)
    tests.mkdir(parents=True)
    (package / "sums.py").write_text("def add(a, b):\n    return a + b\n", encoding="utf-8")
    for folder in (tmp_path / "scoresde", package):
        (folder / "__init__.py").touch()
    (tests / "test_sums.py").write_text(
        "from scoresde.room.sums import add\n\n\ndef test_add():\n    assert add(2, 3) == 5\n\n\n"
        "def test_nothing():\n    assert add(2, 2) == 4\n",
        encoding="utf-8",
    )
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n", encoding="utf-8")

    def wrong(what: str, pattern: str, test: str) -> Mutant:
        return Mutant(what, "room/sums.py", pattern, "return a * b", (f"room/test_sums.py::{test}",))

    planted = (
        wrong("a product", "return a + b", "test_add"),
        wrong("a product unseen", "return a + b", "test_nothing"),
        wrong("a difference", "return a - b", "test_add"),
        wrong("a product untested", "return a + b", "test_that_is_not_there"),
    )
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    monkeypatch.setattr(mutants, "MUTANTS", planted)
    assert mutants.main(["--only", "0"]) == 0
    assert "a product: died in room/test_sums.py::test_add in" in capsys.readouterr().out
    assert mutants.main(["--room", "room", "--workers", "1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("  1 room: a product unseen: LIVED through room/test_sums.py::test_nothing in")
    assert "a difference: the pattern stands 0 times in room/sums.py, not once: 'return a - b'" in lines[2]
    assert "a product untested: no test ran (pytest's exit code 4)" in lines[3]
    assert lines[4] == "1 of 4 died; look at --only 1 2 3"
    assert (package / "sums.py").read_text(encoding="utf-8") == "def add(a, b):\n    return a + b\n"


def test_the_table_of_the_page_is_current() -> None:
    page = mutants.PAGE.read_text(encoding="utf-8")
    assert mutants.write_page(page) == page, "run python tools/mutants.py --page"
