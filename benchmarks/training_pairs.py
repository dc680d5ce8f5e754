"""How well each prediction learns under each diffusion with what ``fit`` chooses: every legal pair, on two targets.

A small network (an MLP of width 64 and depth 2) is trained for 1000 steps of 256 samples on a mixture of Gaussians on
a line and on one in the plane, whose scores are known. Printed are the Wasserstein-1 distance of 4000 samples (40 steps
of the default solver) to as many fresh data, in the plane its mean over 64 directions, and the relative error of the
score at log-SNR -6, -2, 2 and 6: the root of E|s - s*|^2 / E|s*|^2 at states of the diffusion. The floor is the mean
distance of two sets of fresh data. "times best" is the distance over the smallest under the diffusion, or over the
floor where that is larger.

Run: python benchmarks/training_pairs.py [--steps 1000] [--seeds 1] [--sde NAME ...] [--predicts NAME ...] [--record]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping

import torch
from record import add_record, write_record
from torch import Tensor

from scoresde import (
    EDMSDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    DomainError,
    GaussianMixtureModel,
    GaussianSDE,
    RectifiedFlow,
    ScoreModel,
    SubVPSDE,
    fit,
    sample,
)
from scoresde.errors import TrainingWarning
from scoresde.models.parameterization import PARAMETERIZATIONS
from scoresde.nn import MLP
from scoresde.noise import normal, stream

SDES: dict[str, GaussianSDE] = {
    "vp": VPSDE(),
    "cosine": CosineVPSDE(),
    "subvp": SubVPSDE(),
    "ve": VESDE(),
    "edm": EDMSDE(),
    "rectified": RectifiedFlow(),
}
SAMPLES, FLOORS, DIRECTIONS = 4000, 8, 64
LEVELS = (-6.0, -2.0, 2.0, 6.0)


def line(sde: GaussianSDE) -> GaussianMixtureModel:
    """Three modes of unequal weights and widths on a line."""
    means, std = torch.tensor([[-1.6], [0.1], [1.2]]), torch.tensor([0.1, 0.3, 0.15])
    return GaussianMixtureModel(sde=sde, weights=torch.tensor([0.2, 0.5, 0.3]), means=means, std=std)


def spiral(sde: GaussianSDE) -> GaussianMixtureModel:
    """Seven modes of unequal weights on a spiral in the plane."""
    angle = torch.arange(7) * 0.9
    means = (0.3 + 0.25 * angle)[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return GaussianMixtureModel(sde=sde, weights=torch.arange(3.0, 10.0), means=means, std=0.12)


TARGETS: dict[str, Callable[[GaussianSDE], GaussianMixtureModel]] = {"line": line, "spiral": spiral}


def distance(x: Tensor, y: Tensor) -> float:
    """Return Wasserstein-1 of two sets of one size, averaged over directions in the plane."""
    if x.shape[1] == 2:
        angle = torch.arange(DIRECTIONS) * math.pi / DIRECTIONS
        turn = torch.stack([angle.cos(), angle.sin()])
        x, y = x @ turn, y @ turn
    return float((x.sort(0).values - y.sort(0).values).abs().mean())


def score_errors(model: ScoreModel, exact: GaussianMixtureModel, x0: Tensor) -> list[float | None]:
    """Return the relative error of the score at each of ``LEVELS``, None where the diffusion does not reach it."""
    sde, errors = exact.sde, []
    for level in LEVELS:
        t = float(sde.time(torch.tensor(level, dtype=torch.float64)))
        if not sde.t_min <= t <= sde.t_max:
            errors.append(None)
            continue
        at = sde.at(t)
        x = float(at.alpha) * x0 + float(at.sigma) * normal(x0.shape, stream(0, "states", int(level)))
        with torch.no_grad():
            ours, true = model(x, t).score, exact(x, t).score
        errors.append(float((ours - true).square().mean() / true.square().mean()) ** 0.5)
    return errors


def measure(target: str, name: str, predicts: str, steps: int, seed: int) -> dict[str, object] | None:
    """Train one pair and return its figures; None where the model refuses the pair."""
    exact = TARGETS[target](SDES[name])
    data, fresh = (exact.sample_data(n, stream(seed, k)) for n, k in ((20_000, "data"), (SAMPLES, "fresh")))
    net = MLP(data.shape[1], width=64, depth=2, seed=seed)
    try:
        model = ScoreModel(net, exact.sde, predicts=predicts)
    except DomainError:
        return None
    started = time.process_time()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", TrainingWarning)
        result = fit(model, data, steps=steps, batch_size=256, learning_rate=2e-3, seed=seed, progress=False)
    seconds = time.process_time() - started
    x = sample(result.model, tuple(fresh.shape), steps=40, seed=seed + 1)
    return {
        "weight": result.weight,
        "times": result.times,
        "w1": distance(x, fresh),
        "score": score_errors(result.model, exact, fresh[:2000]),
        "seconds": seconds,
        "warned": bool(heard),
    }


def merge(runs: list[dict[str, object]]) -> dict[str, object]:
    """Return the medians over seeds."""
    levels = zip(*(run["score"] for run in runs), strict=True)
    score = [None if None in values else statistics.median(values) for values in levels]
    numbers = {key: statistics.median(run[key] for run in runs) for key in ("w1", "seconds")}
    return runs[0] | numbers | {"score": score}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each pair; their medians are printed")
    parser.add_argument("--sde", nargs="+", choices=SDES, default=list(SDES))
    parser.add_argument("--predicts", nargs="+", choices=PARAMETERIZATIONS, default=list(PARAMETERIZATIONS))
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS))
    add_record(parser, "training_pairs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, object] = {"steps": options.steps, "seeds": options.seeds, "samples": SAMPLES, "levels": LEVELS}
    for target in options.target:
        exact = TARGETS[target](VPSDE())
        sets = [exact.sample_data(SAMPLES, stream(k, "floor")) for k in range(2 * FLOORS)]
        floor = statistics.mean(distance(a, b) for a, b in zip(sets[::2], sets[1::2], strict=True))
        print(f"\n{target}: W1 of two sets of {SAMPLES} fresh data {floor:.4f}")
        print(f"{'diffusion':10}{'predicts':10}{'weight':10}{'times':16}{'W1':>8}{'times best':>12}  score's error")
        result[target] = {"floor": floor, "pairs": measure_all(target, options, floor)}
    write_record(options.record, json.dumps(round_figures(result), indent=1))


def measure_all(target: str, options: argparse.Namespace, floor: float) -> Mapping[str, object]:
    """Return the figures of all pairs by diffusion and prediction, printed as they come."""
    found: dict[str, object] = {}
    for name in options.sde:
        here: dict[str, dict[str, object]] = {}
        for predicts in options.predicts:
            runs = [measure(target, name, predicts, options.steps, seed) for seed in range(options.seeds)]
            trained = [run for run in runs if run is not None]
            if trained:
                here[predicts] = merge(trained)
        best = max(floor, min((row["w1"] for row in here.values()), default=floor))
        for predicts, row in here.items():
            row["times_best"] = row["w1"] / best
            errors = " ".join("     -" if e is None else f"{e:6.3f}" for e in row["score"])
            warned = "  warned" * row["warned"] + "  MORE THAN TWICE" * (row["times_best"] > 2)
            print(
                f"{name:10}{predicts:10}{row['weight']:10}{row['times']:16}{row['w1']:8.4f}{row['times_best']:12.2f}  "
                f"{errors}{warned}",
                flush=True,
            )
        found[name] = here
    return found


def round_figures(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, (list, tuple)):
        return [round_figures(v) for v in value]
    return {k: round_figures(v) for k, v in value.items()} if isinstance(value, dict) else value


if __name__ == "__main__":
    main()
