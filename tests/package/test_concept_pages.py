"""Pages that run (docs/learn, docs/concepts): each is a notebook, checks something, and names only what exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from helpers import ROOT

import scoresde

FOLDERS = ("learn", "concepts")
PAGES = [
    page
    for folder in FOLDERS
    for page in sorted((ROOT / "docs" / folder).glob("*.md"))
    if "```{code-cell}" in page.read_text(encoding="utf-8")
]
CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
HEAD = "---\nfile_format: mystnb\nkernelspec:\n  name: python3\n  display_name: Python 3\n---\n"
# Random numbers come from scoresde.noise, but for the weights of networks; a page runs in any folder of any machine.
UNWELCOME = re.compile(
    r"torch\.(randn?|randint|randperm)\b|np\.random\.(?!default_rng)|(?<!\w)/(home|root|tmp|work|Users)/"
)
MODULES = {name for name in scoresde.__all__ if name.islower() and hasattr(getattr(scoresde, name), "__all__")}


def read_cells(text: str) -> list[str]:
    """The code of the cells, without their options."""
    return [re.sub(r"\A(:[\w-]+:.*\n|\n)+", "", cell) for cell in CELL.findall(text)]


def read_names(text: str) -> set[str]:
    """Public names that the prose promises: those behind "API:", and whatever is written as being in a room."""
    prose = CELL.sub("", text)
    api = re.findall(r"^API: (.*?)(?:\n\n|\Z)", prose, re.DOTALL | re.MULTILINE)
    listed = re.findall(r"`([A-Za-z_][\w.]*)(?:\(.*?\))?`", "\n".join(part.split("; page")[0] for part in api))
    dotted = re.findall(rf"`(?:scoresde\.)?((?:{'|'.join(sorted(MODULES))})\.\w+)", prose)
    return {name.removeprefix("scoresde.") for name in (*listed, *dotted)}


def find(name: str) -> bool:
    """Whether a dotted public name exists."""
    value: object = scoresde
    for part in name.split("."):
        value = getattr(value, part, None)
    return value is not None


def test_there_are_pages() -> None:
    assert {page.parent.name for page in PAGES} == set(FOLDERS)
    assert {"solvers", "losses", "grids", "plots"} <= MODULES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.stem}")
def test_a_page_that_runs_is_a_notebook_and_names_only_what_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.startswith(HEAD)
    assert re.search(rf"\{{nb-download\}}`[^`<]+<{page.stem}\.ipynb>`", text), "no link to the notebook"
    cells = read_cells(text)
    assert text.count("```{code-cell}") == len(cells), "a cell is not closed"
    for cell in cells:
        ast.parse(cell)
        assert not (found := UNWELCOME.search(cell)), found
    tests = set(re.findall(r"\btests/[\w/.-]*\w", text))
    assert not [name for name in tests if not (ROOT / name).exists()]
    assert not [name for name in read_names(text) if not find(name)]
    if page.parent.name == "concepts":
        assert any(isinstance(node, ast.Assert) for cell in cells for node in ast.walk(ast.parse(cell))), "no check"
        assert tests, "no test holds what the page says"


def test_what_the_pages_name_is_read() -> None:
    text = (
        "API: `VPSDE`, `solvers.heun`,\n`sample(x)`; pages: `nothing`.\n\nTake `grids.karras()` or `losses.nowhere`.\n"
    )
    assert read_names(text) == {"VPSDE", "solvers.heun", "sample", "grids.karras", "losses.nowhere"}
    assert [find(name) for name in ("VPSDE", "solvers.heun", "losses.nowhere", "Nothing")] == [True, True, False, False]
    assert read_cells("```{code-cell}\n:tags: [remove-input]\n\nx = 1\n```\n") == ["x = 1\n"]
    assert UNWELCOME.search("torch.randn(3)")
    assert UNWELCOME.search("open('/tmp/x')")
    assert not UNWELCOME.search("torch.random_walk, a/tmp/b")
