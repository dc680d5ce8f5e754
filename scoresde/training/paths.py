"""How a training on simulated paths begins."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.errors.kinds import ConfigError
from scoresde.models.sde_model import SDEModel
from scoresde.training.batches import Batches

__all__ = ["begin_paths"]

PATHS = 4096  # data from which paths are measured


def begin_paths(model: object, batches: Batches, seed: int, calibrate: bool | None) -> bool:
    """Measure the paths of an SDEModel from its data; return whether the model is one.

    Raises:
        ConfigError: a calibration, which is of tables. SolverError, DomainError: what ``SDEModel.measure`` raises.
    """
    if not isinstance(model, SDEModel):
        return False
    if calibrate:
        raise ConfigError("calibrate= finds a table, which needs alpha and sigma; an SDEModel has none, leave it out")
    model.measure(_spread(batches), seed)
    return True


def _spread(batches: Batches) -> Tensor:
    """Return a few thousand of the data as the model sees them, from all over them."""
    kept: list[Tensor] = []
    count, stride = 0, 1
    for part in batches.seen():
        kept.append(part[::stride])
        count += len(kept[-1])
        if count >= 2 * PATHS:
            whole = torch.cat(kept)[::2]
            kept, count, stride = [whole], len(whole), 2 * stride
    return torch.cat(kept).to(batches.device)
