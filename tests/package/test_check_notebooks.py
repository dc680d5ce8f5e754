"""The check of the site's notebooks: what it passes, and each thing that it must find."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

sys.path.insert(0, str(ROOT / "tools"))

from check_notebooks import check_notebook, check_notebooks, main

PICTURE = "iVBORw0KGgo/home/AAAA"  # bytes in letters may look like anything


def code(source: str, *outputs: dict[str, Any], count: int | None = 1) -> dict[str, Any]:
    return {"cell_type": "code", "source": source, "outputs": list(outputs), "execution_count": count, "metadata": {}}


def words(text: str | list[str]) -> dict[str, Any]:
    return {"cell_type": "markdown", "source": text, "metadata": {}}


def said(text: str | list[str]) -> dict[str, Any]:
    return {"output_type": "stream", "name": "stdout", "text": text}


def shown(data: dict[str, Any]) -> dict[str, Any]:
    return {"output_type": "display_data", "data": data}


def failed(name: str) -> dict[str, Any]:
    return {"output_type": "error", "ename": name, "evalue": "by zero"}


def book(*cells: dict[str, Any]) -> dict[str, Any]:
    return {"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


SOUND = book(
    words(["# A page\n", "[a link](https://example.org/home/page), a ratio 1/2/3, ![here](attachment:x.png)"]),
    code("x = 1"),
    code("", count=None),
    code(
        "print(x)", said(["1\n"]), {"output_type": "display_data", "data": {"image/png": PICTURE, "text/plain": ["1"]}}
    ),
)


def test_a_sound_notebook_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_notebook(SOUND) == []
    (tmp_path / "_downloads" / "a").mkdir(parents=True)
    (tmp_path / "_downloads" / "a" / "page.ipynb").write_text(json.dumps(SOUND), encoding="utf-8")
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == "1 notebooks are in order\n"


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([words("# only words")], "no cell of code"),
        ([code("x = 1")], "no output at all"),
        ([code("print(1)", said("1")), code("y = 2", count=None)], "cell 1: was not executed"),
        (
            [code("1 / 0", failed("ZeroDivisionError"))],
            "ZeroDivisionError",
        ),
        ([code("print(p)", said("wrote /tmp/abc/x.npy"))], "the path /tmp/abc/x.npy"),
        ([code("open('/home/me/x.csv')", said("1"))], "the path /home/me/x.csv"),
        ([code("p", shown({"text/plain": ["PosixPath('/work/x')"]}))], "/work/x"),
        ([code("p", said(["C:\\Users\\me"]))], "C:\\Users\\me"),
        ([code("p", said("1")), words("![far](https://example.org/x.png)")], "fetches https://example.org/x.png"),
        (
            [code("p", shown({"text/html": '<img src="http://a.b/c">'}))],
            "http://a.b/c",
        ),
        ([code("!pip install x", said("1"))], "asks a shell"),
    ],
)
def test_each_fault_is_found(cells: list[dict[str, Any]], expected: str) -> None:
    wrong = check_notebook(book(*cells))
    assert len(wrong) == 1
    assert expected in wrong[0]


def test_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cut.ipynb").write_text('{"cells": [', encoding="utf-8")
    (tmp_path / "list.ipynb").write_text("[]", encoding="utf-8")
    (tmp_path / "other.ipynb").write_text('{"cells": [{}]}', encoding="utf-8")
    (tmp_path / "wrong.ipynb").write_text(json.dumps(book(code("x = 1"))), encoding="utf-8")
    wrong = check_notebooks(tmp_path)
    assert [line.split(":")[0] for line in wrong] == ["cut.ipynb", "list.ipynb", "other.ipynb", "wrong.ipynb"]
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines() == wrong


def test_an_empty_folder_and_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "no notebook" in capsys.readouterr().out
    assert main([]) == 2
    assert main([str(tmp_path / "nowhere")]) == 2
