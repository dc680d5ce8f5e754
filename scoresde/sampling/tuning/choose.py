r"""``select``: which of the fixed tables suits a model best at a number of evaluations.

Every solver, grid and end of the grid that makes a table of this many calls is run from the same few start states, and
judged by the distance to where the model's own adaptive flow leads from them. Most are dropped after six states, most
of the rest after 20 (successive halving, Jamieson and Talwalkar 2016, arXiv:1502.07943). For solvers that draw noise
there is no such distance: they are judged by the sliced Wasserstein-2 distance of all samples to the flow's.

Which one is best depends on the data's finest scale and on how much a network knows at small noise: a grid that goes on
beyond it spends steps on nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from scoresde.diffusions.sde import SDE, GaussianSDE
from scoresde.errors import ConfigError, ScoreSDEError, check_integer, check_number, unknown
from scoresde.models.checks import check_model
from scoresde.models.prediction import Predictor, in_mode
from scoresde.ops import flat
from scoresde.sampling.part import Watch
from scoresde.sampling.plan import Plan, Planner, plan
from scoresde.sampling.tuning.pairs import Conditions, Errors, Pairs, make_pairs
from scoresde.solvers import grids
from scoresde.solvers.adaptive import FlowSolver
from scoresde.solvers.build import choose_table
from scoresde.solvers.catalogue import catalogue
from scoresde.solvers.grids import Grid
from scoresde.solvers.multistep import multistep
from scoresde.solvers.named import by_name
from scoresde.solvers.published import unipc
from scoresde.solvers.solver import Solver
from scoresde.solvers.tableau import Tableau

__all__ = ["By", "Candidate", "Ranked", "Selection", "list_candidates", "list_starts", "rank", "select"]

By = Literal["both", "rms", "median"]
STAGES = (6, 20)  # start states after which candidates are dropped
KEPT = (48, 12)  # and how many are kept

GRIDS: tuple[Grid | None, ...] = (
    None,  # the solver's own
    grids.log_snr(centre=3.0, width=4.5),
    grids.log_snr(width=4.0),
    grids.log_snr(width=2.0),
    grids.rectified(),
    grids.rectified(power=1.5),
    grids.rectified(power=2.0),
    grids.diffused(power=3.9),
)
ENDS = (math.inf, 12.0, 10.0, 8.5, 7.0, 5.5, 4.0)  # log_snr of the last call but for the solver's own way to 0


@dataclass(frozen=True)
class Candidate:
    """A solver on a grid that ends at a level.

    Args:
        name: of the solver.
        solver: it.
        grid: None for its own.
        end: log_snr at which the grid ends; inf for the SDE's own end.
    """

    name: str
    solver: Solver
    grid: Grid | None
    end: float

    def build(self, sde: GaussianSDE, steps: int) -> Tableau:
        """Return the table of this many calls, or raise a ScoreSDEError where there is none."""
        solver, short = self.solver, sde
        if self.end < float(sde.log_snr(torch.tensor(sde.t_min, dtype=torch.float64))):
            short = sde.starting_at(float(sde.time(torch.tensor(self.end, dtype=torch.float64))))
        elif self.end < math.inf:
            raise ConfigError(f"{sde} ends before log_snr = {self.end:g}")
        last = solver.calls if solver.closes else solver.leap or 1
        count = max(1, (steps - last) // solver.calls + 1)
        table = choose_table(short, solver, count, self.grid, "denoise")
        if table.nfe != steps:
            raise ConfigError(f"{self.name} makes no table of {steps} calls")
        return table

    def __str__(self) -> str:
        """Say the solver, the grid and the end."""
        grid = (self.solver.grid if self.grid is None else self.grid).name
        return f"{self.name}, {grid}" + ("" if self.end == math.inf else f", to log_snr {self.end:g}")


@dataclass(frozen=True)
class Ranked:
    """A candidate and what was measured.

    Args:
        candidate: what it is.
        table: its table.
        errors: distances to the flow; None for a table that draws noise.
        sw2: sliced Wasserstein-2 distance to the flow's samples; None for a table without noise.
    """

    candidate: Candidate
    table: Tableau
    errors: Errors | None = None
    sw2: float | None = None

    @property
    def figures(self) -> dict[str, float]:
        """What was measured, by name."""
        if self.errors is not None:
            return {"rms": self.errors.rms, "median": self.errors.median}
        return {} if self.sw2 is None else {"sliced W2": self.sw2}

    def score(self, by: By) -> float:
        """Return what ranks it: the less the better."""
        if self.errors is None:
            return math.inf if self.sw2 is None or self.sw2 != self.sw2 else self.sw2
        value = self.errors.product if by == "both" else getattr(self.errors, by)
        return float(value) if value == value else math.inf


@dataclass(frozen=True, eq=False)
class Selection(Planner):
    """What ``select`` found; pass it as ``solver=``, print it, or take ``selection.table``.

    Args:
        rows: the best candidates, the first one first.
        steps: evaluations of each.
        by: what ranks.
        tried: how many tables were run.
        evaluations: of the model, each sample's counted, the flow's included.
    """

    rows: tuple[Ranked, ...]
    steps: int
    by: By
    tried: int
    evaluations: int

    @property
    def table(self) -> Tableau:
        """The best one's table."""
        return self.rows[0].table

    @property
    def figures(self) -> dict[str, dict[str, float]]:
        """The errors by candidate, which ``plots.ranking`` draws."""
        return {str(row.candidate): row.figures for row in self.rows}

    def plan(self, sde: SDE, steps: int | None, times: Tensor | Grid | None, final: str, watch: Watch) -> Plan:
        """Return the plan of the best candidate under an SDE; ConfigError for another number of steps."""
        check_steps(steps, times, [self.steps], "selected")
        if not isinstance(sde, GaussianSDE):
            raise ConfigError(f"a selection is of tables, which {sde} cannot carry")
        return plan(self.rows[0].candidate.build(sde, self.steps), sde, None, None, final, watch)

    def __str__(self) -> str:
        """Write the rows as a table."""
        lines = [f"{self.steps} evaluations, {self.tried} tables tried, {self.evaluations} evaluations of samples"]
        lines.append("".join(f"{name:>10}" for name in self.rows[0].figures))
        lines += ["".join(f"{v:>10.3g}" for v in row.figures.values()) + f"  {row.candidate}" for row in self.rows]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Selection {self.rows[0].candidate}, {self.steps} evaluations, of {self.tried} tables>"


def check_steps(steps: int | None, times: object, known: list[int], what: str) -> None:
    """Raise ConfigError where other steps are asked for than a table was made for."""
    if times is not None or (steps is not None and steps not in known):
        names = ", ".join(map(str, known))
        raise ConfigError(f"the {what} table has {names} evaluations; leave out times= and steps=, or pass one of them")


def _flow(order: int, *, first_alone: bool) -> Solver:
    return multistep(
        prediction="flow", variable="rectified", order=order, corrector=order + 1, first_alone=first_alone, name="flow"
    )


@functools.cache
def list_candidates(*, noise: bool) -> tuple[Candidate, ...]:
    """Return what ``select`` tries: solvers, each on its own grid and on others, to several ends.

    The deterministic ones, grids and ends are those without which some exact mixture of four kinds and five widths, at
    5 to 30 evaluations, has no table near the best of 2000: with them the least error is 1.02 times theirs on average.
    """
    if noise:
        solvers: dict[str, Solver | FlowSolver] = {e.name: by_name(e.name) for e in catalogue() if e.stochastic}
    else:
        named = ("ddim", "deis", "dpmpp_2m", "dpmpp_3m", "exponential_ab", "flow_ab", "flow_abm", "ipndm", "unipc")
        solvers = {
            **{name: by_name(name) for name in named},
            "exponential_ab (order 2)": multistep(order=2, name="exponential_ab"),
            "unipc (order 2)": unipc(order=2),
            **{f"flow_abm (order {order})": _flow(order, first_alone=True) for order in (2, 4)},
            **{f"flow_abm (order {order}, first kept)": _flow(order, first_alone=False) for order in (2, 3)},
        }
    return tuple(
        Candidate(name, solver, grid, end)
        for name, solver in solvers.items()
        if isinstance(solver, Solver)
        for grid in GRIDS
        if grid != solver.grid
        for end in ENDS
    )


@functools.cache
def list_starts() -> tuple[Candidate, ...]:
    """Return the few of them from which a table is tuned."""
    names = {"dpmpp_2m", "exponential_ab", "flow_abm (order 2)", "flow_abm (order 3, first kept)", "unipc"}
    kept = (GRIDS[1], GRIDS[5])
    return tuple(
        replace(one, grid=grid)
        for one in list_candidates(noise=False)
        if one.name in names and one.grid == GRIDS[2] and one.end in (math.inf, 8.5, 5.5)
        for grid in kept
    )


def _tables(sde: GaussianSDE, steps: int, candidates: Iterable[Candidate]) -> Iterator[tuple[Candidate, Tableau]]:
    """Yield each candidate's table where it has one of this many calls."""
    for candidate in candidates:
        try:
            yield candidate, candidate.build(sde, steps)
        except ScoreSDEError:
            continue


def rank(
    model: Predictor,
    pairs: Pairs,
    steps: int,
    candidates: Iterable[Candidate],
    *,
    by: By,
    noise: bool,
    size: int,
    progress: bool = False,
) -> tuple[list[Ranked], int, int]:
    """Return the best candidates by rank, how many were tried, and the evaluations of samples."""
    # The core loads no distances.
    from scoresde.metrics.distances import sliced_wasserstein

    rows = [Ranked(*made) for made in _tables(model.sde, steps, candidates)]
    if not rows:
        raise ConfigError(f"no solver makes a table of {steps} evaluations under {model.sde}; pass steps= >= 2")
    tried, used = len(rows), 0
    # A distance between laws needs all samples: one round.
    stages = [len(pairs)] if noise else [*(count for count in STAGES if count < len(pairs)), len(pairs)]
    with tqdm(total=len(rows), desc="selecting", unit="table", disable=not progress, leave=False) as bar:
        for k, count in enumerate(stages):
            part = pairs.first(count)
            measured = []
            for row in rows:
                out = part.run(model, row.table, size)
                used += count * steps
                if noise:
                    finite = bool(torch.isfinite(out).all())
                    distance = sliced_wasserstein(flat(out), flat(part.end)) if finite else math.inf
                    measured.append(Ranked(row.candidate, row.table, sw2=distance))
                else:
                    measured.append(Ranked(row.candidate, row.table, errors=Errors.of(part.measure(out))))
                bar.update(k == 0)
            rows = sorted(measured, key=lambda row: row.score(by))
            if k < len(stages) - 1:
                rows = rows[: KEPT[k]]
    return rows, tried, used


def select(
    model: Predictor,
    steps: int,
    *,
    by: By = "both",
    noise: bool = False,
    samples: int = 64,
    event: tuple[int, ...] | None = None,
    cond: Conditions | None = None,
    tolerance: float = 1e-4,
    chunk_size: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> Selection:
    """Return the fixed tables that suit this model best: ``sample(model, 64, solver=select(model, 8))``.

    Args:
        model: any model.
        steps: evaluations of the model for a sample.
        by: what ranks: "rms" over all samples, the "median" over them, or "both", their product.
        noise: rank solvers that draw noise, by the sliced Wasserstein-2 distance to the flow's samples.
        samples: start states at the end; with noise take some hundreds.
        event: the shape of one sample, where the model knows no moments.
        cond: number of samples -> their conditions.
        tolerance: of the flow that they are measured against.
        chunk_size: largest batch given to the network at once.
        seed: of the start states.
        progress: show a bar.

    Raises:
        DTypeError, ConfigError: no model, no shape, an unknown ``by``, no table of so many evaluations. DomainError:
            options out of range. SolverError: the flow failed.
    """
    known = check_options(model, steps, samples, tolerance, chunk_size)
    if by not in ("both", "rms", "median"):
        raise unknown("by", by, ("both", "rms", "median"))
    with in_mode(known, training=False):
        pairs, spent = make_pairs(
            known, samples, seed, "select", event=event, cond=cond, tolerance=tolerance, size=chunk_size
        )
        rows, tried, used = rank(
            known, pairs, steps, list_candidates(noise=noise), by=by, noise=noise, size=chunk_size, progress=progress
        )
    return Selection(tuple(rows[: KEPT[-1]]), steps, by, tried, spent + used)


def check_options(model: object, steps: object, samples: object, tolerance: object, chunk_size: object) -> Predictor:
    """Return the model in its own coordinates, once the options are in range."""
    check_integer(steps, "steps", 1)
    check_integer(samples, "samples", 1)
    check_integer(chunk_size, "chunk_size", 1)
    check_number(tolerance, "tolerance", 0.0, open_low=True)
    return check_model(model).in_its_own_coordinates()
