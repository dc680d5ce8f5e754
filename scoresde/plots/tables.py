"""A sampler's table of numbers, as a picture of its rows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from scoresde.errors.kinds import ConfigError, DTypeError, printable
from scoresde.plots.style import INK, PAPER, dress, new_figure, use_style
from scoresde.solvers.tableau import Tableau

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

__all__ = ["tableau", "weights"]

Array = np.ndarray[Any, np.dtype[np.float64]]

_READABLE = 32  # rows above this get colours without numbers


def tableau(table: Tableau) -> Figure:
    """Return a picture of a table: one row for each call of the model, one column for each weight.

    A column is what a weight multiplies: the anchor, the predictions (newest first), the draws of noise (newest first).
    Colour is the weight on a scale that is linear around zero and logarithmic beyond, the same for all columns; an
    empty cell is a weight that the row does not have (an anchor without weights follows the state). Up to 32 rows carry
    their numbers.

    Args:
        table: a sampler's table, from ``solver(sde, times)``.

    Raises:
        DTypeError: not a Tableau.
        ConfigError: a table without rows, or matplotlib is missing.
    """
    if not isinstance(table, Tableau):
        raise DTypeError(
            f"table must be a scoresde Tableau, got {type(table).__name__}; build one with solver(sde, times)"
        )
    if not table.rows:
        raise ConfigError(f"table {table.name!r} has no rows; give it at least one step")
    groups = weights(table)
    cells = np.concatenate([np.array(list(columns.values())) for columns in groups.values()]).T  # (rows, columns)
    names = [name for columns in groups.values() for name in columns]
    count = len(table.rows)
    largest = float(np.nanmax(np.abs(cells))) or 1.0
    with use_style():
        from matplotlib.colors import SymLogNorm

        figure = new_figure(max(2.6 + 0.95 * len(names), 5.6), 2.1 + (0.27 * count if count <= _READABLE else 4.5))
        axes = figure.add_subplot()
        norm = SymLogNorm(linthresh=largest / 100.0, vmin=-largest, vmax=largest)
        picture = axes.imshow(cells, cmap="PuOr_r", norm=norm, aspect="auto", interpolation="nearest")
        if count <= _READABLE:
            _write(axes, cells, picture)
        dress(axes, ylabel="time t of the call", grid=False)
        figure.suptitle(
            f"{printable(table.name)}\n{table.nfe} evaluations, in the {table.prediction} prediction", fontweight="bold"
        )
        axes.set_xticks(range(len(names)), names)
        axes.xaxis.tick_top()
        shown = range(0, count, 1 if count <= _READABLE else math.ceil(count / 20))
        axes.set_yticks(list(shown), [f"{table.rows[i].at.t:.3g}" for i in shown])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        first = 0
        for group, columns in groups.items():
            middle = first + (len(columns) - 1) / 2
            over = axes.secondary_xaxis("top")
            over.set_xticks([middle], [group + "\n\n"])
            over.get_xticklabels()[0].set_fontweight("bold")
            over.tick_params(length=0, labelcolor=INK, labelsize=11.0)
            over.spines[:].set_visible(False)
            axes.axvline(first - 0.5, color=PAPER, linewidth=6.0)
            first += len(columns)
        decades = [10.0**k for k in range(math.ceil(math.log10(largest / 100.0)), math.floor(math.log10(largest)) + 1)]
        ticks = [*(-value for value in reversed(decades)), 0.0, *decades]
        bar = figure.colorbar(picture, ax=axes, ticks=ticks, format=lambda value, _: f"{value:g}", shrink=0.9)
        bar.ax.minorticks_off()
        bar.set_label("weight")
        bar.ax.tick_params(color=INK, labelcolor=INK, labelsize=10.0)
    return figure


def weights(table: Tableau) -> dict[str, dict[str, Array]]:
    """Return the columns of a table, (rows,) each and NaN where a row has no such weight, by what they make.

    "next state" and "next anchor" hold the weights of the anchor, of the predictions and of the draws of noise, newest
    first; a group or a column that no row uses is left out.
    """
    rows = table.rows
    groups = {}
    for group, terms, draws in (
        ("next state", [row.state for row in rows], [row.noise for row in rows]),
        ("next anchor", [row.anchor or () for row in rows], [row.anchor_noise for row in rows]),
    ):
        columns = {}
        for place in range(max(map(len, terms))):
            columns["anchor" if place == 0 else "prediction" + _count_back(place - 1)] = _column(terms, place)
        for place in range(max(map(len, draws))):
            columns["noise" + _count_back(place)] = _column(draws, place)
        if columns:
            groups[group] = columns
    return groups


def _count_back(steps: int) -> str:
    return f"\n{steps} back" if steps else "\nnow"


def _column(weights_of_rows: list[tuple[float, ...]], place: int) -> Array:
    """Return the weight at ``place`` of each row, NaN where there is none."""
    return np.array([row[place] if place < len(row) else math.nan for row in weights_of_rows])


def _write(axes: Axes, cells: Array, picture: AxesImage) -> None:
    """Write each weight in its cell, light on dark colours and dark on light ones."""
    brightness = picture.to_rgba(cells)[..., :3] @ np.array([0.3, 0.59, 0.11])
    for (i, j), value in np.ndenumerate(cells):
        if not math.isnan(value):
            color = PAPER if brightness[i, j] < 0.5 else INK
            axes.text(j, i, f"{value:.3g}", ha="center", va="center", fontsize=9.5, color=color)
