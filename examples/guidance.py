"""What a guidance scale really does: plain guidance beside the law that it claims to sample.

Guidance of scale w follows the score of p(x)^{1-w} p(x | y)^w at every noise level. These products are no diffusion's
marginals, so what comes out is not p(x)^{1-w} p(x | y)^w of clean data. With exact scores (three classes, each a
mixture of two Gaussians in the plane) that law is known: the picture shows it as a density, with the samples of plain
guidance above and of weighted, resampled particles (``correct``) below. The table gives distances to it.

Run: python examples/guidance.py [--quick] [--out PICTURE]      (under a minute)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from scoresde import VPSDE, GaussianMixtureModel, correct, product, sample
from scoresde.metrics import sliced_wasserstein

SCALES = (1.0, 2.0, 4.0, 8.0)
MEANS = torch.tensor([[[-1.0, 0.9], [-0.2, -0.4]], [[0.9, 0.9], [0.3, -0.5]], [[0.0, -1.3], [0.1, 0.4]]])
WEIGHTS, STD = torch.tensor([0.75, 0.25]), 0.35


def models() -> tuple[GaussianMixtureModel, GaussianMixtureModel]:
    """Return p(x | y = 0) and p(x)."""
    one = GaussianMixtureModel(sde=VPSDE(), weights=WEIGHTS, means=MEANS[0], std=STD)
    whole = GaussianMixtureModel(sde=VPSDE(), weights=WEIGHTS.repeat(3), means=MEANS.reshape(6, 2), std=STD)
    return one, whole


def exact_law(scale: float, line: torch.Tensor) -> torch.Tensor:
    """Return the probability of each cell of a grid, (n, n), of p(x)^{1-w} p(x | y)^w."""
    one, whole = models()
    points = torch.cartesian_prod(line, line)
    log = scale * one.log_prob(points) + (1 - scale) * whole.log_prob(points)
    return torch.softmax(log, 0).reshape(len(line), len(line))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds: fewer samples")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/guidance.png"))
    options = parser.parse_args()
    n, steps = (300, 40) if options.quick else (10_000, 150)

    one, whole = models()
    line = torch.linspace(-3.0, 2.5, 221, dtype=torch.float64)
    figure, panels = plt.subplots(2, len(SCALES), figsize=(13.0, 6.6), sharex=True, sharey=True, layout="constrained")
    print("distances to p(x)^(1-w) p(x|y)^w: sliced Wasserstein-2")
    print(f"{'w':>4}{'plain guidance':>18}{'corrected':>12}{'floor':>9}{'effective sample size':>24}")
    for column, scale in zip(panels.T, SCALES, strict=True):
        guided = product([one, whole], [scale, 1 - scale])
        plain = sample(guided, (n, 2), solver="dpmpp_2m_sde", steps=steps, seed=0)
        particles = correct(guided, n, steps=steps, seed=0)
        law = exact_law(scale, line)
        places = torch.multinomial(law.flatten(), 2 * n, replacement=True, generator=torch.Generator().manual_seed(0))
        jitter = (torch.rand((2 * n, 2), generator=torch.Generator().manual_seed(1)) - 0.5) * float(line[1] - line[0])
        truth = torch.stack([line[places // len(line)], line[places % len(line)]], 1).float() + jitter
        errors = [sliced_wasserstein(x, truth[:n]) for x in (plain, particles.samples(), truth[n:])]
        ess = f"{float(particles.ess.min()):.0f} of {n}"
        print(f"{scale:>4g}{errors[0]:>18.3f}{errors[1]:>12.3f}{errors[2]:>9.3f}{ess:>24}")
        for axes, x, name in zip(column, (plain, particles.samples()), ("plain", "corrected"), strict=True):
            axes.contourf(line, line, law.T / law.max(), levels=8, cmap="Greys")
            axes.scatter(*x[:400].T, s=4, color="#D55E00" if name == "plain" else "#0072B2", alpha=0.7)
            axes.set(title=f"w = {scale:g}, {name}", xlim=(-3.0, 2.5), ylim=(-2.5, 2.5), xticks=[], yticks=[])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=80)
    print(f"picture: {options.out}")


if __name__ == "__main__":
    main()
