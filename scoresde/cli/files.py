"""The user's own data: a folder of images, or an array of an .npy or .npz file.

The split into training and held-out samples is fixed and draws no random number: samples are ordered by label (within
a label, and where there are none, as they come), and every fifth of them, the first included, is held out.

Vectors, series and volumes are standardised by channel for the model, images mapped from their range to [-1, 1]; the
checkpoint keeps the map, and samples come back in the data's own units.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from scoresde.cli.presets import DATA, DataSet, Labelled, kind_of
from scoresde.data.arrays import arrays_from_file
from scoresde.data.folders import images_from_folder
from scoresde.data.images import split_by_label
from scoresde.errors import ConfigError, DataError, unknown
from scoresde.transforms.affine import Affine
from scoresde.transforms.base import Transform

__all__ = ["BAD_IMAGES", "named", "open_data"]

ARRAYS = (".npy", ".npz")
SAMPLES, LABELS = "samples", "labels"
BAD_IMAGES = ("raise", "skip")


def open_data(text: str, *, size: int | None = None, on_bad_image: str = "raise") -> DataSet:
    """Return data by name, or those of a folder of images, or of an array file; a file is read here.

    Args:
        text: a key of ``DATA``, a folder, or a file; "file.npz:name" chooses one of several arrays.
        size: side in pixels to which the images of a folder are scaled and cropped.
        on_bad_image: "raise" or "skip", for a folder.

    Raises:
        ConfigError: no such name (with the nearest), or samples that no built-in network takes.
        DataError: no such file, one that cannot be read, images of several sizes, too few samples.
    """
    if on_bad_image not in BAD_IMAGES:
        raise unknown("way for on_bad_image", on_bad_image, BAD_IMAGES)
    if text in DATA:
        return DATA[text]
    path, colon, key = text.rpartition(":")
    if not (colon and path.endswith(".npz")):
        path, key = text, ""
    if Path(path).suffix.lower() in ARRAYS:
        return _arrays(Path(path), key or None)
    if not named(text):
        return _folder(Path(text), size, "skip" if on_bad_image == "skip" else "raise")
    raise ConfigError(f"{unknown('data set', text, DATA)}; or a folder of images, or an .npy or .npz file")


def named(text: str) -> bool:
    """Return whether a text can only be a name: it does not look like a path, and nothing is there."""
    return text in DATA or not (Path(text).exists() or {"/", os.sep} & set(text) or Path(text).suffix in ARRAYS)


def _folder(path: Path, size: int | None, on_bad_image: Literal["raise", "skip"]) -> DataSet:
    try:
        found = images_from_folder(path, size, on_bad_image=on_bad_image)
    except DataError as error:
        # In the words of the command line.
        sizes, several, _ = str(error).partition("; pass size=")
        text = f"{sizes}; --size 32 scales and crops each to 32 x 32" if several else sizes
        raise DataError(text.replace("pass on_bad_image='skip'", "leave it out with --on-bad-image skip")) from error
    images = found.images
    if bool((images == images[:, :1]).all()):
        images = images[:, :1]  # all of them grey
    notes = tuple(f"left out {file}, which {reason}" for file, reason in found.skipped)
    if len(found.classes) == 1:
        return _split(str(path), images, None, 0, notes)
    return _split(str(path), images, found.labels, len(found.classes), notes)


def _arrays(path: Path, key: str | None) -> DataSet:
    labels = None
    if path.suffix.lower() == ".npz" and key is None:
        key, labels = _usual(path)
    try:
        data = arrays_from_file(path, key)
    except ConfigError as error:
        # In the words of the command line.
        several, named_by_key, keys = str(error).partition("; choose one with key=: ")
        if not named_by_key:
            raise
        ways = " or ".join(f"{path}:{one.strip(chr(39))}" for one in keys.split(", "))
        raise ConfigError(f"{several}; name one behind a colon: {ways}") from error
    classes = 0
    if labels is not None:
        if labels.is_floating_point() or labels.shape != data.shape[:1] or int(labels.min()) < 0:
            raise DataError(
                f"{path}[{LABELS!r}] must hold one integer from 0 on for each of {len(data)} samples, got "
                f"{labels.dtype} of shape {tuple(labels.shape)}; choose an array without labels: --data {path}:{key}"
            )
        labels, classes = labels.long(), int(labels.max()) + 1
    values = data.float().reshape(len(data), -1) if data.ndim == 1 else data.float()
    return _split(str(path), values, labels, classes, byte=data.dtype == torch.uint8)


def _usual(path: Path) -> tuple[str | None, Tensor | None]:
    """Return the key and the labels of a file as ``scoresde sample`` writes it; None of each for another."""
    try:
        arrays_from_file(path, SAMPLES)
    except ConfigError:
        return None, None
    try:
        return SAMPLES, arrays_from_file(path, LABELS)
    except ConfigError:
        return SAMPLES, None


def _split(
    name: str, data: Tensor, labels: Tensor | None, classes: int, notes: tuple[str, ...] = (), *, byte: bool = False
) -> DataSet:
    """Part samples into those to train on and those held out."""
    kind = kind_of(data.shape[1:], name)
    if len(data) < 3:
        raise DataError(f"{name} holds {len(data)} samples; a fifth of them is held out and two are needed: add more")
    order = torch.zeros(len(data), dtype=torch.long) if labels is None else labels
    train, test = (_part(data, labels, split_by_label(order, split)) for split in ("train", "test"))
    transform: Transform | None = Affine.standardise(train[0])
    if kind == "images":
        low, high = (0.0, 255.0) if byte else _range(train[0])
        transform = None if (low, high) == (-1.0, 1.0) else Affine.from_range(low, high)
    return DataSet(
        kind=kind,
        load=lambda: train,
        test=lambda: test,
        classes=classes,
        transform=lambda: transform,
        notes=notes,
    )


def _part(data: Tensor, labels: Tensor | None, chosen: Tensor) -> Labelled:
    return data[chosen], None if labels is None else labels[chosen]


def _range(images: Tensor) -> tuple[float, float]:
    """Return the interval in which pixels lie: [0, 1] or [-1, 1] where they fit into it, else their extremes."""
    low, high = float(images.min()), float(images.max())
    if high <= 1 and low >= -1:
        return (0.0, 1.0) if low >= 0 else (-1.0, 1.0)
    return (low, high) if low < high else (low - 1.0, low + 1.0)
