"""Pages of which a part is made by a script: it stands between ``<!-- begin: NAME -->`` and ``<!-- end: NAME -->``."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path


def fill(page: str, parts: Mapping[str, str]) -> str:
    """Return the page with its generated parts made anew; ValueError where a marker is missing or there twice."""
    for name, text in parts.items():
        marked = re.compile(rf"(<!-- begin: {name} -->\n).*?(<!-- end: {name} -->)", re.DOTALL)
        if len(marked.findall(page)) != 1:
            raise ValueError(f"the page needs the markers of {name!r} once")
        page = marked.sub(lambda match, text=text: f"{match[1]}\n{text}\n{match[2]}", page)
    return page


def main(script: str, page: Path, write_parts: Callable[[str], str], arguments: list[str]) -> int:
    """Say whether a page is current, or write it where ``--record`` asks for it; return the exit code."""
    if arguments not in ([], ["--record"]):
        print(f"usage: python {script} [--record]", file=sys.stderr)
        return 2
    text = page.read_text(encoding="utf-8")
    current = write_parts(text)
    if arguments:
        page.write_text(current, encoding="utf-8")
        return 0
    print(f"{page.name} is {'current' if text == current else f'out of date: run python {script} --record'}")
    return int(text != current)
