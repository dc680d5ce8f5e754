"""The house: which room may import which, no circle, no file without a room, one import path for each name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
PACKAGE = ROOT / "scoresde"
FILES = sorted(PACKAGE.rglob("*.py"))

# A room may import the rooms of the floors below it that are named here, and its own files.
FLOORS: tuple[dict[str, set[str]], ...] = (
    {"errors": set()},
    {"ops": {"errors"}, "noise": {"errors"}},
    {
        "diffusions": {"errors", "ops"},
        "transforms": {"errors", "ops", "noise"},
        "data": {"errors", "ops", "noise"},
        "nn": {"errors", "ops", "noise"},
    },
    {
        "metrics": {"errors", "ops", "noise", "data"},
        "models": {"errors", "ops", "noise", "diffusions", "transforms", "nn"},
        "solvers": {"errors", "diffusions"},
    },
    {"chains": {"errors", "ops", "diffusions", "solvers"}},
    {"sampling": {"errors", "ops", "noise", "diffusions", "metrics", "models", "solvers", "chains"}},
    {
        "sampling.bridge": {"errors", "noise", "diffusions", "models", "solvers", "sampling"},
        "sampling.tuning": {"errors", "ops", "noise", "diffusions", "metrics", "models", "solvers", "sampling"},
        "training.losses": {"errors", "ops", "noise", "diffusions", "models", "solvers", "chains"},
        "likelihood.fokker_planck": {"errors", "diffusions"},
    },
    {
        "training": {"errors", "ops", "noise", "diffusions", "transforms", "nn", "models", "training.losses"}
        | {"sampling", "sampling.tuning"},
        "likelihood": {"errors", "ops", "noise", "diffusions", "transforms", "models", "solvers", "chains"}
        | {"sampling", "training.losses"},
    },
    {"plots": {"errors", "diffusions", "metrics", "solvers", "likelihood.fokker_planck"}},
    {
        "cli": {"errors", "ops", "noise", "diffusions", "transforms", "data", "nn", "metrics", "models", "solvers"}
        | {"chains", "sampling", "sampling.tuning", "training", "training.losses", "likelihood", "plots"},
    },
)
ALLOWED = {room: below for floor in FLOORS for room, below in floor.items()}
FLOOR = {room: number for number, floor in enumerate(FLOORS, start=1) for room in floor}
AT_THE_ROOT = {"__init__.py", "__main__.py", "noise.py", "ops.py", "py.typed"}
MOST_ARROWS = 110


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def room_of(module: str) -> str:
    """Return the room of a module: its first two names where they are a room, else its first."""
    names = module.split(".")[1:]
    return ".".join(names[:2]) if ".".join(names[:2]) in ALLOWED else (names or ["scoresde"])[0]


def imports(source: str, known: set[str]) -> Iterator[tuple[str, str | None, int]]:
    """Yield (module, name or None, line) for each import of the package's own files."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"line {node.lineno}: a relative import; write it from scoresde on")
        if isinstance(node, ast.Import):
            yield from ((a.name, None, node.lineno) for a in node.names if a.name.split(".")[0] == "scoresde")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "scoresde":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole, None, node.lineno) if whole in known else (node.module, alias.name, node.lineno)


def misplaced(room: str, source: str) -> list[str]:
    """Return the imports of a file that its room may not have."""
    found = []
    for module, _, line in imports(source, set(MODULES)):
        other = room_of(module)
        if other not in (room, *ALLOWED[room]):
            found.append(f"line {line}: {room} may not import {other}")
    return found


@pytest.mark.parametrize("path", [p for p in FILES if p.parent != PACKAGE], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_room_may(path: Path) -> None:
    assert misplaced(room_of(module_of(path)), path.read_text(encoding="utf-8")) == []


def test_the_table_leads_down_only_and_stays_small() -> None:
    for room, below in ALLOWED.items():
        assert all(FLOOR[other] < FLOOR[room] for other in below), room
    assert sum(map(len, ALLOWED.values())) < MOST_ARROWS
    assert len(FLOORS) <= 10


def test_the_table_names_the_rooms_and_the_arrows_that_there_are() -> None:
    there = {room_of(module) for module in MODULES if module != "scoresde"} - {"__main__"}
    assert there == set(ALLOWED)
    used: dict[str, set[str]] = {room: set() for room in ALLOWED}
    for module, path in MODULES.items():
        if path.parent != PACKAGE or path.name not in ("__init__.py", "__main__.py"):
            room = room_of(module)
            found = imports(path.read_text(encoding="utf-8"), set(MODULES))
            used[room] |= {room_of(other) for other, _, _ in found} - {room}
    assert used == ALLOWED, "an arrow of the table is no longer drawn"


def test_no_file_at_the_root_but_those_that_everyone_needs() -> None:
    assert {p.name for p in PACKAGE.iterdir() if p.is_file()} == AT_THE_ROOT


def test_no_circle_among_the_files() -> None:
    """Imports that run when a file is loaded; a function may import later what would close a circle."""
    below: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        tree.body = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
        below[module] = {m for m, _, _ in imports(ast.unparse(tree), set(MODULES))} - {"scoresde"}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for other in sorted(below[module]):
                visit(other, (*path, module))
            done.add(module)

    for module in sorted(below):
        visit(module, ())


def defined(tree: ast.Module) -> set[str]:
    """Return the names that a file defines at its top level."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    return names


TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in MODULES.items()}
DEFINED = {module: defined(tree) for module, tree in TREES.items()}


def exported(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return list(ast.literal_eval(node.value))
    return []


@pytest.mark.parametrize("module", [m for m, path in MODULES.items() if path.name != "__init__.py"])
def test_a_file_exports_what_it_defines_and_imports_names_from_where_they_are_defined(module: str) -> None:
    assert set(exported(TREES[module])) <= DEFINED[module]
    elsewhere = [
        f"line {line}: {name} is not defined in {other}"
        for other, name, line in imports(MODULES[module].read_text(encoding="utf-8"), set(MODULES))
        if name is not None and name not in DEFINED[other]
    ]
    assert elsewhere == []


@pytest.mark.parametrize(
    ("room", "source", "count"),
    [
        ("diffusions", "from scoresde.ops import expand", 0),
        ("diffusions", "from scoresde.chains.ddpm import DDPM", 1),
        ("diffusions", "import scoresde.chains", 1),
        ("diffusions", "from scoresde import chains, ops", 1),
        ("diffusions", "import scoresde", 1),
        ("diffusions", "from scoresde import VPSDE", 1),
        ("diffusions", "def f():\n    from scoresde.chains.ddpm import DDPM", 1),
        ("solvers", "from scoresde.models.score_model import ScoreModel", 1),
        ("models", "from scoresde.solvers.rows import Row", 1),
        ("sampling", "from scoresde.sampling.bridge.paths import TorchSDE", 1),
        ("training", "from scoresde.training.losses.weights import WEIGHTS", 0),
        ("training.losses", "from scoresde.training.ema import EMA", 1),
        ("metrics", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from scoresde.nn import MLP", 1),
        ("nn", "from scoresde.nn.embeddings import Fourier", 0),
    ],
)
def test_the_rule_bites(room: str, source: str, count: int) -> None:
    assert len(misplaced(room, source)) == count


def test_relative_imports_are_refused() -> None:
    with pytest.raises(AssertionError, match="relative"):
        misplaced("diffusions", "from .ops import expand")
