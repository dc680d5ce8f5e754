"""Patches of two photographs in colour: a U-Net, rectified flow, a label for each photograph.

The data are 16 x 16 patches at random places of a temple and of a flower. Each row of samples stands above a row of
patches at other places. Training takes nearly all the time.

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds: the network has hardly learned")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/photograph_patches.png"))
    options = parser.parse_args()

    train, others = photographs(16, 10_000), photographs(16, 2_000, seed=1)
    model = ScoreModel(UNet(3, width=16, classes=2), RectifiedFlow(), predicts="edm")
    trained = fit(
        model,
        train.images,
        cond={"label": train.labels},
        steps=30 if options.quick else 1500,
        batch_size=32,
        learning_rate=2e-3,
        times=log_normal(-0.4, 1.6),  # more of the large noise than EDM's, where a patch gets its colour
        ema_decay=0.995,
        seed=0,
    ).model

    n = 50 if options.quick else 250
    label = torch.arange(2).repeat_interleave(n)
    x = sample(trained, (2 * n, 3, 16, 16), cond={"label": label}, solver="heun", steps=10, chunk_size=100, seed=0)

    rows, names = [], []
    for k, name in enumerate(("temple", "flower")):
        real, drawn = others.images[others.labels == k], x[label == k]
        same = floor(sliced_wasserstein, real, n)
        distance = sliced_wasserstein(drawn, real)
        print(f"{name}: distance of {n} samples to real patches {distance:.3f}, of {n} real ones {same.mean:.3f}")
        rows += [drawn[:COLUMNS], real[:COLUMNS]]
        names += [f"{name}, samples", f"{name}, real"]
    figure = plots.image_grid(torch.cat(rows), row_labels=names, smooth=True)
    print(f"picture: {plots.save(figure, options.out)}")


if __name__ == "__main__":
    main()
