"""One training by two processes: what one process does, gone on to the same bits, and ended in time when one dies."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from small_models import F64
from torch import nn
from torch.utils.data import Dataset

from scoresde import VPSDE, ConfigError, LearnedSchedule, ScoreModel, fit
from scoresde.models import checkpoint
from scoresde.nn import MLP
from scoresde.noise import normal, stream
from scoresde.sampling.processes import World

TESTS = str(Path(__file__).parent)
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs gloo")
DATA = normal((60, 2), stream(0, "parallel"), dtype=F64)
# Seven samples a step: shares of three and four.
OPTIONS = {"steps": 12, "batch_size": 7, "progress": False, "save_every": 4, "log_every": 3, "held_out": DATA[:11]}


class Items(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return len(DATA)

    def __getitem__(self, index: int) -> torch.Tensor:
        return DATA[index] + 0.1 * torch.rand(2, dtype=F64)


def model() -> ScoreModel:
    return ScoreModel(MLP(2, width=8, depth=1, seed=3).double(), VPSDE())


def scheduled() -> ScoreModel:
    return ScoreModel(MLP(2, width=8, depth=1, seed=3).double(), LearnedSchedule(4))


START = f"""
import os, sys
sys.path.insert(0, {TESTS!r})
import torch
torch.set_num_threads(1)
from scoresde import ConfigError, ProcessError, fit, processes
from test_parallel_training import DATA, OPTIONS, Items, model, scheduled

class Stop(Exception):
    pass
"""

WHOLE = """
with processes() as world:
    one = model()
    fit(one, DATA, folder="two", world=world, **OPTIONS)
    flat = torch.cat([v.flatten() for v in one.net.state_dict().values()])
    assert torch.equal(*world.gather(flat[None])), "the processes have one network"
    assert type(one.net).__name__ == "MLP"
    fit(model(), Items(), folder="items", workers=world.rank, world=world, accumulate=2, sigma_rel=0.1, **OPTIONS)
    unsure = model()
    fit(unsure, DATA, folder="unsure", uncertainty=True, world=world, **OPTIONS)
    flat = torch.cat([v.flatten() for v in unsure.net.state_dict().values()])
    assert torch.equal(*world.gather(flat[None])), "a learned weight is one for all"
    fit(scheduled(), DATA, folder="scheduled", world=world, **OPTIONS)
    def stop(done, steps, seconds):
        if done == 9:
            raise Stop
    plain = {**OPTIONS, "held_out": None, "log_every": 5}
    fit(model(), DATA, folder="plain", world=world, **plain)
    try:
        fit(model(), DATA, folder="cut", world=world, **{**plain, "progress": stop})
    except Stop:
        world.barrier()
    fit(model(), DATA, folder="cut", world=world, resume=True, **plain)
    try:
        fit(model(), iter([DATA]), world=world, steps=2)
    except ConfigError as error:
        assert "cannot be shared out among processes; give the data set" in str(error)
    try:
        fit(model(), DATA, world=world, steps=2, batch_size=1)
    except ConfigError as error:
        assert "batch_size must be at least 2, a sample for each process" in str(error)
print("done")
"""

DIES = """
def die(done, steps, seconds):
    if done == 6 and os.environ["RANK"] == "1":
        os._exit(7)
try:
    with processes(timeout=20) as world:
        fit(model(), DATA, folder="dead", world=world, **{**OPTIONS, "progress": die})
except ProcessError as error:
    print("lost:", error)
    os._exit(3)
"""


def run(script: Sequence[str], folder: Path) -> list[tuple[int, str, str]]:
    """Run a program in two processes of a job; return their exit codes and what they said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    given = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    group = [
        subprocess.Popen(
            [sys.executable, *script],
            cwd=folder,
            env={**given, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=180) for process in group]
    finally:
        for process in group:
            process.kill()
    return [(process.returncode, *text) for process, text in zip(group, said, strict=True)]


def records(folder: Path) -> list[dict[str, object]]:
    lines = (folder / "log.jsonl").read_text("utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def test_two_processes_make_the_steps_of_one(tmp_path: Path) -> None:
    """The same order, times and noise: weights, averages, losses and the log agree to rounding, also of items."""
    for code, out, error in run(["-c", START + WHOLE], tmp_path):
        assert code == 0, error
        assert out.strip().endswith("done")
    fit(model(), DATA, folder=tmp_path / "one", **OPTIONS)
    fit(model(), Items(), folder=tmp_path / "one items", accumulate=2, sigma_rel=0.1, **OPTIONS)
    fit(model(), DATA, folder=tmp_path / "one unsure", uncertainty=True, **OPTIONS)
    fit(scheduled(), DATA, folder=tmp_path / "one scheduled", **OPTIONS)
    pairs = (("one", "two"), ("one items", "items"), ("one unsure", "unsure"), ("one scheduled", "scheduled"))
    for name, other in pairs:
        mine, theirs = (checkpoint.read(tmp_path / folder / "checkpoint") for folder in (name, other))
        for part in ("weights", "ema", "training_state", "moments"):
            for key, value in mine.tensors(part).items():
                torch.testing.assert_close(theirs.tensors(part)[key], value, rtol=1e-6, atol=1e-9, msg=f"{part} {key}")
        assert mine.document("run") == theirs.document("run")
        for one, two in zip(records(tmp_path / name), records(tmp_path / other), strict=True):
            assert one.keys() == two.keys()
            assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
            assert two["held_out_loss" if "held_out_loss" in one else "step"] == pytest.approx(
                one.get("held_out_loss", one["step"]), rel=1e-6
            )
            filled = [(a, b) for a, b in zip(one["loss_by_log_snr"], two["loss_by_log_snr"], strict=True) if a or b]
            assert all(b == pytest.approx(a, rel=1e-5) for a, b in filled)
    cut, whole = (checkpoint.read(tmp_path / name / "checkpoint") for name in ("cut", "plain"))
    assert cut.files == whole.files, "a run of two that was stopped goes on to the same bits"
    assert records(tmp_path / "cut") == records(tmp_path / "plain")


def test_a_process_that_dies_ends_the_job_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    (code, out, error), (other, _, _) = run(["-c", START + DIES], tmp_path)
    assert (code, other) == (3, 7), error
    assert "lost: process 0 of 2 lost the others: one has died" in out
    assert "the last checkpoint stands, go on with resume=True" in out
    assert checkpoint.read(tmp_path / "dead" / "checkpoint").document("training")["step"] == 4


def test_the_command_line_trains_by_several_processes(tmp_path: Path) -> None:
    options = ["--data", "moons", "--steps", "12", "--batch-size", "8", "--threads", "1", "--watch"]
    program = ["-m", "scoresde", "train", *options, "--out", "run"]
    (code, out, error), (other, quiet, silent) = run(program, tmp_path)
    assert (code, other) == (0, 0), error + silent
    assert "training     12 steps of 8 samples on 2 processes" in out
    assert quiet == ""
    run_json = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))
    assert run_json["complete"] is True
    assert checkpoint.read(tmp_path / "run" / "checkpoint").document("training")["step"] == 12
    assert [line["step"] for line in records(tmp_path / "run") if "watched" in line] == list(range(1, 13))


def test_a_world_that_is_not_connected_is_refused() -> None:
    with pytest.raises(ConfigError, match="world= is that of `with processes"):
        fit(model(), DATA, world=World(0, 2), **OPTIONS)
    with pytest.raises(ConfigError, match="no trainable parameters"):
        fit(ScoreModel(nn.Identity(), VPSDE()), DATA, world=World(0, 1), **OPTIONS)
