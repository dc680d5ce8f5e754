"""The exact models: a mixture against the same by plain products of matrices, and the memory of the empirical model.

The yardstick is the mixture's v written by hand in float32, |x - alpha m|^2 multiplied out and nothing centred. Both
are asked as networks (x and a log-SNR for each sample) and as models, ``model(x, t).data``; they alternate, the time is
the thread's own, and the ratio that of the least times over the rounds. Memory is the peak of a process that holds the
data (float32), makes the model and asks it for 256 samples, less what the process had before, in multiples of the data.

Run: python benchmarks/exact_models.py [--rounds 30] [--threads 1] [--record]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from record import add_record, write_record
from torch import Tensor

from scoresde import VPSDE, EmpiricalModel, GaussianMixtureModel, ScoreModel
from scoresde.noise import normal, stream

SDE, STD = VPSDE(), 0.2
MIXTURES = ((64, 2, 8), (256, 16, 100), (1024, 64, 1000))  # samples, dimensions, components
POINTS = (60_000, 784)
T = 0.3


def by_hand(means: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return v(x, log_snr) of components of equal weight and width STD."""
    half = 0.5 * means.square().sum(1)

    def v(x: Tensor, log_snr: Tensor) -> Tensor:
        alpha, sigma = torch.sigmoid(log_snr).sqrt()[:, None], torch.sigmoid(-log_snr).sqrt()[:, None]
        variance = alpha * alpha * STD**2 + sigma * sigma
        share = torch.softmax((alpha / variance) * (x @ means.T) - (alpha * alpha / variance) * half, 1)
        mean = share @ means
        return (alpha * sigma * (1 - STD**2) / variance) * (x - alpha * mean) - sigma * mean

    return v


def least(calls: list[Callable[[], object]], rounds: int) -> list[float]:
    """Return the least time of each call in milliseconds."""
    times: list[list[float]] = [[] for _ in calls]
    for k in range(rounds + 1):
        for call, took in zip(calls, times, strict=True):
            start = time.thread_time()
            call()
            if k:  # the first only warms up
                took.append(1e3 * (time.thread_time() - start))
    return [min(took) for took in times]


def compare_mixture(batch: int, size: int, count: int, rounds: int) -> dict[str, object]:
    """Time one mixture and the same by hand."""
    means, x = normal((count, size), stream(0, "means")), normal((batch, size), stream(0, "x"))
    model = GaussianMixtureModel(sde=SDE, weights=torch.ones(count), means=means, std=STD)
    hand = by_hand(means)
    other = ScoreModel(hand, SDE, predicts="v")
    log_snr = SDE.log_snr(torch.tensor(T, dtype=torch.float64)).float().expand(batch)
    torch.testing.assert_close(model(x, T).data, other(x, T).data, rtol=1e-3, atol=1e-3)
    calls = [
        lambda: model.net(x, log_snr),
        lambda: hand(x, log_snr),
        lambda: model(x, T).data,
        lambda: other(x, T).data,
    ]
    ours, theirs, whole, other_whole = least(calls, rounds if count >= 1000 else 10 * rounds)
    return {
        "shape": f"({batch}, {size}), {count} components",
        "net, ms": ours,
        "by hand, ms": theirs,
        "ratio of nets": ours / theirs,
        "ratio of models": whole / other_whole,
    }


def measure_memory() -> dict[str, float]:
    """Run this file's child and return what it says."""
    out = subprocess.run([sys.executable, __file__, "--child"], check=True, capture_output=True, text=True).stdout
    return json.loads(out)


def ask_empirical() -> None:
    """Print the peak memory over that of the process without data, in multiples of the data."""

    def peak() -> float:
        # Linux's own count, in KiB; what getrusage says a process inherits from the one that started it.
        return 1024.0 * int(Path("/proc/self/status").read_text("utf-8").split("VmHWM:")[1].split()[0])

    torch.set_num_threads(1)
    with torch.no_grad():
        # A small one first, so that the library's own code and workspaces are not counted.
        for count in (300, POINTS[0]):
            before = peak()
            data = torch.empty(count, POINTS[1])
            for k, rows in enumerate(data.split(1000)):
                rows.copy_(normal(tuple(rows.shape), stream(k, "data")))
            x, start = normal((256, POINTS[1]), stream(0, "x")), time.thread_time()
            model = EmpiricalModel(sde=SDE, data=data)
            made, start = time.thread_time() - start, time.thread_time()
            model(x, T)
    bytes_of_data = data.numel() * data.element_size()
    said = {
        "peak/data": (peak() - before) / bytes_of_data,
        "made, s": made,
        "256 samples, s": time.thread_time() - start,
    }
    print(json.dumps(said))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    add_record(parser, "exact_models")
    options = parser.parse_args()
    if options.child:
        ask_empirical()
        return
    torch.set_num_threads(options.threads)
    with torch.no_grad():
        mixtures = [compare_mixture(*shape, options.rounds) for shape in MIXTURES]
    for row in mixtures:
        print(
            "  ".join(f"{name} {value:.3g}" if isinstance(value, float) else str(value) for name, value in row.items())
        )
    memory = measure_memory()
    print(f"empirical {POINTS}: " + "  ".join(f"{name} {value:.3g}" for name, value in memory.items()))
    result = {"rounds": options.rounds, "threads": options.threads, "mixtures": mixtures, "empirical": memory}
    write_record(options.record, json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
