"""The picture of a table shows every weight."""

from __future__ import annotations

import math

import numpy as np
import pytest
from figure_cases import table

from scoresde import plots
from scoresde.errors import ConfigError, DTypeError
from scoresde.plots.tables import weights
from scoresde.solvers.rows import Knot, Row
from scoresde.solvers.tableau import Tableau


def test_the_columns_of_a_table_are_its_weights() -> None:
    columns = weights(table())
    nan = math.nan
    expected = {
        "next state": {
            "anchor": [0.9, 0.8, 0.7],
            "prediction\nnow": [0.1, -0.2, 0.3],
            "prediction\n1 back": [nan, 0.05, nan],
            "noise\nnow": [0.3, 0.2, nan],
            "noise\n1 back": [nan, 0.1, nan],
        },
        "next anchor": {"anchor": [1.0, nan, nan]},
    }
    assert columns.keys() == expected.keys()
    for group, wanted in expected.items():
        assert list(columns[group]) == list(wanted)
        for name, values in wanted.items():
            assert np.array_equal(columns[group][name], values, equal_nan=True)


def test_the_picture_of_a_table_shows_every_weight() -> None:
    figure = plots.tableau(table())
    axes, bar = figure.axes
    assert figure.get_suptitle() == "by hand\n3 evaluations, in the data prediction"
    cells = np.ma.filled(np.ma.masked_invalid(axes.images[0].get_array()), np.nan)
    assert cells.shape == (3, 6)
    written = {(t.get_position()[1], t.get_position()[0]): t.get_text() for t in axes.texts}
    assert written == {(i, j): f"{v:.3g}" for (i, j), v in np.ndenumerate(cells) if not math.isnan(v)}
    assert [t.get_text() for t in axes.get_yticklabels()] == ["1", "0.5", "0.25"]
    assert axes.get_ylabel() == "time t of the call"
    assert axes.images[0].get_clim() == (-1.0, 1.0)  # the same scale for both signs
    assert bar.get_ylabel() == "weight"
    assert len(axes.child_axes) == 2  # the two group titles


def test_a_long_table_has_colours_without_numbers() -> None:
    rows = tuple(Row(Knot(1 - k / 100, 1.0, 1.0), (0.5, 0.5)) for k in range(100))
    figure = plots.tableau(Tableau("long", "data", rows, rows[0].at, Knot(0.0, 1.0, 0.0), 1.0))
    axes = figure.axes[0]
    assert np.asarray(axes.images[0].get_array()).shape == (100, 2)
    assert len(axes.texts) == 0
    assert [t.get_text() for t in axes.get_yticklabels()][:3] == ["1", "0.95", "0.9"]


def test_bad_tables_are_refused() -> None:
    with pytest.raises(DTypeError, match="table must be a scoresde Tableau, got list; build one with"):
        plots.tableau([])  # type: ignore[arg-type]
    empty = Tableau("nothing", "data", (), Knot(1.0, 1.0, 1.0), Knot(1.0, 1.0, 1.0), 1.0)
    with pytest.raises(ConfigError, match="table 'nothing' has no rows"):
        plots.tableau(empty)
