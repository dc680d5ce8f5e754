"""Samples given a measurement against exact posteriors: every method, 20 to 200 evaluations, and another library's.

Targets: a Gaussian of eight dimensions with four measurements, and the mixture of 25 unit Gaussians at (8 i, 8 j)
repeated, i, j = -2 ... 2, with random weights, in 8, 80 and 800 dimensions with 1, 2 and 4 measurements; A has random
singular vectors and singular values uniform in [0, 1], and the noise is uniform in [0, 1] times the largest of them
(Cardoso et al. 2023, arXiv:2308.07983). Signals: sums of 64 independent increments, rare jumps or heavy tails, blurred
and seen at every second place; increments are mixtures of Gaussians about 0 of several widths, so that the model of the
increments is exact and a Gibbs sampler over the widths draws the posterior. Models are exact, under VP, of data divided
by their spread; measurements are in the data's units. ``--seed`` draws other weights, matrices, data and noises.

Printed for each method and number of evaluations, as means over the problems: the sliced Wasserstein-2 distance of the
samples to as many exact ones, over the floor, what two sets of exact samples measure; the error of the mean and of the
standard deviation along 64 random directions, in units of the posterior's; the exact probability of the intervals that
hold the middle 50 % and 90 % of the samples along these directions (a calibrated method has 0.50 and 0.90); seconds.

``--peers`` runs azula's methods (0.11.1, installed into ``runs/peers`` with pip, on our torch) with the same models,
schedule, measurements and evaluations, each with its own defaults and sampler; its DPS takes one norm for the batch.

Run: python benchmarks/posteriors.py [--dims 8 80 800] [--signals NAME ...] [--steps 20 50 100 200]
     [--methods NAME ...] [--samples 400] [--problems 1] [--seed 0] [--peers] [--record]      (ten minutes, two cores)
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from record import add_record, write_record
from torch import Tensor

from scoresde import VPSDE, Affine, GaussianMixtureModel, GaussianModel, Moments, ScoreModel, sample_posterior
from scoresde.metrics import sliced_wasserstein
from scoresde.models.guidance import Matrix
from scoresde.models.guidance.methods import METHODS, PiGDM
from scoresde.models.prediction import Predictor
from scoresde.noise import normal, permutation, stream, uniform
from scoresde.sampling.inverse import SAMPLERS

SDE = VPSDE()
PEERS, WANTED = Path("runs/peers"), ("azula==0.11.1", "einops==0.8.2")
OURS: dict[str, object] = {**METHODS, "pigdm, moments": PiGDM("moments"), **SAMPLERS}
DIRECTIONS = 64


@dataclass(frozen=True, eq=False)
class Posterior:
    """An exact posterior: sum_k w_k N(means_k, root root^T), in the data's units."""

    weights: Tensor
    means: Tensor
    root: Tensor

    def draw(self, n: int, key: str) -> Tensor:
        draw = stream(5, key)
        which = torch.multinomial(self.weights, n, replacement=True, generator=draw)
        return self.means[which] + normal((n, len(self.root)), draw, dtype=torch.float64) @ self.root.T

    def cdf(self, direction: Tensor, value: Tensor) -> Tensor:
        """Return the probability that direction . x is at most each value."""
        centre, spread = self.means @ direction, (self.root.T @ direction).norm()
        return (self.weights * torch.special.ndtr((value[:, None] - centre) / spread)).sum(1)


@dataclass(frozen=True, eq=False)
class Drawn:
    """A posterior that is known by many draws (N, D)."""

    pool: Tensor

    def draw(self, n: int, key: str) -> Tensor:
        return self.pool[permutation(len(self.pool), stream(5, key))[:n]]

    def cdf(self, direction: Tensor, value: Tensor) -> Tensor:
        ordered = (self.pool @ direction).sort().values
        return torch.searchsorted(ordered, value.contiguous()) / len(ordered)


@dataclass(frozen=True, eq=False)
class Problem:
    """A model, what was measured, and the exact answer; ``view`` (D, D) makes of a sample what is judged."""

    name: str
    model: Predictor
    matrix: Tensor
    y: Tensor
    std: float
    exact: Posterior | Drawn
    view: Tensor | None = None


def condition(weights: Tensor, means: Tensor, covariance: Tensor, matrix: Tensor, y: Tensor, std: float) -> Posterior:
    """Return the posterior of a mixture of Gaussians with one covariance."""
    spread = matrix @ covariance @ matrix.T + std**2 * torch.eye(len(matrix), dtype=torch.float64)
    gain = covariance @ matrix.T @ torch.linalg.inv(spread)
    rest = y - means @ matrix.T
    logs = weights.log() - 0.5 * (rest @ torch.linalg.inv(spread) * rest).sum(1)
    after = covariance - gain @ matrix @ covariance
    values, vectors = torch.linalg.eigh(0.5 * (after + after.T))
    return Posterior(torch.softmax(logs, 0), means + rest @ gain.T, vectors * values.clamp_min(0.0).sqrt())


def draw_matrix(measured: int, size: int, *key: int | str) -> Tensor:
    """Return (measured, size) with random singular vectors and singular values uniform in [0, 1]."""
    draw = stream(*key)
    u, _ = torch.linalg.qr(normal((measured, measured), draw, dtype=torch.float64))
    v, _ = torch.linalg.qr(normal((size, measured), draw, dtype=torch.float64))
    return u @ torch.diag(uniform((measured,), draw).double()) @ v.T


def gaussian_problem(seed: int, k: int) -> Problem:
    size = 8
    draw = stream(seed, "gaussian", k)
    basis, _ = torch.linalg.qr(normal((size, size), draw, dtype=torch.float64))
    covariance = basis @ torch.logspace(-2, 0, size, dtype=torch.float64).diag() @ basis.T
    mean, matrix = normal((size,), draw, dtype=torch.float64), draw_matrix(4, size, seed, "gaussian A", k)
    std = float(uniform((1,), draw)) * float(torch.linalg.matrix_norm(matrix, 2))
    x = mean + torch.linalg.cholesky(covariance) @ normal((size,), draw, dtype=torch.float64)
    y = matrix @ x + std * normal((4,), draw, dtype=torch.float64)
    model = GaussianModel(sde=SDE, mean=mean, covariance=covariance)
    return Problem(
        "Gaussian, 8, 4",
        model,
        matrix,
        y,
        std,
        condition(torch.ones(1).double(), mean[None], covariance, matrix, y, std),
    )


def mixture_problem(size: int, measured: int, seed: int, k: int) -> Problem:
    draw = stream(seed, "mixture", size, measured, k)
    at = torch.arange(-2, 3, dtype=torch.float64)
    pairs = 8 * torch.cartesian_prod(at, at)
    means, weights = pairs.repeat(1, size // 2), uniform((25,), draw).double()
    weights = weights / weights.sum()
    matrix = draw_matrix(measured, size, seed, "mixture A", size, measured, k)
    std = float(uniform((1,), draw)) * float(torch.linalg.matrix_norm(matrix, 2))
    x = means[int(torch.multinomial(weights, 1, generator=draw))] + normal((size,), draw, dtype=torch.float64)
    y = matrix @ x + std * normal((measured,), draw, dtype=torch.float64)
    spread = math.sqrt(1 + 128)
    model = GaussianMixtureModel(sde=SDE, weights=weights, means=means / spread, std=1 / spread)
    model.transform = Affine(0.0, spread)
    exact = condition(weights, means, torch.eye(size, dtype=torch.float64), matrix, y, std)
    return Problem(f"25 modes, {size}, {measured}", model, matrix, y, std, exact)


WIDTHS = {
    "jumps": (torch.tensor([0.9, 0.1]), torch.tensor([0.1, 1.0])),
    # Student's law of two degrees of freedom is a Gaussian of precision Exp(1); here at twelve of its quantiles.
    "heavy tails": (torch.full((12,), 1 / 12), 0.1 / (-(1 - (torch.arange(12.0) + 0.5) / 12).log()).sqrt()),
}


def signal_problem(kind: str, seed: int, k: int, size: int = 64) -> Problem:
    draw = stream(seed, "signal", kind, k)
    shares, widths = (part.double() for part in WIDTHS[kind])
    scale = float((shares * widths.square()).sum().sqrt())
    which = torch.multinomial(shares, size, replacement=True, generator=draw)
    increments = widths[which] * normal((size,), draw, dtype=torch.float64)
    total = torch.ones(size, size, dtype=torch.float64).tril()
    at = torch.arange(size, dtype=torch.float64)
    blur = torch.exp(-0.5 * ((at[::2, None] - at) / 1.5).square())
    matrix, std = blur / blur.sum(1, keepdim=True) @ total, 0.1
    y = matrix @ increments + std * normal((len(matrix),), draw, dtype=torch.float64)

    def data(x: Tensor, t: Tensor) -> Tensor:
        """E[u | u_t], coordinate by coordinate, of increments in units of their spread."""
        point, wide = SDE.at(t.double()), x.double()
        alpha, sigma = (c.reshape(-1, 1, 1) for c in (point.alpha, point.sigma))
        squares = (widths / scale).square()
        variance = alpha.square() * squares + sigma.square()
        logs = shares.log() - 0.5 * (wide[..., None].square() / variance + variance.log())
        return ((torch.softmax(logs, -1) * alpha * squares / variance).sum(-1) * wide).to(x)

    moments = Moments.exact(torch.zeros(size), torch.ones(size))
    model = ScoreModel.from_callable(data, SDE, predicts="data", moments=moments, transform=Affine(0.0, scale))
    pool = gibbs(shares, widths, matrix, y, std, stream(seed, "chains", kind, k)) @ total.T
    return Problem(f"signal, {kind}", model, matrix, y, std, Drawn(pool), total)


def gibbs(
    shares: Tensor, widths: Tensor, matrix: Tensor, y: Tensor, std: float, draw: torch.Generator, chains: int = 200
) -> Tensor:
    """Return 20 000 draws of increments given y: widths given increments, then increments, a Gaussian, given widths."""
    size = matrix.shape[1]
    seen, pull = matrix.T @ matrix / std**2, matrix.T @ y / std**2
    which = torch.multinomial(shares, chains * size, replacement=True, generator=draw).reshape(chains, size)
    kept = []
    for k in range(1500):
        root = torch.linalg.cholesky(seen + torch.diag_embed(widths[which].square().reciprocal()))
        mean = torch.cholesky_solve(pull.expand(chains, size)[..., None], root)
        noise = normal((chains, size, 1), draw, dtype=torch.float64)
        u = (mean + torch.linalg.solve_triangular(root.mT, noise, upper=True))[..., 0]
        logs = shares.log() - widths.log() - 0.5 * (u[..., None] / widths).square()
        each = torch.softmax(logs, -1).reshape(-1, len(widths))
        which = torch.multinomial(each, 1, generator=draw).reshape(chains, size)
        if k >= 500 and k % 10 == 0:
            kept.append(u)
    return torch.cat(kept)


def judge(problem: Problem, x: Tensor, key: str) -> dict[str, float]:
    """Return the figures of samples (n, D)."""
    x = x.double() if problem.view is None else x.double() @ problem.view.T
    exact, other = (problem.exact.draw(len(x), f"{key} {k}") for k in range(2))
    floor = sliced_wasserstein(exact, other)
    directions = torch.nn.functional.normalize(normal((DIRECTIONS, x.shape[1]), stream(6), dtype=torch.float64), dim=1)
    mine, theirs = x @ directions.T, problem.exact.draw(20_000, key) @ directions.T
    spread = theirs.std(0)
    found = {
        "sw2": sliced_wasserstein(x, exact),
        "floor": floor,
        "mean": float(((mine.mean(0) - theirs.mean(0)) / spread).square().mean().sqrt()),
        "std": float((mine.std(0) / spread - 1).square().mean().sqrt()),
    }
    for share in (0.5, 0.9):
        ends = torch.quantile(mine, torch.tensor([0.5 - share / 2, 0.5 + share / 2], dtype=torch.float64), dim=0)
        inside = [problem.exact.cdf(d, ends[:, j]).diff() for j, d in enumerate(directions)]
        found[f"{share:.0%}"] = float(torch.cat(inside).mean())
    return found


def run_ours(problem: Problem, method: object, steps: int, samples: int) -> Tensor:
    return sample_posterior(
        problem.model,
        Matrix(problem.matrix),
        problem.y,
        samples,
        noise_std=problem.std,
        method=method,
        steps=steps,
        seed=1,
    ).x


def load_peers() -> Mapping[str, Callable[[Problem, int, int], Tensor]]:
    """Install azula where it is not yet, and return its methods: (problem, steps, samples) -> samples."""
    if not (PEERS / "azula").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(PEERS), *WANTED]
        subprocess.run(command, check=True)
    sys.path.insert(0, str(PEERS.resolve()))
    from azula.denoise import Denoiser, DiracPosterior
    from azula.guidance import DiffPIRDenoiser, DPSSampler, MMPSDenoiser, PGDMSampler, TMPDenoiser
    from azula.linalg.covariance import IsotropicCovariance
    from azula.noise import Schedule
    from azula.sample import DDIMSampler

    class Ours(Schedule):
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            point = SDE.at(t.double().clamp(SDE.t_min, SDE.t_max))
            return point.alpha.to(t), point.sigma.to(t)

    class Exact(Denoiser):
        def __init__(self, model: Predictor) -> None:
            super().__init__()
            self.model, self.schedule = model, Ours()

        def forward(self, x_t: Tensor, t: Tensor, **kwargs: object) -> object:
            time_ = t.double().clamp(SDE.t_min, SDE.t_max).reshape(-1)[:1].reshape(())
            return DiracPosterior(mean=self.model(x_t, time_).data)

    def inside(problem: Problem) -> tuple[Exact, Tensor, float]:
        scale = 1.0 if problem.model.transform is None else float(problem.model.transform.inverse(torch.ones(1, 1)))
        return Exact(problem.model), scale * problem.matrix.float(), scale

    def sampled(make: Callable[[Exact, Tensor, Tensor, float, int], object]) -> Callable[[Problem, int, int], Tensor]:
        def run(problem: Problem, steps: int, samples: int) -> Tensor:
            denoiser, matrix, scale = inside(problem)
            torch.manual_seed(1)
            y = problem.y.float().expand(samples, -1)
            sampler = make(denoiser, matrix, y, problem.std, steps)
            start = sampler.init((samples, matrix.shape[1]))
            return scale * sampler(start)

        return run

    options = {"start": 1.0, "stop": SDE.t_min, "silent": True}

    def wrap(kind: type, **more: object) -> Callable[[Exact, Tensor, Tensor, float, int], object]:
        def make(denoiser: Exact, matrix: Tensor, y: Tensor, std: float, steps: int) -> object:
            name = "cov_y" if kind is MMPSDenoiser else "var_y"
            noise = IsotropicCovariance(torch.tensor(std**2)) if kind is MMPSDenoiser else std**2
            bent = kind(denoiser, y, lambda x: x @ matrix.T, **{name: noise}, **more)
            return DDIMSampler(bent, steps=steps, **options)

        return make

    return {
        "azula mmps": sampled(wrap(MMPSDenoiser)),
        "azula mmps, 5 iterations": sampled(wrap(MMPSDenoiser, iterations=5)),
        "azula tmpd": sampled(wrap(TMPDenoiser)),
        "azula diffpir": sampled(wrap(DiffPIRDenoiser)),
        "azula dps": sampled(lambda d, a, y, std, steps: DPSSampler(d, y, lambda x: x @ a.T, steps=steps, **options)),
        "azula pgdm": sampled(
            lambda d, a, y, std, steps: PGDMSampler(
                d, y, lambda x: x @ a.T, lambda u: u @ torch.linalg.pinv(a).T, steps=steps, **options
            )
        ),
    }


def measure(
    problems: Sequence[Problem],
    methods: Mapping[str, Callable[[Problem, int, int], Tensor]],
    steps: Sequence[int],
    samples: int,
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for target in dict.fromkeys(p.name for p in problems):
        of_target = [p for p in problems if p.name == target]
        print(f"\n{target} (dimensions, measurements)")
        print(f"{'method':26}{'steps':>6}{'sw2':>9}{'/floor':>8}{'mean':>8}{'std':>8}{'50%':>7}{'90%':>7}{'s':>8}")
        for name, run in methods.items():
            for count in steps:
                found, started, failed = [], time.perf_counter(), False
                for k, problem in enumerate(of_target):
                    try:
                        x = run(problem, count, samples)
                    except Exception as error:  # a method may break down, which is a figure too
                        print(f"{name:26}{count:>6}  failed: {type(error).__name__}: {str(error)[:60]}", flush=True)
                        failed = True
                        break
                    found.append(judge(problem, x, f"{target} {k}") if bool(torch.isfinite(x).all()) else {})
                took = (time.perf_counter() - started) / len(of_target)
                if failed or not all(found):
                    rows.append({"target": target, "method": name, "steps": count, "failed": True})
                    if not failed:
                        print(f"{name:26}{count:>6}  not finite", flush=True)
                    continue
                means = {key: sum(one[key] for one in found) / len(found) for key in found[0]}
                rows.append({"target": target, "method": name, "steps": count, **means, "seconds": took})
                figures = f"{means['sw2']:>9.4f}{means['sw2'] / means['floor']:>8.2f}{means['mean']:>8.3f}"
                figures += f"{means['std']:>8.3f}{means['50%']:>7.2f}{means['90%']:>7.2f}{took:>8.2f}"
                print(f"{name:26}{count:>6}{figures}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="*", default=[8, 80, 800], help="of the mixture")
    parser.add_argument("--measured", type=int, nargs="*", default=[1, 2, 4], help="measurements of it")
    parser.add_argument("--signals", nargs="*", choices=WIDTHS, default=list(WIDTHS), help="increments of signals")
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 50, 100, 200])
    parser.add_argument("--methods", nargs="+", choices=OURS, default=list(OURS))
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--problems", type=int, default=1, help="of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peers", action="store_true", help="run another library's methods too")
    parser.add_argument("--threads", type=int, default=2)
    add_record(parser, "posteriors")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    problems = [gaussian_problem(options.seed, k) for k in range(options.problems)]
    problems += [signal_problem(kind, options.seed, k) for kind in options.signals for k in range(options.problems)]
    problems += [
        mixture_problem(size, measured, options.seed, k)
        for size in options.dims
        for measured in options.measured
        for k in range(options.problems)
    ]

    def ours(name: str) -> Callable[[Problem, int, int], Tensor]:
        return lambda problem, steps, samples: run_ours(problem, OURS[name], steps, samples)

    methods = {name: ours(name) for name in options.methods}
    if options.peers:
        methods |= load_peers()
    rows = measure(problems, methods, options.steps, options.samples)
    described = {"samples": options.samples, "problems": options.problems, "seed": options.seed, "rows": rows}
    write_record(options.record, json.dumps(described, indent=1))


if __name__ == "__main__":
    main()
