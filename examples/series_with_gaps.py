"""Time series with gaps and seasons: a network told of covariates, forecasts for seasons it never saw, gaps filled in.

Daily curves whose level, peak and noise depend on the season, an angle of which sine and cosine are given as a context
vector. Some seasons are held out of the training: their curves are asked for by their covariates alone. Then values are
hidden, and ``impute`` draws them given the others.

Run: python examples/series_with_gaps.py [--quick] [--out PICTURE]      (two minutes on two cores)
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from scoresde import VPSDE, ScoreModel, fit, impute, sample
from scoresde.metrics import sliced_wasserstein
from scoresde.nn import UNet
from scoresde.noise import normal, stream, uniform
from scoresde.transforms import Affine

LENGTH = 32
HELD_OUT = (1.0, 1.6)  # seasons, as angles, that no training sees


def curves(season: torch.Tensor, seed: int) -> torch.Tensor:
    """Return one day for each season (n,), (n, 1, LENGTH)."""
    n, hours = len(season), torch.arange(LENGTH) / LENGTH
    draw = stream(seed, "curves")
    peak = 0.5 + 0.15 * torch.cos(season)[:, None] + 0.03 * normal((n, 1), draw)
    height = 1.5 + torch.sin(season)[:, None] + 0.2 * normal((n, 1), draw)
    wide = 0.12 + 0.04 * torch.cos(season)[:, None]
    shape = height * torch.exp(-0.5 * ((hours - peak) / wide) ** 2)
    slow = torch.cumsum(normal((n, LENGTH), draw), 1) * 0.04
    return (shape + slow)[:, None] + 0.5 * torch.cos(season)[:, None, None]


def covariates(season: torch.Tensor) -> torch.Tensor:
    """Return what the network is told, (n, 2)."""
    return torch.stack([season.sin(), season.cos()], 1)


def draw_panels(real: torch.Tensor, drawn: torch.Tensor, gaps: torch.Tensor, filled: torch.Tensor, path: Path) -> None:
    """Draw held-out seasons, and two days with gaps."""
    figure, panels = plt.subplots(1, 4, figsize=(15.0, 3.8), layout="constrained")
    for axes, x, name, color in zip(panels, (real, drawn), ("data", "samples"), ("#0072B2", "#D55E00"), strict=False):
        axes.plot(x[:30, 0].T, color=color, linewidth=0.7, alpha=0.6)
        axes.set(title=f"a held-out season: {name}", xlabel="hour", ylim=(-1.0, 4.5))
    for axes, day, draws in zip(panels[2:], gaps, filled, strict=True):
        axes.plot(draws[:, 0].T, color="#D55E00", linewidth=0.6, alpha=0.5)
        axes.plot(day[0], color="black", linewidth=2.0, marker=".", label="known")
        axes.set(title="a day with gaps, and 20 draws", xlabel="hour", ylim=(-1.0, 4.5))
        axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds: the network has hardly learned")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/series_with_gaps.png"))
    options = parser.parse_args()

    season = 2 * math.pi * uniform((20_000,), stream(0, "seasons"))
    season = season[(season < HELD_OUT[0]) | (season > HELD_OUT[1])]
    data = curves(season, seed=0)
    model = fit(
        ScoreModel(UNet(1, dims=1, width=16, multipliers=(1, 2, 2), context_features=2), VPSDE(), predicts="v"),
        data,
        cond={"context": covariates(season)},
        cond_dropout={"context": 0.1},
        transform=Affine.standardise(data),
        steps=40 if options.quick else 2000,
        batch_size=64,
        learning_rate=2e-3,
        ema_decay=0.995,
        seed=0,
    ).model

    n, asked = 500, torch.full((500,), sum(HELD_OUT) / 2)
    real = curves(asked, seed=1)
    drawn = sample(model, n, cond={"context": covariates(asked)}, steps=20, seed=0)
    free = sample(model, n, steps=20, seed=0)
    same = sliced_wasserstein(real, curves(asked, seed=2))
    print("distance to the curves of a season that no training saw (sliced Wasserstein-2):")
    print(f"  asked for by its covariates {sliced_wasserstein(drawn, real):.3f}, ", end="")
    print(f"without covariates {sliced_wasserstein(free, real):.3f}, floor {same:.3f}")

    days = curves(torch.tensor([0.3, 4.0]), seed=3)
    gaps = days.clone()
    gaps[0, :, 10:22] = math.nan
    gaps[1, :, ::2] = math.nan
    gaps[1, :, 8:16] = math.nan
    filled = impute(model, gaps, draws=20, steps=12 if options.quick else 30, seed=0)
    hidden = gaps.isnan()
    error = ((filled.mean(1) - days)[hidden]).square().mean().sqrt()
    inside = ((days - filled.mean(1)).abs() < 1.645 * filled.std(1))[hidden].float().mean()
    print(f"hidden values: error of the mean {error:.2f}, inside the 90 % band {inside:.0%} (of {int(hidden.sum())})")
    draw_panels(real, drawn, gaps, filled, options.out)
    print(f"picture: {options.out}")


if __name__ == "__main__":
    main()
