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
from figure_cases import ROWS, images, table
from PIL import Image

matplotlib = pytest.importorskip("matplotlib")

from matplotlib import style  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from scoresde import plots  # noqa: E402
from scoresde.data import moons, swiss_roll  # noqa: E402
from scoresde.errors import ConfigError, DomainError, DTypeError, ShapeError  # noqa: E402
from scoresde.plots.samples import enlarge, mosaic  # noqa: E402
from scoresde.plots.style import MARKERS, PALETTE  # noqa: E402

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
        with pytest.raises(ConfigError, match=r'pip install "\.\[plots\]"'):
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


def test_the_letters_of_a_text_are_labels() -> None:
    one, other = (plots.image_grid(images(4, 1, 4, 4), row_labels=given) for given in ("01", ["0", "1"]))
    assert [text.get_text() for text in one.axes[0].texts] == [text.get_text() for text in other.axes[0].texts]
    assert [label.get_text() for label in one.axes[0].get_yticklabels()] == ["0", "1"]


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
    assert mosaic(np.zeros((4, 16, 16, 3)), 2, 2).shape == (34, 34, 3)


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
    with pytest.raises(ConfigError, match="column_labels must name the columns of 6 images in 3 rows, got 4 names"):
        plots.image_grid(images(6, 1, 8, 8), rows=3, column_labels=list("abcd"))
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
