"""Rows in print: lines for a terminal, an HTML table for a notebook; the middle of a long table is left out."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from scoresde.solvers.rows import Row, Weights

__all__ = ["write_html", "write_lines"]

SHOWN = 10
HEAD = "weights of [anchor, predictions newest first] + noise"


def write_lines(rows: Sequence[Row]) -> list[str]:
    """Return a heading and a line for each row: time, log_snr and the weights."""
    return [f"{'t':>12} {'log_snr':>10}  {HEAD}"] + [
        f"{'...':>12}  {cells}" if isinstance(cells, str) else f"{cells[0]:>12} {cells[1]:>10}  {cells[2]}"
        for cells in _shorten(rows)
    ]


def write_html(title: str, rows: Sequence[Row]) -> str:
    """Return the same as an HTML table under a title."""
    lines = [f"<table><caption>{html.escape(title)}</caption>"]
    lines.append(f"<thead><tr><th>t</th><th>log_snr</th><th>{HEAD}</th></tr></thead><tbody>")
    for cells in _shorten(rows):
        shown = ("...", "", cells) if isinstance(cells, str) else cells
        lines.append(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in shown)}</tr>")
    return "\n".join([*lines, "</tbody></table>"])


def _shorten(rows: Sequence[Row]) -> Iterator[tuple[str, str, str] | str]:
    """Yield the cells of each row that is shown; a string in the place of the middle."""
    left_out = len(rows) - 2 * SHOWN
    for i, row in enumerate(rows):
        if left_out <= 0 or i < SHOWN or i >= len(rows) - SHOWN:
            yield f"{row.at.t:.6g}", f"{row.at.log_snr:.4g}", _write_weights(row)
        elif i == SHOWN:
            yield f"{left_out} more rows"


def _write_weights(row: Row) -> str:
    """Return what a row does to the state x and the anchor y."""
    parts = [f"x <- [{_join(row.state)}]"]
    if row.spread is not None:
        parts.append(f"+ [{row.spread[0]:.6g} to {row.spread[1]:.6g}] z")
    elif any(row.noise):
        parts.append(f"+ [{_join(row.noise)}] z")
    if row.anchor is not None:
        parts.append(f"; y <- [{_join(row.anchor)}]")
    if any(row.anchor_noise):
        parts.append(f"+ [{_join(row.anchor_noise)}] z")
    return " ".join(parts)


def _join(weights: Weights) -> str:
    return ", ".join(f"{w:.6g}" for w in weights)
