"""Animations: a distribution turned into noise and back, as a GIF that loops."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from scoresde.errors.kinds import ConfigError, DataError, DomainError, ShapeError, show
from scoresde.errors.names import check_choice
from scoresde.errors.values import check_flag, check_integer, check_number, check_path, check_sequence, check_text
from scoresde.plots.samples import check_images, check_points, dot, enlarge, mosaic, window
from scoresde.plots.style import PALETTE, PAPER, dress, new_figure, use_style

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["animation"]

Array = np.ndarray[Any, np.dtype[np.float64]]

MOST_HOLD = 600.0  # seconds: a GIF counts hundredths of them in 16 bits
_LIMIT = 2_000_000  # bytes: what a page can carry
# Dots per inch and colours, tried in this order until the file is small enough.
_SHARPNESS = ((100.0, 48), (100.0, 16), (80.0, 16), (64.0, 16), (48.0, 12))


def animation(
    frames: Sequence[Tensor] | Tensor,
    path: str | Path,
    *,
    kind: Literal["images", "points"] = "points",
    captions: Sequence[str] = (),
    fps: int = 20,
    hold: float = 1.5,
    extent: tuple[float, float, float, float] | None = None,
    smooth: bool = False,
) -> Path:
    """Write frames as a GIF that loops without end, of less than 2 MB, and return its path; folders are made.

    For a forward and reverse animation give the noising frames followed by the sampling frames. A file that would be
    too large is drawn at fewer pixels.

    Args:
        frames: at least two tensors of one shape: points (N, 2), or images (N, 1, H, W) or (N, 3, H, W) in [-1, 1]. A
            state whose scale changes by much (VE) shows better divided by sqrt(alpha^2 + sigma^2).
        path: file name that ends in .gif.
        kind: "points" or "images".
        captions: text above each frame, for instance its time; one for each, or none.
        fps: frames per second, 1 to 50 (a GIF counts in hundredths of a second).
        hold: seconds for which the last frame stays, at least 0.
        extent: (left, right, bottom, top) of the window that points are seen through; by default a square around 99 %
            of each coordinate in every frame. Unused for images.
        smooth: interpolate between the pixels of images, as in ``image_grid``.

    Raises:
        DTypeError, ShapeError, DomainError: frames that are not finite or differ in shape, fps or hold out of range.
        ConfigError: another kind or file name, fewer than two frames, another number of captions than of frames, or
            matplotlib is missing.
        DataError: the smallest drawing still exceeds 2 MB.
    """
    target = check_path(path)
    check_choice("kind", kind, ("images", "points"))
    if target.suffix.lower() != ".gif":
        raise ConfigError(f"path must end in .gif, got {str(path)!r}; GIF is the only format written")
    frames = frames if isinstance(frames, Tensor) and frames.ndim else check_sequence(frames, "frames", "tensors")
    captions = [check_text(one, "captions") for one in check_sequence(captions, "captions", "texts")]
    smooth = check_flag(smooth, "smooth")
    if extent is not None:
        extent = _check_extent(extent)
    if len(frames) < 2:
        raise ConfigError(f"frames must hold at least two tensors, got {len(frames)}; an animation needs a change")
    if captions and len(captions) != len(frames):
        raise ConfigError(f"captions must be one for each of {len(frames)} frames, got {len(captions)}; or give none")
    step = round(1000 / check_integer(fps, "fps", 1, 50))
    last = step + round(1000 * check_number(hold, "hold", 0.0, MOST_HOLD))
    if kind == "points":
        arrays = [check_points(frame, f"frames[{k}]") for k, frame in enumerate(frames)]
    else:
        arrays = [check_images(frame, f"frames[{k}]", -1.0, 1.0) for k, frame in enumerate(frames)]
    for k, array in enumerate(arrays):
        if array.shape != arrays[0].shape:
            raise ShapeError(
                f"frames must have one shape, got {tuple(frames[0].shape)} and, at {k}, {tuple(frames[k].shape)}"
            )
    if extent is None and kind == "points":
        extent = _reach(arrays)
    for dpi, colors in _SHARPNESS:
        pictures = _draw(arrays, captions, dpi, extent, smooth=smooth)
        content = _encode(pictures, [step] * (len(pictures) - 1) + [last], colors)
        if len(content) < _LIMIT:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            return target
    raise DataError(
        f"{len(frames)} frames need {len(content)} bytes, the limit is {_LIMIT}; give fewer frames or samples"
    )


def _check_extent(extent: object) -> tuple[float, float, float, float]:
    given = check_sequence(extent, "extent", "left, right, bottom and top")
    if len(given) != 4:
        raise ConfigError(f"extent must be (left, right, bottom, top), got {show(extent)}")
    left, right, bottom, top = (check_number(one, f"extent[{k}]") for k, one in enumerate(given))
    if not (left < right and bottom < top):
        raise DomainError(f"extent must have left < right and bottom < top, got {show(extent)}")
    return left, right, bottom, top


def _draw(
    arrays: Sequence[Array],
    captions: Sequence[str],
    dpi: float,
    extent: tuple[float, float, float, float] | None,
    *,
    smooth: bool,
) -> list[Image]:
    """Draw every frame into one figure whose artist is updated, not made anew; points (N, 2) need an extent."""
    from PIL import Image

    with use_style():
        across, down = (1, 1) if extent is not None else _sheet(arrays[0], smooth).shape[1::-1]
        tall = 4.0 * down / across
        figure = new_figure(4.0, tall + (0.4 if captions else 0.0), dpi=dpi)
        axes = figure.add_subplot()
        dress(axes, grid=False)
        axes.set_xticks([])
        axes.set_yticks([])
        update: Callable[[Array], object]
        if extent is not None:
            dots = axes.scatter([], [], s=dot(len(arrays[0])), color=PALETTE[0], linewidths=0)
            axes.set(xlim=extent[:2], ylim=extent[2:], aspect="equal")
            update = dots.set_offsets
        else:
            sheet = axes.imshow(_sheet(arrays[0], smooth), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")

            def update(pictures: Array) -> None:
                sheet.set_data(_sheet(pictures, smooth))

        axes.spines[:].set_visible(extent is not None)
        frames = []
        for k, array in enumerate(arrays):
            update(array)
            if captions:
                axes.set_title(captions[k])
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=dpi, facecolor=PAPER, pil_kwargs={"compress_level": 0})
            frames.append(Image.open(buffer).convert("RGB"))
            figure.set_layout_engine("none")  # the first frame's layout holds, so nothing jumps between frames
    return frames


def _sheet(pictures: Array, smooth: bool) -> Array:
    """Return the mosaic of pictures (N, H, W, C), about as many rows as columns."""
    lines = math.isqrt(len(pictures))
    return mosaic(enlarge(pictures) if smooth else pictures, lines, math.ceil(len(pictures) / lines))


def _reach(arrays: Sequence[Array]) -> tuple[float, float, float, float]:
    """Return a square window around 99 % of each coordinate in every frame: tails may leave it, the shape may not."""
    ends = [np.quantile(points, (0.005, 0.995), axis=0) for points in arrays]
    return window(np.concatenate(ends))


def _encode(pictures: Sequence[Image], durations: Sequence[int], colors: int) -> bytes:
    """Return a GIF that loops for ever; the frames share one palette, made from four of them."""
    from PIL import Image

    wide, tall = pictures[0].size
    sheet = Image.new("RGB", (wide, 4 * tall))
    for place in range(4):
        sheet.paste(pictures[round(place * (len(pictures) - 1) / 3)], (0, place * tall))
    palette = sheet.quantize(colors=colors)
    entries = np.array(palette.getpalette("RGB"), dtype=np.int64).reshape(-1, 3)
    entries[entries.min(axis=1) >= 248] = 255  # the paper stays white: averaging colours would tint it
    palette.putpalette(entries.ravel().tolist())
    first, *rest = (picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures)
    buffer = io.BytesIO()
    first.save(buffer, format="GIF", save_all=True, append_images=rest, duration=list(durations), loop=0, optimize=True)
    return buffer.getvalue()
