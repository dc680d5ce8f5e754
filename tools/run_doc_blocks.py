"""Run the Python code blocks of Markdown pages, so that what the documentation shows is known to work.

The blocks fenced as ```python of one page run in their order, in one fresh interpreter and a temporary directory: a
later block sees the names of an earlier one, as a reader who pastes them would. Other fences (sh, console, pycon) do
not run. A block that must not run says why on the line before its fence: ``<!-- skip: needs a GPU -->``.

    python tools/run_doc_blocks.py README.md docs/*.md
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,}|~{3,})[ \t]*(?P<language>[^\s`]*)")
SKIP = re.compile(r"^\s*<!--\s*skip:\s*(?P<reason>.+?)\s*-->\s*$")


@dataclass(frozen=True)
class Block:
    """A fenced Python block: the number of its first line of code, its code, and why it is skipped (None: it runs)."""

    line: int
    code: tuple[str, ...]
    skip: str | None


def read_blocks(text: str) -> list[Block]:
    """Return the Python blocks of a Markdown text; ValueError if a fence is not closed or a skip marks no block."""
    lines = text.splitlines()
    blocks: list[Block] = []
    reason: str | None = None
    i = 0
    while i < len(lines):
        fence = FENCE.match(lines[i])
        if fence is None:
            if reason is not None and lines[i].strip():
                raise ValueError(f"line {i + 1}: the skip comment above stands before no code block")
            marked = SKIP.match(lines[i])
            reason = marked["reason"] if marked else reason
            i += 1
            continue
        closing = re.compile(rf"^ *{re.escape(fence['ticks'][0])}{{{len(fence['ticks'])},}}\s*$")
        end = next((j for j in range(i + 1, len(lines)) if closing.match(lines[j])), None)
        if end is None:
            raise ValueError(f"line {i + 1}: the code block is never closed")
        if fence["language"] == "python":
            indent = fence["indent"]
            blocks.append(Block(i + 2, tuple(line.removeprefix(indent) for line in lines[i + 1 : end]), reason))
        reason = None
        i = end + 1
    return blocks


def script_of(blocks: list[Block]) -> str:
    """Join the blocks that run into one script, each at its own line, so that a traceback names the page's lines."""
    script: list[str] = []
    for block in blocks:
        if block.skip is None:
            script += [""] * (block.line - 1 - len(script))
            script += block.code
    return "\n".join(script) + "\n"


def run_page(page: Path) -> bool:
    """Run one page and print how it went; the output of its code is shown only when it fails."""
    try:
        blocks = read_blocks(page.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(f"{page}: {error}")
        return False
    for block in blocks:
        if block.skip is not None:
            print(f"{page}:{block.line}: skipped: {block.skip}")
    count = sum(block.skip is None for block in blocks)
    if count == 0:
        print(f"{page}: no block to run")
        return True
    with tempfile.TemporaryDirectory() as directory:
        # Named as the page, so that the traceback is too.
        Path(directory, page.name).write_text(script_of(blocks), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, page.name],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    if done.returncode:
        print(done.stdout.rstrip())
    print(f"{page}: {count} block{'s' * (count > 1)} {'failed' if done.returncode else 'ran'}")
    return done.returncode == 0


def main(arguments: list[str]) -> int:
    """Run every page named; return 0 if all passed, 1 if one failed, 2 if none was named."""
    if not arguments:
        print("usage: python tools/run_doc_blocks.py PAGE.md [PAGE.md ...]", file=sys.stderr)
        return 2
    results = [run_page(Path(name)) for name in arguments]
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
