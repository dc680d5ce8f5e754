"""Where a benchmark's figures go: to the terminal, and into a file only where ``--record`` asks for it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def add_record(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the option ``--record [FILE]``, whose file is by default the tracked one of this benchmark."""
    usual = RESULTS / f"{name}.json"
    words = (
        f"write the figures, into benchmarks/results/{usual.name} unless a file is named; nothing is written without"
    )
    parser.add_argument("--record", nargs="?", type=Path, const=usual, default=None, metavar="FILE", help=words)


def read_record(file: Path | None) -> dict[str, object]:
    """Return the figures that a file to be written holds already, for a benchmark of which one part runs."""
    return json.loads(file.read_text(encoding="utf-8")) if file is not None and file.exists() else {}


def write_record(file: Path | None, text: str) -> None:
    """Write the figures where a file is named."""
    if file is None:
        print("nothing is written; --record keeps the figures")
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    print(f"figures in {file}")
