"""What a run's folder holds, and what of it stays: the newest checkpoint, the last few, the best.

    checkpoint/              the newest
    kept/0000000200/         the last ``keep``, by their steps, where more than one is kept
    best/                    the one with the least held-out loss
    averages/0000000200/     averages of several widths (``training.averages``)
    log.jsonl, log.csv

Copies of a checkpoint share its files where the disk can link them, and stand in place in one rename.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from scoresde.errors.kinds import CheckpointError
from scoresde.models.lock import IN_RUN, LOCK
from scoresde.models.manifest import MANIFEST
from scoresde.training.log import LOG, TABLE

__all__ = ["BEST", "CHECKPOINT", "KEPT", "copy_checkpoint", "is_unfinished", "keep_last"]

CHECKPOINT, KEPT, BEST = IN_RUN, "kept", "best"
RUN_FILE = "run.json"  # of the command line


def copy_checkpoint(source: Path, target: Path) -> None:
    """Put a copy of a checkpoint at ``target``, in the place of what is there; CheckpointError where it cannot be."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary, copy_function=_link, ignore=shutil.ignore_patterns(".*"))
        if target.exists():
            # No rename replaces a folder that holds something.
            old = target.with_name(f".{target.name}.{os.getpid()}.old.tmp")
            target.rename(old)
            temporary.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(target)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"could not copy {source} to {target}: {error.strerror or error}; make room") from error


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        return str(shutil.copy2(source, target))
    return target


def keep_last(folder: Path, step: int, number: int) -> None:
    """Keep the newest checkpoint beside the last ones, and no more than ``number`` of them."""
    if number == 1:
        return
    copy_checkpoint(folder / CHECKPOINT, folder / KEPT / f"{step:010d}")
    for old in sorted((folder / KEPT).glob("[0-9]*"))[:-number]:
        with contextlib.suppress(OSError):
            shutil.rmtree(old)


def is_unfinished(folder: Path) -> bool:
    """Return whether a folder holds nothing, or what a run leaves that was stopped before its first checkpoint."""
    ours = {LOG, TABLE, RUN_FILE, CHECKPOINT, LOCK}
    names = {file.name for file in folder.iterdir()}
    rest = {name for name in names - ours if not (name.startswith(".") and name.endswith(".tmp"))}
    return not rest and not (folder / CHECKPOINT / MANIFEST).exists()
