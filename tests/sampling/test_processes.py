"""Several processes: the samples and likelihoods of one, whatever their number, and an end in time when one dies."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import main
from helpers import ROOT
from safetensors.torch import load_file
from torch import Tensor

from scoresde import (
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    Moments,
    ProcessError,
    ScoreModel,
    ShapeError,
    processes,
    read_shards,
    sample,
    write_shards,
)
from scoresde.cli import likelihood
from scoresde.nn import MLP
from scoresde.sampling.processes import TIMEOUT, World, world

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", TIMEOUT)
SAMPLE = ("sample", "--checkpoint", "model", "--solver", "heun:4", "--chunk-size", "4", "--seed", "5")
MEASURE = ("likelihood", "--checkpoint", "model", "--data", "moons", "--n", "20", "--samples", "4")
PART = 8  # so that twenty samples are three parts, and one of two processes has none in the second round

# What each of two processes does.
TOGETHER = f"""
import os, torch
from scoresde import ProcessError, ScoreModel, processes, sample, write_shards
from scoresde.cli import likelihood, main

model = ScoreModel.load("model")

def draw(rows):
    label = torch.arange(rows.start, rows.stop)
    x = sample(model, (len(label), 2), solver="ancestral", steps=4, seed=3, first_sample=rows.start)
    return {{"samples": x, "label": label}}

with processes() as world:
    write_shards("uneven", 7, draw, world=world, chunk_size=2, about={{"steps": 4}})
    write_shards("one", 1, draw, world=world)
    for dtype in (torch.float64, torch.bfloat16, torch.bool, torch.int32):
        mine = torch.full((2 * world.rank, 3), world.rank + 1).to(dtype)
        parts = world.gather(mine)
        assert [part.shape for part in parts] == [(0, 3), (2, 3)], parts
        assert parts[1].dtype == dtype and bool((parts[1] == torch.full((2, 3), 2).to(dtype)).all())
    try:
        world.gather(torch.zeros(2, world.rank + 1))
        raise AssertionError("tensors that do not fit were gathered")
    except ValueError as error:
        assert "gathers tensors of torch.float32" in str(error), error
    world.barrier()
likelihood.PART = {PART}
assert main([*{SAMPLE}, "--n", "11", "--out", "two.npy"]) == 0
assert main([*{SAMPLE}, "--n", "11", "--out", "folder"]) == 0
assert main([*{MEASURE}, "--out", "measured"]) == 0
# A third process that never comes.
os.environ |= {{"RANK": "0", "WORLD_SIZE": "3", "MASTER_PORT": "0", "{TIMEOUT}": "0.3"}}
try:
    with processes():
        raise AssertionError("there is no third")
except ProcessError as error:
    assert str(error).startswith("process 0 of 3 did not find the others: one has died, or was slower"), error
    assert str(error).endswith("{TIMEOUT}=1800 waits longer"), error
assert not torch.distributed.is_initialized()
"""

# The second process: silent for longer than the first waits, then dead before it has drawn anything.
FAILS = """
import os, sys, torch
from scoresde import ProcessError, processes, write_shards

print("ready", flush=True)

def silent(rows):
    sys.stdin.readline()  # until the first process has given up
    return torch.zeros(rows.stop - rows.start, 2)

os.environ["MASTER_PORT"] = sys.argv[1]
try:
    with processes() as world:
        write_shards(sys.argv[3], 4, silent, world=world)
except ProcessError:
    pass
os.environ["MASTER_PORT"] = sys.argv[2]
with processes() as world:
    write_shards(sys.argv[3], 4, lambda rows: 1 / 0, world=world)
"""


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No process of a job, whatever started the tests."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def clean(**more: str) -> dict[str, str]:
    """Return the environment of a child."""
    kept = {name: value for name, value in os.environ.items() if name not in NAMES}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


# ---------------------------------------------------------------------------------------------------------------------
# Laws


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("n", [0, 1, 5, 64, 1000])
def test_shares_are_the_whole_in_order_and_even(n: int, size: int) -> None:
    shares = [World(rank, size).share(n) for rank in range(size)]
    assert [k for one in shares for k in range(one.start, one.stop)] == list(range(n))
    counts = [one.stop - one.start for one in shares]
    assert max(counts) - min(counts) <= 1


def test_one_process_is_alone(environment: pytest.MonkeyPatch) -> None:
    with processes() as here:
        assert here == World()
        assert here.is_main
        x = torch.arange(3.0)
        assert here.gather(x) == (x,)
        here.barrier()
        assert not torch.distributed.is_initialized()


def test_the_environment_names_the_process(environment: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        environment.setenv(name, value)
    assert world() == World(5, 8, 1, torch.device("cpu"))
    assert not world().is_main


# ---------------------------------------------------------------------------------------------------------------------
# Two processes


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and what two processes made of it."""
    home = tmp_path_factory.mktemp("together")
    model = ScoreModel(MLP(2, width=8, depth=1), VPSDE())
    model.moments = Moments.of(torch.tensor([[0.0, 1.0], [1.0, -1.0], [0.5, 0.3]]))
    model.save(home / "model")
    (home / "together.py").write_text(TOGETHER, encoding="utf-8")
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    both = [
        subprocess.Popen(
            [sys.executable, "together.py"],
            cwd=home,
            env=clean(RANK=rank, LOCAL_RANK=rank, **place),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        said = [process.communicate(timeout=120) for process in both]
    finally:
        for process in both:
            process.kill()
            process.communicate()
    assert [process.returncode for process in both] == [0, 0], said
    assert said[1][0] == "", "the first process alone speaks"
    assert not any(word in said[1][1] for word in ("sampling", "results", "likelihood")), said[1]
    (home / "out").write_text(said[0][0], encoding="utf-8")
    return home


def test_two_processes_draw_the_samples_of_one(home: Path) -> None:
    model = ScoreModel.load(home / "model")
    whole = sample(model, (7, 2), solver="ancestral", steps=4, seed=3)
    scale = float(whole.abs().max())
    found = read_shards(home / "uneven")
    assert float((found - whole).abs().max()) < 1e-5 * scale
    assert torch.equal(read_shards(home / "uneven", "label"), torch.arange(7))
    assert torch.equal(read_shards(home / "uneven", start=2, stop=5), found[2:5]), "across both files"
    assert len(list((home / "uneven").glob("samples-*-of-00002-*.npy"))) == 2
    assert float((read_shards(home / "one") - whole[:1]).abs().max()) < 1e-5 * scale
    assert len(list((home / "one").glob("samples-*.npy"))) == 1, "a process without samples writes no file"


def test_the_command_line_of_two_processes_does_what_that_of_one_does(
    home: Path, environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.chdir(home)
    environment.setattr(likelihood, "PART", PART)
    assert main([*SAMPLE, "--n", "11", "--out", "one.npy"]) == 0
    assert main([*MEASURE, "--out", "alone"]) == 0
    mine = capsys.readouterr().out
    together = (home / "out").read_text(encoding="utf-8")
    assert together.count("wrote two.npy: 11 samples by heun, 8 evaluations each") == 1, (
        "the first process alone speaks"
    )
    assert together.count("wrote folder/: 11 samples by heun, 8 evaluations each") == 1
    x = np.load("one.npy", allow_pickle=False)
    for other in (np.load("two.npy", allow_pickle=False), read_shards("folder").numpy()):
        assert other.shape == (11, 2)
        assert np.abs(other - x).max() < 1e-5 * np.abs(x).max()
    assert [file.name for file in home.iterdir() if file.name.startswith(".")] == [], "nothing hidden stays"

    values, others = load_file("alone/values.safetensors"), load_file("measured/values.safetensors")
    assert values.keys() == others.keys()
    for name, value in values.items():
        assert len(value) == 20
        assert torch.allclose(value, others[name], rtol=1e-4, atol=1e-4, equal_nan=True), name

    def table(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith(("flow", "continuous", "bound of"))]

    # The mean and its 95 per cent interval, from the samples of both.
    assert len(table(mine)) == 3
    assert table(together) == table(mine)


# ---------------------------------------------------------------------------------------------------------------------
# Faults


def test_a_silent_process_and_a_dead_one_end_the_job_and_leave_the_samples(
    tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "samples"

    def draw(rows: slice) -> Tensor:
        return torch.ones(rows.stop - rows.start, 2)

    write_shards(folder, 3, draw)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    ports = [free_port(), free_port()]
    place = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    child = subprocess.Popen(
        [sys.executable, "-c", FAILS, *ports, folder],
        env=clean(RANK="1", **place),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n", child.stderr
        for name, value in {**place, "RANK": "0"}.items():
            environment.setenv(name, value)
        for port, seconds in zip(ports, (5.0, 60.0), strict=True):
            environment.setenv("MASTER_PORT", port)
            lost = r"process 0 of 2 lost the others: .*; look for the first error"
            with processes(timeout=seconds) as here, pytest.raises(ProcessError, match=lost):
                write_shards(folder, 4, draw, world=here)
            assert not torch.distributed.is_initialized()
            assert read_shards(folder).shape == (3, 2)
            child.stdin.write("go on\n")
            child.stdin.flush()
        assert {name: (folder / name).read_bytes() for name in before} == before
        _, error = child.communicate(timeout=60)
        assert child.returncode == 1
        assert "ZeroDivisionError" in error
    finally:
        child.kill()
        child.communicate()
    for name in NAMES:
        environment.delenv(name, raising=False)
    write_shards(folder, 3, draw)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before, "what the dead left is gone"


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"RANK": "0"}, "the environment has RANK and not the other of RANK and WORLD_SIZE; start with torchrun"),
        ({"WORLD_SIZE": "2"}, "the environment has WORLD_SIZE and not the other"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, r"RANK of the environment must be one of 0, \.\.\., 1, got '2'; start with"),
        (
            {"RANK": "0", "WORLD_SIZE": "0"},
            "WORLD_SIZE of the environment must be a whole number of at least 1",
        ),
        ({"RANK": "first", "WORLD_SIZE": "2"}, "got 'first'"),
        ({TIMEOUT: "soon"}, f"{TIMEOUT} must be a number of seconds, got 'soon'"),
    ],
)
def test_an_environment_that_is_none(named: dict[str, str], message: str, environment: pytest.MonkeyPatch) -> None:
    for name, value in named.items():
        environment.setenv(name, value)
    with pytest.raises(ConfigError, match=message), processes():
        pass


def test_options_and_tensors_that_are_none(environment: pytest.MonkeyPatch) -> None:
    with pytest.raises(DomainError, match=r"timeout must lie in \(0, inf\), got 0"), processes(timeout=0):
        pass
    with pytest.raises(DTypeError, match="n must be an integer"):
        World().share(2.5)
    with pytest.raises(ShapeError, match=r"x must have shape \(n, \*\), got a 0-d tensor"):
        World().gather(torch.tensor(1.0))
    with pytest.raises(DTypeError, match=r"x must be a torch\.Tensor, got float"):
        World().gather(1.0)
    with pytest.raises(ConfigError, match="process 1 of 2 is not connected; work inside `with processes"):
        World(1, 2).gather(torch.zeros(1))


def test_verbs_that_are_the_work_of_one(environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    environment.setenv("RANK", "1")
    environment.setenv("WORLD_SIZE", "2")
    assert main(["compare", "--checkpoint", "nowhere"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("scoresde: error in process 1 of 2: scoresde compare is the work of one process, not of 2;")
