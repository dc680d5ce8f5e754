"""Plant errors in the mathematics, one at a time, and see whether the tests find them.

A mutant (``mutations/mutant.py``) is a file of the package with one thing wrong, and the tests that must fail then.
Each is planted in a copy of the package and its tests in a temporary folder, where these tests run. It is dead where a
test of its own fails; it has lived where they pass. The lists in ``mutations/`` are by room.

    python tools/mutants.py                     all of them
    python tools/mutants.py --only 12 40        these, by the number that --list shows
    python tools/mutants.py --room solvers      those of a room and of the rooms inside it
    python tools/mutants.py --day               ten, chosen by the date; --day 2026-11-28 for another day's
    python tools/mutants.py --list              say which there are
    python tools/mutants.py --page              write the table of CONTRIBUTING.md anew

The exit code is 1 if any lived or no longer applies.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from marked import fill
from mutations import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "CONTRIBUTING.md"
COPIED = ("scoresde", "tests", "pyproject.toml")
DAILY = 10
PATIENCE = 300.0  # seconds for the tests of one mutant
FAILED = re.compile(r"^FAILED tests/(.*?)(?: - .*)?$", re.MULTILINE)


def choose_daily(day: datetime.date, count: int) -> list[int]:
    """Return the places of a day's mutants: neighbouring days have others, and all have their turn."""
    first = day.toordinal() * DAILY
    # Steps of the golden ratio through the list lead to many rooms.
    stride = next(one for one in range(round(0.618 * count), count + 1) if math.gcd(one, count) == 1)
    return sorted({(first + k) * stride % count for k in range(min(DAILY, count))})


def copy_tree(folder: Path) -> Path:
    """Copy what the tests need into a folder, and return it."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, folder / name)
    return folder


def try_mutant(mutant: Mutant, tree: Path, number: int) -> tuple[bool, str]:
    """Plant a mutant in a copy of the tree, run its tests, take it out; return whether it died, and what to say."""
    file = tree / "scoresde" / mutant.file
    whole = file.read_text(encoding="utf-8")
    try:
        wrong = mutant.apply(whole)
    except ValueError as error:
        return False, str(error)
    past = file.stat().st_mtime
    file.write_text(wrong, encoding="utf-8")
    # Compiled files are told apart by size and second: each version needs a second of its own.
    os.utime(file, (past + number + 1,) * 2)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:randomly", "-p", "no:cacheprovider"]
    command += [f"tests/{test}" for test in mutant.tests]
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return False, f"LIVED: its tests had not ended after {PATIENCE:.0f} s"
    finally:
        file.write_text(whole, encoding="utf-8")
        os.utime(file, (past, past))
    took = f"{time.perf_counter() - started:.1f} s"
    if done.returncode == 0:
        return False, f"LIVED through {', '.join(mutant.tests)} in {took}"
    found = FAILED.search(done.stdout)
    if done.returncode != 1 or found is None:
        last = (done.stdout + done.stderr).strip().splitlines()[-1:]
        return False, f"no test ran (pytest's exit code {done.returncode}): {''.join(last)}"
    return True, f"died in {found[1]} in {took}"


def run(places: list[int], workers: int) -> int:
    """Try mutants, say a line of each as it comes, and return the exit code."""
    alive = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trees: SimpleQueue[Path] = SimpleQueue()
        for k in range(workers):
            trees.put(copy_tree(Path(folder, str(k))))

        def attempt(place: int) -> tuple[bool, str]:
            tree = trees.get()
            try:
                return try_mutant(MUTANTS[place], tree, place)
            finally:
                trees.put(tree)

        with ThreadPoolExecutor(workers) as pool:
            for place, (died, words) in zip(places, pool.map(attempt, places), strict=True):
                mutant = MUTANTS[place]
                print(f"{place:3} {mutant.room}: {mutant.what}: {words}", flush=True)
                if not died:
                    alive.append(place)
    print(f"{len(places) - len(alive)} of {len(places)} died" + (f"; look at --only {_join(alive)}" if alive else ""))
    return int(bool(alive))


def _join(places: list[int]) -> str:
    return " ".join(map(str, places))


def write_table() -> str:
    """Return the table of the rooms: how many mutants, and the files whose tests kill them."""
    rooms: dict[str, list[Mutant]] = {}
    for mutant in MUTANTS:
        rooms.setdefault(mutant.room, []).append(mutant)
    lines = ["| room | mutants | killed by |", "|---|---|---|"]
    for room, mutants in rooms.items():
        files = sorted({test.partition("::")[0] for mutant in mutants for test in mutant.tests})
        lines.append(f"| `{room}` | {len(mutants)} | {', '.join(f'`{file}`' for file in files)} |")
    return "\n".join(lines) + "\n"


def write_page(text: str) -> str:
    """Return CONTRIBUTING.md with the table made anew."""
    return fill(text, {"mutants": write_table()})


def main(arguments: list[str]) -> int:
    """Read the options and do what they ask for; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--only", type=int, nargs="+", metavar="N", help="these, by number")
    which.add_argument("--room", help="those of a room and of the rooms inside it")
    today = datetime.date.today()
    day = datetime.date.fromisoformat
    which.add_argument("--day", type=day, nargs="?", const=today, metavar="DATE", help="ten, chosen by the date")
    which.add_argument("--list", action="store_true", help="say which there are")
    which.add_argument("--page", action="store_true", help="write the table of CONTRIBUTING.md anew")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes at once")
    asked = parser.parse_args(arguments)
    places = list(range(len(MUTANTS)))
    if asked.page:
        PAGE.write_text(write_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return 0
    if asked.list:
        for place, mutant in enumerate(MUTANTS):
            print(f"{place:3} {mutant.room}: {mutant.what} ({', '.join(mutant.tests)})")
        print(f"\n{write_table()}")
        return 0
    if asked.only is not None:
        if not set(asked.only) <= set(places):
            parser.error(f"--only takes numbers from 0 to {len(MUTANTS) - 1}, got {_join(asked.only)}")
        places = asked.only
    if asked.room is not None:
        places = [k for k, mutant in enumerate(MUTANTS) if f"{mutant.room}.".startswith(f"{asked.room}.")]
        if not places:
            parser.error(f"no mutant is in {asked.room}; there are {', '.join(dict.fromkeys(m.room for m in MUTANTS))}")
    if asked.day is not None:
        places = choose_daily(asked.day, len(MUTANTS))
    return run(places, max(1, min(asked.workers, len(places))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
