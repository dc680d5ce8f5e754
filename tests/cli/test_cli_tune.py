"""``scoresde tune``: tables in the checkpoint, drawn with, compared, described; what else it holds stays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import Folders, main, refused, said

from scoresde import ScoreModel, Tableau, sample
from scoresde.models import checkpoint


@pytest.fixture
def copy(runs: Folders, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs[0], tmp_path / "run"))


def test_tables_are_kept_and_drawn_with(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = checkpoint.read(checkpoint.find(copy))
    command = ["tune", "--checkpoint", str(copy), "--steps", "4", "5", "--samples", "32", "--iterations", "2"]
    assert main(command) == 0
    out = said(capsys)
    assert "4 evaluations, from " in out
    assert "5 evaluations, from " in out
    assert "draw with --solver tuned:4" in out
    assert "calibrated in " in out
    after = checkpoint.read(checkpoint.find(copy))
    assert {part: after.files[part] for part in before.parts} == {part: before.files[part] for part in before.parts}
    assert {name: after.documents[name] for name in before.documents} == before.documents

    draw = ["sample", "--checkpoint", str(copy), "--n", "6", "--out", str(tmp_path / "x.npy")]
    assert main([*draw, "--solver", "tuned:5", "--save-table", str(tmp_path / "t.json")]) == 0
    model = ScoreModel.load(copy)
    assert sorted(model.tables) == [4, 5]
    want = sample(model, 6, solver="tuned", steps=5, seed=0)
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), want.numpy(), rtol=1e-5, atol=1e-5)
    saved = Tableau.from_json((tmp_path / "t.json").read_text())
    assert saved.nfe == 5
    assert main([*draw, "--solver", str(tmp_path / "t.json")]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), want.numpy(), rtol=1e-5, atol=1e-5)

    # The default is what the calibration says, but for other endings.
    for options, same in (
        (["--steps", "4"], {"steps": 4}),
        (["--solver", "default:6"], {"steps": 6}),
        (["--steps", "6", "--final", "sample"], {"solver": "flow_abm", "steps": 6, "final": "sample"}),
    ):
        assert main([*draw, *options]) == 0
        want = sample(model, 6, seed=0, **same)
        np.testing.assert_allclose(np.load(tmp_path / "x.npy"), want.numpy(), rtol=1e-5, atol=1e-5)
    # A second time there is nothing to calibrate.
    capsys.readouterr()
    assert main([*command[:4], "4", *command[6:]]) == 0
    assert "calibrated in " not in said(capsys)

    capsys.readouterr()
    assert main(["describe", str(copy)]) == 0
    assert "tuned 4, 5 evaluations" in said(capsys)
    options = ["--samplers", "tuned:4", "ddim:4", "--n", "20", "--out", str(tmp_path / "compared")]
    assert main(["compare", "--checkpoint", str(copy), *options]) == 0
    rows = json.loads((tmp_path / "compared" / "table.json").read_text())["rows"]
    assert [row["nfe"] for row in rows] == [4, 4]


def test_training_that_is_long_enough_calibrates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """160 000 samples: 30 000 evaluations are a sixteenth of three times as many."""
    options = ["--data", "moons", "--batch-size", "1000", "--out", str(tmp_path / "run")]
    assert main(["train", *options, "--steps", "160"]) == 0
    assert "calibrated for 3 to 30 evaluations, for the default sampler: scoresde describe" in said(capsys)
    assert ScoreModel.load(tmp_path / "run").calibration is not None


def test_classes_are_told(runs: Folders, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(runs[2], tmp_path / "run"))
    options = ["--steps", "3", "--samples", "8", "--iterations", "1", "--chunk-size", "4"]
    assert main(["tune", "--checkpoint", str(folder), *options]) == 0
    model = ScoreModel.load(folder)
    x = sample(model, 2, solver="tuned:3", cond={"label": torch.tensor([1, 2])}, seed=0)
    assert bool(torch.isfinite(x).all())


FAULTS = {
    "none": (["sample", "--solver", "tuned", "--n", "2"], "the model has no tuned tables; make one with"),
    "steps": (["tune", "--steps", "1"], "steps must be at least 2"),
    "samples": (["tune", "--samples", "0"], "samples must"),
    "iterations": (["tune", "--iterations", "0"], "iterations must"),
    "seed": (["tune", "--seed", "-1"], "seed must lie"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_mistakes_get_one_line(runs: Folders, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (verb, *options), words = FAULTS[name]
    assert words in refused(capsys, [verb, "--checkpoint", str(runs[0]), *options])
