"""Sequential depth of tables that are run in parallel in time, on the digits network of the demo.

For each solver at 100 steps: how often the network is called one after another (depth, of ``rows`` without Picard), how
many predictions a sample costs, and how far the samples are from those of the solver alone with the same seed: the
root mean square over the pixels of the worst sample, and the largest difference of any pixel, in units in which pixels
run from -1 to 1. "noise held" is the same iteration without the Gaussian's slope: what is held is the noise prediction
itself, as in Shih et al. 2023, arXiv:2305.16317, from an initial guess of no noise prediction. (The slope is that of
data of a variance; an infinite one leaves the noise.)

Run: make demo, then python benchmarks/parallel.py [--checkpoint runs/demo/digits] [--samples 10] [--seed 0] [--record]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from record import add_record, write_record

from scoresde import DDPM, Picard, SampleResult, ScoreModel, Solver, Tableau, sample, solvers
from scoresde.diffusions.gaussian import Gaussian
from scoresde.models.prediction import Predictor

STEPS = 100
TOLERANCES = (1e-2, 1e-3, 1e-4)


def methods(model: Predictor) -> dict[str, tuple[Solver | Tableau, int | None]]:
    """Return solvers and their steps; a chain has its own."""
    named = {name: (solvers.by_name(name), STEPS) for name in ("ddim", "dpmpp_2m", "flow_abm", "heun")}
    chain = DDPM.from_sde(model.sde, STEPS).ancestral()
    return {**named, "ddpm, ancestral": (chain, None), "euler_maruyama": (solvers.by_name("euler_maruyama"), STEPS)}


def holding_noise(model: Predictor) -> Predictor:
    """Return the model with data of hardly bounded variance, for whose Gaussian the noise prediction is 0."""
    other = model.in_its_own_coordinates()
    assert model.moments is not None
    other.moments = replace(model.moments, variance=torch.full_like(model.moments.variance, 1e12))
    return other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/demo/digits"))
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    add_record(parser, "parallel")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = options.checkpoint
    model = ScoreModel.load(folder / "checkpoint" if (folder / "checkpoint").exists() else folder)
    assert model.moments is not None
    cond = {"label": torch.arange(options.samples) % 10}
    shape = (options.samples, *model.moments.mean.shape)

    def run(one: Predictor, solver: Picard | Solver | Tableau, steps: int | None, prior: Gaussian) -> SampleResult:
        return sample(
            one, shape, solver=solver, steps=steps, cond=cond, seed=options.seed, prior=prior, full_output=True
        )

    rows: list[dict[str, object]] = []
    print(f"{'solver':>16} {'rows':>5} {'held':>9} {'window':>6} {'tolerance':>9} ", end="")
    print(f"{'depth':>6} {'predictions':>11} {'worst rms':>10} {'largest':>9}")
    for name, (solver, steps) in methods(model).items():
        start = model.moments.at(*_ends(model))
        alone = run(model, solver, steps, start)
        cases = [(model, "residual", None, tolerance) for tolerance in TOLERANCES]
        cases += [(model, "residual", 25, 1e-3), (holding_noise(model), "noise", None, 1e-3)]
        for one, held, window, tolerance in cases:
            made = run(one, Picard(solver, window=window, tolerance=tolerance), steps, start)
            off = (made.x - alone.x).flatten(1)
            row = {
                **{"solver": name, "rows": int(alone.nfe[0]), "held": held, "window": window, "tolerance": tolerance},
                **{"depth": int(made.accepted[0]), "predictions": int(made.nfe[0])},
                **{"worst_rms": float(off.square().mean(1).sqrt().max()), "largest": float(off.abs().max())},
            }
            rows.append(row)
            print(f"{name:>16} {row['rows']:>5} {held:>9} {window or 'all':>6} {tolerance:>9g} ", end="")
            print(
                f"{row['depth']:>6} {row['predictions']:>11} {row['worst_rms']:>10.1e} {row['largest']:>9.1e}",
                flush=True,
            )
    found = {"steps": STEPS, "samples": options.samples, "seed": options.seed, "torch": torch.__version__, "runs": rows}
    write_record(options.record, json.dumps(found, indent=1))


def _ends(model: Predictor) -> tuple[float, float]:
    """Return alpha and sigma where sampling starts."""
    first = model.sde.at(model.sde.t_max)
    return float(first.alpha), float(first.sigma)


if __name__ == "__main__":
    main()
