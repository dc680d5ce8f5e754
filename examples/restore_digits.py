"""Digits from what is left of them: the lower half hidden, 4 x 4 pixels of 8 x 8, blurred.

One network is trained on digits, without any of these in mind. ``sample_posterior`` then draws several digits for each
measurement: their spread is what the measurement leaves open. A classifier that was trained on real digits says how
often a drawn digit is the one that was measured.

Run: python examples/restore_digits.py [--quick] [--method NAME] [--out PICTURE]      (three minutes on two cores)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from scoresde import VPSDE, ScoreModel, fit, guidance, plots, sample_posterior
from scoresde.data import digits
from scoresde.metrics.digits import DigitJudge
from scoresde.nn import UNet
from scoresde.noise import normal, stream

NOISE, DRAWS = 0.1, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds: the network has hardly learned")
    parser.add_argument("--method", default="mmps", help="of sample_posterior")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/restore_digits.png"))
    options = parser.parse_args()

    train, test = digits("train"), digits("test")
    model = fit(
        ScoreModel(UNet(1, width=16), VPSDE(), predicts="v"),
        train.images,
        steps=40 if options.quick else 2500,
        batch_size=64,
        learning_rate=2e-3,
        ema_decay=0.995,
        seed=0,
    ).model
    judge = DigitJudge.train()

    upper = torch.zeros(1, 8, 8, dtype=torch.bool)
    upper[:, :4] = True
    operators = {
        "lower half hidden": guidance.Mask(upper),
        "4 x 4 pixels": guidance.Downsample(2),
        "blurred": guidance.Blur.gaussian(1.2),
    }
    chosen = [int((test.labels == k).nonzero()[1]) for k in ((2, 5) if options.quick else range(10))]
    images, labels = test.images[chosen], test.labels[chosen]
    rows, names = [], []
    for name, operator in operators.items():
        found = []
        for k, image in enumerate(images):
            y = operator(image[None])[0]
            y = y + NOISE * normal(tuple(y.shape), stream(1, name, k))
            steps = 10 if options.quick else 40
            drawn = sample_posterior(
                model, operator, y, 20, noise_std=NOISE, method=options.method, steps=steps, seed=k
            )
            found.append(drawn.x)
            if k in (2, 3, 5) or options.quick:
                # What was seen, as an image: the adjoint puts it where it came from.
                seen = operator.adjoint(y[None], image.shape)
                seen = seen / operator.adjoint(torch.ones_like(y)[None], image.shape).clamp_min(1e-6)
                seen = y[None] if name == "blurred" else seen
                if name == "lower half hidden":
                    seen = torch.where(upper, seen, -1.0)
                rows.append(torch.cat([image[None], seen, drawn.x[:DRAWS]]))
                names.append(name)
        draws = torch.cat(found)
        agree = judge.accuracy(draws, labels.repeat_interleave(20))
        spread = torch.stack([one.std(0).mean() for one in found]).mean()
        print(f"{name:20} the classifier sees the measured digit in {agree:.0%}; spread of a pixel {spread:.2f}")
    title = "digit, what was seen, five draws"
    figure = plots.image_grid(torch.cat(rows), rows=len(rows), row_labels=names, title=title, smooth=True)
    print(f"picture: {plots.save(figure, options.out)}")


if __name__ == "__main__":
    main()
