"""What training and sampling cost on many GPUs: a model of the cost, and its parts measured where they can be.

A U-Net of width w has P(w) parameters and F(w) FLOPs of a forward pass an image, both polynomials of degree 2 in w, and
keeps A(w) bytes an image for the backward pass, of degree 1: fitted to counts at small widths, without computing
(tensors on the meta device), they are those of any width. From them, with s bytes of state a parameter, B images a GPU
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
import resource
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
    """Return parameters, those of the largest unit, FLOPs and kept bytes of an image, without computing."""
    net = network.build(width)
    parameters = sum(p.numel() for p in net.parameters())
    largest = max(sum(p.numel() for p in part.parameters(recurse=False)) for part in net.modules())
    net = net.to("meta")
    x = torch.empty(1, 3, network.side, network.side, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x, torch.empty(1, device="meta"))
    kept = saved_bytes(net, x)
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
        fit(ScoreModel(SMALL.build(SMALL.width), VPSDE()), data, steps=1, batch_size=2, out=folder, progress=False)
        disk = sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))
    # Beside what the trainer keeps: the weights and their gradients.
    return {"state": 8 + tensors / size, "checkpoint": disk / size}


def peak_memory() -> float:
    """Return the MiB that three training steps take at most, above what the process had."""
    said = subprocess.run([sys.executable, __file__, "--part", "memory"], capture_output=True, text=True, check=True)
    return float(said.stdout)


def take_steps() -> None:
    """Print the memory of a training, from where torch and the convolutions are loaded."""
    torch.set_num_threads(1)
    small = Trainer(ScoreModel(SMALL.build(16), VPSDE()))
    small(normal((1, 3, 32, 32), stream(0)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trainer, x = Trainer(ScoreModel(SMALL.build(SMALL.width), VPSDE())), normal((SMALL.batch, 3, 32, 32), stream(0))
    for _ in range(3):
        trainer(x)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def launch(part: str, size: int) -> float:
    """Run a part as so many processes and return the seconds, the processors' own, that they took together."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29500 + os.getpid() % 1000), "WORLD_SIZE": str(size)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, __file__, "--part", part]
    jobs = [subprocess.Popen(command, env={**os.environ, **place, "RANK": str(rank)}) for rank in range(size)]
    if any([job.wait() for job in jobs]):
        raise RuntimeError(f"{part} failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def sent_bytes() -> int:
    """Return the bytes that went over the loopback so far, on Linux."""
    lines = Path("/proc/net/dev").read_text(encoding="utf-8").splitlines()
    return next(int(line.split(":")[1].split()[8]) for line in lines if line.strip().startswith("lo:"))


REDUCED = 64 * MIB


def reduce_gradients() -> None:
    with processes() as world:
        x = torch.ones(REDUCED // 4)
        world.barrier()
        before = sent_bytes()
        for _ in range(4):
            torch.distributed.all_reduce(x)
        world.barrier()
        if world.is_main:
            Path(os.environ["OUT"]).write_text(str((sent_bytes() - before) / 4), encoding="utf-8")


def draw_samples() -> None:
    torch.set_num_threads(1)
    model = ScoreModel(SMALL.build(32), VPSDE(), moments=Moments.of(normal((8, 3, 32, 32), stream(0))))

    def draw(rows: slice) -> torch.Tensor:
        return sample(model, rows.stop - rows.start, solver="ddim", steps=10, seed=0, first_sample=rows.start)

    with processes() as world:
        draw(slice(0, 1))
        began = time.process_time()
        write_shards(Path(os.environ["OUT"]) / "samples", 32, draw, world=world, chunk_size=8)
        took = sum(float(part) for part in world.gather(torch.tensor([time.process_time() - began])))
        if world.is_main:
            (Path(os.environ["OUT"]) / "seconds").write_text(str(took), encoding="utf-8")


PARTS = {"memory": take_steps, "reduce": reduce_gradients, "sample": draw_samples}


def measure() -> dict[str, object]:
    found: dict[str, object] = {"bfloat16_share": half_share(), **count_state()}
    small = count(SMALL, SMALL.width)
    predicted = (float(found["state"]) * small["parameters"] + SMALL.batch * small["kept"]) / MIB
    found["memory_MiB"] = {"predicted": predicted, "measured": peak_memory()}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["OUT"] = str(Path(folder) / "sent")
        launch("reduce", 2)
        sent = float(Path(os.environ["OUT"]).read_text(encoding="utf-8"))
        # Two processes of 2 (N - 1)/N bytes each.
        found["all_reduce_MiB"] = {"predicted": 2 * REDUCED / MIB, "measured": sent / MIB}
        os.environ["OUT"], seconds = folder, {}
        for size in (1, 2):
            launch("sample", size)
            seconds[size] = float((Path(folder) / "seconds").read_text(encoding="utf-8"))
    found["sampling_cpu_s"] = {"one process": seconds[1], "two together": seconds[2]}
    return found


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
    work = 3 * flops * network.batch / (machine.peak * machine.utilisation)
    talk = exchange(sent, n, machine)
    step = work + max(0.0, talk - 2 / 3 * work)
    return {
        "network": network.name,
        "gpus": n,
        "way": "FSDP2" if sharded else "DDP",
        "parameters_M": p / 1e6,
        "memory_GB": (held + half * kept * network.batch) / 1e9,
        "sent_GB": sent / 1e9,
        "compute_ms": 1e3 * work,
        "communication_ms": 1e3 * talk,
        "step_ms": 1e3 * step,
        "efficiency": work / step,
        "trained_images_s": n * network.batch / step,
        "sampled_images_s": n * machine.peak * machine.utilisation / (network.evaluations * flops),
        "checkpoint_GB": float(found["checkpoint"]) * p / 1e9,
    }


def draw(rows: list[dict[str, object]], machine: Machine, file: Path) -> None:
    import matplotlib.pyplot as plt

    from scoresde.plots.style import save, use_style

    with use_style():
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
        for k, network in enumerate(NETWORKS):
            for way, line in (("DDP", "-"), ("FSDP2", "--")):
                mine = [row for row in rows if (row["network"], row["way"]) == (network.name, way)]
                axes[0].plot(
                    GPUS,
                    [r["memory_GB"] for r in mine],
                    line,
                    marker="o",
                    color=f"C{k}",
                    label=f"{network.name}, {way}",
                )
                axes[1].plot(GPUS, [r["trained_images_s"] for r in mine], **look)
        axes[0].axhline(machine.memory / 1e9, color="0.5", linewidth=1)
        axes[0].annotate("what a GPU has", (GPUS[0], machine.memory / 1e9), va="bottom", color="0.5")
        for ax, label in zip(axes, ("memory of a GPU, GB", "training, images a second"), strict=True):
            ax.set(xlabel="GPUs", ylabel=label, xscale="log", yscale="log", xticks=GPUS)
            ax.set_xticklabels([str(n) for n in GPUS])
            ax.minorticks_off()
        axes[0].legend()
        save(figure, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path, default=None)
    parser.add_argument("--part", choices=PARTS, default=None, help=argparse.SUPPRESS)
    add_record(parser, "scaling")
    options = parser.parse_args()
    if options.part is not None:
        PARTS[options.part]()
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
