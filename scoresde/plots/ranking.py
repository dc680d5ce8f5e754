"""Candidates and their errors, the best one on top: what ``select`` found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from scoresde.errors.kinds import ConfigError
from scoresde.errors.values import check_mapping, check_number
from scoresde.plots.style import GREY, MARKERS, PALETTE, dress, new_figure, plain_log_ticks, use_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ranking"]


def ranking(
    rows: Mapping[str, Mapping[str, float]], *, title: str = "", xlabel: str = "distance to the flow"
) -> Figure:
    """Return the errors of candidates on a logarithmic axis, a line for each: ``ranking(select(model, 8).figures)``.

    Args:
        rows: name of a candidate -> name of an error -> its value, positive; the first candidate is drawn on top.
        title: of the figure.
        xlabel: what the errors are, with their unit.

    Raises:
        ConfigError: no candidates, more than seven kinds of errors, no matplotlib. DomainError: an error that is not
            positive and finite.
    """
    rows = {
        name: check_mapping(errors, f"rows[{name!r}]", "errors")
        for name, errors in check_mapping(rows, "rows", "errors by name").items()
    }
    kinds = list(dict.fromkeys(kind for errors in rows.values() for kind in errors))
    if not kinds:
        raise ConfigError("rows must hold at least one candidate with an error, e.g. {'ddim': {'rms': 0.2}}")
    if len(kinds) > len(PALETTE):
        raise ConfigError(f"rows must hold at most {len(PALETTE)} kinds of errors, got {len(kinds)}")
    values = [check_number(v, "error", 0.0, open_low=True) for errors in rows.values() for v in errors.values()]
    with use_style():
        figure = new_figure(10.0, 1.3 + 0.3 * len(rows))
        axes = figure.add_subplot()
        for place, errors in enumerate(rows.values()):
            axes.plot([min(errors.values()), max(errors.values())], [place, place], color=GREY, linewidth=1.0, zorder=1)
        for kind, color, marker in zip(kinds, PALETTE, MARKERS, strict=False):
            points = [(errors[kind], place) for place, errors in enumerate(rows.values()) if kind in errors]
            axes.plot(*zip(*points, strict=True), marker, color=color, label=kind, zorder=2)
        axes.set_xscale("log")
        low, high = min(values) / 1.1, max(values) * 1.1
        axes.xaxis.set_view_interval(low, high, ignore=True)
        if high / low < 1e3:
            plain_log_ticks(axes.xaxis, low, high)
        dress(axes, xlabel=xlabel, title=title)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.invert_yaxis()
        if len(kinds) > 1:
            figure.legend(loc="outside right upper")
    return figure
