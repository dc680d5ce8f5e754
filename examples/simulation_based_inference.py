"""Simulation-based inference: p(theta | x) of simulators whose likelihood nobody evaluates.

A network sees the observation x beside theta and learns to denoise theta. Two tasks whose posteriors can be
drawn exactly: two moons, a crescent in each of two places, and a mixture of a wide and a narrow Gaussian (Lueckmann
et al. 2021, arXiv:2101.04653). The accuracy of a classifier that tells samples from exact ones (C2ST) is 0.5 where it
cannot.

Run: python examples/simulation_based_inference.py [--quick] [--out PICTURE]      (two minutes on two cores)
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from scoresde import VPSDE, ScoreModel, fit, sample
from scoresde.metrics import classifier_two_sample_test
from scoresde.nn import MLP
from scoresde.noise import normal, stream, uniform
from scoresde.transforms import Affine

Draw = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Task:
    """A simulator with a uniform prior on [-bound, bound]^2, an observation, and its exact posterior.

    Args:
        bound: of the prior.
        simulate: (theta (n, 2), generator) -> x (n, 2).
        propose: (x, n, generator) -> theta (n, 2), draws of the posterior under a prior without bounds.
        observed: x.
    """

    bound: float
    simulate: Draw
    propose: Draw
    observed: torch.Tensor

    def prior(self, n: int, draw: torch.Generator) -> torch.Tensor:
        return self.bound * (2 * uniform((n, 2), draw) - 1)

    def posterior(self, n: int) -> torch.Tensor:
        """Return exact draws: those of the proposal that lie inside the prior."""
        theta = self.propose(self.observed, 8 * n, stream(7, "posterior"))
        return theta[theta.isfinite().all(1) & (theta.abs() <= self.bound).all(1)][:n]


def crescent(n: int, draw: torch.Generator) -> torch.Tensor:
    """Return points of the noise of two moons, (n, 2)."""
    angle = math.pi * (uniform((n,), draw) - 0.5)
    radius = 0.1 + 0.01 * normal((n,), draw)
    return torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], 1)


def moons(theta: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    turned = torch.stack([-(theta.sum(1)).abs(), theta[:, 1] - theta[:, 0]], 1) / math.sqrt(2)
    return crescent(len(theta), draw) + turned


def invert_moons(x: torch.Tensor, n: int, draw: torch.Generator) -> torch.Tensor:
    """Solve for theta given the noise; the absolute value leaves two answers."""
    gap = crescent(n, draw) - x
    far = torch.where(gap[:, 0] >= 0, gap[:, 0], math.nan) * torch.where(uniform((n,), draw) < 0.5, 1.0, -1.0)
    return torch.stack([far + gap[:, 1], far - gap[:, 1]], 1) / math.sqrt(2)


def two_widths(theta: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    wide = torch.where(uniform((len(theta), 1), draw) < 0.5, 1.0, 0.1)
    return theta + wide * normal(tuple(theta.shape), draw)


TASKS = {
    "two moons": Task(1.0, moons, invert_moons, torch.tensor([0.0, 0.0])),
    "Gaussian mixture": Task(
        10.0, two_widths, lambda x, n, draw: two_widths(x.expand(n, 2), draw), torch.tensor([-3.0, 6.5])
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds: the network has hardly learned")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/simulation_based_inference.png"))
    options = parser.parse_args()

    figure, panels = plt.subplots(len(TASKS), 2, figsize=(8.0, 8.0), layout="constrained")
    for row, (name, task) in zip(panels, TASKS.items(), strict=True):
        draw = stream(0, name)
        theta = task.prior(2_000 if options.quick else 50_000, draw)
        x = task.simulate(theta, draw)
        mean, std = x.mean(0), x.std(0)
        model = fit(
            ScoreModel(MLP(2, width=128, depth=3, concat_channels=2), VPSDE(), predicts="v"),
            theta,
            cond={"concat": (x - mean) / std},
            transform=Affine.standardise(theta),
            steps=50 if options.quick else 6000,
            batch_size=256,
            learning_rate=1e-3,
            seed=0,
        ).model
        n = 300 if options.quick else 2000
        told = ((task.observed - mean) / std).expand(n, 2)
        drawn, exact = sample(model, n, cond={"concat": told}, steps=25, seed=0), task.posterior(n)
        found = classifier_two_sample_test(drawn, exact)
        print(f"{name}: C2ST {found.value:.3f} (0.5: cannot be told from exact draws)")
        for axes, points, what in zip(row, (exact, drawn), ("exact posterior", "samples"), strict=True):
            axes.scatter(*points.T, s=2, color="#0072B2" if what != "samples" else "#D55E00")
            low, high = exact.amin(0) - 0.2 * exact.std(0), exact.amax(0) + 0.2 * exact.std(0)
            axes.set(title=f"{name}: {what}", xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=70)
    print(f"picture: {options.out}")


if __name__ == "__main__":
    main()
