"""How far the default is from the best fixed table that could have been picked, over targets of many scales.

For every target and number of evaluations all of ``select``'s candidates are run on the same unseen start states, and
the least error of any is noted, for the root mean square per coordinate over all samples and for the median over the
samples by itself, after the fact. Beside it: ``flow_abm`` on its own grid; what ``sample`` does for a model without a
calibration; and what it does after ``calibrate``. Printed are ratios to the least errors.

The targets are four exact mixtures at five widths and networks of ``--checkpoints``. What is usual, and the few tables
that a calibration compares, were chosen on the half of the mixtures marked + and on the swiss roll's network; the rest
had no part in it.

Run: python benchmarks/defaults.py [--steps 5 6 8 10 15 20 30] [--samples 200] [--network-samples 32]
         [--checkpoints FOLDER ...] [--record]
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from mixtures import curve, patches, ring, ten
from record import add_record, write_record

from scoresde import ScoreModel, build_table, calibrate
from scoresde.errors import ScoreSDEError
from scoresde.models.prediction import Predictor
from scoresde.sampling.calibration import Calibration
from scoresde.sampling.tuning.pairs import Errors, make_pairs
from scoresde.solvers.candidates import list_candidates

FAMILIES = {"ring": ring, "ten": ten, "curve": curve, "patches": patches}
WIDTHS = (0.02, 0.05, 0.1, 0.2, 0.4)
CHOSEN_ON = "network swiss_roll"
WAYS = ("flow_abm", "usual", "calibrated")


def list_targets(checkpoints: list[Path]) -> dict[str, Callable[[], Predictor]]:
    """Return the targets by name; a + marks those that choices were made on."""
    found: dict[str, Callable[[], Predictor]] = {}
    for place, (name, make) in enumerate(FAMILIES.items()):
        for width, std in enumerate(WIDTHS):
            mark = "" if (place + width) % 2 else " +"
            found[f"{name}, {std:g}{mark}"] = functools.partial(make, std=std)
    for path in checkpoints:
        name = f"network {path.name}"
        found[name + (" +" if name == CHOSEN_ON else "")] = functools.partial(ScoreModel.load, path)
    return found


def measure(model: Predictor, steps: tuple[int, ...], samples: int) -> list[dict[str, object]]:
    """Return a row for each number of evaluations: the errors of the three ways, and the least of any fixed table."""
    unseen, _ = make_pairs(model, samples, "defaults", event=None, cond=None, tolerance=1e-6, size=256)

    def errors(table) -> Errors:
        return Errors.of(unseen.measure(unseen.run(model, table, 256)))

    found, rows = calibrate(model, keep=False), []
    for count in steps:
        best: list[tuple[float, float, str]] = []
        for one in list_candidates(noise=False):
            try:
                made = errors(one.build(model.sde, count))
            except ScoreSDEError:
                continue
            if math.isfinite(made.product):
                best.append((made.rms, made.median, str(one)))
        tables = {
            "flow_abm": build_table(model.sde, "flow_abm", steps=count),
            "usual": Calibration().table(model.sde, count),
            "calibrated": found.table(model.sde, count),
        }
        least = min(best)[::2], min((median, name) for _, median, name in best)
        row: dict[str, object] = {"steps": count, "best rms": least[0], "best median": least[1]}
        for way, table in tables.items():
            made = errors(table)
            row[way] = [made.rms, made.median]
        rows.append({**row, "chosen": str(found.candidate(count)), "cost": found.evaluations})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 6, 8, 10, 15, 20, 30])
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--network-samples", type=int, default=32)
    parser.add_argument("--checkpoints", type=Path, nargs="*", default=[])
    parser.add_argument("--targets", nargs="*", default=None, help="only those whose name begins so")
    add_record(parser, "defaults")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for name, make in list_targets(options.checkpoints).items():
        if options.targets is not None and not any(name.startswith(start) for start in options.targets):
            continue
        count = options.network_samples if name.startswith("network") else options.samples
        with torch.no_grad():
            found = measure(make().in_its_own_coordinates().eval(), tuple(options.steps), count)
        print(f"\n{name}: {found[0]['cost']} evaluations of samples to calibrate")
        for row in found:
            rows.append({"target": name, **row})
            print(f"{row['steps']:>5}  {_ratios(row)}   calibrated: {row['chosen']}", flush=True)
        if options.record is not None:  # a long run keeps what it has
            _record(options, rows)
    print("\nratio to the least errors, geometric means (largest) of rms and of median")
    for title, wanted in (("chosen on", True), ("judged on", False)):
        for count in options.steps:
            some = [row for row in rows if row["steps"] == count and str(row["target"]).endswith("+") == wanted]
            if some:
                print(f"{title}, {count:>2} evaluations: " + "; ".join(_summarise(some, way) for way in WAYS))
    _record(options, rows)


def _record(options: argparse.Namespace, rows: list[dict[str, object]]) -> None:
    figures = {"samples": options.samples, "network samples": options.network_samples, "rows": rows}
    write_record(options.record, json.dumps(figures, indent=1))


def _ratios(row: dict[str, object]) -> str:
    return "  ".join(f"{way} {ratio[0]:6.2f} {ratio[1]:6.2f}" for way in WAYS for ratio in [_ratio(row, way)])


def _ratio(row: dict[str, object], way: str) -> tuple[float, float]:
    rms, median = row[way]
    return rms / row["best rms"][0], median / row["best median"][0]


def _summarise(rows: list[dict[str, object]], way: str) -> str:
    parts = zip(*(_ratio(row, way) for row in rows), strict=True)
    shown = (f"{statistics.geometric_mean(part):.2f} ({max(part):.1f})" for part in parts)
    return f"{way} " + " / ".join(shown)


if __name__ == "__main__":
    main()
