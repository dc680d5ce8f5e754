"""What a model is made of, as documents and tensors: its network, its diffusions, the moments of its data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from scoresde.diffusions.gaussian import Moments
from scoresde.diffusions.linear import LinearSDE
from scoresde.diffusions.named import LINEAR, linear_from_dict, sde_from_dict, sde_to_dict
from scoresde.diffusions.sde import SDE, GaussianSDE
from scoresde.errors.kinds import CheckpointError, ConfigError, show
from scoresde.errors.names import check_choice, unknown
from scoresde.errors.values import check_mapping
from scoresde.models.checkpoint import Contents, Documents, Tensors, amend, find, read
from scoresde.models.declared import build_network, check_event, check_groups, check_moments, list_misfits
from scoresde.models.energy import EnergyModel
from scoresde.models.latent import Coder, Latent
from scoresde.models.linear_model import LinearModel
from scoresde.models.networks import Gradient, bare_network, network_state, plain_names
from scoresde.models.parameterization import PARAMETERIZATIONS
from scoresde.models.prediction import Predictor
from scoresde.models.schema import blame
from scoresde.models.score_model import ScoreModel
from scoresde.models.sharded import local_rows, plain_class
from scoresde.models.stored import Described
from scoresde.transforms.base import Transform
from scoresde.transforms.compose import Compose, transform_from_dict

__all__ = [
    "build",
    "describe_tables",
    "keep_tables",
    "load",
    "load_moments",
    "load_network",
    "load_sdes",
    "load_tables",
    "load_weights",
    "moments_to_tensors",
    "network_to_dict",
    "sde_to_document",
    "take_apart",
]

SAVE_THE_NETWORK = "save the weights, safetensors.torch.save_file(net.state_dict(), file), and give the model anew its"


def take_apart(model: ScoreModel, ema: Mapping[str, Tensor] | None = None) -> tuple[Documents, Tensors]:
    """Return what a checkpoint of the model holds: the JSON documents and the groups of tensors.

    Args:
        model: the model; names of weights come without the prefixes of wrappers (``torch.compile``, ...).
        ema: averaged weights to keep beside the network's own.

    Raises:
        ConfigError: something that JSON cannot hold, with what to save instead.
    """
    how = model.parameterization
    if how.name.startswith("literal "):
        raise ConfigError(
            "a model made by from_callable holds a function, which a file cannot; keep the function and wrap it again "
            "(of a network in it, save the weights: safetensors.torch.save_file(net.state_dict(), file))"
        )
    if how.name not in PARAMETERIZATIONS or replace(PARAMETERIZATIONS[how.name], sigma_data=how.sigma_data) != how:
        raise ConfigError(
            f"the parameterisation {how.name!r} is your own: JSON cannot hold it; {SAVE_THE_NETWORK} predicts="
        )
    if not isinstance(model.condition_on, str):
        raise ConfigError(f"condition_on is a function: JSON cannot hold it; {SAVE_THE_NETWORK} condition_on=")
    trained = sde_to_document(model.trained_sde)
    current = None if model.sde is model.trained_sde else sde_to_document(model.sde)
    if current is not None and current["kind"] is None and trained["kind"] is None:
        raise ConfigError("the model carries two SDEs of your own; save the one it was trained under")
    document: dict[str, object] = {
        "network": network_to_dict(model.net),
        "trained_sde": trained,
        "sde": current,
        "predicts": how.name,
        "sigma_data": how.sigma_data,
        "condition_on": model.condition_on,
        "transform": _describe_transform(model.transform),
        "variance": model.variance,
        "dropout": None if model.dropout is None else dict(model.dropout),
        "class_names": None if model.class_names is None else {k: [*v] for k, v in model.class_names.items()},
    }
    if isinstance(model, LinearModel):
        document["linear"] = {"drop": model.drop, "basis": None if model.basis is None else model.basis.to_dict()}
    net = model.net
    tensors = {"weights": network_state(net) if isinstance(net, nn.Module) else {}}
    if ema is not None:
        check_mapping(ema, "ema", "tensors")
        # An average may be of the network in its wrappers, or of the one inside.
        names = {**plain_names(bare_network(net)), **plain_names(net)} if isinstance(net, nn.Module) else {}
        tensors["ema"] = {names.get(key, key): value for key, value in ema.items()}
    if isinstance(model.transform, Latent) and isinstance(model.transform.autoencoder, nn.Module):
        tensors["autoencoder"] = network_state(model.transform.autoencoder)
    if model.moments is not None:
        tensors["moments"] = moments_to_tensors(model.moments)
    if model.groups:
        tensors["groups"] = {str(count): groups for count, groups in model.groups.items()}
    return {"model": document, **describe_tables(model)}, tensors


def keep_tables(folder: str | PathLike[str], model: Predictor) -> None:
    """Put a model's tuned tables and its calibration into a checkpoint, whose other parts stay.

    Raises:
        CheckpointError: what ``checkpoint.amend`` raises.
    """
    amend(folder, describe_tables(model))


def _describe_transform(transform: Transform | None) -> dict[str, object] | None:
    if isinstance(transform, Latent):
        if _holds_latent(transform.then):
            raise ConfigError(
                "a checkpoint holds the weights of one Latent, and then= has another; make one autoencoder of both: "
                "EncoderDecoder(encoder, decoder)"
            )
    elif _holds_latent(transform):
        raise ConfigError("Compose cannot save the weights of a Latent; write Latent(autoencoder, then=Compose(...))")
    return None if transform is None else transform.to_dict()


def _holds_latent(transform: Transform | None) -> bool:
    parts = transform.parts if isinstance(transform, Compose) else ()
    return isinstance(transform, Latent) or any(map(_holds_latent, parts))


def describe_tables(model: Predictor) -> dict[str, Mapping[str, object]]:
    """Return the documents of a model's tuned tables and its calibration, where it has some."""
    found: dict[str, Mapping[str, object]] = {}
    if model.tables:
        found["tables"] = {str(steps): json.loads(text) for steps, text in model.tables.items()}
    if model.calibration is not None:
        found["calibration"] = json.loads(model.calibration)
    return found


def load_tables(model: Predictor, contents: Contents) -> None:
    """Give a model the tables and the calibration that a checkpoint has."""
    if "tables" in contents.documents:
        model.tables = {int(steps): json.dumps(table) for steps, table in contents.document("tables").items()}
    if "calibration" in contents.documents:
        model.calibration = json.dumps(contents.document("calibration"))


def load(
    folder: str | PathLike[str],
    net: Callable[..., Tensor] | None,
    sde: GaussianSDE | None,
    weights: str | None,
    autoencoder: Coder | None,
) -> ScoreModel:
    """Read a model from a checkpoint, or from a run's folder that holds one; ``ScoreModel.load`` says more."""
    if weights is not None:
        check_choice("weights", weights, ("ema", "raw"))
    contents = read(find(folder))
    if "combination" in contents.documents:
        raise CheckpointError(f"{contents.folder} holds a product of models; read it with CombinedModel.load(folder)")
    if "change" in contents.documents:
        raise CheckpointError(f"{contents.folder} holds a changed model; read it with MappedModel.load(folder)")
    if "sde_model" in contents.documents:
        raise CheckpointError(f"{contents.folder} holds an SDEModel; read it with SDEModel.load(folder, sde=...)")
    return build(contents, net, sde, weights, autoencoder)


def build(
    contents: Contents,
    net: Callable[..., Tensor] | None = None,
    sde: GaussianSDE | None = None,
    weights: str | None = None,
    autoencoder: Coder | None = None,
) -> ScoreModel:
    """Return the model of a checkpoint's contents, in evaluation mode."""
    config = contents.document("model")
    document = contents.folder / contents.files["model"]
    part = "weights" if weights == "raw" or (weights is None and "ema" not in contents.parts) else "ema"
    trained, current = load_sdes(contents, sde)
    made = load_network(contents, part, net)
    moments = load_moments(contents)
    transform = _load_transform(contents, config["transform"], autoencoder)
    # Checkpoints of the first versions do not name it.
    variance = config.get("variance", "fixed")
    inner = None if isinstance(made, Gradient) else made
    check_event(inner, moments, transform, learned=variance == "learned", where=str(document))
    with blame(document):
        if isinstance(made, Gradient):
            model: ScoreModel = EnergyModel(made.net, trained, moments=moments, transform=transform)
        elif isinstance(cast(SDE, trained), LinearSDE):
            model = LinearModel(
                made,
                cast(LinearSDE, trained),
                predicts=config["predicts"],
                condition_on=config["condition_on"],
                sigma_data=config["sigma_data"],
                moments=moments,
                transform=transform,
                drop=config["linear"]["drop"],
                basis=_load_transform(contents, config["linear"]["basis"], None),
            )
        else:
            model = ScoreModel(
                made,
                trained,
                predicts=replace(PARAMETERIZATIONS[config["predicts"]], sigma_data=config["sigma_data"]),
                condition_on=config["condition_on"],
                moments=moments,
                transform=transform,
                variance=variance,
            )
        model.dropout = config.get("dropout")
        names = config.get("class_names")
        model.class_names = None if names is None else {name: tuple(values) for name, values in names.items()}
        if "groups" in contents.parts:
            event = None if moments is None else tuple(moments.mean.shape)
            file = str(contents.folder / contents.files["groups"])
            model.groups = check_groups(contents.tensors("groups"), event, file)
        load_tables(model, contents)
        return (model if current is None else model.with_sde(current)).eval()


def network_to_dict(net: object) -> dict[str, object]:
    """Return a network's class name, with its config where it is one of ``scoresde.nn``'s; without its wrappers."""
    from scoresde.nn import NETWORKS

    inner = bare_network(net) if isinstance(net, nn.Module) else net
    if isinstance(inner, Gradient):
        return {**network_to_dict(inner.net), "energy": True}
    for name, known in NETWORKS.items():
        if plain_class(inner) is known:
            return {"kind": name, "config": dict(inner.config)}  # type: ignore[attr-defined]
    return {"kind": plain_class(inner).__name__, "config": None}


def load_network(contents: Contents, part: str, net: Callable[..., Tensor] | None) -> Callable[..., Tensor]:
    """Return the checkpoint's network, or ``net`` if given, with the weights of ``part``.

    Raises:
        CheckpointError: the network is not built in and none is given, or the weights do not fit.
    """
    from scoresde.nn import NETWORKS

    name = "sde_model" if "sde_model" in contents.documents else "model"
    config, stored = contents.document(name)["network"], contents.stored(part)
    kind, file = config["kind"], contents.folder / contents.files[part]
    document = contents.folder / contents.files[name]
    if net is None:
        if config["config"] is None:
            what = "the energy network" if config.get("energy") else "your own network"
            raise CheckpointError(
                f"{document} is of the weights of {what} {kind}, which JSON cannot rebuild (network.config is null); "
                f"build it and pass it: ScoreModel.load(folder, net={kind}(...))"
            )
        if kind not in NETWORKS:
            raise CheckpointError(f"{document}: {unknown('network.kind', kind, NETWORKS)}; update scoresde")
        net = build_network(NETWORKS[kind], config["config"], stored, f"{document}: network.config")
    if config.get("energy") and not isinstance(net, Gradient):
        net = Gradient(net)
    if isinstance(net, nn.Module):
        _check_weights(net, stored.described, file)
        load_weights(net, stored.load(network_state(net)), file)
    elif stored.described:
        count = len(stored.described)
        raise CheckpointError(f"{file} holds {count} tensors; net must be a torch.nn.Module, got {show(net)}")
    return net


def _load_transform(contents: Contents, config: dict[str, Any] | None, given: Coder | None) -> Transform | None:
    """Return a checkpoint's transform; that of a latent model with its own autoencoder, or with ``given``.

    Raises:
        CheckpointError: an autoencoder of the user's own that is not given, or one whose weights do not fit.
        ConfigError: one is given, and the model has none.
    """
    if config is None or config["kind"] != "Latent":
        if given is not None:
            raise ConfigError(f"{contents.folder} holds a model without an autoencoder; leave autoencoder= out")
        return None if config is None else transform_from_dict(config)
    how, document = config["autoencoder"], contents.folder / contents.files["model"]
    file = contents.files.get("autoencoder", "")
    # The file is named by its digest, which the document repeats.
    if file and f"-{config['weights'][:16]}." not in file:
        raise CheckpointError(f"{document}: transform.weights is not the digest of {file}; take another copy")
    if how["config"] is not None and how["kind"] != "Autoencoder":
        raise CheckpointError(f"{document}: {unknown('transform.autoencoder.kind', how['kind'], ['Autoencoder'])}")
    if given is None:
        if how["config"] is None:
            raise CheckpointError(
                f"{document} was made with your own autoencoder {how['kind']}, which JSON cannot rebuild "
                "(transform.autoencoder.config is null); build it and pass it: "
                f"ScoreModel.load(folder, autoencoder={how['kind']}(...))"
            )
        from scoresde.nn.autoencoder import Autoencoder

        where = f"{document}: transform.autoencoder.config"
        built = build_network(Autoencoder, how["config"], contents.stored("autoencoder"), where)
        assert isinstance(built, Autoencoder)
        given = built
    weights = contents.tensors("autoencoder") if "autoencoder" in contents.parts else {}
    if isinstance(given, nn.Module):
        load_weights(given, weights, contents.folder / (file or "autoencoder"))
    elif weights:
        raise CheckpointError(f"{contents.folder} holds an autoencoder of {len(weights)} tensors, got {show(given)}")
    return Latent(given, None if config["then"] is None else transform_from_dict(config["then"]))


def load_weights(net: nn.Module, weights: Mapping[str, Tensor], file: Path) -> None:
    """Copy weights into a network, which may stand in wrappers, all or none.

    Raises:
        CheckpointError: keys that are missing or unexpected, or a tensor of another shape or type, all listed; values
            of a parameter that are not finite. ConfigError: the network is on the meta device.
    """
    _check_weights(net, {key: (tuple(value.shape), value.dtype) for key, value in weights.items()}, file)
    if any(value.is_meta for value in network_state(net).values()):
        raise ConfigError(
            f"{type(bare_network(net)).__name__} is on the meta device, which holds no values",
            cure="give it memory first, net.to_empty(device='cpu')",
        )
    names = plain_names(net)
    # A buffer may hold what it likes, a mask of infinities say.
    for name, _ in net.named_parameters(remove_duplicate=False):
        plain = names.get(name, name)
        values = local_rows(weights.get(plain, torch.zeros(0, dtype=torch.float32, device="cpu")))
        bad = int((~torch.isfinite(values)).sum())
        if bad:
            raise CheckpointError(
                f"{file}: {plain} has {bad} values of {values.numel()} that are not finite: the training "
                "diverged, or the file was changed; take another checkpoint"
            )
    with torch.no_grad():
        for key, tensor in network_state(net).items():
            tensor.copy_(weights[key])


def _check_weights(net: nn.Module, described: Mapping[str, Described], file: Path) -> None:
    """Raise CheckpointError unless a network has tensors of these names, shapes and types."""
    wrong = list_misfits(network_state(net), described)
    if wrong:
        raise CheckpointError(
            f"{file} does not fit the network {type(bare_network(net)).__name__}: {wrong}; "
            "build the network with the options it was saved with"
        )


def sde_to_document(sde: GaussianSDE) -> dict[str, object]:
    """Return a built-in SDE's description, or the class name of your own."""
    try:
        return sde_to_dict(sde)
    except ConfigError:
        return {"kind": None, "class": type(sde).__name__}


def build_sde(document: dict[str, Any]) -> GaussianSDE:
    """Rebuild a built-in SDE, scalar or linear."""
    return cast(GaussianSDE, linear_from_dict(document)) if document["kind"] in LINEAR else sde_from_dict(document)


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
            f"{contents.folder} was made with {build_sde(trained)}, got sde={show(given)}; "
            "leave sde out, and use the model's with_sde to sample under another"
        )

    def build(document: dict[str, Any]) -> GaussianSDE:
        return given if given is not None and document["kind"] is None else build_sde(document)

    return build(trained), None if current is None else build(current)


def moments_to_tensors(moments: Moments) -> dict[str, Tensor]:
    """Return the tensors of ``moments`` by name."""
    tensors = {"mean": moments.mean, "variance": moments.variance}
    return tensors if moments.basis is None else {**tensors, "basis": moments.basis}


def load_moments(contents: Contents) -> Moments | None:
    """Return the moments of the data, checked; None where the checkpoint has none."""
    if "moments" not in contents.parts:
        return None
    return check_moments(contents.tensors("moments"), str(contents.folder / contents.files["moments"]))
