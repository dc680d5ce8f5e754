"""Toy densities in the plane.

A toy density is b, a random point of the shape with mean 0 and standard deviation 1 in *each* coordinate (the means
and deviations below are exact integrals, not estimates), blurred by Gaussian noise of standard deviation s:

    x = sqrt(1 - s^2) b + s z,    z ~ N(0, I),

so that x too has mean 0 and standard deviation 1 in each coordinate, for every s in [0, 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Protocol

import torch
from torch import Generator, Tensor

from scoresde.errors.values import check_integer, check_number
from scoresde.noise import integers, normal, stream, uniform

__all__ = [
    "DATASETS",
    "ToyDensity",
    "checkerboard",
    "eight_gaussians",
    "moons",
    "pinwheel",
    "swiss_roll",
    "two_spirals",
]


class ToyDensity(Protocol):
    """A function that draws n points of a density: f(n, seed=...) -> (n, 2)."""

    def __call__(self, n: int, *, seed: int = 0) -> Tensor:
        """Return n points (n, 2), float32."""
        ...


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
    return _blur(shape / torch.tensor(variances, dtype=torch.float32, device="cpu").sqrt(), noise, generator)


def eight_gaussians(n: int, *, seed: int = 0, noise: float = 0.1) -> Tensor:
    """Return n points (n, 2) of eight equally likely Gaussians on a circle.

    The shape is b = sqrt(2) (cos(k pi/4), sin(k pi/4)), k uniform on 0..7; the point is sqrt(1 - noise^2) b + noise z,
    a mixture with modes of standard deviation ``noise`` at radius sqrt(2 - 2 noise^2).
    Arguments and errors as for ``swiss_roll``.
    """
    generator, n, noise = _start("eight_gaussians", n, seed, noise)
    angle = integers(8, (n,), generator).to(torch.float32) * (math.pi / 4.0)
    return _blur(math.sqrt(2.0) * torch.stack([angle.cos(), angle.sin()], dim=1), noise, generator)


def moons(n: int, *, seed: int = 0, noise: float = 0.1) -> Tensor:
    """Return n points (n, 2) of two interleaved half circles, each coordinate scaled to standard deviation 1.

    With a uniform on [0, pi], and each with probability 1/2, the unscaled point (u, v) is (cos a, sin a) or
    (1 - cos a, 1/2 - sin a). The shape is b = ((u - 1/2)/c_1, (v - 1/4)/c_2), c_1^2 = 3/4, c_2^2 = 9/16 - 1/pi.
    The point is sqrt(1 - noise^2) b + noise z.
    Arguments and errors as for ``swiss_roll``.
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
    Arguments and errors as for ``swiss_roll``; ``noise`` 0 keeps the edges sharp.
    """
    generator, n, noise = _start("checkerboard", n, seed, noise)
    column = integers(4, (n,), generator)
    row = 2 * integers(2, (n,), generator) + column % 2
    corner = torch.stack([column, row], dim=1).to(torch.float32)
    return _blur(math.sqrt(3.0) * ((corner + uniform((n, 2), generator)) / 2.0 - 1.0), noise, generator)


def pinwheel(n: int, *, seed: int = 0, noise: float = 0.0) -> Tensor:
    """Return n points (n, 2) of a wheel with five bent blades.

    With k uniform on 0..4, r ~ N(1, 0.3^2), w ~ N(0, 0.1^2) and the angle a = 2 pi k/5 + exp(r)/4, the shape is
    b = (r (cos a, sin a) + w (-sin a, cos a))/c: a blade k turned further the further out it is. The five-fold symmetry
    makes its mean 0 and its variances equal, c^2 = (1 + 0.3^2 + 0.1^2)/2. The point is sqrt(1 - noise^2) b + noise z.
    Arguments and errors as for ``swiss_roll``; the blades have a width of their own without ``noise``.

    Source: Johnson, Duvenaud, Wiltschko, Datta, Adams (2016), Composing graphical models with neural networks for
    structured representations and fast inference, arXiv:1603.06277.
    """
    generator, n, noise = _start("pinwheel", n, seed, noise)
    across = normal((n, 2), generator)
    radius, aside = 1.0 + 0.3 * across[:, 0], 0.1 * across[:, 1]
    angle = (2.0 * math.pi / 5.0) * integers(5, (n,), generator).to(torch.float32) + radius.exp() / 4.0
    cos, sin = angle.cos(), angle.sin()
    shape = torch.stack([radius * cos - aside * sin, radius * sin + aside * cos], dim=1)
    return _blur(shape / math.sqrt(0.55), noise, generator)


def two_spirals(n: int, *, seed: int = 0, noise: float = 0.05) -> Tensor:
    """Return n points (n, 2) of two spirals of one and a half turns, one the other's mirror image through 0.

    With a = 3 pi sqrt(u), u uniform on [0, 1), and a fair sign, the shape is b = +-(a cos a/c_1, a sin a/c_2),
    c_1^2 = (9 pi^2 + 3)/4 and c_2^2 = (9 pi^2 - 3)/4. The point is sqrt(1 - noise^2) b + noise z.
    Arguments and errors as for ``swiss_roll``.

    Source: the benchmark of Lang, Witbrock (1988), with points denser towards the outside.
    """
    generator, n, noise = _start("two_spirals", n, seed, noise)
    radius = 3.0 * math.pi * uniform((n,), generator).sqrt()
    sign = 1.0 - 2.0 * integers(2, (n,), generator).to(torch.float32)
    square = 9.0 * math.pi**2
    first = sign * radius * radius.cos() / math.sqrt((square + 3.0) / 4.0)
    second = sign * radius * radius.sin() / math.sqrt((square - 3.0) / 4.0)
    return _blur(torch.stack([first, second], dim=1), noise, generator)


DATASETS: Final[Mapping[str, ToyDensity]] = {
    "swiss_roll": swiss_roll,
    "eight_gaussians": eight_gaussians,
    "moons": moons,
    "checkerboard": checkerboard,
    "pinwheel": pinwheel,
    "two_spirals": two_spirals,
}


def _start(name: str, n: int, seed: int, noise: float) -> tuple[Generator, int, float]:
    """Check the arguments of a toy density and open its stream of random numbers."""
    count = check_integer(n, "n", 0)
    blur = check_number(noise, "noise", 0.0, 1.0, open_high=True)
    return stream(seed, "data", name), count, blur


def _blur(shape: Tensor, noise: float, generator: Generator) -> Tensor:
    """Return sqrt(1 - noise^2) shape + noise z."""
    return math.sqrt(1.0 - noise**2) * shape + noise * normal(tuple(shape.shape), generator)
