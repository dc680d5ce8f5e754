"""What figures contain: labels, scales, artists, limits; never their pixels, except where the paper must be opaque."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from torch import Tensor

matplotlib = pytest.importorskip("matplotlib")

from matplotlib import style  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from scoresde import plots  # noqa: E402
from scoresde.data import moons, swiss_roll  # noqa: E402
from scoresde.errors import ConfigError, DataError, DomainError, DTypeError, ShapeError  # noqa: E402
from scoresde.metrics import Comparison  # noqa: E402
from scoresde.noise import normal, stream, uniform  # noqa: E402
from scoresde.plots import motion  # noqa: E402
from scoresde.plots.samples import enlarge, mosaic  # noqa: E402
from scoresde.plots.style import MARKERS, PALETTE  # noqa: E402
from scoresde.plots.tables import weights  # noqa: E402
from scoresde.solvers.rows import Knot, Row  # noqa: E402
from scoresde.solvers.tableau import Tableau  # noqa: E402


def images(*shape: int) -> Tensor:
    return 2 * uniform(shape, stream(2, "images")) - 1


def row(sampler: str, nfe: float, value: float, *, floor: float | None = 0.03, samples: int = 500) -> Comparison:
    return Comparison(
        sampler=sampler,
        nfe=nfe,
        seconds=nfe / 50,
        samples=samples,
        distances={"sliced_wasserstein": value, "share": 0.8},
        floors={} if floor is None else {"sliced_wasserstein": floor},
        floor_stds={} if floor is None else {"sliced_wasserstein": 0.004},
    )


ROWS = [
    row("ddim", 20, 0.08),
    row("heun", 40, 0.05),
    row("ddim", 10, 0.2),
    row("ddpm", 1000, 0.06, floor=0.05, samples=100),
]


def table() -> Tableau:
    knots = [Knot(t, 1.0 - t / 2, t) for t in (1.0, 0.5, 0.25)]
    rows = (
        Row(knots[0], (0.9, 0.1), anchor=(1.0,), noise=(0.3,)),
        Row(knots[1], (0.8, -0.2, 0.05), noise=(0.2, 0.1)),
        Row(knots[2], (0.7, 0.3), restart=True),
    )
    return Tableau("by hand", "data", rows, knots[0], Knot(0.0, 1.0, 0.0), 1.0)


FIGURES: dict[str, Callable[[], Figure]] = {
    "image_grid": lambda: plots.image_grid(images(6, 1, 4, 4), row_labels=["real", "sampled"], title="digits"),
    "scatter": lambda: plots.scatter({"a": moons(50), "b": moons(50, seed=1)}, moons(60, seed=2)),
    "density": lambda: plots.density(moons(200), title="moons"),
    "comparison": lambda: plots.comparison(ROWS, title="digits"),
    "tableau": lambda: plots.tableau(table()),
}


# --- style


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_opaque_and_dark_on_light_whatever_the_users_style(name: str, tmp_path: Path) -> None:
    with style.context("dark_background"):
        before = dict(matplotlib.rcParams)
        path = plots.save(FIGURES[name](), tmp_path / "deep" / "figure.png")
        assert dict(matplotlib.rcParams) == before
    pixels = np.asarray(Image.open(path).convert("RGBA"))
    assert (pixels[..., 3] == 255).all()
    assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1], :3] == 255).all()
    assert float((pixels[..., :3].min(axis=2) < 80).mean()) > 1e-3  # the ink is dark
    plain = np.asarray(Image.open(plots.save(FIGURES[name](), tmp_path / "plain.png")).convert("RGBA"))
    assert np.array_equal(pixels, plain)


def test_saving_refuses_other_endings_and_other_things(tmp_path: Path) -> None:
    figure = FIGURES["image_grid"]()
    for ending in ("svg", "pdf", "PNG"):
        assert plots.save(figure, tmp_path / f"figure.{ending}").stat().st_size > 1000
    with pytest.raises(ConfigError, match=r"unknown figure format '.jpg'; did you mean '.png'\?"):
        plots.save(figure, tmp_path / "figure.jpg")
    with pytest.raises(DTypeError, match="figure must be a matplotlib Figure, got str"):
        plots.save("figure.png", "figure.png")  # type: ignore[arg-type]


def test_a_missing_matplotlib_is_one_line_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in FIGURES.values():
        with pytest.raises(ConfigError, match=r'pip install "scoresde\[plots\]"'):
            draw()


def test_matplotlib_is_imported_late_and_pyplot_never() -> None:
    code = (
        "import sys, torch, scoresde.plots as p; assert 'matplotlib' not in sys.modules;"
        "p.scatter(torch.eye(2)); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_the_palette_has_a_marker_for_each_colour() -> None:
    assert len(set(PALETTE)) == len(PALETTE) == len(set(MARKERS)) == len(MARKERS)


# --- samples


def test_image_grid_places_every_image_and_labels_the_rows() -> None:
    pictures = images(5, 1, 8, 6)
    figure = plots.image_grid(pictures, rows=2, row_labels=["real", "sampled"], title="two rows")
    (axes,) = figure.axes
    sheet = np.asarray(axes.images[0].get_array())
    assert sheet.shape == (2 * 8 + 1, 3 * 6 + 2)
    scaled = ((pictures[:, 0] + 1) / 2).double().numpy()
    for k, (top, left) in enumerate([(0, 0), (0, 7), (0, 14), (9, 0), (9, 7)]):
        assert np.allclose(sheet[top : top + 8, left : left + 6], scaled[k], atol=1e-7)
    assert (sheet[9:, 14:] == 1).all()  # the missing sixth is paper
    assert (sheet[8] == 1).all()
    assert axes.get_title() == "two rows"
    assert [t.get_text() for t in axes.get_yticklabels()] == ["real", "sampled"]
    assert axes.get_yticks().tolist() == [3.5, 12.5]  # the middles of the rows
    assert axes.images[0].get_interpolation() == "nearest"


def test_image_grid_is_nearly_square_by_default_and_keeps_pixels_square() -> None:
    figure = plots.image_grid(images(20, 3, 5, 5), low=-1.0, high=1.0)
    (axes,) = figure.axes
    rows, columns, channels = np.asarray(axes.images[0].get_array()).shape
    assert (rows, columns, channels) == (4 * 5 + 3, 5 * 5 + 4, 3)
    box = axes.get_position()
    width, height = figure.get_size_inches()
    assert box.width * width / columns == pytest.approx(box.height * height / rows, rel=1e-9)
    assert 0 < box.x0 < box.x1 < 1


def test_row_labels_fit_into_the_figure() -> None:
    figure = plots.image_grid(images(4, 1, 4, 4), row_labels=["a", "a sampler with a long name, 1000 evaluations"])
    figure.draw_without_rendering()
    box = figure.axes[0].get_yticklabels()[1].get_window_extent()
    assert box.x0 > 0


def test_values_are_scaled_by_low_and_high_and_clipped() -> None:
    picture = torch.tensor([[[[-3.0, 0.0, 5.0, 20.0]]]])
    sheet = np.asarray(plots.image_grid(picture, low=0.0, high=10.0).axes[0].images[0].get_array())
    assert sheet.tolist() == [[0.0, 0.0, 0.5, 1.0]]


def test_smoothing_interpolates_each_image_by_itself() -> None:
    pictures = np.stack(
        [np.zeros((8, 8, 1)), np.ones((8, 8, 1)), np.linspace(0, 1, 8)[None, :, None] * np.ones((8, 8, 1))]
    )
    larger = enlarge(pictures)
    assert larger.shape == (3, 64, 64, 1)
    assert larger[0].max() == 0
    assert larger[1].min() == pytest.approx(1.0, abs=1e-12)
    assert (np.diff(larger[2, 10, :, 0]) >= -1e-9).all()
    assert larger[2].min() >= 0
    assert larger[2].max() <= 1
    assert enlarge(np.zeros((1, 100, 70, 3))).shape == (1, 100, 70, 3)
    sheet = np.asarray(plots.image_grid(torch.zeros(2, 1, 8, 8), rows=1, smooth=True).axes[0].images[0].get_array())
    assert sheet.shape == (64, 64 * 2 + 8)


def test_mosaic_of_colour_images_keeps_the_channels() -> None:
    assert mosaic(np.zeros((4, 16, 16, 3)), 2).shape == (34, 34, 3)


def test_bad_images_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"images must have shape \(N, 1, H, W\) or \(N, 3, H, W\), got \(2, 8, 8\)"):
        plots.image_grid(images(2, 8, 8))
    with pytest.raises(ShapeError, match=r"got \(2, 2, 8, 8\)"):
        plots.image_grid(images(2, 2, 8, 8))
    with pytest.raises(ShapeError, match=r"got \(0, 1, 8, 8\)"):
        plots.image_grid(images(0, 1, 8, 8))
    with pytest.raises(DomainError, match=r"high must be above low = 1\.0, got 1\.0"):
        plots.image_grid(images(2, 1, 8, 8), low=1.0)
    with pytest.raises(DomainError, match=r"rows must be in \[1, 2\], got 3"):
        plots.image_grid(images(2, 1, 8, 8), rows=3)
    with pytest.raises(ConfigError, match="row_labels must name all 2 rows, got 1 names"):
        plots.image_grid(images(2, 1, 8, 8), rows=2, row_labels=["a"])
    with pytest.raises(DTypeError, match=r"images must have a real floating dtype, got torch\.uint8"):
        plots.image_grid(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))


def test_scatter_shows_each_set_before_the_reference_in_one_window() -> None:
    reference = swiss_roll(300)
    sets = {name: swiss_roll(100, seed=k) for k, name in enumerate(("ddpm", "ddim", "heun", "2M"), start=1)}
    sets["2M"][:3] = 50.0
    figure = plots.scatter(sets, reference)
    assert len(figure.axes) == 4
    low = reference.min(dim=0).values.numpy()
    high = reference.max(dim=0).values.numpy()
    for axes, (name, points) in zip(figure.axes, sets.items(), strict=True):
        assert axes.get_title() == name
        behind, front = axes.collections[:2]
        assert np.allclose(behind.get_offsets(), reference)
        assert np.allclose(front.get_offsets(), points)
        assert axes.get_xlim() == figure.axes[0].get_xlim()
        assert axes.get_xlim()[0] < low[0] < high[0] < axes.get_xlim()[1]
        assert axes.get_ylim()[0] < low[1] < high[1] < axes.get_ylim()[1]
        assert np.diff(axes.get_xlim()) == pytest.approx(np.diff(axes.get_ylim()))
    assert [t.get_text() for t in figure.axes[3].texts] == ["3 of 100 outside"]
    assert len(figure.axes[0].texts) == 0
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["samples", "held-out data"]
    assert figure.axes[2].get_xlabel() == "$x_1$ (data units)"  # two by two: words at the outer edge only
    assert figure.axes[0].get_xlabel() == ""
    assert figure.axes[0].get_ylabel() == "$x_2$ (data units)"
    assert figure.axes[1].get_ylabel() == ""


def test_scatter_of_one_set_without_a_reference() -> None:
    figure = plots.scatter(torch.tensor([[1.0, 2.0]]), title="one point")
    (axes,) = figure.axes
    assert axes.get_title() == "one point"
    assert len(axes.collections) == 1
    assert axes.get_xlim() == (0.0, 2.0)
    assert figure.legends == []


def test_density_integrates_to_the_share_inside_and_shares_its_scale() -> None:
    points = {"inside": moons(4000), "shifted": moons(1000, seed=1) + 2.0}
    figure = plots.density(points, bins=30)
    first, second, bar = figure.axes
    for axes, name in ((first, "inside"), (second, "shifted")):
        left, right, bottom, top = axes.images[0].get_extent()
        values = np.asarray(axes.images[0].get_array())
        assert values.shape == (30, 30)
        x = points[name].double().numpy()
        within = ((x >= (left, bottom)) & (x <= (right, top))).all(axis=1).mean()
        assert values.sum() * (right - left) * (top - bottom) / 900 == pytest.approx(within, rel=1e-12)
        assert axes.images[0].get_clim() == first.images[0].get_clim()
    assert np.asarray(first.images[0].get_array()).sum() > 0
    assert bar.get_ylabel() == "probability per unit area"
    assert second.texts[0].get_text().endswith("of 1000 outside")


def test_density_has_its_axes_the_right_way_round() -> None:
    figure = plots.density(torch.tensor([[0.0, 0.0], [4.0, 0.1], [4.0, 0.1]]), bins=4)
    values = np.asarray(figure.axes[0].images[0].get_array())
    assert np.unravel_index(values.argmax(), values.shape) == (2, 3)  # (x2, x1): right of the middle
    assert figure.axes[0].images[0].origin == "lower"


def test_bad_points_are_refused() -> None:
    for draw in (plots.scatter, plots.density):
        with pytest.raises(ShapeError, match=r"x must have shape \(N, 2\), got \(5, 3\); choose two coordinates"):
            draw(torch.zeros(5, 3))
        with pytest.raises(ShapeError, match=r"x\['b'\] must have shape \(N, 2\), got \(0, 2\)"):
            draw({"a": torch.zeros(1, 2), "b": torch.zeros(0, 2)})
        with pytest.raises(ShapeError, match=r"reference must have shape \(N, 2\), got \(3,\)"):
            draw(torch.zeros(5, 2), torch.zeros(3))
        with pytest.raises(ConfigError, match="x must hold at least one set of points, got an empty mapping"):
            draw({})
        with pytest.raises(DomainError, match="x has 1 non-finite values of 2"):
            draw(torch.tensor([[0.0, math.nan]]))
    with pytest.raises(DomainError, match="bins must be at least 2, got 1"):
        plots.density(torch.zeros(5, 2), bins=1)


# --- comparison


def test_comparison_draws_each_sampler_once_in_every_panel_on_logarithmic_axes() -> None:
    figure = plots.comparison(ROWS, title="digits", linear=["share"])
    distance, share = figure.axes
    assert figure.get_suptitle() == "digits"
    assert distance.get_xlabel() == "network evaluations per sample"
    assert distance.get_ylabel() == "sliced Wasserstein-2 (data units)"
    assert share.get_ylabel() == "share"
    assert (distance.get_xscale(), distance.get_yscale()) == ("log", "log")
    assert (share.get_xscale(), share.get_yscale()) == ("log", "linear")
    lines = {line.get_label(): line for line in distance.lines}
    assert lines["ddim"].get_xydata().tolist() == [[10, 0.2], [20, 0.08]]  # one line, in the order of cost
    assert lines["heun"].get_xydata().tolist() == [[40, 0.05]]
    for label in ("ddim", "heun", "ddpm"):
        other = next(line for line in share.lines if line.get_label() == label)
        assert (other.get_color(), other.get_marker()) == (lines[label].get_color(), lines[label].get_marker())
    assert len({lines[label].get_color() for label in ("ddim", "heun", "ddpm")}) == 3
    low, high = distance.get_ylim()
    assert low < 0.03
    assert high > 0.2


def test_comparison_draws_the_floor_as_a_band_and_other_sizes_beside_their_row() -> None:
    figure = plots.comparison(ROWS, metrics=["sliced_wasserstein"])
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    floor = lines["sampling floor ± 2 std, 500 samples"]
    assert list(floor.get_ydata()) == [0.03, 0.03]
    (band,) = axes.patches
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((0.022, 0.038))
    own = lines["floor, 100 samples"]
    assert list(own.get_ydata()) == [0.05, 0.05]
    assert own.get_xdata()[0] < 1000 < own.get_xdata()[1]
    words = [t.get_text() for t in figure.legends[0].get_texts()]
    assert words == ["ddim", "heun", "ddpm", "sampling floor ± 2 std, 500 samples", "floor, 100 samples"]


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


# --- tableau


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


# --- animation


def spiral(count: int, points: int = 200) -> list[Tensor]:
    z = normal((points, 2), stream(1, "z"))
    return [math.cos(a) * swiss_roll(points) + math.sin(a) * z for a in torch.linspace(0, math.pi / 2, count).tolist()]


@pytest.mark.parametrize("kind", ["points", "images"])
def test_an_animation_has_its_frames_loops_for_ever_and_is_small(kind: str, tmp_path: Path) -> None:
    frames = spiral(12) if kind == "points" else [images(9, 1, 8, 8) * (1 - k / 12) for k in range(12)]
    captions = [f"t = {k / 11:.2f}" for k in range(12)]
    kept = [frame.clone() for frame in frames]
    path = plots.animation(frames, tmp_path / "new" / "a.gif", kind=kind, captions=captions, fps=10, hold=0.5)  # type: ignore[arg-type]
    assert path == tmp_path / "new" / "a.gif"
    assert 1000 < path.stat().st_size < 2_000_000
    with Image.open(path) as gif:
        assert gif.n_frames == 12
        assert gif.info["loop"] == 0  # for ever
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(gif)]
        assert gif.size[0] == 400
        pixels = np.asarray(gif.convert("RGB"))
    assert durations == [100] * 11 + [600]
    assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()  # paper stays white in the shared palette
    assert all(torch.equal(a, b) for a, b in zip(frames, kept, strict=True))


def test_the_frames_are_drawn_in_order(tmp_path: Path) -> None:
    # one point that walks to the right across a fixed window
    frames = torch.stack([torch.tensor([[x, 0.0]]) for x in (-0.8, 0.0, 0.8)])
    path = plots.animation(frames, tmp_path / "a.gif", extent=(-1.0, 1.0, -1.0, 1.0))
    places = []
    with Image.open(path) as gif:
        for frame in ImageSequence.Iterator(gif):
            blue = np.asarray(frame.convert("RGB")).astype(int)
            columns = np.nonzero((blue[..., 2] - blue[..., 0] > 80).any(axis=0))[0]
            places.append(columns.mean() / gif.size[0])
    assert places == pytest.approx([0.1, 0.5, 0.9], abs=0.03)


def test_the_window_of_points_holds_every_frame_but_not_its_outliers() -> None:
    frames = [frame.double().numpy() for frame in spiral(5, 1000)]
    left, right, bottom, top = motion._reach(frames)
    for points in frames:
        inside = (points > (left, bottom)).all(axis=1) & (points < (right, top)).all(axis=1)
        assert inside.mean() > 0.97
    assert right - left == pytest.approx(top - bottom)
    frames[2][0] = 1e6
    assert motion._reach(frames)[1] < 10


def test_an_animation_that_is_too_large_is_drawn_smaller_then_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [images(16, 1, 8, 8) * (1 - k / 6) for k in range(6)]
    full = plots.animation(frames, tmp_path / "full.gif", kind="images", smooth=True)
    monkeypatch.setattr(motion, "_LIMIT", full.stat().st_size // 2)
    smaller = plots.animation(frames, tmp_path / "smaller.gif", kind="images", smooth=True)
    assert smaller.stat().st_size < full.stat().st_size // 2
    with Image.open(smaller) as gif:
        assert gif.n_frames == 6
    monkeypatch.setattr(motion, "_LIMIT", 1000)
    with pytest.raises(DataError, match=r"6 frames need [0-9]+ bytes, the limit is 1000; give fewer frames"):
        plots.animation(frames, tmp_path / "none.gif", kind="images")
    assert not (tmp_path / "none.gif").exists()


def test_bad_animations_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    frames, path = spiral(3), tmp_path / "a.gif"
    with pytest.raises(ConfigError, match="unknown kind 'point'; did you mean 'points'"):
        plots.animation(frames, path, kind="point")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"path must end in \.gif, got 'a\.mp4'"):
        plots.animation(frames, "a.mp4")
    with pytest.raises(ConfigError, match="frames must hold at least two tensors, got 1"):
        plots.animation(frames[:1], path)
    with pytest.raises(ConfigError, match="captions must be one for each of 3 frames, got 2"):
        plots.animation(frames, path, captions=["a", "b"])
    with pytest.raises(DomainError, match=r"fps must be in \[1, 50\], got 60"):
        plots.animation(frames, path, fps=60)
    with pytest.raises(DomainError, match="hold must lie in"):
        plots.animation(frames, path, hold=-1.0)
    with pytest.raises(ShapeError, match=r"frames must have one shape, got \(200, 2\) and, at 1, \(100, 2\)"):
        plots.animation([frames[0], frames[1][:100]], path)
    with pytest.raises(ShapeError, match=r"frames\[0\] must have shape \(N, 1, H, W\)"):
        plots.animation(frames, path, kind="images")
    broken = frames[2].clone()
    broken[7, 1] = math.inf
    with pytest.raises(DomainError, match=r"frames\[2\] has 1 non-finite values"):
        plots.animation([*frames[:2], broken], path)
    assert list(tmp_path.iterdir()) == []
