"""The tables of the command line: names to objects, and what is sensible for each kind of data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from torch import Tensor, nn

from scoresde.data import (
    LabelledImages,
    ToyDensity,
    checkerboard,
    digits,
    eight_gaussians,
    moons,
    pinwheel,
    swiss_roll,
    two_spirals,
)
from scoresde.nn import MLP, UNet
from scoresde.schedules import VESDE, VPSDE, SubVPSDE
from scoresde.sde import GaussianSDE

__all__ = ["DATA", "SDES", "DataSet"]

TRAINING_POINTS, HELD_OUT_POINTS = 50_000, 2_000
TRAINING_SEED, HELD_OUT_SEED = 0, 1


class NetworkBuilder(Protocol):
    """Builds a network for a data set."""

    def __call__(self, *, classes: int | None, seed: int) -> nn.Module:
        """Return a network with class labels, or without, with first weights from ``seed``."""
        ...


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Data by name, with the defaults that suit them.

    Args:
        kind: how its samples are drawn and judged.
        load: training samples and their labels (None where there are none).
        held_out: real samples that no training sees.
        network: builder of a network.
        classes: number of class labels; 0 where there are none.
        steps: optimiser steps.
        batch_size: samples in a step.
        learning_rate: of Adam.
        samples: how many each sampler draws in a comparison.
    """

    kind: Literal["points", "images"]
    load: Callable[[], tuple[Tensor, Tensor | None]]
    held_out: Callable[[], Tensor]
    network: NetworkBuilder
    classes: int
    steps: int
    batch_size: int
    learning_rate: float
    samples: int


def _points(density: ToyDensity) -> DataSet:
    def network(*, classes: int | None, seed: int) -> nn.Module:
        return MLP(2, width=128, depth=3, classes=classes, seed=seed)

    return DataSet(
        kind="points",
        load=lambda: (density(TRAINING_POINTS, seed=TRAINING_SEED), None),
        held_out=lambda: density(HELD_OUT_POINTS, seed=HELD_OUT_SEED),
        network=network,
        classes=0,
        steps=3000,
        batch_size=512,
        learning_rate=2e-3,
        samples=2000,
    )


def _images(load: Callable[[Literal["train", "test"]], LabelledImages], classes: int) -> DataSet:
    def network(*, classes: int | None, seed: int) -> nn.Module:
        return UNet(1, width=16, multipliers=(1, 2, 4), classes=classes, seed=seed)

    def training() -> tuple[Tensor, Tensor]:
        data = load("train")
        return data.images, data.labels

    return DataSet(
        kind="images",
        load=training,
        held_out=lambda: load("test").images,
        network=network,
        classes=classes,
        steps=3000,
        batch_size=64,
        learning_rate=2e-3,
        samples=500,
    )


SDES: Final[Mapping[str, Callable[[], GaussianSDE]]] = {"vp": VPSDE, "subvp": SubVPSDE, "ve": VESDE}

DATA: Final[Mapping[str, DataSet]] = {
    "digits": _images(digits, classes=10),
    "swiss_roll": _points(swiss_roll),
    "eight_gaussians": _points(eight_gaussians),
    "moons": _points(moons),
    "checkerboard": _points(checkerboard),
    "pinwheel": _points(pinwheel),
    "two_spirals": _points(two_spirals),
}
