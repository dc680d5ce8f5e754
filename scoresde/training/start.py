"""How a run begins: in a new folder, or from the checkpoint of one that was interrupted."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from scoresde.errors.kinds import CheckpointError, ConfigError, DomainError
from scoresde.models import checkpoint, saving
from scoresde.models.lock import locked
from scoresde.models.networks import network_state
from scoresde.sampling.processes import World
from scoresde.training.averages import is_kept, keep_averages
from scoresde.training.batches import Batches
from scoresde.training.identity import CHANGE, Run
from scoresde.training.judge import Best
from scoresde.training.keeping import BEST, CHECKPOINT, copy_checkpoint, is_unfinished
from scoresde.training.log import LOG, Log
from scoresde.training.loop import RECENT
from scoresde.training.trainer import Trainer

__all__ = ["Start", "begin", "held", "open_folder"]

Resume = bool | Literal["change"]


@dataclass(frozen=True, eq=False)
class Start:
    """Where a run stands before its first step here: losses that no record has yet, and the best so far."""

    carried: Tensor | None
    best: Best


@contextmanager
def held(path: str | os.PathLike[str] | None, world: World, *, resume: Resume) -> Iterator[None]:
    """Hold the run's folder, so that no other process writes there; of several processes the first holds it.

    Raises:
        CheckpointError: another one holds it, or there is no checkpoint to go on from. ConfigError: ``resume`` without
            a folder.
    """
    if path is None and resume:
        raise ConfigError("resume=True needs the folder= of the run to go on with")
    if path is None or not world.is_main:
        yield
        return
    if resume and not (Path(path) / CHECKPOINT).is_dir():
        checkpoint.read(Path(path) / CHECKPOINT)  # which says what is missing
    if not resume:
        open_folder(path, resume=False)  # refused before anything is made
    with locked(path):
        yield


def open_folder(path: str | os.PathLike[str] | None, *, resume: Resume) -> Path | None:
    """Return the folder, writable, and empty unless ``resume``; made where it is not there.

    Raises:
        CheckpointError: it holds other files, or cannot be written. ConfigError: ``resume`` without a folder.
    """
    folder = None if path is None else Path(path)
    if folder is None or resume:
        return folder
    try:
        if folder.is_dir() and not is_unfinished(folder):
            raise CheckpointError(f"{folder} is not empty; choose a new folder, or resume=True to go on from there")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOG).open("a", encoding="utf-8").close()
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be written: {error.strerror or error}; choose another folder"
        ) from error
    return folder


def begin(
    folder: Path | None,
    trainer: Trainer,
    batches: Batches,
    run: Run | None,
    log: Log,
    *,
    resume: Resume,
    steps: int,
    patience: int | None,
) -> Start:
    """Begin a run, or load the folder's checkpoint into the network, the trainer and the data's place.

    Raises:
        ConfigError: the checkpoint is another run's. DomainError: fewer steps than it has made.
    """
    best = Best(patience)
    if not resume:
        if folder is not None and trainer.world.is_main:
            log.begin()
        return Start(None, best)
    assert folder is not None
    assert run is not None
    contents = checkpoint.read(folder / CHECKPOINT, at_once=not trainer.sharded)
    numbers = contents.document("training")
    run.follow(contents, int(numbers["step"]), folder, change=resume == CHANGE)
    if steps < numbers["step"]:
        raise DomainError(
            f"steps must be at least {numbers['step']}, which {folder} has made, got {steps}",
            parameter="steps",
            got=steps,
            allowed=f"at least {numbers['step']}",
        )
    state = contents.tensors("training_state", trainer.find_alike(contents.stored("training_state").described))
    saving.load_network(contents, "weights", trainer.net)
    trainer.restore(numbers, state, change=resume == CHANGE)
    batches.source.restore(numbers.get("source", {}))
    if resume != CHANGE:  # what is new is judged anew
        _restore_best(best, folder, numbers.get("best"), contents, trainer)
    if trainer.world.is_main:
        log.go_on_from(trainer.step)
    return Start(state.get(RECENT, torch.empty(0, dtype=torch.float32, device="cpu")), best)


def _restore_best(
    best: Best, folder: Path, numbers: dict[str, float | None] | None, contents: checkpoint.Contents, trainer: Trainer
) -> None:
    """Take up the best so far, its weights from the folder's best checkpoint; complete what a kill left undone."""
    step, like = trainer.step, network_state(trainer.net)
    mine = trainer.world.is_main or trainer.sharded
    if trainer.ema.sigma_rel is not None and mine and not is_kept(folder, step):
        keep_averages(folder, step, trainer.averages, trainer.world)
    if numbers is None or numbers["loss"] is None:
        return
    best.loss, best.step, best.looks = float(numbers["loss"]), int(numbers["step"] or 0), int(numbers["looks"] or 0)
    if best.step == step:
        best.weights = contents.tensors("ema", like) if best.patience is not None else None
        if trainer.world.is_main:
            copy_checkpoint(folder / CHECKPOINT, folder / BEST)
        return
    if best.patience is None:
        return
    try:
        kept = checkpoint.read(folder / BEST)
        found = int(kept.document("training")["step"])
    except CheckpointError:
        found = -1
    if found == best.step:
        best.weights = kept.tensors("ema", like)
    else:  # of a save that was cut off in between: begin to look anew
        best.loss, best.step, best.looks = math.inf, 0, 0
