"""The race: every sampler of every library that pip can install beside us, in one process, on the same models.

1. Quality: error to the exact flow and sliced Wasserstein-2 distance, at 3 to 100 evaluations.
2. Overhead: a step against a loop by hand. 3. Adaptive flows at equal error. 4. A training step. 5. Start-up.

The peers that the project's environment lacks are installed into ``runs/race/peers``. The report goes to ``--out``:
report.md, error.png and race.json.

Run: python benchmarks/race [--samples 500] [--network-samples 100] [--checkpoints FOLDER ...] [--targets NAME ...]
         [--part quality|speed|all] [--quick] [--out runs/race] [--record]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

import peers
import quality
import report
import speed
import torch
from mixtures import curve, patches, ring, ten
from record import add_record, write_record

from scoresde import GaussianMixtureModel, ScoreModel
from scoresde.noise import normal, stream

PACKAGES = ("torch", "diffusers", "torchdiffeq", "torchsde", "scipy")


def cross() -> GaussianMixtureModel:
    """Seventeen narrow modes on a cross in five dimensions, of three weights: no choice was made on it."""
    at = torch.cat([r * torch.eye(5, dtype=torch.float64) for r in (-2.0, 0.7, 1.6)] + [torch.zeros(2, 5)])
    at[-1] += 0.5
    weights = torch.tensor([1.0, 2.0, 4.0] * 5 + [3.0, 3.0])
    return GaussianMixtureModel(sde=peers.SDE, weights=weights, means=at.double(), std=0.07)


def cloud() -> GaussianMixtureModel:
    """Two hundred wide modes in twenty dimensions: no choice was made on it."""
    means = normal((200, 20), stream(17, "cloud"), dtype=torch.float64)
    return GaussianMixtureModel(sde=peers.SDE, weights=torch.ones(200), means=means, std=0.25)


TARGETS = {
    "ring, 0.1": ring,
    "ten, 0.2": ten,
    "curve, 0.05": lambda: curve(std=0.05),
    "digits as modes, 0.1": lambda: patches(std=0.1),
    "cross, 0.07": cross,
    "cloud, 0.25": cloud,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--network-samples", type=int, default=100)
    parser.add_argument("--checkpoints", type=Path, nargs="*", default=[])
    parser.add_argument("--targets", nargs="*", default=None, help="only those whose name begins so")
    parser.add_argument("--part", choices=("quality", "speed", "all"), default="all")
    parser.add_argument("--quick", action="store_true", help="two targets, 5 and 10 evaluations, 100 samples")
    parser.add_argument("--out", type=Path, default=Path("runs/race"))
    add_record(parser, "race")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = peers.list_all()
    configurations = [one for some in found.values() if not isinstance(some, str) for one in some]
    print("\n".join(f"{name}: {some if isinstance(some, str) else len(some)}" for name, some in found.items()))
    budgets = (5, 10) if options.quick else quality.BUDGETS
    models = {name: make for name, make in TARGETS.items() if not options.quick or name in ("ring, 0.1", "cross, 0.07")}
    models |= {f"network {path.name}": lambda path=path: ScoreModel.load(path) for path in options.checkpoints}
    if options.targets is not None:
        models = {name: make for name, make in models.items() if name.startswith(tuple(options.targets))}
    rows: list[quality.Row] = []
    costs: list[dict[str, object]] = []
    floors: dict[str, float] = {}
    if options.part != "speed":
        for name, make in models.items():
            count = options.network_samples if name.startswith("network") else options.samples
            target = quality.Target(name, make(), 100 if options.quick else count)
            quality.check_start(target)
            floors[name] = target.floor
            made, cost = quality.race(target, configurations, budgets)
            rows, costs = rows + made, costs + cost
    measured = {} if options.part == "quality" else speed.measure_all(quick=options.quick)
    table = report.Table(rows, [name for name in models if name.startswith("network")])
    about = {
        "machine": f"{platform.machine()}, one thread, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
        + ", "
        + ", ".join(peers.WANTED).replace("==", " "),
        "samples": f"{options.samples} a target, {options.network_samples} of a network",
        "configurations": len(configurations),
        **{f"not run: {name}": some for name, some in found.items() if isinstance(some, str)},
    }
    where = report.write(options.out, table, about, floors, speed.to_markdown(measured))
    document = {
        "about": about,
        "floors": floors,
        "costs": costs,
        **report.to_document(table, rows),
        "speed": measured,
    }
    text = json.dumps(document, indent=1)
    (options.out / "race.json").write_text(text + "\n", encoding="utf-8")
    print(f"report in {where}")
    write_record(options.record, text)


if __name__ == "__main__":
    main()
