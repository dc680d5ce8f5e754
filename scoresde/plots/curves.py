"""Distance against cost: how far each sampler is from the data, and where the metric can tell nothing any more."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal

from scoresde.errors import ConfigError, DTypeError, unknown
from scoresde.metrics.floors import Comparison
from scoresde.plots.style import GREY, MARKERS, PALETTE, dress, new_figure, plain_log_ticks, styled

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

    Rows with the same sampler are joined by a line. Both axes are logarithmic, but for the metrics in ``linear`` and
    those with a value that has no logarithm. The grey band is the sampling floor (mean and two standard deviations) of
    the number of samples that most rows have; a row with a floor of its own carries it as a short dash below its point.

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
    if not rows:
        raise ConfigError("rows must hold at least one Comparison, got none; run a sampler first")
    for k, row in enumerate(rows):
        if not isinstance(row, Comparison):
            raise DTypeError(f"rows[{k}] must be a scoresde.metrics.Comparison, got {type(row).__name__}")
    if cost not in ("nfe", "seconds"):
        raise unknown("cost", cost, ("nfe", "seconds"))
    known = list(dict.fromkeys(name for row in rows for name in row.distances))
    shown = known if metrics is None else list(metrics)
    for name in shown:
        if name not in known:
            raise unknown("metric", name, known)
    samplers = list(dict.fromkeys(row.sampler for row in rows))
    with styled():
        single = len(shown) == 1
        columns = 1 if single else round(1.4 * len(shown))  # of the legend: beside one panel, below several
        below = 0.0 if single else 0.26 * math.ceil((len(samplers) + 2) / columns)
        figure = new_figure(3.7 * len(shown) + (3.6 if single else 0.0), 3.9 + below + (0.3 if title else 0.0))
        if title:
            figure.suptitle(title, fontweight="bold")
        keys: dict[str, Artist] = {}
        for k, name in enumerate(shown):
            axes = figure.add_subplot(1, len(shown), k + 1)
            measured = [row for row in rows if name in row.distances]
            _draw_samplers(axes, measured, name, samplers, cost)
            _draw_floors(axes, measured, name, cost)
            _scale(axes, measured, name, straight=name in linear)
            across = "network evaluations per sample" if cost == "nfe" else "time for all samples (seconds)"
            dress(axes, xlabel=across, ylabel=labels.get(name, name.replace("_", " ")))
            handles, texts = axes.get_legend_handles_labels()
            keys.update(zip(texts, handles, strict=True))
        order = sorted(keys, key=lambda text: samplers.index(text) if text in samplers else len(samplers))
        place: Literal["outside right upper", "outside lower center"]
        place = "outside right upper" if single else "outside lower center"
        figure.legend([keys[text] for text in order], order, loc=place, ncols=columns)
    return figure


def _cost(row: Comparison, cost: str) -> float:
    return row.nfe if cost == "nfe" else row.seconds


def _draw_samplers(axes: Axes, rows: Sequence[Comparison], name: str, samplers: Sequence[str], cost: str) -> None:
    """Draw each sampler with a colour and a marker that are its own in every panel."""
    for index, sampler in enumerate(samplers):
        points = sorted((_cost(row, cost), row.distances[name]) for row in rows if row.sampler == sampler)
        if points:
            axes.plot(
                *zip(*points, strict=True),
                color=PALETTE[index % len(PALETTE)],
                marker=MARKERS[(index + index // len(PALETTE)) % len(MARKERS)],
                markeredgecolor="white",
                markeredgewidth=0.8,
                label=sampler,
                zorder=3,
            )


def _draw_floors(axes: Axes, rows: Sequence[Comparison], name: str, cost: str) -> None:
    """Draw the commonest floor as a band, and those of other sizes at their own rows."""
    floors = [(row.floors[name], row.floor_stds.get(name, 0.0), row.samples) for row in rows if name in row.floors]
    if not floors:
        return
    (mean, std, samples), _ = Counter(floors).most_common(1)[0]
    label = f"sampling floor{' ± 2 std' if std > 0.0 else ''}, {samples} samples"
    axes.axhline(mean, color=GREY, linestyle="--", linewidth=1.4, label=label, zorder=1)
    if std > 0.0:
        axes.axhspan(mean - 2 * std, mean + 2 * std, color=GREY, alpha=0.22, linewidth=0, zorder=0)
    for row in rows:
        if name in row.floors and row.floors[name] != mean:
            at, own = _cost(row, cost), row.floors[name]
            label = f"floor, {row.samples} samples"
            axes.plot([at / 1.35, at * 1.35], [own, own], color=GREY, linewidth=2.4, solid_capstyle="butt", label=label)


def _scale(axes: Axes, rows: Sequence[Comparison], name: str, *, straight: bool) -> None:
    """Choose the axes' scales and plain numbers on them."""
    axes.set_xscale("log")
    plain_log_ticks(axes.xaxis, *axes.get_xlim())
    values = [row.distances[name] for row in rows] + [row.floors[name] for row in rows if name in row.floors]
    if straight or min(values) <= 0.0:
        return
    axes.set_yscale("log")
    axes.set_ylim(min(values) / 1.5, max(values) * 1.5)  # a band that reaches zero must not stretch the axis
    plain_log_ticks(axes.yaxis, *axes.get_ylim())
