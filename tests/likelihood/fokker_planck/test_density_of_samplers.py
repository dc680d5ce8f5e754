"""Samplers against the density of their SDE."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from densities import F64, DoubleWell, exact, mixture, normal
from scipy import stats
from torch import Tensor

from scoresde import (
    VPSDE,
    Densities,
    evolve_density,
    sample,
)
from scoresde.noise import SampleNoise

# ---------------------------------------------------------------------------------------------------------------------
# Samplers against the density


def p_value(states: Tensor, got: Densities, k: int) -> float:
    """Kolmogorov and Smirnov's test of states (B,) against the k-th density."""
    h = float(got.axes[0][1] - got.axes[0][0])
    edges = np.append(got.axes[0].numpy() - h / 2, float(got.axes[0][-1]) + h / 2)
    cdf = np.concatenate([[0.0], np.cumsum(got.values[k].numpy()) * h])
    return float(stats.kstest(states.numpy(), lambda x: np.interp(x, edges, cdf)).pvalue)


def agree(draw: Callable[[int, int], Tensor], got: Densities, count: int) -> None:
    """Test the states that ``draw(seed, count)`` returns, (T, B), at every time of the densities.

    Stage one at 1e-3 for all times together; on rejection a fresh seed, eight times the samples and 1e-5.
    """
    times = len(got.times)
    first = min(p_value(x, got, k) for k, x in enumerate(draw(1, count))) * times
    assert first > 1e-3 or min(p_value(x, got, k) for k, x in enumerate(draw(2, 8 * count))) * times > 1e-5


def test_the_reverse_sde_is_sampled_from_its_density() -> None:
    """Euler-Maruyama's states on the way, not only at the end."""
    sde = VPSDE()
    model = mixture(sde)
    grid = torch.linspace(1.0, 0.02, 401, dtype=F64)
    kept = [0, 200, 320, 400]
    got = evolve_density(sde.reverse(model), exact(model, 1.0), [(-6.0, 6.0, 600)], grid[kept], tolerance=3e-4)

    def draw(seed: int, count: int) -> Tensor:
        start = torch.empty(count, 1, dtype=F64)
        SampleNoise(seed).fill(start)
        edges = got.axes[0].numpy()
        cdf = np.cumsum(got.values[0].numpy()) * got.volume
        start = torch.from_numpy(np.interp(torch.special.ndtr(start).numpy(), cdf, edges + got.volume / 2))
        result = sample(
            model,
            x_init=start,
            solver="euler_maruyama",
            times=grid,
            seed=seed,
            final="sample",
            trajectory=True,
            full_output=True,
        )
        return result.trajectory[kept, :, 0]

    agree(draw, got, 3000)


def test_an_sde_of_ones_own_is_simulated_from_its_density() -> None:
    """A double well, forward from a narrow start, by Euler and Maruyama's steps written here."""
    sde = DoubleWell()
    step, count = 0.0025, 400
    times = torch.tensor([1e-5, 100 * step, count * step], dtype=F64)
    start = normal(torch.tensor([0.2], dtype=F64), torch.tensor([[0.04]], dtype=F64))
    got = evolve_density(sde, start, [(-3.0, 3.0, 300)], times, tolerance=3e-4)

    def draw(seed: int, n: int) -> Tensor:
        noise = SampleNoise(seed)
        z = torch.empty(n, 1, dtype=F64)
        noise.fill(z)
        x, kept = 0.2 + 0.2 * z, []
        for k in range(count + 1):
            if k in (0, 100, count):
                kept.append(x[:, 0])
            noise.fill(z)
            x = x + step * sde.drift(x, 0.0) + 0.7 * math.sqrt(step) * z
        return torch.stack(kept)

    agree(draw, got, 3000)
