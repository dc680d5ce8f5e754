"""Run the code blocks of Markdown pages, so that what the documentation shows is known to work and to be so.

The blocks fenced as ```python of one page run in their order, in one fresh interpreter and a temporary directory: a
later block sees the names of an earlier one, as a reader who pastes them would. What stands fenced as ```text must be
whole lines of what they print, one below the other. Then the ```console blocks run in the same directory: behind "$ " a
call of ``scoresde``, below it the whole of its output, in which "..." stands for anything and seconds may differ. Other
fences do not run; ```py and other ways to write ```python are refused. A block that must not run says why on the line
before its fence: ``<!-- skip: needs a GPU -->``.

    python tools/run_doc_blocks.py README.md docs/*.md
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,}|~{3,})[ \t]*(?P<language>[^\s`]*)")
SKIP = re.compile(r"^\s*<!--\s*skip:\s*(?P<reason>.+?)\s*-->\s*$")
SECONDS = re.compile(r"\d+(\.\d+)? seconds|seconds \d+(\.\d+)?")
CHECKED = ("python", "text", "console")
PYTHON = re.compile(r"\{?\.?(py|pycon|ipython|python)[0-9.]*\b", re.IGNORECASE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the number of its first line, its lines, and why it is skipped (None: it runs)."""

    language: str
    line: int
    lines: tuple[str, ...]
    skip: str | None

    @property
    def text(self) -> str:
        """The lines as one string."""
        return "\n".join(self.lines) + "\n"


def read_blocks(text: str) -> list[Block]:
    """Return the blocks of a Markdown text.

    Raises:
        ValueError: a fence that is not closed, a skip that marks no block, Python under another name than "python", or
            a text or console block without a line.
    """
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
        if fence["language"] not in CHECKED and PYTHON.match(fence["language"]):
            raise ValueError(f"line {i + 1}: write ```python, not {fence.group().strip()}, for code that runs")
        if fence["language"] in CHECKED:
            inside = tuple(line.removeprefix(fence["indent"]) for line in lines[i + 1 : end])
            if fence["language"] != "python" and not any(line.strip() for line in inside):
                raise ValueError(f"line {i + 1}: the {fence['language']} block is empty, so that nothing is checked")
            blocks.append(Block(fence["language"], i + 2, inside, reason))
        reason = None
        i = end + 1
    return blocks


def join_blocks(blocks: list[Block]) -> str:
    """Join the Python blocks into one script, each at its own line, so that a traceback names the page's lines."""
    script: list[str] = []
    for block in blocks:
        script += [""] * (block.line - 1 - len(script))
        script += block.lines
    return "\n".join(script) + "\n"


def read_calls(block: Block) -> list[tuple[str, str]]:
    """Return the commands of a console block, each with the output that it shows."""
    parts = re.split(r"^\$ ", block.text.replace("\\\n", ""), flags=re.MULTILINE)
    if parts[0]:
        raise ValueError(f"line {block.line}: a console block begins with '$ ' and a command")
    calls = [part.partition("\n")[::2] for part in parts[1:]]
    if foreign := [command for command, _ in calls if shlex.split(command)[:1] != ["scoresde"]]:
        raise ValueError(f"line {block.line}: only scoresde runs in a console block, not {foreign[0]!r}")
    return calls


def matches(expected: str, output: str) -> bool:
    """Whether this is the output that a page shows."""
    pattern = re.escape(SECONDS.sub("# seconds", expected)).replace(r"\.\.\.", ".*")
    return re.fullmatch(pattern, SECONDS.sub("# seconds", output), re.DOTALL) is not None


def run(arguments: list[str], directory: str) -> tuple[int, str]:
    """Run Python with these arguments; return its exit code and all that it wrote."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def find_faults(name: str, blocks: dict[str, list[Block]], directory: str) -> Iterator[str]:
    """Run a page's blocks in a directory and yield what is wrong with them."""
    output = ""
    if blocks["python"]:
        # Named as the page, so that the traceback is too.
        Path(directory, name).write_text(join_blocks(blocks["python"]), encoding="utf-8")
        code, output = run([name], directory)
        if code:
            yield output.rstrip()
            return
    for block in blocks["text"]:
        if f"\n{block.text}" not in f"\n{output}":
            yield f"line {block.line}: the code above does not print this; it prints\n{output}"
    for block in blocks["console"]:
        for command, expected in read_calls(block):
            _, got = run(["-m", *shlex.split(command, comments=True)], directory)
            if not matches(expected, got):
                yield f"line {block.line}: $ {command}\nprints\n{got}"


def run_page(page: Path) -> bool:
    """Run one page and print how it went; the output of its code is shown only when it fails."""
    try:
        blocks = read_blocks(page.read_text(encoding="utf-8"))
        for block in blocks:
            if block.skip is not None:
                print(f"{page}:{block.line}: skipped: {block.skip}")
        checked = [block for block in blocks if block.skip is None]
        if not checked:
            print(f"{page}: no block to run")
            return True
        with tempfile.TemporaryDirectory() as directory:
            by_language = {language: [b for b in checked if b.language == language] for language in CHECKED}
            found = list(find_faults(page.name, by_language, directory))
    except (OSError, ValueError) as error:
        print(f"{page}: {error}")
        return False
    print(*found, sep="\n", end="\n" if found else "")
    print(f"{page}: {len(checked)} block{'s' * (len(checked) > 1)} {'failed' if found else 'ran'}")
    return not found


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
