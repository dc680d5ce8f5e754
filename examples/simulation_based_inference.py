"""Simulation-based inference: p(theta | x) of simulators whose likelihood nobody evaluates.

A network sees the observation x beside theta and learns to denoise theta. Three tasks whose posteriors can be drawn
exactly: two moons, a crescent in each of two places; a mixture of a wide and a narrow Gaussian; SLCP, four points of
a Gaussian whose mean, widths and correlation are theta, with four modes (Lueckmann et al. 2021, arXiv:2101.04653). Of
the mixture there are also four observations at once: the product of their four posteriors, the prior being uniform,
from the same network. The accuracy of a classifier that tells samples from exact ones (C2ST) is 0.5 where it cannot.

Run: python examples/simulation_based_inference.py [--quick] [--out PICTURE]      (four minutes on two cores)
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from scoresde import VPSDE, SBIPosterior, ScoreModel, correct, fit, product
from scoresde.metrics import classifier_two_sample_test
from scoresde.nn import MLP
from scoresde.noise import normal, stream, uniform
from scoresde.transforms import Affine

Draw = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Task:
    """A simulator with a uniform prior on [-bound, bound]^d, observations, and their exact posteriors.

    Args:
        bound: of the prior.
        simulate: (theta (n, d), generator) -> x (n, *).
        draw_exact: (observations (k, *), n, generator) -> theta, draws of the posterior of all k.
        observed: (k, *); the first is used alone, and all together where there are more.
        d: parameters.
    """

    bound: float
    simulate: Draw
    draw_exact: Draw
    observed: torch.Tensor
    d: int = 2

    def prior(self, n: int, draw: torch.Generator) -> torch.Tensor:
        return self.bound * (2 * uniform((n, self.d), draw) - 1)


def reject(log_likelihood: Draw, proposals: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Return those of the proposals that a likelihood keeps."""
    log = log_likelihood(proposals).nan_to_num(-math.inf)  # a width of 0
    return proposals[uniform((len(log),), draw).log() < log - log.max()]


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
    gap = crescent(4 * n, draw) - x[0]
    far = gap[:, 0] * torch.where(uniform((4 * n,), draw) < 0.5, 1.0, -1.0)
    theta = torch.stack([far + gap[:, 1], far - gap[:, 1]], 1) / math.sqrt(2)
    return theta[(gap[:, 0] >= 0) & (theta.abs() <= 1).all(1)][:n]


def two_widths(theta: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    wide = torch.where(uniform((len(theta), 1), draw) < 0.5, 1.0, 0.1)
    return theta + wide * normal(tuple(theta.shape), draw)


def invert_two_widths(x: torch.Tensor, n: int, draw: torch.Generator) -> torch.Tensor:
    """Keep of what the first observation allows what the others do."""

    def others(theta: torch.Tensor) -> torch.Tensor:
        square = (theta[:, None] - x[1:]).square().sum(2)
        return torch.logaddexp(-0.5 * square, -0.5 * square / 0.01 - 2 * math.log(0.1)).sum(1)

    kept = reject(others, two_widths(x[0].expand(400 * n if len(x) > 1 else 2 * n, 2), draw), draw)
    return kept[(kept.abs() <= 10).all(1)][:n]


def factors(theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean (n, 1, 2) and (s_1, s_2, rho) (n, 1, 3) of SLCP's points."""
    return theta[:, None, :2], torch.cat([theta[:, None, 2:4].square(), theta[:, None, 4:].tanh()], 2)


def four_points(theta: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    mean, (first, second, rho) = factors(theta)[0], factors(theta)[1].unbind(2)
    z = normal((len(theta), 4, 2), draw)
    across = rho * z[..., 0] + (1 - rho.square()).sqrt() * z[..., 1]
    return (mean + torch.stack([first * z[..., 0], second * across], 2)).flatten(1)


def invert_four_points(x: torch.Tensor, n: int, draw: torch.Generator) -> torch.Tensor:
    """Reject from the prior, with both widths positive; their signs are fair coins."""

    def log_likelihood(theta: torch.Tensor) -> torch.Tensor:
        mean, (first, second, rho) = factors(theta)[0], factors(theta)[1].unbind(2)
        a, b = ((x[0].reshape(1, 4, 2) - mean) / torch.stack([first, second], 2)).unbind(2)
        rest = (1 - rho.square()).clamp_min(1e-12)
        square = (a.square() - 2 * rho * a * b + b.square()) / rest
        return (-0.5 * square - first.log() - second.log() - 0.5 * rest.log()).sum(1)

    theta = 3 * (2 * uniform((8_000 * n, 5), draw) - 1)
    theta[:, 2:4].abs_()
    kept = reject(log_likelihood, theta, draw)[:n]
    signs = torch.where(uniform((len(kept), 2), draw) < 0.5, 1.0, -1.0)
    return torch.cat([kept[:, :2], kept[:, 2:4] * signs, kept[:, 4:]], 1)


TASKS = {
    "two moons": Task(1.0, moons, invert_moons, torch.zeros(1, 2)),
    "Gaussian mixture": Task(
        10.0,
        two_widths,
        invert_two_widths,
        torch.tensor([[-3.0, 6.5], [-2.3, 7.0], [-2.9, 5.8], [-2.4, 6.2]]),
    ),
    "SLCP": Task(
        3.0,
        four_points,
        invert_four_points,
        four_points(torch.tensor([[0.7, -2.0, -1.0, -0.9, 0.6]]), stream(3, "observed")),
        d=5,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds: the network has hardly learned")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/simulation_based_inference.png"))
    options = parser.parse_args()

    shown: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    n = 300 if options.quick else 2000
    for name, task in TASKS.items():
        draw = stream(0, name)
        theta = task.prior(2_000 if options.quick else 50_000, draw)
        x = task.simulate(theta, draw)
        scale = Affine.standardise(x)
        model = fit(
            ScoreModel(MLP(task.d, width=128, depth=3, concat_channels=x.shape[1]), VPSDE(), predicts="v"),
            theta,
            cond={"concat": scale.forward(x)},
            transform=Affine.standardise(theta),
            steps=50 if options.quick else 6000,
            batch_size=256,
            learning_rate=1e-3,
            seed=0,
        ).model
        # The same object goes to the package sbi: run_sbc(thetas, xs, posterior).
        posterior = SBIPosterior(model, "concat", encode=scale.forward, steps=25)
        shown.append(
            (name, posterior.sample((n,), task.observed[:1], seed=0), task.draw_exact(task.observed[:1], n, draw))
        )
        if len(task.observed) > 1:
            told = [{"concat": scale.forward(one[None])[0].tolist()} for one in task.observed]
            both = correct(product([model] * len(told), conds=told), n, steps=50 if options.quick else 200, seed=0)
            shown.append((f"mixture, {len(told)} seen", both.x, task.draw_exact(task.observed, n, draw)))

    figure, panels = plt.subplots(len(shown), 2, figsize=(8.0, 4.0 * len(shown)), layout="constrained", squeeze=False)
    for row, (name, drawn, exact) in zip(panels, shown, strict=True):
        found = classifier_two_sample_test(drawn[: len(exact)], exact)
        print(f"{name}: C2ST {found.value:.3f} (0.5: cannot be told from {len(exact)} exact draws)")
        pair = (2, 3) if drawn.shape[1] > 2 else (0, 1)
        for axes, points, what in zip(row, (exact, drawn), ("exact posterior", "samples"), strict=True):
            axes.scatter(*points[:, pair].T, s=2, color="#0072B2" if what != "samples" else "#D55E00")
            low, high = exact.amin(0) - 0.2 * exact.std(0), exact.amax(0) + 0.2 * exact.std(0)
            axes.set(title=f"{name}: {what}", xlim=(low[pair[0]], high[pair[0]]), ylim=(low[pair[1]], high[pair[1]]))
            axes.set(xlabel=f"theta {pair[0] + 1}", ylabel=f"theta {pair[1] + 1}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=60)
    print(f"picture: {options.out}")


if __name__ == "__main__":
    main()
