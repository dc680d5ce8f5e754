"""Weights of a file that torch.save wrote, as safetensors: the way in for networks that were kept in pickles.

Such a file is a pickle, and loading a pickle runs whatever code it names. Here a process of its own reads it with
torch's reader of weights alone (``models/torch_reader.py``), which makes tensors, containers and numbers and refuses
the rest. Nested containers become names with dots: {"ema": {"conv.weight": ...}} is "ema.conv.weight".
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scoresde.errors.kinds import CheckpointError
from scoresde.errors.values import check_path
from scoresde.models import torch_reader

__all__ = ["Converted", "convert_weights"]

SAVE_TENSORS = "save the tensors alone where it was made: torch.save(net.state_dict(), file)"


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What was written.

    Args:
        tensors: their number.
        bytes: theirs.
        left_out: the names of values that are no tensors: steps, rates, options.
    """

    tensors: int
    bytes: int
    left_out: tuple[str, ...]


def convert_weights(file: str | Path, out: str | Path, *, part: str = "", limit: float = 16.0) -> Converted:
    """Write the tensors of a file of torch.save as safetensors, in one atomic change; no code of the file runs.

    Args:
        file: what torch.save wrote.
        out: the file of safetensors.
        part: only what is under this name, e.g. "model.module", which is left out of the names.
        limit: of the file and of its tensors, in GiB.

    Raises:
        CheckpointError: no such file, one that is too large, cut, or holds more than tensors, numbers and containers.
    """
    source, target = check_path(file, "file"), check_path(out, "out")
    _check_source(source, limit)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    # Without the present folder on the path, where a file of a module's name could stand.
    command = [sys.executable, "-P", torch_reader.__file__, str(source), str(temporary), part, str(int(limit * 2**30))]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
        )
        said = _read_answer(source, target, done)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return Converted(tensors=said["tensors"], bytes=said["bytes"], left_out=tuple(said["left_out"]))


def _check_source(source: Path, limit: float) -> None:
    if source.is_dir():
        raise CheckpointError(f"{source} is a folder; name the file in it")
    if not source.is_file():
        raise CheckpointError(f"{source} does not exist; name a file that torch.save wrote")
    if source.suffix.lower() == ".safetensors":
        raise CheckpointError(f"{source} is of safetensors already; load it with safetensors.torch.load_file")
    if source.stat().st_size > limit * 2**30:
        size = source.stat().st_size / 2**30
        raise CheckpointError(f"{source} has {size:.3g} GiB, more than {limit:g}; --limit allows more")


def _read_answer(source: Path, target: Path, done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return what the reader said; CheckpointError where it could not read."""
    try:
        said: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        how = f"by {signal.Signals(-done.returncode).name}" if done.returncode < 0 else f"with {done.returncode}"
        last = (done.stderr.strip().splitlines() or [""])[-1]
        raise CheckpointError(
            f"the process that read {source} ended {how}; the file is damaged, or the memory too small: {last}"
        ) from error
    if "error" not in said:
        return said
    text, kind = str(said["error"]), said["kind"]
    named = re.search(r"GLOBAL ([\w.]+)", text)
    if named is not None:
        raise CheckpointError(
            f"{source} holds more than tensors: it names {named[1]}, of which nothing was run; {SAVE_TENSORS}"
        )
    if kind == "UnpicklingError":
        raise CheckpointError(f"{source} holds more than tensors, or is no file of torch.save; {SAVE_TENSORS}")
    if kind == "ValueError":
        raise CheckpointError(f"{source} {text}")
    if kind == "writing":
        raise CheckpointError(f"{target} could not be written ({text}); make room or choose another path")
    why = text.partition(". ")[0].rstrip(".")
    raise CheckpointError(f"{source} is cut, damaged or no file of torch.save ({kind}: {why}); take another copy")
