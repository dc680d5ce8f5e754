"""Critically damped Langevin diffusion: noise reaches the data through a velocity.

Eight Gaussians on a circle are the positions; the network sees position and velocity and predicts the noise of the
velocity alone (hybrid score matching). The same network under VPSDE, with as many steps of training, stands beside it.
Each process is sampled by its own tables at several numbers of evaluations: symmetric splitting, ancestral,
Euler-Maruyama.

Run: python examples/langevin_diffusion.py [--quick] [--out PICTURE] [--seed N]      (under two minutes on two cores)
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scoresde import VPSDE, LinearModel, MatrixSDE, ScoreModel, ZeroVelocity, fit, metrics, plots, sample, solvers
from scoresde.data import eight_gaussians
from scoresde.nn import MLP


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds: the networks have hardly learned")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/langevin_diffusion.png"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    steps, count = (20, 200) if options.quick else (1200, 2000)

    data, held_out = eight_gaussians(20_000, seed=0), eight_gaussians(count, seed=1)
    width = {"width": 96, "depth": 3, "seed": options.seed}
    langevin = LinearModel(MLP(4, **width), MatrixSDE.langevin())
    scalar = ScoreModel(MLP(2, **width), VPSDE(), predicts="noise")
    training = {"steps": steps, "batch_size": 256, "learning_rate": 2e-3, "seed": options.seed, "progress": False}
    trained = {
        "Langevin": fit(langevin, data, transform=ZeroVelocity(), **training).model,
        "VPSDE": fit(scalar, data, **training).model,
    }

    floor = metrics.floor(metrics.sliced_wasserstein, eight_gaussians(20 * count, seed=2), count, repeats=5).mean
    print(f"sliced Wasserstein distance to held-out data; of as many data {floor:.3f}")
    shown = {}
    tables = {"Langevin": ("splitting", "ancestral", "euler_maruyama"), "VPSDE": ("ancestral", "euler_maruyama")}
    for name, model in trained.items():
        for kind in tables[name]:
            solver = solvers.splitting() if kind == "splitting" else kind
            errors = []
            for n in (20, 50, 200):
                x = sample(model, (count, 4 if name == "Langevin" else 2), solver=solver, steps=n, seed=3)
                errors.append(float(metrics.sliced_wasserstein(x, held_out)))
                if n == 50 and kind != "euler_maruyama":
                    shown[f"{name}, {kind}"] = x[:600]
            print(
                f"{name:>9}, {kind:<15}"
                + "".join(f"  {n} steps {e:.3f}" for n, e in zip((20, 50, 200), errors, strict=True))
            )

    figure = plots.scatter(shown, held_out[:600])
    print(f"picture: {plots.save(figure, options.out)}")


if __name__ == "__main__":
    main()
