"""Class-conditional digits: train with labels, then ask for each class.

One network learns p(image | label) and, because a tenth of the labels are dropped, p(image) too. Each row of the
picture is one class; on the right are real digits that the training never saw. To put a number on "it draws what it is
asked for", a nearest-neighbour rule names the samples.

Run: python examples/digits_conditional.py [--quick] [--out PICTURE]      (under two minutes on two cores)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from scoresde import VPSDE, ScoreModel, fit, plots, sample
from scoresde.data import digits
from scoresde.nn import UNet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds: the network has hardly learned")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/digits_conditional.png"))
    options = parser.parse_args()

    train, test = digits("train"), digits("test")
    model = ScoreModel(UNet(1, width=16, classes=10), VPSDE(), predicts="v")
    trained = fit(
        model,
        train.images,
        cond={"label": train.labels},
        label_dropout=0.1,
        steps=60 if options.quick else 2000,
        batch_size=64,
        learning_rate=2e-3,
        ema_decay=0.995,
        seed=0,
    ).model

    label = torch.arange(10).repeat_interleave(12)
    x = sample(trained, (120, 1, 8, 8), cond={"label": label}, steps=20, seed=0)

    def name_digits(images: torch.Tensor) -> torch.Tensor:
        """Give each image the label of the training image nearest to it."""
        return train.labels[torch.cdist(images.flatten(1), train.images.flatten(1)).argmin(1)]

    drawn, held_out = name_digits(x) == label, name_digits(test.images) == test.labels
    print(f"samples whose nearest training digit has the label asked for: {drawn.float().mean():.0%}")
    print(f"real digits whose nearest training digit has their label:     {held_out.float().mean():.0%}")

    real = torch.cat([test.images[test.labels == k][:4] for k in range(10)])
    rows = torch.cat([x.view(10, 12, 1, 8, 8), torch.ones(10, 1, 1, 8, 8), real.view(10, 4, 1, 8, 8)], dim=1)
    title = "twelve samples of each class, and four real digits (right)"
    figure = plots.image_grid(rows.flatten(0, 1), row_labels="0123456789", title=title, smooth=True)
    print(f"picture: {plots.save(figure, options.out)}")


if __name__ == "__main__":
    main()
