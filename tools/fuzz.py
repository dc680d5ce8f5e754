"""Call the public surface and the readers of files with whatever comes, for some minutes, and report what may not be.

A case is a few lines of Python (``fuzzing/cases.py``), drawn by Hypothesis and run in an empty folder. A finding is

- an exception that is not the package's own (``ScoreSDEError``),
- a line that does not end within its time,
- a NaN in ``out`` where the lines name none, nor an infinity,
- a random state or a setting of the whole process that has moved, an argument that was written to.

    python tools/fuzz.py                    a minute of all kinds of cases, in turn
    python tools/fuzz.py --minutes 30       longer
    python tools/fuzz.py --seed 7           other cases; without it the day's
    python tools/fuzz.py --only tables      cases of one kind

Each finding is made as small as ten seconds allow and printed once, with at most five lines that show it: they run in
an empty folder with ``PYTHONPATH=tools:tests:.``. The exit code is 1 if there was any. ``KNOWN`` is documented.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import monotonic

ROOT = Path(__file__).resolve().parent.parent
# The package of this tree, and the strategies and watchers that its tests have.
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from fuzzing.cases import CASES, Case, Cases  # noqa: E402
from fuzzing.trial import Finding, try_case  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402

ROUND, LIMIT, SHRINKING = 25, 30.0, 10.0  # cases of a kind in turn; seconds for a line, and to make a finding small

# (words of the finding, its place) -> why it is no fault, which its docstring says.
KNOWN: dict[tuple[str, str], str] = {
    (
        "out holds NaN",
        "out = denoising_score_matching",
    ): "a loss waits for no device and searches nothing for NaN",
    ("out holds NaN", "out = ChainLoss"): "likewise",
    ("out holds NaN", "out = Trainer"): "a step whose loss is not finite is left out, and gives that loss back",
}


class FoundError(Exception):
    """What Hypothesis is told of a finding."""


class TimeIsUpError(KeyboardInterrupt):
    """Ends a round at once: Hypothesis passes on nothing else."""


def draw_cases(cases: Cases, number: int, look: Callable[[Case], None]) -> None:
    """Give ``look`` some cases of one kind; after an error of its own smaller ones, and the error at the end."""

    @seed(number)
    @settings(
        max_examples=ROUND,
        database=None,
        deadline=None,
        derandomize=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(cases)
    def give(case: Case) -> None:
        look(case)

    give()


def try_round(cases: Cases, number: int, seen: set[str], end: float) -> tuple[Finding | None, int]:
    """Try some cases of one kind; return the first new finding, made small, and how many cases there were."""
    found: list[Finding] = []
    first, tried = 0.0, 0

    def look(case: Case) -> None:
        nonlocal first, tried
        if monotonic() > (first + SHRINKING if found else end):
            raise TimeIsUpError
        tried += not found
        finding = try_case(case, LIMIT)
        if finding is None or finding.where in seen or is_known(finding) or (found and found[0].where != finding.where):
            return
        first = first or monotonic()
        found.append(finding)
        raise FoundError(finding.where)

    with contextlib.suppress(FoundError, TimeIsUpError):
        draw_cases(cases, number, look)
    return min(reversed(found), key=lambda one: sum(map(len, one.lines)), default=None), tried


def is_known(finding: Finding) -> bool:
    """Return whether a finding is documented behaviour."""
    return any(words in finding.what and place in finding.where for words, place in KNOWN)


def main(arguments: list[str]) -> int:
    """Read the options, look for findings until the time is over, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="how long to look")
    today = datetime.date.today().toordinal()
    parser.add_argument("--seed", type=int, default=today, help="which cases; by default the day's")
    parser.add_argument("--only", choices=CASES, nargs="+", default=[*CASES], metavar="KIND", help=", ".join(CASES))
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    end = monotonic() + 60 * asked.minutes
    counts: Counter[str] = Counter()
    seen: set[str] = set()
    number = 0
    while monotonic() < end:
        for kind in asked.only:
            number += 1
            finding, tried = try_round(CASES[kind], asked.seed * 100_003 + number, seen, end)
            counts[kind] += tried
            if finding is not None:
                seen.add(finding.where)
                print(f"{kind}: {finding}\n", flush=True)
            if monotonic() >= end:
                break
    kinds = ", ".join(f"{kind} {count}" for kind, count in counts.items())
    print(f"seed {asked.seed}: {counts.total()} cases, {len(seen)} findings ({kinds})")
    return int(bool(seen))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
