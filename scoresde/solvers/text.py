"""Rows in print: lines for a terminal, an HTML table for a notebook; the middle of a long table is left out."""

from __future__ import annotations

import html
from collections.abc import Sequence

from scoresde.solvers.rows import Row, Weights

__all__ = ["write_html", "write_lines"]

SHOWN = 10
HEAD = ("t", "log_snr", "weights of [anchor, predictions newest first] + noise")


def write_lines(rows: Sequence[Row]) -> list[str]:
    """Return a heading and a line for each row: time, log_snr and the weights."""
    return [f"{t:>12} {level:>10}  {weights}" for t, level, weights in (HEAD, *_write_cells(rows))]


def write_html(title: str, rows: Sequence[Row]) -> str:
    """Return the same as an HTML table under a title."""
    head, *body = (f"<td>{'</td><td>'.join(map(html.escape, row))}</td>" for row in (HEAD, *_write_cells(rows)))
    lines = [f"<table><caption>{html.escape(title)}</caption>", f"<thead><tr>{head.replace('td>', 'th>')}</tr></thead>"]
    return "\n".join([*lines, "<tbody>", *(f"<tr>{cells}</tr>" for cells in body), "</tbody></table>"])


def _write_cells(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """Return the three cells of each row that is shown."""
    cells = [(f"{row.at.t:.6g}", f"{row.at.log_snr:.4g}", _write_weights(row)) for row in rows]
    if len(rows) <= 2 * SHOWN:
        return cells
    return [*cells[:SHOWN], ("...", "", f"{len(rows) - 2 * SHOWN} more rows"), *cells[-SHOWN:]]


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
