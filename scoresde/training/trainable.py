"""What a ``Trainer`` takes, checked, and what it makes of its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.kinds import CheckpointError, ConfigError, DTypeError, show
from scoresde.errors.names import unknown
from scoresde.errors.values import check_flag, check_number
from scoresde.models.checks import check_differentiable, check_score_model, unwrap_model
from scoresde.models.prediction import Condition
from scoresde.models.score_model import ScoreModel
from scoresde.models.sde_model import SDEModel
from scoresde.models.sharded import local_rows
from scoresde.training.ema import EMA, LONGEST_STRIDE, choose_stride
from scoresde.training.losses.simulated import OBJECTIVES, ObjectiveName
from scoresde.training.losses.uncertainty import Uncertainty

__all__ = [
    "Normalised",
    "Objective",
    "Stateful",
    "check_objective",
    "check_shapes",
    "check_trainable",
    "hold_rate",
    "known_model",
    "make_averages",
    "make_uncertainty",
    "not_yet",
]

MOST_AVERAGES = 8
ADAM = ("step", "exp_avg", "exp_avg_sq")
Objective = Callable[[Any, Tensor, torch.Generator, Condition], Tensor]


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


def known_model(model: object) -> ScoreModel:
    """Return a model that has a network of its own, out of its wrappers.

    An ``SDEModel`` is typed as a ScoreModel: what differs between the two is asked by its objective alone.
    """
    inner = unwrap_model(model)
    return cast(ScoreModel, inner) if isinstance(inner, SDEModel) else check_score_model(model)


def check_trainable(model: object) -> tuple[ScoreModel, nn.Module]:
    """Return a model, out of its wrappers, and its network, in its own, if they can be trained."""
    known = known_model(model)
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


def check_objective(
    objective: Objective | ObjectiveName | None, weight: object, times: object, model: object
) -> Objective | None:
    """Return the objective, which leaves no room for a weight and times; that of an SDEModel may go by its name."""
    simulated = isinstance(model, SDEModel)
    if objective is None and not simulated:
        return None
    if objective is None or isinstance(objective, str):
        name = objective or "reverse"
        if name not in OBJECTIVES and simulated:
            raise unknown("objective", name, OBJECTIVES)
        if name in OBJECTIVES and not simulated:
            raise ConfigError(
                f"objective={name!r} simulates paths of an SDEModel(net, sde); the marginals of a ScoreModel are "
                "known, and the usual loss takes them: leave objective= out"
            )
        objective = OBJECTIVES.get(name, objective)
    if isinstance(objective, type) or not callable(objective):
        raise DTypeError(
            f"objective must be a function (model, x0, generator, cond) -> losses (B,), got {show(objective)}"
        )
    if weight is not None or times is not None:
        raise ConfigError("weight= and times= belong to the denoising loss; an objective= has its own, leave them out")
    return objective


def check_shapes(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], adam: Mapping[str, torch.Size], *, change: bool
) -> None:
    """Raise CheckpointError unless a training's state has finite tensors of these shapes, or with ``change`` none.

    ``adam`` holds the shapes of the parameters that Adam moves, of which the state may have its numbers.
    """
    needed = dict(shapes)
    for place in tensors:
        key, _, name = place.partition(".")
        if name in adam and key in ADAM:
            needed[place] = torch.Size() if key == "step" else adam[name]
    for place, shape in needed.items():
        found = tensors.get(place)
        if found is None and change:
            continue
        if found is None or found.shape != shape or not bool(torch.isfinite(local_rows(found)).all()):
            what = "missing" if found is None else f"of shape {tuple(found.shape)}, or not finite"
            raise CheckpointError(
                f"training_state.{place} of the checkpoint is {what}; {tuple(shape)} finite ones are needed; take "
                "another copy"
            )


def hold_rate(value: float) -> Callable[[int], float]:
    """Return the learning rate that is the same at every step."""
    return partial(_keep_rate, check_number(value, "learning_rate", 0.0, open_low=True))


def _keep_rate(rate: float, step: int) -> float:
    return rate
