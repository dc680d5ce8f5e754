"""The flow's log likelihood: errors against evaluations, probes, and the usual recipes of other libraries.

*exact*: models whose density is known (Gaussians of 1 to 512 dimensions with full covariance, the ring of eight, ten
modes in 32 dimensions, the ring with modes of 0.02 to 0.4) under VP: bias, spread and worst error of the values over
``--samples`` data (a fiftieth of them beyond 64 dimensions), against the mean evaluations, for each pair and tolerance,
with the exact divergence. Errors are against log p of x_{t_min}/alpha, and the exact prior mismatch is taken off, so
that the solver's error is left; what truncation and prior leave out is said apart.

*probes*: the standard deviation of one estimate on a digits network (the demo's, or ``--checkpoint``), against the
number of vector products: Hutchinson with k draws, a lattice of k colours, k colours learned on training digits. It is
computed from the integrated Jacobians of held-out digits, not sampled: sqrt(2 sum of sym(M)_ij^2 inside the groups).
*patches* does the same for 1024 coordinates, grey patches of photographs.

*peers*: the recipe of Song et al. 2021 (one seeded Rademacher probe, RK45 of scipy in t over the whole batch, rtol =
atol = 1e-5), and torchdiffeq's dopri5 in t with the exact trace over the whole batch, on the same models and data in
the same run; seconds are medians over ``--rounds``, alternating.

Run: python benchmarks/likelihood.py [--part exact|probes|patches|peers] [--samples 500] [--checkpoint RUN] [--record]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from mixtures import SDE, ring, ten
from record import add_record, read_record, write_record
from torch import Tensor

from scoresde import GaussianMixtureModel, GaussianModel, ProbabilityFlow, ScoreModel, fit, log_likelihood
from scoresde.cli import main as scoresde
from scoresde.cli.presets import DATA
from scoresde.data import photographs
from scoresde.likelihood.colour import measure_coupling, partition
from scoresde.likelihood.probes import lattice
from scoresde.nn import UNet
from scoresde.noise import normal, stream
from scoresde.ops import divergence

Exact = GaussianModel | GaussianMixtureModel
Trace = Callable[[Tensor, Callable[[Tensor], Tensor]], tuple[Tensor, Tensor]]
TOLERANCES = {"dopri5": (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8), "dop853": (1e-3, 1e-5, 1e-7, 1e-9)}
PROBES = (1, 4, 8, 16, 32, 64)


def gaussian(size: int) -> GaussianModel:
    """Full covariance with eigenvalues from 0.01 to 1."""
    basis, _ = torch.linalg.qr(normal((size, size), stream(2, "basis", size), dtype=torch.float64))
    spread = torch.logspace(-2, 0, size, dtype=torch.float64)
    return GaussianModel(
        sde=SDE, mean=torch.zeros(size, dtype=torch.float64), covariance=basis @ spread.diag() @ basis.T
    )


def narrow(std: float) -> GaussianMixtureModel:
    """The ring with modes of another width."""
    base = ring()
    return GaussianMixtureModel(sde=SDE, weights=base.weights, means=base.means, std=std)


def targets() -> dict[str, Exact]:
    """What the values are known of."""
    found: dict[str, Exact] = {f"Gaussian, {size}": gaussian(size) for size in (1, 8, 64, 512)}
    found |= {"ring": ring(), "ten in 32": ten()}
    return found | {f"ring, std {std:g}": narrow(std) for std in (0.02, 0.05, 0.2, 0.4)}


def log_prob_at(model: Exact, x: Tensor, t: float) -> Tensor:
    """Return the exact log density of x_t at x."""
    if isinstance(model, GaussianMixtureModel):
        return model.log_prob(x, t)
    point = model.sde.at(t)
    return model.moments.at(float(point.alpha), float(point.sigma)).log_prob(x)


def at_start(model: Exact, x: Tensor) -> Tensor:
    """Return the exact log density of x_{t_min}/alpha at x."""
    alpha = float(SDE.alpha(SDE.t_min))
    return log_prob_at(model, alpha * x, SDE.t_min) + x.shape[1] * math.log(alpha)


def measure_exact(samples: int) -> list[dict[str, object]]:
    """Return errors and evaluations of each target, pair and tolerance."""
    rows = []
    for name, model in targets().items():
        size = len(model.moments.mean)
        # A product for each coordinate and evaluation: fewer data of many dimensions.
        count = samples if size <= 64 else max(4, samples // 50)
        x = model.sample_data(count, stream(11, name)).double()
        exact, data = at_start(model, x), model.log_prob(x)
        for method, tolerances in TOLERANCES.items():
            for tolerance in tolerances if size <= 64 else tolerances[1:5:2]:
                flow = ProbabilityFlow(tolerance, tolerance, method=method)
                got = log_likelihood(model, x, solver=flow, divergence="exact", chunk_size=1024)
                end = SDE.at(SDE.t_max)
                prior = model.moments.at(float(end.alpha), float(end.sigma))
                gap = log_prob_at(model, got.latent, SDE.t_max) - prior.log_prob(got.latent)
                error = got.values + gap - exact
                row: dict[str, object] = {
                    "target": name,
                    "method": method,
                    "tolerance": tolerance,
                    "samples": count,
                    "evaluations": float(got.nfe.double().mean()),
                    "bias": float(error.mean()),
                    "spread": float(error.std()),
                    "worst": float(error.abs().max()),
                    "estimated": float(got.solver_error.max()),
                    "truncation": float((exact - data).abs().max()),
                    "prior": float(gap.abs().max()),
                }
                rows.append(row)
                numbers = " ".join(f"{row[k]:10.2e}" for k in ("bias", "spread", "worst", "estimated"))
                print(f"{name:16} {method:7} {tolerance:6.0e} {row['evaluations']:6.0f} {numbers}", flush=True)
    return rows


def compare_groups(learned_on: Tensor, judged_on: Tensor, event: tuple[int, ...]) -> list[dict[str, object]]:
    """Return the standard deviation of one estimate for each number of products and kind of groups, in nats.

    Args:
        learned_on: W (D, D) of the data from which groups are learned, as ``measure_coupling`` gives it.
        judged_on: W of others.
        event: of the model.
    """

    def spread(groups: Tensor) -> float:
        same = (groups.flatten()[:, None] == groups.flatten()).double().fill_diagonal_(0.0)
        return math.sqrt(2 * float((judged_on * same).sum()))

    rows, whole = [], spread(torch.zeros(event, dtype=torch.long))
    for k in PROBES:
        row = {
            "products": k,
            "hutchinson": whole / math.sqrt(k),
            "lattice": spread(lattice(event, k)),
            "learned": spread(partition(learned_on, k)),
        }
        rows.append(row)
        print(f"{k:3} products: " + ", ".join(f"{name} {row[name]:.2f}" for name in row if name != "products"))
    return rows


def measure_probes(checkpoint: Path | None) -> list[dict[str, object]]:
    """Compare groups on a digits network, over twelve held-out digits."""
    with TemporaryDirectory() as folder:
        if checkpoint is None:
            checkpoint = Path(folder) / "digits"
            scoresde(["train", "--data", "digits", "--conditional", "--out", str(checkpoint)])
        model = ScoreModel.load(checkpoint)
    parts = []
    for x, labels in (DATA["digits"].load(), DATA["digits"].test()):
        rows = torch.arange(0, len(x), len(x) // 12)[:12]
        parts.append(measure_coupling(model, x[rows], cond={"label": labels[rows]} if model.net.classes else None))
    return compare_groups(*parts, (1, 8, 8))


def measure_patches() -> list[dict[str, object]]:
    """Compare groups on a small network for grey patches of photographs, 32 x 32, over two held-out patches."""
    train, test = (photographs(32, n, part).images.mean(1, keepdim=True) for part, n in (("train", 3000), ("test", 2)))
    model = ScoreModel(UNet(1, width=16, multipliers=(1, 2, 2)), SDE, predicts="noise")
    trained = fit(model, train, steps=500, batch_size=32, learning_rate=2e-3, seed=0).model
    parts = [measure_coupling(trained, x, intervals=6, progress=True) for x in (train[:2], test)]
    return compare_groups(*parts, (1, 32, 32))


def in_time(
    model: Exact, trace: Callable[[Tensor, Callable[[Tensor], Tensor]], tuple[Tensor, Tensor]], count: list[int]
):
    """Return d(x, log p)/dt of a whole batch, as one vector after another, and count its calls."""

    def slope(t: float, x: Tensor) -> tuple[Tensor, Tensor]:
        count[0] += 1
        return trace(x, lambda y: model.at(y, SDE.at(float(t))).velocity)

    return slope


def score_sde_recipe(model: Exact, x: Tensor) -> tuple[Tensor, int]:
    """One probe, scipy's RK45 in t over the whole batch at 1e-5."""
    from scipy.integrate import solve_ivp

    signs = normal(tuple(x.shape), stream(5, "probe"), dtype=torch.float64).sign()
    calls = [0]

    def trace(y: Tensor, f: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            point = y.detach().requires_grad_(True)
            value = f(point)
            (product,) = torch.autograd.grad(value, point, signs)
        return value.detach(), (product * signs).sum(1)

    slope = in_time(model, trace, calls)

    def flat(t: float, state: object) -> object:
        v, d = slope(t, torch.as_tensor(state)[: x.numel()].reshape(x.shape))
        return torch.cat([v.flatten(), d]).numpy()

    start = torch.cat([x.flatten(), torch.zeros(len(x), dtype=torch.float64)]).numpy()
    end = torch.as_tensor(solve_ivp(flat, (SDE.t_min, SDE.t_max), start, method="RK45", rtol=1e-5, atol=1e-5).y[:, -1])
    latent = end[: x.numel()].reshape(x.shape)
    prior = -0.5 * latent.square().sum(1) - 0.5 * x.shape[1] * math.log(2 * math.pi)
    return prior + end[x.numel() :], calls[0]


def torchdiffeq_exact(model: Exact, x: Tensor, tolerance: float) -> tuple[Tensor, int]:
    """The exact trace, torchdiffeq's dopri5 in t over the whole batch."""
    import torchdiffeq

    calls = [0]
    slope = in_time(model, lambda y, f: divergence(f, y), calls)
    times = torch.tensor([SDE.t_min, SDE.t_max], dtype=torch.float64)
    state = (x, torch.zeros(len(x), dtype=torch.float64))
    with torch.no_grad():
        latent, gain = torchdiffeq.odeint(
            lambda t, s: slope(float(t), s[0]), state, times, rtol=tolerance, atol=tolerance, method="dopri5"
        )
    end = SDE.at(SDE.t_max)
    law = model.moments.at(float(end.alpha), float(end.sigma))
    return law.log_prob(latent[-1]) + gain[-1], calls[0]


def measure_peers(samples: int, rounds: int) -> list[dict[str, object]]:
    """Return errors, evaluations and seconds of this library and of the usual recipes."""
    rows = []
    for name, model in (("ring", ring()), ("ten in 32", ten())):
        x = model.sample_data(samples, stream(12, name)).double()
        exact = model.log_prob(x)

        def ours(tolerance: float, model: Exact = model, x: Tensor = x) -> tuple[Tensor, int]:
            flow = ProbabilityFlow(tolerance, tolerance)
            got = log_likelihood(model, x, solver=flow, divergence="exact", chunk_size=len(x))
            return got.corrected, round(float(got.nfe.double().mean()))

        ways: dict[str, Callable[[], tuple[Tensor, int]]] = {
            "scoresde, 1e-5": lambda ours=ours: ours(1e-5),
            "scoresde, 1e-6": lambda ours=ours: ours(1e-6),
            "torchdiffeq in t, exact trace, 1e-5": lambda m=model, x=x: torchdiffeq_exact(m, x, 1e-5),
            "torchdiffeq in t, exact trace, 1e-6": lambda m=model, x=x: torchdiffeq_exact(m, x, 1e-6),
            "one probe, RK45 in t, 1e-5": lambda m=model, x=x: score_sde_recipe(m, x),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        found: dict[str, tuple[Tensor, int]] = {}
        for _ in range(rounds):
            for way, run in ways.items():
                started = time.perf_counter()
                found[way] = run()
                seconds[way].append(time.perf_counter() - started)
        for way, (values, calls) in found.items():
            error = values - exact
            row = {
                "target": name,
                "way": way,
                "evaluations": calls,
                "seconds": statistics.median(seconds[way]),
                "rms": float(error.square().mean().sqrt()),
                "worst": float(error.abs().max()),
            }
            rows.append(row)
            print(
                f"{name:10} {way:36} {calls:4} {row['seconds']:7.2f} s  rms {row['rms']:.1e}  worst {row['worst']:.1e}"
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("exact", "probes", "patches", "peers"), help="one part alone")
    parser.add_argument("--samples", type=int, default=500, help="data of each target")
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison with other recipes")
    parser.add_argument("--checkpoint", type=Path, help="run of a digits network; trained for it by default")
    add_record(parser, "likelihood")
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts: dict[str, Callable[[], list[dict[str, object]]]] = {
        "exact": lambda: measure_exact(options.samples),
        "probes": lambda: measure_probes(options.checkpoint),
        "patches": measure_patches,
        "peers": lambda: measure_peers(options.samples, options.rounds),
    }
    figures = read_record(options.record) | {name: run() for name, run in parts.items() if options.part in (None, name)}
    write_record(options.record, json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
