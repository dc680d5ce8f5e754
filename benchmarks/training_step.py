"""Cost of a training step against the bare network's forward, backward and optimiser step.

Bare is the least that any training does: a mean square error to random targets and torch.optim.Adam as it comes. Ours
is the step that ``fit`` makes: times, noise, weighted loss, clipping, fused Adam and the average of the weights. The
loop is the one that a user writes: ``denoising_score_matching``, Adam as it comes, nothing else. By hand is a plain
PyTorch loop with fixed VP formulas, fused Adam and a foreach average. Everything is ours with two power-function
averages in the place of one and a learned weight of the noise levels.

All of them take turns, a chunk of steps each (64 for the MLP, so that what is prepared for many steps at once counts
in full); the figures are medians over the rounds, of the time of a step and of the ratio within a round.

Run: python benchmarks/training_step.py [--rounds 25] [--threads 1] [--clock wall|cpu] [--record]

On a machine that does other work at the same time, --clock cpu (the process's own seconds, all threads together) with
--threads 1 is what repeats.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable

import torch
from record import add_record, write_record
from torch import nn

from scoresde.diffusions.vp import VPSDE
from scoresde.models.score_model import ScoreModel
from scoresde.nn import MLP, UNet
from scoresde.noise import normal, stream
from scoresde.training import Trainer
from scoresde.training.losses import denoising_score_matching

# Network, shape of a batch, steps of a chunk.
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "mlp": (lambda: MLP(2, width=106, depth=2), (512, 2), 64),
    "unet": (lambda: UNet(3, width=36, attention=(1, 2)), (16, 3, 32, 32), 1),
}


def bare(net: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    target, c_noise = normal(x.shape, stream(1)), normal((len(x),), stream(2))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x, c_noise), target).backward()
        optimizer.step()

    return step


def by_hand(net: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    parameters = list(net.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=True)
    average = [p.detach().clone() for p in parameters]
    generator = torch.Generator().manual_seed(0)
    tail = (1,) * (x.ndim - 1)

    def step() -> None:
        t = torch.rand(len(x), generator=generator) * (1 - 1e-5) + 1e-5
        b = t * (0.1 + 9.95 * t)
        variance = -torch.expm1(-b)
        noise = torch.randn(x.shape, generator=generator)
        x_t = (-0.5 * b).exp().reshape(-1, *tail) * x + variance.sqrt().reshape(-1, *tail) * noise
        loss = nn.functional.mse_loss(net(x_t, -b - variance.log()), noise)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1e-3)

    return step


def loop(net: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    model, generator = ScoreModel(net, VPSDE()), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        denoising_score_matching(model, x, generator=generator).mean().backward()
        optimizer.step()

    return step


def ours(net: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    trainer = Trainer(ScoreModel(net, VPSDE()), learning_rate=1e-4)
    return lambda: trainer(x)


def everything(net: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    trainer = Trainer(ScoreModel(net, VPSDE()), learning_rate=1e-4, sigma_rel=(0.05, 0.1), uncertainty=True)
    return lambda: trainer(x)


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
CONTESTANTS = {"bare": bare, "ours": ours, "everything": everything, "loop": loop, "by_hand": by_hand}


def seconds(step: Callable[[], object], steps: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(steps):
        step()
    return (clock() - start) / steps


def compare(name: str, rounds: int, clock: Callable[[], float]) -> dict[str, object]:
    """Return medians of the milliseconds of a step, and of the ratios to the bare one."""
    build, shape, chunk = CASES[name]
    net = build()
    x = normal(shape, stream(0))
    steps = {who: make(copy.deepcopy(net), x) for who, make in CONTESTANTS.items()}
    for step in steps.values():
        seconds(step, 3, clock)
    took: dict[str, list[float]] = {who: [] for who in steps}
    order = list(steps)
    for i in range(rounds):
        # The one that goes first changes, so that no place in the turn is favoured.
        for who in order[i % len(order) :] + order[: i % len(order)]:
            took[who].append(seconds(steps[who], chunk, clock))
    return {
        "network": name,
        "parameters": sum(p.numel() for p in net.parameters()),
        "shape": list(shape),
        "milliseconds": {who: 1e3 * statistics.median(times) for who, times in took.items()},
        "ratio": {
            who: statistics.median(a / b for a, b in zip(times, took["bare"], strict=True))
            for who, times in took.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--only", choices=CASES, default=None)
    add_record(parser, "training_step")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    print(f"{'network':>8} {'parameters':>11} {'shape':>16} {'':>8} {'ms a step':>10} {'ratio to bare':>14}")
    for name in CASES if options.only is None else [options.only]:
        row = compare(name, options.rounds, CLOCKS[options.clock])
        rows.append(row)
        for who, ratio in row["ratio"].items():
            ms, shape = row["milliseconds"][who], tuple(row["shape"])
            print(f"{name:>8} {row['parameters']:>11} {shape!s:>16} {who:>8} {ms:>10.3f} {ratio:>14.3f}")
    found = {"threads": options.threads, "clock": options.clock, "rounds": options.rounds, "steps": rows}
    write_record(options.record, json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
