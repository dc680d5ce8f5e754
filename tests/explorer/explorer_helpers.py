"""Drive the explorer's page in headless Chromium, or run its code without one; both where node's packages are."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
EXPLORER = ROOT / "explorer"
PAGE = ROOT / "scoresde" / "cli" / "explorer.html"

needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (EXPLORER / "node_modules" / ".ready").is_file(),
    reason="make explorer brings node's packages and the browser",
)


def drive(steps: Sequence[dict[str, Any]], url: str = PAGE.as_uri(), **options: Any) -> dict[str, Any]:
    """Return what the page answers to each step, what it complained of, and every address that it asked for."""
    return _ask("drive.mjs", {"url": url, "steps": list(steps), **options})


def compute(*steps: tuple[str, Any]) -> list[Any]:
    """Return what the explorer's own code answers to each body of a function of ``scoresde`` and ``args``."""
    found: list[Any] = _ask("engine.mjs", [{"do": body, "args": args} for body, args in steps])["answers"]
    return found


def _ask(script: str, wishes: object) -> dict[str, Any]:
    done = subprocess.run(
        ["node", script],
        cwd=EXPLORER,
        input=json.dumps(wishes),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found
