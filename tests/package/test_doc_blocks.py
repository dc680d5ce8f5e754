"""The runner of the docs' code: what it runs, what it compares, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT


def run_page(directory: Path, text: str) -> subprocess.CompletedProcess[str]:
    page = directory / "page.md"
    page.write_text(text, encoding="utf-8")
    tool = ROOT / "tools" / "run_doc_blocks.py"
    return subprocess.run([sys.executable, tool, page], cwd=directory, capture_output=True, text=True, check=False)


def test_doc_blocks_share_a_namespace_and_leave_no_files(tmp_path: Path) -> None:
    page = "```python\nvalue = 2\n```\n\ntext\n\n```python\nopen('made', 'w').write('x')\nassert value == 2\n```\n"
    done = run_page(tmp_path, page)
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("page.md: 2 blocks ran\n1 passed, 0 failed\n")
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]


def test_doc_blocks_report_a_failure_at_its_line(tmp_path: Path) -> None:
    done = run_page(tmp_path, "# Title\n\n```python\nvalue = 2\n```\n\n- item\n\n  ```python\n  value / 0\n  ```\n")
    assert done.returncode == 1
    assert 'page.md", line 10' in done.stdout
    assert "ZeroDivisionError" in done.stdout
    assert done.stdout.endswith("0 passed, 1 failed\n")


def test_doc_blocks_skip_with_a_reason_and_run_python_only(tmp_path: Path) -> None:
    skipped = "<!-- skip: needs a GPU -->\n```python\n1 / 0\n```\n"
    others = "```sh\nexit 1\n```\n````md\n```python\n1 / 0\n```\n````\n"
    done = run_page(tmp_path, skipped + others)
    assert done.returncode == 0, done.stdout
    assert "page.md:3: skipped: needs a GPU" in done.stdout


def test_doc_blocks_check_what_the_code_prints(tmp_path: Path) -> None:
    code = "```python\nprint('one', 1.5)\nprint('two')\n```\n"
    assert run_page(tmp_path, code + "```text\none 1.5\n```\n").returncode == 0
    done = run_page(tmp_path, code + "```text\none 1.4\n```\n")
    assert done.returncode == 1
    assert "line 6: the code above does not print this; it prints\none 1.5\ntwo\n" in done.stdout
    assert run_page(tmp_path, code + "```text\none 1.5\ntwo\n```\n").returncode == 0
    for part in ("ne 1.5", "one 1", "1.5\ntwo", "two\none 1.5"):
        assert run_page(tmp_path, code + f"```text\n{part}\n```\n").returncode == 1


def test_doc_blocks_check_what_commands_print(tmp_path: Path) -> None:
    wrong = "$ scoresde sample --checkpoint nowhere # a comment\nscoresde: error: checkpoint nowhere does ...\n"
    assert run_page(tmp_path, f"```console\n{wrong}$ scoresde train --help\n...--steps...\n```\n").returncode == 0
    done = run_page(tmp_path, "```console\n$ scoresde describe nothing\nfine\n```\n")
    assert done.returncode == 1
    assert "line 2: $ scoresde describe nothing\nprints\nscoresde: error: unknown thing" in done.stdout
    assert "only scoresde runs" in run_page(tmp_path, "```console\n$ rm -r /nowhere\n```\n").stdout


def test_doc_blocks_let_seconds_differ_and_nothing_else() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    from run_doc_blocks import matches

    assert matches("20 samples, 0.4 seconds\n...\nloss 0.3...\n", "20 samples, 1 seconds\nseconds 9.1\nloss 0.31\n")
    assert not matches("20 samples, 0.4 seconds\nloss 0.3...\n", "20 samples, 1 seconds\nloss 0.41\n")
    assert not matches("20 samples, 0.4 seconds\n", "21 samples, 0.4 seconds\n")
    assert not matches("a.b\n", "axb\n")


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("```python\nx = 1\n", "line 1: the code block is never closed"),
        ("<!-- skip: why -->\n\ntext\n", "line 3: the skip comment above stands before no code block"),
        ("```console\nhello\n```\n", "line 2: a console block begins with '$ '"),
        ("```python\nprint(1)\n```\n\n```text\n```\n", "line 5: the text block is empty"),
        ("```python\nprint()\n```\n```text\n\n```\n", "line 4: the text block is empty"),
        ("```console\n```\n", "line 1: the console block is empty"),
        ("```py\nx = 1\n```\n", "line 1: write ```python, not ```py, for"),
        ("```Python\nx = 1\n```\n", "line 1: write ```python, not ```Python, for"),
        ("```{python}\nx = 1\n```\n", "line 1: write ```python, not ```{python}, for"),
        ("```{.python .numberLines}\nx = 1\n```\n", "line 1: write ```python, not ```{.python, for"),
        ("text\n\n~~~ python3\nx = 1\n~~~\n", "line 3: write ```python, not ~~~ python3, for"),
    ],
)
def test_doc_blocks_refuse_a_broken_page(tmp_path: Path, page: str, words: str) -> None:
    done = run_page(tmp_path, page)
    assert done.returncode == 1
    assert words in done.stdout
    assert done.stdout.endswith("0 passed, 1 failed\n")
