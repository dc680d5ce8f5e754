"""A benchmark changes no tracked file unless ``--record`` asks for it."""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
# The one place that writes figures; resetting a counter of the kernel; a figure where --figure names its file.
WRITES = {
    "record.py": {"file.write_text"},
    "sampling_step.py": {"Path('/proc/self/clear_refs').write_text"},
    "scaling.py": {"Path('/proc/self/clear_refs').write_text", "save"},
    "training_memory.py": {"np.save"},
    "discrete_vs_continuous.py": {"plots.save"},
    "generative_families.py": {"save"},
}


def writes(source: str) -> set[str]:
    """Return what a script calls to write a file."""
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)}
    return {
        call for call in calls if call.rpartition(".")[2] in ("write_text", "write_bytes", "open", "save", "savefig")
    }


@pytest.mark.parametrize("script", BENCHMARKS, ids=lambda path: path.name)
def test_figures_are_written_in_one_place(script: Path) -> None:
    assert writes(script.read_text(encoding="utf-8")) <= WRITES.get(script.name, set())


def digests() -> dict[str, str]:
    files = (ROOT / "benchmarks" / "results").iterdir()
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_a_run_leaves_the_figures_alone_and_records_where_it_is_asked(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "training_step.py", "--rounds", "1", "--only", "mlp"]
    before = digests()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "nothing is written; --record keeps the figures" in done.stdout
    assert (digests(), list(tmp_path.iterdir())) == (before, [])
    asked = tmp_path / "deep" / "figures.json"
    subprocess.run([*command, "--record", asked], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(asked.read_text(encoding="utf-8"))["steps"][0]["network"] == "mlp"
    assert digests() == before
