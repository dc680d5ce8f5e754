"""The folder of a run: the checkpoint and the log that ``fit`` writes, and beside them what they came from.

    runs/digits/run.json          the data, the options, the model and the versions of the training
    runs/digits/log.jsonl         one record of the training a line
    runs/digits/checkpoint/       the model
    runs/digits/comparison/       what ``scoresde compare`` found

A checkpoint that stands alone (``ScoreModel.save``) serves as well, and so does a folder of diffusers.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scoresde.cli.files import is_name, locate
from scoresde.cli.foreign import open_foreign
from scoresde.cli.layouts import LAYOUTS, Layout
from scoresde.cli.presets import DATA
from scoresde.errors.kinds import CheckpointError, ConfigError
from scoresde.errors.names import unknown
from scoresde.models.checkpoint import find
from scoresde.models.latent import Latent
from scoresde.models.manifest import MANIFEST
from scoresde.models.score_model import ScoreModel
from scoresde.models.stored import parse_json, read_json_file
from scoresde.nn.conditions import ConditionalNetwork
from scoresde.training.keeping import CHECKPOINT

__all__ = [
    "RUN",
    "RunFolder",
    "check_file",
    "check_folder",
    "find_checkpoint",
    "find_data",
    "keep_data",
    "open_run",
    "read_about",
    "read_json",
    "read_version",
    "shape_of_data",
    "write_json",
]

RUN = "run.json"


@dataclass(frozen=True, eq=False)
class RunFolder:
    """A trained model and where it came from.

    Args:
        folder: of the run, of a checkpoint that stands alone, or of diffusers.
        model: with averaged weights, ready to sample.
        about: what run.json says; nothing where there is none.
        data: the name of its data, or where they are; None where no run.json tells.
        event: the shape of one sample in the model's coordinates.
        classes: the number of class labels of a built-in network; None without labels.
        names: what the classes are called; "0", "1", ... where the model does not say.
        features: length of the context vector of a built-in network; 0 without.
        foreign: whether it is a model of diffusers.
    """

    folder: Path
    model: ScoreModel
    about: Mapping[str, object]
    data: str | None
    event: torch.Size
    classes: int | None
    names: tuple[str, ...]
    features: int
    foreign: bool = False

    @property
    def shape(self) -> torch.Size:
        """The shape of a sample in the data's units, which a latent model decodes to."""
        return shape_of_data(self.model, self.event)

    @property
    def layout(self) -> Layout | None:
        """How the array that it was trained on was laid out, if it was one."""
        options = self.about.get("options")
        name = options.get("layout") if isinstance(options, dict) else None
        return LAYOUTS.get(str(name))

    def make_labels(self, n: int, label: str | None = None) -> dict[str, Tensor] | None:
        """Return the labels of n samples: one for all, or the classes in turn; None for a model without labels.

        Raises:
            ConfigError: a label for a model without, or no such class (with the nearest).
        """
        if self.classes is None:
            if label is not None:
                raise ConfigError(
                    f"--label {label}: {self.folder} was trained without labels",
                    parameter="label",
                    got=label,
                    cure="leave it out" if self.foreign else "train with --conditional",
                )
            return None
        if label is None:
            return {"label": torch.arange(n, device="cpu") % self.classes}
        if label not in self.names:
            raise unknown("class", label, self.names, parameter="label")
        return {"label": torch.full((n,), self.names.index(label), dtype=torch.int64, device="cpu")}


def shape_of_data(model: ScoreModel, event: torch.Size) -> torch.Size:
    """Return the shape of a sample in the data's units, given that in the model's coordinates."""
    if not isinstance(model.transform, Latent):
        return event
    place = next(model.parameters())
    return model.transform.inverse(torch.zeros(1, *event, device=place.device, dtype=place.dtype)).shape[1:]


def find_checkpoint(path: Path) -> Path:
    """Return the folder of the checkpoint of a run's folder, or of a checkpoint's folder itself.

    Raises:
        CheckpointError: no checkpoint there (with the nearest name that is one).
    """
    found = find(path)
    if not (found / MANIFEST).is_file():
        beside = path.parent
        known = [one.name for one in beside.iterdir() if (find(one) / MANIFEST).is_file()] if beside.is_dir() else []
        near = difflib.get_close_matches(path.name, known, n=1, cutoff=0.5)
        hint = f"did you mean {beside / near[0]}?" if near else "make one with: scoresde train"
        what = "holds no checkpoint" if path.exists() else "does not exist"
        raise CheckpointError(f"checkpoint {path} {what}; {hint}")
    return found


def read_about(checkpoint: Path) -> tuple[Path, dict[str, object]]:
    """Return the folder that a checkpoint belongs to, its run's or its own, and what run.json says there, if any."""
    folder = checkpoint.parent if checkpoint.name == CHECKPOINT else checkpoint
    return folder, read_json(folder / RUN) if (folder / RUN).is_file() else {}


def open_run(path: Path, device: torch.device) -> RunFolder:
    """Read the model of a run's folder, of a checkpoint's folder itself, or of a folder of diffusers.

    Raises:
        CheckpointError: no checkpoint there (with the nearest name that is one), a damaged one, or one that does not
            know the shape of a sample. CheckpointError, ConfigError: as ``open_foreign``.
    """
    if not (find(path) / MANIFEST).is_file() and (foreign := open_foreign(path)) is not None:
        if foreign.latents:
            print(f"note: samples of {path} are latents; its decoder is not applied", file=sys.stderr)
        event, numbers = torch.Size(foreign.event), tuple(map(str, range(foreign.classes or 0)))
        return RunFolder(path, foreign.model.to(device), {}, None, event, foreign.classes, numbers, 0, foreign=True)
    checkpoint = find_checkpoint(path)
    folder, about = read_about(checkpoint)
    model = ScoreModel.load(checkpoint).to(device)
    if model.moments is None:
        raise CheckpointError(f"{folder} holds no data moments, so no shape of a sample; train it with fit")
    data = find_data(folder, about)
    kinds = model.net.kinds if isinstance(model.net, ConditionalNetwork) else {}
    option, classes = kinds.get("label", ("", 0))
    _, features = kinds.get("context", ("", 0))
    known = classes if option == "classes" else None
    given = (model.class_names or {}).get("label", ())
    names = tuple(given) if len(given) == classes else tuple(map(str, range(known or 0)))
    return RunFolder(folder, model, about, data, model.moments.mean.shape, known, names, features)


def find_data(folder: Path, about: Mapping[str, object]) -> str | None:
    """Return the name of a run's data, or where they are, from wherever this is asked; None where nothing tells.

    A path is kept relative to the run's folder, so that both may move together; where nothing is there, the path that
    the training was given serves, if something is there.
    """
    name, kept = about.get("data"), about.get("data_path")
    if name is None:
        return None
    if kept is None:
        return str(name)
    path, key = locate(str(kept))
    found = os.path.relpath(folder / path)
    if not os.path.exists(found) and locate(str(name))[0].exists():
        return str(name)
    if found in DATA:
        return os.path.join(os.curdir, found)  # a folder with the name of a built-in set is still the folder
    return found if key is None else f"{found}:{key}"


def keep_data(folder: Path, name: str) -> str | None:
    """Return where data are, seen from a run's folder; None for data by name."""
    if is_name(name):
        return None
    path, key = locate(name)
    # A path of its own stays one.
    kept = str(path) if path.is_absolute() else os.path.relpath(path, folder)
    return kept if key is None else f"{kept}:{key}"


def read_json(path: Path) -> dict[str, object]:
    """Return what ``write_json`` wrote; CheckpointError for anything else, or where nothing is."""
    try:
        return parse_json(read_json_file(path), path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; write it again") from error


def write_json(path: Path, value: object) -> None:
    """Write a file of JSON in one atomic change."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_version() -> str:
    """Return the package's version, from the package itself, which loads before any file of its own."""
    return str(sys.modules["scoresde"].__version__)


def check_folder(option: str, path: Path) -> Path:
    """Return ``path`` if a folder can be made and written there; nothing is made yet."""
    return _check(option, path, path)


def check_file(option: str, path: Path) -> Path:
    """Return ``path`` if a file can be written there, its folders being made; nothing is made yet."""
    if path.is_dir():
        raise _refuse(option, path, "is a folder", "name a file")
    return _check(option, path, path.parent)


def _check(option: str, path: Path, folder: Path) -> Path:
    there = next(one for one in [folder, *folder.absolute().parents] if one.exists())
    if not there.is_dir():
        raise _refuse(option, path, f"cannot be written: {there} is a file", "choose another path")
    if not os.access(there, os.W_OK | os.X_OK):
        raise _refuse(option, path, f"cannot be written: no permission in {there}", "choose another path")
    return path


def _refuse(option: str, path: Path, what: str, cure: str) -> ConfigError:
    flag = f"--{option.replace('_', '-')}"
    return ConfigError(f"{flag} {path} {what}", parameter=option, got=str(path), cure=cure)
