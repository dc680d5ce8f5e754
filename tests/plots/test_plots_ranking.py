"""``plots.ranking``: a line for each candidate, the first on top, and bad input."""

from __future__ import annotations

import math

import pytest

from scoresde import ConfigError, DomainError, plots

ROWS = {
    "unipc, log_snr": {"rms": 0.03, "median": 0.02},
    "dpmpp_2m, karras": {"rms": 0.05, "median": 0.01},
    "ddim": {"rms": 0.2},
}


def test_every_candidate_has_a_line_and_every_error_its_place() -> None:
    figure = plots.ranking(ROWS, title="8 evaluations")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(ROWS)
    low, high = axes.get_ylim()
    assert low > high, "the first candidate is on top"
    drawn = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert list(drawn) == ["rms", "median"]
    assert list(drawn["rms"].get_xdata()) == [0.03, 0.05, 0.2]
    assert list(drawn["rms"].get_ydata()) == [0, 1, 2]
    assert list(drawn["median"].get_xdata()) == [0.02, 0.01]
    assert axes.get_xscale() == "log"
    assert axes.get_title() == "8 evaluations"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["rms", "median"]


def test_one_kind_of_error_needs_no_legend() -> None:
    assert plots.ranking({"ddim": {"sliced W2": 0.2}}).legends == []


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="rows must hold at least one candidate"):
        plots.ranking({})
    with pytest.raises(DomainError, match="error must"):
        plots.ranking({"ddim": {"rms": math.nan}})
    with pytest.raises(DomainError, match="error must"):
        plots.ranking({"ddim": {"rms": 0.0}})
    with pytest.raises(ConfigError, match="at most 7 kinds of errors, got 8"):
        plots.ranking({"ddim": {str(k): 1.0 for k in range(8)}})
