"""The pictures of the site: a page that reads badly is named, a right one is not; run where there is a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

EXPLORER = Path(__file__).parents[2] / "explorer"

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or not (EXPLORER / "node_modules" / ".ready").is_file(),
    reason="make explorer brings what drives a browser",
)

HEAD = '<meta name="viewport" content="width=device-width"><article>'
WRONG = {
    "index": ('<div style="width: 2000px">wide</div>', "pixels wider than its window (DIV : wide)"),
    "gallery": ("<script>console.error('complains')</script>", "complains"),
    "explorer": ('<img src="https://cdn.example.org/a.png">', "asks for https://cdn.example.org/a.png"),
    "solvers": ('<p style="color: #eee; background: #fff">pale</p>', "contrast 1.2"),
    "diffusions": ('<span class="math">\\(x\\)</span>', "a formula is not drawn"),
    "posteriors": ('<img src="none.png" alt="none">', "an image is not drawn: none.png"),
}


def shoot(site: Path, out: Path) -> tuple[int, str]:
    done = subprocess.run(
        ["node", "shots.mjs", site, out], cwd=EXPLORER, capture_output=True, text=True, timeout=240, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_what_reads_badly_is_named_and_nothing_else(tmp_path: Path) -> None:
    names = re.findall(r'^  "(.+)",$', (EXPLORER / "shots.mjs").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(names) == 10
    for name in names:
        page = tmp_path / "site" / f"{name}.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(f"{HEAD}<p>{WRONG.get(name, ('right', ''))[0]}</p></article>", encoding="utf-8")
    code, said = shoot(tmp_path / "site", tmp_path / "shots")
    assert code == 1
    assert "40 pictures in " in said
    assert len(list((tmp_path / "shots").glob("*.png"))) == 40
    lines = said.splitlines()
    for name, (_, expected) in WRONG.items():
        assert sum(line.startswith(f"{name}, ") and expected in line for line in lines) == 4, said
    assert {line.split(", ")[0] for line in lines[:-1]} == set(WRONG)


def test_without_a_site_it_says_what_to_do(tmp_path: Path) -> None:
    code, said = shoot(tmp_path, tmp_path / "shots")
    assert code == 2
    assert "make docs builds the site" in said
