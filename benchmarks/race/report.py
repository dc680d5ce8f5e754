"""The race's report: tables in Markdown, figures, and who is ahead by how much."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from quality import Row

from scoresde.plots.style import save, use_style

OURS = ("default", "select", "tune")
# What the goals say: our error over the best peer's, rms and median.
GOALS = {"exact": (1 / 3, 1 / 20), "network": (0.45, 0.45)}


class Table:
    """Rows, asked by target and evaluations.

    Args:
        rows: all of them.
        networks: names of the targets that are networks.
    """

    def __init__(self, rows: Sequence[Row], networks: Iterable[str]) -> None:
        self.rows = [row for row in rows if not row.why]
        self.networks = set(networks)
        self.targets = list(dict.fromkeys(row.target for row in self.rows))
        self.calls = sorted({row.calls for row in self.rows})
        self._at: dict[tuple[str, int], list[Row]] = {}
        for row in self.rows:
            self._at.setdefault((row.target, row.calls), []).append(row)

    def ours(self, target: str, calls: int, name: str) -> Row | None:
        """Return one of our rows, None where it was not run."""
        here = self._at.get((target, calls), [])
        return next((row for row in here if row.who == "scoresde" and row.name == name), None)

    def peers(self, target: str, calls: int) -> list[Row]:
        """Return the peers' rows without noise."""
        return [row for row in self._at.get((target, calls), []) if row.who != "scoresde" and row.rms == row.rms]

    def best(self, target: str, calls: int, figure: str) -> Row | None:
        """Return the best peer after the fact."""
        return min(self.peers(target, calls), key=lambda row: getattr(row, figure), default=None)

    def usual(self, target: str, calls: int) -> Row | None:
        """Return the best of the peers' defaults, by rms times median."""
        some = [row for row in self.peers(target, calls) if row.usual]
        return min(some, key=lambda row: row.rms * row.median, default=None)

    def elsewhere(self, target: str, calls: int) -> Row | None:
        """Return the peer that is best on the other targets, by the mean logarithm of rms times median."""
        scores: dict[tuple[str, str], list[float]] = {}
        others = [name for name in self.targets if name != target]
        for other in others:
            for row in self.peers(other, calls):
                scores.setdefault((row.who, row.name), []).append(math.log(row.rms * row.median + 1e-30))
        whole = {key: sum(values) for key, values in scores.items() if len(values) == len(others)}
        here = {(row.who, row.name): row for row in self.peers(target, calls)}
        ranked = sorted((value, key) for key, value in whole.items() if key in here)
        return here[ranked[0][1]] if ranked else None


def write(folder: Path, table: Table, about: dict[str, object], floors: dict[str, float], more: Sequence[str]) -> Path:
    """Write report.md and the figures; return the report."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["# The race", "", *(f"- {key}: {value}" for key, value in about.items()), ""]
    if table.targets:
        draw(table, folder / "error.png", table.targets)
        lines += ["![error against evaluations](error.png)", "", *_goals(table)]
    for target in table.targets:
        lines += _section(table, target, floors.get(target, math.nan))
    lines += more
    report = folder / "report.md"
    report.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return report


def _goals(table: Table) -> list[str]:
    """Say how far each goal is met: ratios to the best peer after the fact, geometric means and the largest."""
    lines = ["## Ours over the best peer, picked after the fact for each figure by itself", ""]
    lines += ["| evaluations | targets | default | select | tune | goal of tune |", "|---|---|---|---|---|---|"]
    for calls in table.calls:
        for kind in ("exact", "network"):
            names = [name for name in table.targets if (name in table.networks) == (kind == "network")]
            cells = []
            for way in OURS:
                found = [ratio for name in names for ratio in [ratios(table, name, calls, way)] if ratio]
                cells.append(" / ".join(_spread([pair[k] for pair in found]) for k in (0, 1)) if found else "")
            goal = " / ".join(f"{value:.3g}" for value in GOALS[kind]) if cells[2] else ""
            if names:
                lines.append(f"| {calls} | {len(names)} {kind} | {' | '.join(cells)} | {goal} |")
    return [*lines, "", "rms / median; the geometric mean over the targets, and the largest in brackets.", ""]


def ratios(table: Table, target: str, calls: int, way: str) -> tuple[float, float] | None:
    """Return our rms and median over the least of any peer."""
    ours = table.ours(target, calls, way)
    if ours is None:
        return None
    found = []
    for figure in ("rms", "median"):
        best = table.best(target, calls, figure)
        if best is None:
            return None
        found.append(getattr(ours, figure) / max(getattr(best, figure), 1e-12))
    return found[0], found[1]


def _spread(values: list[float]) -> str:
    return f"{statistics.geometric_mean(values):.2f} ({max(values):.2f})"


def _section(table: Table, target: str, floor: float) -> list[str]:
    lines = [f"## {target}", "", f"Floor of the sliced W2: {floor:.3g}.", ""]
    head = ["evaluations", "default", "select", "tune", "best peer, rms", "best peer, median", "best default of a peer"]
    head += ["best peer on other targets", "sliced W2: ours, best peer"]
    lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for calls in table.calls:
        ours = [table.ours(target, calls, way) for way in OURS]
        best = [table.best(target, calls, figure) for figure in ("rms", "median", "sw2")]
        cells = [str(calls), *(_pair(row) for row in ours)]
        cells += [
            "" if row is None else f"{getattr(row, key):.2g} ({row.who} {row.name})"
            for row, key in zip(best, ("rms", "median"), strict=False)
        ]
        cells += [
            "" if row is None else f"{_pair(row)} ({row.who} {row.name})"
            for row in (table.usual(target, calls), table.elsewhere(target, calls))
        ]
        least = "" if best[2] is None or ours[0] is None else f"{ours[0].sw2:.3g}, {best[2].sw2:.3g}"
        lines.append(f"| {' | '.join([*cells, least])} |")
    return [*lines, ""]


def _pair(row: Row | None) -> str:
    return "" if row is None else f"{row.rms:.2g} / {row.median:.2g}"


def draw(table: Table, file: Path, targets: Sequence[str], columns: int = 4) -> None:
    """Draw rms above median against evaluations, for each of the targets."""
    with use_style():
        wide, high = min(columns, len(targets)), -(-len(targets) // columns)
        figure, axes = plt.subplots(2 * high, wide, figsize=(2.4 * wide + 0.6, 4.4 * high + 0.7), squeeze=False)
        for place, target in enumerate(targets):
            for row, key in enumerate(("rms", "median")):
                axis = axes[2 * (place // columns) + row, place % columns]
                _draw_one(table, axis, target, key)
                if not row:
                    axis.set_title(target, fontsize=9)
                if not place % columns:
                    axis.set_ylabel(f"{key} of the error")
                if row:
                    axis.set_xlabel("evaluations")
        for spare in range(len(targets), wide * high):
            for row in (0, 1):
                axes[2 * (spare // columns) + row, spare % columns].axis("off")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=5 if wide > 3 else 3, fontsize=8, frameon=False)
        figure.tight_layout(rect=(0, 0.5 / figure.get_figheight(), 1, 1))
        save(figure, file)


def _draw_one(table: Table, axis: Axes, target: str, key: str) -> None:
    curves = {
        "best peer after the fact": ("k-", [table.best(target, n, key) for n in table.calls]),
        "best peer on other targets": ("k:", [table.elsewhere(target, n) for n in table.calls]),
        **{f"scoresde, {way}": ("o-", [table.ours(target, n, way) for n in table.calls]) for way in OURS},
    }
    for name, (style, found) in curves.items():
        points = [(n, getattr(one, key)) for n, one in zip(table.calls, found, strict=True) if one]
        if points:
            axis.plot(*zip(*points, strict=True), style, ms=3, lw=1.3, label=name)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks([3, 5, 10, 20, 50, 100], ["3", "5", "10", "20", "50", "100"])
    axis.minorticks_off()


def to_document(table: Table, rows: Sequence[Row]) -> dict[str, object]:
    """Return what is recorded: our rows, and of the peers' those that a column names."""
    kept: dict[tuple[str, str, str, int], Row] = {}
    for target in table.targets:
        for calls in table.calls:
            some = [table.best(target, calls, figure) for figure in ("rms", "median", "sw2")]
            some += [table.usual(target, calls), table.elsewhere(target, calls)]
            some += [row for row in rows if (row.target, row.calls, row.who) == (target, calls, "scoresde")]
            kept |= {(row.who, row.name, target, calls): row for row in some if row is not None}
    reasons: dict[str, int] = {}
    for row in rows:
        if row.why:
            reason = f"{row.who}: {row.why}"
            reasons[reason] = reasons.get(reason, 0) + 1
    return {
        "rows": [{k: v for k, v in asdict(row).items() if k != "why"} for row in kept.values()],
        "not run": reasons,
    }
