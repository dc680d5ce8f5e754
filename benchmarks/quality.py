"""Error against the number of evaluations, for every named solver on its own grid, with exact mixtures as models.

Deterministic solvers: the distance to the exact probability flow from the same start, as the root mean square per
coordinate over all samples and as the median over the samples of the same of one. The first is decided by the few
samples that a coarse method takes to another mode, the second by all others. Both are medians over independent sets
of noise. The exact flow is ``rk4`` in the rectified clock, down to sigma = 1e-5; what it moves by when its steps are
halved is printed. Stochastic solvers: the sliced Wasserstein-2 distance of all samples to as many exact ones, beside
what two sets of exact samples measure.

``CONFIGURATIONS`` are settings of the builders that are the best somewhere; "best fixed" is the best of all, picked
at each number of evaluations after the fact.

Run: python benchmarks/quality.py [--samples 2000] [--sets 5] [--threads 1] [--part flow|noise] [--record]
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass

import torch
from mixtures import fast, ring, ten
from record import add_record, read_record, write_record
from torch import Tensor

from scoresde import VPSDE, ScoreModel, build_table, sample, solvers
from scoresde.metrics import sliced_wasserstein
from scoresde.noise import SampleNoise, stream
from scoresde.solvers import SOLVERS, Solver, by_name, grids
from scoresde.solvers.grids import Grid

MIXTURES = {"ring": ring, "ten": ten}
BUDGETS = (*range(3, 31), 40, 50, 70, 100)
NOISY = (5, *range(8, 31), 50, 100)
SHOWN = (5, 8, 10, 15, 20, 30, 50, 100)


def flow(order: int, corrector: int, grid: Grid) -> Solver:
    """Return the default solver's method with the first prediction kept for later steps."""
    return solvers.multistep(prediction="flow", variable="rectified", order=order, corrector=corrector, grid=grid)


CONFIGURATIONS: dict[str, Solver] = {
    "flow_ab, diffused": solvers.flow_ab(grid=grids.diffused()),
    "flow_ab, diffused 3.5": solvers.flow_ab(grid=grids.diffused(power=3.5)),
    "flow 3/4, rectified 1.5": flow(3, 4, grids.rectified(power=1.5)),
    "flow 4/5, rectified 1.25": flow(4, 5, grids.rectified(power=1.25)),
    "flow_abm 4/5": solvers.flow_abm(order=4, corrector=5),
}


@dataclass(frozen=True)
class Figure:
    """What one run gives: evaluations of the model, and the two errors."""

    nfe: int
    rms: float
    median: float


@dataclass(frozen=True, eq=False)
class Problem:
    """A mixture's model, start states of several sets one after the other, and where the exact flow takes them."""

    model: ScoreModel
    start: Tensor
    exact: Tensor
    sets: int

    def errors(self, solver: Solver, steps: int) -> Figure:
        """Return the medians over the sets of both errors."""
        table = build_table(self.model.sde, solver, steps=steps)
        x = sample(self.model, x_init=self.start, solver=table, final="sample")
        assert isinstance(x, Tensor)
        square = (x - self.exact).square().mean(1).reshape(self.sets, -1)
        rms, median = square.mean(1).sqrt(), square.sqrt().median(1).values
        return Figure(table.nfe, statistics.median(rms.tolist()), statistics.median(median.tolist()))


@functools.cache
def problem(name: str, samples: int = 2000, sets: int = 5, steps: int = 400) -> Problem:
    """Return a mixture with its exact flow, by ``steps`` steps of rk4."""
    truth = fast(MIXTURES[name](VPSDE(t_min=1e-9)))
    model = fast(MIXTURES[name]())
    z = torch.empty((samples * sets, *truth.moments.mean.shape), dtype=torch.float64)
    SampleNoise(0).fill(z)
    exact = sample(
        truth, x_init=z, solver=solvers.rk4(variable="rectified", grid=grids.diffused(power=2.5)), steps=steps
    )
    assert isinstance(exact, Tensor)
    return Problem(model, z, exact, sets)


def steps_for(solver: Solver, budgets: Iterable[int]) -> Iterator[int]:
    """Yield the most steps, one for every budget that allows others than the one before, within it."""
    last = solver.calls if solver.closes else solver.leap or 1  # calls of the last interval
    before = 0
    for budget in budgets:
        steps = (budget - last) // solver.calls + 1
        if steps > before and (steps - 1) * solver.calls + last > 1:
            yield steps
            before = steps


def list_named(*, stochastic: bool) -> dict[str, Solver]:
    """Return the named solvers that make tables, with noise or without."""
    noisy = {entry.name: entry.stochastic for entry in solvers.list()}
    every = {name: by_name(name) for name in sorted(SOLVERS)}
    return {n: s for n, s in every.items() if isinstance(s, Solver) and noisy[n] == stochastic}


def rises(figures: Sequence[Figure], *, least: int = 8, most: int = 30) -> dict[str, list[int]]:
    """Return, for each error, the evaluations at which it is more than a tenth above that of one step less."""
    pairs = [(a, b) for a, b in itertools.pairwise(figures) if least <= a.nfe and b.nfe <= most]
    return {
        "rms": [b.nfe for a, b in pairs if b.rms > 1.1 * a.rms],
        "median": [b.nfe for a, b in pairs if b.median > 1.1 * a.median],
    }


def climbs(rows: Sequence[Mapping[str, float]], floor: float, *, least: int = 8, most: int = 30) -> list[int]:
    """Return the evaluations at which a distance above twice the floor is more than a tenth above the one before."""
    pairs = [(a, b) for a, b in itertools.pairwise(rows) if least <= a["nfe"] and b["nfe"] <= most]
    return [int(b["nfe"]) for a, b in pairs if b["sw2"] > max(1.1 * a["sw2"], 2 * floor)]


def best(curves: Mapping[str, Sequence[Figure]], nfe: int) -> tuple[tuple[float, str], tuple[float, str]]:
    """Return the smallest rms and the smallest median at this many evaluations, each with the solver's name."""
    at = [(figure, name) for name, figures in curves.items() for figure in figures if figure.nfe == nfe]
    return min((f.rms, name) for f, name in at), min((f.median, name) for f, name in at)


def flow_errors(name: str, samples: int, sets: int) -> dict[str, list[Figure]]:
    """Measure every deterministic solver on one mixture, print as it goes."""
    here, half = problem(name, samples, sets), problem(name, samples, sets, 200)
    gap = (here.exact - half.exact).square().mean(1).sqrt()
    print(
        f"\n{name}: on half its steps the exact flow moves by {gap.max():.1g} at most, {gap.median():.1g} in the median"
    )
    print(f"{'evaluations':>26}" + "".join(f"{nfe:>17}" for nfe in SHOWN))
    curves = {}
    for solver_name, solver in (list_named(stochastic=False) | CONFIGURATIONS).items():
        figures = curves[solver_name] = [here.errors(solver, steps) for steps in steps_for(solver, BUDGETS)]
        cells = {f.nfe: f"{f.rms:.2g} / {f.median:.2g}" for f in figures}
        print(f"{solver_name:>26}" + "".join(f"{cells.get(nfe, '-'):>17}" for nfe in SHOWN), flush=True)
    lowest = [best(curves, nfe) for nfe in SHOWN]
    print(f"{'best fixed':>26}" + "".join(f"{f'{rms[0]:.2g} / {median[0]:.2g}':>17}" for rms, median in lowest))
    for solver_name, figures in curves.items():
        if found := {kind: at for kind, at in rises(figures).items() if at}:
            print(f"  {solver_name} rises by more than a tenth: {found}")
    return curves


def noise_errors(name: str, samples: int) -> dict[str, list[dict[str, float]]]:
    """Measure every stochastic solver on one mixture, and the default beside them."""
    model, truth = problem(name, samples, 1).model, MIXTURES[name]()
    exact = [truth.sample_data(samples, stream(k, "exact")) for k in range(6)]
    floor = statistics.median(sliced_wasserstein(exact[0], other) for other in exact[1:])
    print(f"\n{name}: sliced Wasserstein-2 of {samples} samples to as many exact ones; two exact sets: {floor:.3g}")
    print(f"{'evaluations':>26}" + "".join(f"{nfe:>9}" for nfe in SHOWN))
    curves: dict[str, list[dict[str, float]]] = {"exact samples": [{"sw2": floor}]}
    for solver_name, solver in {"flow_abm": by_name("flow_abm"), **list_named(stochastic=True)}.items():
        assert isinstance(solver, Solver)
        rows = curves[solver_name] = []
        for steps in steps_for(solver, NOISY):
            table = build_table(model.sde, solver, steps=steps)
            x = sample(model, exact[0].shape, solver=table, final="sample", seed=0, dtype=torch.float64)
            assert isinstance(x, Tensor)
            rows.append({"nfe": table.nfe, "sw2": sliced_wasserstein(x.float(), exact[0])})
        cells = (next((f"{r['sw2']:.3g}" for r in reversed(rows) if r["nfe"] <= nfe), "-") for nfe in SHOWN)
        print(f"{solver_name:>26}" + "".join(f"{cell:>9}" for cell in cells), flush=True)
        if found := climbs(rows, floor):
            print(f"  {solver_name} rises by more than a tenth above twice the floor: {found}")
    return curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--sets", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--part", choices=("flow", "noise"), help="only one part; the other's figures are kept")
    add_record(parser, "quality")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = read_record(options.record) if options.part else {}
    result |= {"samples": options.samples, "sets": options.sets}
    for name in MIXTURES:
        if options.part != "noise":
            curves = flow_errors(name, options.samples, options.sets)
            result[f"flow, {name}"] = {key: [list(astuple(f)) for f in figures] for key, figures in curves.items()}
        if options.part != "flow":
            result[f"noise, {name}"] = noise_errors(name, options.samples * options.sets)
    write_record(options.record, format_lines(result))


def format_lines(result: Mapping[str, object]) -> str:
    """Return JSON of four significant digits with one solver on a line."""
    lines = []
    for key, value in result.items():
        if isinstance(value, dict):
            inner = ",\n".join(f"  {json.dumps(k)}: {json.dumps(round_figures(v))}" for k, v in value.items())
            lines.append(f" {json.dumps(key)}: {{\n{inner}\n }}")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def round_figures(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, list):
        return [round_figures(v) for v in value]
    return {k: round_figures(v) for k, v in value.items()} if isinstance(value, dict) else value


if __name__ == "__main__":
    main()
