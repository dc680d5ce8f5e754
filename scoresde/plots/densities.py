"""Histograms of numbers of each sample, one outline a kind, on one axis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from scoresde.errors.kinds import ConfigError, DomainError
from scoresde.errors.tensors import check_numbers
from scoresde.errors.values import check_integer, check_mapping
from scoresde.plots.style import dress, new_figure, use_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["histogram"]

MOST_BINS = 10_000


def histogram(values: Mapping[str, Tensor], *, xlabel: str = "", title: str = "", bins: int = 40) -> Figure:
    """Draw the histograms of several sets of numbers over the same bins, each with its mean as a dotted line.

    The bins cover all but one in a hundred numbers on either side; those beyond count in the bins at the ends.

    Args:
        values: names to finite numbers (N,).
        xlabel: what the numbers are, with their unit.
        title: of the figure.
        bins: how many.

    Raises:
        ConfigError: no numbers. DTypeError, DomainError: values that are no finite numbers, bins out of range.
    """
    arrays = {}
    for name, value in check_mapping(values, "values", "numbers").items():
        arrays[name] = one = check_numbers(value, f"values[{name!r}]").ravel().numpy()
        if not np.isfinite(one).all():
            raise DomainError(f"values[{name!r}] must be finite, got {int((~np.isfinite(one)).sum())} that are not")
    if not arrays or not all(one.size for one in arrays.values()):
        raise ConfigError("a histogram needs at least one number of each kind")
    bins = check_integer(bins, "bins", 1, MOST_BINS)
    low, high = (float(np.quantile(np.concatenate(list(arrays.values())), share)) for share in (0.01, 0.99))
    edges = np.linspace(low, high if high > low else low + 1.0, bins + 1)
    with use_style():
        figure = new_figure(6.4, 3.6)
        axes = figure.subplots()
        for name, one in arrays.items():
            heights, _ = np.histogram(one.clip(edges[0], edges[-1]), edges)
            (line,) = axes.plot(edges, np.append(heights, heights[-1]), drawstyle="steps-post", label=name)
            axes.axvline(
                float(one.mean().clip(edges[0], edges[-1])), color=line.get_color(), linestyle=":", linewidth=1
            )
        axes.set_ylim(bottom=0)
        axes.legend()
        dress(axes, xlabel=xlabel, ylabel="samples", title=title)
    return figure
