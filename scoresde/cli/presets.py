"""The tables of the command line: names to diffusions and data, and what is sensible for each kind of data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

from torch import Tensor, nn

from scoresde.cli.layouts import Kind, Layout
from scoresde.data.images import LabelledImages, digits, photographs
from scoresde.data.series import time_series
from scoresde.data.tables import TABLES, tabular
from scoresde.data.toys import DATASETS, ToyDensity
from scoresde.diffusions.cosine import CosineVPSDE
from scoresde.diffusions.levels import EDMSDE, VESDE, RectifiedFlow
from scoresde.diffusions.sde import GaussianSDE
from scoresde.diffusions.vp import VPSDE, SubVPSDE
from scoresde.nn.mlp import MLP
from scoresde.nn.unet import UNet
from scoresde.ops import Rows
from scoresde.transforms.affine import Affine
from scoresde.transforms.base import Transform

__all__ = [
    "DATA",
    "DIFFUSIONS",
    "PRESETS",
    "SDES",
    "DataSet",
    "Diffusion",
    "Labelled",
    "Levels",
    "Preset",
    "Samples",
]

HELD_OUT = 2_000
TRAINING_SEED, HELD_OUT_SEED, FRESH_SEED = 0, 1, 2

Split = Literal["train", "test"]
Samples = Tensor | Rows
Labelled = tuple[Samples, Tensor | None]


@dataclass(frozen=True, kw_only=True)
class Diffusion:
    """An SDE by name, with the prediction that suits it (of which ``losses.defaults`` knows the weight and the times).

    Args:
        build: makes it with its usual constants.
        predicts: what a network should predict under it.
    """

    build: type[GaussianSDE]
    predicts: str = "noise"


SDES: Final[Mapping[str, Diffusion]] = {
    "vp": Diffusion(build=VPSDE),
    "cosine": Diffusion(build=CosineVPSDE),
    "subvp": Diffusion(build=SubVPSDE),
    "ve": Diffusion(build=VESDE),
    "edm": Diffusion(build=EDMSDE, predicts="edm"),
    "rectified": Diffusion(build=RectifiedFlow, predicts="velocity"),
}
# By the names of their classes too.
DIFFUSIONS: Final[Mapping[str, Diffusion]] = {**SDES, **{one.build.__name__: one for one in SDES.values()}}


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What suits a kind of data.

    Args:
        shape: what a sample's shape means, in words.
        steps: optimiser steps.
        batch_size: samples in a step.
        learning_rate: of Adam.
        samples: how many each sampler draws in a comparison.
        metrics: names of the distances that a comparison measures.
    """

    shape: str
    steps: int = 3000
    batch_size: int = 64
    learning_rate: float = 2e-3
    samples: int = 500
    metrics: tuple[str, ...] = ("sliced_wasserstein", "energy_distance")


PRESETS: Final[Mapping[Kind, Preset]] = {
    "points": Preset(shape="(2,)", batch_size=512, samples=2000),
    "vectors": Preset(shape="(D,)", batch_size=256, samples=1000),
    "series": Preset(shape="(channels, length)", batch_size=128),
    "images": Preset(shape="(channels, height, width)", metrics=("sliced_wasserstein",)),
    "volumes": Preset(shape="(channels, depth, height, width)", batch_size=16, metrics=("sliced_wasserstein",)),
}


class Levels(NamedTuple):
    """The values that a coordinate takes: ``number`` of them, evenly spaced from ``low`` to ``high``."""

    number: int
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Data with what suits them.

    Args:
        kind: how its samples are drawn and judged, and which network learns them.
        load: training samples and their labels (None where there are none), in the data's units.
        test: the same of real samples that no training sees.
        classes: what the class labels are called; none where there are none.
        transform: from the data's units to those of the model; None where they are the same.
        fresh: draws as many independent samples as asked; None where there are no more than those that were loaded.
        notes: what a reader of the training's output should know, a line each.
        path: the file or folder that they were read from; None for data by name.
        levels: the values that a coordinate takes; None where they are any.
        contexts: vectors that the network is told, (N, k) of the training samples and of the held-out ones; or None.
        layout: how the array of a file was laid out; None for any other data.
    """

    kind: Kind
    load: Callable[[], Labelled]
    test: Callable[[], Labelled]
    classes: tuple[str, ...] = ()
    transform: Callable[[], Transform | None] = lambda: None
    fresh: Callable[[int], Tensor] | None = None
    notes: tuple[str, ...] = ()
    path: Path | None = None
    levels: Levels | None = None
    contexts: tuple[Tensor, Tensor] | None = None
    layout: Layout | None = None

    def held_out(self) -> Samples:
        """Return the real samples that no training sees."""
        return self.test()[0]

    @property
    def preset(self) -> Preset:
        """The defaults of its kind."""
        return PRESETS[self.kind]

    def network(self, event: Sequence[int], *, classes: int | None, seed: int) -> nn.Module:
        """Return a network for samples of shape ``event``, with class labels or without; ``seed`` names its weights."""
        features = None if self.contexts is None else self.contexts[0].shape[1]
        if self.kind in ("points", "vectors"):
            width = 128 if math.prod(event) <= 32 else 256
            return MLP(event, width=width, depth=3, classes=classes, context_features=features, seed=seed)
        side, multipliers = max(event[1:]), [1]
        # Two halvings where there is something to halve, and more until attention over all places is cheap.
        while side > (2 if len(multipliers) < 3 else 8):
            side = math.ceil(side / 2)
            multipliers.append(min(4, 2 * multipliers[-1]))
        width = 16 if max(event[1:]) <= 16 or len(event) == 2 else 32
        return UNet(
            event[0],
            dims=len(event) - 1,
            width=width,
            multipliers=multipliers,
            classes=classes,
            context_features=features,
            seed=seed,
        )


def _draw_from(kind: Kind, draw: ToyDensity, count: int) -> DataSet:
    return DataSet(
        kind=kind,
        load=lambda: (draw(count, seed=TRAINING_SEED), None),
        test=lambda: (draw(HELD_OUT, seed=HELD_OUT_SEED), None),
        fresh=lambda n: draw(n, seed=FRESH_SEED),
    )


def _take_images(load: Callable[[Split], LabelledImages], classes: tuple[str, ...], levels: int) -> DataSet:
    def part(split: Split) -> tuple[Tensor, Tensor]:
        data = load(split)
        return data.images, data.labels

    lattice = Levels(levels, -1.0, 1.0)
    return DataSet(
        kind="images", load=lambda: part("train"), test=lambda: part("test"), classes=classes, levels=lattice
    )


def _take_table(name: str, classes: tuple[str, ...]) -> DataSet:
    def part(split: Split) -> tuple[Tensor, Tensor]:
        table = tabular(name, split)
        return table.values, table.labels

    return DataSet(
        kind="vectors",
        load=lambda: part("train"),
        test=lambda: part("test"),
        classes=classes,
        transform=lambda: Affine.standardise(part("train")[0]),
    )


CLASSES: Final[Mapping[str, tuple[str, ...]]] = {
    "breast_cancer": ("malignant", "benign"),
    "iris": ("setosa", "versicolor", "virginica"),
    "wine": ("class_0", "class_1", "class_2"),
}

DATA: Final[Mapping[str, DataSet]] = {
    "digits": _take_images(digits, classes=tuple("0123456789"), levels=17),
    **{name: _draw_from("points", density, 50_000) for name, density in DATASETS.items()},
    "photographs": _take_images(
        lambda split: photographs(count=10_000 if split == "train" else 1_000, split=split),
        classes=("temple", "flower"),
        levels=256,
    ),
    "time_series": _draw_from("series", time_series, 10_000),
    **{name: _take_table(name, CLASSES[name]) for name in TABLES},
}
