"""A checkpoint is written only while the loss is finite."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_models import DATA, QUIET, Fails

from scoresde import VPSDE, ScoreModel, SolverError
from scoresde.models import checkpoint
from scoresde.training import fit


def kept(folder: Path) -> int:
    step = checkpoint.read(folder / "checkpoint").documents["training"]["step"]
    assert isinstance(step, int)
    return step


def test_nothing_is_kept_of_steps_that_were_not_made(tmp_path: Path) -> None:
    """Half of what came since the last record must be finite, also where no record is due with the checkpoint."""
    model = ScoreModel(Fails(2, where=lambda c_noise: c_noise == c_noise), VPSDE())
    with pytest.raises(SolverError, match="the loss is not finite at step"):
        fit(model, DATA, steps=8, save_every=2, log_every=100, folder=tmp_path / "run", **QUIET)
    assert kept(tmp_path / "run") == 4  # two good steps and two that were not made; at 6 there are four of these


def test_nothing_is_kept_while_the_records_are_bad(tmp_path: Path) -> None:
    model = ScoreModel(Fails(2, where=lambda c_noise: c_noise == c_noise), VPSDE())
    with pytest.raises(SolverError, match="the loss is not finite at step"):
        fit(model, DATA, steps=12, save_every=2, log_every=2, folder=tmp_path / "run", **QUIET)
    assert kept(tmp_path / "run") == 2
