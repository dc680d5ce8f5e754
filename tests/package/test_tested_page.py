"""The page of how it is tested: its figures hold, its tests and mutants exist, and its counting counts."""

from __future__ import annotations

import ast
import re
import sys

import pytest
from helpers import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import tested_page
from mutations import MUTANTS

TEXT = tested_page.PAGE.read_text(encoding="utf-8")
CLAIMS = TEXT.partition("<!-- begin: claims -->")[2].partition("<!-- end: claims -->")[0]
NAMED = re.findall(r"`(\S+?\.py)::(\w+)`", CLAIMS)


def test_the_recorded_figures_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert tested_page.main([]) == 0, capsys.readouterr().out


def test_the_recorded_cases_hold_where_all_tests_are_collected(request: pytest.FixtureRequest) -> None:
    items = request.session.items
    files = {item.path for item in items}
    if files >= set(tested_page.TESTS.rglob("test_*.py")):
        found = tested_page.count_cases("\n".join(item.nodeid for item in items))
        _, cases, rest = tested_page.read_recorded(TEXT)
        assert tested_page.find_stale(cases, {name: found[name] for name in cases}) == []
        walk = {"walk": rest["callables of the walk of absurd arguments"]}
        assert tested_page.find_stale(walk, {"walk": found["walk"]}) == []


def test_every_test_that_a_claim_names_exists() -> None:
    assert len(NAMED) >= 20
    for file, name in NAMED:
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (file, name)


def test_every_mutant_that_a_claim_names_is_killed_by_a_test_beside_it() -> None:
    killers = {mutant.what: set(mutant.tests) for mutant in MUTANTS}
    counted = 0
    for line in CLAIMS.splitlines():
        beside = {file for file, _ in re.findall(r"`(\S+?\.py)::(\w+)`", line)}
        for what in re.findall(r"\*([^*]+)\*", line.replace("\\|", "|")):
            files = {test.partition("::")[0] for test in killers[what]}
            assert files & beside, what
            counted += 1
    assert counted >= 15


SOURCE = """
import mpmath
from hypothesis import given
from scipy import stats

TABLE = mpmath.exp(1)

def helper():
    return TABLE

def test_by_reference():
    assert helper()

@given(1)
def test_of_all(x):
    assert x

def test_both():
    with pytest.raises(ValueError):
        stats.kstest()

def test_other():
    assert True
"""


def test_a_test_belongs_to_the_layers_of_what_it_uses(tmp_path) -> None:
    file = tmp_path / "test_some.py"
    file.write_text(SOURCE, encoding="utf-8")
    assert tested_page.read_file(file) == {
        "test_by_reference": {"references"},
        "test_of_all": {"properties"},
        "test_both": {"faults", "statistics", "peers"},
        "test_other": set(),
    }


def test_a_figure_holds_from_below_alone() -> None:
    assert tested_page.find_stale({"a": 90, "b": 100}, {"a": 100, "b": 100}) == []
    assert tested_page.find_stale({"a": 89}, {"a": 100}) == ["a: recorded 89, there are 100"]
    assert tested_page.find_stale({"a": 101}, {"a": 100}) == ["a: recorded 101, there are 100"]
    assert tested_page.find_stale({}, {"a": 1}) == ["a: recorded 0, there are 1"]


def test_other_arguments_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert tested_page.main(["--write"]) == 2
    assert "usage: python tools/tested_page.py [--record [FILE]]" in capsys.readouterr().err
