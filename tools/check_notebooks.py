"""Look through the notebooks of a built site: a reader opens them without the network, and sees what ran.

Every cell of code that says something was run (it has a number), no output is an error, nothing names a folder of the
machine that built the site, and every picture stands in the file itself.

    python tools/check_notebooks.py build/site
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Behind a quote, a bracket, a blank or the line's begin: a path, not the end of an address.
LOCAL = re.compile(
    r"""(?<![\w./:~-])(?:/(?:home|root|tmp|work|Users|private|var|usr/(?:lib|local)|opt)/|[A-Z]:\\)[^\s"'<>)]*"""
)
FETCHED = re.compile(
    r"""!\[[^\]]*\]\(\s*(https?:[^)\s]+)"""
    r"""|<(?:img|script|iframe|link)\b[^>]*?(?:src|href)\s*=\s*["']?(https?:[^"'\s>]+)"""
)
SHELL = re.compile(r"^\s*[!%]", re.MULTILINE)


def check_notebook(book: dict[str, Any]) -> list[str]:
    """Return what is wrong with a notebook, in words; nothing where it may be handed out."""
    cells = book.get("cells", [])
    code = [cell for cell in cells if cell["cell_type"] == "code" and _join(cell["source"]).strip()]
    wrong = [] if code else ["no cell of code"]
    if code and not any(cell.get("outputs") for cell in code):
        wrong.append("no output at all: it was not executed")
    for number, cell in enumerate(cells):
        wrong += [f"cell {number}: {what}" for what in _check_cell(cell)]
    return wrong


def _check_cell(cell: dict[str, Any]) -> Iterator[str]:
    source = _join(cell["source"])
    if cell["cell_type"] == "code":
        if source.strip() and cell.get("execution_count") is None:
            yield "was not executed"
        if SHELL.search(source):
            yield "asks a shell or a magic, which other machines may not have"
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                yield f"the error {output.get('ename')}: {output.get('evalue')}"
    for text in (source, *_texts(cell)):
        if found := LOCAL.search(text):
            yield f"the path {found[0]} of one machine"
        if fetched := FETCHED.search(text):
            yield f"fetches {fetched[1] or fetched[2]}"


def _texts(cell: dict[str, Any]) -> Iterator[str]:
    """Yield what the outputs say; pictures are bytes in letters, in which anything may stand by chance."""
    for output in cell.get("outputs", []):
        yield _join(output.get("text", ""))
        for kind, value in output.get("data", {}).items():
            if kind.startswith("text/"):
                yield _join(value)


def _join(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)


def check_notebooks(folder: Path) -> list[str]:
    """Return what is wrong with the notebooks below a folder, each with its file; also where there is none."""
    files = sorted(folder.rglob("*.ipynb"))
    wrong = [] if files else [f"{folder}: no notebook"]
    for file in files:
        try:
            book = json.loads(file.read_text(encoding="utf-8"))
            wrong += [f"{file.relative_to(folder)}: {what}" for what in check_notebook(book)]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            wrong.append(f"{file.relative_to(folder)}: no notebook that can be read ({type(error).__name__}: {error})")
    return wrong


def main(arguments: list[str]) -> int:
    """Check the folder that is named; 0 where all notebooks are in order, 1 where not, 2 without a folder."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("usage: python tools/check_notebooks.py FOLDER")
        return 2
    wrong = check_notebooks(Path(arguments[0]))
    for line in wrong:
        print(line)
    if not wrong:
        print(f"{len([*Path(arguments[0]).rglob('*.ipynb')])} notebooks are in order")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
