"""Samples as a person sees them: a mosaic of images, points in the plane, their density."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scoresde.errors.kinds import ConfigError, DomainError, ShapeError
from scoresde.errors.tensors import check_samples
from scoresde.errors.values import check_flag, check_integer, check_number, check_sequence, check_text
from scoresde.plots.style import INK, PALETTE, PAPER, dress, new_figure, use_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["check_images", "check_points", "density", "dot", "enlarge", "image_grid", "mosaic", "scatter", "window"]

Array = np.ndarray[Any, np.dtype[np.float64]]


def image_grid(
    images: Tensor,
    *,
    rows: int | None = None,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    title: str = "",
    low: float = -1.0,
    high: float = 1.0,
    smooth: bool = False,
) -> Figure:
    """Return a mosaic of images, filled row by row.

    Args:
        images: (N, 1, H, W) in grey or (N, 3, H, W) in colour; values outside [low, high] are clipped.
        rows: number of rows; by default one for each label, else as many as named columns leave, else about as many as
            columns.
        row_labels: names beside the rows, for instance of samplers.
        column_labels: names above the columns, for instance of classes; they stand upright where they are too wide.
        title: text above the mosaic.
        low: value shown as black.
        high: value shown as white.
        smooth: interpolate between pixels, each image by itself, which helps the eye to read very small images; by
            default each pixel is a square of one colour.

    Raises:
        DTypeError, ShapeError, DomainError: not finite images of these shapes, no image, more rows than images, or
            low >= high.
        ConfigError: another number of labels than of rows or columns, or matplotlib is missing.
    """
    pictures = check_images(images, "images", low, high)
    row_labels, column_labels = (
        [check_text(one, name) for one in (given if isinstance(given, str) else check_sequence(given, name, "texts"))]
        for name, given in (("row_labels", row_labels), ("column_labels", column_labels))
    )
    check_text(title, "title")
    smooth = check_flag(smooth, "smooth")
    count, tall, wide = pictures.shape[:3]
    usual = len(row_labels) or (math.ceil(count / len(column_labels)) if column_labels else math.isqrt(count))
    lines = check_integer(usual if rows is None else rows, "rows", 1, count)
    columns = len(column_labels) or math.ceil(count / lines)
    if column_labels and math.ceil(count / columns) != lines:
        raise ConfigError(
            f"column_labels must name the columns of {count} images in {lines} rows, got {len(column_labels)} names"
        )
    if row_labels and len(row_labels) != lines:
        raise ConfigError(f"row_labels must name all {lines} rows, got {len(row_labels)} names; give one for each row")
    if smooth:
        pictures = enlarge(pictures)
    sheet = mosaic(pictures, lines, columns)
    cell = min(0.6, 9.0 / columns) / pictures.shape[2]  # inches for a pixel
    with use_style():
        from matplotlib.textpath import TextPath

        # Constrained layout does not know pictures of a fixed shape, so the room for the words is measured here.
        def measure(labels: Sequence[str]) -> list[float]:
            return [TextPath((0.0, 0.0), label, size=12.0).get_extents().width / 72.0 for label in labels]

        sizes, tops = measure(row_labels), measure(column_labels)
        upright = bool(tops) and max(tops) > 0.95 * cell * pictures.shape[2]
        over = (max(tops) if upright else 0.2) + 0.1 if tops else 0.0
        left, above = (max(sizes) + 0.25 if sizes else 0.1), (0.4 if title else 0.1) + over
        wide, tall = sheet.shape[1] * cell, sheet.shape[0] * cell
        figure = new_figure(left + wide + 0.1, tall + above + 0.1)
        figure.set_layout_engine("none")
        width, height = figure.get_size_inches()
        axes = figure.add_axes((left / width, 0.1 / height, wide / width, tall / height))
        axes.imshow(sheet, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest", aspect="auto")
        dress(axes, title=title, grid=False)
        across = (sheet.shape[1] - pictures.shape[2]) / max(columns - 1, 1)
        axes.set_xticks(
            [(pictures.shape[2] - 1) / 2 + k * across for k in range(len(column_labels))],
            list(column_labels),
            rotation=90.0 if upright else 0.0,
        )
        axes.xaxis.tick_top()
        step = (sheet.shape[0] - pictures.shape[1]) / max(lines - 1, 1)
        axes.set_yticks([(pictures.shape[1] - 1) / 2 + k * step for k in range(len(row_labels))], list(row_labels))
        axes.tick_params(length=0, labelsize=12.0)
        axes.spines[:].set_visible(False)
    return figure


def scatter(
    x: Tensor | Mapping[str, Tensor],
    reference: Tensor | None = None,
    *,
    title: str = "",
    reference_label: str = "held-out data",
) -> Figure:
    """Return points in the plane, one panel for each set, in front of the reference in grey.

    All panels show the same square window: that of the reference (of the first set without one) and a margin. A panel
    says how many of its points lie outside.

    Args:
        x: points (N, 2), or several sets by name.
        reference: points (M, 2), drawn behind each set.
        title: text above the panel of a single unnamed set.
        reference_label: what the legend calls the reference.

    Raises:
        DTypeError, ShapeError, DomainError: not finite points of these shapes, or none.
        ConfigError: no set, or matplotlib is missing.
    """
    sets = _name_sets(x, title)
    check_text(reference_label, "reference_label")
    behind = None if reference is None else check_points(reference, "reference")
    extent = window(next(iter(sets.values())) if behind is None else behind)
    with use_style():
        figure, panels = _panels(len(sets), below=0.2 if behind is None else 0.5)
        for axes, (name, points) in zip(panels, sets.items(), strict=True):
            if behind is not None:
                axes.scatter(behind[:, 0], behind[:, 1], s=dot(len(behind)), color="#B8B8B8", linewidths=0)
            axes.scatter(points[:, 0], points[:, 1], s=dot(len(points)), color=PALETTE[0], alpha=0.75, linewidths=0)
            _frame(axes, name, points, extent)
        if behind is not None:
            shown = ((PALETTE[0], "samples"), ("#B8B8B8", reference_label))
            keys = [panels[0].scatter([], [], s=45.0, color=color, label=label) for color, label in shown]
            figure.legend(handles=keys, loc="outside lower center", ncols=2, handletextpad=0.2)
    return figure


def density(
    x: Tensor | Mapping[str, Tensor],
    reference: Tensor | None = None,
    *,
    bins: int | None = None,
    title: str = "",
) -> Figure:
    """Return the density of points in the plane as a histogram, one panel for each set, on one colour scale.

    The colour is probability per unit of area; a point outside the window counts towards the total of one.

    Args:
        x: points (N, 2), or several sets by name.
        reference: points (M, 2) that fix the window; they get no panel of their own.
        bins: cells along each axis; by default 1.6 N^0.4 of the smallest set, from 16 to 128.
        title: text above the panel of a single unnamed set.

    Raises:
        DTypeError, ShapeError, DomainError: not finite points of these shapes, or none; bins < 2.
        ConfigError: no set, or matplotlib is missing.
    """
    sets = _name_sets(x, title)
    smallest = min(len(points) for points in sets.values())
    cells = check_integer(min(max(round(1.6 * smallest**0.4), 16), 128) if bins is None else bins, "bins", 2)
    extent = window(next(iter(sets.values())) if reference is None else check_points(reference, "reference"))
    left, right, bottom, top = extent
    area = (right - left) * (top - bottom) / cells**2
    maps = {
        name: np.histogram2d(points[:, 0], points[:, 1], bins=cells, range=[[left, right], [bottom, top]])[0].T
        / (len(points) * area)
        for name, points in sets.items()
    }
    with use_style():
        figure, panels = _panels(len(sets), right=1.0, below=0.0)
        highest = max(float(values.max()) for values in maps.values()) or 1.0
        for axes, (name, values) in zip(panels, maps.items(), strict=True):
            picture = axes.imshow(
                values, origin="lower", extent=extent, cmap="cividis", vmin=0.0, vmax=highest, interpolation="nearest"
            )
            _frame(axes, name, sets[name], extent)
            axes.grid(visible=False)
        bar = figure.colorbar(picture, ax=panels, aspect=18.0, pad=0.02)
        bar.set_label("probability per unit area")
        bar.ax.tick_params(color=INK, labelcolor=INK, labelsize=10.0)
    return figure


def check_images(images: object, name: str, low: float, high: float) -> Array:
    """Return images (N, C, H, W) as an array (N, H, W, C) of values in [0, 1]."""
    pictures = check_samples(images, name)
    if pictures.ndim != 4 or pictures.shape[1] not in (1, 3) or pictures.numel() == 0:
        raise ShapeError(
            f"{name} must have shape (N, 1, H, W) or (N, 3, H, W), got {tuple(pictures.shape)}; "
            "add a channel with images[:, None] or take three of them"
        )
    low = check_number(low, "low")
    if check_number(high, "high") <= low:
        raise DomainError(f"high must be above low = {low}, got {high}")
    shown = pictures.detach().to("cpu").double().permute(0, 2, 3, 1)
    return ((shown - low) / (high - low)).clamp(0.0, 1.0).numpy()


def check_points(points: object, name: str) -> Array:
    """Return points (N, 2) as an array; ShapeError if they are not in the plane or there is none."""
    plane = check_samples(points, name)
    if plane.ndim != 2 or plane.shape[1] != 2 or plane.shape[0] == 0:
        raise ShapeError(f"{name} must have shape (N, 2), got {tuple(plane.shape)}; choose two coordinates")
    return plane.detach().to("cpu").double().numpy()


def enlarge(pictures: Array) -> Array:
    """Return pictures (N, H, W, C) interpolated cubically to at least 64 pixels a side."""
    factor = max(1, math.ceil(64 / min(pictures.shape[1:3])))
    planes = torch.as_tensor(pictures, device="cpu").permute(0, 3, 1, 2)
    larger = torch.nn.functional.interpolate(planes, scale_factor=factor, mode="bicubic", align_corners=False)
    result: Array = larger.clamp(0.0, 1.0).permute(0, 2, 3, 1).numpy()
    return result


def mosaic(pictures: Array, lines: int, columns: int) -> Array:
    """Return pictures (N, H, W, C) in rows and columns on white paper, an eighth of a picture's height apart."""
    _, tall, wide, channels = pictures.shape
    gap = max(1, tall // 8)
    sheet = np.ones((lines * (tall + gap) - gap, columns * (wide + gap) - gap, channels))
    for k, picture in enumerate(pictures):
        top, left = (k // columns) * (tall + gap), (k % columns) * (wide + gap)
        sheet[top : top + tall, left : left + wide] = picture
    return sheet[..., 0] if channels == 1 else sheet


def window(points: Array) -> tuple[float, float, float, float]:
    """Return a square (left, right, bottom, top) around all points with a margin of a tenth on each side."""
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    half = 0.6 * float(np.ptp(points, axis=0).max()) or 1.0
    return middle[0] - half, middle[0] + half, middle[1] - half, middle[1] + half


def dot(count: int) -> float:
    """Return the area of a dot, in squared points, at which ``count`` of them still show a shape."""
    return min(30.0, max(2.0, 9000.0 / count))


def _name_sets(x: Tensor | Mapping[str, Tensor], title: str) -> dict[str, Array]:
    """Return the sets of points by name."""
    if isinstance(x, Mapping):
        if not x:
            raise ConfigError("x must hold at least one set of points, got an empty mapping")
        return {name: check_points(points, f"x[{name!r}]") for name, points in x.items()}
    return {check_text(title, "title"): check_points(x, "x")}


def _panels(count: int, *, right: float = 0.3, below: float = 0.5) -> tuple[Figure, list[Axes]]:
    """Return a figure with ``count`` square panels, at most three in a row, and inches of room beside and below."""
    columns = count if count <= 3 else math.ceil(count / math.ceil(count / 3))
    lines = math.ceil(count / columns)
    size = 4.6 if count == 1 else 3.3
    figure = new_figure(size * columns + right, (size + 0.1) * lines + below, square=True)
    return figure, [figure.add_subplot(lines, columns, k + 1) for k in range(count)]


def _frame(axes: Axes, name: str, points: Array, extent: tuple[float, float, float, float]) -> None:
    """Fix the window of a panel, label it, and say how many points lie outside."""
    left, right, bottom, top = extent
    grid = axes.get_subplotspec()
    lowest = grid is None or grid.is_last_row()
    first = grid is None or grid.is_first_col()
    dress(axes, title=name, xlabel="$x_1$ (data units)" if lowest else "", ylabel="$x_2$ (data units)" if first else "")
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    outside = int(np.sum((points < (left, bottom)).any(axis=1) | (points > (right, top)).any(axis=1)))
    if outside:
        paper = {"facecolor": PAPER, "alpha": 0.85, "linewidth": 0, "pad": 2.0}
        text = f"{outside} of {len(points)} outside"
        axes.text(0.98, 0.02, text, transform=axes.transAxes, ha="right", va="bottom", fontsize=9.5, bbox=paper)
