"""The number of threads of a command: as asked, as the environment says, or what suits the network and the load."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_helpers import QUICK, Folders, main, refused, said

from scoresde.cli import compare as compare_verb
from scoresde.cli import sample as sample_verb
from scoresde.cli import threads, train_run
from scoresde.cli.threads import choose_threads, count_idle_cores, use_threads
from scoresde.nn import MLP, UNet

SMALL, LARGE = MLP(2, width=4, depth=1), UNet(1, width=4, multipliers=(1,))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int, float], None]:
    """Pretend to be a machine with so many cores, of which this process may use some, under a load."""

    def pretend(cores: int, allowed: int, load: float) -> None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)), raising=False)
        monkeypatch.setattr(os, "getloadavg", lambda: (load, 9.0, 9.0))
        monkeypatch.setattr(threads.sys, "platform", "linux")
        monkeypatch.setattr(torch, "get_num_threads", lambda: allowed)

    return pretend


@pytest.mark.parametrize(
    ("cores", "allowed", "load", "idle"),
    [
        (2, 2, 0.0, 2),
        (2, 2, 0.4, 2),
        (2, 2, 0.6, 1),
        (2, 2, 7.0, 1),
        (16, 16, 3.9, 12),
        (16, 4, 8.0, 2),
        (64, 4, 8.0, 4),
        (1, 1, 0.0, 1),
    ],
)
def test_a_large_network_gets_the_idle_cores_and_a_small_one_a_single_thread(
    cores: int, allowed: int, load: float, idle: int, machine: Callable[[int, int, float], None]
) -> None:
    machine(cores, allowed, load)
    assert count_idle_cores() == idle
    assert choose_threads(None, LARGE) == idle
    assert choose_threads(None, SMALL) == 1
    assert choose_threads(3, SMALL) == choose_threads(3, LARGE) == 3


def test_the_environment_comes_before_the_load(
    machine: Callable[[int, int, float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(8, 8, 7.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert choose_threads(None, SMALL) == choose_threads(None, LARGE) == 5
    assert choose_threads(2, LARGE) == 2


def test_the_number_is_put_back() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        with use_threads(before + 1):
            assert torch.get_num_threads() == before + 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert torch.get_num_threads() == before


def test_every_verb_that_computes_uses_as_many_as_asked(
    runs: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, seen = torch.get_num_threads(), []
    for verb, name in ((train_run, "fit"), (sample_verb, "sample"), (compare_verb, "compare")):
        work = getattr(verb, name)

        def watched(*args: object, work: Callable[..., object] = work, **options: object) -> object:
            seen.append(torch.get_num_threads())
            return work(*args, **options)

        monkeypatch.setattr(verb, name, watched)
    out = str(tmp_path / "run")
    assert main(["train", "--data", "moons", *QUICK, "--out", out, "--threads", str(before + 1)]) == 0
    assert f"4 steps of 16 samples on cpu, {before + 1} threads" in said(capsys)
    points = ["--checkpoint", str(runs[0]), "--n", "3", "--threads", str(before + 2)]
    assert main(["sample", *points, "--solver", "ddim:2", "--out", str(tmp_path / "x.npy")]) == 0
    assert main(["compare", *points, "--samplers", "ddim:2", "--out", str(tmp_path / "c")]) == 0
    assert seen == [before + 1, before + 2, before + 2]
    assert torch.get_num_threads() == before
    # A run keeps its number, on which the last digits depend.
    assert json.loads((tmp_path / "run" / "run.json").read_text())["options"]["threads"] == before + 1
    assert main(["train", "--resume", out]) == 0
    assert seen[-1] == before + 1
    assert "leave out --threads" in refused(capsys, ["train", "--resume", out, "--threads", "2"])
    for verb in (["train"], ["sample", "--checkpoint", str(runs[0])], ["compare", "--checkpoint", str(runs[0])]):
        assert "threads must be at least 1, got 0" in refused(capsys, [*verb, "--threads", "0"])


def test_help_says_the_number_of_now(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    text = "(default: OMP_NUM_THREADS, else 1 for an MLP and the idle cores for a U-Net, now "
    assert text in said(capsys)
