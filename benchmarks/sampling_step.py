"""Cost of a sampling step against a hand-written PyTorch loop of the same update; of building a table; of long runs.

The cost of a step is the slope between calls of 50 and of 250 steps, so that set-up does not count. Ours and the hand
loop alternate; the figure is the median over the rounds of the ratio within a round, in processor time. The network is
one multiplication. A draw of noise alone is compared with torch.randn's.
Long runs are made in a process of their own; reported is by how much its resident memory rose at most.

Run: python benchmarks/sampling_step.py [--rounds 15] [--threads 1] [--only NAME ...] [--record]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from record import add_record, write_record
from torch import Tensor

from scoresde import VPSDE, ScoreModel, build_table, sample, solvers
from scoresde.noise import SampleNoise

SHAPES = ((1, 3, 32, 32), (4096, 2), (64, 3, 32, 32))
FEW, MANY = 50, 250
# Every family with one evaluation a step; the noise comes from a generator, and for one also from seed= and seeds=.
FAMILIES = (
    *("ddim", "euler", "exponential_euler", "dpmpp_2m", "dpmpp_3m", "deis", "ipndm", "lms", "exponential_ab"),
    *("unipc", "flow_ab", "flow_abm", "ancestral", "euler_maruyama", "reverse_diffusion", "euler_ancestral"),
    *("seeds_1", "dpmpp_2m_sde", "dpmpp_3m_sde", "sa_solver"),
)
# Shape, steps: a long run in the plane, images, and the same images with twenty times the steps.
LONG = (((65536, 2), 1000), ((64, 3, 64, 64), 50), ((64, 3, 64, 64), 1000))


def net(x: Tensor, c_noise: Tensor) -> Tensor:
    return x * 0.5


def by_hand(name: str, steps: int, x: Tensor, generator: torch.Generator) -> Callable[[], Tensor]:
    """Return the plain loop of this method: a prediction from the network's, then the update.

    Where a prediction serves its own step alone, the loop is written with the readout multiplied out, x <- A x + B F
    (+ C z); where it serves later steps too, or corrects the last one, with the predictions in a list.
    """
    t = torch.linspace(1, 0, steps).reshape(-1, 1).expand(steps, x.shape[0]).unbind(0)
    table = build_table(VPSDE(), solvers.by_name(name), steps=steps)
    rows = [(row, *readout(table.prediction, row.at.alpha, row.at.sigma)) for row in table.rows]
    memory, draws_of = table.memory, [row.draws for row in table.rows]
    folded = [(r.state[0] + r.state[1] * a, r.state[1] * b, r.noise[0] if r.noise else 0.0) for r, a, b in rows]

    def draw() -> Tensor:
        return torch.randn(x.shape, generator=generator)

    def one_step() -> Tensor:
        y = draw()
        for i, (a, b, c) in enumerate(folded):
            y = a * y + b * net(y, t[i])
            if c:
                y = y + c * draw()
        return y

    def several() -> Tensor:
        y = anchor = draw()
        past: list[Tensor] = []
        draws: list[Tensor] = []
        for i, (row, a, b) in enumerate(rows):
            past = [a * y + b * net(y, t[i]), *past[:memory]]
            if draws_of[i]:
                draws = [draw(), *draws[:1]]
            y = add_weighted(row.state, [anchor, *past])
            if row.noise:
                y = y + add_weighted(row.noise, draws)
            if row.anchor is None:
                anchor = y
            else:
                anchor = add_weighted(row.anchor, [anchor, *past])
                if row.anchor_noise:
                    anchor = anchor + row.anchor_noise[1] * draws[1 if draws_of[i] else 0]
        return y

    return several if memory or any(row.anchor for row in table.rows) else one_step


def readout(prediction: str, alpha: float, sigma: float) -> tuple[float, float]:
    """Return the weights of x and of the network's noise prediction in another prediction."""
    return {"noise": (0.0, 1.0), "data": (1 / alpha, -sigma / alpha), "flow": (-1 / alpha, 1 + sigma / alpha)}[
        prediction
    ]


def add_weighted(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=False):
        total = total + weight * value
    return total


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def step_cost(name: str, shape: tuple[int, ...], rounds: int, source: str) -> dict[str, object]:
    """Return medians of our slope, the hand loop's, and their ratio."""
    model = ScoreModel(net, VPSDE())
    generator = torch.Generator().manual_seed(0)
    x = torch.empty(shape)
    solver = solvers.by_name(name)

    def ours(steps: int) -> Callable[[], object]:
        if source == "generator":
            return lambda: sample(model, shape, solver=solver, steps=steps, generator=generator)
        own = {"seed": 0} if source == "seed" else {"seeds": list(range(shape[0]))}
        return lambda: sample(model, shape, solver=solver, steps=steps, **own)

    def hand(steps: int) -> Callable[[], object]:
        return by_hand(name, steps, x, generator)

    calls = {(who, n): make(n) for n in (FEW, MANY) for who, make in (("ours", ours), ("hand", hand))}
    for call in calls.values():
        call()
    slopes: dict[str, list[float]] = {"ours": [], "hand": []}
    for _ in range(rounds):
        took = {key: seconds(call) for key, call in calls.items()}
        for who in slopes:
            slopes[who].append((took[who, MANY] - took[who, FEW]) / (MANY - FEW))
    ratios = [a / b for a, b in zip(slopes["ours"], slopes["hand"], strict=True)]
    return {
        "solver": name,
        "shape": list(shape),
        "noise": source,
        "ours_us": 1e6 * statistics.median(slopes["ours"]),
        "hand_us": 1e6 * statistics.median(slopes["hand"]),
        "ratio": statistics.median(ratios),
    }


def noise_cost(shape: tuple[int, ...], rounds: int) -> dict[str, object]:
    """Return the medians of a draw in torch.randn's: by seed= and by seeds=, and its microseconds."""
    out, generator = torch.empty(shape), torch.Generator()
    named, listed = SampleNoise(0), SampleNoise(seeds=list(range(shape[0])))
    fills = {"randn": lambda: out.normal_(generator=generator), "seed": lambda: named.fill(out)}
    fills["seeds"] = lambda: listed.fill(out)

    def many(fill: Callable[[], object]) -> Callable[[], object]:
        return lambda: [fill() for _ in range(MANY)]

    for fill in fills.values():
        many(fill)()
    took: dict[str, list[float]] = {name: [] for name in fills}
    for _ in range(rounds):
        for name, fill in fills.items():
            took[name].append(1e6 * seconds(many(fill)) / MANY)
    found: dict[str, object] = {"shape": list(shape), "randn_us": statistics.median(took["randn"])}
    for name in ("seed", "seeds"):
        found[name] = statistics.median(a / b for a, b in zip(took[name], took["randn"], strict=True))
    return found


def build_cost(name: str, rounds: int) -> dict[str, object]:
    """Return the median milliseconds of building a 50-step table."""
    solver, sde = solvers.by_name(name), VPSDE()
    # The solver itself, not build_table, which keeps what it built.
    took = [seconds(lambda: solver.build(sde, solver.grid(sde, 49)).denoised()) for _ in range(rounds)]
    return {"solver": name, "build_ms": 1e3 * statistics.median(took)}


def long_run(shape: tuple[int, ...], steps: int) -> None:
    """Sample once and print the seconds and by how many MiB the resident memory rose at most."""
    torch.set_num_threads(1)
    model = ScoreModel(net, VPSDE())
    sample(model, (1, 1), steps=2, seed=0)  # what the first call loads is not the run's
    status, before = Path("/proc/self/status"), resident("VmRSS")
    if status.exists():
        Path("/proc/self/clear_refs").write_text("5")  # the largest so far is forgotten
    print(seconds(lambda: sample(model, shape, steps=steps, seed=0)), resident("VmHWM") - before)


def resident(key: str) -> float:
    """Return a figure of the process's memory in MiB, on Linux; NaN elsewhere."""
    status = Path("/proc/self/status")
    if not status.exists():
        return math.nan
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(key)) / 1024


def long_runs() -> list[dict[str, object]]:
    """Return seconds and memory of the long runs, each in a process of its own."""
    found = []
    for shape, steps in LONG:
        command = [sys.executable, __file__, "--long", str(steps), *map(str, shape)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        took, memory = map(float, said.split())
        state = 4 * torch.Size(shape).numel() / 2**20
        found.append({"shape": shape, "steps": steps, "seconds": took, "MiB": memory, "state_MiB": state})
        print(f"{shape!s:>18} {steps:>5} steps: {took:.2f} s, {memory:.1f} MiB at most, a state has {state:.1f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--long", nargs="+", type=int, default=None, help=argparse.SUPPRESS)
    add_record(parser, "sampling_step")
    options = parser.parse_args()
    if options.long is not None:
        long_run(tuple(options.long[1:]), options.long[0])
        return
    torch.set_num_threads(options.threads)
    rows = []
    print(f"{'solver':>18} {'shape':>16} {'noise':>10} {'ours us':>9} {'hand us':>9} {'ratio':>6}")
    cases = [(name, "generator") for name in options.only]
    cases += [("ancestral", "seed"), ("ancestral", "seeds")] if "ancestral" in options.only else []
    for name, source in cases:
        for shape in SHAPES:
            row = step_cost(name, shape, options.rounds, source)
            rows.append(row)
            numbers = f"{row['ours_us']:>9.2f} {row['hand_us']:>9.2f} {row['ratio']:>6.2f}"
            print(f"{name:>18} {shape!s:>16} {source:>10} {numbers}", flush=True)
    noise = [noise_cost(shape, options.rounds) for shape in SHAPES]
    for row in noise:
        own = f"seed= {row['seed']:.2f}, seeds= {row['seeds']:.2f} of torch.randn's {row['randn_us']:.1f} us"
        print(f"a draw of {row['shape']}: {own}")
    fixed = [name for name, make in solvers.SOLVERS.items() if isinstance(make(), solvers.Solver)]
    builds = [build_cost(name, options.rounds) for name in fixed]
    slowest = max(builds, key=lambda row: row["build_ms"])
    print(f"a 50-step table: {slowest['build_ms']:.2f} ms at most ({slowest['solver']}), of {len(builds)} solvers")
    found = {"threads": options.threads, "steps": rows, "noise": noise, "build": builds, "long": long_runs()}
    write_record(options.record, json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
