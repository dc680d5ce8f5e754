"""The mutants, by room, in one order that ``--only`` counts."""

from __future__ import annotations

from mutations import cli, diffusions, likelihood, models, solvers, training
from mutations.mutant import Mutant

__all__ = ["MUTANTS", "Mutant"]

MUTANTS: tuple[Mutant, ...] = (
    *diffusions.MUTANTS,
    *solvers.MUTANTS,
    *models.MUTANTS,
    *likelihood.MUTANTS,
    *training.MUTANTS,
    *cli.MUTANTS,
)
