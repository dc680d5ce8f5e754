"""A comparison draws each sampler against its own floor, and says what it shows."""

from __future__ import annotations

import pytest
from figure_cases import ROWS, row

from scoresde import plots
from scoresde.errors import ConfigError, DTypeError
from scoresde.metrics import Comparison


def test_comparison_draws_each_sampler_once_in_every_panel_on_logarithmic_axes() -> None:
    figure = plots.comparison(ROWS, title="digits", linear=["share"])
    distance, share = figure.axes
    assert figure.get_suptitle() == "digits"
    assert distance.get_xlabel() == "network evaluations per sample"
    assert distance.get_ylabel() == "sliced Wasserstein-2 / its own floor"
    assert share.get_ylabel() == "share"
    assert (distance.get_xscale(), distance.get_yscale()) == ("log", "log")
    assert (share.get_xscale(), share.get_yscale()) == ("log", "linear")
    lines = {line.get_label(): line for line in distance.lines}
    assert lines["ddim"].get_xdata().tolist() == [10, 20]  # one line, in the order of cost
    labels = ("ddim", "heun", "ddpm, 100 samples")
    for label in labels:
        other = next(line for line in share.lines if line.get_label() == label)
        assert (other.get_color(), other.get_marker()) == (lines[label].get_color(), lines[label].get_marker())
    assert len({lines[label].get_color() for label in labels}) == 3
    low, high = distance.get_ylim()
    assert low < 1.0
    assert high > 0.2 / 0.03


def test_comparison_draws_the_floor_as_a_band_and_other_sizes_beside_their_row() -> None:
    figure = plots.comparison(ROWS, metrics=["sliced_wasserstein"], linear=["sliced_wasserstein"])
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    floor = lines["sampling floor ± 2 std, 500 samples"]
    assert list(floor.get_ydata()) == [0.03, 0.03]
    (band,) = axes.patches
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((0.022, 0.038))
    own = lines["sampling floor ± 2 std, 100 samples"]
    assert list(own.get_ydata()) == [0.05, 0.05]
    assert own.get_xdata()[0] < 1000 < own.get_xdata()[1]
    (own_band,) = axes.collections
    box = own_band.get_paths()[0].get_extents()
    assert (box.x0, box.x1) == tuple(own.get_xdata())
    assert (box.y0, box.y1) == pytest.approx((0.042, 0.058))
    words = [t.get_text() for t in figure.legends[0].get_texts()]
    floors = [f"sampling floor ± 2 std, {n} samples" for n in (500, 100)]
    assert words == ["ddim", "heun", "ddpm, 100 samples", *floors]


def test_distances_with_different_floors_are_drawn_in_multiples_of_their_own() -> None:
    (axes,) = plots.comparison(ROWS, metrics=["sliced_wasserstein"]).axes
    assert axes.get_ylabel() == "sliced Wasserstein-2 / its own floor"
    lines = {line.get_label(): line for line in axes.lines}
    for label, points in {
        "ddim": [(10, 0.2 / 0.03), (20, 0.08 / 0.03)],
        "heun": [(40, 0.05 / 0.03)],
        "ddpm, 100 samples": [(1000, 0.06 / 0.05)],  # the closest to its floor, though not the smallest distance
    }.items():
        assert lines[label].get_xydata().tolist() == [pytest.approx(point) for point in points]
    for n in (500, 100):
        assert list(lines[f"sampling floor ± 2 std, {n} samples"].get_ydata()) == [1.0, 1.0]
    (band,) = axes.patches
    assert band.get_height() == pytest.approx(4 * 0.004 / 0.03)
    box = axes.collections[0].get_paths()[0].get_extents()
    assert (box.y0, box.y1) == pytest.approx((1 - 2 * 0.004 / 0.05, 1 + 2 * 0.004 / 0.05))


def test_distances_stay_in_their_units_where_a_floor_is_shared_or_missing() -> None:
    same = [row("ddim", 20, 0.08), row("ddpm", 1000, 0.06, samples=100)]
    for rows in (same, [*ROWS, row("other", 5, 0.3, floor=None)]):
        (axes,) = plots.comparison(rows, metrics=["sliced_wasserstein"]).axes
        assert axes.get_ylabel() == "sliced Wasserstein-2 (data units)"
        assert {line.get_label(): line for line in axes.lines}["ddim"].get_ydata()[-1] == 0.08


def test_distances_that_lie_close_fill_a_linear_axis() -> None:
    near = [row("ddim", 20, 0.033), row("ddpm", 1000, 0.05, floor=0.05, samples=100)]  # 1.1 and 1.0 floors
    (axes,) = plots.comparison(near, metrics=["sliced_wasserstein"]).axes
    assert axes.get_yscale() == "linear"
    low, high = axes.get_ylim()
    band = 2 * 0.004 / 0.03
    assert 1 - 1.5 * band < low < 1 - band
    assert 1 + band < high < 1 + 1.5 * band
    (far,) = plots.comparison([*near, row("ddim", 10, 0.06)], metrics=["sliced_wasserstein"]).axes
    assert far.get_yscale() == "log"


def test_comparison_without_floors_or_spread() -> None:
    bare = plots.comparison([row("ddim", 10, 0.2, floor=None)], metrics=["sliced_wasserstein"]).axes[0]
    assert [line.get_label() for line in bare.lines] == ["ddim"]
    assert len(bare.patches) == 0
    point = Comparison(sampler="a", nfe=5, seconds=1, samples=9, distances={"d": 1.0}, floors={"d": 0.5})
    axes = plots.comparison([point]).axes[0]
    assert [line.get_label() for line in axes.lines] == ["a", "sampling floor, 9 samples"]
    assert len(axes.patches) == 0


def test_comparison_against_seconds_and_values_without_a_logarithm() -> None:
    zero = Comparison(sampler="a", nfe=5, seconds=2.5, samples=9, distances={"my_metric": 0.0})
    figure = plots.comparison([zero], cost="seconds", labels={"my_metric": "mine (units)"})
    (axes,) = figure.axes
    assert axes.get_xlabel() == "time for all samples (seconds)"
    assert axes.get_ylabel() == "mine (units)"
    assert axes.get_yscale() == "linear"
    assert axes.lines[0].get_xydata().tolist() == [[2.5, 0.0]]


def test_ticks_are_plain_numbers_and_never_few() -> None:
    for nfes in ((10.0, 20.0), (10.0, 1000.0), (1.0, 1e5)):
        figure = plots.comparison([row("a", n, 0.1 * k) for k, n in enumerate(nfes, start=1)])
        figure.draw_without_rendering()
        axes = figure.axes[0]
        low, high = axes.get_xlim()
        texts = [t.get_text() for t in axes.get_xticklabels() if low <= t.get_position()[0] <= high]
        assert 2 <= len(texts) <= 9
        assert all(float(text) > 0 for text in texts)


def test_bad_comparisons_are_refused() -> None:
    with pytest.raises(ConfigError, match="rows must hold at least one Comparison, got none"):
        plots.comparison([])
    with pytest.raises(DTypeError, match=r"rows\[1\] must be a scoresde.metrics.Comparison, got dict"):
        plots.comparison([ROWS[0], {}])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="unknown metric 'sliced_wasserstien'; did you mean 'sliced_wasserstein'"):
        plots.comparison(ROWS, metrics=["sliced_wasserstien"])
    with pytest.raises(ConfigError, match="unknown cost 'flops'"):
        plots.comparison(ROWS, cost="flops")  # type: ignore[arg-type]
