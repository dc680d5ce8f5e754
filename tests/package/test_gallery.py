"""The gallery: every image of the pages is in it once, with what made it; none is unused, and none is large."""

from __future__ import annotations

import re
import sys
from io import BytesIO

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

sys.path.insert(0, str(ROOT / "tools"))

import small_images

DOCS = ROOT / "docs"
PAGE = (DOCS / "gallery.md").read_text(encoding="utf-8")
CARDS = re.findall(r"(?ms)^:::\{grid-item-card\} (.+?)\n(.+?)^:::$", PAGE)
FILES = sorted((DOCS / "images").iterdir())


def test_every_image_is_in_the_gallery_once() -> None:
    shown = re.findall(r"^:img-top: images/(.+)$", PAGE, re.MULTILINE)
    assert len(CARDS) == len(shown)
    assert sorted(shown) == [file.name for file in FILES]


@pytest.mark.parametrize(("title", "card"), CARDS, ids=[title for title, _ in CARDS])
def test_a_card_says_what_is_seen_and_what_made_it(title: str, card: str) -> None:
    above, below = card.rsplit("\n\n", 1)
    assert re.search(r"^:img-alt: .{20,}$", above, re.MULTILINE)
    assert re.search(r"^[A-Z`].{20,}\.$", above, re.MULTILINE), "a sentence of what one sees"
    links = re.findall(r"\]\((.+?)\)", below)
    assert all((DOCS / link).is_file() for link in links), links
    made = re.match(r"\[(.+?)\]\((.+?)\): `(.+?)`", below)
    assert made is not None
    maker, link, command = made.groups()
    assert (DOCS / link).resolve() == ROOT / maker
    if command.startswith("python "):
        script = ROOT / command.split()[1]
        assert script.is_file() or (script / "__main__.py").is_file()
        assert "run_doc_blocks" in command or (ROOT / maker).is_relative_to(script if script.is_dir() else ROOT / maker)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_an_image_is_used_on_another_page(file) -> None:
    pages = [page for page in DOCS.rglob("*.md") if "api" not in page.parts and page.name != "gallery.md"]
    assert any(f"images/{file.name}" in page.read_text(encoding="utf-8") for page in [*pages, ROOT / "README.md"])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_an_image_is_small(file) -> None:
    assert file.stat().st_size < small_images.LIMIT


def test_a_picture_is_made_small_without_a_change_that_is_seen() -> None:
    grey = Image.linear_gradient("L").convert("RGBA")
    file = BytesIO()
    grey.save(file, format="PNG", compress_level=0)
    small = small_images.shrink(file.getvalue())
    assert len(small) < len(file.getvalue()) / 10
    written = Image.open(BytesIO(small))
    assert written.mode in ("P", "RGB")
    assert written.convert("RGB").tobytes() == grey.convert("RGB").tobytes()
    assert small_images.shrink(small) is small


def test_a_palette_that_would_be_seen_is_refused() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    assert small_images.reduce(Image.fromarray(colours)) is None
