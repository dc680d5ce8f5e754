"""What m products e^T J e of a network's Jacobian cost, forwards and backwards, as ratios to one plain call.

*reverse*: one evaluation with its graph and m gradients, one after another (what the library does); *reverse,
batched*: the gradients in one vectorised pass; *forward*: m calls of torch's forward mode; *forward, batched*:
vectorised over the m vectors. Each ratio is the least of ``--rounds`` timings over the least of a plain call, on one
thread.

Run: python benchmarks/jacobian_products.py [--rounds 5] [--record]
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator

import torch
from mixtures import ring, wide
from record import add_record, write_record
from torch import Tensor

from scoresde import VPSDE, ScoreModel, nn
from scoresde.noise import normal, stream
from scoresde.ops import jacobian_products, plain_attention

COUNTS = (1, 4, 16, 64)


def cases() -> Iterator[tuple[str, ScoreModel, Tensor]]:
    """Yield models with states: networks with weights that do something, and exact mixtures."""
    draw = stream(1, "products")
    networks = {
        "MLP, 64": (nn.MLP(64), (64, 64)),
        "U-Net, (1, 8, 8)": (nn.UNet(1, width=16, multipliers=(1, 2)), (32, 1, 8, 8)),
        "U-Net, (3, 32, 32)": (nn.UNet(3, width=16, multipliers=(1, 2)), (4, 3, 32, 32)),
    }
    for name, (net, shape) in networks.items():
        with torch.no_grad():
            for p in net.requires_grad_(False).parameters():
                p += 0.05 * normal(tuple(p.shape), draw)
        yield name, ScoreModel(net, VPSDE()), normal(shape, draw)
    yield "mixture, 2", ring(), normal((256, 2), draw).double()
    yield "mixture, 64", wide(), normal((256, 64), draw).double()


def least(run: Callable[[], object], rounds: int) -> float:
    """Return the least seconds of a call."""
    run()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def ways(f: Callable[[Tensor], Tensor], x: Tensor, vectors: Tensor) -> dict[str, Callable[[], object]]:
    """Return the four ways to the same numbers."""

    def summed(product: Tensor, v: Tensor) -> Tensor:
        return (product * v).flatten(1).sum(1)

    def batched() -> Tensor:
        with torch.enable_grad():
            point = x.detach().requires_grad_(True)
            out = f(point)
            (products,) = torch.autograd.grad(out, point, vectors, is_grads_batched=True)
        return (products * vectors).flatten(2).sum(2)

    def forward() -> list[Tensor]:
        with plain_attention():
            return [summed(torch.func.jvp(f, (x,), (v,))[1], v) for v in vectors]

    def forward_batched() -> Tensor:
        with plain_attention():
            return torch.vmap(lambda v: summed(torch.func.jvp(f, (x,), (v,))[1], v))(vectors)

    return {
        "reverse": lambda: jacobian_products(f, x, vectors),
        "reverse, batched": batched,
        "forward": forward,
        "forward, batched": forward_batched,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timings of each way")
    add_record(parser, "jacobian_products")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # Of torch's forward mode, at its first use.
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
    rows = []
    for name, model, x in cases():
        prepared = model.prepare(model.sde.at(torch.tensor([0.3], dtype=torch.float64)), x)

        def f(y: Tensor, prepared: object = prepared) -> Tensor:
            return prepared.raw(0, y)

        with torch.no_grad():
            plain = least(lambda x=x, f=f: f(x), options.rounds)
        for count in COUNTS:
            vectors = normal((count, *x.shape), stream(2, "vectors", count)).sign().to(x)
            with torch.no_grad():
                costs = {way: least(run, options.rounds) / plain for way, run in ways(f, x, vectors).items()}
            rows.append({"model": name, "products": count, "plain_seconds": plain, **costs})
            told = ", ".join(f"{way} {cost:.1f}" for way, cost in costs.items())
            print(f"{name:20} {count:3} products: {told}", flush=True)
    write_record(options.record, json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
