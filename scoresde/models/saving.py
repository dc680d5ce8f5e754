"""What a model is made of, as documents and tensors: its network, its diffusions, the moments of its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.diffusions.gaussian import Moments
from scoresde.diffusions.named import sde_from_dict, sde_to_dict
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors import CheckpointError, ConfigError, unknown
from scoresde.models.checkpoint import Contents

__all__ = [
    "load_network",
    "load_sdes",
    "load_weights",
    "moments_from_tensors",
    "moments_to_tensors",
    "network_to_dict",
    "sde_to_document",
]


def network_to_dict(net: object) -> dict[str, object]:
    """Return a network's class name, with its config where it is one of ``scoresde.nn``'s."""
    from scoresde.nn import NETWORKS

    for name, known in NETWORKS.items():
        if type(net) is known:
            return {"kind": name, "config": dict(net.config)}
    return {"kind": type(net).__name__, "config": None}


def load_network(contents: Contents, part: str, net: Callable[..., Tensor] | None) -> Callable[..., Tensor]:
    """Return the checkpoint's network, or ``net`` if given, with the weights of ``part``.

    Raises:
        CheckpointError: the network is not built in and none is given, or the weights do not fit.
    """
    from scoresde.nn import NETWORKS

    config, weights = contents.document("model")["network"], contents.tensors(part)
    kind, file = config["kind"], contents.folder / contents.files[part]
    if net is None:
        if config["config"] is None:
            raise CheckpointError(
                f"{contents.folder} holds the weights of your own network {kind}, which JSON cannot rebuild; "
                f"build it and pass it: ScoreModel.load(folder, net={kind}(...))"
            )
        if kind not in NETWORKS:
            raise CheckpointError(f"{contents.folder}: {unknown('network', kind, NETWORKS)}; update scoresde")
        made: nn.Module = NETWORKS[kind](**config["config"])
        types = {t.dtype for t in weights.values() if t.dtype.is_floating_point}
        net = made.to(types.pop()) if len(types) == 1 else made
    if isinstance(net, nn.Module):
        load_weights(net, weights, file)
    elif weights:
        raise CheckpointError(f"{file} holds {len(weights)} tensors; net must be a torch.nn.Module, got {net!r}")
    return net


def load_weights(net: nn.Module, weights: Mapping[str, Tensor], file: Path) -> None:
    """Copy weights into a network, all or none.

    Raises:
        CheckpointError: keys that are missing or unexpected, or a tensor of another shape or type, all listed.
    """
    own = net.state_dict()
    wrong = [f"missing {key}" for key in own if key not in weights]
    wrong += [f"unexpected {key}" for key in weights if key not in own]
    for key, mine in own.items():
        theirs = weights.get(key, mine)
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            wrong.append(
                f"mismatched {key}: {tuple(theirs.shape)} {theirs.dtype} in the file, "
                f"{tuple(mine.shape)} {mine.dtype} in the network"
            )
    if wrong:
        more = f", and {len(wrong) - 12} more" if len(wrong) > 12 else ""
        raise CheckpointError(
            f"{file} does not fit the network {type(net).__name__}: {'; '.join(wrong[:12])}{more}; "
            "build the network with the options it was saved with"
        )
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(weights[key])


def sde_to_document(sde: GaussianSDE) -> dict[str, object]:
    """Return a built-in SDE's description, or the class name of your own."""
    try:
        return sde_to_dict(sde)
    except ConfigError:
        return {"kind": None, "class": type(sde).__name__}


def load_sdes(contents: Contents, given: GaussianSDE | None) -> tuple[GaussianSDE, GaussianSDE | None]:
    """Return the SDE of the training and, where it is another one, the SDE in use; ``given`` stands for your own.

    Raises:
        CheckpointError: one is your own and none is given, or another one than the checkpoint's is given.
    """
    model = contents.document("model")
    trained, current = model["trained_sde"], model["sde"]
    own = [d["class"] for d in (trained, current) if d is not None and d["kind"] is None]
    if own and given is None:
        raise CheckpointError(
            f"{contents.folder} was made with your own SDE {own[0]}, which JSON cannot rebuild; "
            f"pass it: ScoreModel.load(folder, sde={own[0]}(...))"
        )
    if not own and given is not None and sde_to_document(given) != trained:
        raise CheckpointError(
            f"{contents.folder} was made with {sde_from_dict(trained)}, got sde={given}; "
            "leave sde out, and use the model's with_sde to sample under another"
        )

    def build(document: dict[str, Any]) -> GaussianSDE:
        return given if given is not None and document["kind"] is None else sde_from_dict(document)

    return build(trained), None if current is None else build(current)


def moments_to_tensors(moments: Moments) -> dict[str, Tensor]:
    """Return the tensors of ``moments`` by name."""
    tensors = {"mean": moments.mean, "variance": moments.variance}
    return tensors if moments.basis is None else {**tensors, "basis": moments.basis}


def moments_from_tensors(tensors: Mapping[str, Tensor]) -> Moments:
    """Rebuild what ``moments_to_tensors`` took apart."""
    return Moments(tensors["mean"], tensors["variance"], tensors.get("basis"))
