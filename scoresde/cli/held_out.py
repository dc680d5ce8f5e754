"""The held-out data of a run, which its verbs measure against."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping

import torch

from scoresde.cli.files import ARRAYS, is_name, locate, open_data
from scoresde.cli.presets import DataSet, Labelled
from scoresde.cli.run_folder import RunFolder
from scoresde.errors.kinds import ConfigError, DataError
from scoresde.errors.names import unknown
from scoresde.training.sources import digest

__all__ = ["describe_samples", "open_data_of"]


def open_data_of(run: RunFolder, named: str | None, on_bad_image: str | None) -> tuple[str, DataSet]:
    """Return the data to measure against: those named, or the run's as they were then, or with a word that they differ.

    Labels are those of the model: a class goes by its name. A model of diffusers that draws images is given the range
    of the data.

    Raises:
        ConfigError: none are named and no run.json names them, or a class that the model does not know. ConfigError,
            DataError: as ``open_data``.
    """
    name = run.data if named is None else named
    if name is None:
        raise ConfigError(
            f"{run.folder} has no run.json that names its data; say which with --data digits", parameter="data"
        )
    given = run.about.get("options")
    options = given if isinstance(given, dict) and name == run.data else {}
    # The images of a folder are brought to the size of the model's.
    side = run.event[-1] if len(run.event) == 3 and run.event[-1] == run.event[-2] else None
    layout = run.layout if locate(name)[0].suffix.lower() in ARRAYS else None
    if named is None and not is_name(name) and not locate(name)[0].exists():
        raise DataError(
            f"{locate(name)[0]}, on which {run.folder} was trained, is not there",
            parameter="data",
            got=name,
            cure="say where it is now with --data",
        )
    data = open_data(
        name,
        size=side,
        on_bad_image=on_bad_image or str(options.get("on_bad_image", "raise")),
        background=options.get("background"),
        context=given.get("context") if isinstance(given, dict) else None,
        layout=None if layout is None else layout.name,
    )
    if name == run.data:
        known = run.about.get("samples")
        now = describe_samples(data)
        if isinstance(known, dict) and known != now:
            print(f"note: {_say_change(name, known, now)}", file=sys.stderr)
    if run.foreign and data.kind == "images":
        run.model.transform = data.transform()  # its images are in [-1, 1]
    return name, _match_labels(run, name, data)


def describe_samples(data: DataSet) -> dict[str, object]:
    """Return what is known of a run's samples: by their digests a change is seen."""
    train, test = data.load()[0], data.test()[0]
    return {
        "shape": list(train.shape[1:]),
        "training": len(train),
        "held_out": len(test),
        "sha256": digest(train),
        "held_out_sha256": digest(test),
    }


def _say_change(name: str, known: Mapping[str, object], now: Mapping[str, object]) -> str:
    """Return in words how data differ from those of the training."""
    if "held_out_sha256" not in known:
        return f"{name} was read by an earlier scoresde, which kept other digests: not compared"
    if known["sha256"] == now["sha256"]:
        return f"the held-out part of {name} has changed since the training"
    return f"{name} has changed since the training; its held-out part may be known"


def _match_labels(run: RunFolder, name: str, data: DataSet) -> DataSet:
    """Return data whose labels are places among the model's classes."""
    if run.classes is None or not data.classes or data.classes == run.names:
        return data
    for one in data.classes:
        if one not in run.names:
            raise unknown(f"class {one!r} of {name}: the model's", one, run.names, parameter="data")
    places = torch.tensor([run.names.index(one) for one in data.classes], dtype=torch.int64, device="cpu")

    def match(part: Labelled) -> Labelled:
        return part[0], None if part[1] is None else places[part[1]]

    train, test = match(data.load()), match(data.test())
    return dataclasses.replace(data, load=lambda: train, test=lambda: test, classes=run.names)
