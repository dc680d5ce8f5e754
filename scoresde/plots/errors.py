"""Error against evaluations: many methods in grey, the ones that the text speaks of in colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from scoresde.errors.kinds import ConfigError, DomainError, show
from scoresde.errors.names import check_choice
from scoresde.errors.values import check_mapping, check_number, check_sequence
from scoresde.plots.style import GREY, MARKERS, PALETTE, dress, new_figure, plain_log_ticks, use_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["errors"]

Curves = Mapping[str, Sequence[tuple[float, float]]]


def errors(
    panels: Mapping[str, Curves],
    *,
    highlighted: Sequence[str] = (),
    ylabel: str = "error (data units)",
    xlabel: str = "evaluations of the model",
) -> Figure:
    """Return error against evaluations on logarithmic axes, one panel for each problem, one line for each method.

    Args:
        panels: title of a panel -> name of a method -> its (evaluations, error) pairs, all positive.
        highlighted: methods drawn in colour, with a marker and a name each, at most 7; the others are grey. All are
            highlighted if none is named and there are at most 7.
        ylabel: what the error is, with its unit.
        xlabel: what it costs.

    Raises:
        ConfigError: no panels or curves, a highlighted method that no panel has, too many of them, no matplotlib.
        DomainError: evaluations or errors that are not positive and finite.
    """
    panels = {
        title: check_mapping(curves, f"panels[{title!r}]", "curves")
        for title, curves in check_mapping(panels, "panels", "curves by name").items()
    }
    highlighted = check_sequence(highlighted, "highlighted", "names of methods")
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    if not names:
        raise ConfigError("panels must hold at least one curve, got none; e.g. {'ring': {'ddim': [(10, 0.2)]}}")
    shown = list(highlighted) or (names if len(names) <= len(PALETTE) else [])
    for name in shown:
        check_choice("highlighted method", name, names)
    if len(shown) > len(PALETTE):
        raise ConfigError(f"highlighted must name at most {len(PALETTE)} methods, got {len(shown)}")
    points = [
        _check_pair(pair, name)
        for curves in panels.values()
        for name, curve in curves.items()
        for pair in check_sequence(curve, f"the curve {name!r}", "pairs (evaluations, error)")
    ]
    if not points:
        raise DomainError("panels must hold at least one pair (evaluations, error), got empty curves")
    with use_style():
        figure = new_figure(4.3 * len(panels) + 2.4, 4.2)
        axes = [figure.add_subplot(1, len(panels), k + 1) for k in range(len(panels))]
        for here, (title, curves) in zip(axes, panels.items(), strict=True):
            _draw(here, curves, shown)
            _scale(here, points)
            dress(here, xlabel=xlabel, ylabel=ylabel if here is axes[0] else "", title=title)
        entries = {
            text: handle for here in axes for handle, text in zip(*here.get_legend_handles_labels(), strict=True)
        }
        order = list(dict.fromkeys(name for name in (*shown, *entries) if name in entries))
        figure.legend([entries[name] for name in order], order, loc="outside right upper")
    return figure


def _check_pair(pair: object, name: str) -> tuple[float, float]:
    numbers = check_sequence(pair, f"a point of {name!r}", "evaluations and an error")
    if len(numbers) != 2:
        raise ConfigError(f"a point of {name!r} must be (evaluations, error), got {show(pair)}")
    cost, error = numbers
    return check_number(cost, "evaluations", 0.0, open_low=True), check_number(error, "error", 0.0, open_low=True)


def _draw(axes: Axes, curves: Curves, shown: Sequence[str]) -> None:
    others = [name for name in curves if name not in shown]
    for k, name in enumerate(others):
        label = "other methods" if k == 0 else None
        axes.plot(*_columns(curves[name]), color=GREY, linewidth=0.9, alpha=0.6, label=label, zorder=2)
    for k, name in enumerate(shown):
        if name in curves:
            axes.plot(
                *_columns(curves[name]),
                color=PALETTE[k],
                marker=MARKERS[k],
                markersize=5.0,
                markeredgecolor="white",
                markeredgewidth=0.5,
                label=name,
                zorder=3 + len(shown) - k,
            )


def _columns(curve: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    ordered = sorted(curve)
    return [cost for cost, _ in ordered], [error for _, error in ordered]


def _scale(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis, values in ((axes.xaxis, [c for c, _ in points]), (axes.yaxis, [e for _, e in points])):
        low, high = min(values) / 1.1, max(values) * 1.1
        axis.set_view_interval(low, high, ignore=True)
        if high / low < 1e3:
            plain_log_ticks(axis, low, high)
