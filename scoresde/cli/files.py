"""The user's own data: a folder of images, an array or a tensor of a file, or a table.

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

from scoresde.cli.presets import DATA, DataSet, Labelled, Levels, Samples, find_kind
from scoresde.data.arrays import arrays_from_file
from scoresde.data.columns import table_from_file
from scoresde.data.folders import images_from_folder
from scoresde.data.images import split_by_label
from scoresde.errors import ConfigError, DataError, unknown
from scoresde.ops import Rows, parts
from scoresde.transforms.affine import Affine
from scoresde.transforms.base import Transform

__all__ = ["BAD_IMAGES", "is_name", "open_data"]

ARRAYS = (".npy", ".npz", ".pt", ".pth", ".safetensors")
TABLES = (".csv", ".parquet")
KINDS = f"a folder of images, or a file of numbers ({', '.join(ARRAYS + TABLES)})"
SAMPLES, LABELS = "samples", "labels"
BAD_IMAGES = ("raise", "skip")


def open_data(
    text: str, *, size: int | None = None, on_bad_image: str = "raise", context: str | None = None
) -> DataSet:
    """Return data by name, or those of a folder of images, or of a file; a file is read here.

    Args:
        text: a key of ``DATA``, a folder, or a file; "file.npz:name" chooses one of several arrays, and
            "table.csv:name" the column of a table that holds the labels.
        size: side in pixels to which the images of a folder are scaled and cropped.
        on_bad_image: "raise" or "skip", for a folder.
        context: what the network is told of each sample: the name of another array of the file, (N,) or (N, k), or the
            names of columns of a table, with commas between them. NaN is a value that is missing.

    Raises:
        ConfigError: no such name (with the nearest), or samples that no built-in network takes.
        DataError: no such file, one that cannot be read or of another kind, images of several sizes, too few samples.
    """
    if on_bad_image not in BAD_IMAGES:
        raise unknown("way for on_bad_image", on_bad_image, BAD_IMAGES, parameter="on_bad_image")
    path, key = _locate(text)
    ending = path.suffix.lower()
    if context is not None and (text in DATA or ending not in ARRAYS + TABLES):
        raise ConfigError(
            f"--context {context} names an array or columns of a file, and {text} is none",
            parameter="context",
            got=context,
            cure=f"put it beside the samples in a file ({', '.join((*ARRAYS[1:], *TABLES))})",
        )
    if text in DATA:
        return DATA[text]
    if ending in ARRAYS:
        return _open_arrays(path, key, context)
    if ending in TABLES:
        return _open_table(path, key, context)
    if is_name(text):
        error = unknown("data set", text, DATA, parameter="data")
        raise error.with_cure(f"{error.cure}; or {KINDS}")
    if not path.is_dir():
        what = "is a file of a kind that is not read" if path.exists() else "does not exist"
        raise DataError(f"{path} {what}", parameter="data", got=text, cure=f"give {KINDS}")
    return _open_folder(path, size, "skip" if on_bad_image == "skip" else "raise")


def is_name(text: str) -> bool:
    """Return whether a text can only be a name: it does not look like a path, and nothing is there."""
    path = _locate(text)[0]
    there = path.exists() or path.suffix.lower() in ARRAYS + TABLES
    return text in DATA or not (there or {"/", os.sep} & set(text))


def _locate(text: str) -> tuple[Path, str | None]:
    """Return the path of a text, and what stands behind the colon after a file."""
    path, colon, key = text.rpartition(":")
    if colon and Path(path).suffix.lower() in ARRAYS + TABLES:
        return Path(path), key
    return Path(text), None


def _open_folder(path: Path, size: int | None, on_bad_image: Literal["raise", "skip"]) -> DataSet:
    try:
        found = images_from_folder(path, size, on_bad_image=on_bad_image)
    except DataError as error:
        # In the words of the command line.
        if error.parameter == "size":
            raise error.with_cure("--size 32 scales and crops each to 32 x 32") from error
        if error.parameter == "on_bad_image":
            raise error.with_cure("repair or remove it, or leave it out with --on-bad-image skip") from error
        raise
    images = found.images
    if bool((images == images[:, :1]).all()):
        images = images[:, :1]  # all of them grey
    notes = tuple(f"left out {file}, which {reason}" for file, reason in found.skipped)
    if len(found.classes) == 1:
        return _split(path, images, None, 0, notes)
    return _split(path, images, found.labels, len(found.classes), notes)


def _open_arrays(path: Path, key: str | None, context: str | None) -> DataSet:
    labels, classes = None, 0
    told = None if context is None else arrays_from_file(path, context, missing=True).float()
    try:
        data = arrays_from_file(path, key, mapped=True)
    except ConfigError as error:
        names = error.allowed
        if key is not None or not isinstance(names, tuple):
            raise
        if SAMPLES not in names:
            # In the words of the command line.
            ways = " or ".join(f"{path}:{name}" for name in names)
            raise error.with_cure(f"name one behind a colon: {ways}") from error
        # As ``scoresde sample`` writes them.
        data = arrays_from_file(path, SAMPLES)
        labels = arrays_from_file(path, LABELS) if LABELS in names else None
    if labels is not None:
        if labels.is_floating_point() or labels.shape != data.shape[:1] or int(labels.min()) < 0:
            raise DataError(
                f"{path}[{LABELS!r}] must hold one integer from 0 on for each of {len(data)} samples, got "
                f"{labels.dtype} of shape {tuple(labels.shape)}; choose an array without labels: "
                f"--data {path}:{SAMPLES}"
            )
        labels, classes = labels.long(), int(labels.max()) + 1
    if told is not None and (told.ndim > 2 or len(told) != len(data)):
        raise DataError(
            f"{path}[{context!r}] must hold a number or a vector for each of {len(data)} samples, got shape "
            f"{tuple(told.shape)}"
        )
    whole = data[:, None] if data.ndim == 1 else data
    return _split(path, whole, labels, classes, context=None if told is None else told.reshape(len(told), -1))


def _open_table(path: Path, column: str | None, context: str | None) -> DataSet:
    try:
        table = table_from_file(path, label_column=column)
    except DataError as error:
        if error.parameter != "label_column" or not isinstance(error.allowed, tuple):
            raise
        # In the words of the command line.
        ways = " or ".join(f"{path}:{name}" for name in error.allowed)
        cure = "take them out, or write them as numbers"
        raise error.with_cure(cure if column else f"{cure}; or, if one holds the labels, name it: {ways}") from error
    names = ", ".join(f"{k} {name}" for k, name in enumerate(table.classes))
    notes = (f"labels       {names}",) if table.classes else ()
    if context is None:
        return _split(path, table.values, table.labels, len(table.classes), notes)
    names_of = [name.strip() for name in context.split(",")]
    for name in names_of:
        if name not in table.names:
            raise unknown(f"column of {path}", name, table.names, parameter="context")
    chosen = torch.tensor([name in names_of for name in table.names])
    told = table.values[:, [table.names.index(name) for name in names_of]].float()
    return _split(path, table.values[:, ~chosen], table.labels, len(table.classes), notes, context=told)


def _split(
    path: Path,
    data: Tensor,
    labels: Tensor | None,
    classes: int,
    notes: tuple[str, ...] = (),
    *,
    context: Tensor | None = None,
) -> DataSet:
    """Part samples into those to train on and those held out; both are read from the data as they are used."""
    kind = find_kind(data.shape[1:], str(path))
    if len(data) < 3:
        raise DataError(f"{path} holds {len(data)} samples; a fifth of them is held out and two are needed: add more")
    order = torch.zeros(len(data), dtype=torch.long) if labels is None else labels
    places = [split_by_label(order, split) for split in ("train", "test")]
    train, test = (_take(data, labels, one) for one in places)
    contexts = None if context is None else (context[places[0]], context[places[1]])
    if contexts is not None:
        std, mean = (float(c) for c in torch.std_mean(contexts[0][~contexts[0].isnan()]))
        if not 0.1 <= std <= 10 or abs(mean) > 10:
            notes = (*notes, f"context      mean {mean:.3g}, deviation {std:.3g}: a network learns at about unit scale")
    transform: Transform | None
    if kind == "images":
        low, high = (0.0, 255.0) if data.dtype == torch.uint8 else _find_range(train[0])
        transform = None if (low, high) == (-1.0, 1.0) else Affine.from_range(low, high)
    else:
        transform = Affine.standardise(train[0])
    return DataSet(
        kind=kind,
        load=lambda: train,
        test=lambda: test,
        classes=classes,
        transform=lambda: transform,
        notes=notes,
        path=path,
        contexts=contexts,
        levels=Levels(256, 0.0, 255.0) if kind == "images" and data.dtype == torch.uint8 else None,
    )


def _take(data: Tensor, labels: Tensor | None, places: Tensor) -> Labelled:
    return Rows(data, torch.float32, places.nonzero()[:, 0]), None if labels is None else labels[places]


def _find_range(images: Samples) -> tuple[float, float]:
    """Return the interval in which pixels lie: [0, 1] or [-1, 1] where they fit into it, else their extremes."""
    ends = [torch.stack(part.aminmax()) for part in parts(images)]
    low, high = float(torch.stack(ends).min()), float(torch.stack(ends).max())
    if high <= 1 and low >= -1:
        return (0.0, 1.0) if low >= 0 else (-1.0, 1.0)
    return (low, high) if low < high else (low - 1.0, low + 1.0)
