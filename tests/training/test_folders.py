"""What a run's folder holds: the log in two forms, the newest, the last and the best checkpoints; killed or not."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import DATA, same, tiny, weights

from scoresde import VPSDE, CheckpointError, ConfigError, DTypeError, ScoreModel, fit
from scoresde.models import checkpoint
from scoresde.training.log import Log, open_trackers
from scoresde.training.losses import ChainLoss

OPTIONS: dict[str, Any] = {"steps": 12, "batch_size": 20, "progress": False, "save_every": 4, "log_every": 3}
HELD_OUT = DATA[900:]


class Stop(Exception):
    """Raised in the middle of a run."""


def stop_at(step: int) -> Callable[[Any], None]:
    def stop(record: Any) -> None:
        if record["step"] == step:
            raise Stop

    return stop


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "log.jsonl").read_text("utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(encoding="utf-8", newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def watch(model: ScoreModel) -> dict[str, float]:
    assert not model.net.training
    return {"largest": float(next(model.net.parameters()).abs().max()), "nothing": math.nan}


def test_the_log_has_every_number_in_both_forms(tmp_path: Path) -> None:
    seen: list[tuple[dict[str, Any], int | None]] = []

    class Numbers:
        def log(self, values: dict[str, Any], step: int | None = None) -> None:
            seen.append((values, step))

    fit(tiny(), DATA, folder=tmp_path, held_out=HELD_OUT, watch=watch, trackers=[Numbers()], **OPTIONS)
    lines, table = records(tmp_path), rows(tmp_path)
    assert [line["step"] for line in lines] == [3, 4, 6, 8, 9, 12]
    assert [int(row["step"]) for row in table] == [3, 4, 6, 8, 9, 12]
    for line, row, (values, step) in zip(lines, table, seen, strict=True):
        assert float(row["loss"]) == line["loss"] == values["loss"]
        assert step == line["step"]
        judged = line["step"] in (4, 8, 12)
        assert (row["held_out_loss"] != "") == judged == ("held_out_loss" in line) == ("held_out_loss" in values)
        assert row["nothing"] == ""
        assert "nothing" not in values
        if judged:
            assert float(row["largest"]) == line["watched"]["largest"] == values["largest"]
            assert line["watched"]["nothing"] is None


def test_a_watch_that_gives_no_numbers_is_told(tmp_path: Path) -> None:
    for bad, kind, message in (
        (lambda model: 3, DTypeError, "watch must return a dict of numbers or None, got 3"),
        (
            lambda model: {1: 2.0},
            DTypeError,
            r"what watch returns must be a dict from names to numbers, got \{1: 2.0\}",
        ),
        (lambda model: {"a": "b"}, DTypeError, "watch returned 'b' for 'a', which is no number"),
        (lambda model: {"loss": 1.0}, ConfigError, "watch returned 'loss', which the log has already"),
    ):
        with pytest.raises(kind, match=message):
            fit(tiny(), DATA, watch=bad, **OPTIONS)
    assert "watched" in fit(tiny(), DATA, watch=lambda model: None, **OPTIONS).log[-1]


@pytest.mark.parametrize("step", [4, 7, 9, 11])
@pytest.mark.parametrize("judged", [False, True])
def test_the_log_of_a_resumed_run_is_that_of_one_that_was_never_stopped(
    tmp_path: Path, step: int, judged: bool
) -> None:
    """Also the first record, whose mean goes back to before the checkpoint, and its losses by log-SNR."""
    given = {**OPTIONS, "log_every": 6, **({"held_out": HELD_OUT, "watch": watch} if judged else {})}
    fit(tiny(), DATA, folder=tmp_path / "whole", **given)

    def progress(done: int, steps: int, seconds: float) -> None:
        if done == step:
            raise Stop

    with pytest.raises(Stop):
        fit(tiny(), DATA, folder=tmp_path / "cut", **{**given, "progress": progress})
    if step < 5:  # killed before a checkpoint: the folder is taken anew
        fit(tiny(), DATA, folder=tmp_path / "cut", **given)
    else:
        with (tmp_path / "cut" / "log.jsonl").open("ab") as log:
            log.write(b'\n{"step": 5, "los\n\0\0\0\n[]\n{"step": "a"}\n\xff')
        fit(tiny(), DATA, folder=tmp_path / "cut", resume=True, **given)
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_a_log_that_cannot_be_written_says_what_stands(tmp_path: Path) -> None:
    log = Log(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"could not write .*log.jsonl: No .*the run's folder was removed"):
        log.add(fit(tiny(), DATA, **OPTIONS).log[-1])


def test_the_last_few_checkpoints_and_the_best_stay(tmp_path: Path) -> None:
    fit(tiny(), DATA, folder=tmp_path, keep=2, held_out=HELD_OUT, **{**OPTIONS, "save_every": 2, "steps": 10})
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["0000000008", "0000000010"]
    newest = checkpoint.read(tmp_path / "checkpoint")
    assert newest.files == checkpoint.read(tmp_path / "kept" / "0000000010").files
    judged = {line["step"]: line["held_out_loss"] for line in records(tmp_path) if "held_out_loss" in line}
    best = min(judged, key=judged.__getitem__)
    assert checkpoint.read(tmp_path / "best").document("training")["step"] == best
    ScoreModel.load(tmp_path / "best")


def test_patience_stops_and_gives_the_best_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [3.0, 1.0, 2.0, 2.0, 0.5, 0.1]
    given = {**OPTIONS, "save_every": 2, "steps": 20, "held_out": HELD_OUT, "patience": 2}

    def use(numbers: list[float]) -> None:
        left = iter(numbers)
        monkeypatch.setattr("scoresde.training.judge.Judge.__call__", lambda self: next(left))

    use(values)
    result = fit(tiny(), DATA, folder=tmp_path / "run", **given)
    assert result.steps == 8  # the fourth look is the second without a better one
    assert result.best_step == 4
    assert len(result.losses) == 8
    use(values)
    short = fit(tiny(), DATA, **{**given, "steps": 4, "decay": "constant", "warmup": 0})
    use(values)
    full = fit(tiny(), DATA, **{**given, "decay": "constant", "warmup": 0})
    assert same(weights(short.model), weights(full.model))
    loaded = ScoreModel.load(tmp_path / "run")
    assert same(weights(loaded), weights(result.model))
    # Going on takes up the count and the best weights.
    use([0.7, 0.8])
    again = fit(tiny(), DATA, folder=tmp_path / "run", resume=True, **given)
    assert again.steps == 8
    assert same(weights(again.model), weights(result.model))


class Blind(torch.nn.Module):
    """A network that is of use in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny().net

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        return self.inner(x, c_noise) * (1.0 if self.training else math.nan)


def test_a_held_out_loss_that_is_none_is_written_as_none(tmp_path: Path) -> None:
    result = fit(ScoreModel(Blind(), VPSDE()), DATA, folder=tmp_path, held_out=HELD_OUT, calibrate=False, **OPTIONS)
    assert [line["held_out_loss"] for line in records(tmp_path) if "held_out_loss" in line] == [None] * 3
    assert result.best_step is None


def test_what_is_changed_on_purpose_is_judged_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that patience ended goes on with other data, whose losses are no measure of those before."""
    given = {**OPTIONS, "save_every": 2, "steps": 20, "held_out": HELD_OUT, "patience": 2, "folder": tmp_path}

    def use(numbers: list[float]) -> None:
        left = iter(numbers)
        monkeypatch.setattr("scoresde.training.judge.Judge.__call__", lambda self: next(left))

    use([0.1, 0.2, 0.3])
    assert fit(tiny(), DATA, **given).steps == 6
    use([5.0, 4.0, 4.5, 4.6])
    result = fit(tiny(), DATA + 1, resume="change", **given)
    assert (result.steps, result.best_step) == (14, 10)


def test_what_a_kill_left_undone_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the checkpoint and before the copy that is the best, and before the averages are written."""
    given = {**OPTIONS, "save_every": 2, "steps": 12, "held_out": HELD_OUT, "patience": 4, "sigma_rel": (0.1, 0.05)}
    values = [3.0, 2.0, 1.0, 1.5, 1.6, 1.7]

    def use(numbers: list[float]) -> None:
        left = iter(numbers)
        monkeypatch.setattr("scoresde.training.judge.Judge.__call__", lambda self: next(left))

    use(values)
    whole = fit(tiny(), DATA, folder=tmp_path / "whole", **given)

    def die(folder: Path, step: int, number: int) -> None:
        if step == 6:
            raise Stop

    use(values)
    with monkeypatch.context() as patch:
        patch.setattr("scoresde.training.loop.keep_last", die)
        with pytest.raises(Stop):
            fit(tiny(), DATA, folder=tmp_path / "cut", **given)
    use(values[3:])
    cut = fit(tiny(), DATA, folder=tmp_path / "cut", resume=True, **given)
    assert cut.best_step == whole.best_step == 6
    assert same(weights(cut.model), weights(whole.model))
    assert checkpoint.read(tmp_path / "cut" / "best").document("training")["step"] == 6
    kept = [sorted(f.name for f in (tmp_path / name / "averages").iterdir()) for name in ("cut", "whole")]
    assert kept[0] == kept[1]


def test_a_tracker_that_fails_does_not_cost_the_checkpoint(tmp_path: Path) -> None:
    class Broken:
        def log(self, values: dict[str, Any], step: int | None = None) -> None:
            if step == 12:
                raise ConnectionError("no route")

    with pytest.raises(ConnectionError):
        fit(tiny(), DATA, folder=tmp_path, trackers=Broken(), **{**OPTIONS, "save_every": 12})
    assert checkpoint.read(tmp_path / "checkpoint").document("training")["step"] == 12


def test_numbers_that_are_watched_may_change(tmp_path: Path) -> None:
    def other(model: ScoreModel, step: int) -> dict[str, float]:
        return {"early" if step < 8 else "late": float(step)}

    fit(tiny(), DATA, folder=tmp_path, watch=other, **OPTIONS)
    table = rows(tmp_path)
    assert [(row["early"], row["late"]) for row in table if row["early"] or row["late"]] == [
        ("4.0", ""),
        ("", "8.0"),
        ("", "12.0"),
    ]


def test_an_objective_is_judged_on_held_out_data_by_itself() -> None:
    from scoresde import DDPM

    loss = ChainLoss.simple(DDPM.cosine(20))
    log = fit(tiny(), DATA[:900], objective=loss, held_out=HELD_OUT, **OPTIONS).log
    assert "held_out_loss" in log[-1]
    constant = fit(
        tiny(), DATA[:900], objective=lambda m, x, g, c: (m.net(x, x[:, 0]) * 0).sum(1) + x.square().sum(1),
        held_out=HELD_OUT, **OPTIONS,
    )  # fmt: skip
    assert constant.log[-1]["held_out_loss"] == pytest.approx(float(HELD_OUT.square().sum(1).mean()))


class Items(torch.utils.data.Dataset[Any]):
    """Points that draw as they are read."""

    def __len__(self) -> int:
        return len(DATA)

    def __getitem__(self, index: int) -> torch.Tensor:
        return DATA[index] + 0.01 * torch.rand(2)


KILLED: dict[str, Any] = {**OPTIONS, "held_out": HELD_OUT, "watch": watch}
CHILD = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from scoresde import fit
from scoresde.models import checkpoint
from small_models import DATA, tiny
from test_folders import KILLED, Items

def kill(): os.kill(os.getpid(), signal.SIGKILL)
saves, put = [], checkpoint._put

def watched(file, data):
    # Of the second save: before its manifest, when its other files are there.
    if file.name == "manifest.json":
        saves.append(file)
        if len(saves) == 2 and {where!r} == "save": kill()
    put(file, data)

checkpoint._put = watched
def progress(done, steps, seconds):
    if done == 7 and {where!r} == "step": kill()
fit(tiny(), Items(), folder={folder!r}, workers={workers}, **{{**KILLED, "progress": progress}})
"""


@pytest.mark.parametrize(("where", "workers"), [("step", 2), ("save", 0)])
def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path: Path, where: str, workers: int) -> None:
    """SIGKILL in a step and in a save: parameters, optimiser, averages and log of the uninterrupted run."""
    tests, folder = str(Path(__file__).parent), str(tmp_path / "cut")
    source = CHILD.format(tests=tests, where=where, folder=folder, workers=workers)
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    child = subprocess.run([sys.executable, "-c", source], env=env, check=False, capture_output=True)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    fit(tiny(), Items(), folder=tmp_path / "cut", resume=True, workers=workers, **KILLED)
    fit(tiny(), Items(), folder=tmp_path / "whole", **KILLED)
    cut, whole = (checkpoint.read(tmp_path / name / "checkpoint") for name in ("cut", "whole"))
    assert cut.files == whole.files  # named by their digests
    assert records(tmp_path / "cut") == records(tmp_path / "whole")


def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    state = torch.get_rng_state()
    fit(tiny(), DATA, folder=tmp_path / "run", trackers=["tensorboard"], **OPTIONS)
    torch.set_rng_state(state)
    events = next((tmp_path / "run").rglob("events.*"))
    found = EventAccumulator(str(events.parent))
    found.Reload()
    got = {event.step: event.value for event in found.Scalars("loss")}
    for line in records(tmp_path / "run"):
        assert got[line["step"]] == pytest.approx(line["loss"], rel=1e-5)
    fit(tiny(), DATA, folder=tmp_path / "run", resume=True, **OPTIONS)


def test_a_tracker_whose_package_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ConfigError, match="the tracker 'wandb' needs accelerate and wandb: pip install"):
        open_trackers(["wandb"], None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("base.skip.weight"), "training_state.base.skip.weight of the checkpoint is missing"),
        (lambda state: state["offset.skip.bias"].fill_(math.nan), "training_state.offset.skip.bias .* or not finite"),
        (
            lambda state: state.update({"exp_avg.skip.bias": torch.zeros(3)}),
            r"training_state.exp_avg.skip.bias of the checkpoint is of shape \(3,\), or not finite; \(1,\) finite ones",
        ),
    ],
)
def test_an_altered_training_state_is_refused_by_the_field(tmp_path: Path, change: Any, message: str) -> None:
    fit(tiny(), DATA, folder=tmp_path, **OPTIONS)
    contents = checkpoint.read(tmp_path / "checkpoint")
    parts = {name: contents.tensors(name) for name in contents.parts}
    change(parts["training_state"])
    checkpoint.write(tmp_path / "checkpoint", contents.documents, parts)
    with pytest.raises(CheckpointError, match=message):
        fit(tiny(), DATA, folder=tmp_path, resume=True, **OPTIONS)


def test_a_second_training_in_a_folder_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    """New or resumed; the first goes on to its end, and the folder is free afterwards."""
    begun, go_on = threading.Event(), threading.Event()

    def wait(done: int, steps: int, seconds: float) -> None:
        if done == 5:
            begun.set()
            assert go_on.wait(60)

    first = threading.Thread(target=lambda: fit(tiny(), DATA, folder=tmp_path / "run", **{**OPTIONS, "progress": wait}))
    first.start()
    assert begun.wait(60)
    try:
        for resume in (True, False):
            with pytest.raises(CheckpointError, match=r"run is in use by another thread|run is not empty"):
                fit(tiny(), DATA, folder=tmp_path / "run", resume=resume, **OPTIONS)
    finally:
        go_on.set()
        first.join()
    assert [line["step"] for line in records(tmp_path / "run")] == [3, 6, 9, 12]
    fit(tiny(), DATA, folder=tmp_path / "run", resume=True, **OPTIONS)


def test_lines_of_a_log_that_are_no_records_are_dropped_when_a_run_goes_on(tmp_path: Path) -> None:
    constant = {**OPTIONS, "decay": "constant", "warmup": 0, "folder": tmp_path}
    fit(tiny(), DATA, **constant)
    whole = records(tmp_path)
    lines = (
        b'{"step": 3, "watched": null}',
        b'{"step": true}',
        b'{"step": 3, "watched": [1]}',
        b"[" * 100_000,
        b"\xff",
    )
    with (tmp_path / "log.jsonl").open("ab") as stream:
        stream.write(b"\n".join((*lines, b'{"step": 3, "half of a letter": "\\ud800"}\n')))
    fit(tiny(), DATA, **{**constant, "steps": 15, "resume": True})
    assert records(tmp_path)[: len(whole)] == whole
    assert "\\ud800" in (tmp_path / "log.csv").read_text("utf-8")


def test_a_folder_that_is_removed_in_a_run_is_said(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(CheckpointError, match=r"log.jsonl: No such file or directory; the run's folder was removed"):
        fit(tiny(), DATA, folder=run, on_log=lambda _: shutil.rmtree(run), **{**OPTIONS, "save_every": 12})
