"""What ``sample`` does by default: what a model's calibration says for so many evaluations, or what is usual."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from scoresde.diffusions.matrix import MatrixSDE
from scoresde.diffusions.sde import SDE, GaussianSDE
from scoresde.errors.kinds import ConfigError, ScoreSDEError
from scoresde.errors.names import is_name
from scoresde.errors.values import check_integer
from scoresde.models.documents import DOCUMENTS
from scoresde.sampling.part import Watch
from scoresde.sampling.plan import Plan, Planner, plan
from scoresde.solvers import grids
from scoresde.solvers.build import build_table
from scoresde.solvers.candidates import GRIDS, USUAL, Candidate, find_candidate
from scoresde.solvers.documents import parse_object
from scoresde.solvers.grids import MOST_STEPS, STEPS, Grid
from scoresde.solvers.named import DEFAULT, by_name
from scoresde.solvers.tableau import Tableau

__all__ = ["Calibration", "Rung"]

CURE = "make one with Calibration.to_json()"


@dataclass(frozen=True)
class Rung:
    """What suits a model at one number of evaluations.

    Args:
        steps: evaluations.
        solver: the solver's name among the candidates.
        grid: the grid's name; "curve" for the model's own, None for the solver's.
        end: log_snr at which the grid ends; None for the SDE's own end.
        rms: its error over all samples, a coordinate.
        median: the median over the samples of the error of one.
    """

    steps: int
    solver: str
    grid: str | None
    end: float | None
    rms: float
    median: float

    @classmethod
    def of(cls, steps: int, found: Candidate, rms: float, median: float) -> Rung:
        """Write a candidate down."""
        grid = None if found.grid is None else found.grid.name
        return cls(steps, found.name, grid, None if found.end == math.inf else found.end, rms, median)


@dataclass(frozen=True, eq=False)
class Calibration(Planner):
    """A solver, a grid and its end for every number of evaluations; what ``calibrate`` finds for a model.

    Pass it as ``solver=``, or leave ``solver`` out where the model has one. Other endings than ``final="denoise"``, and
    times of one's own, take the default solver.

    Args:
        rungs: by rising numbers of evaluations; in between and beyond the nearest serves, in the logarithm;
            below the first what is usual.
        levels: u = sigma/(alpha + sigma) of the model's own grid, falling.
        shares: the share of the steps above each.
        evaluations: what it cost, each sample's counted.
    """

    rungs: tuple[Rung, ...] = ()
    levels: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()
    evaluations: int = 0

    @property
    def curve(self) -> Grid:
        """The model's own grid: more steps where its flow bends more."""
        return grids.curve(self.levels, self.shares)

    def candidate(self, steps: int) -> Candidate:
        """Return the solver, the grid and the end for this many evaluations.

        Raises ConfigError where a later version of scoresde wrote a name that this one does not know.
        """
        if not self.rungs or steps < self.rungs[0].steps:
            choice = next((found for most, found in USUAL if steps <= most), (DEFAULT, None, math.inf))
            return find_candidate(*choice)
        rung = min(self.rungs, key=lambda rung: abs(math.log(rung.steps / steps)))
        known = {None if grid is None else grid.name: grid for grid in (*GRIDS, *([self.curve] if self.levels else ()))}
        try:
            return find_candidate(rung.solver, known[rung.grid], math.inf if rung.end is None else rung.end)
        except KeyError as error:
            raise ConfigError(
                f"the calibration names {error.args[0]!r}, which this scoresde lacks; update it"
            ) from error

    def table(
        self, sde: GaussianSDE, steps: int | None = None, times: Tensor | Grid | None = None, final: str = "denoise"
    ) -> Tableau:
        """Return the candidate's table of so many evaluations, 20 by default, or the default solver's."""
        if times is not None or not is_name(final, ("denoise",)):
            return build_table(sde, DEFAULT, steps=steps, times=times, final=final)
        count = check_integer(STEPS if steps is None else steps, "steps", 1, MOST_STEPS)
        found = self.candidate(count)
        if found.end > float(sde.log_snr(torch.tensor(sde.t_min, dtype=torch.float64, device="cpu"))):
            found = replace(found, end=math.inf)
        return found.build(sde, count)

    def plan(self, sde: SDE, steps: int | None, times: Tensor | Grid | None, final: str, watch: Watch) -> Plan:
        """Return the plan of that table."""
        if times is None and is_name(final, ("denoise",)) and isinstance(sde, GaussianSDE):
            return plan(self.table(sde, steps), sde, None, None, final, watch)
        usual = "ancestral" if isinstance(sde, MatrixSDE) else DEFAULT
        return plan(by_name(usual), sde, steps, times, final, watch)

    def to_json(self) -> str:
        """Write it down."""
        return json.dumps(
            {
                "rungs": [asdict(rung) for rung in self.rungs],
                "levels": self.levels,
                "shares": self.shares,
                "evaluations": self.evaluations,
            }
        )

    @staticmethod
    def from_json(text: str) -> Calibration:
        """Read what ``to_json`` wrote.

        Raises:
            ConfigError: anything else, with the path of the field. Names of solvers and grids that a later version
                wrote are told where they are needed.
        """
        given: object = text
        # What is no text may have no hash.
        return _read(text) if isinstance(given, str) else _build(parse_object(text, "calibration", CURE))

    def __str__(self) -> str:
        """Write the rungs as a table."""
        lines = [f"calibrated in {self.evaluations} evaluations of samples", "steps       rms    median"]
        lines += [f"{r.steps:>5}{r.rms:>10.3g}{r.median:>10.3g}  {self.candidate(r.steps)}" for r in self.rungs]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Calibration for {_span([rung.steps for rung in self.rungs])} evaluations>"


def _build(document: dict[str, Any]) -> Calibration:
    try:
        DOCUMENTS["calibration"](document, "")
    except ScoreSDEError as error:
        raise ConfigError(
            f"this is no saved calibration: {error.with_cure(CURE)}", parameter=error.parameter, allowed=error.allowed
        ) from error
    rungs = tuple(Rung(**rung) for rung in document["rungs"])
    return Calibration(rungs, tuple(document["levels"]), tuple(document["shares"]), document["evaluations"])


@functools.lru_cache(maxsize=64)
def _read(text: str) -> Calibration:
    return _build(parse_object(text, "calibration", CURE))


def _span(steps: Sequence[int]) -> str:
    return f"{steps[0]} to {steps[-1]}" if steps else "any number of"
