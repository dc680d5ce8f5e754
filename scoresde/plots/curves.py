"""Distance against cost: how far each sampler is from the data, and where the metric can tell nothing any more.

A distance of fewer samples is larger, and so is its sampling floor, about as 1/n or 1/sqrt(n). Where the rows have
different floors, the distances themselves cannot be compared: a panel then shows each as a multiple of its own floor.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from scoresde.errors.kinds import ConfigError, DTypeError
from scoresde.errors.names import check_choice
from scoresde.errors.values import check_mapping, check_sequence, check_text
from scoresde.metrics.floors import Comparison
from scoresde.plots.style import GREY, MARKERS, PALETTE, dress, new_figure, plain_log_ticks, use_style

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["LABELS", "comparison"]

LABELS: Final[Mapping[str, str]] = {
    "sliced_wasserstein": "sliced Wasserstein-2 (data units)",
    "energy_distance": "energy distance (root of data units)",
    "frechet_distance": "Fréchet distance (squared feature units)",
}
"""What the axis of a metric says; a name that is not here is shown with its underscores as spaces."""

NEAR: Final = 1.5
"""Values within this factor have a linear axis, on which they fill the panel."""


def comparison(
    rows: Sequence[Comparison],
    *,
    metrics: Sequence[str] | None = None,
    labels: Mapping[str, str] = LABELS,
    linear: Collection[str] = (),
    cost: Literal["nfe", "seconds"] = "nfe",
    title: str = "",
) -> Figure:
    """Return distance against cost, one panel for each metric, one marker for each sampler.

    Rows with the same sampler are joined by a line. Both axes are logarithmic, but for the metrics in ``linear``, those
    with a value that has no logarithm, and those whose values are within a factor of 1.5. The grey band is the sampling
    floor (mean and two standard deviations) of the number of samples that most rows have; a row with another number has
    a band of its own at its point. A distance whose floors differ is drawn in multiples of its row's own floor, so that
    fewer samples do not look worse.

    Args:
        rows: what was measured; see ``scoresde.metrics.Comparison``.
        metrics: which of their distances to show, in this order; all by default.
        labels: metric name to axis label with its unit.
        linear: metrics on a linear axis, for instance shares.
        cost: "nfe" (network evaluations for a sample) or "seconds" (for all samples of a row).
        title: text above all panels.

    Raises:
        ConfigError: no rows, a metric that no row has, another cost, or matplotlib is missing.
        DTypeError: a row that is not a Comparison.
    """
    rows, linear = check_sequence(rows, "rows", "Comparisons"), check_sequence(linear, "linear", "names of metrics")
    for name, text in check_mapping(labels, "labels", "texts").items():
        check_text(text, f"labels[{name!r}]")
    check_text(title, "title")
    if not rows:
        raise ConfigError("rows must hold at least one Comparison, got none; run a sampler first")
    for k, row in enumerate(rows):
        if not isinstance(row, Comparison):
            raise DTypeError(f"rows[{k}] must be a scoresde.metrics.Comparison, got {type(row).__name__}")
    check_choice("cost", cost, ("nfe", "seconds"))
    known = list(dict.fromkeys(name for row in rows for name in row.distances))
    shown = known if metrics is None else list(check_sequence(metrics, "metrics", "names of metrics"))
    if not shown:
        raise ConfigError("metrics must name at least one metric, got none; leave it out for all of them")
    for name in shown:
        check_choice("metric", name, known)
    names = _name_samplers(rows)
    with use_style():
        single = len(shown) == 1
        columns = 1 if single else round(1.4 * len(shown))  # of the legend: beside one panel, below several
        below = 0.0 if single else 0.26 * math.ceil((len(names) + 2) / columns)
        figure = new_figure(3.7 * len(shown) + (3.6 if single else 0.0), 3.9 + below + (0.3 if title else 0.0))
        if title:
            figure.suptitle(title, fontweight="bold")
        keys: dict[str, Artist] = {}
        for k, name in enumerate(shown):
            axes = figure.add_subplot(1, len(shown), k + 1)
            points = [_Point.of(row, name, cost) for row in rows if name in row.distances]
            ylabel = labels.get(name, name.replace("_", " "))
            if name not in linear and _differ(points):
                points = [point.in_floors() for point in points]
                ylabel = f"{ylabel.partition(' (')[0]} / its own floor"
            _draw_samplers(axes, points, names)
            _draw_floors(axes, points)
            _scale(axes, points, straight=name in linear)
            across = "network evaluations per sample" if cost == "nfe" else "time for all samples (seconds)"
            dress(axes, xlabel=across, ylabel=ylabel)
            handles, texts = axes.get_legend_handles_labels()
            keys.update(zip(texts, handles, strict=True))
        first = list(names.values())
        order = sorted(keys, key=lambda text: first.index(text) if text in first else len(first))
        place: Literal["outside right upper", "outside lower center"]
        place = "outside right upper" if single else "outside lower center"
        figure.legend([keys[text] for text in order], order, loc=place, ncols=columns)
    return figure


@dataclass(frozen=True)
class _Point:
    """One row in one panel: where it stands, and the floor of as many samples (None: it has none)."""

    sampler: str
    samples: int
    across: float
    value: float
    floor: float | None
    std: float

    @staticmethod
    def of(row: Comparison, name: str, cost: str) -> _Point:
        across = row.nfe if cost == "nfe" else row.seconds
        floor = row.floors.get(name), row.floor_stds.get(name, 0.0)
        return _Point(row.sampler, row.samples, across, row.distances[name], *floor)

    def in_floors(self) -> _Point:
        """Return the point in multiples of its floor."""
        assert self.floor is not None
        return replace(self, value=self.value / self.floor, floor=1.0, std=self.std / self.floor)


def _differ(points: Sequence[_Point]) -> bool:
    """Whether the floors differ, and every point can be measured by its own."""
    floors = [point.floor for point in points if point.floor is not None and point.floor > 0.0]
    return len(floors) == len(points) and len(set(floors)) > 1


def _name_samplers(rows: Sequence[Comparison]) -> dict[str, str]:
    """Return what the legend calls each sampler, with its number of samples where most rows have another."""
    (usual, _), *_ = Counter(row.samples for row in rows).most_common()
    counts: dict[str, set[int]] = {}
    for row in rows:
        counts.setdefault(row.sampler, set()).add(row.samples)
    return {
        name: name if usual in found else f"{name}, {' or '.join(map(str, sorted(found)))} samples"
        for name, found in counts.items()
    }


def _draw_samplers(axes: Axes, points: Sequence[_Point], names: Mapping[str, str]) -> None:
    """Draw each sampler with a colour and a marker that are its own in every panel."""
    for index, (sampler, label) in enumerate(names.items()):
        own = sorted((point.across, point.value) for point in points if point.sampler == sampler)
        if own:
            axes.plot(
                *zip(*own, strict=True),
                color=PALETTE[index % len(PALETTE)],
                marker=MARKERS[(index + index // len(PALETTE)) % len(MARKERS)],
                markeredgecolor="white",
                markeredgewidth=0.8,
                label=label,
                zorder=3,
            )


def _draw_floors(axes: Axes, points: Sequence[_Point]) -> None:
    """Draw the commonest floor as a band, and those of other sizes at their own points."""
    floors = Counter((point.floor, point.std, point.samples) for point in points if point.floor is not None)
    if not floors:
        return
    (mean, std, samples), _ = floors.most_common(1)[0]
    assert mean is not None
    axes.axhline(mean, color=GREY, linestyle="--", linewidth=1.4, label=_name_floor(std, samples), zorder=1)
    if std > 0.0:
        axes.axhspan(mean - 2 * std, mean + 2 * std, color=GREY, alpha=0.22, linewidth=0, zorder=0)
    for point in points:
        own = point.floor, point.std
        if point.floor is not None and own != (mean, std):
            ends, label = [point.across / 1.35, point.across * 1.35], _name_floor(point.std, point.samples)
            axes.plot(ends, [point.floor] * 2, color=GREY, linewidth=2.4, solid_capstyle="butt", label=label, zorder=2)
            if point.std > 0.0:
                low, high = point.floor - 2 * point.std, point.floor + 2 * point.std
                axes.fill_between(ends, low, high, color=GREY, alpha=0.45, linewidth=0, zorder=1)


def _name_floor(std: float, samples: int) -> str:
    return f"sampling floor{' ± 2 std' if std > 0.0 else ''}, {samples} samples"


def _scale(axes: Axes, points: Sequence[_Point], *, straight: bool) -> None:
    """Choose the axes' scales and plain numbers on them."""
    axes.set_xscale("log")
    plain_log_ticks(axes.xaxis, *axes.get_xlim())
    values = [point.value for point in points] + [point.floor for point in points if point.floor is not None]
    if straight or min(values) <= 0.0 or max(values) < NEAR * min(values):
        return
    axes.set_yscale("log")
    axes.set_ylim(min(values) / 1.5, max(values) * 1.5)  # a band that reaches zero must not stretch the axis
    plain_log_ticks(axes.yaxis, *axes.get_ylim())
