"""Odd samples by their likelihood: digits that are no digits, and series whose two channels do not belong together.

A model of ordinary data gives odd ones few nats. How well that tells them apart is the area under the ROC curve: the
chance that an odd sample has less log p than an ordinary one. Noise, exchanged halves and the reversed channel are told
every time; a digit upside down often is not, since many are digits still.

Run: python examples/anomaly_detection.py [--quick] [--out PICTURE]      (three minutes on two cores)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from scoresde import VPSDE, Affine, ScoreModel, fit, log_likelihood, plots
from scoresde.data import digits, time_series
from scoresde.nn import UNet
from scoresde.noise import normal, stream


def area(odd: Tensor, ordinary: Tensor) -> float:
    """Return the area under the ROC curve: P(log p of an odd sample < log p of an ordinary one)."""
    return float((odd[:, None] < ordinary).double().mean())


def odd_digits(x: Tensor) -> dict[str, Tensor]:
    """Digits with noise, upside down, with their halves exchanged, and noise without a digit."""
    return {
        "with noise": (x + 0.3 * normal(x.shape, stream(0, "noise"))).clamp(-1, 1),
        "upside down": x.flip(2),
        "halves exchanged": x.roll(4, 3),
        "noise alone": normal(x.shape, stream(1, "noise")).clamp(-1, 1),
    }


def two_channels(n: int, seed: int) -> Tensor:
    """Series and what follows them: the second channel is the first one, eight steps later."""
    x = time_series(n, seed=seed)
    return torch.cat([x, x.roll(8, 2)], 1)


def draw(axes: Axes, groups: dict[str, Tensor], title: str) -> None:
    """Draw how log p is spread in each group."""
    low = min(float(values.quantile(0.02)) for values in groups.values())
    high = max(float(values.max()) for values in groups.values())
    for name, values in groups.items():
        axes.hist(
            values.clamp(low, high).numpy(), bins=40, range=(low, high), histtype="step", linewidth=1.5, label=name
        )
    axes.set(xlabel="log density, nats (the least 2% at the left end)", ylabel="samples", title=title)
    axes.set_ylim(0, 1.35 * axes.get_ylim()[1])
    axes.legend(loc="upper center", ncols=3, fontsize=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds: the networks have hardly learned")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/anomaly_detection.png"))
    options = parser.parse_args()
    steps, count = (20, 4) if options.quick else (1500, 80)
    solver = {"solver": "midpoint", "steps": 4 if options.quick else 24, "draws": 1, "probes": 4}

    train, test = digits("train"), digits("test")
    model = ScoreModel(UNet(1, width=16), VPSDE(t_min=1e-3), predicts="noise")
    trained = fit(model, train.images, steps=steps, batch_size=64, seed=0).model
    held_out = test.images[:: max(1, len(test.images) // count)][:count]
    groups = {"held-out digits": log_likelihood(trained, held_out, **solver).values}
    groups |= {name: log_likelihood(trained, odd, **solver).values for name, odd in odd_digits(held_out).items()}
    for name, values in groups.items():
        if name != "held-out digits":
            print(f"digits {name}: area under the ROC curve {area(values, groups['held-out digits']):.3f}")

    series, fresh = two_channels(4000, 0), two_channels(count, 1)
    model = ScoreModel(UNet(2, dims=1, width=16), VPSDE(t_min=1e-3), predicts="noise")
    trained = fit(model, series, transform=Affine.standardise(series), steps=steps, batch_size=64, seed=0).model
    turned = torch.cat([fresh[:, :1], fresh[:, 1:].flip(2)], 1)
    pairs = {
        "series": log_likelihood(trained, fresh, **solver).values,
        "second channel reversed": log_likelihood(trained, turned, **solver).values,
    }
    print(f"series, second channel reversed: {area(pairs['second channel reversed'], pairs['series']):.3f}")

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw(left, groups, "digits of 8 x 8 pixels")
    draw(right, pairs, "series of two channels, 64 steps")
    print(f"picture: {plots.save(figure, options.out)}")


if __name__ == "__main__":
    main()
