r"""``select``: which of the fixed tables suits a model best at a number of evaluations.

Every solver, grid and end of the grid that makes a table of this many calls is run from the same few start states, and
judged by the distance to where the model's own adaptive flow leads from them. Most are dropped after six states, most
of the rest after 20 (successive halving, Jamieson and Talwalkar 2016, arXiv:1502.07943). For solvers that draw noise
there is no such distance: they are judged by the sliced Wasserstein-2 distance of all samples to the flow's.

Which one is best depends on the data's finest scale and on how much a network knows at small noise: a grid that goes on
beyond it spends steps on nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from scoresde.diffusions.sde import SDE, GaussianSDE
from scoresde.errors.kinds import ConfigError, ScoreSDEError
from scoresde.errors.names import check_choice
from scoresde.errors.values import check_callable, check_flag, check_integer, check_number
from scoresde.models.checks import check_model
from scoresde.models.prediction import Predictor, in_mode
from scoresde.noise import check_seed
from scoresde.ops import flat
from scoresde.sampling.part import Watch
from scoresde.sampling.plan import Plan, Planner, plan
from scoresde.sampling.tuning.pairs import Conditions, Errors, Pairs, make_pairs
from scoresde.solvers.candidates import Candidate, list_candidates
from scoresde.solvers.grids import Grid
from scoresde.solvers.tableau import Tableau

__all__ = ["By", "Ranked", "Selection", "rank", "select"]

By = Literal["both", "rms", "median"]
STAGES = ((6, 48), (20, 12))  # start states after which candidates are dropped, and how many are kept


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
    stages: Sequence[tuple[int, int]] = STAGES,
    progress: bool = False,
) -> tuple[list[Ranked], int, int]:
    """Return the best candidates by rank, how many were tried, and the evaluations of samples.

    Args:
        model: the model.
        pairs: start states, and where its flow takes them.
        steps: evaluations.
        candidates: what to compare.
        by: what ranks.
        noise: whether they draw noise.
        size: largest batch given to the network at once.
        stages: after how many start states candidates are dropped, and how many are kept.
        progress: show a bar.
    """
    # The core loads no distances.
    from scoresde.metrics.distances import sliced_wasserstein

    rows = [Ranked(*made) for made in _tables(model.sde, steps, candidates)]
    if not rows:
        raise ConfigError(f"no solver makes a table of {steps} evaluations under {model.sde}; pass steps= >= 2")
    tried, used = len(rows), 0
    # A distance between laws needs all samples: one round.
    rounds = [] if noise else [(count, kept) for count, kept in stages if count < len(pairs)]
    with tqdm(total=len(rows), desc="selecting", unit="table", disable=not progress, leave=False) as bar:
        for k, (count, kept) in enumerate([*rounds, (len(pairs), len(rows))]):
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
            rows = sorted(measured, key=lambda row: row.score(by))[:kept]
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
    known = check_options(model, steps, samples, tolerance, chunk_size, seed, cond)
    steps = int(steps)
    check_flag(noise, "noise")
    check_flag(progress, "progress")
    check_choice("by", by, ("both", "rms", "median"))
    with in_mode(known, training=False):
        pairs, spent = make_pairs(
            known, samples, seed, "select", event=event, cond=cond, tolerance=tolerance, size=chunk_size
        )
        rows, tried, used = rank(
            known, pairs, steps, list_candidates(noise=noise), by=by, noise=noise, size=chunk_size, progress=progress
        )
    return Selection(tuple(rows[: STAGES[-1][1]]), steps, by, tried, spent + used)


def check_options(
    model: object, steps: object, samples: object, tolerance: object, chunk_size: object, seed: object, cond: object
) -> Predictor:
    """Return the model in its own coordinates, once the options are in range."""
    check_integer(steps, "steps", 1)
    check_integer(samples, "samples", 1)
    check_integer(chunk_size, "chunk_size", 1)
    check_number(tolerance, "tolerance", 0.0, 1.0, open_low=True)
    check_seed(seed)
    check_callable(cond, "cond", "of a number of samples -> their conditions")
    return check_model(model).in_its_own_coordinates()
