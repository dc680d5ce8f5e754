"""Diffusion in the codes of an autoencoder: colour patches of 32 x 32 pixels, one autoencoder variational, one plain.

A small convolutional autoencoder turns a patch, 3 x 32 x 32, into a code of 4 x 8 x 8, twelve times as short; a U-Net
learns the codes and not the pixels. What a code leaves out, the decoder cannot give back: "decoded" is how near a model
of the codes can come. The variational one bounds log p of a patch as well; the plain one has no density of patches.

Run: python examples/latent_photographs.py [--quick] [--out PICTURE]      (under two minutes on two cores)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from scoresde import VPSDE, Latent, RectifiedFlow, ScoreModel, fit, latent_elbo, plots, sample
from scoresde.data import photographs
from scoresde.metrics import frechet_distance, sliced_wasserstein
from scoresde.nn import Autoencoder, UNet
from scoresde.training import fit_autoencoder

COLUMNS = 14


def features(x: torch.Tensor) -> torch.Tensor:
    """Return the means of squares of 4 x 4 pixels, of which the Frechet distance is taken."""
    return torch.nn.functional.avg_pool2d(x, 4).flatten(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds: the networks have hardly learned")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/latent_photographs.png"))
    options = parser.parse_args()
    steps = (10, 10) if options.quick else (300, 900)
    n = 50 if options.quick else 500

    train, others = photographs(32, 10_000).images, photographs(32, 2_000, seed=1).images
    rows, names = [others[:COLUMNS]], ["real"]
    for variational in (True, False):
        name = "variational" if variational else "plain"
        autoencoder = Autoencoder(3, 4, width=8, multipliers=(1, 4, 8), variational=variational)
        fit_autoencoder(autoencoder, train, steps=steps[0], batch_size=32)
        latent = Latent.standardise(autoencoder, train)
        codes = latent.encode(train, seed=0)
        model = fit(
            ScoreModel(UNet(4, width=32, multipliers=(1, 2)), RectifiedFlow(), predicts="velocity"),
            codes,
            steps=steps[1],
            batch_size=32,
            learning_rate=2e-3,
            ema_decay=0.99,
        ).model
        model.transform = latent

        decoded = latent.inverse(latent.encode(others, seed=1))
        drawn = sample(model, n, seed=0)
        for kind, x in (("decoded", decoded), ("samples", drawn)):
            distances = frechet_distance(features(x), features(others)), sliced_wasserstein(x, others)
            print(f"{name}, {kind}: Frechet distance {distances[0]:.3f}, sliced Wasserstein-2 {distances[1]:.3f}")
            rows.append(x[:COLUMNS])
            names.append(f"{name}, {kind}")
        error = (decoded - others).square().mean().sqrt()
        print(f"{name}: a decoded pixel is off by {error:.3f}")
        if variational:
            print(f"{name}: {latent_elbo(model, others[:n], sde=VPSDE(), seed=0)}")
    figure = plots.image_grid(torch.cat(rows).clamp(-1, 1), row_labels=names, smooth=True)
    print(f"picture: {plots.save(figure, options.out)}")


if __name__ == "__main__":
    main()
