"""Memory of training: the most that a process takes for itself above what it takes for a tiny training.

Counted is what the process holds alone (RssAnon of /proc/self/status, looked at every few milliseconds), the data
included where they are in memory. Pages of a file that is mapped belong to the system, which drops them as it needs;
they are shown apart (RssFile). Every case is a process of its own. Figures are shares of the data's bytes.

Run: python benchmarks/training_memory.py [--megabytes 293] [--rounds 1] [--record]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from record import add_record, write_record
from torch.utils.data import Dataset

from scoresde import VPSDE, Moments, ScoreModel, fit
from scoresde.cli import main as run_command
from scoresde.nn import MLP
from scoresde.transforms import Affine

MIB = 1 << 20
EVENT = (3, 16, 16)
WIDTH = 768
PERIOD = 0.002  # seconds between two looks


def look(kind: str) -> int:
    """Return the bytes of a kind of memory that this process holds."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))


def measure(work: Callable[[], object], before: dict[str, int]) -> dict[str, float]:
    """Return the most of each kind of memory above ``before`` while ``work`` runs, in MiB."""
    most, done = dict(before), threading.Event()

    def watch() -> None:
        while not done.wait(PERIOD):
            for kind in most:
                most[kind] = max(most[kind], look(kind))

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return {kind: (most[kind] - before[kind]) / MIB for kind in most}


def train(data: torch.Tensor | np.ndarray, transform: Affine | None = None, steps: int = 20) -> None:
    event = tuple(data.shape[1:])
    fit(ScoreModel(MLP(event, width=32, depth=1), VPSDE()), data, steps=steps, transform=transform, progress=False)


def make(kind: str, size: int) -> torch.Tensor:
    """Return data of ``size`` bytes: rows of float32, or images of bytes; filled in place."""
    if kind == "points":
        return torch.randn(size // 8, 2)
    if kind == "uint8":
        return torch.randint(256, (size // WIDTH, *EVENT), dtype=torch.uint8)
    return torch.randn(size // (4 * WIDTH), WIDTH)


def write_sparse(file: Path, size: int) -> None:
    """Write an .npy file of float32 zeros that takes no room on the disk."""
    np.lib.format.open_memmap(file, "w+", np.float32, (size // (4 * WIDTH), WIDTH))


def in_memory(kind: str, size: int, folder: Path) -> None:
    name, _, scaled = kind.partition(" ")
    data = make(name, size)
    wanted = Affine.from_range(0, 255) if name == "uint8" else None
    train(data, Affine.standardise(data) if scaled else wanted)


class Points(Dataset[torch.Tensor]):
    """Points that are made as they are read."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((WIDTH,), index % 7 - 3.0)


def items(kind: str, size: int, folder: Path) -> None:
    model = ScoreModel(MLP(WIDTH, width=32, depth=1), VPSDE())
    fit(model, Points(size // 8), steps=2, moments=Moments.exact(torch.zeros(WIDTH), torch.ones(WIDTH)), progress=False)


def mapped(kind: str, size: int, folder: Path) -> None:
    write_sparse(folder / "x.npy", size)
    train(np.load(folder / "x.npy", mmap_mode="r"))


def command(kind: str, size: int, folder: Path) -> None:
    # The file is written by another process: see ``prepare``.
    (file,) = folder.glob("x.*")
    made = run_command(["train", "--data", str(file), "--steps", "2", "--out", str(folder / "run")])
    assert made == 0


def prepare(kind: str, size: int, folder: Path) -> None:
    """Write a file of data of ``size`` bytes in memory."""
    data = make(kind, size).numpy()
    if kind == "npz":
        np.savez(folder / "x.npz", x=data)
    elif kind == "csv":
        np.savetxt(
            folder / "x.csv",
            data,
            fmt="%.7g",
            delimiter=",",
            header=",".join(f"c{k}" for k in range(WIDTH)),
            comments="",
        )
    else:
        np.save(folder / "x.npy", data)


CASES: dict[str, tuple[Callable[[str, int, Path], None], str, float]] = {
    "fit, float32": (in_memory, "float32", 1.0),
    "fit, float32, standardised": (in_memory, "float32 scaled", 1.0),
    "fit, uint8 images": (in_memory, "uint8", 1.0),
    "fit, mapped file": (mapped, "float32", 1.0),
    "fit, mapped file, 4 times": (mapped, "float32", 4.0),
    "fit, mapped file, 35 times": (mapped, "float32", 35.0),
    "fit, a million points": (in_memory, "points", 8e6 / (293 * MIB)),
    "fit, a million items": (items, "points", 8e6 / (293 * MIB)),
    "command, float32 file": (command, "float32", 1.0),
    "command, uint8 file": (command, "uint8", 1.0),
    "command, float32 .npz": (command, "npz", 1.0),
    "command, .csv": (command, "csv", 0.25),
}


def run_case(name: str, size: int) -> dict[str, float]:
    """Return the peaks of one case, measured in this process."""
    work, kind, _ = CASES[name]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if work is command:
            (folder / "small").mkdir()
            for place, bytes_of in ((folder / "small", 20 * 4 * WIDTH), (folder, size)):
                arguments = [sys.executable, __file__, "--prepare", kind, str(bytes_of), str(place)]
                subprocess.run(arguments, check=True)
            command(kind, 0, folder / "small")
        else:
            train(make("float32", 100 * 4 * WIDTH))
        before = {one: look(one) for one in ("RssAnon", "RssFile")}
        return measure(lambda: work(kind, size, folder), before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=293, help="of the data")
    parser.add_argument("--rounds", type=int, default=1, help="processes for each case, of which the most counts")
    parser.add_argument("--only", choices=CASES, default=None)
    parser.add_argument("--here", action="store_true", help="measure the case of --only in this process")
    parser.add_argument("--prepare", nargs=3, metavar=("KIND", "BYTES", "FOLDER"), help="write a file of data")
    add_record(parser, "training_memory")
    options = parser.parse_args()
    if options.prepare:
        kind, size, folder = options.prepare
        prepare(kind, int(size), Path(folder))
        return
    if options.here:
        print(json.dumps(run_case(options.only, int(options.megabytes * MIB * CASES[options.only][2]))))
        return
    rows = []
    print(f"{'case':>28} {'data, MiB':>10} {'peak, MiB':>10} {'of a file':>10} {'ratio':>7}")
    for name in CASES if options.only is None else [options.only]:
        arguments = [sys.executable, __file__, "--megabytes", str(options.megabytes), "--only", name, "--here"]
        found = []
        for _ in range(options.rounds):
            done = subprocess.run(arguments, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
        size = options.megabytes * CASES[name][2]
        peak, file = (max(one[kind] for one in found) for kind in ("RssAnon", "RssFile"))
        rows.append({"case": name, "data": size, "peak": peak, "file": file, "ratio": peak / size})
        print(f"{name:>28} {size:>10.0f} {peak:>10.0f} {file:>10.0f} {peak / size:>7.2f}", flush=True)
    write_record(options.record, json.dumps({"unit": "MiB", "cases": rows}, indent=1))


if __name__ == "__main__":
    main()
