"""Solvers and tables in other libraries' pipelines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from scoresde.diffusions.targets import unknown_kind
from scoresde.errors.kinds import ConfigError, ShapeError
from scoresde.errors.names import is_name
from scoresde.errors.tensors import check_numbers
from scoresde.errors.values import check_text
from scoresde.solvers.tableau import Tableau

if TYPE_CHECKING:
    from scoresde.sampling.diffusers_scheduler import TableScheduler

__all__ = ["to_diffusers"]

PREDICTION_TYPES = {"noise": "epsilon", "data": "sample", "v": "v_prediction", "velocity": "flow_prediction"}


def to_diffusers(
    solver: str | Tableau, *, betas: Tensor | None = None, predicts: str = "noise", n: int = 1000
) -> TableScheduler:
    """Return a solver or a table as a scheduler for pipelines of diffusers: ``DDPMPipeline(unet, scheduler)``.

    It has their ``set_timesteps``, ``step``, ``scale_model_input`` and ``add_noise``; a pipeline saves it as it saves
    its own. ``num_inference_steps`` is the number of calls of the network, also where a step has several.

    Args:
        solver: a name, or a table, e.g. a tuned one.
        betas: of the chain that the network was trained on, (n,), e.g. ``scheduler.betas``; None for flow matching.
        predicts: what the network answers: "noise", "data", "v"; "velocity" (noise - data) with flow matching.
        n: indices that a network of flow matching knows.

    Raises:
        ConfigError: diffusers is missing, an unknown prediction, one that does not go with the betas.
    """
    try:
        from scoresde.sampling.diffusers_scheduler import TableScheduler
    except ImportError as error:
        raise ConfigError("a scheduler needs diffusers; pip install diffusers") from error
    if not is_name(predicts, PREDICTION_TYPES):
        raise unknown_kind("prediction", predicts, PREDICTION_TYPES)
    if (betas is None) != (predicts == "velocity"):
        raise ConfigError(
            "predicts='velocity' is of flow matching, which has no betas; any other prediction needs betas="
        )
    given = None if betas is None else check_numbers(betas, "betas").tolist()
    if given is not None and not isinstance(given, list):
        raise ShapeError(f"betas must be a vector, got the number {given:g}", parameter="betas")
    table = solver.to_json() if isinstance(solver, Tableau) else None
    made: TableScheduler = TableScheduler(
        solver=None if table is not None else check_text(solver, "solver"),
        table=table,
        trained_betas=given,
        prediction_type=PREDICTION_TYPES[predicts],
        num_train_timesteps=n if given is None else len(given),
    )
    return made
