"""What the library warns of, on the command line: one line, as its errors are."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from cli_helpers import QUICK, main


def test_a_warning_of_the_package_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["train", "--data", "moons", "--sde", "subvp", "--predicts", "data", "--weight", "simple", *QUICK]
    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main([*options, "--out", str(tmp_path / "run")]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(lines) == 1
    assert lines[0].startswith("scoresde: warning: weight simple with times ")
    assert warnings.showwarning is before
