"""A table: ten measurements of cell nuclei, standardised by a transform that is stored with the model.

The columns' units differ by a factor of ten thousand. ``fit`` applies the transform, ``sample`` inverts it, and a
loaded model still has it. Marginals are compared column by column with held-out rows, then the correlations, which no
marginal sees. With 455 rows a network can learn them by heart; the last line shows whether it has.

Run: python examples/tabular.py [--quick] [--out PICTURE]      (half a minute on two cores)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from scoresde import Affine, CosineVPSDE, ScoreModel, fit, sample
from scoresde.data import tabular
from scoresde.metrics import marginal_distances
from scoresde.nn import MLP

COLUMNS = 10  # the means; the table has their standard errors and their worst values too


def draw(real: torch.Tensor, drawn: torch.Tensor, names: tuple[str, ...], path: Path) -> None:
    """Draw a histogram of each column, of the data and of the samples."""
    figure, panels = plt.subplots(2, 5, figsize=(15.0, 5.4), layout="constrained")
    for k, (axes, name) in enumerate(zip(panels.flat, names, strict=True)):
        low, high = real[:, k].min().item(), real[:, k].max().item()
        reach = (low - 0.1 * (high - low), high + 0.1 * (high - low))
        axes.hist(real[:, k], bins=24, range=reach, density=True, color="#0072B2", alpha=0.35, label="data")
        axes.hist(drawn[:, k], bins=24, range=reach, density=True, color="#D55E00", histtype="step", label="samples")
        axes.set(xlabel=name, yticks=[])
    panels[0, 0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds: the network has hardly learned")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/tabular.png"))
    options = parser.parse_args()

    table = tabular("breast_cancer")
    train, test = table.values[:, :COLUMNS], tabular("breast_cancer", "test").values[:, :COLUMNS]
    scale = Affine.standardise(train)
    model = ScoreModel(MLP(COLUMNS, width=96, depth=2), CosineVPSDE(), predicts="v")
    steps = 60 if options.quick else 1500
    trained = fit(model, train, transform=scale, steps=steps, batch_size=128, ema_decay=0.99, seed=0).model

    folder = options.out.with_suffix("")
    trained.save(folder)
    x = sample(ScoreModel.load(folder), (2000, COLUMNS), steps=40, seed=0)  # in the units of the table

    distances = marginal_distances(x, test, distance="kolmogorov_smirnov")
    real = marginal_distances(train, test, distance="kolmogorov_smirnov")
    print("Kolmogorov-Smirnov distance to 114 held-out rows, of 2000 samples and of the 455 training rows:")
    for name, far, near in zip(table.names, distances, real, strict=False):
        print(f"  {name:<24} {far:.3f}   {near:.3f}")
    gap = (torch.corrcoef(x.T) - torch.corrcoef(train.T)).abs().max()
    print(f"largest difference of a correlation from that of the training rows: {gap:.3f}")
    to_train = [torch.cdist(scale.forward(rows), scale.forward(train)).amin(1).median() for rows in (x, test)]
    print(f"median distance to the nearest training row: samples {to_train[0]:.2f}, held-out rows {to_train[1]:.2f}")
    draw(train, x, table.names[:COLUMNS], options.out)
    print(f"picture: {options.out}\nmodel:   {folder}/")


if __name__ == "__main__":
    main()
