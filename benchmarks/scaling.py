"""What training and sampling cost on many GPUs: a model of the cost, and its parts measured where they can be.

A U-Net of width w has P(w) parameters and F(w) FLOPs of a forward pass an image, both polynomials of degree 2 in w, and
keeps A(w) bytes an image for the backward pass, of degree 1: fitted to counts at small widths they are those of any
width. From them, with s bytes of state a parameter, B images a GPU
and N GPUs of which n share a machine:

    memory         DDP: s P + A B,   FSDP2: s P / N + 2 (largest unit) + A B
    communication  a GPU sends 8 P (N - 1)/N bytes a step. DDP: an all-reduce of 4 P, each byte twice; FSDP2: the
                   parameters twice in bfloat16, 2 P and 2 P, the gradients once in float32, 4 P
    its time       all bytes at the rate inside a machine, and 1/n of them at the rate between machines
    step           3 F B / (peak utilisation) + what of the communication the backward pass, 2/3 of that, does not hide
    sampling       peak utilisation / (evaluations F) images a second and GPU; nothing is exchanged until the end
    checkpoint     c P bytes

Measured here, on CPUs: the laws at a width that they were not fitted to; s and c of ``Trainer`` and ``fit``; the memory
of a training step; the bytes of an all-reduce of two gloo processes; two processes' sampling against one's.

Run: python benchmarks/scaling.py [--figure docs/images/scaling.png] [--record]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from record import add_record, write_record
from torch.utils.flop_counter import FlopCounterMode

from scoresde import VPSDE, Moments, ScoreModel, fit, processes, sample, write_shards
from scoresde.nn import UNet
from scoresde.noise import normal, stream
from scoresde.training import Trainer

MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Machine:
    """Figures of makers, and one that is assumed.

    NVIDIA's data sheets: H200 (141 GB, 989 TFLOP/s in bfloat16 without sparsity, NVLink 900 GB/s both ways together);
    ConnectX-7 (400 Gb/s one way, one for each GPU of a DGX H200).
    """

    memory: float = 141e9
    peak: float = 989e12
    inside: float = 450e9  # bytes a second, one way
    between: float = 50e9
    gpus: int = 8
    utilisation: float = 0.3  # assumed; benchmarks/gpu.py measures it where a GPU is lent


@dataclass(frozen=True)
class Network:
    """A U-Net, images a GPU, and evaluations of a sample."""

    name: str
    side: int
    width: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    batch: int
    evaluations: int = 20

    def build(self, width: int) -> UNet:
        return UNet(3, width=width, multipliers=self.multipliers, blocks=self.blocks, attention=self.attention)


# The widths and depths of Dhariwal, Nichol 2021 (arXiv:2105.05233), table 4, in our blocks.
NETWORKS = (
    Network("64 x 64", 64, 192, (1, 2, 3, 4), 3, (1, 2, 3), 32),
    Network("256 x 256", 256, 256, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), 4),
)
SMALL = Network("small", 32, 64, (1, 2), 1, (1,), 8)
WIDTHS, HELD_OUT, GPUS = (16, 32, 48), 64, (8, 64, 512)


# ---------------------------------------------------------------------------------------------------------------------
# The laws


def saved_bytes(net: torch.nn.Module, x: torch.Tensor) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, beside the parameters."""
    kept, own = {}, {p.untyped_storage()._cdata for p in net.parameters()}

    def keep(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = t  # alive, so that no other takes its place
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        net(x, torch.zeros(len(x), device=x.device))
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def count(network: Network, width: int) -> dict[str, int]:
    """Return parameters, those of the largest unit, FLOPs without computing, and what an image keeps, computed.

    On the meta device attention would be traced as a product of matrices, which keeps every pair of positions; what
    runs is fused and keeps none.
    """
    net = network.build(width)
    parameters = sum(p.numel() for p in net.parameters())
    largest = max(sum(p.numel() for p in part.parameters(recurse=False)) for part in net.modules())
    shape = (1, 3, network.side, network.side)
    kept, net = saved_bytes(net, normal(shape, stream(0))), net.to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.empty(shape, device="meta"), torch.empty(1, device="meta"))
    return {"parameters": parameters, "largest": largest, "flops": counter.get_total_flops(), "kept": kept}


DEGREES = {"parameters": 2, "largest": 2, "flops": 2, "kept": 1}


def laws(network: Network) -> dict[str, np.poly1d]:
    counts = [count(network, width) for width in WIDTHS]
    return {name: np.poly1d(np.polyfit(WIDTHS, [c[name] for c in counts], d)) for name, d in DEGREES.items()}


# ---------------------------------------------------------------------------------------------------------------------
# What is measured


def check_laws(network: Network, known: dict[str, np.poly1d]) -> dict[str, float]:
    """Return predicted over counted, at a width that the laws were not fitted to."""
    counted = count(network, HELD_OUT)
    return {name: float(law(HELD_OUT) / counted[name]) for name, law in known.items()}


def half_share() -> float:
    """Return what an image keeps under bfloat16 autocast (the CPU's rules), as a share of float32."""
    net, x = SMALL.build(32), normal((1, 3, 32, 32), stream(0))
    whole = saved_bytes(net, x)
    with torch.autocast("cpu", torch.bfloat16):
        return saved_bytes(net, x) / whole


def count_state() -> dict[str, float]:
    """Return bytes a parameter of a training's state, and of the files that ``fit`` leaves."""
    data = normal((16, 3, 32, 32), stream(0))
    model = ScoreModel(SMALL.build(SMALL.width), VPSDE())
    size = sum(p.numel() for p in model.parameters())
    trainer = Trainer(model)
    trainer(data[:2])
    tensors = sum(t.numel() * t.element_size() for t in trainer.state()[1].values())
    with tempfile.TemporaryDirectory() as folder:
        fit(
            ScoreModel(SMALL.build(SMALL.width), VPSDE()),
            data,
            steps=1,
            batch_size=2,
            folder=folder,
            calibrate=False,
            progress=False,
        )
        disk = sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))
    # Beside what the trainer keeps: the weights and their gradients.
    return {"state": 8 + tensors / size, "checkpoint": disk / size}


def resident(key: str) -> float:
    """Return a figure of this process's memory in MiB, on Linux."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def take_steps() -> float:
    """Return the MiB that three training steps take at most, above those of a process that has trained a little."""
    small = Trainer(ScoreModel(SMALL.build(16), VPSDE()))
    small(normal((1, 3, 32, 32), stream(0)))
    Path("/proc/self/clear_refs").write_text("5")  # the largest so far is forgotten
    before = resident("VmRSS")
    trainer, x = Trainer(ScoreModel(SMALL.build(SMALL.width), VPSDE())), normal((SMALL.batch, 3, 32, 32), stream(0))
    for _ in range(3):
        trainer(x)
    return resident("VmHWM") - before


def sent_bytes() -> int:
    """Return the bytes that went over the loopback so far, on Linux."""
    lines = Path("/proc/net/dev").read_text(encoding="utf-8").splitlines()
    return next(int(line.split(":")[1].split()[8]) for line in lines if line.strip().startswith("lo:"))


REDUCED, TIMES = 64 * MIB, 4


def reduce_gradients() -> float:
    """Return the MiB that an all-reduce sends, of all processes together."""
    with processes() as world:
        x = torch.ones(REDUCED // 4)
        world.barrier()
        before = sent_bytes()
        for _ in range(TIMES):
            torch.distributed.all_reduce(x)
        world.barrier()
        return (sent_bytes() - before) / TIMES / MIB


def draw_samples() -> float:
    """Return the processors' seconds of drawing and writing samples, of all processes together."""
    model = ScoreModel(SMALL.build(32), VPSDE(), moments=Moments.of(normal((8, 3, 32, 32), stream(0))))

    def draw(rows: slice) -> torch.Tensor:
        return sample(model, rows.stop - rows.start, solver="ddim", steps=10, seed=0, first_sample=rows.start)

    with processes() as world:
        draw(slice(0, 1))
        began = time.process_time()
        write_shards(os.environ["OUT"], 32, draw, world=world, chunk_size=8)
        return sum(float(part) for part in world.gather(torch.tensor([time.process_time() - began])))


PARTS = {"memory": take_steps, "reduce": reduce_gradients, "sample": draw_samples}


def launch(part: str, size: int) -> float:
    """Run a part as so many processes of one thread, and return what the first of them says."""
    with tempfile.TemporaryDirectory() as folder:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517", "WORLD_SIZE": str(size), "OUT": folder}
        command = [sys.executable, __file__, "--part", part]
        jobs = [
            subprocess.Popen(
                command,
                env={**os.environ, "OMP_NUM_THREADS": "1", **place, "RANK": str(rank)},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]
        said = [job.communicate()[0] for job in jobs]
        if any(job.returncode for job in jobs):
            raise RuntimeError(f"{part} failed")
        return float(said[0])


def measure() -> dict[str, object]:
    state = count_state()
    small = count(SMALL, SMALL.width)
    predicted = (state["state"] * small["parameters"] + SMALL.batch * small["kept"]) / MIB
    sampled = {size: min(launch("sample", size) for _ in range(2)) for size in (1, 2)}
    return {
        "bfloat16_share": half_share(),
        **state,
        "memory_MiB": {"predicted": predicted, "measured": launch("memory", 1)},
        # Two processes, of which each sends 2 (N - 1)/N bytes for one of the tensor.
        "all_reduce_MiB": {"predicted": 2 * REDUCED / MIB, "measured": launch("reduce", 2)},
        "sampling_cpu_s": {"one process": sampled[1], "two together": sampled[2]},
    }


# ---------------------------------------------------------------------------------------------------------------------
# The model


def exchange(bytes_: float, n: int, machine: Machine) -> float:
    """Return the seconds of a collective in which every GPU sends so many bytes, by rings in and between machines."""
    outside = bytes_ / machine.gpus / machine.between if n > machine.gpus else 0.0
    return bytes_ / machine.inside + outside


def predict(
    network: Network, known: dict[str, np.poly1d], found: dict[str, object], machine: Machine, n: int, sharded: bool
) -> dict[str, object]:
    """Return the figures of a training and of sampling on n GPUs."""
    p, largest, flops, kept = (float(known[name](network.width)) for name in ("parameters", "largest", "flops", "kept"))
    state, half = float(found["state"]) * p, float(found["bfloat16_share"])
    held = state / n + 2 * 2 * largest if sharded else state
    sent = 8 * p * (n - 1) / n
    one = 3 * flops / (machine.peak * machine.utilisation)
    work = one * network.batch
    talk = exchange(sent, n, machine)
    step = work + max(0.0, talk - 2 / 3 * work)
    return {
        "network": network.name,
        "gpus": n,
        "way": "FSDP2" if sharded else "DDP",
        "parameters_M": p / 1e6,
        "state_GB": held / 1e9,
        "image_GB": half * kept / 1e9,
        "most_images": int((machine.memory - held) / (half * kept)),
        "sent_GB": sent / 1e9,
        "compute_ms": 1e3 * work,
        "communication_ms": 1e3 * talk,
        "step_ms": 1e3 * step,
        "efficiency": work / step,
        "images_that_hide_it": talk / (2 / 3 * one),
        "trained_images_s": n * network.batch / step,
        "sampled_images_s": n * machine.peak * machine.utilisation / (network.evaluations * flops),
        "checkpoint_GB": float(found["checkpoint"]) * p / 1e9,
    }


def draw(rows: list[dict[str, object]], machine: Machine, file: Path) -> None:
    import matplotlib.pyplot as plt

    from scoresde.plots.style import save, use_style

    with use_style():
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
        for k, network in enumerate(NETWORKS):
            ddp, sharded = (
                [r for r in rows if (r["network"], r["way"]) == (network.name, w)] for w in ("DDP", "FSDP2")
            )
            look = {"marker": "o", "color": f"C{k}"}
            axes[0].plot(GPUS, [r["state_GB"] for r in ddp], **look, label=f"{network.name}, DDP")
            axes[0].plot(GPUS, [r["state_GB"] for r in sharded], "--", **look, label=f"{network.name}, FSDP2")
            axes[1].plot(GPUS, [r["compute_ms"] for r in ddp], **look, label=f"{network.name}, computing")
            axes[1].plot(GPUS, [r["communication_ms"] for r in ddp], ":", **look, label=f"{network.name}, exchange")
        axes[0].set_ylabel("state of a GPU, GB, without images")
        axes[1].set_ylabel("milliseconds of a step")
        for ax, ticks in zip(axes, ((0.1, 1, 10), (5, 10, 20, 50)), strict=True):
            ax.set(xlabel="GPUs", xscale="log", yscale="log", xticks=GPUS)
            ax.set_xticklabels([str(n) for n in GPUS])
            ax.set_yticks(ticks, [str(one) for one in ticks])
            ax.minorticks_off()
            ax.legend()
        save(figure, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path, default=None)
    parser.add_argument("--part", choices=PARTS, default=None, help=argparse.SUPPRESS)
    add_record(parser, "scaling")
    options = parser.parse_args()
    if options.part is not None:
        print(PARTS[options.part]())
        return
    machine, found = Machine(), measure()
    print(json.dumps(found, indent=1), flush=True)
    rows, checks = [], {}
    for network in NETWORKS:
        known = laws(network)
        checks[network.name] = check_laws(network, known)
        rows += [predict(network, known, found, machine, n, sharded) for sharded in (False, True) for n in GPUS]
    print(json.dumps({"laws": checks, "computed": rows}, indent=1))
    if options.figure is not None:
        draw(rows, machine, options.figure)
    about = {"machine": asdict(machine), "networks": [asdict(one) for one in NETWORKS], "measured": found}
    write_record(options.record, json.dumps({**about, "laws": checks, "computed": rows}, indent=1))


if __name__ == "__main__":
    main()
