"""Training and held-out samples of data that were read.

The split is fixed and draws no random number: samples are ordered by label (within a label, and where there are none,
as they come), and every fifth of them, the first included, is held out.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from scoresde.cli.layouts import Kind, Layout
from scoresde.cli.presets import DataSet, Labelled, Levels, Samples
from scoresde.data.images import split_by_label
from scoresde.errors.kinds import DataError
from scoresde.ops import Rows, parts
from scoresde.transforms.affine import Affine
from scoresde.transforms.base import Transform

__all__ = ["hold_out", "make_data"]

WIDE = (torch.float64, torch.int32, torch.int64)  # what float32 may not hold; scaled in float64, then cast


def hold_out(
    path: Path,
    data: Tensor,
    labels: Tensor | None,
    classes: tuple[str, ...],
    notes: tuple[str, ...] = (),
    *,
    kind: Kind,
    layout: Layout | None = None,
    context: Tensor | None = None,
) -> DataSet:
    """Part samples into those to train on and those held out; both are read from the data as they are used.

    Raises:
        DataError: fewer than three samples.
    """
    if len(data) < 3:
        raise DataError(f"{path} holds {len(data)} samples; a fifth of them is held out and two are needed: add more")
    order = torch.zeros(len(data), dtype=torch.long, device="cpu") if labels is None else labels
    places = [split_by_label(order, split) for split in ("train", "test")]
    train, test = (_take(data, labels, one) for one in places)
    contexts = None if context is None else (context[places[0]], context[places[1]])
    return make_data(path, train, test, classes, notes, kind=kind, layout=layout, contexts=contexts)


def make_data(
    path: Path,
    train: Labelled,
    test: Labelled,
    classes: tuple[str, ...],
    notes: tuple[str, ...] = (),
    *,
    kind: Kind,
    layout: Layout | None = None,
    contexts: tuple[Tensor, Tensor] | None = None,
) -> DataSet:
    """Return a data set with the transform and the levels that suit it."""
    samples = train[0]
    if kind == "vectors" and tuple(samples.shape[1:]) == (2,):
        kind = "points"
    if contexts is not None:
        std, mean = (float(c) for c in torch.std_mean(contexts[0][~contexts[0].isnan()]))
        if not 0.1 <= std <= 10 or abs(mean) > 10:
            notes = (*notes, f"context      mean {mean:.3g}, deviation {std:.3g}: a network learns at about unit scale")
    pixels = kind == "images" and isinstance(samples, Rows) and samples.source.dtype == torch.uint8
    transform: Transform | None
    if kind == "images":
        low, high = (0.0, 255.0) if pixels else _find_range(samples)
        transform = None if (low, high) == (-1.0, 1.0) else Affine.from_range(low, high)
    else:
        transform = Affine.standardise(samples)
    return DataSet(
        kind=kind,
        load=lambda: train,
        test=lambda: test,
        classes=classes,
        transform=lambda: transform,
        notes=notes,
        path=path,
        contexts=contexts,
        levels=Levels(256, 0.0, 255.0) if pixels else None,
        layout=layout,
    )


def _take(data: Tensor, labels: Tensor | None, places: Tensor) -> Labelled:
    kept = torch.float64 if data.dtype in WIDE else torch.float32
    return Rows(data, kept, places.nonzero()[:, 0]), None if labels is None else labels[places]


def _find_range(images: Samples) -> tuple[float, float]:
    """Return the interval in which pixels lie: [0, 1] or [-1, 1] where they fit into it, else their extremes."""
    ends = [torch.stack(part.aminmax()) for part in parts(images)]
    low, high = float(torch.stack(ends).min()), float(torch.stack(ends).max())
    if high <= 1 and low >= -1:
        return (0.0, 1.0) if low >= 0 else (-1.0, 1.0)
    return (low, high) if low < high else (low - 1.0, low + 1.0)
