"""A plan: how one chunk of samples is made, and what can be said of it before any call.

``plan(solver, sde, steps, times, final, watch)`` asks the solver's kind for its plan. Tables (``table_run``) and flows
(``flow``) are known from the start; every other kind is a ``Planner``, so that ``sample`` needs to know no bridge.
A plan is then called with a model, the start states, a source of noise and the conditions of the chunk.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from typing import Protocol

from torch import Tensor

from scoresde.diffusions.sde import SDE
from scoresde.errors.kinds import DTypeError, show
from scoresde.models.prediction import Condition, Predictor
from scoresde.models.scored_sde import ScoredSDE
from scoresde.noise import NoiseSource
from scoresde.sampling.part import Part, Start, Watch
from scoresde.solvers.grids import Grid
from scoresde.solvers.tableau import Tableau

__all__ = ["Plan", "Planner", "plan"]


class Plan(Protocol):
    """What ``sample`` needs of a way to sample."""

    @property
    def table(self) -> Tableau | None:
        """The table that is run; None where there is none."""

    @property
    def times(self) -> tuple[float, ...]:
        """Start, the times of the steps, and the end; for an adaptive solver start and end."""

    @property
    def draws(self) -> int:
        """How many draws of noise a run takes after its start state."""

    @property
    def start(self) -> Start | None:
        """Where a run starts; None where there are no alpha and sigma."""

    @property
    def has_bar(self) -> bool:
        """Whether a run shows a bar of its own steps; else the samples that are done are counted."""

    def __call__(self, model: Predictor | ScoredSDE, x: Tensor, noise: NoiseSource, cond: Condition) -> Part:
        """Carry start states x (B, *), whose memory may be used, to samples."""


class Planner(ABC):
    """A solver of another kind, which brings its own plan: what a bridge, or a file of your own, subclasses."""

    @abstractmethod
    def plan(self, sde: SDE, steps: int | None, times: Tensor | Grid | None, final: str, watch: Watch) -> Plan:
        """Return the plan with these options of ``sample``; ConfigError, DomainError where it has none."""


@functools.singledispatch
def plan(solver: object, sde: SDE, steps: int | None, times: Tensor | Grid | None, final: str, watch: Watch) -> Plan:
    """Return the plan of a solver with these options of ``sample``; each kind of solver registers its own.

    Raises:
        DTypeError: no kind of solver. ConfigError, DomainError: options that do not go together or that it cannot do.
    """
    raise DTypeError(
        f"solver must be a name, a Solver, a Tableau or a ProbabilityFlow, got {show(solver)}; "
        "a builder is called first: solver=solvers.ddim()"
    )


@plan.register(Planner)
def _ask_planner(
    solver: Planner, sde: SDE, steps: int | None, times: Tensor | Grid | None, final: str, watch: Watch
) -> Plan:
    return solver.plan(sde, steps, times, final, watch)
