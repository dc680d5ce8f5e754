"""The parts of pages that scripts make are current, and the scripts write only where ``--record`` asks for it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from helpers import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import knots_picture
import rooms_page
from marked import main


def test_the_picture_of_the_rooms_is_current() -> None:
    page = rooms_page.PAGE.read_text(encoding="utf-8")
    assert rooms_page.write_parts(page) == page, "run python tools/rooms_page.py --record"


def test_the_picture_shows_every_room_on_its_floor() -> None:
    floors = ({"ground": set()}, {"left": {"ground"}, "right": {"ground"}}, {"top": {"left"}})
    lines = rooms_page.draw(floors).splitlines()[1:-1]
    assert len({len(line) for line in lines}) == 1
    rooms = [line.replace("│", " ").split() for line in lines[1::2]]
    assert rooms == [["3", "top"], ["2", "left", "right"], ["1", "ground"]]
    assert (lines[2].count("┬"), lines[4].count("┴"), lines[2][3], lines[2][-1]) == (1, 1, "├", "┤")


def test_a_page_is_written_only_where_it_is_asked(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("old", encoding="utf-8")
    assert main("tool.py", page, str.upper, []) == 1
    assert "page.md is out of date: run python tool.py --record" in capsys.readouterr().out
    assert page.read_text(encoding="utf-8") == "old"
    assert main("tool.py", page, str.upper, ["--record"]) == 0
    assert page.read_text(encoding="utf-8") == "OLD"
    assert main("tool.py", page, str.upper, []) == 0
    assert main("tool.py", page, str.upper, ["--write"]) == 2


def test_the_scripts_run() -> None:
    for script in ("rooms_page.py", "solver_page.py"):
        done = subprocess.run([sys.executable, ROOT / "tools" / script], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout.endswith(" is current\n")) == (0, True), done.stdout + done.stderr


def test_the_picture_of_the_knots_is_drawn_into_the_file_named(tmp_path) -> None:
    assert knots_picture.main([]) == 2
    assert knots_picture.main([str(tmp_path / "knots.png")]) == 0
    assert (tmp_path / "knots.png").stat().st_size > 50_000
    path = knots_picture.draw_path(seed=3)
    clean, noise = path[0], path[-1]
    assert clean.abs().max() <= 1
    assert abs(float(noise.std()) - 1) < 0.05
    assert abs(float((clean * noise).mean()) / float(clean.std())) < 0.05
