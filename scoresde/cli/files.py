"""The user's own data: a folder of images, an array or a tensor of a file, or a table.

Vectors, series and volumes are standardised by channel for the model, images mapped from their range to [-1, 1]; the
checkpoint keeps the map, and samples come back in the data's own units.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from scoresde.cli.layouts import LAYOUTS, find_layout
from scoresde.cli.presets import DATA, DataSet
from scoresde.cli.split import hold_out, make_data
from scoresde.data.arrays import arrays_from_file
from scoresde.data.columns import table_from_file
from scoresde.data.folders import SUFFIXES, FolderImages, count_others, images_from_folder
from scoresde.data.labels import labels_from_file
from scoresde.errors.kinds import ConfigError, DataError
from scoresde.errors.names import unknown

__all__ = ["ARRAYS", "BAD_IMAGES", "is_name", "locate", "open_data"]

ARRAYS = (".npy", ".npz", ".pt", ".pth", ".safetensors")
TABLES = (".csv", ".parquet")
KINDS = f"a folder of images, or a file of numbers ({', '.join(ARRAYS + TABLES)})"
SAMPLES, LABELS = "samples", "labels"
BAD_IMAGES = ("raise", "skip")
TRAIN, TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")
COLOURS = {"white": (255, 255, 255), "grey": (128, 128, 128), "black": (0, 0, 0)}
BACKGROUND = "--background white (or 255,255,255) puts a colour behind what is transparent"


def open_data(
    text: str,
    *,
    size: int | None = None,
    on_bad_image: str = "raise",
    background: str | None = None,
    context: str | None = None,
    layout: str | None = None,
) -> DataSet:
    """Return data by name, or those of a folder of images, or of a file; a file is read here.

    Args:
        text: a key of ``DATA``, a folder, or a file; "file.npz:name" chooses one of several arrays, and
            "table.csv:name" the column of a table that holds the labels.
        size: side in pixels to which the images of a folder are scaled and cropped.
        on_bad_image: "raise" or "skip", for a folder.
        background: the colour behind transparent places of a folder's images: a key of ``COLOURS``, or "255,255,255".
        context: what the network is told of each sample: the name of another array of the file, (N,) or (N, k), or the
            names of columns of a table, with commas between them. NaN is a value that is missing.
        layout: a key of ``LAYOUTS``, for an array; None to tell it from the sizes.

    Raises:
        ConfigError: no such name (with the nearest), or samples that no built-in network takes.
        DataError: no such file, one that cannot be read or of another kind, images of several sizes, too few samples.
    """
    if on_bad_image not in BAD_IMAGES:
        raise unknown("way for on_bad_image", on_bad_image, BAD_IMAGES, parameter="on_bad_image")
    path, key = locate(text)
    ending = path.suffix.lower()
    by_name = text in DATA
    if context is not None and (by_name or ending not in ARRAYS + TABLES):
        raise ConfigError(
            f"--context {context} names an array or columns of a file, and {text} is none",
            parameter="context",
            got=context,
            cure=f"put it beside the samples in a file ({', '.join((*ARRAYS[1:], *TABLES))})",
        )
    if layout is not None and (by_name or ending not in ARRAYS):
        raise ConfigError(f"--layout is for files of arrays, {text} is none; leave it out", parameter="layout")
    if background is not None and (by_name or not path.is_dir()):
        raise ConfigError(
            f"--background is for folders of images, {text} is none; leave it out", parameter="background"
        )
    if by_name:
        return DATA[text]
    if ending in ARRAYS:
        return _open_arrays(path, key, context, layout)
    if ending in TABLES:
        return _open_table(path, key, context)
    if is_name(text):
        error = unknown("data set", text, DATA, parameter="data")
        raise error.with_cure(f"{error.cure}; or {KINDS}")
    if not path.is_dir():
        what = "does not exist"
        if path.exists():
            picture = path.suffix.lower() in SUFFIXES
            what = "is a single picture" if picture else "is a file of a kind that is not read"
        raise DataError(f"{path} {what}", parameter="data", got=text, cure=f"give {KINDS}")
    colour = None if background is None else _read_colour(background)
    return _open_folder(path, size, "skip" if on_bad_image == "skip" else "raise", colour)


def is_name(text: str) -> bool:
    """Return whether a text can only be a name: it does not look like a path, and nothing is there."""
    path = locate(text)[0]
    there = path.exists() or path.suffix.lower() in ARRAYS + TABLES
    return text in DATA or not (there or {"/", os.sep} & set(text))


def locate(text: str) -> tuple[Path, str | None]:
    """Return the path of a text, and what stands behind the colon after a file."""
    path, colon, key = text.rpartition(":")
    if colon and Path(path).suffix.lower() in ARRAYS + TABLES:
        return Path(path), key
    return Path(text), None


def _read_colour(text: str) -> tuple[int, int, int]:
    """Return a colour by name or by three numbers."""
    parts = text.split(",")
    if text in COLOURS:
        return COLOURS[text]
    if len(parts) == 3 and all(part.strip().isdecimal() and int(part) <= 255 for part in parts):
        red, green, blue = map(int, parts)
        return red, green, blue
    raise ConfigError(
        f"--background must be three numbers from 0 to 255, or {', '.join(COLOURS)}, got {text!r}",
        parameter="background",
        got=text,
        allowed=tuple(COLOURS),
    )


def _open_folder(
    path: Path, size: int | None, on_bad_image: Literal["raise", "skip"], background: tuple[int, int, int] | None
) -> DataSet:
    """Open a folder of images, in which train/ and test/ are the split where both are there."""
    named = {one.name.lower(): one for one in sorted(path.iterdir()) if one.is_dir()}
    found = [next((named[name] for name in names if name in named), None) for names in (TRAIN, TEST)]
    # A folder of trains beside folders of cars is a class.
    homes = [one for one in found if one is not None] if None not in found else [path]
    parts = [_read_folder(home, size, on_bad_image, background) for home in homes]
    notes = [f"left out {file}, which {reason}" for part in parts for file, reason in part.skipped]
    notes += [
        f"left out     {count_others(part.others)} in {home}"
        for part, home in zip(parts, homes, strict=True)
        if part.others
    ]
    if len(homes) == 1:
        images, labels, classes = _drop_colour(parts)[0], parts[0].labels, parts[0].classes
        several = len(classes) > 1
        return hold_out(
            path, images, labels if several else None, classes if several else (), tuple(notes), kind="images"
        )
    return _join(path, homes, parts, notes)


def _drop_colour(parts: Sequence[FolderImages]) -> list[Tensor]:
    """Return the images of each part, with one channel where all are grey."""
    images = [part.images for part in parts]
    return [one[:, :1] for one in images] if all(bool((one == one[:, :1]).all()) for one in images) else images


def _join(path: Path, homes: Sequence[Path], parts: Sequence[FolderImages], notes: list[str]) -> DataSet:
    """Return the data of a folder whose subfolders are the split; the classes are those of the training."""
    train, test = homes
    if len({part.images.shape[1:] for part in parts}) > 1:
        sizes = " and ".join(" x ".join(map(str, part.images.shape[2:])) for part in parts)
        raise DataError(f"the images of {train} and {test} have sizes {sizes}; --size 32 brings them to 32 x 32")
    beside = sorted(one.name + "/" * one.is_dir() for one in path.iterdir() if one not in homes)
    more = f"; left out {', '.join(beside)}" if beside else ""
    notes.append(f"split        {train.name}/ is trained on, {test.name}/ held out{more}")
    images, (known, other) = _drop_colour(parts), parts
    if len(known.classes) == 1:
        return make_data(path, (images[0], None), (images[1], None), (), tuple(notes), kind="images")
    places = [known.classes.index(name) if name in known.classes else -1 for name in other.classes]
    labels = torch.tensor(places, dtype=torch.int64, device="cpu")[other.labels]
    kept = labels >= 0
    if not bool(kept.all()):
        notes.append(f"left out     {int((~kept).sum())} images of {test.name}/, of classes that {train.name}/ lacks")
    parted = (images[0], known.labels), (images[1][kept], labels[kept])
    return make_data(path, *parted, known.classes, tuple(notes), kind="images")


def _read_folder(
    path: Path, size: int | None, on_bad_image: Literal["raise", "skip"], background: tuple[int, int, int] | None
) -> FolderImages:
    try:
        return images_from_folder(path, size, on_bad_image=on_bad_image, background=background)
    except DataError as error:
        # In the words of the command line.
        if error.parameter == "size":
            raise error.with_cure("--size 32 scales and crops each to 32 x 32") from error
        if error.parameter == "on_bad_image":
            clear = f"{BACKGROUND}; " if "transparent" in str(error) else ""
            raise error.with_cure(f"{clear}repair or remove it, or leave it out with --on-bad-image skip") from error
        raise


def _open_arrays(path: Path, key: str | None, context: str | None, asked: str | None) -> DataSet:
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    told = None if context is None else arrays_from_file(path, context, missing=True).float()
    name = f"{path}"
    try:
        data = arrays_from_file(path, key, mapped=True)
    except ConfigError as error:
        names = error.allowed
        if key is not None or not isinstance(names, tuple):
            raise
        if SAMPLES not in names:
            # In the words of the command line.
            ways = " or ".join(f"{path}:{name}" for name in names)
            raise error.with_cure(
                f"name the samples behind a colon: {ways}; or call them {SAMPLES!r}, and their labels {LABELS!r}"
            ) from error
        # As ``scoresde sample`` writes them.
        data = arrays_from_file(path, SAMPLES)
        if LABELS in names:
            labels, classes = _read_labels(path, len(data))
    if told is not None and (told.ndim > 2 or len(told) != len(data)):
        raise DataError(
            f"{path}[{context!r}] must hold a number or a vector for each of {len(data)} samples, got shape "
            f"{tuple(told.shape)}"
        )
    layout = find_layout(data.shape, name, asked, pixels=data.dtype == torch.uint8)
    return hold_out(
        path,
        layout.read(data),
        labels,
        classes,
        kind=layout.kind,
        layout=layout,
        context=None if told is None else told.reshape(len(told), -1),
    )


def _read_labels(path: Path, count: int) -> tuple[Tensor, tuple[str, ...]]:
    """Return the labels beside the samples of a file, and what the classes are called."""
    try:
        labels, classes = labels_from_file(path, LABELS)
        if len(labels) == count:
            return labels, classes
        error = DataError(f"{path} holds {len(labels)} labels and {count} samples", cure="give one for each")
    except DataError as raised:
        error = raised
    raise error.with_cure(f"{error.cure}; or choose the samples without their labels: --data {path}:{SAMPLES}")


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
    layout = LAYOUTS["ND"]
    if context is None:
        return hold_out(path, table.values, table.labels, table.classes, kind=layout.kind, layout=layout)
    names_of = [name.strip() for name in context.split(",")]
    for name in names_of:
        if name not in table.names:
            raise unknown(f"column of {path}", name, table.names, parameter="context")
    chosen = torch.tensor([name in names_of for name in table.names], dtype=torch.bool, device="cpu")
    told = table.values[:, [table.names.index(name) for name in names_of]].float()
    values = table.values[:, ~chosen]
    return hold_out(path, values, table.labels, table.classes, kind=layout.kind, layout=layout, context=told)
