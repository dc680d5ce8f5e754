"""Discrete against continuous: chains and SDE samplers, their errors and bounds, against the number of steps.

Four parts, of which the first two need no luck and no training:

* laws: Gaussian data, for which every table's law is exact. Chain knots i/n down to t = 0.1; the 2-Wasserstein distance
  of the law there to the diffusion's own, and between the samplers. Slopes are fitted from 40 steps on.
* bounds: an exact mixture (eight modes on a ring). The chain's variational bound on -log p with n steps, at knots i/n
  and at knots even in log-SNR with fixed ends, beside the continuous bound and -log p itself.
* samples: a mixture of two modes on a line, 100 000 samples of each sampler down to clean data: the Wasserstein-1
  distance to the mixture's own quantiles, beside that of as many exact samples.
* trained (with --runs): the checkpoints that ``make demo`` leaves: distances to held-out digits and points, and the
  bound on the held-out digits in bits per dimension. And two networks of one architecture, trained here on the digits,
  one on the chain's integer indices, one at times of the SDE; each sampled by the chain and by samplers of the SDE.

Run: python benchmarks/discrete_vs_continuous.py [--runs runs/demo] [--quick] [--record]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mixtures import ring
from record import add_record, write_record
from scipy.special import ndtr
from torch import Tensor

from scoresde import (
    DDPM,
    VPSDE,
    GaussianMixtureModel,
    LevelsDecoder,
    ScoreModel,
    Tableau,
    continuous_elbo,
    fit,
    plots,
    sample,
    solvers,
    variational_bound,
)
from scoresde.noise import stream
from scoresde.plots.style import GREY, MARKERS, PALETTE, dress, new_figure, plain_log_ticks, use_style
from scoresde.sampling.compare import compare
from scoresde.sampling.samplers import parse_sampler
from scoresde.training.losses import ChainLoss

SDE = VPSDE()
MEAN, VARIANCE = 0.7, 0.3
STEPS = (10, 20, 40, 80, 160, 320, 640)
END = 0.1  # where laws are compared: a knot of every chain whose n is a multiple of 10


def slope(steps: Sequence[int], errors: Sequence[float]) -> float:
    """Fit the order of convergence from 40 steps on."""
    kept = [(math.log(n), math.log(e)) for n, e in zip(steps, errors, strict=True) if n >= 40]
    return -float(np.polyfit(*zip(*kept, strict=True), 1)[0])


def tables(n: int) -> dict[str, Tableau]:
    """Return the samplers on the knots i/n, from 1 down to END."""
    times = torch.arange(n, round(n * END) - 1, -1, dtype=torch.float64) / n
    small = solvers.ancestral()(SDE, times)
    # The chain at its knots is not another sampler: its rows are these, to rounding.
    chain = DDPM.from_sde(SDE, n).ancestral()
    for ours, theirs in zip(small.rows, chain.rows[: len(small.rows)], strict=True):
        np.testing.assert_allclose((*ours.state, *ours.noise), (*theirs.state, *theirs.noise), rtol=1e-9)
    return {
        "DDPM chain, small variance": small,
        "DDPM chain, large variance": solvers.ancestral(variance="large")(SDE, times),
        "reverse diffusion": solvers.reverse_diffusion()(SDE, times),
        "Euler-Maruyama": solvers.euler_maruyama()(SDE, times),
        "DDIM": solvers.ddim()(SDE, times),
    }


def distance(one: tuple[float, float], two: tuple[float, float]) -> float:
    """Return the 2-Wasserstein distance of two normal laws given by mean and variance."""
    return math.hypot(one[0] - two[0], math.sqrt(one[1]) - math.sqrt(two[1]))


def laws() -> dict[str, object]:
    """Return distances to the exact law, and from the chain to the continuous samplers."""
    alpha, sigma = float(SDE.alpha(END)), float(SDE.sigma(END))
    exact = (alpha * MEAN, alpha**2 * VARIANCE + sigma**2)
    found = {n: {name: table.law(MEAN, VARIANCE) for name, table in tables(n).items()} for n in STEPS}
    first = next(iter(found[STEPS[0]]))
    errors = {name: [distance(found[n][name], exact) for n in STEPS] for name in found[STEPS[0]]}
    gaps = {name: [distance(found[n][name], found[n][first]) for n in STEPS] for name in errors if name != first}
    return {
        "errors": errors,
        "gaps": gaps,
        "slopes": {name: slope(STEPS, values) for name, values in errors.items()},
        "gap_slopes": {name: slope(STEPS, values) for name, values in gaps.items()},
    }


def even_chain(n: int) -> DDPM:
    """Return the chain whose n knots are even in log-SNR between the SDE's ends."""
    high, low = (float(SDE.log_snr(t)) for t in (SDE.t_min, SDE.t_max))
    log_snr = torch.linspace(high, low, n, dtype=torch.float64)
    return DDPM(torch.nn.functional.logsigmoid(log_snr).diff(prepend=torch.zeros(1, dtype=torch.float64)))


def bounds(count: int, steps: Sequence[int]) -> dict[str, object]:
    """Return the bounds of the exact mixture in nats, above its -log p."""
    model = ring()
    x = model.sample_data(count, stream(0, "bounds")).double()
    exact = -model.log_prob(x)
    rows: dict[str, list[float]] = {"knots even in log-SNR": [], "knots i/n": []}
    for n in steps:
        for name, chain in zip(rows, (even_chain(n), DDPM.from_sde(SDE, n)), strict=True):
            rows[name].append(float((variational_bound(model, chain, x).per_sample - exact).mean()))
    limit = continuous_elbo(model, SDE, x, samples=128)
    above = float((limit.per_sample - exact).mean())
    gaps = [value - above for value in rows["knots even in log-SNR"]]
    return {
        "steps": list(steps),
        **rows,
        "exact": float(exact.mean()),
        "continuous": above,
        "continuous_error": float((limit.per_sample - exact).std()) / math.sqrt(count),
        "slope": slope(steps, gaps),
    }


def samples(count: int, steps: Sequence[int]) -> dict[str, object]:
    """Return Wasserstein-1 distances of samples of two modes on a line to their law, and that of exact samples."""
    shares, means, stds = np.array([0.35, 0.65]), np.array([-1.0, 0.8]), np.array([0.2, 0.3])
    weights, centres, widths = (torch.from_numpy(c) for c in (shares, means, stds))
    model = GaussianMixtureModel(sde=SDE, weights=weights, means=centres, std=widths)
    grid = np.linspace(-3, 3, 60_001)
    quantiles = np.interp((np.arange(count) + 0.5) / count, ndtr((grid[:, None] - means) / stds) @ shares, grid)

    def error(x: Tensor) -> float:
        return float(np.abs(np.sort(x.double().numpy()) - quantiles).mean())

    rows: dict[str, list[float]] = {}
    for n in steps:
        chain = DDPM.from_sde(SDE, n)
        made = {
            "DDPM chain, small variance": {"solver": chain.ancestral()},
            "DDPM chain, large variance": {"solver": chain.ancestral(variance="large")},
            "reverse diffusion": {"solver": "reverse_diffusion", "steps": n},
            "Euler-Maruyama": {"solver": "euler_maruyama", "steps": n},
            "DDIM": {"solver": chain.ddim()},
        }
        for k, (name, options) in enumerate(made.items()):
            # Noise of its own for each, so that the points' scatter shows what chance does.
            rows.setdefault(name, []).append(error(sample(model, (count,), seed=1000 * n + k, **options)))
    bottom = [error(model.sample_data(count, stream(k, "exact"))) for k in range(16)]
    return {"steps": list(steps), **rows, "floor": float(np.mean(bottom)), "floor_std": float(np.std(bottom, ddof=1))}


def measure_trained(runs: Path, steps: Sequence[int], count: int) -> dict[str, object]:
    """Return the distances of what trained models draw, by data set and sampler, and the digits' bound."""
    from scoresde.cli.files import open_data
    from scoresde.cli.run_folder import open_run
    from scoresde.cli.yardsticks import make_yardstick

    found: dict[str, object] = {}
    for name, metric in (("digits", "frechet_distance"), ("swiss_roll", "sliced_wasserstein")):
        run = open_run(runs / name, torch.device("cpu"))
        yard = make_yardstick(name, open_data(name), classes=run.classes)
        asked = [f"{kind}:{n}" for n in steps for kind in ("ddpm", "reverse_diffusion", "euler_maruyama", "ddim")]
        size = count if name == "digits" else 2000
        rows, _ = compare(
            run.model,
            [parse_sampler(text, run.model.sde) for text in asked],
            {metric: yard.metrics[metric]},
            samples=size,
            cond=None if run.classes is None else lambda n, run=run: run.make_labels(n),
            seed=0,
        )
        bottom = yard.floors(size)[metric]
        table = {text: row.distances[metric] for text, row in zip(asked, rows, strict=True)}
        found[name] = {"metric": metric, "samples": size, "floor": bottom.mean, "distances": table}
        if name == "digits":
            found["digits_bits_per_dim"] = digits_bound(run.model, yard.held_out, steps)
    return found


def digits_bound(model: ScoreModel, x: Tensor, steps: Sequence[int]) -> dict[str, list[float]]:
    """Return the bound on held-out digits in bits per dimension and its standard error, for chains of n steps."""
    from scoresde.data import digits

    labels = {"label": digits("test").labels}
    found = {}
    for n in steps:
        bound = variational_bound(
            model,
            DDPM.from_sde(model.sde, n),
            x,
            decoder=LevelsDecoder(17, -1.0, 1.0),
            indices=min(n - 1, 40),
            cond=labels,
        )
        found[str(n)] = [bound.bits_per_dim, bound.standard_error / (bound.size * math.log(2))]
    return found


def measure_crossed(count: int = 300, steps: int = 1200) -> dict[str, dict[str, float]]:
    """Train one network on the chain and one under the SDE; return Frechet distances of what each gives under both."""
    from scoresde.data import digits
    from scoresde.metrics.digits import DigitJudge
    from scoresde.nn import UNet

    data, judge, chain = digits("train"), DigitJudge.train(), DDPM.linear(1000)
    label = {"label": torch.arange(count) % 10}
    found: dict[str, dict[str, float]] = {}
    for name, sde, objective in (
        ("trained on the chain", chain.sde(), ChainLoss.simple(chain)),
        ("trained under the SDE", VPSDE(), None),
    ):
        model = ScoreModel(UNet(1, width=16, multipliers=(1, 2, 4), classes=10, seed=0), sde)
        options = {"steps": steps, "batch_size": 64, "learning_rate": 2e-3, "ema_decay": 0.995}
        result = fit(model, data.images, cond={"label": data.labels}, objective=objective, seed=0, **options)
        found[name] = {
            who: judge.frechet(sample(result.model, (count, 1, 8, 8), cond=label, seed=0, **how))
            for who, how in {
                "chain, ancestral, 100 of 1000 indices": {"solver": chain.ancestral(steps=100)},
                "Euler-Maruyama, 200 steps": {"solver": "euler_maruyama", "steps": 200},
                "flow_abm, 20 steps": {"steps": 20},
            }.items()
        }
    return found


def figure(law: dict[str, object], bound: dict[str, object], drawn: dict[str, object]) -> object:
    """Draw errors, gaps, bounds and samples against the number of steps."""
    with use_style():
        made = new_figure(11.5, 8.4)
        (one, two), (three, four) = made.subplots(2, 2)
        names = list(law["errors"])
        style = {name: {"color": PALETTE[k], "marker": MARKERS[k]} for k, name in enumerate(names)}
        for name, values in law["errors"].items():
            one.plot(STEPS, values, label=name, **style[name])
        for name, values in law["gaps"].items():
            two.plot(STEPS, values, **style[name])
        for axes in (one, two):
            axes.plot(STEPS, [0.5 / n for n in STEPS], color=GREY, linestyle=":", label="slope of 1/n")
        steps = bound["steps"]
        for k, name in enumerate(("knots even in log-SNR", "knots i/n")):
            above = [value - bound["continuous"] for value in bound[name]]
            three.plot(steps, above, color=PALETTE[5 - k], marker=MARKERS[5 - k], label=name)
        three.plot(steps, [60 / n for n in steps], color=GREY, linestyle=":")
        for name in names:
            four.plot(drawn["steps"], drawn[name], **style[name])
        low, high = (max(1e-4, drawn["floor"] + s * drawn["floor_std"]) for s in (-2, 2))
        four.axhspan(low, high, color=GREY, alpha=0.25, linewidth=0, label="as many exact samples, ± 2 std")
        labels = (
            (one, "2-Wasserstein distance to the exact law", "Gaussian data: error at t = 0.1"),
            (two, "2-Wasserstein distance to the chain's law", "Gaussian data: gap to the DDPM chain"),
            (three, "nats above the continuous bound", "ring: bound of a chain, exact model"),
            (four, "Wasserstein-1 distance to the exact law", "two modes: 100 000 samples"),
        )
        for axes, ylabel, title in labels:
            axes.set_xscale("log")
            axes.set_yscale("log")
            dress(axes, xlabel="steps n", ylabel=ylabel, title=title)
            plain_log_ticks(axes.xaxis, *axes.get_xlim())
            plain_log_ticks(axes.yaxis, *axes.get_ylim())
        three.legend(loc="best")
        four.legend(loc="best")
        handles, texts = one.get_legend_handles_labels()
        made.legend(handles, texts, loc="outside lower center", ncols=3)
    return made


def report(law: dict[str, object], bound: dict[str, object], drawn: dict[str, object]) -> None:
    print(f"Gaussian data, laws at t = {END}: distance to the exact law, and its order")
    print(f"{'':>28}" + "".join(f"{n:>10}" for n in STEPS) + f"{'order':>8}")
    for name, values in law["errors"].items():
        print(f"{name:>28}" + "".join(f"{v:>10.2e}" for v in values) + f"{law['slopes'][name]:>8.2f}")
    print("the same to the law of the chain with the small variance")
    for name, values in law["gaps"].items():
        print(f"{name:>28}" + "".join(f"{v:>10.2e}" for v in values) + f"{law['gap_slopes'][name]:>8.2f}")
    limit = f"{bound['continuous']:.4f} +- {bound['continuous_error']:.4f}"
    print(f"\nring, bounds in nats above -log p = {bound['exact']:.4f}; the continuous one: {limit}")
    print(f"{'':>28}" + "".join(f"{n:>10}" for n in bound["steps"]))
    for name in ("knots even in log-SNR", "knots i/n"):
        print(f"{name:>28}" + "".join(f"{v:>10.4f}" for v in bound[name]))
    print(f"order of the gap to the continuous bound: {bound['slope']:.2f}")
    print(f"\ntwo modes, Wasserstein-1 of samples; exact samples {drawn['floor']:.4f} +- {drawn['floor_std']:.4f}")
    print(f"{'':>28}" + "".join(f"{n:>10}" for n in drawn["steps"]))
    for name in law["errors"]:
        print(f"{name:>28}" + "".join(f"{v:>10.4f}" for v in drawn[name]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=None, help="folder with the runs of make demo, for the last part")
    parser.add_argument("--quick", action="store_true", help="fewer steps and samples")
    add_record(parser, "discrete_vs_continuous")
    parser.add_argument("--figure", type=Path, default=None, help="a .png, .svg or .pdf file")
    options = parser.parse_args()
    few = (10, 20, 40, 80) if options.quick else (10, 20, 40, 80, 160, 320)
    law = laws()
    bound = bounds(200 if options.quick else 1000, few)
    drawn = samples(10_000 if options.quick else 100_000, few)
    report(law, bound, drawn)
    found = {"laws": law, "bounds": bound, "samples": drawn}
    if options.runs is not None:
        found["trained"] = measure_trained(options.runs, (10, 20, 50, 100, 200), 300)
        found["crossed"] = measure_crossed()
        print(json.dumps({key: found[key] for key in ("trained", "crossed")}, indent=1))
    write_record(options.record, json.dumps(found, indent=1))
    if options.figure is not None:
        plots.save(figure(law, bound, drawn), options.figure)


if __name__ == "__main__":
    main()
