r"""Training on data in memory: options, learning rate, folder, resuming.

The learning rate rises linearly over the warm-up, then falls to zero along a cosine or a line.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from scoresde.diffusions.gaussian import Moments
from scoresde.errors import (
    CheckpointError,
    ConfigError,
    ShapeError,
    check_integer,
    check_number,
    check_samples,
    explain_keywords,
    unknown,
)
from scoresde.models import checkpoint, saving
from scoresde.models.prediction import Condition, in_mode
from scoresde.models.score_model import ScoreModel
from scoresde.noise import check_seed, fresh_seed, stream
from scoresde.training.batches import Batches, check_labels
from scoresde.training.loop import CHECKPOINT, LOG, Judge, Record, Run
from scoresde.training.losses.times import TimeSampler
from scoresde.training.losses.weights import Weight
from scoresde.training.trainer import Objective, Trainer
from scoresde.transforms.base import Transform, check_transform

__all__ = ["DECAYS", "TrainResult", "fit"]

DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": lambda u: 0.5 * (1 + math.cos(math.pi * u)),
    "linear": lambda u: 1 - u,
    "constant": lambda u: 1.0,
}
STEPS_OF_EPOCHS = "steps= with steps = epochs * len(data) / batch_size"


@dataclass(frozen=True, eq=False)
class TrainResult:
    """What a training gave.

    Args:
        model: the model with the averaged weights, to sample from; the trained model itself keeps the raw ones.
        losses: the mean loss of each step of this call, (steps,), on the CPU; NaN where the step was skipped.
        log: the records that went to the log; ``plots.training`` draws them.
        steps: steps made in all.
        seconds: time spent in this call.
        seed: the seed that was used.
        folder: where the log and the checkpoint are, or None.
    """

    model: ScoreModel
    losses: Tensor
    log: tuple[Record, ...]
    steps: int
    seconds: float
    seed: int
    folder: Path | None


@explain_keywords(
    lr="learning_rate",
    **dict.fromkeys(("epochs", "n_epochs", "num_epochs", "max_epochs"), STEPS_OF_EPOCHS),
    **dict.fromkeys(("num_train_steps", "train_steps", "max_steps", "iterations"), "steps"),
    bs="batch_size",
    ema="ema_decay",
    warmup_steps="warmup",
    **dict.fromkeys(("scheduler", "lr_scheduler", "schedule"), "decay"),
    **dict.fromkeys(("grad_clip", "gradient_clip", "max_grad_norm"), "clip_norm"),
    **dict.fromkeys(("labels", "label", "y"), 'cond={"label": labels}'),
    **dict.fromkeys(("val_data", "validation"), "held_out"),
    **dict.fromkeys(("loss", "loss_fn"), "objective"),
    **dict.fromkeys(("amp", "mixed_precision"), "autocast=torch.bfloat16"),
    **dict.fromkeys(("output_dir", "save_dir", "checkpoint_dir"), "folder"),
    callback="on_log",
    verbose="progress",
)
def fit(
    model: ScoreModel,
    data: Tensor,
    *,
    steps: int,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    warmup: int | None = None,
    decay: str = "cosine",
    weight: str | Weight = "simple",
    times: str | TimeSampler = "low_discrepancy",
    objective: Objective | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
    ema_decay: float = 0.999,
    cond: Condition = None,
    label_dropout: float = 0.0,
    transform: Transform | None = None,
    held_out: Tensor | None = None,
    held_out_cond: Condition = None,
    autocast: torch.dtype | None = None,
    seed: int | None = 0,
    folder: str | os.PathLike[str] | None = None,
    save_every: int | None = None,
    log_every: int = 50,
    resume: bool = False,
    progress: bool = True,
    on_log: Callable[[Record], None] | None = None,
) -> TrainResult:
    """Train a model's network by denoising score matching on data that fit in memory.

    The data pass through the transform (one that draws noise draws it anew for every batch); their moments go to
    ``model.moments``, so that samplers start from the right prior. Every epoch is a new order of the data, drawn from
    (seed, epoch). The network trains in training mode on its own device; every module's mode is restored at the end.

    Args:
        model: the model; its network ends with the raw weights, its ``moments`` and ``transform`` are set.
        data: (N, *), finite, in the user's units, on any device.
        steps: number of steps in all.
        batch_size: samples of a step; more than N of them repeat.
        learning_rate: after the warm-up.
        warmup: steps of linear rise; by default a twentieth of the steps, at most 1000.
        decay: a key of ``DECAYS``, how the rate falls afterwards: "cosine" and "linear" to zero, or "constant".
        weight: a key of ``losses.WEIGHTS`` or a function.
        times: a key of ``losses.TIMES`` or a function.
        objective: a function (model, x0, generator, cond) -> losses (B,) in the place of the denoising loss, e.g.
            ``losses.ChainLoss.hybrid(chain)``; the log then has no losses by log-SNR, and ``held_out`` is not taken.
        weight_decay: decoupled, a share of the learning rate.
        clip_norm: largest norm of the gradient; None for no limit.
        ema_decay: in [0, 1).
        cond: conditions of the data, tensors (N, *), e.g. ``{"label": labels}``.
        label_dropout: share of the labels in ``cond["label"]`` that become -1, for guidance.
        transform: from the data's units to the model's; by default the model's own, if it has one.
        held_out: data (M, *) that are not trained on; their loss at fixed noise and times, with the averaged weights,
            goes into the log with every checkpoint that is due.
        held_out_cond: their conditions.
        autocast: None or torch.bfloat16.
        seed: of everything random; None draws one and reports it.
        folder: for log.jsonl and the checkpoint; new or empty unless ``resume``. None to write nothing.
        save_every: steps between checkpoints and held-out losses, by default a tenth of the steps; the last step has
            both in any case.
        log_every: steps between records.
        resume: go on from the folder's checkpoint, to the same bits as a run that was never interrupted.
        progress: show a bar with the loss and the time left.
        on_log: called with every record.

    Raises:
        DTypeError, ShapeError, DomainError, ConfigError: bad options or data, before anything is changed.
        CheckpointError: a folder that is not empty or not writable, a checkpoint that does not fit.
        SolverError: the loss stayed non-finite for three checks, or at the end; the last good checkpoint stands.
        KeyboardInterrupt: passed on after a checkpoint is written.
    """
    started = time.perf_counter()
    steps = check_integer(steps, "steps", 1)
    batch_size = check_integer(batch_size, "batch_size", 1)
    log_every = check_integer(log_every, "log_every", 1)
    save_every = max(1, steps // 10) if save_every is None else check_integer(save_every, "save_every", 1)
    seed = fresh_seed() if seed is None else check_seed(seed)
    rate = _schedule(steps, learning_rate, min(1000, steps // 20) if warmup is None else warmup, decay)
    if objective is not None and held_out is not None:
        raise ConfigError("held_out= is judged by the denoising loss; with objective=, use losses.held_out_loss after")
    trainer = Trainer(
        model,
        learning_rate=rate,
        weight=weight,
        times=times,
        objective=objective,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        ema_decay=ema_decay,
        autocast=autocast,
        seed=seed,
    )
    transform = model.transform if transform is None else check_transform(transform)
    x = check_samples(data, "data").detach()
    if x.shape[0] == 0:
        raise ShapeError("data is empty: training needs at least one sample")
    raw = x.to(torch.promote_types(x.dtype, torch.float32))
    x = raw if transform is None else transform.forward(raw, stream(seed, "transform", device=x.device))
    x = x.to(trainer.dtype)
    moments = Moments.of(x)
    redraws = transform is not None and transform.random
    batches = Batches(
        raw.to(trainer.dtype) if redraws else x,
        check_labels(cond, len(x), label_dropout),
        size=batch_size,
        label_dropout=label_dropout,
        seed=seed,
        device=trainer.device,
        transform=transform if redraws else None,
    )
    where = None if folder is None else Path(folder)
    if resume:
        _resume(where, trainer)
    if where is not None:
        _open_folder(where, resume)
    model.moments, model.transform = moments, transform
    judge = None if held_out is None else Judge(trainer, held_out, held_out_cond, weight, times)
    run = Run(trainer, batches, where, steps, save_every, log_every, on_log, judge)
    with (
        in_mode(trainer.net, training=True),
        tqdm(total=steps, initial=trainer.step, desc="training", unit="step", disable=not progress, leave=False) as bar,
    ):
        losses = run(lambda text: bar.set_postfix_str(text), bar.update)
    averaged = model.with_sde(model.sde)
    averaged.net = trainer.ema.copy()
    return TrainResult(averaged, losses, tuple(run.log), trainer.step, time.perf_counter() - started, seed, where)


def _schedule(steps: int, peak: float, warmup: int, decay: str) -> Callable[[int], float]:
    """Return the learning rate as a function of the step."""
    peak, rise = check_number(peak, "learning_rate", 0.0, open_low=True), check_integer(warmup, "warmup", 0, steps)
    if decay not in DECAYS:
        raise unknown("decay", decay, DECAYS)
    fall = DECAYS[decay]
    return lambda k: peak * ((k + 1) / (rise + 1) if k < rise else fall((k - rise) / (steps - rise)))


def _open_folder(folder: Path, resume: bool) -> None:
    """Make the folder and see that it is writable, and empty unless ``resume``."""
    try:
        if folder.is_dir() and not resume and any(folder.iterdir()):
            raise CheckpointError(f"{folder} is not empty; choose a new folder, or resume=True to go on from there")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOG).open("a", encoding="utf-8").close()
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be written: {error.strerror or error}; choose another folder"
        ) from error


def _resume(folder: Path | None, trainer: Trainer) -> None:
    """Load the folder's checkpoint into the network and the trainer; the log's later records are dropped."""
    if folder is None:
        raise ConfigError("resume=True needs the folder= of the run to go on with")
    contents = checkpoint.read(folder / CHECKPOINT)
    numbers = contents.document("training")
    if numbers["seed"] != trainer.seed:
        raise ConfigError(f"{contents.folder} was trained with seed={numbers['seed']}, got seed={trainer.seed}")
    saving.load_network(contents, "weights", trainer.net)
    trainer.restore(numbers, contents.tensors("training_state"))
    log = folder / LOG
    if log.is_file():
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
        # A line that was being written when the run was killed has no end.
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= trainer.step]
        log.write_text("".join(kept), encoding="utf-8")
