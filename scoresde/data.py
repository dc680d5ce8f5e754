"""Data to learn from: four toy densities in the plane, and real handwritten digits.

A toy density is b, a random point of the shape with mean 0 and standard deviation 1 in *each* coordinate (the means
and deviations below are exact integrals, not estimates), blurred by Gaussian noise of standard deviation s:

    x = sqrt(1 - s^2) b + s z,    z ~ N(0, I),

so that x too has mean 0 and standard deviation 1 in each coordinate, for every s in [0, 1). Each function returns
float32 points (n, 2), the same for the same seed, and touches no global random state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import torch
from torch import Generator, Tensor

from scoresde.errors import ConfigError, check_integer, check_number, unknown
from scoresde.noise import integers, normal, stream, uniform

__all__ = [
    "DATASETS",
    "LabelledImages",
    "ToyDensity",
    "checkerboard",
    "digits",
    "eight_gaussians",
    "moons",
    "swiss_roll",
]


class ToyDensity(Protocol):
    """A function that draws n points of a density: f(n, seed=...) -> (n, 2)."""

    def __call__(self, n: int, *, seed: int = 0) -> Tensor:
        """Return n points (n, 2), float32."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelledImages:
    """Images with their class labels.

    Args:
        images: float32 (N, C, H, W) in [-1, 1].
        labels: int64 (N,).
        levels: number of distinct pixel values; they lie at -1 + 2 k / (levels - 1), k = 0..levels-1.
    """

    images: Tensor
    labels: Tensor
    levels: int


def swiss_roll(n: int, *, seed: int = 0, noise: float = 0.05) -> Tensor:
    """Return n points (n, 2) of a spiral of one and a half turns.

    With r uniform on [3 pi/2, 9 pi/2] the shape is b = ((r cos r - 2)/c_1, (r sin r - 2/(3 pi))/c_2), where
    c_1^2 = 39 pi^2/8 - 17/4 and c_2^2 = 39 pi^2/8 + 1/4 - 4/(9 pi^2) are the variances of r cos r and r sin r.
    The point is sqrt(1 - noise^2) b + noise z.

    Args:
        n: number of points, at least 0.
        seed: names the points.
        noise: standard deviation of the blur, in [0, 1), in units of the data's standard deviation.

    Raises:
        DTypeError, DomainError: n, seed or noise out of range.

    Source: the planar section of the roll of Marsland (2009), which scikit-learn draws.
    """
    generator, n, noise = _start("swiss_roll", n, seed, noise)
    radius = 1.5 * math.pi * (1.0 + 2.0 * uniform((n,), generator))
    shape = torch.stack([radius * radius.cos() - 2.0, radius * radius.sin() - 2.0 / (3.0 * math.pi)], dim=1)
    common = 39.0 * math.pi**2 / 8.0
    variances = (common - 17.0 / 4.0, common + 1.0 / 4.0 - 4.0 / (9.0 * math.pi**2))
    return _blur(shape / torch.tensor(variances).sqrt(), noise, generator)


def eight_gaussians(n: int, *, seed: int = 0, noise: float = 0.1) -> Tensor:
    """Return n points (n, 2) of eight equally likely Gaussians on a circle.

    The shape is b = sqrt(2) (cos(k pi/4), sin(k pi/4)), k uniform on 0..7; the point is sqrt(1 - noise^2) b + noise z,
    a mixture with modes of standard deviation ``noise`` at radius sqrt(2 - 2 noise^2).

    Args:
        n: number of points, at least 0.
        seed: names the points.
        noise: standard deviation of each Gaussian, in [0, 1).

    Raises:
        DTypeError, DomainError: n, seed or noise out of range.
    """
    generator, n, noise = _start("eight_gaussians", n, seed, noise)
    angle = integers(8, (n,), generator).to(torch.float32) * (math.pi / 4.0)
    return _blur(math.sqrt(2.0) * torch.stack([angle.cos(), angle.sin()], dim=1), noise, generator)


def moons(n: int, *, seed: int = 0, noise: float = 0.1) -> Tensor:
    """Return n points (n, 2) of two interleaved half circles, each coordinate scaled to standard deviation 1.

    With a uniform on [0, pi], and each with probability 1/2, the unscaled point (u, v) is (cos a, sin a) or
    (1 - cos a, 1/2 - sin a). The shape is b = ((u - 1/2)/c_1, (v - 1/4)/c_2), c_1^2 = 3/4, c_2^2 = 9/16 - 1/pi.
    The point is sqrt(1 - noise^2) b + noise z.

    Args:
        n: number of points, at least 0.
        seed: names the points.
        noise: standard deviation of the blur, in [0, 1), in units of the data's standard deviation.

    Raises:
        DTypeError, DomainError: n, seed or noise out of range.
    """
    generator, n, noise = _start("moons", n, seed, noise)
    angle = math.pi * uniform((n,), generator)
    lower = integers(2, (n,), generator).to(torch.bool)
    first = torch.where(lower, 1.0 - angle.cos(), angle.cos())
    second = torch.where(lower, 0.5 - angle.sin(), angle.sin())
    scale_x, scale_y = math.sqrt(3.0 / 4.0), math.sqrt(9.0 / 16.0 - 1.0 / math.pi)
    return _blur(torch.stack([(first - 0.5) / scale_x, (second - 0.25) / scale_y], dim=1), noise, generator)


def checkerboard(n: int, *, seed: int = 0, noise: float = 0.0) -> Tensor:
    """Return n points (n, 2), uniform on the eight dark cells of a board of four by four cells.

    Cell (i, j), i and j in 0..3, is dark where i + j is even; b is uniform on the dark cells of [-sqrt(3), sqrt(3)]^2,
    so that each coordinate alone is uniform with variance 1 (and the two have correlation 3/16).
    The point is sqrt(1 - noise^2) b + noise z.

    Args:
        n: number of points, at least 0.
        seed: names the points.
        noise: standard deviation of the blur, in [0, 1); 0 keeps the edges sharp.

    Raises:
        DTypeError, DomainError: n, seed or noise out of range.
    """
    generator, n, noise = _start("checkerboard", n, seed, noise)
    column = integers(4, (n,), generator)
    row = 2 * integers(2, (n,), generator) + column % 2
    corner = torch.stack([column, row], dim=1).to(torch.float32)
    return _blur(math.sqrt(3.0) * ((corner + uniform((n, 2), generator)) / 2.0 - 1.0), noise, generator)


def digits(split: Literal["train", "test"] = "train") -> LabelledImages:
    """Return the handwritten digits that come with scikit-learn: 1437 training or 360 test images of 8x8 pixels.

    A pixel v in 0..16 becomes v/8 - 1 in [-1, 1]: 17 levels. The split is fixed and draws no random number: images are
    ordered by label (within a label as they come) and every fifth of them is a test image, so that each class has its
    share to within one image. Nothing is downloaded.

    Args:
        split: "train" or "test".

    Raises:
        ConfigError: another split, or scikit-learn is missing.

    Source: Alpaydin, Kaynak (1998), Optical Recognition of Handwritten Digits, UCI; 1797 images.
    """
    if split not in ("train", "test"):
        raise unknown("split", split, ("train", "test"))
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError('digits need scikit-learn; install it with: pip install "scoresde[data]"') from error
    pixels, targets = load_digits(return_X_y=True)
    labels = torch.as_tensor(targets, dtype=torch.int64)
    images = torch.as_tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8.0 - 1.0
    test = torch.zeros(labels.shape[0], dtype=torch.bool)
    test[labels.argsort(stable=True)[::5]] = True
    chosen = test if split == "test" else ~test
    return LabelledImages(images=images[chosen], labels=labels[chosen], levels=17)


DATASETS: Final[Mapping[str, ToyDensity]] = {
    "swiss_roll": swiss_roll,
    "eight_gaussians": eight_gaussians,
    "moons": moons,
    "checkerboard": checkerboard,
}


def _start(name: str, n: int, seed: int, noise: float) -> tuple[Generator, int, float]:
    """Check the arguments of a toy density and open its stream of random numbers."""
    count = check_integer(n, "n", 0)
    blur = check_number(noise, "noise", 0.0, 1.0, open_high=True)
    return stream(seed, "data", name), count, blur


def _blur(shape: Tensor, noise: float, generator: Generator) -> Tensor:
    """Return sqrt(1 - noise^2) shape + noise z."""
    return math.sqrt(1.0 - noise**2) * shape + noise * normal(tuple(shape.shape), generator)
