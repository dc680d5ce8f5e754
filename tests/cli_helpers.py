"""What the tests of the command line share: how a command is run, in this process and as one of its own."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from scoresde import cli

Folders = tuple[Path, Path, Path]
QUICK = ("--steps", "4", "--batch-size", "16")


def main(argv: Sequence[str]) -> int:
    """Run a command; tyro draws from Python's generator where it sees pytest, to check its own cache."""
    state = random.getstate()
    try:
        return cli.main(argv)
    finally:
        random.setstate(state)


def refused(capsys: pytest.CaptureFixture[str], argv: Sequence[str]) -> str:
    """Run a command that must fail as a user's mistake, and return its one line."""
    capsys.readouterr()
    assert main(argv) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("results in")]
    assert out == ""
    assert len(lines) == 1, err
    assert lines[0].startswith("scoresde: error: ")
    return lines[0].removeprefix("scoresde: error: ")


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed, without boxes and line breaks."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def start(argv: Sequence[str], cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "scoresde", *argv],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell without job control starts its children with Ctrl-C ignored, and they would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
