"""Make the PNG files of docs/images small, where nothing that one sees is lost.

A picture is written anew without transparency, with a palette where its colours allow it: all of them if there are 256
at most, and otherwise the 256 that are nearest to its own, if no more than one pixel in a thousand moves by more than
``SEEN`` of 255 levels. The new file is kept if it is smaller by a twentieth. Animations stay as they are:
``scoresde.plots.animation`` and the examples write them with one palette and only what changes between frames.

    python tools/small_images.py              say what could be saved; exit code 1 if a file is above the limit
    python tools/small_images.py --record     write the files
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
LIMIT = 1_000_000  # bytes of one image
SEEN = 16  # levels of a channel


def flatten(picture: Image.Image) -> Image.Image:
    """Return the picture in RGB, on white where it is transparent."""
    whole = picture.convert("RGBA")
    paper = Image.new("RGBA", whole.size, "white")
    return Image.alpha_composite(paper, whole).convert("RGB")


def reduce(picture: Image.Image) -> Image.Image | None:
    """Return the picture with a palette, or None where a palette would be seen."""
    pixels = np.asarray(picture)
    if picture.getcolors(256):  # a palette of them all: Pillow's own quantisation moves some, white among them
        colours, place = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
        exact = Image.fromarray(place.reshape(pixels.shape[:2]).astype(np.uint8)).convert("P")
        exact.putpalette(colours.ravel().tolist())
        return exact
    # What median cut chose, moved to the means of what falls to it.
    with_palette = picture.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=2, dither=Image.Dither.NONE)
    moved = np.abs(np.asarray(with_palette.convert("RGB"), dtype=np.int16) - pixels).max(axis=-1)
    return with_palette if np.mean(moved > SEEN) <= 1e-3 else None


def shrink(content: bytes) -> bytes:
    """Return the smallest of the file's content, of its pixels written anew, and of these with a palette."""
    picture = flatten(Image.open(io.BytesIO(content)))
    found = [content]
    for one in (picture, reduce(picture)):
        if one is not None:
            buffer = io.BytesIO()
            one.save(buffer, format="PNG", optimize=True)
            found.append(buffer.getvalue())
    best = min(found, key=len)
    return best if len(best) < 0.95 * len(content) else content


def main(arguments: list[str]) -> int:
    """Print what each file takes and could take; write it with --record. Return 1 where one stays above the limit."""
    if arguments not in ([], ["--record"]):
        print(__doc__)
        return 2
    before = after = 0
    too_large = []
    for file in sorted(IMAGES.iterdir()):
        content = file.read_bytes()
        small = shrink(content) if file.suffix == ".png" else content
        before, after = before + len(content), after + len(small)
        if small is not content:
            print(f"{file.name}: {len(content)} to {len(small)} bytes")
            if arguments:
                file.write_bytes(small)
        left = small if arguments else content
        if len(left) > LIMIT:
            too_large.append(f"{file.name}: {len(left)} bytes, the limit is {LIMIT}")
    print(f"{before} to {after} bytes in all")
    print("\n".join(too_large))
    return bool(too_large)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
