"""Cost of a sampling step against a hand-written PyTorch loop of the same update, and of building a table.

The cost of a step is the slope between calls of 50 and of 250 steps, so that set-up does not count. Ours and the hand
loop alternate; the figure is the median over the rounds of the ratio within a round. The network is one multiplication.

Run: python benchmarks/sampling_step.py [--rounds 15] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from scoresde import VPSDE, ScoreModel, build_table, sample, solvers

SHAPES = ((1, 3, 32, 32), (4096, 2), (64, 3, 32, 32))
FEW, MANY = 50, 250


def net(x: Tensor, c_noise: Tensor) -> Tensor:
    return x * 0.5


def by_hand(name: str, steps: int, x: Tensor, generator: torch.Generator) -> Callable[[], Tensor]:
    """Return the plain loop of this method: data prediction from noise prediction, then the update."""
    t = torch.linspace(1, 0, steps).reshape(-1, 1).expand(steps, x.shape[0]).unbind(0)
    table = build_table(VPSDE(), solvers.by_name(name), steps=steps)
    rows = [(row.state, row.noise, 1 / row.at.alpha, -row.at.sigma / row.at.alpha) for row in table.rows]
    # Written as one would by hand with the readout multiplied out: x <- A x + B F (+ C z), or with one data prediction
    # kept for the multistep method.
    folded = [(s[0] + s[1] * a, s[1] * b, n[0] if n else 0.0) for s, n, a, b in rows]

    def first_order() -> Tensor:
        y = torch.randn(x.shape, generator=generator)
        for i, (a, b, _) in enumerate(folded):
            y = a * y + b * net(y, t[i])
        return y

    def stochastic() -> Tensor:
        y = torch.randn(x.shape, generator=generator)
        for i, (a, b, c) in enumerate(folded):
            y = a * y + b * net(y, t[i])
            if c:
                y = y + c * torch.randn(y.shape, generator=generator)
        return y

    def multistep() -> Tensor:
        y = torch.randn(x.shape, generator=generator)
        before = None
        for i, (s, _, a, b) in enumerate(rows):
            data = a * y + b * net(y, t[i])
            y = s[0] * y + s[1] * data
            if len(s) > 2:
                y = y + s[2] * before
            before = data
        return y

    return {"ddim": first_order, "ancestral": stochastic, "dpmpp_2m": multistep}[name]


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def step_cost(name: str, shape: tuple[int, ...], rounds: int, source: str) -> dict[str, object]:
    """Return medians of our slope, the hand loop's, and their ratio."""
    model = ScoreModel(net, VPSDE())
    generator = torch.Generator().manual_seed(0)
    x = torch.empty(shape)
    solver = solvers.by_name(name)

    def ours(steps: int) -> Callable[[], object]:
        if source == "generator":
            return lambda: sample(model, shape, solver=solver, steps=steps, generator=generator)
        return lambda: sample(model, shape, solver=solver, steps=steps, seed=0)

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


def build_cost(name: str, rounds: int) -> dict[str, object]:
    """Return the median milliseconds of building a 50-step table."""
    solver, sde = solvers.by_name(name), VPSDE()
    # The solver itself, not build_table, which keeps what it built.
    took = [seconds(lambda: solver.build(sde, solver.grid(sde, 49)).denoised()) for _ in range(rounds)]
    return {"solver": name, "build_ms": 1e3 * statistics.median(took)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "sampling_step.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    print(f"{'solver':>10} {'shape':>16} {'noise':>10} {'ours us':>9} {'hand us':>9} {'ratio':>6}")
    cases = [("ddim", "generator"), ("dpmpp_2m", "generator"), ("ancestral", "generator"), ("ancestral", "seed")]
    for name, source in cases:
        for shape in SHAPES:
            row = step_cost(name, shape, options.rounds, source)
            rows.append(row)
            numbers = f"{row['ours_us']:>9.2f} {row['hand_us']:>9.2f} {row['ratio']:>6.2f}"
            print(f"{name:>10} {shape!s:>16} {source:>10} {numbers}")
    builds = [build_cost(name, options.rounds) for name in ("ddim", "dpmpp_2m", "ancestral", "euler_maruyama", "heun")]
    for row in builds:
        print(f"{row['solver']:>16}: a 50-step table in {row['build_ms']:.2f} ms")
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps({"threads": options.threads, "steps": rows, "build": builds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
