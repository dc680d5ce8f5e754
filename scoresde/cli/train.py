"""``scoresde train``: train a score model on a built-in data set."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from torch import Tensor

from scoresde.checkpoint import MANIFEST
from scoresde.cli.names import DATA, SDES, DataSet
from scoresde.cli.options import Command, Float, Int, OptionalFloat, OptionalInt, chosen, device, interactive, words
from scoresde.cli.runs import RUN, check_folder, read_json, write_json
from scoresde.errors import CheckpointError, ConfigError, check_integer, check_number
from scoresde.model import PARAMETERIZATIONS, ScoreModel
from scoresde.noise import check_seed
from scoresde.training import TrainResult, fit
from scoresde.training.loop import CHECKPOINT, LOG

__all__ = ["Train"]

LABEL_DROPOUT = 0.1


def _preset(field: str) -> str:
    """Return a default that depends on the data, in words."""
    points, images = (next(one for one in DATA.values() if one.kind == kind) for kind in ("points", "images"))
    return f"(default: {getattr(images, field):g} for digits, {getattr(points, field):g} for points)"


@dataclass(frozen=True, kw_only=True)
class Train(Command):
    """Train a score model on a built-in data set.

    The folder of the run receives the checkpoint, a log with one JSON record a line, and run.json with these options.
    Points get a residual MLP, images a U-Net. Ctrl-C writes a checkpoint; --resume goes on from it.

    Args:
        data: the training data: handwritten digits (8 x 8 pixels), or 50 000 points of a toy density in the plane.
        sde: the diffusion: variance preserving, sub-variance preserving or variance exploding.
        predicts: what the network predicts.
        conditional: give the network the class labels, a tenth of them dropped; for digits.
        steps: optimiser steps.
        batch_size: samples in a step.
        learning_rate: of Adam, after a warm-up of a twentieth of the steps; it falls to zero along a cosine.
        ema_decay: of the average of the weights that is sampled from, in [0, 1).
        seed: of the network's first weights and of everything random in the training, in [0, 2^64).
        out: new or empty folder for the results.
        resume: folder of an interrupted run, to go on with its own options to the same result.
        device: cpu, cuda, ...; auto takes CUDA where there is one.
        debug: show the traceback of an error.
    """

    data: Annotated[str, words(DATA)] = "digits"
    sde: Annotated[str, words(SDES)] = "vp"
    predicts: Annotated[str, words(PARAMETERIZATIONS)] = "noise"
    conditional: bool = False
    steps: Annotated[OptionalInt, tyro.conf.arg(help_behavior_hint=_preset("steps"))] = None
    batch_size: Annotated[OptionalInt, tyro.conf.arg(help_behavior_hint=_preset("batch_size"))] = None
    learning_rate: Annotated[OptionalFloat, tyro.conf.arg(help_behavior_hint=_preset("learning_rate"))] = None
    ema_decay: Float = 0.995
    seed: Int = 0
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: runs/DATA)")] = None
    resume: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(optional)")] = None
    device: str = "auto"
    debug: bool = False

    def run(self) -> int:
        """Train."""
        options, folder = (self._settled(), None) if self.resume is None else (_saved(self), self.resume)
        data = chosen("data set", options.data, DATA)
        model = options.model(data)
        if folder is None:
            folder = check_folder("--out", Path("runs", options.data) if options.out is None else options.out)
            if folder.is_dir() and any(folder.iterdir()):
                raise ConfigError(f"--out {folder} is not empty; choose another, or go on with --resume {folder}")
        where = device(self.device)
        samples, labels = data.load()
        size = sum(p.numel() for p in model.parameters())
        print(f"data         {options.data}: {len(samples)} samples of shape {tuple(samples.shape[1:])}")
        print(f"model        {type(model.net).__name__}, {size} parameters, {options.predicts} under {model.sde}")
        print(f"training     {options.steps} steps of {options.batch_size} samples on {where}")
        print(f"results      {folder}/", flush=True)
        result = _watched(options, model.to(where), samples, labels, folder, resume=self.resume is not None)
        loss = next((record["loss"] for record in reversed(result.log)), None)
        if loss is not None:
            print(f"done         loss {loss:.4g} after {result.steps} steps, {result.seconds:.0f} seconds")
        print(f"checkpoint   {folder / CHECKPOINT}/")
        print(f"log          {folder / LOG}")
        print(f"next         scoresde compare --checkpoint {folder}")
        return 0

    def _settled(self) -> Train:
        """Return the options with the defaults of the data, all checked."""
        data = chosen("data set", self.data, DATA)
        chosen("sde", self.sde, SDES)
        chosen("prediction", self.predicts, PARAMETERIZATIONS)
        if self.conditional and not data.classes:
            raise ConfigError(f"--conditional needs class labels, {self.data} has none; leave it out or use digits")
        check_seed(self.seed)
        check_number(self.ema_decay, "ema_decay", 0.0, 1.0, open_high=True)
        rate = data.learning_rate if self.learning_rate is None else self.learning_rate
        return dataclasses.replace(
            self,
            steps=check_integer(data.steps if self.steps is None else self.steps, "steps", 1),
            batch_size=check_integer(data.batch_size if self.batch_size is None else self.batch_size, "batch_size", 1),
            learning_rate=check_number(rate, "learning_rate", 0.0, open_low=True),
        )

    def model(self, data: DataSet) -> ScoreModel:
        """Return the untrained model."""
        net = data.network(classes=data.classes if self.conditional else None, seed=self.seed)
        return ScoreModel(net, SDES[self.sde](), predicts=self.predicts)


def _saved(asked: Train) -> Train:
    """Return the options of the run to go on with."""
    assert asked.resume is not None
    own, usual = dataclasses.replace(asked, resume=None, device="auto", debug=False), Train()
    given = [field.name for field in dataclasses.fields(own) if getattr(own, field.name) != getattr(usual, field.name)]
    if given:
        raise ConfigError(f"--resume goes on with the run's own options; leave out --{given[0].replace('_', '-')}")
    file = asked.resume / RUN
    if not file.is_file() or not (asked.resume / CHECKPOINT / MANIFEST).is_file():
        raise CheckpointError(f"--resume {asked.resume} holds no run to go on with; start one: --out {asked.resume}")
    options = read_json(file).get("options")
    if not isinstance(options, dict) or options.keys() != _kept(asked).keys():
        raise CheckpointError(f"{file} does not hold the options of a training; restore it or start a new run")
    return Train(**options)._settled()


def _kept(options: Train) -> dict[str, object]:
    """Return the options that make a run what it is."""
    return {k: v for k, v in dataclasses.asdict(options).items() if k not in ("out", "resume", "device", "debug")}


def _watched(
    options: Train, model: ScoreModel, samples: Tensor, labels: Tensor | None, folder: Path, *, resume: bool
) -> TrainResult:
    """Train, leave run.json beside whatever checkpoint there is, and say how to go on after Ctrl-C."""
    assert options.steps is not None
    assert options.batch_size is not None
    assert options.learning_rate is not None
    steps, about = options.steps, {"data": options.data, "options": _kept(options)}
    shown = 0

    def note(record: Mapping[str, float | None]) -> None:
        nonlocal shown
        if not (folder / RUN).exists():
            write_json(folder / RUN, about)
        tenths = int(10 * (record["step"] or 0) / steps)
        if tenths > shown and not interactive():
            shown = tenths
            print(f"training     step {record['step']}, loss {record['loss']:.4g}", file=sys.stderr, flush=True)

    conditional = labels is not None and options.conditional
    try:
        return fit(
            model,
            samples,
            steps=steps,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            ema_decay=options.ema_decay,
            cond={"label": labels} if labels is not None and conditional else None,
            label_dropout=LABEL_DROPOUT if conditional else 0.0,
            seed=options.seed,
            folder=folder,
            resume=resume,
            progress=interactive(),
            on_log=note,
        )
    except KeyboardInterrupt as stop:
        if not (folder / CHECKPOINT / MANIFEST).is_file():
            raise
        raise KeyboardInterrupt(
            f"the checkpoint is in {folder / CHECKPOINT}/; go on with: scoresde train --resume {folder}"
        ) from stop
    finally:
        if (folder / CHECKPOINT / MANIFEST).is_file():
            write_json(folder / RUN, about)
