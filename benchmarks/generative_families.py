"""Families of generative models on one data set: how probable they find held-out digits, and how good they draw.

All are trained on the same 1293 of scikit-learn's digits (17 levels, 8 x 8), choose by 144 others and are judged on 360
that no choice has seen: a Gaussian mixture, a VAE, a hierarchical VAE, a PixelCNN, DDPM and score models under three
diffusions and two weights. Likelihoods are of the *levels*, in bits per dimension, exact or lower bounds of log P, as
each family allows. Samples are measured by the digits' judge against the 360: squared Frechet distance in its features,
and the share of which it is sure; the floor is what as many training digits measure. Seconds are for 1000 samples.

Run: python benchmarks/generative_families.py [--only NAME] [--quick] [--figure PICTURE] [--record]      (20 minutes)
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from families import mixture, pixelcnn, vae
from families.common import Family, Split, load, to_images
from families.diffusion import SDES, Chain, fit_score
from matplotlib.figure import Figure
from record import add_record, read_record, write_record

from scoresde.metrics.digits import DigitJudge
from scoresde.plots import image_grid, save
from scoresde.plots.style import dress, plain_log_ticks, use_style

PIXELS = 64


def families() -> dict[str, Callable[[Split, bool], Family]]:
    """Return how each family is trained; the DDPM is the network of the first score model."""
    found: dict[str, Callable[[Split, bool], Family]] = {
        "Gaussian mixture": lambda split, quick: mixture.fit(split, quick=quick),
        "VAE": lambda split, quick: vae.fit(split, quick=quick),
        "hierarchical VAE": lambda split, quick: vae.fit_hierarchical(split, quick=quick),
        "PixelCNN": lambda split, quick: pixelcnn.fit(split, quick=quick),
        "DDPM, 200 steps": lambda split, quick: Chain(fit_score(split, SDES["VP"], "simple", quick=quick).model),
    }
    for name, sde in SDES.items():
        for weight in ("simple", "likelihood"):
            train = partial(fit_score, sde=sde, weight=weight)
            found[f"{name}, {weight}"] = lambda split, quick, train=train: train(split, quick=quick)
    return found


def bits(nats: torch.Tensor) -> tuple[float, float]:
    """Return bits per dimension of log P (N,), and the standard error of the mean over the images."""
    scale = PIXELS * math.log(2)
    return -float(nats.mean()) / scale, float(nats.std()) / (scale * math.sqrt(len(nats)))


def measure(family: Family, split: Split, judge: DigitJudge, samples: int) -> tuple[dict[str, object], torch.Tensor]:
    """Return the figures of a trained family, and its samples as images."""
    values = family.log_prob(split.test)
    started = time.perf_counter()
    drawn = to_images(family.sample(samples))
    seconds = (time.perf_counter() - started) * 1000 / samples
    value, error = bits(values["value"])
    row: dict[str, object] = {
        "bits_per_dim": value,
        "standard_error": error,
        "kind": family.kind,
        "seconds_per_1000": seconds,
        "frechet": judge.frechet(drawn),
        "share_sure": judge.share(drawn),
        "parameters": family.size,
    }
    scale = PIXELS * math.log(2)
    row["others"] = {name: float(one.mean()) / -scale for name, one in values.items() if name != "value"}
    return row, drawn


def draw(rows: dict[str, dict[str, object]], floor: float, pictures: dict[str, torch.Tensor], path: Path) -> None:
    """Draw likelihood against sample quality, and beside it ten samples of each family."""
    distances = [float(row["frechet"]) for row in rows.values()]
    with use_style():
        figure = Figure(figsize=(7.6, 4), layout="constrained")
        axes = figure.subplots()
        colours: dict[str, str] = {}
        for name, row in rows.items():
            kind, _, weight = name.partition(", ")
            colour = colours.setdefault(kind, f"C{len(colours)}")
            marker = "o" if row["kind"] == "exact" else "v" if weight == "likelihood" else "<"
            axes.plot(float(row["bits_per_dim"]), float(row["frechet"]), marker, color=colour, markersize=8, label=name)
        axes.axhline(floor, color="0.5", linestyle="--", linewidth=1, label="as many real digits")
        axes.set_yscale("log")
        axes.margins(x=0.1, y=0.1)
        plain_log_ticks(axes.yaxis, min(floor, *distances), max(floor, *distances))
        dress(axes, xlabel="bits per dimension, held-out digits (but ○: at most)", ylabel="Fréchet distance of samples")
        figure.legend(loc="outside right upper", fontsize=9)
    save(figure, path)
    rows_of = [images[:16] for images in pictures.values()]
    grid = image_grid(torch.cat(rows_of), row_labels=list(pictures), smooth=True)
    save(grid, path.with_name(f"{path.stem}_samples{path.suffix}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", help="one family, by its name in the table")
    parser.add_argument("--quick", action="store_true", help="models that have hardly learned, few samples")
    parser.add_argument("--figure", type=Path, default=Path("runs/generative_families.png"), help="where to draw")
    add_record(parser, "generative_families")
    options = parser.parse_args()
    every = families()
    if options.only is not None and options.only not in every:
        parser.error(f"--only must be one of: {'; '.join(every)}")
    torch.set_num_threads(1)
    split, judge = load(), DigitJudge.train()
    if options.quick:
        split = Split(split.train[:300], split.valid[:20], split.test[:40])
    samples = 40 if options.quick else 1000
    pictures = {"held-out digits": to_images(split.test[torch.randperm(len(split.test))])}
    real = to_images(split.train[:samples])
    floor = {"frechet": judge.frechet(real), "share_sure": judge.share(to_images(split.test))}
    print(f"{'':22}{'bits/dim':>18}{'s/1000':>9}{'Frechet':>9}{'sure':>7}{'parameters':>12}")
    print(f"{'real digits':22}{'':18}{'':9}{floor['frechet']:9.2f}{floor['share_sure']:7.3f}")
    rows: dict[str, dict[str, object]] = {}
    # These networks and their draws use torch's global generator, from a seed of each family's own.
    for name, fit in every.items():
        if options.only in (None, name):
            torch.manual_seed(0)
            family = fit(split, options.quick)
            rows[name], pictures[name] = measure(family, split, judge, samples)
            row = rows[name]
            value = f"{'' if row['kind'] == 'exact' else '<= '}{row['bits_per_dim']:.3f} ± {row['standard_error']:.3f}"
            print(
                f"{name:22}{value:>18}{row['seconds_per_1000']:9.2f}{row['frechet']:9.2f}{row['share_sure']:7.3f}"
                f"{row['parameters']:12d}   " + ", ".join(f"{k} {v:.3f}" for k, v in row["others"].items()),
                flush=True,
            )
    draw(rows, floor["frechet"], pictures, options.figure)
    print(f"picture: {options.figure}")
    known = read_record(options.record).get("families", {}) if options.only is not None else {}
    every_row = {name: {**known, **rows}[name] for name in every if name in {**known, **rows}}
    write_record(options.record, json.dumps({"floor": floor, "samples": samples, "families": every_row}, indent=1))


if __name__ == "__main__":
    main()
