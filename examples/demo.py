"""The main job: train on real digits and on the swiss roll, sample with discrete and continuous samplers, compare.

Everything goes to runs/demo/. On two cores this takes under five minutes; ``--quick`` shows the same in seconds, with
models that have hardly learned.

Run: python examples/demo.py [--quick] [--out runs/demo]
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import torch

from scoresde import ScoreModel, sample
from scoresde.cli import main as scoresde
from scoresde.cli.presets import DATA
from scoresde.noise import normal, stream
from scoresde.plots import animation

CONTINUOUS = ["euler_maruyama:200", "pc:100", "probability_flow", "dpmpp_2m:10", "dpmpp_2m:20", "flow_abm:10"]


def run(*arguments: str) -> None:
    """Call the command line, as one would in a shell."""
    print(f"\n$ scoresde {' '.join(arguments)}", flush=True)
    if (code := scoresde(list(arguments))) != 0:
        raise SystemExit(code)


def forward_and_reverse(data: str, folder: Path, path: Path) -> None:
    """Animate held-out data becoming noise and noise becoming samples."""
    kind = DATA[data].kind
    count = 64 if kind == "images" else 1500
    model = ScoreModel.load(folder / "checkpoint")
    real = DATA[data].held_out()[:count]
    z = normal(real.shape, stream(0, "animation"))
    times = torch.linspace(model.sde.t_min, model.sde.t_max, 30, dtype=torch.float64).square()
    times = times.clamp_min(model.sde.t_min)
    noising = [model.sde.perturb(real, float(t), z) for t in times]
    cond = {"label": torch.arange(count) % 10} if kind == "images" else None
    result = sample(
        model, tuple(real.shape), steps=40, solver="dpmpp_2m_sde", seed=0, cond=cond, trajectory=True, full_output=True
    )
    captions = [f"data to noise, t = {float(t):.2f}" for t in times]
    captions += [f"noise to samples, t = {t:.2f}" for t in result.times]
    animation([*noising, *result.trajectory], path, kind=kind, captions=captions, smooth=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a shortened run: hardly trained models, few samples")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for the results; it is made anew")
    options = parser.parse_args()
    started = time.perf_counter()
    if options.out.exists():
        shutil.rmtree(options.out)
    jobs = {
        "swiss_roll": ([], "ddpm:1000@500", "2000"),
        "digits": (["--conditional"], "ddpm:1000@100", "500"),
    }
    for data, (extra, ddpm, count) in jobs.items():
        folder = options.out / data
        if options.quick:
            extra, ddpm, count = [*extra, "--steps", "40"], "ddpm:50@20", "40"
        run("train", "--data", data, "--out", str(folder), *extra)
        samplers = ["euler_maruyama:20", "pc:10", *CONTINUOUS[2:]] if options.quick else CONTINUOUS
        run("compare", "--checkpoint", str(folder), "--n", count, "--samplers", ddpm, *samplers)
        forward_and_reverse(data, folder, folder / "forward_and_reverse.gif")
    print(f"\nDone in {time.perf_counter() - started:.0f} seconds. Look at:")
    for data in jobs:
        for name in ("comparison/samples.png", "comparison/comparison.png", "forward_and_reverse.gif"):
            print(f"  {options.out / data / name}")


if __name__ == "__main__":
    main()
