"""The check of the built site finds what is wrong in small sites, each wrong in one way, and nothing in a right one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import check_site

RIGHT = {
    "index.html": '<h1 id="top">T</h1><a href="sub/page.html#part">p</a><a href="#top">t</a><img src="a.png" '
    'alt="A dot"><script src="s.js"></script><a href="https://example.org/x#y">x</a><link rel="canonical" '
    'href="https://example.org"><link rel="stylesheet" href="s.css?v=1">',
    "sub/page.html": '<p id="part">P</p><a href="../index.html">i</a><a href="../_static/explorer.html#a=1">e</a>',
    "_static/explorer.html": "<p>E</p>",
    "a.png": "png",
    "s.js": "",
    "s.css": 'p { background: url("a.png"); cursor: url(data:image/png;base64,AA) }',
}


def make(folder: Path, **changed: str) -> Path:
    for name, text in {**RIGHT, **{key.replace("__", "."): text for key, text in changed.items()}}.items():
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return folder


def test_a_right_site_has_no_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(check_site.list_problems(make(tmp_path))) == []
    assert check_site.main([str(tmp_path)]) == 0
    assert "3 pages, 0.0 MB, 0 problems; 2 addresses outside (--external tries them)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ('<a href="none.html">x</a>', "none.html leads to no file"),
        ('<a href="sub/page.html#none">x</a>', "#none leads to no anchor"),
        ('<a href="#none">x</a>', "#none leads to no anchor"),
        ('<a href="../x.html">x</a>', "leaves the site"),
        ('<img src="none.png" alt="A dot">', "none.png leads to no file"),
        ('<img src="a.png">', "no text stands for the image a.png"),
        ('<img src="a.png" alt="_images/a.png">', "no text stands for the image a.png"),
        ('<script src="https://cdn.example.org/m.js"></script>', "over the network"),
        ('<link rel="stylesheet" href="//cdn.example.org/m.css">', "over the network"),
        ('<iframe src="https://example.org"></iframe>', "over the network"),
        ("<style>@font-face { src: url(https://example.org/f.woff) }</style>", "over the network"),
        (f"<p>{ROOT}/docs</p>", "a path of this machine"),
    ],
)
def test_a_page_that_is_wrong_is_named(page: str, said: str, tmp_path: Path) -> None:
    problems = list(check_site.list_problems(make(tmp_path, index__html='<h1 id="top">T</h1>' + page)))
    assert len(problems) == 1
    assert problems[0].startswith("index.html: ")
    assert said in problems[0]
    assert check_site.main([str(tmp_path)]) == 1


def test_styles_and_sizes_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, s__css='@import "https://example.org/x.css"; p { background: url(none.png) }')
    assert [line.split(": ")[0] for line in check_site.list_problems(tmp_path)] == ["s.css", "s.css"]
    make(tmp_path)
    monkeypatch.setattr(check_site, "LIMIT", 100)
    monkeypatch.setattr(check_site, "IMAGE_LIMIT", 2)
    problems = list(check_site.list_problems(tmp_path))
    assert problems[0] == "a.png: 3 bytes, the limit of an image is 2"
    assert problems[1].endswith("the limit is 100")


def test_addresses_outside_are_listed_and_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check_site, "try_address", lambda address: "found")
    assert check_site.main([str(make(tmp_path)), "--external"]) == 0
    assert "  https://example.org/x (index.html): found" in capsys.readouterr().out


def test_without_a_site_it_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_site.main([str(tmp_path)]) == 2
    assert "make docs builds the site" in capsys.readouterr().out
    assert check_site.main(["--else"]) == 2
