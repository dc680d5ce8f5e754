"""The fuzzer sees what it looks for, says it once in five lines, and leaves alone what is refused as it should be."""

from __future__ import annotations

import importlib.util
import itertools
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers import ROOT
from hypothesis import strategies as st

sys.path.insert(0, str(ROOT / "tools"))

import fuzz
from fuzzing import names
from fuzzing.trial import try_case

BROKEN = """
import random
import time

import torch


def miss(x):
    return {}["nothing"]


def hang():
    while True:
        time.sleep(0.01)


def write(x):
    x += 1


def draw():
    random.random()


def lose():
    return torch.tensor([0.0, float("nan")])
"""


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of a package of our name, with every fault that there is."""
    file = tmp_path / "scoresde" / "broken.py"
    file.parent.mkdir()
    file.write_text(BROKEN, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("broken", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(names, "broken", module, raising=False)
    monkeypatch.setattr(names, "__all__", [*names.__all__, "broken"])
    return module


FAULTS = {
    "an error": ("out = broken.miss(3)", "KeyError: 'nothing'", "broken.py:9"),
    "a hang": ("broken.hang()", "no end after 0.3 s", "broken.py:14"),
    "an argument": ("broken.write(x)", "x was changed", "broken.write"),
    "a NaN": ("out = (x, [broken.lose()])", "out holds NaN", "out = "),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_where_it_is(broken: ModuleType, fault: str) -> None:
    line, what, where = FAULTS[fault]
    finding = try_case(("x = torch.zeros(2)", line, "y = 3"), 0.3)
    assert finding is not None
    assert finding.what == what
    assert where in finding.where
    assert str(finding).splitlines()[1:] == [
        "    from fuzzing.names import *",
        "    x = torch.zeros(2)",
        f"    {line}",
    ]


def test_a_random_state_that_moves_is_found(broken: ModuleType) -> None:
    state = random.getstate()
    finding = try_case(("broken.draw()",), 5.0)
    random.setstate(state)
    assert finding is not None
    assert finding.what == "changed Python's random state"


@pytest.mark.parametrize(
    "case",
    [
        ("sde = VPSDE(beta_min=nan)",),
        ("out = nan",),
        ("x = torch.zeros(2)", "x = x + 1"),
        ("this is no Python at all()",),
        (
            "out = map_prediction(ScoreModel(net(), VPSDE()), lambda p: 1 / 0)",
            "x = sample(out, (2, 2), steps=1)",
        ),
        ("saved('c')", "cut('c', 0, 0.5)", "model = ScoreModel.load('c')"),
        ("run('describe', 'nothing')",),
    ],
)
def test_what_is_refused_or_makes_no_sense_is_no_finding(case: tuple[str, ...]) -> None:
    here = Path.cwd()
    assert try_case(case, 60.0) is None
    assert Path.cwd() == here


def test_a_finding_is_made_small_and_said_once(
    broken: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = st.integers(0, 1000).map(lambda k: (f"out = broken.miss({k}) if {k} > 30 else 0",))
    ticks = itertools.count()
    monkeypatch.setattr(fuzz, "CASES", {"numbers": numbers})
    monkeypatch.setattr(fuzz, "monotonic", lambda: 0.1 * next(ticks))  # no test depends on the machine's speed
    threads = torch.get_num_threads()
    try:
        assert fuzz.main(["--minutes", "0.3", "--seed", "5"]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "numbers: KeyError: 'nothing' (broken.py:9)"
        assert lines[2] == "    out = broken.miss(31) if 31 > 30 else 0"
        assert sum("KeyError" in line for line in lines) == 1
        assert " 1 findings (numbers " in lines[-1]
        monkeypatch.setattr(fuzz, "KNOWN", {("KeyError", "broken.py"): "of this test"})
        assert fuzz.main(["--minutes", "0.3", "--seed", "5"]) == 0
    finally:
        torch.set_num_threads(threads)


def test_every_kind_of_case_has_few_lines_that_python_can_read() -> None:
    for kind, cases in fuzz.CASES.items():
        drawn: list[tuple[str, ...]] = []
        fuzz.draw_cases(cases, 0, drawn.append)
        assert len(drawn) >= 10, kind
        for case in drawn:
            assert len(case) <= 4
            for line in case:
                compile(line, kind, "exec")
