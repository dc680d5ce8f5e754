"""What is said of the examples: each is on the page with its command, and its docstring says how to run it.

That they run is for the script of all checks, which calls each with --quick.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PAGE = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_says_how_it_is_run(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    description = ast.get_docstring(ast.parse(source)) or ""
    run = re.search(rf"^Run: python examples/{file.name}(.*)$", description, re.MULTILINE)
    assert run is not None
    options = re.findall(r"--\w+", run[1])
    assert sorted(options) == sorted(set(re.findall(r'add_argument\("(--\w+)"', source)))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_the_page_has_the_example_and_its_picture(file: Path) -> None:
    assert ("make demo" if file.stem == "demo" else f"python examples/{file.name}") in PAGE
    if file.stem != "demo" and "--out" in file.read_text(encoding="utf-8"):
        assert f"(images/example_{file.stem}.png)" in PAGE


def test_the_pages_commands_and_pictures_exist() -> None:
    for name in re.findall(r"python (examples/\w+\.py)", PAGE):
        assert (ROOT / name).is_file()
    pictures = re.findall(r"\]\((images/.+?)\)", PAGE)
    assert pictures
    for name in pictures:
        assert (ROOT / "docs" / name).stat().st_size < 150_000
