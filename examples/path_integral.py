"""Langevin, Fokker-Planck and the path integral: one double well, three ways to the same numbers, and its rare paths.

Particles follow dx = -V'(x) dt + g dw with V = (x^2 - 1)^2/4. Their density is computed from simulated paths, from the
Fokker-Planck equation, and as a sum over all paths on a grid, each weighed by exp(-action): a product of matrices.
Then the rare paths that climb the barrier: those of a simulation, beside the most probable one and the instanton, which
is that of weak noise, in closed form; and the path of least action over a saddle in the plane.

Run: python examples/path_integral.py [--quick] [--out PICTURE]      (half a minute)
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from scoresde import SDE, bridge, evolve_density, most_probable_path, onsager_machlup

F64 = torch.float64
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8A8A8A"


@dataclass(frozen=True, eq=False)
class DoubleWell(SDE):
    """dx = (x - x^3) dt + g dw."""

    g: float = 0.45

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        return x - x**3

    def diffusion(self, t: Tensor | float) -> Tensor:
        return torch.full_like(torch.as_tensor(t), self.g)


@dataclass(frozen=True, eq=False)
class BentValley(DoubleWell):
    """Minus the gradient of (a^2 - 1)^2/4 + (b + (a^2 - 1)/2)^2, whose valley between the wells is bent."""

    g: float = 0.3

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        a, off = x[:, 0], x[:, 1] + (x[:, 0] ** 2 - 1) / 2
        return -torch.stack([a**3 - a + 2 * a * off, 2 * off], 1)


def sum_over_paths(sde: SDE, p: Tensor, grid: Tensor, t: float, h: float, steps: int, rule: str) -> Tensor:
    """Return the density after ``steps`` steps h: the sum over all paths through the grid, a product a step."""
    ends = torch.cartesian_prod(grid, grid).T[..., None]  # every pair of points is a path of one step
    times = torch.tensor([t, t + h], dtype=F64)
    action = onsager_machlup(sde, ends, times, rule=rule).reshape(len(grid), len(grid))
    width = 2 * math.pi * float(sde.diffusion(t)) ** 2 * h
    kernel = (-action).exp() / math.sqrt(width) * (grid[1] - grid[0])
    return p @ torch.linalg.matrix_power(kernel, steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer paths")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/path_integral.png"))
    options = parser.parse_args()
    paths = 1500 if options.quick else 12_000
    figure, ((langevin, density), (line, plane)) = plt.subplots(2, 2, figsize=(11.0, 7.6), layout="constrained")

    sde, first, last = DoubleWell(t_min=0.1, t_max=30.0), 0.5, 3.5
    times = torch.linspace(first, last, 121, dtype=F64)
    start = -0.3 + 0.1 * torch.special.ndtri((torch.arange(paths, dtype=F64) + 0.5) / paths)[:, None]
    walked = bridge.simulate(sde, start, times, method="euler", seed=0)[..., 0]
    known = evolve_density(
        sde, lambda x: normal_density(x[:, 0], -0.3, 0.1), [(-2.4, 2.4, 480)], times[::2], tolerance=1e-4
    )
    langevin.contourf(known.times - first, known.axes[0], known.values.T, [0.05, 0.2, 0.5, 1, 5], cmap="Blues")
    langevin.plot(times - first, walked[:, :: paths // 8], color="black", linewidth=0.6)
    langevin.set(title="Langevin: paths, over their density", xlabel="time", ylabel="x", ylim=(-2, 2))

    grid = torch.linspace(-2.4, 2.4, 241, dtype=F64)
    p0 = normal_density(grid, -0.3, 0.1)
    for color, marker, at in ((BLUE, "o", 10), (ORANGE, "s", 25), (GREEN, "^", 60)):
        t = float(known.times[at])
        density.stairs(*torch.histogram(walked[2 * at], 60, density=True), color=color, alpha=0.5)
        density.plot(known.axes[0], known.values[at], color=color, label=f"time {t - first:g}")
        summed = sum_over_paths(sde, p0, grid, first, 0.025, 2 * at, "ito")
        density.plot(grid[::8], summed[::8], marker, color=color, markersize=4, markerfacecolor="none")
    density.plot([], [], color="black", label="Fokker-Planck")
    density.plot([], [], "ko", markersize=4, markerfacecolor="none", label="sum over paths")
    density.stairs([0], [0, 0.1], color="black", alpha=0.5, label="histogram of paths")
    density.set(title="The same density three times", xlabel="x", ylabel="density", xlim=(-2, 2))
    density.legend(frameon=False, fontsize=9)
    exact = known.at(grid[:, None], last)
    for h in (0.1, 0.05, 0.025, 0.0125):
        print(f"sum over paths of steps {h:g}: ", end="")
        for rule in ("ito", "stratonovich"):
            p = sum_over_paths(sde, p0, grid, first, h, round(3 / h), rule)
            mass = float(p.sum()) * 0.02
            print(f"{rule} off by {float((p / mass - exact).abs().sum()) * 0.02:.4f}, of mass {mass:.4f}; ", end="")
        print()
    right = float((walked[-1] > 0).double().mean())
    print(
        f"in the right well: Fokker-Planck {float(exact[grid > 0].sum()) * 0.02:.4f}, "
        f"paths {right:.4f} +- {math.sqrt(right * (1 - right) / paths):.4f}"
    )

    times, end = torch.linspace(0.5, 6.5, 241, dtype=F64), -0.2
    climbed = bridge.simulate(sde, torch.full((2 * paths, 1), -1.0, dtype=F64), times, method="euler", seed=1)[..., 0]
    arrived = climbed[:, (climbed[-1] - end).abs() < 0.03]
    line.plot(times - 0.5, arrived[:, :6], color=GREY, linewidth=0.5)
    line.plot(times - 0.5, arrived.mean(1), color="black", linewidth=1.5, label="mean of those that arrive")
    low, high = torch.tensor([[-1.0]], dtype=F64), torch.tensor([[end]], dtype=F64)
    best = most_probable_path(sde, low, high, times)
    line.plot(times - 0.5, best[:, 0, 0], color=BLUE, linewidth=2.5, label="most probable path")
    late = times - times[-1] + 0.5 * math.log(1 / end**2 - 1)
    line.plot(times - 0.5, -1 / (1 + (2 * late).exp()).sqrt(), "--", color=ORANGE, linewidth=2.5, label="instanton")
    line.set(
        title=f"{arrived.shape[1]} of {2 * paths} paths climb to {end}", xlabel="time", ylabel="x", ylim=(-1.7, 0.4)
    )
    line.legend(frameon=False, fontsize=9, loc="upper left")
    weak = most_probable_path(sde, low, high, times, rule="ito")
    found, known_action = float(onsager_machlup(sde, weak, times)) * sde.g**2, 2 * (end**2 - 1) ** 2 / 4
    print(f"g^2 times the least action of weak noise: {found:.4f}; the instanton's, 2 V(end): {known_action:.4f}")

    valley, t = BentValley(t_max=30.0), torch.linspace(0.5, 12.5, 121, dtype=F64)
    ends = torch.tensor([[-1.0, 0.0]], dtype=F64), torch.tensor([[1.0, 0.0]], dtype=F64)
    over = most_probable_path(valley, *ends, t, rule="ito")[:, 0]
    a, b = torch.meshgrid(torch.linspace(-1.8, 1.8, 120), torch.linspace(-1.3, 1.2, 120), indexing="ij")
    height = (a**2 - 1) ** 2 / 4 + (b + (a**2 - 1) / 2) ** 2
    plane.contour(a, b, height, levels=[0.02, 0.08, 0.16, 0.25, 0.4, 0.7, 1.2], colors=GREY, linewidths=0.7)
    cloud = bridge.simulate(valley, ends[0].expand(paths // 2, 2), t, method="euler", seed=1)
    made = cloud[:, (cloud[-1] - ends[1]).norm(dim=1) < 0.4]
    for k in range(min(2, made.shape[1])):
        plane.plot(*made[:, k].T, color=ORANGE, linewidth=0.6, label="paths that arrive" if k == 0 else None)
    plane.plot(*over.T, color=BLUE, linewidth=2.5, label="least action, weak noise")
    plane.plot([0], [0.5], "kx", label="saddle")
    plane.set(title="Over a saddle", xlabel="a", ylabel="b", xlim=(-1.8, 1.8), ylim=(-1.3, 1.2))
    plane.legend(frameon=False, fontsize=9, loc="lower center")

    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=58)
    print(f"picture: {options.out}")


def normal_density(x: Tensor, mean: float, std: float) -> Tensor:
    return (-0.5 * ((x - mean) / std) ** 2).exp() / (std * math.sqrt(2 * math.pi))


if __name__ == "__main__":
    main()
