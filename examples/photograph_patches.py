"""Patches of two photographs in colour: a U-Net, rectified flow, a label for each photograph.

The data are 32 x 32 patches at random places of a temple and of a flower. Each row of samples stands above a row of
patches at other places. Training takes nearly all the time.

A network of so little training tells noise from texture down to sigma = 0.3 alpha. Of weaker noise on a smooth patch it
leaves more than half where it is, and a sampler that goes on to the end leaves it there as grain. So the sampler stops
at that noise and jumps to the data prediction.

Run: python examples/photograph_patches.py [--quick] [--out PICTURE]      (under two minutes on two cores)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from scoresde import RectifiedFlow, ScoreModel, fit, plots, sample
from scoresde.data import photographs
from scoresde.metrics import floor, sliced_wasserstein
from scoresde.nn import UNet
from scoresde.training.losses import log_normal

COLUMNS = 14
LAST = 0.3  # sigma/alpha at which the sampler stops


def grain(x: torch.Tensor) -> float:
    """Return the geometric mean over patches of the finest detail's mean square: of pixels one diagonal less the other.

    Rounding to 256 levels alone makes some 5e-6.
    """
    detail = (x[..., ::2, ::2] - x[..., 1::2, ::2] - x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 2
    return float((detail.square().flatten(1).mean(1) + 5e-6).log().mean().exp())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds: the network has hardly learned")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/photograph_patches.png"))
    options = parser.parse_args()

    train, others = photographs(32, 10_000), photographs(32, 2_000, seed=1)
    model = ScoreModel(UNet(3, width=16, classes=2), RectifiedFlow(), predicts="edm")
    trained = fit(
        model,
        train.images,
        cond={"label": train.labels},
        steps=20 if options.quick else 968,
        batch_size=32,
        learning_rate=2e-3,
        times=log_normal(-0.4, 1.6),  # more of the large noise than EDM's, where a patch gets its colour
        ema_decay=0.995,
        calibrate=False,
        seed=0,
    ).model

    n = 20 if options.quick else 100
    label = torch.arange(2).repeat_interleave(n)
    early = RectifiedFlow(t_min=LAST / (1 + LAST))
    x = sample(trained, 2 * n, sde=early, cond={"label": label}, steps=20, chunk_size=50, seed=0)

    rows, names = [], []
    for k, name in enumerate(("temple", "flower")):
        real, drawn = others.images[others.labels == k], x[label == k]
        same = floor(sliced_wasserstein, real, n)
        distance = sliced_wasserstein(drawn, real)
        print(f"{name}: distance of {n} samples to real patches {distance:.3f}, of {n} real ones {same.mean:.3f}")
        print(f"{name}: finest detail of the samples {grain(drawn) / grain(real):.2f} times that of real patches")
        rows += [drawn[:COLUMNS], real[:COLUMNS]]
        names += [f"{name}, samples", f"{name}, real"]
    figure = plots.image_grid(torch.cat(rows), row_labels=names, smooth=True)
    print(f"picture: {plots.save(figure, options.out)}")


if __name__ == "__main__":
    main()
