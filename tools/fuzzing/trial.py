"""One case, tried: its lines run one by one in an empty folder, and what they must not do is looked for."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from global_state import changes, global_state

from fuzzing import names
from scoresde import ScoreSDEError

__all__ = ["Finding", "try_case"]

PACKAGE = f"{os.sep}scoresde{os.sep}"
CASE = "<case>"
FIRST_LINE = "from fuzzing.names import *"


class HangError(BaseException):
    """A line did not end within its time; no Exception, so that nothing on the way keeps it."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a case did that nothing may do.

    Args:
        what: in words.
        where: the place in the package, by which findings are told apart.
        lines: the case.
    """

    what: str
    where: str
    lines: tuple[str, ...]

    def __str__(self) -> str:
        """Say what it is, and the lines that show it: in an empty folder, with tools/ and tests/ on the path."""
        return "\n".join([f"{self.what} ({self.where})", *(f"    {line}" for line in (FIRST_LINE, *self.lines))])


@contextlib.contextmanager
def _in_time(seconds: float) -> Iterator[None]:
    """Raise HangError where a block takes longer."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _somewhere() -> Iterator[None]:
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def _place(error: BaseException) -> str:
    """Return the innermost place in the package at which an error arose; "" where it arose in the case itself."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if PACKAGE in frame.filename]
    if not ours or frames[-1].filename == CASE:
        return ""
    return f"{ours[-1].filename.rpartition(PACKAGE)[2]}:{ours[-1].lineno}"


def _keep(value: object) -> object:
    """Return a copy of a tensor or an array to compare with, None for anything else."""
    if isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.layout == torch.strided:
        return value.detach().clone()
    return value.copy() if isinstance(value, np.ndarray) else None


def _same(value: object, kept: object) -> bool:
    if isinstance(value, torch.Tensor) and isinstance(kept, torch.Tensor):
        return value.shape == kept.shape and value.dtype == kept.dtype and _bytes(value.detach()) == _bytes(kept)
    return bool(np.array_equal(np.asarray(value), np.asarray(kept), equal_nan=True))


def _bytes(value: torch.Tensor) -> bytes:
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""


def _has_nan(value: object) -> bool:
    """Return whether a number, a tensor, or a sequence of such holds a NaN."""
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu" or value.layout != torch.strided or not value.dtype.is_floating_point:
            return False
        return bool(torch.isnan(value.float() if value.dtype != torch.float64 else value).any())
    if isinstance(value, np.ndarray):
        return value.dtype.kind == "f" and bool(np.isnan(value).any())
    if isinstance(value, float):
        return math.isnan(value)
    return isinstance(value, (list, tuple)) and any(map(_has_nan, value))


def _finite(lines: Sequence[str]) -> bool:
    """Return whether a case names no NaN and no infinity itself."""
    return not any(word in line for line in lines for word in ("nan", "inf"))


def try_case(lines: Sequence[str], seconds: float) -> Finding | None:
    """Run a case and return what it did that nothing may do; None for a sound result, or an error of the package's."""
    space = {name: getattr(names, name) for name in names.__all__}
    with _somewhere(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, line in enumerate(lines, start=1):
            case = tuple(lines[:number])
            kept = {name: own for name, value in space.items() if (own := _keep(value)) is not None}
            before = global_state()
            finding: Finding | None = None
            failed = False
            try:
                with _in_time(seconds), contextlib.redirect_stdout(None):
                    # What is run is what is printed: a reproduction cannot differ from the case.
                    exec(compile(line, CASE, "exec"), space)
            except ScoreSDEError:
                failed = True
            except HangError as error:
                finding = Finding(f"no end after {seconds:g} s", _place(error), case)
            except Exception as error:
                # An error of the line's own code says that the case makes no sense: there is nothing to find in it.
                failed, where = True, _place(error)
                if where:
                    said = " ".join(str(error).split())[:120]
                    finding = Finding(f"{type(error).__name__}: {said}", where, case)
            if finding is None and (moved := changes(before)):
                finding = Finding(moved.partition(":")[0], line.partition("(")[0], case)
            if finding is None:
                changed = [name for name, value in kept.items() if not _same(space.get(name), value)]
                # A line may give a name a new value.
                changed = [name for name in changed if not line.startswith(f"{name} = ")]
                if changed:
                    finding = Finding(f"{changed[0]} was changed", line.partition("(")[0], case)
            if finding is None and not failed and _finite(case) and _has_nan(space.get("out")):
                finding = Finding("out holds NaN", case[-1].partition("(")[0], case)
            if finding is not None or failed:
                return finding
    return None
