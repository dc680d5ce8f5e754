"""The command line as a process of its own: what it leaves when it is wrong, and when Ctrl-C stops it."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import QUICK, main, start

from scoresde import ScoreModel, sample
from scoresde.models.checkpoint import read


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hardly trained points."""
    folder = tmp_path_factory.mktemp("process") / "moons"
    assert main(["train", "--data", "moons", *QUICK, "--out", str(folder)]) == 0
    return folder


def stop(process: subprocess.Popen[str], ready: Callable[[], bool]) -> tuple[str, list[str]]:
    """Send Ctrl-C once it is time; return what was printed, and the lines of errors."""
    while process.poll() is None and not ready():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert "Traceback" not in out + err
    return out, err.splitlines()


def test_a_mistake_is_one_line_and_a_traceback_only_if_asked_for(tmp_path: Path) -> None:
    argv = ["sample", "--checkpoint", "nowhere"]
    both = [start(argv, tmp_path), start([*argv, "--debug"], tmp_path)]
    (out, err), (_, debug) = (process.communicate() for process in both)
    assert [process.returncode for process in both] == [2, 1]
    assert out == ""
    assert err == "scoresde: error: checkpoint nowhere does not exist; make one with: scoresde train\n"
    assert debug.startswith("Traceback (most recent call last):")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_a_checkpoint_that_samples(tmp_path: Path) -> None:
    argv = ["train", "--data", "moons", "--steps", "1000000", "--batch-size", "4", "--out", "run"]
    log = tmp_path / "run" / "log.jsonl"
    _, err = stop(start(argv, tmp_path), lambda: log.is_file() and log.stat().st_size > 0)
    assert err[-1].startswith("scoresde: stopped; the checkpoint is in run/checkpoint/; go on with:")
    assert read(tmp_path / "run" / "checkpoint").documents["training"]["step"] >= 50
    assert json.loads((tmp_path / "run" / "run.json").read_text())["complete"] is False
    assert main(["sample", "--checkpoint", str(tmp_path / "run"), "--n", "2", "--out", str(tmp_path / "x.npy")]) == 0
    assert np.isfinite(np.load(tmp_path / "x.npy", allow_pickle=False)).all()


def test_ctrl_c_leaves_the_samples_that_are_done(run: Path, tmp_path: Path) -> None:
    argv = ["sample", "--checkpoint", str(run), "--n", "1000000", "--chunk-size", "7", "--solver", "ddim:3"]
    process = start([*argv, "--out", "x.npy"], tmp_path)
    assert process.stderr is not None
    first = process.stderr.readline()
    assert first == "sampling     7 of 1000000\n"
    _, err = stop(process, lambda: True)
    x = np.load(tmp_path / "x.npy", allow_pickle=False)
    assert len(x) >= 7
    assert len(x) % 7 == 0
    assert err[-1] == f"scoresde: stopped; {len(x)} of 1000000 samples are in x.npy"
    model = ScoreModel.load(run / "checkpoint")
    expected = sample(model, (7, 2), solver="ddim", steps=3, seed=0)
    assert np.allclose(x[:7], expected, atol=1e-6), "they are the samples of a run that was not stopped"
    assert [file.name for file in tmp_path.iterdir()] == ["x.npy"]


def test_ctrl_c_leaves_the_rows_that_are_done(run: Path, tmp_path: Path) -> None:
    argv = ["compare", "--checkpoint", str(run), "--n", "10", "--out", "c", "--samplers"]
    table = tmp_path / "c" / "table.json"
    out, err = stop(start([*argv, "ddim:2", "ddim:500@200000"], tmp_path), table.is_file)
    assert err[-1] == "scoresde: stopped; 1 of 2 samplers are done, in c/"
    found = json.loads(table.read_text())
    assert (found["complete"], [row["nfe"] for row in found["rows"]]) == (False, [2.0])
    assert "ddim" in out
    assert sorted(file.name for file in table.parent.iterdir()) == ["comparison.png", "samples.png", "table.json"]
