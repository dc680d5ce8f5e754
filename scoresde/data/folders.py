"""A folder of image files, decoded with Pillow into one tensor; one bad file among many is named, not guessed at.

What is read as it is: grey, palette and RGB images of 8 bits a channel, turned as their EXIF orientation says. What
would change the data silently is bad: 16-bit images (Pillow would cut them to 8 bits), CMYK (its colours depend on a
profile), transparency (the colour behind it is unknown), animations, and files that are empty, cut or corrupt, or so
large that decoding one would fill the memory.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from torch import Tensor

from scoresde.data.images import from_bytes, needing
from scoresde.errors.kinds import DataError, DTypeError, read_integer, show
from scoresde.errors.names import check_choice
from scoresde.errors.values import check_integer, check_path

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

__all__ = ["FolderImages", "count_others", "images_from_folder"]

SUFFIXES: Final = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
CURE = "repair or remove it, or pass on_bad_image='skip'"

Size = tuple[int, int]


@dataclass(frozen=True, eq=False, kw_only=True)
class FolderImages:
    """The images of a folder.

    Args:
        images: float32 (N, C, H, W) in [-1, 1]; a byte v is v/127.5 - 1, the lattice of ``Dequantise(256)``.
        paths: the N files, sorted.
        labels: int64 (N,), the place in ``classes``.
        classes: the folders in which the images lie, relative to the one that was read ("." is that one itself).
        skipped: the bad files that were left out, each with its reason.
        others: the files that are no images by their ending, and links that lead nowhere: how many of each.
    """

    images: Tensor
    paths: tuple[Path, ...]
    labels: Tensor
    classes: tuple[str, ...]
    skipped: tuple[tuple[Path, str], ...]
    others: Mapping[str, int]


class _BadImage(Exception):
    """Why a file is not used, and what may be done beside what always may; becomes a DataError or is ``skipped``."""

    def __init__(self, why: str, cure: str = "") -> None:
        super().__init__(why)
        self.cure = cure


def images_from_folder(
    path: str | os.PathLike[str],
    size: int | Size | None = None,
    *,
    resize: Literal["crop", "stretch", "refuse"] = "crop",
    colour: bool = True,
    background: tuple[int, int, int] | None = None,
    on_bad_image: Literal["raise", "skip"] = "raise",
    max_pixels: int = 2**26,
) -> FolderImages:
    """Return the images of a folder and its subfolders, in the order of their paths; hidden files are left out.

    Links to folders are followed, each folder once. Files of other kinds are left out and counted.

    Args:
        path: the folder.
        size: (height, width) of the result, or one number for both; None if all images have one size already.
        resize: what to do with an image of another size. "crop" scales it until it covers ``size`` and cuts off what
            stands over, equally on both sides; "stretch" changes its proportions; "refuse" takes it for a bad image.
        colour: three channels, grey images in all of them; False for one channel of luma (ITU-R 601).
        background: colour 0..255 behind transparent places; None takes an image with such places for a bad one.
        on_bad_image: "raise", or "skip" it and list it in ``skipped``.
        max_pixels: an image with more pixels is bad; it is not decoded.

    Raises:
        DataError: no such folder, no images in it, images of different sizes (with their counts) and no ``size``; a
            bad image, with its place, path and reason; only bad images.
        ConfigError: an unknown ``resize`` or ``on_bad_image``, or Pillow is missing.
        DTypeError, DomainError: no path, or bad numbers.
    """
    folder, wanted = check_path(path), _check_size(size)
    check_choice("resize", resize, ("crop", "stretch", "refuse"))
    check_choice("on_bad_image", on_bad_image, ("raise", "skip"))
    limit = check_integer(max_pixels, "max_pixels", 1)
    behind = None if background is None else _check_colour(background)
    with needing("image folders", "Pillow"):
        import PIL.Image  # noqa: F401 only looked for: the helpers below import what they use
    files, others = _list(folder)
    pixels: list[Tensor] = []
    kept: list[Path] = []
    skipped: list[tuple[Path, str]] = []
    for index, file in enumerate(files):
        try:
            picture = _read(file, limit, colour, behind)
            pixels.append(torch.from_numpy(np.array(picture if wanted is None else _fit(picture, wanted, resize))))
            kept.append(file)
        except _BadImage as bad:
            if on_bad_image == "raise":
                raise DataError(
                    f"image {index} of {len(files)}, {file}, {bad}",
                    parameter="on_bad_image",
                    got="raise",
                    cure=bad.cure + CURE,
                ) from bad
            skipped.append((file, str(bad)))
        if pixels and pixels[-1].shape != pixels[0].shape:
            raise _explain_sizes(folder, files)
    if not pixels:
        raise DataError(
            f"none of the {len(files)} images in {folder} can be used; the first, {skipped[0][0]}, {skipped[0][1]}"
        )
    images = torch.empty(len(pixels), 3 if colour else 1, *pixels[0].shape[:2], dtype=torch.float32, device="cpu")
    for out, one in zip(images, pixels, strict=True):
        out.copy_(from_bytes(one.reshape(*one.shape[:2], -1).permute(2, 0, 1)))
    homes = [file.parent.relative_to(folder).as_posix() for file in kept]
    classes = tuple(sorted(set(homes)))
    return FolderImages(
        images=images,
        paths=tuple(kept),
        labels=torch.tensor([classes.index(home) for home in homes], dtype=torch.int64, device="cpu"),
        classes=classes,
        skipped=tuple(skipped),
        others=others,
    )


def _check_size(size: int | Size | None) -> Size | None:
    if size is None:
        return None
    side = read_integer(size)
    both = (side, side) if side is not None else _check_integers(size, "size", "an integer or (height, width)", 2)
    height, width = both
    return check_integer(height, "size", 1), check_integer(width, "size", 1)


def _check_colour(colour: object) -> tuple[int, int, int]:
    parts = _check_integers(colour, "background", "three integers", 3)
    red, green, blue = (check_integer(part, "background", 0, 255) for part in parts)
    return red, green, blue


def _check_integers(value: object, name: str, form: str, count: int) -> Sequence[Any]:
    """Return a sequence of the given length; the caller checks what is in it."""
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != count:
        raise DTypeError(f"{name} must be {form}, got {show(value)}")
    return value


def _list(folder: Path) -> tuple[list[Path], dict[str, int]]:
    """Return the image files of a folder and its subfolders, sorted, and how many others there are of each ending."""
    if not folder.is_dir():
        what = "is a single file" if folder.exists() else "does not exist"
        raise DataError(f"the image folder {folder} {what}; give a folder that holds {', '.join(SUFFIXES)} files")
    files: list[Path] = []
    others: Counter[str] = Counter()
    seen: set[Path] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = Path(place).resolve()
        if real in seen:  # a link led here before
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in sorted(folders) if not name.startswith(".")]
        for file in (Path(place, name) for name in names if not name.startswith(".")):
            if not file.is_file():
                others["broken links" if file.is_symlink() else "no files"] += 1
            elif file.suffix.lower() in SUFFIXES:
                files.append(file)
            else:
                others[file.suffix.lower() or "without an ending"] += 1
    if not files:
        found = f", found {count_others(others)}" if others else ""
        raise DataError(
            f"the image folder {folder} holds no images; looked for {', '.join(SUFFIXES)} in it and below{found}"
        )
    return sorted(files), dict(sorted(others.items()))


def count_others(others: Mapping[str, int]) -> str:
    """Say how many files there are of each ending."""
    return ", ".join(f"{count} {ending}" for ending, count in others.items())


def _open(file: Path, limit: int) -> ImageFile:
    """Open a file and check what its header says, without decoding it."""
    import PIL.Image

    try:
        with warnings.catch_warnings():
            # Pillow warns of images that are larger than a limit of its own; max_pixels is ours.
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            picture = PIL.Image.open(file)
    except PIL.Image.DecompressionBombError as error:
        raise _BadImage(f"has more pixels than Pillow opens ({error}); scale it down") from error
    width, height = picture.size
    if width * height > limit:
        picture.close()
        raise _BadImage(f"has {width} x {height} pixels, above max_pixels={limit}")
    return picture


def _read(file: Path, limit: int, colour: bool, behind: tuple[int, int, int] | None) -> Image:
    """Decode a file to RGB, or to grey without ``colour``."""
    import PIL.Image
    from PIL import ImageOps

    try:
        if file.stat().st_size == 0:
            raise _BadImage("is empty (0 bytes)")
        with _open(file, limit) as picture:
            # A camera's MPO holds a preview beside the photograph, which comes first.
            if getattr(picture, "is_animated", False) and picture.format != "MPO":
                raise _BadImage("has several frames; save each as a file of its own")
            if _is_deep(picture):
                raise _BadImage("has 16 or more bits a channel, which 8 would cut; save it with 8, or as a NumPy array")
            if picture.mode not in ("1", "L", "P", "RGB", "LA", "PA", "RGBA"):
                raise _BadImage(f"has colours of mode {picture.mode}, which are not RGB; convert it to RGB")
            picture.load()
            turned = ImageOps.exif_transpose(picture)
            if turned.has_transparency_data:
                layers = turned.convert("RGBA")
                if layers.getchannel("A").getextrema() != (255, 255):
                    if behind is None:
                        raise _BadImage("is transparent in places", "flatten it, or pass background=(255, 255, 255); ")
                    layers = PIL.Image.alpha_composite(PIL.Image.new("RGBA", layers.size, (*behind, 255)), layers)
                turned = layers
            return turned.convert("RGB").convert("RGB" if colour else "L")
    except _BadImage:
        raise
    except Exception as error:  # a decoder lets through whatever its parser raises
        raise _BadImage(f"cannot be read ({type(error).__name__}: {error})") from error


def _is_deep(picture: ImageFile) -> bool:
    """Return whether a file has more than 8 bits a channel; Pillow cuts some such files to 8 and still says RGB."""
    stored = " ".join([picture.mode, *(str(tile) for tile in picture.tile)])
    # The decoder of PPM files is told their largest value.
    parts = [part for tile in picture.tile if isinstance(tile.args, tuple) for part in tile.args]
    largest = max((part for part in parts if isinstance(part, int)), default=0) if picture.format == "PPM" else 0
    return picture.mode in ("I", "F") or ";16" in stored or largest > 255


def _fit(picture: Image, size: Size, resize: str) -> Image:
    """Bring an image to (height, width)."""
    from PIL import ImageOps
    from PIL.Image import Resampling

    height, width = size
    if picture.size == (width, height):
        return picture
    if resize == "refuse":
        raise _BadImage(
            f"has {picture.height} x {picture.width} pixels, size asks for {height} x {width}; "
            "resize='crop' or 'stretch' changes it"
        )
    if resize == "crop":
        return ImageOps.fit(picture, (width, height), Resampling.LANCZOS)
    return picture.resize((width, height), Resampling.LANCZOS)


def _explain_sizes(folder: Path, files: Sequence[Path]) -> DataError:
    """Build the error for images of several sizes, counted from the headers, the most frequent first."""
    counts: Counter[Size] = Counter()
    for file in files:
        try:
            with _open(file, 2**62) as picture:
                turned = picture.getexif().get(0x0112, 1) >= 5  # EXIF orientations that swap the sides
                counts[picture.size if turned else picture.size[::-1]] += 1
        except Exception:  # a bad image has no size to count
            continue
    common = [f"{number} of {height} x {width}" for (height, width), number in counts.most_common(5)]
    more = f" and {len(counts) - 5} sizes more" if len(counts) > 5 else ""
    first = counts.most_common(1)[0][0]
    return DataError(
        f"the images in {folder} have {len(counts)} sizes (height x width): {', '.join(common)}{more}",
        parameter="size",
        cure=f"pass size=, e.g. size={first}, with resize='crop' or 'stretch', or resize='refuse' with "
        "on_bad_image='skip'",
    )
