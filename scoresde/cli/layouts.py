"""How an array of samples is laid out: which dimension holds the channels, if any does.

| layout | samples | read as |
|---|---|---|
| ND | (D,), or a number | vectors; points in the plane where D = 2 |
| points | (2,) | points in the plane |
| NCL, NLC, NL | (channels, length), (length, channels), (length,) | series |
| NCHW, NHWC, NHW | images with channels first, last, or in grey | images |
| NCDHW, NDHWC, NDHW | volumes likewise | volumes |

A layout that can be told from the sizes is taken, and said; one that cannot is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from torch import Tensor

from scoresde.errors.kinds import ConfigError
from scoresde.errors.names import unknown

__all__ = ["LAYOUTS", "Kind", "Layout", "find_layout"]

Kind = Literal["points", "vectors", "series", "images", "volumes"]
Place = Literal["first", "last", "none"]
FEW = 4  # channels that images and volumes have at most where the sizes are to tell them
LONG = 4  # times as long as it has channels a series is at least, likewise


@dataclass(frozen=True)
class Layout:
    """A layout by name.

    Args:
        name: a letter for each dimension of the array.
        kind: of the samples; "vectors" may turn out to be points.
        channels: where they are; "none" where a sample has one channel and no dimension for it.
    """

    name: str
    kind: Kind
    channels: Place

    @property
    def dimensions(self) -> int:
        """Of an array of samples."""
        return 2 if self.kind in ("points", "vectors") else len(self.name)

    def read(self, x: Tensor) -> Tensor:
        """Return samples (N, *) with their channels first: a view."""
        if self.kind in ("points", "vectors"):
            return x[:, None] if x.ndim == 1 else x
        if self.channels == "none":
            return x[:, None]
        return x.movedim(-1, 1) if self.channels == "last" else x

    def write(self, x: Tensor) -> Tensor:
        """Return samples with their channels first as the data had them; the inverse of ``read`` but for vectors."""
        if self.channels == "none":
            return x[:, 0]
        return x.movedim(1, -1) if self.channels == "last" else x

    def describe(self, event: Sequence[int]) -> str:
        """Say what the samples are, whose channels come first."""
        sizes = " x ".join(map(str, event))
        if self.kind == "series":
            return f"series, {event[0]} channel{'s' * (event[0] > 1)}, length {event[1]}"
        if self.kind == "points" or (self.kind == "vectors" and tuple(event) == (2,)):
            return "points in the plane"
        return f"vectors of {sizes}" if self.kind == "vectors" else f"{self.kind} {sizes}"


LAYOUTS: Final = {
    one.name: one
    for one in (
        Layout("ND", "vectors", "first"),
        Layout("points", "points", "first"),
        Layout("NCL", "series", "first"),
        Layout("NLC", "series", "last"),
        Layout("NL", "series", "none"),
        Layout("NCHW", "images", "first"),
        Layout("NHWC", "images", "last"),
        Layout("NHW", "images", "none"),
        Layout("NCDHW", "volumes", "first"),
        Layout("NDHWC", "volumes", "last"),
        Layout("NDHW", "volumes", "none"),
    )
}


def find_layout(shape: Sequence[int], name: str, asked: str | None, *, pixels: bool) -> Layout:
    """Return the layout of an array of samples.

    Args:
        shape: of the array, (N, *).
        name: of the array, for messages.
        asked: the layout's name, or None to tell it from the sizes.
        pixels: whether the numbers are bytes, as pixels are.

    Raises:
        ConfigError: an unknown name, a layout of other dimensions, one that the sizes do not tell, or samples that no
            built-in network takes.
    """
    event = tuple(shape[1:])
    if asked is not None:
        if asked not in LAYOUTS:
            raise unknown("layout", asked, LAYOUTS, parameter="layout")
        chosen = LAYOUTS[asked]
        fits = len(shape) == chosen.dimensions or (len(shape) == 1 and asked == "ND")
        if not fits or (asked == "points" and event != (2,)):
            same = [one for one in LAYOUTS.values() if one.dimensions == max(2, len(shape))]
            able = [one.name for one in same if one.kind != "points" or event == (2,)] or ["none"]
            raise ConfigError(
                f"--layout {asked} does not fit {name} of shape {tuple(shape)}",
                parameter="layout",
                got=asked,
                allowed=tuple(able),
                cure=f"those that do: {', '.join(able)}",
            )
        return chosen
    if len(shape) <= 2:
        return LAYOUTS["ND"]
    if len(shape) > 5:
        raise ConfigError(
            f"{name} holds samples of shape {event}, which no built-in network takes: there is one for vectors (D,), "
            "series (channels, length), images (channels, height, width), volumes (channels, depth, height, width); "
            "reshape them, or train a network of your own with scoresde.fit"
        )
    guess = _tell_series(event, pixels=pixels) if len(event) == 2 else _tell_channels(event)
    if guess is None:
        ways = [f"{one.name} ({one.describe(_move(event, one))})" for one in LAYOUTS.values() if _fits(one, shape)]
        raise ConfigError(
            f"{name} holds samples of shape {event}, whose sizes do not tell what they are",
            parameter="layout",
            allowed=tuple(way.partition(" ")[0] for way in ways),
            cure=f"say it with --layout: {', '.join(ways)}",
        )
    return LAYOUTS[guess]


def _tell_series(event: tuple[int, ...], *, pixels: bool) -> str | None:
    """Return the layout of samples with two dimensions: bytes in a rectangle are grey pixels, a long side is time."""
    a, b = event
    if pixels and min(a, b) >= 2 * FEW and max(a, b) < LONG * min(a, b):
        return "NHW"
    if a == 1 or LONG * a <= b:
        return "NCL"
    return "NLC" if b == 1 or LONG * b <= a else None


def _tell_channels(event: tuple[int, ...]) -> str | None:
    """Return the layout of images or volumes: equal sides are space, and else few places are channels."""
    first, last = ("NCHW", "NHWC") if len(event) == 3 else ("NCDHW", "NDHWC")
    leads, trails = len(set(event[1:])) == 1, len(set(event[:-1])) == 1
    if leads != trails:
        return first if leads else last
    if (event[0] <= FEW) != (event[-1] <= FEW):
        return first if event[0] <= FEW else last
    return None


def _fits(one: Layout, shape: Sequence[int]) -> bool:
    return one.dimensions == len(shape) and one.kind not in ("points", "vectors")


def _move(event: tuple[int, ...], one: Layout) -> tuple[int, ...]:
    """Return the sizes of a sample with its channels first."""
    if one.channels == "none":
        return (1, *event)
    return (event[-1], *event[:-1]) if one.channels == "last" else event
