"""Runs that the tests of the command line share."""

from __future__ import annotations

import pytest
from cli_helpers import QUICK, Folders, main


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Hardly trained: points under VP, points under VE that predict v, and class-conditional digits."""
    home = tmp_path_factory.mktemp("runs")
    jobs = {
        "points": ["--data", "moons", "--seed", "3"],
        "ve": ["--data", "swiss_roll", "--sde", "ve", "--predicts", "edm"],
        "digits": ["--data", "digits", "--conditional"],
    }
    for name, options in jobs.items():
        assert main(["train", "--out", str(home / name), *options, *QUICK]) == 0
    return home / "points", home / "ve", home / "digits"
