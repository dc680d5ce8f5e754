"""Patches of photographs from what is left of them: a hole filled in, colours from grey.

One network of colour patches, and `sample_posterior` for two measurements. Several draws show what the hole and the
grey leave open. Printed is how well the mean of the draws agrees with what was hidden, beside the mean of all patches.

Run: python examples/restore_photographs.py [--quick] [--out PICTURE]      (a minute on two cores)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from scoresde import RectifiedFlow, ScoreModel, fit, guidance, plots, sample_posterior
from scoresde.data import photographs
from scoresde.nn import UNet
from scoresde.training.losses import log_normal

NOISE, DRAWS = 0.05, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds: the network has hardly learned")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/restore_photographs.png"))
    options = parser.parse_args()

    train, others = photographs(16, 10_000), photographs(16, 200, seed=1)
    model = fit(
        ScoreModel(UNet(3, width=16), RectifiedFlow(), predicts="edm"),
        train.images,
        steps=30 if options.quick else 1500,
        batch_size=32,
        learning_rate=2e-3,
        times=log_normal(-0.4, 1.6),
        ema_decay=0.995,
        seed=0,
    ).model

    around = torch.ones(16, 16, dtype=torch.bool)
    around[4:12, 4:12] = False
    operators = {"a hole": guidance.Mask(around), "grey": guidance.Grey()}
    usual = train.images.mean(0)
    chosen = [int((others.labels == k).nonzero()[j]) for k in (0, 1) for j in ((0,) if options.quick else (0, 3))]
    rows, names = [], []
    for name, operator in operators.items():
        errors = []
        for k, i in enumerate(chosen):
            image = others.images[i]
            y = operator(image[None])[0]
            steps = 5 if options.quick else 30
            drawn = sample_posterior(model, operator, y, DRAWS, noise_std=NOISE, steps=steps, seed=k).x
            seen = torch.where(around, image, -1.0) if name == "a hole" else y.expand(3, 16, 16)
            rows.append(torch.cat([image[None], seen[None], drawn]))
            names.append(name)
            hidden = ~around if name == "a hole" else torch.ones_like(around)
            errors.append([float((guess - image)[:, hidden].square().mean()) for guess in (drawn.mean(0), usual)])
        mine, theirs = torch.tensor(errors).mean(0).sqrt().tolist()
        print(f"{name:8} error of the mean of {DRAWS} draws {mine:.3f}, of the mean of all patches {theirs:.3f}")
    title = "patch, what was seen, five draws"
    figure = plots.image_grid(torch.cat(rows), rows=len(rows), row_labels=names, title=title, smooth=True)
    print(f"picture: {plots.save(figure, options.out)}")


if __name__ == "__main__":
    main()
