"""Checks of a model, and of a model together with what it is given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scoresde.diffusions.gaussian import Moments
from scoresde.errors.kinds import ConfigError, DTypeError, ShapeError
from scoresde.errors.tensors import check_samples
from scoresde.models.latent import Latent
from scoresde.models.networks import bare_network
from scoresde.models.prediction import Predictor
from scoresde.models.score_model import ScoreModel
from scoresde.transforms.compose import event_after

__all__ = [
    "check_data_event",
    "check_density",
    "check_differentiable",
    "check_event",
    "check_model",
    "check_model_and_data",
    "check_score_model",
    "unwrap_model",
]


def unwrap_model(model: object) -> object:
    """Return the model inside the wrappers of other tools, anything else as it is.

    ``torch.compile(model)``, ``DistributedDataParallel(model)`` and what ``accelerate`` prepares are taken for the
    model they hold: samplers and losses ask its network, not the wrapper's own call. To have the network itself
    compiled, or its gradients averaged over processes, wrap the network: ``ScoreModel(torch.compile(net), sde)``.
    """
    return bare_network(model) if isinstance(model, nn.Module) else model


def check_model(model: object) -> Predictor:
    """Return the model, out of its wrappers (``unwrap_model``); DTypeError where it is none."""
    known = unwrap_model(model)
    if not isinstance(known, Predictor):
        raise DTypeError(
            f"model must be a ScoreModel, got {type(model).__name__}; wrap a network as ScoreModel(net, sde), a "
            "function with ScoreModel.from_callable"
        )
    return known


def check_score_model(model: object) -> ScoreModel:
    """Return the model, out of its wrappers; DTypeError unless it is a network with its readout, as a loss needs."""
    known = check_model(model)
    if not isinstance(known, ScoreModel):
        raise DTypeError(f"this needs the network itself, and {type(known).__name__} changes a model; pass that model")
    return known


def check_differentiable(model: object) -> None:
    """Raise ConfigError where parameters were made in inference mode, in which nothing can be differentiated."""
    if isinstance(model, nn.Module) and any(p.is_inference() for p in model.parameters()):
        raise ConfigError("the network was made under torch.inference_mode(), which forbids gradients; make it outside")


def check_event(moments: Moments | None, shape: Sequence[int], name: str) -> None:
    """Raise ShapeError where samples of this shape (B, *) are no events of the model's data."""
    if moments is not None and moments.mean.shape not in ((), tuple(shape[1:])):
        raise ShapeError(
            f"{name} must be (B, *) with the event {tuple(moments.mean.shape)} of the model's data, got {tuple(shape)}",
            parameter=name,
            got=tuple(shape),
            cure="where the network can, pass prior=model.sde.prior() for another size" if name == "shape" else None,
        )


def check_data_event(model: Predictor, shape: Sequence[int], name: str) -> None:
    """Raise ShapeError where data of this shape (B, *) are none of the model's; those of a latent model are not known.

    Its encoder sees them before any network of the model does.
    """
    if not isinstance(model.transform, Latent):
        check_event(model.moments, (*shape[:1], *event_after(model.transform, shape[1:])), name)


def check_density(model: object) -> None:
    """Raise ConfigError for a latent model, whose data have no density that follows from its own."""
    known = check_model(model)
    if isinstance(known.transform, Latent):
        known.transform.log_abs_det(torch.empty(0, dtype=torch.float32, device="cpu"))


def check_model_and_data(model: object, x: object, name: str) -> tuple[ScoreModel, Tensor]:
    """Return both if the data are finite and on the model's device; DTypeError where it is no model."""
    known, tensor = check_score_model(model), check_samples(x, name).detach()
    known.check_device(tensor.device, name)
    return known, tensor
