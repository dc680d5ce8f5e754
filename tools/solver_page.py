"""Write what docs/solvers.md says of the named solvers: their table, the measured errors and the picture of them.

The table is ``solvers.markdown()``; the errors are those of benchmarks/results/quality.json. They stand between the
markers ``<!-- begin: NAME -->`` and ``<!-- end: NAME -->`` of the page, and a test checks that they are current.

    python tools/solver_page.py              say whether the page is current; exit code 1 if it is not
    python tools/solver_page.py --record     write the tables and the picture
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from marked import fill, main

from scoresde import plots, solvers
from scoresde.solvers.named import DEFAULT

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "solvers.md"
PICTURE = ROOT / "docs" / "images" / "solvers_error.png"
RECORD = ROOT / "benchmarks" / "results" / "quality.json"
BUDGETS = (5, 8, 10, 15, 20, 30, 50, 100)
NOTABLE = (DEFAULT, "midpoint", "dpmpp_2m", "unipc", "deis", "ddim", "euler")
PANELS = {"ring": "ring of eight, 2-D", "ten": "ten Gaussians, 32-D"}

Rows = list[list[float]]


def list_errors(record: dict[str, dict[str, Rows]]) -> str:
    """Return the table of both errors of the default and of the best, as Markdown."""
    lines = ["| evaluations | " + " | ".join(f"{title}: `flow_abm` | best" for title in PANELS.values()) + " |"]
    lines.append("|---" * (1 + 2 * len(PANELS)) + "|")
    for nfe in BUDGETS:
        cells = [str(nfe)]
        for name in PANELS:
            at = {key: row for key, rows in record[f"flow, {name}"].items() for row in rows if row[0] == nfe}
            lowest = [min(row[k] for row in at.values()) for k in (1, 2)]
            cells += [f"{rms:.2g} / {median:.2g}" for rms, median in (at[DEFAULT][1:], lowest)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def list_distances(record: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """Return the table of the sliced Wasserstein-2 distances, both mixtures, as Markdown."""
    budgets = (10, 20, 50, 100)
    lines = ["| solver | " + " | ".join(f"{name}: {nfe}" for name in PANELS for nfe in budgets) + " |"]
    lines.append("|---" * (1 + len(PANELS) * len(budgets)) + "|")
    tables = [record[f"noise, {name}"] for name in PANELS]
    for key in tables[0]:
        cells = []
        for table in tables:
            for nfe in budgets:
                below = [row["sw2"] for row in table[key] if row.get("nfe", 0) <= nfe]
                cells.append(f"{below[-1]:.2g}" if below else "")
        lines.append(f"| {key if key == 'exact samples' else f'`{key}`'} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_parts(page: str) -> str:
    """Return the page with its generated parts made anew; ValueError where a marker is missing."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    parts = {"table": solvers.markdown(), "errors": list_errors(record), "distances": list_distances(record)}
    return fill(page, parts)


def draw() -> None:
    """Draw the median error of every deterministic solver that the record has under its own name."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    panels = {
        title: {
            key: [(row[0], row[2]) for row in rows if row[0] >= 5]
            for key, rows in record[f"flow, {name}"].items()
            if key in solvers.SOLVERS
        }
        for name, title in PANELS.items()
    }
    plots.save(plots.errors(panels, highlighted=NOTABLE, ylabel="median distance to the exact flow"), PICTURE)


if __name__ == "__main__":
    code = main("tools/solver_page.py", PAGE, write_parts, sys.argv[1:])
    if sys.argv[1:] == ["--record"]:
        draw()
    sys.exit(code)
