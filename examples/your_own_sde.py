"""Your own SDE in ten lines: two curves, and every sampler works.

Run: python examples/your_own_sde.py
"""

from __future__ import annotations

import math

import torch

from scoresde import GaussianMixtureModel, GaussianSDE, sample
from scoresde.metrics import floor, sliced_wasserstein
from scoresde.noise import stream


class TrigonometricSDE(GaussianSDE):
    """alpha = cos(pi t/2), sigma = sin(pi t/2)."""

    def alpha(self, t):
        return torch.cos(t * math.pi / 2)

    def sigma(self, t):
        return torch.sin(t * math.pi / 2)


def main() -> None:
    sde = TrigonometricSDE(t_max=0.995)  # alpha is 0 at t = 1
    print(sde.describe())
    means = torch.tensor([[-1.5, 0.0], [1.5, 0.0], [0.0, 1.0]])
    model = GaussianMixtureModel(sde=sde, weights=torch.tensor([1.0, 2.0, 3.0]), means=means, std=0.2)
    data = model.sample_data(4000, stream(0, "data"))
    print(f"{'solver':>16} {'sliced Wasserstein-2':>21}")
    for solver, steps in (("dpmpp_2m", 20), ("heun", 20), ("ancestral", 200), ("euler_maruyama", 200)):
        x = sample(model, (4000, 2), solver=solver, steps=steps, seed=0)
        print(f"{solver:>16} {sliced_wasserstein(x, data):>21.4f}")
    real = floor(sliced_wasserstein, model.sample_data(40_000, stream(0, "pool")), 4000)
    print(f"{'real data':>16} {real.mean:>21.4f} ± {real.std:.4f}, the sampling floor")


if __name__ == "__main__":
    main()
