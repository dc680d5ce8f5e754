"""Histograms: what is counted where, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scoresde import plots
from scoresde.errors import ConfigError


def test_a_histogram_counts_every_number_once() -> None:
    """Also those beyond the bins, which count at the ends; a dotted line is the mean."""
    a = torch.cat([torch.linspace(0, 1, 400), torch.tensor([1000.0])])
    b = torch.linspace(0.25, 0.75, 100)
    figure = plots.histogram({"a": a, "b": b}, xlabel="nats", title="two", bins=10)
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    for name, values in (("a", a), ("b", b)):
        edges, heights = (np.asarray(part) for part in lines[name].get_data())
        assert heights[:-1].sum() == len(values)
        expected, _ = np.histogram(values.double().numpy().clip(edges[0], edges[-1]), edges)
        assert heights[:-1].tolist() == expected.tolist()
    assert axes.get_xlabel() == "nats"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    means = [line.get_xdata()[0] for line in axes.get_lines() if line.get_linestyle() == ":"]
    assert means[1] == pytest.approx(0.5)
    assert means[0] == pytest.approx(lines["a"].get_xdata()[-1])


def test_no_numbers_are_refused() -> None:
    for values in ({}, {"a": torch.zeros(0)}):
        with pytest.raises(ConfigError, match="at least one number"):
            plots.histogram(values)
    assert plots.histogram({"one": torch.zeros(1)}).axes
