"""Five evaluations: a fixed table, the default, the best of all fixed tables for this network, and a fitted one.

A small network learns a spiral, and ``fit`` calibrates it at the end, for the default to use. ``select`` tries some 700
fixed tables of five calls on a few dozen start states, ``tune`` fits the numbers of one; all are judged here on start
states that they have not seen, by the distance to where the network's own flow leads, sample by sample.

Run: python examples/few_steps.py [--quick] [--out PICTURE]      (two minutes on two cores)
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from scoresde import VPSDE, ProbabilityFlow, ScoreModel, fit, sample, select, tune
from scoresde.data import swiss_roll
from scoresde.nn import MLP
from scoresde.transforms import Affine

STEPS = (4, 5, 6, 8, 10)
COLORS = {"flow_abm": "#009E73", "default": "#0072B2", "select": "#E69F00", "tune": "#D55E00"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds: the network has hardly learned")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/few_steps.png"))
    options = parser.parse_args()
    x = swiss_roll(5000)
    model = fit(
        ScoreModel(MLP(2, width=128, depth=3), VPSDE(), predicts="v"),
        x,
        transform=Affine.standardise(x),
        steps=100 if options.quick else 5000,
        batch_size=256,
        seed=0,
    ).model
    n, counts = (300, (4, 5)) if options.quick else (2000, STEPS)
    draw = functools.partial(sample, model, n, seed=1)
    exact = draw(solver=ProbabilityFlow(rtol=1e-5, atol=1e-5))
    drawn: dict[tuple[str, int], torch.Tensor] = {}
    for steps in counts:
        chosen, tuned = select(model, steps), tune(model, steps)
        print(f"{steps} evaluations: select took {chosen.rows[0].candidate}; tune: {tuned}")
        drawn["flow_abm", steps] = draw(solver="flow_abm", steps=steps)
        drawn["default", steps] = draw(steps=steps)  # as the calibration says
        drawn["select", steps] = draw(solver=chosen)
        drawn["tune", steps] = draw(solver="tuned", steps=steps)  # kept with the model, and saved with it

    figure, panels = plt.subplots(1, 6, figsize=(18.0, 3.4), layout="constrained")
    reach = 1.1 * float(x.abs().max())
    shown = {"the flow itself": exact, **{way: drawn[way, 5] for way in COLORS}}
    for axes, (name, points) in zip(panels, shown.items(), strict=False):
        axes.scatter(*points.T, s=1.5, color=COLORS.get(name, "#666666"))
        missed = (points - exact).square().sum(1).sqrt().median()
        axes.set_title(name if points is exact else f"{name}, 5 calls: {float(missed):.3f} off")
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
    for way, color in COLORS.items():
        errors = [float((drawn[way, steps] - exact).square().sum(1).sqrt().median()) for steps in counts]
        panels[-1].plot(counts, errors, "o-", color=color, label=way)
    panels[-1].set(yscale="log", xlabel="evaluations", title="median distance to the flow")
    panels[-1].legend(frameon=False)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=60)
    print(f"picture: {options.out}")


if __name__ == "__main__":
    main()
