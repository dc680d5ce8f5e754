"""One training from the command line: what run.json says, what is shown meanwhile, and how to go on afterwards."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args, get_type_hints

import torch
from torch import Tensor

from scoresde.cli.held_out import describe_samples
from scoresde.cli.options import is_interactive
from scoresde.cli.presets import DataSet, Labelled
from scoresde.cli.run_folder import RUN, read_json, read_version, write_json
from scoresde.cli.watch import make_watch
from scoresde.errors.kinds import CheckpointError, ConfigError, show
from scoresde.models.manifest import MANIFEST
from scoresde.models.saving import network_to_dict
from scoresde.models.score_model import ScoreModel
from scoresde.sampling.processes import World
from scoresde.training import losses
from scoresde.training.fit import fit
from scoresde.training.keeping import CHECKPOINT
from scoresde.training.log import LOG
from scoresde.training.result import TrainResult
from scoresde.transforms.augment import RandomFlip

if TYPE_CHECKING:
    from scoresde.cli.train import Train

__all__ = [
    "PASSING",
    "PRECISIONS",
    "Resume",
    "check_options",
    "check_unchanged",
    "describe_run",
    "keep_options",
    "make_condition",
    "run_training",
]

# What does not make a run what it is.
PASSING = ("config", "out", "resume", "change", "device", "debug", "shard")
Resume = bool | Literal["change"]
PRECISIONS: Mapping[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SLOW, OFTEN = 20.0, 60.0  # seconds that a training takes at least for its time to be told, and between two words of it


class Pace:
    """What is said of a slow training that no bar shows: its first step, and from then on the time left."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.last = say, 0.0
        self.first: int | None = None

    def __call__(self, step: int, steps: int, seconds: float) -> None:
        """Take note of a step."""
        if self.first is None:
            self.first = step - 1
            if seconds * (steps - step) >= SLOW:
                left = say_time(seconds * (steps - step))
                self.say(f"the first step took {say_time(seconds)}: at this pace {left} left")
            self.last = seconds
        elif seconds - self.last >= OFTEN and step < steps:
            self.last = seconds
            self.say(f"step {step}, {say_time(seconds / (step - self.first) * (steps - step))} left")


def say_time(seconds: float) -> str:
    """Say how long something takes."""
    if seconds < 100:
        return f"{seconds:.2g} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 100 * 60 else f"{seconds / 3600:.1f} hours"


def keep_options(options: Train) -> dict[str, object]:
    """Return the options that make a run what it is."""
    return {k: v for k, v in dataclasses.asdict(options).items() if k not in PASSING}


def check_options(file: Path, options: Mapping[str, object], kind: type[Train]) -> None:
    """Raise CheckpointError for an option of a file that someone gave a value of another kind."""
    hints = get_type_hints(kind)
    for name, value in options.items():
        kinds = get_args(hints[name]) or (hints[name],)
        if type(value) not in kinds and not (type(value) is int and float in kinds):
            words = " or ".join("null" if one is type(None) else one.__name__ for one in kinds)
            raise CheckpointError(
                f"{file}: options.{name} must be {words}, got {show(value)}; restore it or start a new run",
                parameter=name,
            )


def describe_run(options: Train, model: ScoreModel, data: DataSet, place: str | None) -> dict[str, object]:
    """Return what run.json says: all that the run came from; ``place`` is where the data are, seen from its folder."""
    return {
        "data": options.data,
        **({} if place is None else {"data_path": place}),
        "options": keep_options(options),
        "samples": describe_samples(data),
        "model": {
            "network": network_to_dict(model.net),
            "parameters": sum(p.numel() for p in model.parameters()),
            "sde": repr(model.sde),
            "transform": None if model.transform is None else model.transform.to_dict(),
            "classes": None if model.class_names is None else [*model.class_names["label"]],
        },
        "versions": {"scoresde": read_version(), "torch": torch.__version__},
    }


def check_unchanged(folder: Path, about: Mapping[str, object]) -> None:
    """Raise CheckpointError where the data are not those that the run began with; ``fit`` compares all else."""
    known, now = read_json(folder / RUN).get("samples"), about["samples"]
    if isinstance(known, dict) and isinstance(now, dict) and any(known[key] != now.get(key) for key in known):
        raise CheckpointError(
            f"{about['data']} has changed since {folder} began; restore it, start a new run, or go on with what is "
            f"new: --resume {folder} --change"
        )


def make_condition(part: Labelled, context: Tensor | None, options: Train) -> dict[str, Tensor] | None:
    """Return the labels and contexts of a part of the data, where the model is given them."""
    labels = part[1]
    cond = {"label": labels} if options.conditional and labels is not None else {}
    return {**cond, **({} if context is None else {"context": context})} or None


def run_training(
    options: Train,
    model: ScoreModel,
    data: DataSet,
    train: Labelled,
    test: Labelled,
    conds: tuple[dict[str, Tensor] | None, dict[str, Tensor] | None],
    folder: Path,
    about: Mapping[str, object],
    *,
    resume: Resume,
    world: World,
    shard: Sequence[str] | None,
) -> TrainResult:
    """Train, leave run.json beside whatever checkpoint there is, and say how to go on after Ctrl-C."""
    assert options.steps is not None
    assert options.batch_size is not None
    assert options.learning_rate is not None
    assert options.weight is not None
    assert options.times is not None
    steps, shown, complete, begun = options.steps, 0, False, not resume
    judged = options.held_out_loss or options.patience is not None

    def say(what: str) -> None:
        print(f"training     {what}", file=sys.stderr, flush=True)

    def note(record: Mapping[str, object]) -> None:
        nonlocal shown, begun
        begun = True
        step, loss = record["step"], record["loss"]
        assert isinstance(step, int)
        if 10 * step // steps > shown and not is_interactive():
            shown = 10 * step // steps
            say(f"step {step}, loss {loss:.4g}" if isinstance(loss, float) else f"step {step}, loss not finite")

    if not resume and world.is_main:
        # First, so that a run that is killed at once says what it was.
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RUN, {**about, "complete": False})
    every = max(1, steps // 10)
    try:
        result = fit(
            model,
            train[0],
            steps=steps,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            warmup=options.warmup,
            weight=cast(losses.WeightName, options.weight),
            times=cast(losses.TimesName, options.times),
            weight_decay=options.weight_decay,
            clip_norm=options.clip_norm or None,
            ema_decay=options.ema_decay,
            cond=conds[0],
            cond_dropout=dict.fromkeys(conds[0] or (), options.label_dropout or 0.0),
            held_out=test[0] if judged else None,
            held_out_cond=conds[1] if judged else None,
            patience=options.patience,
            watch=make_watch(options, data, tuple(train[0].shape[1:]), folder) if options.watch else None,
            accumulate=options.accumulate,
            uncertainty=options.uncertainty,
            augment=RandomFlip() if options.flip else None,
            autocast=PRECISIONS[options.precision],
            seed=options.seed,
            folder=folder,
            save_every=every,
            keep=options.keep,
            trackers=() if options.tracker is None else (options.tracker,),
            resume=resume,
            world=world,
            shard=shard,
            progress=is_interactive() or Pace(say),
            on_log=note,
        )
        complete = True
        return result
    except ConfigError as error:
        if error.parameter != "resume" or error.got == "change":
            raise
        # In the words of the command line.
        changed = "data" in (error.allowed or ())
        first = "bring the data back as they were, or" if changed else "start a new run, or"
        raise error.with_cure(f"{first} go on with what is new: --resume {folder} --change") from error
    except KeyboardInterrupt as stop:
        begun = True
        if not (folder / CHECKPOINT / MANIFEST).is_file():
            raise
        raise KeyboardInterrupt(
            f"the checkpoint is in {folder / CHECKPOINT}/; go on with: scoresde train --resume {folder}"
        ) from stop
    finally:
        # What was refused before it began says nothing new of the run.
        if not world.is_main or not (begun or complete):
            pass
        elif (folder / CHECKPOINT / MANIFEST).is_file():
            write_json(folder / RUN, {**about, "complete": complete})
        elif not resume and not (folder / LOG).exists():
            # Refused before it began.
            (folder / RUN).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()
