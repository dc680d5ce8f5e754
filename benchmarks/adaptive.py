"""The per-sample adaptive flow: its clock by evaluations at equal error, its time against torchdiffeq and scipy.

Two exact mixtures under VP (ring of eight in two dimensions, ten Gaussians in 32), accuracy against the flow at 1e-11
from the same noise. Errors are the root mean square per coordinate over all samples, and the median over samples of
the same of one. Figures at a stated error are interpolated between tolerances, in logarithms.

Ours and torchdiffeq alternate; torchdiffeq gets the same function in the same coordinates, told of its end, and one
step for the whole batch, as it has; "in t" is the usual way to use it, dx/dt in the SDE's time. The time is the median
over the rounds, and the ratio the median of the ratios within a round. On a busy machine ``--cpu-time`` measures the
processor's time, which on one thread is the wall time of a quiet one.

scipy's RK45 gets the same equation in the same coordinates, the batch flattened into one vector, and is compared at
equal tolerance; the errors of both are said. It has one u for all samples, so the numbers of a call are Python's.

Run: python benchmarks/adaptive.py [--rounds 15] [--threads 1] [--cpu-time] [--part clocks|speed|scipy] [--record]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torchdiffeq
from mixtures import SDE, ring, ten, wide
from record import add_record, read_record, write_record
from scipy.integrate import solve_ivp
from torch import Tensor

from scoresde import GaussianMixtureModel, GaussianSDE, ProbabilityFlow
from scoresde.diffusions.point import Point
from scoresde.noise import normal, stream
from scoresde.ops import expand
from scoresde.sampling.flow import flow_field, solve
from scoresde.solvers.adaptive import Field

TOLERANCES = tuple(10.0 ** (-k / 2) for k in range(4, 14))


@dataclass(frozen=True)
class Clock:
    """The flow in other coordinates: y = x/scale, dy/du as a sum of data and noise."""

    u: Callable[[Point], Tensor]
    log_snr: Callable[[Tensor], Tensor]
    scale: Callable[[Point], Tensor]
    weights: Callable[[GaussianSDE, Point], tuple[Tensor, Tensor]]


def nu(p: Point) -> Tensor:
    return p.sigma / p.alpha


def v_weights(sde: GaussianSDE, p: Point) -> tuple[Tensor, Tensor]:
    return -p.sigma / p.r, p.alpha / p.r


CLOCKS = {
    "t": Clock(
        lambda p: p.t,
        lambda u: SDE.log_snr(u),
        lambda p: torch.ones_like(p.alpha),
        lambda sde, p: (sde.alpha_rate(p.t), sde.sigma_rate(p.t)),
    ),
    # y = x/alpha: dy = noise dnu
    "log_snr": Clock(lambda p: p.log_snr, lambda u: u, lambda p: p.alpha, lambda sde, p: (0 * nu(p), -0.5 * nu(p))),
    "nu": Clock(nu, lambda u: -2 * u.log(), lambda p: p.alpha, lambda sde, p: (0 * nu(p), torch.ones_like(p.alpha))),
    # y = x/sqrt(alpha^2 + sigma^2): dy = v dphi, phi the angle of (alpha, sigma)
    "angle": Clock(lambda p: nu(p).atan(), lambda u: -2 * u.tan().log(), lambda p: p.r, v_weights),
}


def field_in(clock: Clock, model: GaussianMixtureModel) -> Field:
    first, last = SDE.at(SDE.t_max), SDE.at(SDE.t_min)

    def stages(u: Tensor, rows: Tensor) -> Callable[[int, Tensor], Tensor]:
        point = SDE.at(SDE.time(clock.log_snr(u)))
        scale, (on_data, on_noise) = clock.scale(point), clock.weights(SDE, point)

        def stage(i: int, y: Tensor) -> Tensor:
            at = Point(point.t[i], point.alpha[i], point.sigma[i], point.log_snr[i])
            out = model.at(expand(scale[i], y) * y, at)
            return expand(on_data[i], y) * out.data + expand(on_noise[i], y) * out.noise

        return stage

    scales = float(clock.scale(first)), float(clock.scale(last))
    return Field(stages, float(clock.u(first)), float(clock.u(last)), scales, lambda u: u, "u")


@dataclass(frozen=True)
class Errors:
    rms: float
    median: float


def errors(x: Tensor, exact: Tensor) -> Errors:
    each = (x.double() - exact).square().mean(1)
    return Errors(float(each.mean().sqrt()), float(each.sqrt().median()))


def at_error(rows: list[tuple[float, float]], error: float) -> float:
    """Interpolate cost over error, both as logarithms; NaN outside what was measured."""
    rows = sorted(rows)
    x, y = (np.log([row[k] for row in rows]) for k in (0, 1))
    inside = x[0] <= math.log(error) <= x[-1]
    return float(np.exp(np.interp(math.log(error), x, np.minimum.accumulate(y)))) if inside else math.nan


def compare_clocks(model: GaussianMixtureModel, x: Tensor, exact: Tensor) -> list[dict[str, object]]:
    """Return the mean evaluations of each clock and pair at errors of 1e-3, 1e-4 and 1e-5."""
    first, last = SDE.t_max, SDE.t_min
    fields = {name: field_in(clock, model) for name, clock in CLOCKS.items()}
    fields["rectified"] = flow_field(model, x, first, last)
    table = []
    for method in ("dopri5", "bosh3"):
        for name, field in fields.items():
            rows = []
            # The lower order needs too many steps at the lowest tolerances.
            for tolerance in TOLERANCES[: None if method == "dopri5" else 6]:
                result = ProbabilityFlow(rtol=tolerance, atol=tolerance, method=method).integrate(field, x)
                rows.append((errors(result.x, exact), float(result.nfe.double().mean())))
            row: dict[str, object] = {"method": method, "clock": name}
            for error in (1e-3, 1e-4, 1e-5):
                row[f"rms {error:g}"] = at_error([(e.rms, n) for e, n in rows], error)
                row[f"median {error:g}"] = at_error([(e.median, n) for e, n in rows], error)
            table.append(row)
    return table


def torchdiffeq_rectified(model: GaussianMixtureModel, x: Tensor, tolerance: float) -> Tensor:
    field = flow_field(model, x, SDE.t_max, SDE.t_min)
    times = torch.tensor([field.start, field.end], dtype=torch.float64)

    def slope(u: Tensor, y: Tensor) -> Tensor:
        return field.slope(y, u.double().clamp(field.end, field.start))

    options = {"step_t": times[1:]}
    y = torchdiffeq.odeint(
        slope, x / field.scales[0], times, rtol=tolerance, atol=tolerance, method="dopri5", options=options
    )
    return y[-1] * field.scales[1]


def torchdiffeq_in_t(model: GaussianMixtureModel, x: Tensor, tolerance: float) -> Tensor:
    times = torch.tensor([SDE.t_max, SDE.t_min], dtype=torch.float64)

    def slope(t: Tensor, y: Tensor) -> Tensor:
        return model(y, t.double().clamp(SDE.t_min, SDE.t_max)).velocity

    options = {"step_t": times[1:]}
    return torchdiffeq.odeint(slope, x, times, rtol=tolerance, atol=tolerance, method="dopri5", options=options)[-1]


def ours(model: GaussianMixtureModel, x: Tensor, tolerance: float) -> Tensor:
    return solve(ProbabilityFlow(rtol=tolerance, atol=tolerance), model, x, SDE.t_max, SDE.t_min).x


SOLVERS = {"ours": ours, "torchdiffeq": torchdiffeq_rectified, "torchdiffeq in t": torchdiffeq_in_t}


def seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


def compare_speed(
    model: GaussianMixtureModel, x: Tensor, exact: Tensor, rounds: int, clock: Callable[[], float]
) -> list[dict[str, object]]:
    """Return the times of each solver at equal errors and the ratios of ours to the others."""
    lowest = 1e-6 if x.dtype == torch.float32 else 3e-7
    tolerances = [tolerance for tolerance in TOLERANCES if tolerance >= lowest]
    found = {(name, tol): errors(solve(model, x, tol), exact) for name, solve in SOLVERS.items() for tol in tolerances}
    took: dict[tuple[str, float], list[float]] = {key: [] for key in found}
    for _ in range(rounds):
        for name, tol in took:
            took[name, tol].append(seconds(lambda name=name, tol=tol: SOLVERS[name](model, x, tol), clock))
    table = []
    for kind in ("rms", "median"):
        for error in (1e-3, 1e-4, 1e-5):
            each = {
                name: [
                    at_error([(getattr(found[name, tol], kind), took[name, tol][k]) for tol in tolerances], error)
                    for k in range(rounds)
                ]
                for name in SOLVERS
            }
            row: dict[str, object] = {"dtype": str(x.dtype), "error": kind, "at": error}
            for name, times in each.items():
                row[f"{name}, ms"] = 1e3 * statistics.median(times)
                row[f"ratio to {name}"] = statistics.median(a / b for a, b in zip(each["ours"], times, strict=True))
            table.append(row)
    return table


def scipy_rectified(model: GaussianMixtureModel, x: Tensor, tolerance: float) -> tuple[Tensor, int]:
    """Return the end and the evaluations of scipy's RK45, one step for the whole batch."""
    field = flow_field(model, x, SDE.t_max, SDE.t_min)

    def slope(at: float, values: np.ndarray) -> np.ndarray:
        y, u = torch.from_numpy(values).view(x.shape), torch.tensor([at], dtype=torch.float64)
        prepared = model.prepare(Point(u, 1 - u, u, -2 * torch.logit(u)), y)
        (on_y,), (on_output,) = prepared.weights("flow")
        return (on_y * y).add_(prepared.raw(0, y), alpha=on_output).reshape(-1).numpy()

    start = (x / field.scales[0]).reshape(-1).numpy()
    found = solve_ivp(slope, (field.start, field.end), start, method="RK45", rtol=tolerance, atol=tolerance)
    return torch.from_numpy(found.y[:, -1]).view(x.shape) * field.scales[1], found.nfev


def compare_scipy(rounds: int, clock: Callable[[], float]) -> list[dict[str, object]]:
    """Return the times and the errors of ours and of scipy's RK45 at equal tolerances, in float64."""
    table = []
    for name, model, size in (("ring", ring(), 2), ("wide", wide(), 64)):
        for batch in (256, 1024):
            x = normal((batch, size), stream(2, "start", size), dtype=torch.float64)
            exact = ours(model, x, 1e-10)
            for tol in (1e-3, 1e-5):
                result = solve(ProbabilityFlow(rtol=tol, atol=tol), model, x, SDE.t_max, SDE.t_min)
                end, evaluations = scipy_rectified(model, x, tol)
                calls = [partial(f, model, x, tol) for f in (ours, scipy_rectified)]
                took = [[seconds(call, clock) for call in calls] for _ in range(rounds)]
                mine, theirs = (errors(values, exact) for values in (result.x, end))
                row: dict[str, object] = {"mixture": name, "batch": batch, "tolerance": tol}
                row |= {"ours, ms": 1e3 * statistics.median(a for a, _ in took)}
                row |= {"scipy, ms": 1e3 * statistics.median(b for _, b in took)}
                row |= {"ratio": statistics.median(a / b for a, b in took)}
                row |= {"rms of ours": mine.rms, "rms of scipy": theirs.rms}
                row |= {"median of ours": mine.median, "median of scipy": theirs.median}
                row |= {"calls of ours": float(result.nfe.double().mean()), "calls of scipy": float(evaluations)}
                table.append(row)
    return table


def show(title: str, table: list[dict[str, object]]) -> None:
    print(f"\n{title}")
    names = list(table[0])
    print("  ".join(f"{name:>12}" for name in names))
    for row in table:
        cells = (f"{row[n]:.4g}" if isinstance(row[n], float) else str(row[n]) for n in names)
        print("  ".join(f"{cell:>{max(12, len(name))}}" for cell, name in zip(cells, names, strict=True)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument(
        "--part", choices=("clocks", "speed", "scipy"), help="only one part; the others' figures are kept"
    )
    add_record(parser, "adaptive")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    kind = "processor" if options.cpu_time else "wall"
    how = {"time": kind, "threads": options.threads, "rounds": options.rounds}
    result = read_record(options.record) if options.part else {}
    with torch.no_grad():
        if options.part in (None, "scipy"):
            result["scipy"] = {**how, "rows": compare_scipy(options.rounds, clock)}
            show(f"{kind} time at equal tolerance, float64", result["scipy"]["rows"])
        for name, model, size in (("ring", ring(), 2), ("ten", ten(), 32)):
            x = normal((256, size), stream(2, "start", size), dtype=torch.float64)
            exact = ours(model, x, 1e-10)
            if options.part in (None, "clocks"):
                result[f"clocks, {name}"] = compare_clocks(model, x[:128], exact[:128])
                show(f"{name}: evaluations at equal error, by clock", result[f"clocks, {name}"])
        if options.part in (None, "speed"):
            speed = []
            for dtype in (torch.float32, torch.float64):
                speed += compare_speed(model, x.to(dtype), exact, options.rounds, clock)
            show(f"{kind} time at equal error, ten Gaussians, (256, 32)", speed)
            result["speed"] = {**how, "rows": speed}
    # What was not reached is NaN, for which JSON has no number.
    text = json.dumps(result, indent=1).replace("NaN", "null")
    write_record(options.record, text)


if __name__ == "__main__":
    main()
