"""Digits from coarse to fine: the details enter late, and until then the network sees a smaller image.

In the Haar basis an image of 8 x 8 is a coarse image of 4 x 4 and its details. Here the details are noise from t = 0.5
on and the coarse image at t = 1. Going back from noise, the network is given the coarse image alone, as an image of
4 x 4, down to t = 0.5, and the whole one from there. The same process without leaving anything out, and the scalar
diffusion VPSDE, are trained by as many steps for comparison.

Run: python examples/multi_scale.py [--quick] [--out PICTURE] [--seed N]      (under two minutes on two cores)
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch

from scoresde import VPSDE, GroupedSDE, Haar, LinearModel, ScoreModel, build_blocks, fit, plots, sample
from scoresde.data import digits
from scoresde.metrics.digits import DigitJudge
from scoresde.nn import UNet

EVENT, END, STEPS = (1, 8, 8), 0.5, 40
ROWS = (12, 19, 26, 32)


def look(state: torch.Tensor, t: float, model: ScoreModel) -> torch.Tensor:
    """Return what the network is given of a state, as images of 8 x 8."""
    if not isinstance(model, LinearModel):
        return state
    if model.boxes(torch.tensor([t]))[0] == EVENT:
        return Haar(1).inverse(state)
    coarse = state[:, :, :4, :4] / 2
    return coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)


def measure(event: tuple[int, ...], ends: tuple[float, ...], samples: int) -> None:
    """Print the numbers that a network is given for a sample, and the time of sampling, with groups left out and not.

    The time is that of the processor, the least of three runs each that take turns.
    """
    sde, haar = GroupedSDE.levels(event, ends), Haar(len(ends))
    table = build_blocks(sde, "ancestral", steps=STEPS)
    seen, whole = sum(math.prod(sde.kept(row.at.t)) for row in table.rows), table.nfe * math.prod(event)
    net, least = UNet(event[0], width=16, multipliers=(1, 2)), {True: math.inf, False: math.inf}
    for _ in range(3):
        for drop in least:
            begun = time.process_time()
            sample(
                LinearModel(net, sde, basis=haar, drop=drop), (samples, *event), solver="ancestral", steps=STEPS, seed=0
            )
            least[drop] = min(least[drop], time.process_time() - begun)
    share = least[True] / least[False]
    what = f"{event} in {len(ends) + 1} scales"
    print(f"{what}: the network is given {seen / whole:.0%} of the numbers, in {share:.0%} of the time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds: the networks have hardly learned")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/multi_scale.png"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    steps, count = (20, 20) if options.quick else (1200, 400)

    images, judge = digits("train").images, DigitJudge.train()
    sde, haar = GroupedSDE.levels(EVENT, (END,)), Haar(1)
    net = {"channels": 1, "width": 16, "multipliers": (1, 2), "seed": options.seed}
    models = {
        "coarse first, details left out": LinearModel(UNet(**net), sde, transform=haar, basis=haar),
        "coarse first, nothing left out": LinearModel(UNet(**net), sde, transform=haar, basis=haar, drop=False),
        "all scales at once (VPSDE)": ScoreModel(UNet(**net), VPSDE(), predicts="noise"),
    }
    picture = {}
    for name, model in models.items():
        trained = fit(
            model,
            images,
            steps=steps,
            batch_size=64,
            learning_rate=2e-3,
            ema_decay=0.99,
            seed=options.seed,
            progress=False,
        ).model
        x = sample(trained, (count, *EVENT), solver="ancestral", steps=STEPS, seed=1)
        print(f"{name}: Frechet distance to held-out digits {judge.frechet(x):.2f}")
        shown = sample(
            trained, (10, *EVENT), solver="ancestral", steps=STEPS, seed=2, trajectory=True, full_output=True
        )
        assert shown.trajectory is not None
        picture[name] = [look(shown.trajectory[i], shown.times[i], trained) for i in ROWS] + [shown.x]

    measure(EVENT, (END,), samples=2 if options.quick else 32)
    if not options.quick:
        measure((3, 32, 32), (0.3, 0.6), samples=32)

    first, _, last = picture.values()
    rows = torch.cat([torch.cat(first), torch.cat(last)]).clamp(-1.0, 1.0)
    labels = [f"{kind} {what}" for kind in ("levels", "VPSDE") for what in (*(f"step {i}" for i in ROWS), "end")]
    figure = plots.image_grid(rows, row_labels=labels, title="what the network is given on the way, ten samples")
    print(f"picture: {plots.save(figure, options.out)}")


if __name__ == "__main__":
    main()
