"""``scoresde train``: train a score model on data by name, a folder of images or a file of numbers."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from scoresde.cli.files import ARRAYS, BAD_IMAGES, locate, open_data
from scoresde.cli.layouts import LAYOUTS, Layout
from scoresde.cli.options import (
    GIVEN,
    Float,
    Int,
    OptionalFloat,
    OptionalInt,
    Work,
    choose,
    find_device,
    show_choices,
    show_default,
    show_default_by_kind,
)
from scoresde.cli.presets import DATA, DIFFUSIONS, SDES, DataSet
from scoresde.cli.run_folder import RUN, check_folder, find_data, keep_data, read_json
from scoresde.cli.threads import choose_threads, use_threads
from scoresde.cli.train_run import (
    PASSING,
    PRECISIONS,
    Resume,
    check_options,
    check_unchanged,
    describe_run,
    keep_options,
    make_condition,
    run_training,
)
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.kinds import CheckpointError, ConfigError, DomainError
from scoresde.errors.values import check_integer, check_number
from scoresde.models.manifest import MANIFEST
from scoresde.models.parameterization import PARAMETERIZATIONS
from scoresde.models.score_model import ScoreModel
from scoresde.noise import check_seed
from scoresde.plots.progress import read_log, training
from scoresde.plots.style import save
from scoresde.sampling.processes import World, processes
from scoresde.sampling.tuning.calibrate import RUNGS
from scoresde.training import losses
from scoresde.training.keeping import CHECKPOINT, is_unfinished
from scoresde.training.log import LOG, TRACKERS
from scoresde.training.losses.defaults import name_loss

__all__ = ["Train"]

LABEL_DROPOUT = 0.1
# Options that run.json of the first versions lack.
LATER = {"background", "layout", "accumulate", "precision", "uncertainty", "flip", "patience", "watch", "keep"}
LATER |= {"tracker"}
SHOWN = 12  # names of classes on a line


def _show_default_of_prediction() -> object:
    """Return the default of what is predicted, which depends on the SDE, in words."""
    values, usual = {name: one.predicts for name, one in SDES.items()}, SDES["vp"].predicts
    return show_default(
        ", ".join([*(f"{v} under {name}" for name, v in values.items() if v != usual), f"{usual} else"])
    )


def _show_default_of_loss(place: Literal[0, 1]) -> object:
    """Return the default of the weight (0) or of the times (1), by the prediction and the SDE, in words."""
    usual: dict[str, list[str]] = {}
    other: dict[str, list[str]] = {}
    for predicts in PARAMETERIZATIONS:
        common = name_loss(predicts, SDES["vp"].build())[place]
        usual.setdefault(common, []).append(predicts)
        for name, one in SDES.items():
            if (own := name_loss(predicts, one.build())[place]) != common:
                other.setdefault(f"{own} under {name}", []).append(predicts)
    return show_default(
        "; ".join(f"{name} for {' and '.join(kinds)}" for name, kinds in [*usual.items(), *other.items()])
    )


@dataclass(frozen=True, kw_only=True)
class Train(Work):
    """Train a score model.

    The folder of the run receives the checkpoint, a log with one JSON record a line, and run.json with these options.
    Vectors get a residual MLP; series, images and volumes a U-Net. Of the data in a folder or a file every fifth sample
    is held out. Ctrl-C writes a checkpoint; --resume goes on from it.

    Args:
        data: the training data, one of the names below (8 x 8 digits, 50 000 points of a toy density in the plane,
            16 x 16 patches of photographs, series, tables); or a folder of images; or a file with an array (N, ...)
            (.npy, .npz, .pt, .safetensors), "file.npz:name" for one of several; or with a table (.csv, .parquet),
            "table.csv:name" where the column "name" holds labels.
        size: side in pixels to which the images of a folder are scaled and cropped; by default they stay as they are.
        on_bad_image: what to do about an image of a folder that cannot be used.
        background: colour behind what is transparent in the images of a folder: white, grey, black or "255,255,255".
        layout: how an array of a file is laid out, a letter for each dimension: samples (N), channels (C), length (L),
            depth, height, width (D, H, W), or coordinates (D); by default told from the sizes.
        sde: the diffusion; vp, cosine and subvp shrink the data as they add noise, ve and edm only add noise, rectified
            goes straight from data to noise.
        predicts: what the network predicts.
        weight: of the loss, as a function of time.
        times: how the times of a batch are drawn.
        conditional: give the network the class labels, for data that have some (a folder's are its subfolders); the
            classes are the distinct labels.
        context: what the network is told of each sample beside: the name of another array of the file, (N,) or (N, k),
            or names of columns of a table, with commas between them.
        label_dropout: share of the labels, and of the contexts, that are hidden in training, in [0, 1); for conditional
            runs only.
        steps: number of optimiser steps.
        batch_size: samples in a step.
        learning_rate: of Adam, after the warm-up; it falls to zero along a cosine.
        warmup: steps in which the learning rate rises to its value.
        weight_decay: decoupled from the gradient, a share of the learning rate, at least 0.
        clip_norm: largest norm of the gradient; 0 for no limit.
        ema_decay: of the average of the weights that is sampled from, each step, in [0, 1).
        accumulate: number of parts in which a batch goes through the network, one after the other, to save memory.
        precision: in which the network computes; the weights stay in 32 bits.
        uncertainty: learn the weight of each noise level beside the network.
        flip: mirror images and series at random, in training alone.
        held_out_loss: log the loss of held-out samples too, ten times in the run, at the same noise and times.
        patience: number of held-out losses without a better one after which the training stops, with the best model.
        watch: with every checkpoint draw samples, log their distances to held-out data, and keep a picture.
        keep: number of the last checkpoints that stay.
        tracker: send the log to tensorboard, wandb or mlflow too, which must be installed.
        seed: of the network's first weights and of everything random in the training, in [0, 2^64).
        out: new or empty folder for the results.
        resume: folder of an interrupted run, to go on with its own options to the same result.
        shard: of several processes (torchrun): divide the weights and all that belongs to them among them, and gather
            these parts of the network one at a time: names of modules or of their classes, with commas between them,
            e.g. Linear for vectors, Block,Attention for images.
        change: go on with a run that is resumed under other options, which are given with it, or on data that changed.
    """

    data: Annotated[str, show_choices([*DATA, "FOLDER", "FILE"])] = "digits"
    size: Annotated[OptionalInt, show_default("")] = None
    on_bad_image: Annotated[str, show_choices(BAD_IMAGES)] = "raise"
    background: Annotated[str | None, tyro.conf.arg(metavar="COLOUR"), show_default("")] = None
    layout: Annotated[str | None, show_choices(LAYOUTS), show_default("told from the sizes")] = None
    sde: Annotated[str, show_choices(SDES)] = "vp"
    predicts: Annotated[str | None, show_choices(PARAMETERIZATIONS), _show_default_of_prediction()] = None
    weight: Annotated[str | None, show_choices(losses.WEIGHTS), _show_default_of_loss(0)] = None
    times: Annotated[str | None, show_choices(losses.TIMES), _show_default_of_loss(1)] = None
    conditional: bool = False
    context: Annotated[str | None, tyro.conf.arg(metavar="NAME"), show_default("")] = None
    label_dropout: Annotated[OptionalFloat, show_default(f"{LABEL_DROPOUT:g}")] = None
    steps: Annotated[OptionalInt, show_default_by_kind("steps")] = None
    batch_size: Annotated[OptionalInt, show_default_by_kind("batch_size")] = None
    learning_rate: Annotated[OptionalFloat, show_default_by_kind("learning_rate")] = None
    warmup: Annotated[OptionalInt, show_default("a twentieth of the steps, at most 1000")] = None
    weight_decay: Float = 0.0
    clip_norm: Float = 1.0
    ema_decay: Float = 0.995
    accumulate: Int = 1
    precision: Annotated[str, show_choices(PRECISIONS)] = "fp32"
    uncertainty: bool = False
    flip: bool = False
    held_out_loss: bool = False
    patience: Annotated[OptionalInt, show_default("")] = None
    watch: bool = False
    keep: Int = 1
    tracker: Annotated[str | None, show_choices(TRACKERS), show_default("")] = None
    seed: Int = 0
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER"), show_default("runs/DATA")] = None
    resume: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER"), show_default("")] = None
    shard: Annotated[str | None, tyro.conf.arg(metavar="NAMES"), show_default("")] = None
    change: bool = False

    def run(self) -> int:
        """Train, together with the other processes of a job that ``torchrun`` or ``accelerate launch`` started."""
        with processes(find_device(self.device)) as world:
            return self._run(world)

    def _run(self, world: World) -> int:
        if self.change and self.resume is None:
            raise ConfigError("--change is for --resume, which goes on with a run; leave it out", parameter="change")
        asked = self if self.resume is None else _read_options(self)
        if self.shard is not None and asked.watch:
            raise ConfigError("--watch draws in one process, and a sharded model is in all; leave one out of both")
        source = asked.data if self.resume is None else _find_data(asked, self.resume)
        data = open_data(
            source,
            size=asked.size,
            on_bad_image=asked.on_bad_image,
            background=asked.background,
            context=asked.context,
            layout=asked.layout,
        )
        options = asked._settle(data)
        train, test = data.load(), data.test()
        samples = train[0]
        model = options._make_model(data, tuple(samples.shape[1:]))
        threads = choose_threads(options.threads, model.net)
        options = dataclasses.replace(options, threads=threads)
        folder = self._name_folder(data, world) if self.resume is None else self.resume
        where = world.device
        about = describe_run(options, model, data, keep_data(folder, source))
        if self.resume is not None and not self.change:
            check_unchanged(folder, about)
        size = sum(p.numel() for p in model.parameters())
        shape = tuple(samples.shape[1:])
        for note in data.notes:
            print(note, file=sys.stderr)
        if options.data in DATA and Path(options.data).exists():
            print(f"note: {options.data} is the built-in set; for what is here write ./{options.data}", file=sys.stderr)
        print(f"data         {options.data}: {len(samples)} {data.kind} of shape {shape}, {len(test[0])} held out")
        if data.layout is not None:
            print(f"layout       {data.layout.name}: {data.layout.describe(shape)}; --layout says another")
        if data.classes and (options.conditional or data.path is not None):
            unused = "" if options.conditional else "; --conditional gives them to the network"
            print(f"classes      {_say_classes(data.classes)}{unused}")
        print(f"model        {type(model.net).__name__}, {size} parameters, {options.predicts} under {model.sde}")
        means = f"{where}, {threads} thread{'s' * (threads > 1)}" if where.type == "cpu" else f"{where}"
        means = f"{world.size} processes, {means}" if world.size > 1 else means
        print(f"loss         weight {options.weight}, times {options.times}")
        print(f"training     {options.steps} steps of {options.batch_size} samples on {means}")
        print(f"results      {folder}/", flush=True)
        with use_threads(threads):
            beside = data.contexts or (None, None)
            conds = make_condition(train, beside[0], options), make_condition(test, beside[1], options)
            resume: Resume = self.resume is not None
            if self.change:
                resume = "change"
            shard = None if self.shard is None else self.shard.split(",")
            told = data, train, test, conds, folder, about
            result = run_training(options, model.to(where), *told, resume=resume, world=world, shard=shard)
        loss = next((record["loss"] for record in reversed(result.log)), None)
        if loss is not None:
            print(f"done         loss {loss:.4g} after {result.steps} steps, {result.seconds:.0f} seconds")
        if result.model.calibration is not None:
            counts = f"{RUNGS[0]} to {RUNGS[-1]} evaluations"
            print(f"calibrated   for {counts}, for the default sampler: scoresde describe {folder}")
        print(f"checkpoint   {folder / CHECKPOINT}/")
        course = _draw_course(folder) if world.is_main else ""
        print(f"log          {folder / LOG}{course}")
        print(f"next         scoresde compare --checkpoint {folder}")
        return 0

    def _name_folder(self, data: DataSet, world: World) -> Path:
        """Return the new folder of the run."""
        name = self.data if data.path is None else data.path.resolve().stem
        folder = check_folder("out", Path("runs", name) if self.out is None else self.out)
        # Of several processes the first looks: it may have begun to write while another comes here.
        if world.is_main and folder.is_dir() and not is_unfinished(folder):
            raise ConfigError(
                f"--out {folder} is not empty; choose another, or go on with --resume {folder}", parameter="out"
            )
        return folder

    def _settle(self, data: DataSet) -> Train:
        """Return the options with the defaults of the data and the SDE, all checked."""
        preset, diffusion = data.preset, choose("sde", self.sde, DIFFUSIONS)
        predicts = diffusion.predicts if self.predicts is None else self.predicts
        choose("predicts", predicts, PARAMETERIZATIONS, "prediction")
        usual, law = name_loss(predicts, diffusion.build())
        weight, times = usual if self.weight is None else self.weight, law if self.times is None else self.times
        choose("weight", weight, losses.WEIGHTS)
        choose("times", times, losses.TIMES, "time sampler")
        choose("precision", self.precision, PRECISIONS)
        if self.tracker is not None:
            choose("tracker", self.tracker, dict.fromkeys(TRACKERS))
        if self.flip and data.kind in ("points", "vectors"):
            raise ConfigError(f"--flip mirrors images and series, {self.data} are {data.kind}; leave it out")
        if self.size is not None:
            check_integer(self.size, "size", 1)
            if data.path is None or not data.path.is_dir():
                raise ConfigError(
                    f"--size is for folders of images, {self.data} has its own; leave it out", parameter="size"
                )
        if self.conditional and not data.classes:
            raise ConfigError(
                f"--conditional needs class labels, {self.data} has none; leave it out or use digits",
                parameter="conditional",
            )
        told = self.conditional or self.context is not None
        dropout = LABEL_DROPOUT * told if self.label_dropout is None else self.label_dropout
        if self.label_dropout and not told:
            raise ConfigError(
                "--label-dropout needs labels to hide: add --conditional, or leave it out", parameter="label_dropout"
            )
        check_seed(self.seed)
        steps = check_integer(preset.steps if self.steps is None else self.steps, "steps", 1)
        if self.warmup is not None:
            check_integer(self.warmup, "warmup", 0, steps)
        rate = preset.learning_rate if self.learning_rate is None else self.learning_rate
        batch_size = preset.batch_size if self.batch_size is None else self.batch_size
        return dataclasses.replace(
            self,
            layout=None if data.layout is None or data.path is None else self._name_layout(data.layout),
            sde=next(name for name, one in SDES.items() if one is diffusion),
            predicts=predicts,
            weight=weight,
            times=times,
            label_dropout=check_number(dropout, "label_dropout", 0.0, 1.0, open_high=True),
            steps=steps,
            batch_size=check_integer(batch_size, "batch_size", 1),
            learning_rate=check_number(rate, "learning_rate", 0.0, open_low=True),
            weight_decay=check_number(self.weight_decay, "weight_decay", 0.0),
            clip_norm=check_number(self.clip_norm, "clip_norm", 0.0),
            accumulate=check_integer(self.accumulate, "accumulate", 1),
            patience=None if self.patience is None else check_integer(self.patience, "patience", 1),
            keep=check_integer(self.keep, "keep", 1),
            ema_decay=check_number(self.ema_decay, "ema_decay", 0.0, 1.0, open_high=True),
        )

    def _name_layout(self, layout: Layout) -> str | None:
        """Return the layout to keep: a table has but one."""
        return layout.name if locate(self.data)[0].suffix.lower() in ARRAYS else None

    def _make_model(self, data: DataSet, event: tuple[int, ...]) -> ScoreModel:
        """Return the untrained model of settled options."""
        assert self.predicts is not None
        sde = SDES[self.sde].build()
        net = data.network(event, classes=len(data.classes) if self.conditional else None, seed=self.seed)
        if not _can_stand(self.predicts, sde):
            able = [name for name in PARAMETERIZATIONS if _can_stand(name, sde)]
            able.sort(key=lambda name: name != SDES[self.sde].predicts)
            raise ConfigError(
                f"--predicts {self.predicts} cannot work under --sde {self.sde}: at t = {sde.t_max:g} the signal is "
                f"gone (alpha = 0), and the {self.predicts} tells nothing of the data; use --predicts {able[0]} (or "
                f"{', '.join(able[1:])})",
                parameter="predicts",
                got=self.predicts,
            )
        model = ScoreModel(net, sde, predicts=PARAMETERIZATIONS[self.predicts], transform=data.transform())
        model.class_names = {"label": data.classes} if self.conditional else None
        return model


def _can_stand(predicts: str, sde: GaussianSDE) -> bool:
    """Return whether a prediction can stand under an SDE, which zero terminal signal forbids to some."""
    try:
        ScoreModel(torch.zeros_like, sde, predicts=PARAMETERIZATIONS[predicts])
    except DomainError:
        return False
    return True


def _draw_course(folder: Path) -> str:
    """Draw the course of the training beside its log and return what to say of it; nothing without matplotlib."""
    try:
        save(training(read_log(folder)), folder / "training.png")
    except ConfigError:
        return ""
    return f", {folder / 'training.png'}"


def _read_options(asked: Train) -> Train:
    """Return the options of the run to go on with; those that are given take their place where --change says so."""
    assert asked.resume is not None
    usual = Train()
    own = dataclasses.replace(asked, **{name: getattr(usual, name) for name in PASSING if name != "out"})
    given = {
        field.name: getattr(own, field.name)
        for field in dataclasses.fields(own)
        if getattr(own, field.name) != getattr(usual, field.name) or field.name in GIVEN.get() - set(PASSING)
    }
    if given and not asked.change:
        first = next(iter(given))
        raise ConfigError(
            f"--resume goes on with the run's own options; leave out --{first.replace('_', '-')}, or change it on "
            "purpose with --change",
            parameter=first,
        )
    file = asked.resume / RUN
    if not file.is_file() or not (asked.resume / CHECKPOINT / MANIFEST).is_file():
        raise CheckpointError(f"--resume {asked.resume} holds no run to go on with; start one: --out {asked.resume}")
    options = read_json(file).get("options")
    names = keep_options(asked).keys()
    # An earlier version had fewer.
    if not isinstance(options, dict) or not names >= options.keys() or not options.keys() >= names - LATER:
        raise CheckpointError(f"{file} does not hold the options of a training; restore it or start a new run")
    check_options(file, options, Train)
    return Train(**{**options, **given})


def _find_data(asked: Train, folder: Path) -> str:
    """Return where the data of a run to go on with are: as it was given now, or from wherever this is asked."""
    about = read_json(folder / RUN)
    return asked.data if about.get("data") != asked.data else find_data(folder, about) or asked.data


def _say_classes(classes: Sequence[str]) -> str:
    """Return the number of the classes and their names, as many as fit on a line."""
    shown = ", ".join(classes[:SHOWN])
    return f"{len(classes)}: {shown}{', ...' if len(classes) > SHOWN else ''}"
