"""What torch.compile of a network gains and costs inside ``sample`` and ``fit``'s training step.

The network alone is compiled, ``ScoreModel(torch.compile(net), sde)``: the loop around it stays as it is. The seconds
of compilation are those of the first call beyond a later one, from an empty cache; for a training step it compiles
forwards and backwards. Then plain and compiled take turns; the ratio is the median over the rounds of compiled to plain
within a round, and it pays after as many steps as save what compilation cost, never where nothing is saved. All seconds
are the processor's, those of the C++ compiler, which a CPU needs, among them.

Run: python benchmarks/compiled.py [--rounds 9] [--threads 1] [--only mlp unet] [--record]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from record import add_record, write_record
from torch import nn

from scoresde.diffusions.vp import VPSDE
from scoresde.models.score_model import ScoreModel
from scoresde.nn import MLP, UNet
from scoresde.noise import normal, stream
from scoresde.sampling.sample import sample
from scoresde.training import Trainer

# Network, shape of a batch, steps of a turn.
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "mlp": (lambda: MLP(2, width=256, depth=2), (256, 2), 40),
    "unet": (lambda: UNet(1, width=16), (4, 1, 16, 16), 6),
}


def sampling(net: Callable[..., torch.Tensor], shape: tuple[int, ...], steps: int) -> Callable[[], object]:
    model = ScoreModel(net, VPSDE())
    return lambda: sample(model, shape, solver="ddim", steps=steps, seed=0)


def training(net: Callable[..., torch.Tensor], shape: tuple[int, ...], steps: int) -> Callable[[], object]:
    trainer, x = Trainer(ScoreModel(net, VPSDE()), learning_rate=1e-4), normal(shape, stream(0))

    def turn() -> None:
        for _ in range(steps):
            trainer(x)

    return turn


USES = {"sample": sampling, "fit": training}


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def compare(name: str, use: str, rounds: int) -> dict[str, object]:
    """Return milliseconds of a step with and without, their ratio, and the seconds of compilation."""
    build, shape, steps = CASES[name]
    net = build()
    plain = USES[use](copy.deepcopy(net), shape, steps)
    compiled = USES[use](torch.compile(net), shape, steps)
    plain()
    began = sum(os.times()[:4])
    compiled()
    first = sum(os.times()[:4]) - began
    took = [(seconds(plain), seconds(compiled)) for _ in range(rounds)]
    without, with_it = (statistics.median(column) / steps for column in zip(*took, strict=True))
    cost = first - with_it * steps
    return {
        "network": name,
        "use": use,
        "shape": list(shape),
        "plain_ms": 1e3 * without,
        "compiled_ms": 1e3 * with_it,
        "ratio": statistics.median(b / a for a, b in took),
        "compilation_s": cost,
        "break_even_steps": round(cost / (without - with_it)) if without > with_it else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    add_record(parser, "compiled")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    print(
        f"{'network':>8} {'use':>7} {'plain ms':>9} {'compiled':>9} {'ratio':>6} {'compile s':>10} {'pays after':>11}"
    )
    for name in options.only:
        for use in USES:
            torch.compiler.reset()
            with tempfile.TemporaryDirectory() as cache:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
                row = compare(name, use, options.rounds)
            rows.append(row)
            numbers = f"{row['plain_ms']:>9.3f} {row['compiled_ms']:>9.3f} {row['ratio']:>6.2f}"
            pays = row["break_even_steps"]
            print(f"{name:>8} {use:>7} {numbers} {row['compilation_s']:>10.1f} {pays!s:>11}", flush=True)
    found = {"threads": options.threads, "rounds": options.rounds, "torch": torch.__version__, "steps": rows}
    write_record(options.record, json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
