"""What a GPU makes of it, in one run that ends by itself: equality with the CPU, costs of steps and of noise, training.

Each section is a process of its own with a budget of seconds, and prints a figure a line: one that fails, hangs or
runs out of memory loses what it had still to say, and its message stands in its place. The sections:

* equality: samples, losses and log likelihoods on the device against the CPU's, the same noise, float32 without TF32;
  the largest difference as a share of the largest value, and the tolerance that it is held to.
* step: microseconds of a sampling step against a hand-written loop of the same update, a network of one
  multiplication; the slope between runs of ``FEW`` and ``MANY`` steps. A table is straight-line code: on a GPU the
  whole sampler is captured as one CUDA graph, and replayed.
* noise: a draw by ``seed=`` and ``seeds=`` in torch.randn's.
* sampling: images a second of the U-Net in bfloat16, plain and as one CUDA graph.
* training: images a second and memory of the U-Net in bfloat16, for a hand-written loop, ``Trainer`` and diffusers'
  loop, plain; then the first two with channels_last, with torch.compile and with both.
  ``first_s`` is the first step with what it compiles.

Run: python benchmarks/gpu.py [--small] [--seconds 460] [--only SECTION ...] [--record [FILE]]

Without a GPU, or with --small, everything is small, so that the script is known to work before a GPU is lent.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from gpu_training import UNETS, make_unet, rate, train
from record import add_record, write_record
from torch import Tensor

from scoresde import VPSDE, SamplingModule, ScoreModel, build_table, denoising_score_matching, log_likelihood, sample
from scoresde.nn import MLP, UNet
from scoresde.noise import SampleNoise, normal, stream

FEW, MANY, ROUNDS = 20, 100, 5
SHAPES = ((1, 3, 32, 32), (64, 3, 32, 32))
Figures = Iterator[Mapping[str, object]]


def shaken(net: torch.nn.Module) -> torch.nn.Module:
    """Move every weight a little: the last layers of a new network are zero, and would hide what is before them."""
    with torch.no_grad():
        for k, p in enumerate(net.parameters()):
            p += 0.05 * normal(p.shape, stream(1, k))
    return net


def equality(device: torch.device, small: bool) -> Figures:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    image, point = shaken(UNet(3, width=16, attention=(1,))), shaken(MLP(2, width=64, depth=2))
    places = (torch.device("cpu"), device)

    def held(what: str, tolerance: float, call: Callable[[torch.device], Tensor]) -> Mapping[str, object]:
        reference, found = (call(place).detach().double().cpu() for place in places)
        gap = float((found - reference).abs().max() / reference.abs().max())
        return {"what": what, "difference": gap, "tolerance": tolerance, "holds": gap <= tolerance}

    shape = (4, 3, 16, 16)
    for solver, steps in (("flow_abm", 10), ("heun", 10), ("dpmpp_2m", 10), ("ancestral", 50)):

        def draw(place: torch.device, solver: str = solver, steps: int = steps) -> Tensor:
            return sample(ScoreModel(image.to(place), VPSDE()), shape, solver=solver, steps=steps, seed=0)

        yield held(f"samples by {solver}", 1e-3, draw)
    x0, noise, t = normal(shape, stream(2)), normal(shape, stream(3)), torch.linspace(0.05, 0.95, 4)

    def loss(place: torch.device) -> Tensor:
        model = ScoreModel(image.to(place), VPSDE())
        return denoising_score_matching(model, x0.to(place), t=t.to(place), noise=noise.to(place))

    yield held("denoising losses", 1e-4, loss)
    x = normal((16, 2), stream(4))

    def measure(place: torch.device) -> Tensor:
        model = ScoreModel(point.to(place), VPSDE())
        return log_likelihood(model, x.to(place), solver="heun", steps=20, seed=0).values

    yield held("log likelihoods", 1e-4, measure)
    z = torch.empty(shape)

    def fill(place: torch.device) -> Tensor:
        out = z.to(place)
        SampleNoise(7).fill(out)
        return out

    yield held("noise by seed=", 1e-6, fill)


def network(x: Tensor, c_noise: Tensor) -> Tensor:
    return x * 0.5


def by_hand(name: str, steps: int, shape: tuple[int, ...], device: torch.device) -> Callable[[], Tensor]:
    """Return the plain loop of a method with one evaluation a step and no memory, its readout multiplied out."""
    table = build_table(VPSDE(), name, steps=steps)
    t = torch.linspace(1, 0, steps, device=device).reshape(-1, 1).expand(steps, shape[0]).unbind(0)
    generator = stream(0, device=device)
    rows = []
    for row in table.rows:
        alpha, sigma = row.at.alpha, row.at.sigma
        a, b = {"noise": (0.0, 1.0), "data": (1 / alpha, -sigma / alpha)}[table.prediction]
        rows.append((row.state[0] + row.state[1] * a, row.state[1] * b, row.noise[0] if row.noise else 0.0))

    def run() -> Tensor:
        x = torch.randn(shape, generator=generator, device=device)
        for i, (a, b, c) in enumerate(rows):
            x = a * x + b * network(x, t[i])
            if c:
                x = x + c * torch.randn(shape, generator=generator, device=device)
        return x

    return run


def captured(model: ScoreModel, shape: tuple[int, ...], solver: str, steps: int) -> tuple[Callable[[], object], float]:
    """Return the replay of a whole sampler as one CUDA graph, and its largest difference to the plain module's."""
    module = SamplingModule(model, shape, solver=solver, steps=steps)
    z = normal(shape, stream(0, device=model.device or "cuda"))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side):
        for _ in range(2):
            expected = module(z)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        found = module(z)
    graph.replay()
    gap = float((found - expected).abs().max() / expected.abs().max())
    # The graph reads and writes where these stand.
    return lambda kept=(z, found, module): graph.replay(), gap


def slope(make: Callable[[int], Callable[[], object]], device: torch.device) -> float:
    """Return the microseconds that a step adds."""
    few, many = (min(rate(make(n), device, ROUNDS)) for n in (FEW, MANY))
    return 1e6 * (many - few) / (MANY - FEW)


def step(device: torch.device, small: bool) -> Figures:
    for shape in SHAPES:
        for name in ("ddim", "ancestral", "dpmpp_2m", "flow_abm"):
            yield step_cost(name, shape, device)


def step_cost(name: str, shape: tuple[int, ...], device: torch.device) -> Mapping[str, object]:
    model, generator = ScoreModel(network, VPSDE()), stream(0, device=device)

    def ours(steps: int) -> Callable[[], object]:
        return lambda: sample(model, shape, solver=name, steps=steps, generator=generator, device=device)

    row: dict[str, object] = {"solver": name, "shape": shape, "ours_us": slope(ours, device)}
    if name in ("ddim", "ancestral"):
        row["hand_us"] = slope(lambda steps: by_hand(name, steps, shape, device), device)
    if device.type == "cuda" and name != "ancestral":
        placed = ScoreModel(Multiply().to(device), VPSDE())
        row["graph_us"] = slope(lambda steps: captured(placed, shape, name, steps)[0], device)
        row["graph_difference"] = captured(placed, shape, name, FEW)[1]
    return row


class Multiply(torch.nn.Module):
    """The network of one multiplication, in one place, so that a module knows its device."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return x * self.factor


def noise(device: torch.device, small: bool) -> Figures:
    for shape in (*SHAPES, (4096, 2), *([] if small else [(256, 3, 64, 64)])):
        yield noise_cost(shape, device)


def noise_cost(shape: tuple[int, ...], device: torch.device) -> Mapping[str, object]:
    out, generator = torch.empty(shape, device=device), stream(0, device=device)
    named, listed = SampleNoise(0), SampleNoise(seeds=list(range(shape[0])))

    def many(fill: Callable[[], object]) -> Callable[[], object]:
        return lambda: [fill() for _ in range(MANY)]

    calls = {"randn": lambda: out.normal_(generator=generator), "seed": lambda: named.fill(out)}
    calls["seeds"] = lambda: listed.fill(out)
    took = {name: 1e6 * min(rate(many(call), device, ROUNDS)) / MANY for name, call in calls.items()}
    return {
        "shape": shape,
        "randn_us": took["randn"],
        **{name: took[name] / took["randn"] for name in ("seed", "seeds")},
    }


def sampling(device: torch.device, small: bool) -> Figures:
    for side in (32, 64):
        net = make_unet(device, small).to(torch.bfloat16)
        model, batch = ScoreModel(net, VPSDE()), UNETS[small].batch[side]
        shape, steps = (batch, 3, side, side), 2 if small else 20
        plain = min(rate(lambda m=model, s=shape, n=steps: sample(m, s, solver="ddim", steps=n, seed=0), device, 2))
        row: dict[str, object] = {"shape": shape, "steps": steps, "images_a_second": batch / plain}
        yield row
        if device.type == "cuda":
            replay, gap = captured(model, shape, "ddim", steps)
            yield {**row, "graph": True, "images_a_second": batch / min(rate(replay, device, 2)), "difference": gap}


# What each may take, in seconds on a GPU; on a CPU ``SLOWER`` times as many.
SLOWER = 2
SECTIONS: dict[str, tuple[float, Callable[[torch.device, bool], Figures]]] = {
    "equality": (60, equality),
    "noise": (25, noise),
    "step": (50, step),
    "sampling": (50, sampling),
    "training_32": (60, lambda device, small: train(device, small, 32, compiled=False)),
    "training_64": (60, lambda device, small: train(device, small, 64, compiled=False)),
    "training_32_compiled": (100, lambda device, small: train(device, small, 32, compiled=True)),
    "training_64_compiled": (100, lambda device, small: train(device, small, 64, compiled=True)),
}


def run_section(name: str, seconds: float, small: bool) -> dict[str, object]:
    """Run a section as a process and return its figures, and the message of what ended it early."""
    command, began = [sys.executable, __file__, "--section", name, *["--small"] * small], time.perf_counter()
    found: dict[str, object] = {}
    # A session of its own, so that the compiler's workers end with it.
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        said, errors = job.communicate(timeout=max(1.0, seconds))
        wrong = (errors.strip() or f"exit code {job.returncode}") if job.returncode else ""
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        said, _ = job.communicate()
        wrong = f"not done within {seconds:.0f} s"
    if wrong:
        found["error"] = wrong.splitlines()[-1]
    found["figures"] = [json.loads(line) for line in said.splitlines() if line.startswith("{") and line.endswith("}")]
    return {**found, "seconds": round(time.perf_counter() - began, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small networks and few steps; so without a GPU")
    parser.add_argument("--seconds", type=float, default=460.0, help="of all sections together")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--section", choices=SECTIONS, default=None, help=argparse.SUPPRESS)
    add_record(parser, "gpu")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    small = options.small or device.type == "cpu"
    if options.section is not None:
        for row in SECTIONS[options.section][1](device, small):
            print(json.dumps(row), flush=True)
        return
    began = time.perf_counter()
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    found: dict[str, object] = {"device": name, "small": small, "torch": torch.__version__, "cpus": os.cpu_count()}
    sections: dict[str, object] = {}
    for section in options.only:
        left = options.seconds - (time.perf_counter() - began)
        budget = SECTIONS[section][0] * (SLOWER if device.type == "cpu" else 1)
        sections[section] = run_section(section, min(left, budget), small) if left > 5 else "no time left"
        print(section, json.dumps(sections[section], indent=1), flush=True)
        # Kept after every section: what is measured is not lost if the machine is.
        write_record(options.record, json.dumps({**found, "sections": sections}, indent=1))


if __name__ == "__main__":
    main()
