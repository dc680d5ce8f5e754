"""What a ``Trainer`` takes, checked, and what it makes of its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors import ConfigError, DTypeError, check_flag, check_number, show
from scoresde.models.checks import check_differentiable, check_score_model
from scoresde.models.prediction import Condition
from scoresde.models.score_model import ScoreModel
from scoresde.training.ema import EMA, LONGEST_STRIDE, choose_stride
from scoresde.training.losses.uncertainty import Uncertainty

__all__ = [
    "Normalised",
    "Objective",
    "Stateful",
    "check_objective",
    "check_trainable",
    "hold_rate",
    "make_averages",
    "make_uncertainty",
    "not_yet",
]

MOST_AVERAGES = 8
Objective = Callable[[ScoreModel, Tensor, torch.Generator, Condition], Tensor]


@runtime_checkable
class Normalised(Protocol):
    """A network whose weights have a length that every step restores, as ``nn.MagnitudeUNet`` is one."""

    def normalise_(self) -> None:
        """Restore it, in place."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """An objective that learns on the way, as ``losses.ImportanceIndices`` do; checkpoints keep its tensors."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return its tensors by name."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> object:
        """Take them up again."""
        ...


def make_averages(net: nn.Module, ema_decay: float, sigma_rel: float | Sequence[float] | None) -> list[EMA]:
    """Return the averages to keep, the model's first."""
    decay = check_number(ema_decay, "ema_decay", 0.0, 1.0, open_high=True)
    if sigma_rel is None:
        return [EMA(net, decay, warmup=True, every=choose_stride(decay))]
    widths = sigma_rel if isinstance(sigma_rel, Sequence) else [sigma_rel]
    if not 1 <= len(widths) <= MOST_AVERAGES:
        raise ConfigError(f"sigma_rel must be 1 to {MOST_AVERAGES} widths, got {len(widths)}")
    return [EMA(net, sigma_rel=width, every=LONGEST_STRIDE) for width in widths]


def make_uncertainty(
    uncertainty: bool, objective: object, sde: GaussianSDE, device: torch.device
) -> Uncertainty | None:
    """Return the learned weight of the denoising loss, where one is asked for."""
    if not check_flag(uncertainty, "uncertainty"):
        return None
    if objective is not None:
        raise ConfigError("uncertainty= weighs the denoising loss by log-SNR; an objective= has a weight of its own")
    return Uncertainty(sde, device)


def not_yet(net: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which a wrapper for several processes does not add up gradients yet."""
    return net.no_sync() if isinstance(net, DistributedDataParallel) else nullcontext()


def check_trainable(model: object) -> tuple[ScoreModel, nn.Module]:
    """Return a model, out of its wrappers, and its network, in its own, if they can be trained."""
    known = check_score_model(model)
    net = known.net
    if torch.is_inference_mode_enabled():
        raise ConfigError("training differentiates, which torch.inference_mode() forbids; train outside of it")
    check_differentiable(net)
    if not isinstance(net, nn.Module) or not any(p.requires_grad for p in net.parameters()):
        raise ConfigError("the model's network has no trainable parameters; training needs a torch.nn.Module with some")
    outside = set(model.modules()) - set(known.modules()) if isinstance(model, nn.Module) else set()
    for part in outside:
        # The loss asks the network, not the wrapper, whose own call is what would average the gradients.
        if isinstance(part, DistributedDataParallel) and torch.distributed.get_world_size(part.process_group) > 1:
            raise ConfigError(
                "DistributedDataParallel is around the model, where it averages no gradients; put it around the "
                "network: ScoreModel(DistributedDataParallel(net), sde)"
            )
    return known, net


def check_objective(objective: object, weight: object, times: object) -> Objective | None:
    """Return the objective, which leaves no room for a weight and times."""
    if objective is None:
        return None
    if isinstance(objective, type) or not callable(objective):
        raise DTypeError(
            f"objective must be a function (model, x0, generator, cond) -> losses (B,), got {show(objective)}"
        )
    if weight is not None or times is not None:
        raise ConfigError("weight= and times= belong to the denoising loss; an objective= has its own, leave them out")
    return objective


def hold_rate(value: float) -> Callable[[int], float]:
    """Return the learning rate that is the same at every step."""
    return partial(_keep_rate, check_number(value, "learning_rate", 0.0, open_low=True))


def _keep_rate(rate: float, step: int) -> float:
    return rate
