"""The picture of a training, read back from the figure; the log, read back from the disk."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from scoresde import VPSDE, ConfigError, DataError, ScoreModel, fit, plots
from scoresde.data import swiss_roll
from scoresde.nn import MLP

CENTRES = [-5.0, 0.0, 5.0]


def record(step: int, loss: float | None, bins: list[float | None], **more: float) -> dict[str, object]:
    return {"step": step, "loss": loss, "log_snr": CENTRES, "loss_by_log_snr": bins, **more}


def test_training_draws_the_losses_and_their_means_by_noise_level() -> None:
    log = [
        record(10, 2.0, [1.0, None, 3.0]),
        record(20, 1.0, [3.0, None, 1.0], held_out_loss=1.5),
        record(30, None, [None, None, None]),
        record(40, 0.5, [0.5, 0.25, math.nan]),
    ]
    left, right = plots.training(log, title="A run").axes
    train, held_out = left.lines
    np.testing.assert_array_equal(train.get_xydata(), [[10, 2.0], [20, 1.0], [40, 0.5]])
    np.testing.assert_array_equal(held_out.get_xydata(), [[20, 1.5]])
    assert [text.get_text() for text in right.get_legend().get_texts()] == [
        "steps 0 to 10",
        "steps 20 to 20",
        "steps 40 to 40",
    ]
    np.testing.assert_array_equal(right.lines[0].get_xydata(), [[-5, 1.0], [5, 3.0]])
    np.testing.assert_array_equal(right.lines[2].get_xydata(), [[-5, 0.5], [0, 0.25]])
    assert right.xaxis_inverted()
    two = plots.training(log * 2).axes[1].lines[0]
    np.testing.assert_array_equal(two.get_xydata(), [[-5, 2.0], [5, 2.0]])


def test_log_on_disk_is_the_log_in_memory(tmp_path: Path) -> None:
    model = ScoreModel(MLP(2, width=8, depth=1), VPSDE())
    run = tmp_path / "run"
    result = fit(model, swiss_roll(100), held_out=swiss_roll(50), steps=20, log_every=5, folder=run, progress=False)
    for where in (run, run / "log.jsonl"):
        assert plots.read_log(where) == list(result.log)
    assert len(plots.training(plots.read_log(run)).axes[0].lines[0].get_xdata()) == len(result.log)


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no log of a training; give the folder of a run"):
        plots.read_log(tmp_path)
    file = tmp_path / "log.jsonl"
    for line in (b"{", b"3", b'{"loss": 1.0}', b'{"step": null}', b'{"step": 1e999}', b"\xff\xfe", b"[" * 100_000):
        file.write_bytes(b'{"step": 1}\n' + line + b"\n")
        with pytest.raises(DataError, match=r"line 2 of .*log.jsonl is no record of a training"):
            plots.read_log(tmp_path)
    for log in ([], [record(1, None, [None] * 3)]):
        with pytest.raises(ConfigError, match="log must hold at least one record with a finite loss"):
            plots.training(log)
