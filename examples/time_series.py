"""Time series (C, L): sinusoids with a jump, and a convolutional network of twenty lines.

Any module that maps (x, c_noise) to x's shape is a network. The picture shows series, samples, and two statistics that
the training never saw: the power spectrum, and the largest step between neighbouring times, which is where the jump is.

Run: python examples/time_series.py [--quick] [--out PICTURE]      (under two minutes on two cores)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional

from scoresde import EDMSDE, ScoreModel, fit, sample
from scoresde.data import time_series
from scoresde.metrics import floor, marginal_distances

DILATIONS = (1, 2, 4, 8, 4, 2, 1)


class Net(nn.Module):
    """Dilated convolutions over (B, C, L); the log-SNR (B,) scales and shifts the channels of each."""

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        self.first = nn.Conv1d(channels, width, 5, padding=2)
        self.blocks = nn.ModuleList(nn.Conv1d(width, width, 5, padding=2 * d, dilation=d) for d in DILATIONS)
        self.norms = nn.ModuleList(nn.GroupNorm(4, width) for _ in DILATIONS)
        self.level = nn.Sequential(nn.Linear(16, 128), nn.SiLU(), nn.Linear(128, 2 * width * len(DILATIONS)))
        self.last = nn.Conv1d(width, channels, 5, padding=2)

    def forward(self, x, c_noise):
        angles = c_noise[:, None] * 2.0 ** torch.arange(-5, 3)
        terms = self.level(torch.cat([angles.sin(), angles.cos()], dim=1))[:, :, None].chunk(2 * len(DILATIONS), dim=1)
        h = self.first(x)
        for block, norm, scale, shift in zip(self.blocks, self.norms, terms[::2], terms[1::2], strict=True):
            h = h + block(functional.silu((1 + scale) * norm(h) + shift))
        return self.last(functional.silu(h))


def largest_step(x: torch.Tensor) -> torch.Tensor:
    """Return the largest difference of neighbouring values, (N, 1)."""
    return x.diff(dim=2).abs().amax(dim=(1, 2))[:, None]


def power(x: torch.Tensor) -> torch.Tensor:
    """Return the mean power at each frequency, (L/2 + 1,)."""
    return torch.fft.rfft(x, norm="ortho").abs().square().mean(dim=(0, 1))


def draw(real: torch.Tensor, drawn: torch.Tensor, path: Path) -> None:
    """Draw six series of each, the spectra, and the largest steps."""
    figure, panels = plt.subplots(1, 4, figsize=(15.0, 4.0), layout="constrained")
    for axes, x, name, color in zip(panels, (real, drawn), ("data", "samples"), ("#0072B2", "#D55E00"), strict=False):
        axes.plot(x[:6, 0].T + 4.5 * torch.arange(6), color=color, linewidth=1.2)
        axes.set(title=f"six {name}" if name == "samples" else "six series of the data", xlabel="time step", yticks=[])
        panels[2].semilogy(power(x), color=color, label=name, linestyle="-" if name == "data" else "--")
        panels[3].hist(largest_step(x)[:, 0], bins=40, range=(0.0, 2.5), density=True, histtype="step", color=color)
    panels[2].set(title="power spectrum", xlabel="cycles in a series", ylabel="mean power")
    panels[2].legend(frameon=False)
    panels[3].set(title="largest step in a series", xlabel="step", ylabel="density")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds: the network has hardly learned")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/time_series.png"))
    options = parser.parse_args()

    torch.manual_seed(0)  # the network's first weights
    model = ScoreModel(Net(channels=1), EDMSDE(), predicts="edm")
    trained = fit(
        model,
        time_series(20_000),
        steps=40 if options.quick else 1800,
        batch_size=64,
        learning_rate=2e-3,
        seed=0,
    ).model

    x, real = sample(trained, (1000, 1, 64), steps=20, seed=0), time_series(1000, seed=1)

    def metric(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(marginal_distances(largest_step(a), largest_step(b)))

    same = floor(metric, time_series(10_000, seed=2), 1000)
    print(f"largest step, mean: data {largest_step(real).mean():.3f}, samples {largest_step(x).mean():.3f}")
    print(f"its Wasserstein-1 distance to the data's: samples {metric(x, real):.3f}, as many real {same.mean:.3f}")
    draw(real, x, options.out)
    print(f"picture: {options.out}")


if __name__ == "__main__":
    main()
