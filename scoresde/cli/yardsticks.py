"""What samples are measured against: held-out data, distances, and what real data of the same size measure."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scoresde.cli.names import DATA, HELD_OUT_SEED
from scoresde.data import DATASETS
from scoresde.errors import ConfigError
from scoresde.metrics import Floor, energy_distance, floor, sliced_wasserstein
from scoresde.noise import permutation, stream
from scoresde.plots.curves import LABELS

if TYPE_CHECKING:
    from scoresde.judge import DigitJudge

__all__ = ["Yardstick", "yardstick"]

REPEATS = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Yardstick:
    """How samples of one data set are judged.

    Args:
        held_out: real samples that no training saw.
        examples: some of them, in the order in which samples are shown.
        metrics: name to a function of samples.
        floors: number of samples to the floors: what that many *real* samples measure.
        labels: name to what an axis says.
        linear: metrics on a linear axis.
        notes: what a reader of the table should know, a line each.
    """

    held_out: Tensor
    examples: Tensor
    metrics: Mapping[str, Callable[[Tensor], float]]
    floors: Callable[[int], Mapping[str, Floor]]
    labels: Mapping[str, str] = field(default_factory=lambda: LABELS)
    linear: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def yardstick(data: str, *, classes: int | None = None) -> Yardstick:
    """Return how samples of a data set are judged; ``classes`` is that of a conditional model."""
    return _digits(classes) if DATA[data].kind == "images" else _points(data)


def _points(data: str) -> Yardstick:
    held_out = DATA[data].held_out()
    measures = {"sliced_wasserstein": sliced_wasserstein, "energy_distance": energy_distance}

    @functools.cache
    def floors(size: int) -> Mapping[str, Floor]:
        # Independent points of the density, several times as many as one comparison uses.
        pool = DATASETS[data](4 * (size + len(held_out)), seed=HELD_OUT_SEED + 1)
        return {
            name: floor(measure, pool, size, other=len(held_out), repeats=REPEATS) for name, measure in measures.items()
        }

    def against(measure: Callable[[Tensor, Tensor], float]) -> Callable[[Tensor], float]:
        return lambda x: measure(x.cpu(), held_out)

    return Yardstick(
        held_out=held_out,
        examples=held_out,
        metrics={name: against(measure) for name, measure in measures.items()},
        floors=floors,
        notes=(
            f"distances to {len(held_out)} held-out points: sliced Wasserstein-2 in data units, energy distance in "
            "their root",
            "floor: the same distances of as many real points, mean and standard deviation",
        ),
    )


def _in_turn(labels: Tensor) -> Tensor:
    """Return the order in which the classes come in turn, 0, 1, 2, ..., 0, 1, 2, ... as far as each has members."""
    turn = torch.empty_like(labels)
    classes = int(labels.max()) + 1
    for k in range(classes):
        turn[labels == k] = torch.arange(int((labels == k).sum()))
    return (turn * classes + labels).argsort()


@functools.cache
def _judge() -> DigitJudge:
    """Train the judge, which is always the same, once."""
    from scoresde.judge import DigitJudge

    return DigitJudge.train()


def _digits(classes: int | None) -> Yardstick:
    try:
        judge = _judge()
    except ImportError as error:
        raise ConfigError('judging digits needs scikit-learn; install it with: pip install "scoresde[data]"') from error
    held_out = judge.test.images
    real, _ = DATA["digits"].load()
    metrics: dict[str, Callable[[Tensor], float]] = {
        "frechet_distance": lambda x: judge.frechet(x.cpu()),
        "share_sure": lambda x: judge.share(x.cpu()),
        "sliced_wasserstein": lambda x: sliced_wasserstein(x.cpu(), held_out),
    }
    if classes:
        metrics["label_accuracy"] = lambda x: judge.accuracy(x.cpu(), torch.arange(len(x)) % classes)

    def share(value: float, size: int) -> Floor:
        # The judge has not seen the test digits, whose share is known to its binomial error only.
        return Floor(mean=value, std=math.sqrt(value * (1 - value) / size), size=size, other=0, repeats=1)

    @functools.cache
    def floors(size: int) -> Mapping[str, Floor]:
        count = min(size, len(real))
        chosen = [permutation(len(real), stream(0, "real digits", k))[:count] for k in range(REPEATS)]
        found: dict[str, Floor] = {}
        for name in ("frechet_distance", "sliced_wasserstein"):
            values = torch.tensor([metrics[name](real[one]) for one in chosen], dtype=torch.float64)
            found[name] = Floor(
                mean=float(values.mean()), std=float(values.std()), size=count, other=len(held_out), repeats=REPEATS
            )
        found["share_sure"] = share(judge.share(held_out), size)
        if classes:
            found["label_accuracy"] = share(judge.accuracy(held_out, judge.test.labels), size)
        return found

    return Yardstick(
        held_out=held_out,
        examples=held_out[_in_turn(judge.test.labels)],
        metrics=metrics,
        floors=floors,
        labels={
            **LABELS,
            "share_sure": "share sure (higher is better)",
            "label_accuracy": "label accuracy (higher is better)",
        },
        linear=("share_sure", "label_accuracy"),
        notes=(
            f"distances to {len(held_out)} held-out digits: Frechet in the judge's features (squared), sliced "
            "Wasserstein-2 in pixel units of [-1, 1]",
            f"share_sure: share of which a classifier of real digits is {judge.sure:.0%} sure; higher is better",
            "floor: the same numbers for as many real digits (distances: training digits; shares: held-out digits)",
        ),
    )
