"""Training: from options and data to a loop, its folder, resuming, and what came of it."""

from __future__ import annotations

import html
import inspect
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from scoresde.diffusions.gaussian import Moments
from scoresde.errors import (
    CheckpointError,
    ConfigError,
    DomainError,
    ScoreSDEError,
    TrainingWarning,
    check_integer,
    check_number,
    explain_keywords,
)
from scoresde.models import checkpoint, saving
from scoresde.models.score_model import ScoreModel
from scoresde.noise import check_seed, fresh_seed
from scoresde.ops import Array, Rows
from scoresde.sampling.tuning.calibrate import COST
from scoresde.sampling.tuning.calibrate import calibrate as find_calibration
from scoresde.training.batches import Batches, prepare_data
from scoresde.training.cautions import warn_of_loss
from scoresde.training.identity import CHANGE, Run, name_function
from scoresde.training.loop import CHECKPOINT, LOG, Judge, Loop, Progress, Record
from scoresde.training.losses.times import TimeSampler, TimesName
from scoresde.training.losses.weights import Weight, WeightName
from scoresde.training.rates import DecayName, LearningRate
from scoresde.training.trainer import Objective, Trainer
from scoresde.transforms.base import Transform, check_transform

__all__ = ["TrainResult", "fit"]

SCALES = 0.1, 10.0  # least standard deviation, largest root of the mean square, of data without a transform
ROWS = 10  # of the log in a notebook
SHARE = 1 / 16  # of the training's evaluations that a calibration may cost
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
        weight: the name of the loss's weight, "your own" for a function, None where there was an ``objective``.
        times: the name of the law of the times, likewise.
        folder: where the log and the checkpoint are, or None.
    """

    model: ScoreModel
    losses: Tensor
    log: tuple[Record, ...]
    steps: int
    seconds: float
    seed: int
    weight: str | None
    times: str | None
    folder: Path | None

    def __repr__(self) -> str:
        where = "" if self.folder is None else f", in {self.folder}"
        loss = self.log[-1]["loss"] if self.log else None
        text = "" if loss is None else f", loss {loss:.4g}"
        how = "" if self.weight is None else f", weight {self.weight}, times {self.times}"
        return f"<TrainResult {self.steps} steps in {self.seconds:.3g} s{text}{how}, seed {self.seed}{where}>"

    def _repr_html_(self) -> str:
        """Show the figures, the model and the last records of the log as a table, for notebooks."""
        names = ("step", "loss", "held_out_loss", "learning_rate", "gradient_norm", "seconds")
        rows: list[Mapping[str, object]] = [*self.log[-ROWS:]]
        shown = [name for name in names if any(name in row for row in rows)]
        title = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in shown)
        lines = ("".join(f"<td>{_show(row.get(name, ''))}</td>" for name in shown) for row in rows)
        table = "".join(f"<tr>{line}</tr>" for line in (title, *lines))
        figures = "<br>".join(html.escape(repr(part)) for part in (self, self.model))
        return f"<p>{figures}</p><table>{table}</table>"


def _show(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "not finite" if value is None else str(value)


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
    data: Array | Rows,
    *,
    steps: int,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    warmup: int | None = None,
    decay: DecayName = "cosine",
    weight: WeightName | Weight | None = None,
    times: TimesName | TimeSampler | None = None,
    objective: Objective | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
    ema_decay: float = 0.999,
    cond: Mapping[str, Array] | None = None,
    label_dropout: float = 0.0,
    cond_dropout: Mapping[str, float] | None = None,
    transform: Transform | None = None,
    held_out: Array | Rows | None = None,
    held_out_cond: Mapping[str, Array] | None = None,
    autocast: torch.dtype | None = None,
    seed: int | None = 0,
    folder: str | os.PathLike[str] | None = None,
    save_every: int | None = None,
    log_every: int = 50,
    resume: bool | Literal["change"] = False,
    calibrate: bool | None = None,
    progress: Progress = True,
    on_log: Callable[[Record], None] | None = None,
) -> TrainResult:
    """Train a model's network by denoising score matching on data in memory or in a mapped file.

    The data pass through the transform (one that draws noise draws it anew for every batch); their moments go to
    ``model.moments``, so that samplers start from the right prior. Every epoch is a new order of the data, drawn from
    (seed, epoch). The network trains in training mode on its own device; every module's mode is restored at the end.

    Args:
        model: the model; its network ends with the raw weights, its ``moments`` and ``transform`` are set. A network
            in ``torch.compile`` or ``DistributedDataParallel`` is trained through it; a wrapper around the model
            itself is left aside. The result's model has the network without wrappers. Each process of a group has
            data (whose moments its model gets), a seed and a folder (or none) of its own.
        data: a tensor on any device or a NumPy array, (N, *), finite, or bytes, in the user's units.
        steps: number of steps in all.
        batch_size: samples of a step; more than N of them repeat.
        learning_rate: after the warm-up.
        warmup: steps of linear rise; by default a twentieth of the steps, at most 1000.
        decay: a key of ``DECAYS``, how the rate falls afterwards: "cosine" and "linear" to zero, or "constant".
        weight: a key of ``losses.WEIGHTS`` or a function; None for what suits the prediction and the diffusion.
        times: a key of ``losses.TIMES`` or a function; None for what suits. ``TrainResult`` says what was taken.
        objective: a function (model, x0, generator, cond) -> losses (B,) in the place of the denoising loss, e.g.
            ``losses.ChainLoss.hybrid(chain)``; the log then has no losses by log-SNR, and ``held_out`` is not taken.
        weight_decay: decoupled, a share of the learning rate.
        clip_norm: largest norm of the gradient; None for no limit.
        ema_decay: in [0, 1).
        cond: conditions of the data, tensors or arrays (N, *), e.g. ``{"label": labels}``.
        label_dropout: share of the labels in ``cond["label"]`` that become -1, for guidance.
        cond_dropout: the same for any conditions, by name: ``{"context": 0.1}``; each is dropped by draws of its own,
            to -1 or NaN. The model remembers which (``model.dropout``).
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
        resume: go on from the folder's checkpoint, to the same bits as a run that was never interrupted. What the run
            is must be the same: the model, the data to the last bit, and every option that changes a step; what
            differs is refused by name. "change" goes on with other data or options on purpose, which the checkpoint
            keeps with the step; the network, its diffusion and what it predicts stay.
        calibrate: whether to find the solver and the grid that suit the trained model (``scoresde.calibrate``) at the
            end, for ``sample`` to use and the checkpoint to keep; None for yes where it takes less than a sixteenth
            of the evaluations of the training, a step's counted three times.
        progress: show a bar with the loss and the time left; or a function of the steps made, the steps in all and the
            seconds since the first of this call began, called after every step.
        on_log: called with every record.

    Warns:
        TrainingWarning: a weight and times under which a twentieth of the times carries nearly all of the weight on the
            network's own error, or that count the density of log-SNR twice; it says which serve. The calibration
            failed; the model is there without.

    Raises:
        DTypeError, ShapeError, DomainError, ConfigError: bad options or data, before anything is changed.
        CheckpointError: a folder that is not empty or not writable, a checkpoint that does not fit.
        ConfigError: a run to go on with that is another one; ``allowed`` names what differs.
        SolverError: the loss stayed non-finite for three checks, or at the end; the last good checkpoint stands.
        KeyboardInterrupt: passed on after a checkpoint is written.
    """
    started = time.perf_counter()
    steps = check_integer(steps, "steps", 1)
    batch_size = check_integer(batch_size, "batch_size", 1)
    log_every = check_integer(log_every, "log_every", 1)
    save_every = max(1, steps // 10) if save_every is None else check_integer(save_every, "save_every", 1)
    if resume not in (False, True, CHANGE):
        raise ConfigError(f"resume must be True, False or 'change', got {resume!r}", parameter="resume", got=resume)
    seed = fresh_seed() if seed is None else check_seed(seed)
    if objective is not None and held_out is not None:
        raise ConfigError("held_out= is judged by the denoising loss; with objective=, use losses.held_out_loss after")
    rate = LearningRate(learning_rate, warmup, steps, decay)
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
    model = trainer.model
    if objective is None:
        warn_of_loss(model, weight, times)
    transform = model.transform if transform is None else check_transform(transform)
    dropout = _read_dropout(label_dropout, cond_dropout)
    batches, moments = prepare_data(
        data,
        cond,
        transform,
        batch_size=batch_size,
        dropout=dropout,
        seed=seed,
        device=trainer.device,
        dtype=trainer.dtype,
    )
    if transform is None:
        _warn_of_scale(moments)
    options: dict[str, object] = {"learning_rate": rate.peak, "warmup": rate.warmup, "decay": decay}
    # Where no rate depends on how many steps there are, a longer run makes the same ones.
    options["steps"] = None if decay == "constant" and rate.warmup is not None else steps
    own = {"weight": weight, "times": times}
    options |= {name: f"your own: {name_function(one)}" for name, one in own.items() if inspect.isroutine(one)}
    run = None if folder is None else Run.of(trainer, batches, options)
    where = _open_folder(folder, trainer, run, resume, steps)
    model.moments, model.transform, model.dropout = moments, transform, dropout
    loop = Loop(
        trainer,
        batches,
        folder=where,
        steps=steps,
        save_every=save_every,
        log_every=log_every,
        on_log=on_log,
        run=run,
        judge=None if held_out is None else Judge(trainer, held_out, held_out_cond, weight, times),
    )
    losses = loop(progress=progress)
    averaged = model.with_sde(model.sde)
    averaged.net = trainer.ema.copy()
    if SHARE * 3 * steps * batch_size >= COST if calibrate is None else calibrate:
        _calibrate(averaged, batches, progress=progress is True)
        if where is not None and averaged.calibration is not None:
            saving.keep_tables(where / CHECKPOINT, averaged)
    return TrainResult(
        averaged,
        losses,
        tuple(loop.log),
        trainer.step,
        time.perf_counter() - started,
        seed,
        trainer.loss_names.get("weight"),
        trainer.loss_names.get("times"),
        where,
    )


def _calibrate(model: ScoreModel, batches: Batches, *, progress: bool) -> None:
    """Calibrate a trained model under conditions of its data; warn where that fails."""
    cond = None if batches.cond is None else batches.spread_conditions
    try:
        find_calibration(model, cond=cond, progress=progress)
    except (ScoreSDEError, torch.OutOfMemoryError) as error:
        warnings.warn(
            f"the model was not calibrated, so that sample takes the usual tables ({error}); try calibrate(model)",
            TrainingWarning,
            stacklevel=4,
        )


def _read_dropout(label_dropout: float, cond_dropout: Mapping[str, float] | None) -> dict[str, float]:
    """Return the shares, name by name, of what is dropped at all."""
    named = {"label_dropout": ("label", label_dropout)}
    named |= {f"cond_dropout[{name!r}]": (name, share) for name, share in (cond_dropout or {}).items()}
    shares = {name: check_number(share, option, 0.0, 1.0) for option, (name, share) in named.items()}
    return {name: share for name, share in shares.items() if share}


def _warn_of_scale(moments: Moments) -> None:
    """Warn of data far from unit scale, which no transform brings there."""
    mean, std = moments.describe_values()
    if math.hypot(mean, std) > SCALES[1] or 0.0 < std < SCALES[0]:
        pixels = ", or Affine.from_range(0, 255) for pixels from 0 to 255" if len(moments.mean.shape) == 3 else ""
        warnings.warn(
            f"the data have mean {mean:.3g} and standard deviation {std:.3g}, and networks learn at about unit scale: "
            f"fit(..., transform=Affine.standardise(data)) of scoresde.transforms{pixels}",
            TrainingWarning,
            stacklevel=4,
        )


def _open_folder(
    path: str | os.PathLike[str] | None,
    trainer: Trainer,
    run: Run | None,
    resume: bool | Literal["change"],
    steps: int,
) -> Path | None:
    """Make the folder, writable, and empty unless ``resume``, which loads its checkpoint into the trainer."""
    folder = None if path is None else Path(path)
    if resume:
        _resume(folder, trainer, run, steps, change=resume == CHANGE)
    if folder is None:
        return None
    try:
        if folder.is_dir() and not resume and any(folder.iterdir()):
            raise CheckpointError(f"{folder} is not empty; choose a new folder, or resume=True to go on from there")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOG).open("a", encoding="utf-8").close()
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be written: {error.strerror or error}; choose another folder"
        ) from error
    return folder


def _resume(folder: Path | None, trainer: Trainer, run: Run | None, steps: int, *, change: bool) -> None:
    """Load the folder's checkpoint into the network and the trainer; the log's later records are dropped."""
    if folder is None or run is None:
        raise ConfigError("resume=True needs the folder= of the run to go on with")
    contents = checkpoint.read(folder / CHECKPOINT)
    numbers = contents.document("training")
    run.follow(contents, int(numbers["step"]), folder, change=change)
    if steps < numbers["step"]:
        raise DomainError(
            f"steps must be at least {numbers['step']}, which {folder} has made, got {steps}",
            parameter="steps",
            got=steps,
            allowed=f"at least {numbers['step']}",
        )
    saving.load_network(contents, "weights", trainer.net)
    trainer.restore(numbers, contents.tensors("training_state"))
    log = folder / LOG
    if log.is_file():
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
        # A line that was being written when the run was killed has no end.
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= trainer.step]
        log.write_text("".join(kept), encoding="utf-8")
