"""What an ``SDEModel`` is made of, as documents and tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike

import torch
from torch import Tensor, nn

from scoresde.diffusions.gaussian import Gaussian
from scoresde.diffusions.sde import SDE
from scoresde.errors.kinds import CheckpointError
from scoresde.errors.names import unknown
from scoresde.models.checkpoint import Contents, Documents, Tensors, find, read
from scoresde.models.declared import check_moments
from scoresde.models.networks import bare_network, network_state, plain_names
from scoresde.models.saving import (
    load_moments,
    load_network,
    moments_to_tensors,
    network_to_dict,
)
from scoresde.models.sde_model import Ends, SDEModel
from scoresde.transforms.compose import transform_from_dict

__all__ = ["load", "take_apart"]


def take_apart(model: SDEModel, ema: Mapping[str, Tensor] | None = None) -> tuple[Documents, Tensors]:
    """Return what a checkpoint of the model holds: the JSON documents and the groups of tensors."""
    net = model.net
    document = {
        "network": network_to_dict(net),
        "sde": type(model.sde).__name__,
        "times": [model.sde.t_min, model.sde.t_max],
        "baseline": model.baseline,
        "prior": model.prior_name,
        "transform": None if model.transform is None else model.transform.to_dict(),
        "dropout": None if model.dropout is None else dict(model.dropout),
        "class_names": None if model.class_names is None else {k: [*v] for k, v in model.class_names.items()},
    }
    tensors: dict[str, Mapping[str, Tensor]] = {
        "weights": network_state(net) if isinstance(net, nn.Module) else {},
        "frame": {"shift": model.shift, "scale": model.scale},
    }
    if ema is not None:
        names = {**plain_names(bare_network(net)), **plain_names(net)} if isinstance(net, nn.Module) else {}
        tensors["ema"] = {names.get(key, key): value for key, value in ema.items()}
    if model.moments is not None:
        tensors["moments"] = moments_to_tensors(model.moments)
    if isinstance(model.law, Ends):
        tensors["ends"] = {"states": model.law.states}
    elif isinstance(model.law, Gaussian):
        basis = {} if model.law.basis is None else {"basis": model.law.basis}
        tensors["prior"] = {"mean": model.law.mean, "variance": model.law.variance, **basis}
    return {"sde_model": document}, tensors


def load(
    folder: str | PathLike[str], net: Callable[..., Tensor] | None, sde: SDE | None, weights: str | None
) -> SDEModel:
    """Read a model from a checkpoint, or from a run's folder that holds one; ``SDEModel.load`` says more."""
    if weights not in (None, "ema", "raw"):
        raise unknown("weights", weights, ("ema", "raw"))
    contents = read(find(folder))
    if "sde_model" not in contents.documents:
        raise CheckpointError(f"{contents.folder} holds no SDEModel; read it with ScoreModel.load(folder)")
    config = contents.document("sde_model")
    part = "weights" if weights == "raw" or (weights is None and "ema" not in contents.parts) else "ema"
    made = load_network(contents, part, net)
    known = _check_sde(contents, config["sde"], config["times"], sde)
    moments = load_moments(contents)
    transform = None if config["transform"] is None else transform_from_dict(config["transform"])
    model = SDEModel(
        made, known, baseline=config["baseline"], prior=config["prior"], moments=moments, transform=transform
    )
    model.dropout, model.class_names = config["dropout"], config["class_names"]
    event = None if moments is None else moments.mean.shape
    frame = _finite(contents, "frame", "shift", "scale")
    model.shift, model.scale = frame["shift"], frame["scale"]
    if event is not None and {model.shift.shape, model.scale.shape} - {event, torch.Size(())}:
        raise CheckpointError(f"{contents.folder}: shift and scale must have the event {tuple(event)} of the moments")
    if "ends" in contents.parts:
        states = _finite(contents, "ends", "states")["states"]
        if not len(states) or (event is not None and states.shape[1:] != event):
            raise CheckpointError(f"{contents.folder}: ends must be states of the event of the moments")
        model.law = Ends(states, known.t_max)
    elif "prior" in contents.parts:
        law = check_moments(contents.tensors("prior"), str(contents.folder / contents.files["prior"]))
        model.law = Gaussian(law.mean, law.variance, law.basis)
    return model.eval()


def _check_sde(contents: Contents, name: str, times: list[float], sde: SDE | None) -> SDE:
    """Return the user's own SDE, between the times that it had."""
    if sde is None:
        raise CheckpointError(
            f"{contents.folder} was made with your own SDE {name}, which JSON cannot rebuild; pass it: "
            f"SDEModel.load(folder, sde={name}(...))"
        )
    if [sde.t_min, sde.t_max] != times:
        raise CheckpointError(
            f"{contents.folder} was made with times from {times[0]:g} to {times[1]:g}, "
            f"got an SDE from {sde.t_min:g} to {sde.t_max:g}; pass the SDE that it was trained with"
        )
    return sde


def _finite(contents: Contents, part: str, *names: str) -> dict[str, Tensor]:
    """Return a part's tensors; CheckpointError where they have other names, or are no finite floating numbers."""
    found = contents.tensors(part)
    if set(found) != set(names):
        raise CheckpointError(f"{contents.folder / contents.files[part]} must hold {', '.join(names)} alone")
    for name, values in found.items():
        if not values.is_floating_point() or not bool(torch.isfinite(values).all()):
            raise CheckpointError(f"{contents.folder / contents.files[part]}: {name} must be finite; take another copy")
    return found
