r"""A toy law of time series: sinusoids with jumps.

At the times tau_l = l/L, l = 0 ... L - 1, channel c of a series is

    x_cl = sqrt(1 - s^2) [4/5 sqrt(2) sin(2 pi f tau_l + phi_c) + 3/5 e_c sgn(tau_l - J)] + s z_cl,

with f uniform on [1, 4] cycles and J uniform on [0, 1) shared by the channels, phases phi_c uniform on [0, 2 pi) and
fair signs e_c of each channel's own, z ~ N(0, I) and sgn(0) = 1. Each value has mean 0 and standard deviation 1, and

    cov(x_cl, x_cm) = (1 - s^2) [16/25 E cos(2 pi f d) + 9/25 (1 - 2 |d|)] + s^2 [l = m],        d = tau_l - tau_m,
    E cos(2 pi f d) = (sin(8 pi d) - sin(2 pi d))/(6 pi d).

Channels are uncorrelated and yet dependent: they share their frequency and the time of their jump.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.errors.values import check_integer, check_number
from scoresde.noise import integers, normal, stream, uniform

__all__ = ["time_series"]


def time_series(n: int, *, length: int = 64, channels: int = 1, seed: int = 0, noise: float = 0.05) -> Tensor:
    """Return n series (n, channels, length), float32, of sinusoids with one jump each; see the module's docstring.

    Args:
        n: number of series, at least 0.
        length: number of times, at least 1.
        channels: number of channels, at least 1.
        seed: names the series.
        noise: standard deviation s of the noise at each time, in [0, 1), in units of the data's standard deviation.

    Raises:
        DTypeError, DomainError: an argument out of range.
    """
    count, times = check_integer(n, "n", 0), check_integer(length, "length", 1)
    parts = check_integer(channels, "channels", 1)
    blur = check_number(noise, "noise", 0.0, 1.0, open_high=True)
    generator = stream(seed, "data", "time_series")
    frequency = 1.0 + 3.0 * uniform((count, 1, 1), generator)
    jump = uniform((count, 1, 1), generator)
    phase = 2.0 * math.pi * uniform((count, parts, 1), generator)
    side = 1.0 - 2.0 * integers(2, (count, parts, 1), generator).to(torch.float32)
    tau = torch.arange(times, dtype=torch.float32, device="cpu") / times
    wave = math.sqrt(2.0) * (2.0 * math.pi * frequency * tau + phase).sin()  # (n, C, L)
    step = side * (1.0 - 2.0 * (tau < jump).to(torch.float32))
    return math.sqrt(1.0 - blur**2) * (0.8 * wave + 0.6 * step) + blur * normal((count, parts, times), generator)
