"""The figures on the pages of docs/coming-from are those that ``benchmarks/coming_from.py --record`` wrote."""

from __future__ import annotations

import json

import pytest
from helpers import ROOT

RECORD = json.loads((ROOT / "benchmarks" / "results" / "coming_from.json").read_text(encoding="utf-8"))
PAGES = ROOT / "docs" / "coming-from"


@pytest.mark.parametrize("peer", RECORD["about"])
def test_a_page_shows_what_was_recorded(peer: str) -> None:
    text = (PAGES / f"{peer}.md").read_text(encoding="utf-8")
    rows = [one for one in RECORD["results"] if one["peer"] == peer]
    assert rows
    for row in rows:
        assert f"| {row['task']} | {row['apart']:.0e} | {row['at_most']:.0e} |\n" in text


def test_what_was_recorded_held() -> None:
    assert all(one["apart"] <= one["at_most"] for one in RECORD["results"])
    assert len(RECORD["about"]) == len(list(PAGES.glob("*.md"))) - 1  # every page but the index
