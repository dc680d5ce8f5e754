"""Tables for one model: the errors of the default, of ``select`` and of ``tune``, on noise that none of them has seen.

Errors are distances to the model's own flow at a tolerance of 1e-6, in the model's coordinates, from new start states:
the root mean square per coordinate over all samples, and the median over the samples of the same of one. Targets are
the exact mixtures of ``mixtures.py`` (from which the list of candidates was chosen), two that had no part in any choice
(nine narrow modes under VE, thirty modes in 16 dimensions under EDM), and networks of ``--checkpoints``. Seconds and
evaluations are those of making the table, the flow's own included.

Run: python benchmarks/tuning.py [--steps 5 8 10] [--samples 1000] [--checkpoints FOLDER ...] [--threads 1] [--others]
         [--record]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mixtures import curve, patches, ring, ten
from record import add_record, write_record

from scoresde import EDMSDE, VESDE, GaussianMixtureModel, ScoreModel, build_table, select, tune
from scoresde.models.prediction import Predictor
from scoresde.noise import normal, stream
from scoresde.sampling.tuning.pairs import Errors, Pairs, make_pairs
from scoresde.solvers.tableau import Tableau


def nine() -> GaussianMixtureModel:
    at = torch.tensor([-1.2, 0.0, 1.2], dtype=torch.float64)
    return GaussianMixtureModel(
        sde=VESDE(), weights=torch.arange(1.0, 10.0), means=torch.cartesian_prod(at, at), std=0.03
    )


def thirty() -> GaussianMixtureModel:
    means = normal((30, 16), stream(4, "thirty"), dtype=torch.float64)
    return GaussianMixtureModel(sde=EDMSDE(), weights=torch.ones(30), means=means, std=0.15)


TARGETS: dict[str, Callable[[], Predictor]] = {
    "ring, 0.1": ring,
    "ten, 0.2": ten,
    "curve, 0.05": lambda: curve(std=0.05),
    "digits as modes, 0.1": lambda: patches(std=0.1),
    "nine modes, 0.03, VE": nine,
    "thirty modes, 0.15, EDM": thirty,
}


def measure(model: Predictor, unseen: Pairs, steps: int, *, others: bool) -> list[dict[str, object]]:
    """Return a row for each way to a table."""
    made: list[tuple[str, Callable[[], tuple[Tableau, str, int]]]] = [
        ("default", lambda: (build_table(model.sde, "flow_abm", steps=steps), "flow_abm", 0)),
        ("select", lambda: _selected(model, steps)),
        ("tune", lambda: _tuned(model, steps)),
    ]
    if others:
        made += [
            (name, lambda options=options: _tuned(model, steps, **options))
            for name, options in {
                "adam": {"method": "adam", "iterations": 200},
                "soft": {"method": "adam", "iterations": 200, "radius": 0.05},
                "dynamic": {"method": "dynamic", "start": "ddim"},
                "knots": {"parts": ("knots",)},
            }.items()
        ]
    rows: list[dict[str, object]] = []
    for way, make in made:
        started = time.perf_counter()
        table, name, evaluations = make()
        took = time.perf_counter() - started
        errors = Errors.of(unseen.measure(unseen.run(model, table, 256)))
        row = {"way": way, "steps": steps, "rms": errors.rms, "median": errors.median, "table": name}
        rows.append({**row, "seconds": took, "evaluations": evaluations})
    return rows


def _selected(model: Predictor, steps: int) -> tuple[Tableau, str, int]:
    found = select(model, steps)
    return found.table, str(found.rows[0].candidate), found.evaluations


def _tuned(model: Predictor, steps: int, **options: object) -> tuple[Tableau, str, int]:
    found = tune(model, steps, keep=False, **options)
    return found.table, found.start, found.evaluations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 8, 10])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--checkpoints", type=Path, nargs="*", default=[])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--others", action="store_true", help="Adam, a soft objective, dynamic programming, knots alone"
    )
    add_record(parser, "tuning")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    targets = dict(TARGETS) | {
        f"network {path.name}": lambda path=path: ScoreModel.load(path) for path in options.checkpoints
    }
    rows = []
    for name, make in targets.items():
        model = make().in_its_own_coordinates().eval()
        unseen, _ = make_pairs(model, options.samples, "unseen", event=None, cond=None, tolerance=1e-6, size=256)
        print(f"\n{name}\n{'':10}{'steps':>6}{'rms':>10}{'median':>10}{'seconds':>9}{'evaluations':>13}  table")
        for steps in options.steps:
            for row in measure(model, unseen, steps, others=options.others):
                rows.append({"target": name, **row})
                figures = f"{row['rms']:>10.4f}{row['median']:>10.5f}{row['seconds']:>9.1f}{row['evaluations']:>13}"
                print(f"{row['way']:10}{steps:>6}{figures}  {row['table']}", flush=True)
    write_record(options.record, json.dumps({"samples": options.samples, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
