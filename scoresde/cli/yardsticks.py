"""What samples are measured against: held-out data, distances, and what real data of the same size measure."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scoresde.cli.presets import DataSet, Samples
from scoresde.metrics.digits import DigitJudge
from scoresde.metrics.distances import energy_distance, sliced_wasserstein
from scoresde.metrics.floors import Floor, floor
from scoresde.noise import permutation, stream
from scoresde.plots.curves import LABELS

__all__ = ["MEASURES", "REPEATS", "Measure", "Yardstick", "make_yardstick"]

REPEATS = 16
MOST = 2_000  # held-out samples to measure against: the distances cost their square
Measure = Callable[[Tensor, Tensor], float]
MEASURES: Mapping[str, Measure] = {"sliced_wasserstein": sliced_wasserstein, "energy_distance": energy_distance}


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
        classes: labels for conditional models, which repeat: in the proportions of the data, else the classes in turn;
            None where there are none.
        contexts: vectors for models that are told some, which repeat: those of the held-out samples; None where there
            are none.
        paired: metrics that compare each sample with another of the same start, so that they are of samplers without
            noise of their own alone.
        reference: what the held-out samples are, for a picture.
        notes: what a reader of the table should know, a line each.
    """

    held_out: Tensor
    examples: Tensor
    metrics: Mapping[str, Callable[[Tensor], float]]
    floors: Callable[[int], Mapping[str, Floor]]
    labels: Mapping[str, str] = field(default_factory=lambda: LABELS)
    linear: tuple[str, ...] = ()
    classes: Tensor | None = None
    contexts: Tensor | None = None
    paired: tuple[str, ...] = ()
    reference: str = "held-out data"
    notes: tuple[str, ...] = ()

    def make_labels(self, n: int) -> dict[str, Tensor] | None:
        """Return what n samples of a conditional model are conditioned on."""
        told = {"label": self.classes, "context": self.contexts}
        return {
            name: rows[torch.arange(n, device="cpu") % len(rows)] for name, rows in told.items() if rows is not None
        } or None


def make_yardstick(name: str, data: DataSet, *, classes: int | None = None) -> Yardstick:
    """Return how samples of a data set are judged; ``classes`` is that of a conditional model."""
    return _judge_digits(data, classes) if name == "digits" else _measure_distances(name, data, classes)


def _measure_distances(name: str, data: DataSet, classes: int | None) -> Yardstick:
    """Measure in the units of the model, in which no coordinate outweighs the others."""
    (real, labels), (whole, _), transform = data.load(), data.test(), data.transform()
    order = permutation(len(whole), stream(0, "held-out"))[:MOST] if len(whole) > MOST else slice(None)
    held_out = whole[order]
    measures = {one: MEASURES[one] for one in data.preset.metrics}

    def scaled(x: Tensor) -> Tensor:
        return (x.cpu() if transform is None else transform.forward(x.cpu())).float()

    target = scaled(held_out)
    told = _count_up(classes) if labels is None else labels[permutation(len(labels), stream(0, "labels"))]

    def against(measure: Measure) -> Callable[[Tensor], float]:
        return lambda x: measure(scaled(x), target)

    metrics = {one: against(measure) for one, measure in measures.items()}

    @functools.cache
    def floors(size: int) -> Mapping[str, Floor]:
        if data.fresh is None:
            return _measure_real(name, metrics, real, size, len(held_out))
        # Independent samples, several times as many as one comparison uses.
        pool = data.fresh(4 * (size + len(held_out)))
        return {
            one: floor(measure, pool, size, other=len(held_out), repeats=REPEATS) for one, measure in measures.items()
        }

    what = "points" if data.kind == "points" else "samples"
    units = "data units" if transform is None else "units of the model, to which the data were scaled"
    root = ", energy distance in their root" if "energy_distance" in measures else ""
    many = f"as many real {what}" if data.fresh else f"as many training {what}, {len(real)} at most"
    labelled = {
        one: text if transform is None else text.replace("data units", "scaled units") for one, text in LABELS.items()
    }
    return Yardstick(
        held_out=held_out,
        examples=held_out,
        metrics=metrics,
        floors=floors,
        labels=labelled,
        contexts=None if data.contexts is None else data.contexts[1][order],
        classes=told,
        notes=(
            f"distances to {len(held_out)} held-out {what}: sliced Wasserstein-2 in {units}{root}",
            f"floor: the same distances of {many}, mean and standard deviation",
        ),
    )


def _measure_real(
    data: str, metrics: Mapping[str, Callable[[Tensor], float]], real: Samples, size: int, other: int
) -> dict[str, Floor]:
    """Return what ``size`` real training samples measure, or all of them where there are fewer."""
    count = min(size, len(real))
    parts = [permutation(len(real), stream(0, f"real {data}", k))[:count] for k in range(REPEATS)]
    found = {}
    for name, metric in metrics.items():
        values = torch.tensor([metric(real[one]) for one in parts], dtype=torch.float64, device="cpu")
        found[name] = Floor(
            mean=float(values.mean()), std=float(values.std()), size=count, other=other, repeats=REPEATS
        )
    return found


def _count_up(classes: int | None) -> Tensor | None:
    return torch.arange(classes, device="cpu") if classes else None


def _order_in_turn(labels: Tensor) -> Tensor:
    """Return the order in which the classes come in turn, 0, 1, 2, ..., 0, 1, 2, ... as far as each has members."""
    turn = torch.empty_like(labels)
    classes = int(labels.max()) + 1
    for k in range(classes):
        turn[labels == k] = torch.arange(int((labels == k).sum()), device="cpu")
    return (turn * classes + labels).argsort()


_train_judge = functools.cache(DigitJudge.train)  # it is always the same


def _judge_digits(data: DataSet, classes: int | None) -> Yardstick:
    judge = _train_judge()
    held_out = judge.test.images
    real, _ = data.load()
    metrics: dict[str, Callable[[Tensor], float]] = {
        "frechet_distance": lambda x: judge.frechet(x.cpu()),
        "share_sure": lambda x: judge.share(x.cpu()),
        "sliced_wasserstein": lambda x: sliced_wasserstein(x.cpu(), held_out),
    }
    if classes:
        metrics["label_accuracy"] = lambda x: judge.accuracy(x.cpu(), torch.arange(len(x), device="cpu") % classes)

    def share(value: float, size: int) -> Floor:
        # The judge has not seen the test digits, whose share is known to its binomial error only.
        return Floor(mean=value, std=math.sqrt(value * (1 - value) / size), size=size, other=0, repeats=1)

    @functools.cache
    def floors(size: int) -> Mapping[str, Floor]:
        distances = {name: metrics[name] for name in ("frechet_distance", "sliced_wasserstein")}
        found = _measure_real("digits", distances, real, size, len(held_out))
        found["share_sure"] = share(judge.share(held_out), size)
        if classes:
            found["label_accuracy"] = share(judge.accuracy(held_out, judge.test.labels), size)
        return found

    return Yardstick(
        held_out=held_out,
        examples=held_out[_order_in_turn(judge.test.labels)],
        metrics=metrics,
        floors=floors,
        labels={
            **LABELS,
            "share_sure": "share sure (higher is better)",
            "label_accuracy": "label accuracy (higher is better)",
        },
        linear=("share_sure", "label_accuracy"),
        classes=_count_up(classes),
        notes=(
            f"distances to {len(held_out)} held-out digits: Frechet in the judge's features (squared), sliced "
            "Wasserstein-2 in pixel units of [-1, 1]",
            f"share_sure: share of which a classifier of real digits is {judge.sure:.0%} sure; higher is better",
            "floor: the same numbers for as many real digits (distances: training digits; shares: held-out digits)",
        ),
    )
