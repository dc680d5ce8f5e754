"""A generative model as a classifier: p(y | x) from p(x | y), and the way from one digit to another.

A class-conditional network says how probable an image is as each of the ten digits: by the continuous bound, with the
same noise for every class, so that the differences are known far better than each value. Bayes' rule makes p(y | x).
Beside it stands a classifier trained to do nothing else. Below, two held-out digits of one class, and what lies between
their latents on a sphere, decoded.

Run: python examples/generative_classifier.py [--quick] [--out PICTURE]      (two minutes on two cores)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression

from scoresde import VPSDE, ScoreModel, classify, fit, interpolate, plots
from scoresde.data import digits
from scoresde.nn import UNet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds: the network has hardly learned")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/generative_classifier.png"))
    options = parser.parse_args()

    train, test = digits("train"), digits("test")
    model = ScoreModel(UNet(1, width=16, classes=10), VPSDE(), predicts="noise")
    steps = 30 if options.quick else 2000
    trained = fit(model, train.images, cond={"label": train.labels}, steps=steps, batch_size=64, seed=0).model

    # Every third or so, in the order of the classes; few of them for a quick look.
    some = torch.arange(0, len(test.images), 90 if options.quick else 3)
    images, labels = test.images[some], test.labels[some]
    found = classify(trained, images, range(10), samples=2 if options.quick else 16, draws=4, seed=0, progress=True)
    right = found.predicted == labels
    error = found.standard_error.max(1).values
    print(f"{len(images)} held-out digits, by the bound: {right.float().mean():.1%} right")
    print(f"standard error of a probability: median {error.median():.1e}, largest {error.max():.2f}")
    direct = LogisticRegression(max_iter=2000).fit(train.images.flatten(1).numpy(), train.labels.numpy())
    score = direct.score(images.flatten(1).numpy(), labels.numpy())
    print(f"logistic regression, trained for it:  {score:.1%} right")

    first = torch.stack([test.images[test.labels == k][0] for k in range(10)])
    last = torch.stack([test.images[test.labels == k][1] for k in range(10)])
    way = interpolate(
        trained, first, last, 9, solver="heun", steps=5 if options.quick else 40, cond={"label": torch.arange(10)}
    )
    title = "from one held-out digit (left) to another (right)"
    figure = plots.image_grid(way.transpose(0, 1).flatten(0, 1), row_labels="0123456789", title=title, smooth=True)
    print(f"picture: {plots.save(figure, options.out)}")


if __name__ == "__main__":
    main()
