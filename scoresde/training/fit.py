"""Training: from options and data to a loop, its folder, resuming, and what came of it."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import torch

from scoresde.diffusions.gaussian import Moments
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.kinds import ConfigError, DTypeError, ScoreSDEError, TrainingWarning, show
from scoresde.errors.names import explain_keywords, is_name
from scoresde.errors.values import check_flag, check_integer, check_path
from scoresde.models import saving
from scoresde.models.score_model import ScoreModel
from scoresde.models.sde_model import SDEModel
from scoresde.noise import check_seed, fresh_seed
from scoresde.ops import Array
from scoresde.sampling.processes import World
from scoresde.sampling.tuning.calibrate import COST
from scoresde.sampling.tuning.calibrate import calibrate as find_calibration
from scoresde.training.batches import Batches
from scoresde.training.cautions import warn_of_loss
from scoresde.training.identity import CHANGE, Run
from scoresde.training.items import Unpack
from scoresde.training.judge import Judge, Watch
from scoresde.training.keeping import CHECKPOINT
from scoresde.training.log import Log, Record, Tracker, check_trackers, open_trackers
from scoresde.training.loop import Loop, Progress
from scoresde.training.losses.simulated import ObjectiveName
from scoresde.training.losses.times import TimeSampler, TimesName
from scoresde.training.losses.weights import Weight, WeightName
from scoresde.training.names import name_function
from scoresde.training.opening import USUAL_BATCH, open_source
from scoresde.training.options import (
    Data,
    check_functions,
    check_moments,
    check_patience,
    is_own,
    read_dropout,
    read_held_out,
    warn_of_scale,
)
from scoresde.training.parallel import lost_processes, shared_network
from scoresde.training.paths import begin_paths
from scoresde.training.rates import DecayName, read_rate
from scoresde.training.result import TrainResult
from scoresde.training.schedule import give_own_schedule
from scoresde.training.sharding import ShardRule
from scoresde.training.sources import ALONE
from scoresde.training.start import begin, held, open_folder
from scoresde.training.trainable import Objective, check_trainable
from scoresde.training.trainer import Trainer
from scoresde.training.updates import MakeOptimizer
from scoresde.transforms.augment import Augmentation
from scoresde.transforms.base import Transform, check_transform

__all__ = ["fit"]

SHARE = 1 / 16  # of the training's evaluations that a calibration may cost
STEPS_OF_EPOCHS = "steps= with steps = epochs * len(data) / batch_size"


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
    **dict.fromkeys(("amp", "mixed_precision", "fp16", "bf16", "precision"), "autocast=torch.bfloat16"),
    **dict.fromkeys(("gradient_accumulation_steps", "accumulate_grad_batches", "accumulation_steps"), "accumulate"),
    **dict.fromkeys(("optim", "optimiser"), "optimizer"),
    **dict.fromkeys(("fsdp", "shard_rule", "auto_wrap_policy"), "shard"),
    **dict.fromkeys(("num_workers", "n_workers"), "workers"),
    **dict.fromkeys(("early_stopping", "early_stop"), "patience"),
    **dict.fromkeys(("logger", "loggers", "report_to", "log_with"), "trackers"),
    **dict.fromkeys(("save_total_limit", "keep_last", "save_top_k"), "keep"),
    **dict.fromkeys(("augmentation", "augmentations"), "augment"),
    **dict.fromkeys(("output_dir", "save_dir", "checkpoint_dir"), "folder"),
    callback="on_log",
    verbose="progress",
)
def fit(
    model: ScoreModel | SDEModel,
    data: Data,
    *,
    steps: int,
    batch_size: int | None = None,
    learning_rate: float | Callable[[int], float] | None = None,
    warmup: int | None = None,
    decay: DecayName | None = None,
    optimizer: MakeOptimizer | None = None,
    weight: WeightName | Weight | None = None,
    times: TimesName | TimeSampler | None = None,
    objective: Objective | ObjectiveName | None = None,
    uncertainty: bool = False,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
    accumulate: int = 1,
    ema_decay: float = 0.999,
    sigma_rel: float | Sequence[float] | None = None,
    cond: Mapping[str, Array] | None = None,
    label_dropout: float = 0.0,
    cond_dropout: Mapping[str, float] | None = None,
    unpack: Unpack | None = None,
    workers: int = 0,
    transform: Transform | None = None,
    augment: Augmentation | None = None,
    moments: Moments | None = None,
    held_out: Data | None = None,
    held_out_cond: Mapping[str, Array] | None = None,
    patience: int | None = None,
    watch: Watch | None = None,
    autocast: torch.dtype | None = None,
    seed: int | None = 0,
    folder: str | os.PathLike[str] | None = None,
    save_every: int | None = None,
    keep: int = 1,
    log_every: int = 50,
    resume: bool | Literal["change"] = False,
    calibrate: bool | None = None,
    progress: Progress = True,
    on_log: Callable[[Record], None] | None = None,
    trackers: str | Sequence[str | Tracker] = (),
    world: World = ALONE,
    shard: ShardRule | None = None,
) -> TrainResult:
    """Train a model's network by denoising score matching, or that of an ``SDEModel`` on simulated paths.

    The data pass through the transform (one that draws noise draws it anew for every batch); their moments go to
    ``model.moments``, so that samplers start from the right prior. Every epoch is a new order of the data, drawn from
    (seed, epoch). The network trains in training mode on its own device; every module's mode is restored at the end,
    and the result's model is in evaluation mode.

    Args:
        model: the model; its network ends with the raw weights, its ``moments`` and ``transform`` are set. A
            ``LearnedSchedule`` is trained beside the network, from the same backward pass. A network
            in ``torch.compile`` or ``DistributedDataParallel`` is trained through it; a wrapper around the model
            itself is left aside. The result's model has the network without wrappers. An ``SDEModel`` is trained on
            paths that are simulated from the data; its scale and its law at t_max are set too.
        data: a tensor on any device or a NumPy array, also one mapped from a file, (N, *), finite, or bytes; or a data
            set of items (torch's ``Dataset`` or one of Hugging Face): x, (x, y) or a mapping; or a ``DataLoader``, an
            ``IterableDataset`` or any iterable of batches, in its own order. All in the user's units.
        steps: number of steps in all.
        batch_size: samples of a step, by default 128; more than N of them repeat. A loader has its own.
        learning_rate: after the warm-up, by default 1e-3; or a function of the step, which then is all of it. With an
            ``optimizer`` it is a factor on the rates that it was made with, by default 1.
        warmup: steps of linear rise; by default a twentieth of the steps, at most 1000.
        decay: a key of ``DECAYS``, how the rate falls afterwards: "cosine", the default, and "linear" to zero, or
            "constant".
        optimizer: of the network's parameters, or a function that makes one of a list of parameters, e.g.
            ``functools.partial(torch.optim.SGD, lr=0.1)``; None for AdamW.
        weight: a key of ``losses.WEIGHTS`` or a function; None for what suits the prediction and the diffusion. A
            network that predicts the data is trained with the velocity's loss by ``weight="velocity"``.
        times: a key of ``losses.TIMES`` or a function; None for what suits. ``TrainResult`` says what was taken.
        objective: a function (model, x0, generator, cond) -> losses (B,) in the place of the denoising loss, e.g.
            ``losses.ChainLoss.hybrid(chain)``; the log then has no losses by log-SNR. Of an SDEModel "reverse" (the
            default), "implicit" or "sliced", or a ``losses.SimulatedLoss`` with other options.
        uncertainty: learn the weight of each log-SNR beside the network (``losses.uncertainty``); the log's losses are
            those before it.
        weight_decay: of AdamW, decoupled, a share of the learning rate.
        clip_norm: largest norm of the gradient; None for no limit.
        accumulate: parts in which a step's batch goes through the network, one after the other, which takes the memory
            of one part and gives the same step up to rounding.
        ema_decay: in [0, 1).
        sigma_rel: relative widths of power-function averages in the place of ``ema_decay``, e.g. (0.05, 0.1); the first
            is the model's. A folder keeps them with every checkpoint, and ``training.rebuild_average`` makes any other
            width of them afterwards.
        cond: conditions of data that are arrays, tensors or arrays (N, *), e.g. ``{"label": labels}``. Items and
            batches of anything else have them beside x.
        label_dropout: share of the labels in ``cond["label"]`` that become -1, for guidance.
        cond_dropout: the same for any conditions, by name: ``{"context": 0.1}``; each is dropped by draws of its own,
            to -1 or NaN. The model remembers which (``model.dropout``).
        unpack: a function of an item of a data set, or of a batch of a loader, that returns x or (x, {"name":
            condition}); by default (x, y) has the network's label or only condition second, and of a mapping the
            entries that the network takes are conditions and the one other is x.
        workers: processes that read a data set's items ahead; neither the order nor what items draw depends on them.
        transform: from the data's units to the model's; by default the model's own, if it has one.
        augment: what only training sees, (x, generator) -> x in the data's units, e.g. ``transforms.RandomFlip()``.
        moments: of the data as the model sees them; by default they are measured in one pass (over the first 65 536
            samples of a loader of unknown length).
        held_out: data (M, *) that are not trained on; their loss at fixed noise and times, with the averaged weights,
            goes into the log with every checkpoint that is due. The folder keeps the best checkpoint beside the last.
        held_out_cond: their conditions.
        patience: stop after so many held-out losses without a better one; the result's model is then the best.
        watch: a function of the model with the averaged weights (and of the step, if it takes two), called with every
            checkpoint that is due; the numbers that it returns, {"name": value}, go into the log. It may draw samples
            and save pictures of them.
        autocast: None, torch.bfloat16 or torch.float16 (whose loss is scaled).
        seed: of everything random; None draws one and reports it.
        folder: for log.jsonl, log.csv and the checkpoint; new or empty unless ``resume``. None to write nothing.
        save_every: steps between checkpoints and held-out losses, by default a tenth of the steps; the last step has
            both in any case.
        keep: how many of the last checkpoints stay in the folder.
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
        trackers: "tensorboard", "wandb" or "mlflow" (through accelerate), or anything with log(values, step=).
        world: of ``with processes() as world``: every process of the job calls this with the same arguments, and they
            train one model, each with its share of every batch. What one process would do is done: the same order,
            times and noise, and the same weights up to rounding (but for what an augmentation, a transform and dropout
            draw). The first writes the folder and the log. Without it each process has a training of its own.
        shard: divide weights, optimiser and averages among the processes of ``world`` (``training.sharding``), and
            gather these parts of the network one at a time: classes of modules or names of them or of modules (a list
            of modules stands for those in it), or a function of a module. Each writes its part of the checkpoint, which
            any number of processes goes on with. Meanwhile the network given waits in the memory of the CPU.

    Warns:
        TrainingWarning: a weight and times under which a twentieth of the times carries nearly all of the weight on the
            network's own error, or that count the density of log-SNR twice; it says which serve. The calibration
            failed; the model is there without.

    Raises:
        DTypeError, ShapeError, DomainError, ConfigError: bad options or data, before anything is changed.
        DataError: an iterable that ends before the steps are made.
        CheckpointError: a folder that is not empty or not writable, a checkpoint that does not fit.
        ConfigError: a run to go on with that is another one; ``allowed`` names what differs.
        SolverError: the loss stayed non-finite for three checks, or at the end; the last good checkpoint stands.
        KeyboardInterrupt: passed on after a checkpoint is written.
    """
    started = time.perf_counter()
    steps = check_integer(steps, "steps", 1)
    batch_size = None if batch_size is None else check_integer(batch_size, "batch_size", 1)
    log_every = check_integer(log_every, "log_every", 1)
    save_every = max(1, steps // 10) if save_every is None else check_integer(save_every, "save_every", 1)
    keep, workers = check_integer(keep, "keep", 1), check_integer(workers, "workers", 0)
    folder = None if folder is None else check_path(folder, "folder")
    if not (isinstance(resume, bool) or is_name(resume, [CHANGE])):
        raise ConfigError(f"resume must be True, False or 'change', got {show(resume)}", parameter="resume", got=resume)
    check_functions(unpack=unpack, augment=augment, watch=watch, on_log=on_log)
    patience = check_patience(patience, held_out)
    if held_out is None and held_out_cond is not None:
        raise ConfigError("held_out_cond= are conditions of held_out= data; pass those, or leave it out")
    if not isinstance(progress, bool) and (isinstance(progress, type) or not callable(progress)):
        raise DTypeError(f"progress must be True, False or a function, got {show(progress)}")
    if not isinstance(world, World):
        raise DTypeError(f"world must be that of `with processes() as world:`, got {show(world)}")
    calibrate = None if calibrate is None else check_flag(calibrate, "calibrate")
    seed = fresh_seed() if seed is None else check_seed(seed)
    if watch is not None and shard is not None:
        raise ConfigError("watch= looks at the model in one process, and a sharded one is in all; leave one out")
    rate, options = read_rate(learning_rate, warmup, decay, steps=steps, own=optimizer is not None)
    sinks, given = check_trackers(trackers), check_trainable(model)[1]
    with shared_network(model, world, shard) as model, ExitStack() as stack:
        trainer = Trainer(
            model,
            learning_rate=rate,
            weight=weight,
            times=times,
            objective=objective,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            ema_decay=ema_decay,
            sigma_rel=sigma_rel,
            optimizer=optimizer,
            accumulate=accumulate,
            uncertainty=uncertainty,
            autocast=autocast,
            seed=seed,
        )
        model = trainer.model
        if trainer.objective is None:
            warn_of_loss(model, weight, times)
        trainer.join(world, batch_size or USUAL_BATCH)
        transform = model.transform if transform is None else check_transform(transform)
        source = open_source(
            data, cond, model.net, batch_size=batch_size, seed=seed, unpack=unpack, workers=workers, world=world
        )
        batches = Batches(
            source,
            dropout=read_dropout(label_dropout, cond_dropout),
            seed=seed,
            device=trainer.device,
            dtype=trainer.dtype,
            transform=transform,
            augment=augment,
            world=world,
        )
        shown = progress is True and world.is_main
        moments = batches.measure(progress=shown) if moments is None else check_moments(moments, batches)
        simulated = begin_paths(model, batches, seed, calibrate)
        if transform is None and not simulated:
            warn_of_scale(moments)
        own = {"weight": weight, "times": times}
        options |= {name: f"your own: {name_function(one)}" for name, one in own.items() if is_own(one)}
        run = None if folder is None else Run.of(trainer, batches, options)
        judge = None
        if held_out is not None:
            held_out, held_out_cond = read_held_out(
                held_out, held_out_cond, model, unpack, source, any_size=augment is not None
            )
            judge = Judge(trainer, held_out, held_out_cond, weight, times)
        stack.enter_context(held(folder, world, resume=resume))
        where = open_folder(folder, resume=resume) if world.is_main or folder is None else Path(folder)
        world.barrier()
        log = Log(where if world.is_main else None, on_log if world.is_main else None)
        start = begin(where, trainer, batches, run, log, resume=resume, steps=steps, patience=patience)
        log.trackers = open_trackers(sinks, where) if world.is_main else []
        model.moments, model.transform, model.dropout = moments, transform, batches.dropout
        loop = Loop(
            trainer,
            batches,
            folder=where,
            steps=steps,
            save_every=save_every,
            log_every=log_every,
            log=log,
            run=run,
            judge=judge,
            best=start.best,
            watch=watch,
            keep=keep,
            carried=start.carried,
        )
        with lost_processes(world):
            losses = loop(progress=progress)
            averaged = model.with_sde(model.sde)
            averaged.net = trainer.ema.copy(start.best.weights, of=given if trainer.sharded else None)
        give_own_schedule(averaged)
        averaged.eval()
        seen = 3 * steps * (batch_size or USUAL_BATCH)
        scalar = not simulated and isinstance(model.sde, GaussianSDE)
        if (scalar and seen * SHARE >= COST) if calibrate is None else calibrate:
            _calibrate(averaged, batches, progress=shown)
            if where is not None and averaged.calibration is not None and world.is_main:
                saving.keep_tables(where / CHECKPOINT, averaged)
        return TrainResult(
            averaged,
            losses,
            tuple(log.records),
            trainer.step,
            time.perf_counter() - started,
            seed,
            trainer.loss_names.get("weight"),
            trainer.loss_names.get("times"),
            where,
            start.best.step or None,
        )


def _calibrate(model: ScoreModel, batches: Batches, *, progress: bool) -> None:
    """Calibrate a trained model under conditions of its data; warn where that fails."""
    cond = batches.spread_conditions if batches.source.cond_names else None
    # Moments of one number say nothing of the event.
    event = None if model.moments is None or model.moments.mean.ndim else batches.event or None
    try:
        find_calibration(model, event=event, cond=cond, progress=progress)
    except (ScoreSDEError, torch.OutOfMemoryError) as error:
        warnings.warn(
            f"the model was not calibrated, so that sample takes the usual tables ({error}); try calibrate(model)",
            TrainingWarning,
            stacklevel=4,
        )
