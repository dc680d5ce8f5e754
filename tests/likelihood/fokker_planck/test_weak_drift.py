"""A drift that is all but nothing beside the diffusion: its stationary law is exact too."""

from __future__ import annotations

import torch
from densities import F64, Linear

from scoresde import evolve_density


def test_the_stationary_law_of_a_weak_drift_is_exact() -> None:
    """p = exp(-a x^2/g^2) between walls; in a cell P = f h/D is 1e-8 to 1e-7, where e^P - 1 loses half its digits."""
    strength = 1e-6
    sde = Linear(matrix=((-strength,),), g=1.0, t_max=100.0)

    def law(x: torch.Tensor) -> torch.Tensor:
        return torch.exp(-strength * x[:, 0].square())

    times = torch.tensor([0.1, 90.0], dtype=F64)
    got = evolve_density(sde, law, [(0.0, 1.0, 20)], times, steps=3, walls=True)
    torch.testing.assert_close(got.values[1], got.values[0], rtol=1e-11, atol=0)
