"""Write what CONTRIBUTING.md says of the package's rooms: the picture of the floors, and what each room holds.

The floors and the arrows are those of tests/package/test_rooms.py, which holds the package to them; what a room holds
is the first line of its docstring. A test checks that the page is current.

    python tools/rooms_page.py              say whether the page is current; exit code 1 if it is not
    python tools/rooms_page.py --record     write the page
"""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

from marked import fill, main

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "CONTRIBUTING.md"

WIDTH = 84
# Between two floors, by whether a wall stands above and whether one stands below.
JOINTS = {(False, False): "─", (True, False): "┴", (False, True): "┬", (True, True): "┼"}

Floors = tuple[dict[str, set[str]], ...]


def read_floors() -> Floors:
    """Return the floors of the house, lowest first: room -> the rooms below it that it may import."""
    floors: Floors = runpy.run_path(str(ROOT / "tests" / "package" / "test_rooms.py"))["FLOORS"]
    return floors


def read_purpose(room: str) -> str:
    """Return the first line of a room's docstring."""
    path = ROOT / "scoresde" / room.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.splitlines()[0].rstrip(".").replace("``", "`").replace("|", "\\|")


def draw(floors: Floors) -> str:
    """Return the picture of the house, the highest floor first, each with its rooms side by side."""
    rows: list[tuple[str, set[int]]] = []  # what stands on a floor, and where its walls are
    for number, floor in reversed(list(enumerate(floors, start=1))):
        cells = [room.center((WIDTH - k) // len(floor)) for k, room in enumerate(floor)]
        cells[-1] = cells[-1].ljust(WIDTH + 1 - len("│".join([*cells[:-1], ""])))
        line = f"│{'│'.join(cells)}│"
        rows.append((f"{number:2} {line}", {k for k, sign in enumerate(line) if sign == "│"}))
    picture = []
    above: set[int] = set()
    for text, walls in [*rows, ("", set())]:
        picture.append("   " + "".join(JOINTS[k in above, k in walls] for k in range(WIDTH + 3)).rstrip())
        picture.append(text)
        above = walls
    corners = {0: "┌├└", WIDTH + 2: "┐┤┘"}
    for k, place in ((0, 0), (len(picture) - 2, 2), *((k, 1) for k in range(2, len(picture) - 2, 2))):
        picture[k] = picture[k][:3] + corners[0][place] + picture[k][4:-1] + corners[WIDTH + 2][place]
    return "```\n" + "\n".join(picture[:-1]) + "\n```\n"


def list_rooms(floors: Floors) -> str:
    """Return the table of the rooms, the highest first: what each holds and which others it may import."""
    order = [room for floor in floors for room in floor]
    lines = ["| room | holds | imports |", "|---|---|---|"]
    for floor in reversed(floors):
        for room, below in floor.items():
            arrows = ", ".join(sorted(below, key=order.index, reverse=True)) or "nothing"
            lines.append(f"| `{room}` | {read_purpose(room)} | {arrows} |")
    return "\n".join(lines) + "\n"


def write_parts(page: str) -> str:
    """Return the page with the picture and the table made anew."""
    floors = read_floors()
    return fill(page, {"floors": draw(floors), "rooms": list_rooms(floors)})


if __name__ == "__main__":
    sys.exit(main("tools/rooms_page.py", PAGE, write_parts, sys.argv[1:]))
