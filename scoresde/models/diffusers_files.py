"""Models of diffusers, from files on disk: the network, what its scheduler says of the diffusion, and its samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from scoresde.diffusions.levels import RectifiedFlow
from scoresde.errors.kinds import CheckpointError, ConfigError, DTypeError, ScoreSDEError, show
from scoresde.errors.names import check_choice, unknown
from scoresde.errors.values import check_path
from scoresde.models.adapters import Adapted, Index, Scale, sde_of_betas
from scoresde.models.declared import Watch
from scoresde.models.parameterization import Predicts
from scoresde.models.schema import Check, boolean, either, integer, listing, number, optional, record, text
from scoresde.models.score_model import ScoreModel
from scoresde.models.stored import StoredFile, StoredTensors, parse_json, read_json_file

__all__ = ["count_classes", "from_diffusers", "is_of_diffusers", "read_betas", "read_event"]

# Classes of diffusers that are built, by the name in a file; nothing else is looked up.
CLASSES = ("DiTTransformer2DModel", "UNet1DModel", "UNet2DConditionModel", "UNet2DModel")
KINDS: Final[Mapping[str, Predicts]] = {"epsilon": "noise", "sample": "data", "v_prediction": "v"}
FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
LABELS = "class_labels"  # what diffusers calls the label
SCHEDULER, NETWORK, PIPELINE = "scheduler_config.json", "config.json", "model_index.json"
WEIGHTS, PICKLED = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"
PARTS = ("unet", "transformer")
MOST_INDICES, LISTED = 10**6, 5
WRITES = "save_pretrained of diffusers writes it"
# What is read of a configuration, and what diffusers lets stand there; the rest is diffusers' own.
BETAS = record(
    {},
    {
        "_class_name": text,
        "num_train_timesteps": integer(2, MOST_INDICES),
        "beta_start": number(0.0, 1.0),
        "beta_end": number(0.0, 1.0),
        "beta_schedule": text,
        "trained_betas": optional(listing(number(0.0, 1.0), 2, MOST_INDICES)),
        "rescale_betas_zero_snr": optional(boolean),
        "prediction_type": text,
    },
    more=True,
)
COUNT = optional(integer(1, 10**9))
NETWORK_FIELDS = record(
    {},
    {
        "_class_name": text,
        "in_channels": COUNT,
        "out_channels": COUNT,
        "sample_size": either(NoneType=COUNT, int=COUNT, list=listing(integer(1, 10**9), 1, 3)),
        "num_class_embeds": COUNT,
        "num_embeds_ada_norm": COUNT,
    },
    more=True,
)


def read_betas(config: Mapping[str, Any]) -> Tensor:
    """Return the betas (n,) of a scheduler's configuration in diffusers, in float64.

    Raises:
        ConfigError, DTypeError, DomainError: an unknown schedule, or a field of another kind or range.
    """
    BETAS({**config, "trained_betas": _as_list(config.get("trained_betas"))}, "")
    n = int(config.get("num_train_timesteps", 1000))
    start, end = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    schedule = config.get("beta_schedule", "linear")
    given = config.get("trained_betas")
    if given is not None:
        betas = torch.tensor(given, dtype=torch.float64, device="cpu")
    elif schedule == "linear":
        betas = torch.linspace(start, end, n, dtype=torch.float64, device="cpu")
    elif schedule == "scaled_linear":
        betas = torch.linspace(math.sqrt(start), math.sqrt(end), n, dtype=torch.float64, device="cpu").square()
    elif schedule == "sigmoid":
        betas = torch.linspace(-6, 6, n, dtype=torch.float64, device="cpu").sigmoid() * (end - start) + start
    elif schedule == "squaredcos_cap_v2":
        angle = (torch.arange(n + 1, dtype=torch.float64, device="cpu") / n + 0.008) / 1.008 * (math.pi / 2)
        bars = angle.cos().square()
        betas = (1 - bars[1:] / bars[:-1]).clamp_max(0.999)
    else:
        raise unknown("beta_schedule", schedule, ("linear", "scaled_linear", "sigmoid", "squaredcos_cap_v2"))
    return _rescale(betas) if config.get("rescale_betas_zero_snr") else betas


def _as_list(values: object) -> object:
    return list(values) if isinstance(values, tuple | np.ndarray) else values


def _rescale(betas: Tensor) -> Tensor:
    """Return betas whose last alpha is 0 and whose first is as it was (Lin et al. 2024, algorithm 1)."""
    alpha = torch.log1p(-betas).cumsum(0).mul(0.5).exp()
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    squares = alpha.square()
    return 1 - torch.cat([squares[:1], squares[1:] / squares[:-1]])


def from_diffusers(folder: str | Path, *, net: nn.Module | None = None) -> ScoreModel:
    """Return the model of a pipeline that diffusers saved, from its files on disk; weights are safetensors alone.

    The folder is a pipeline's (``unet/`` or ``transformer/``, and ``scheduler/``), or a model's with the scheduler's
    configuration beside its own. The betas and what is predicted are the scheduler's; its clipping
    of the data prediction is not taken over (``scoresde.guidance.Clamp(model)`` does that).

    Args:
        folder: where it was saved.
        net: the network with its weights, where it is one of your own; then only the scheduler is read.

    Raises:
        CheckpointError: no such folder or files, or a class that is not built here. ConfigError: diffusers is missing,
            a scheduler that is not known.
    """
    root = check_path(folder, "folder")
    if net is not None and not callable(net):
        raise DTypeError(f"net must be a network, net(x, time) -> a tensor of x's shape, got {show(net)}")
    if not root.is_dir():
        raise CheckpointError(f"{root} is no folder of diffusers; save_pretrained of a pipeline makes one")
    home = next((root / part for part in PARTS if (root / part).is_dir()), root)
    if net is None and not (home / NETWORK).is_file():
        raise CheckpointError(
            f"{root} holds no network: no unet/, no transformer/ and no {NETWORK}; name a folder that save_pretrained "
            "of a pipeline wrote, or pass net="
        )
    place = next((p for p in (root / "scheduler", root) if (p / SCHEDULER).is_file()), root)
    scheduler = _read(place / SCHEDULER, BETAS)
    network = _load_network(home) if net is None else net
    kind = str(scheduler.get("_class_name"))
    names, nulls = {"label": LABELS}, _find_null(network)
    if kind in FLOWS:
        n = int(scheduler.get("num_train_timesteps", 1000))
        told = Adapted(network, Scale(n), names=names, nulls=nulls)
        return ScoreModel.from_callable(told, RectifiedFlow(), predicts="velocity")
    if "prediction_type" not in scheduler and "beta_schedule" not in scheduler and "trained_betas" not in scheduler:
        raise ConfigError(f"{root} has a scheduler {kind!r} of another kind than betas or flow matching; see adapt()")
    predicts = scheduler.get("prediction_type", "epsilon")
    check_choice("prediction_type", predicts, KINDS)
    sde = sde_of_betas(read_betas(scheduler))
    told = Adapted(network, Index(len(sde.knots), whole=False), names=names, nulls=nulls)
    return ScoreModel(
        told,
        sde,
        predicts=KINDS[predicts],
        condition_on="time",
        variance="learned" if _has_twice(network) else "fixed",
    )


def is_of_diffusers(folder: Path) -> bool:
    """Return whether a folder looks like one that ``save_pretrained`` of a pipeline, a network or a scheduler wrote."""
    parts = (folder / name for name in (*PARTS, "scheduler"))
    return any((folder / name).is_file() for name in (PIPELINE, SCHEDULER, NETWORK)) or any(
        one.is_dir() and any((one / name).is_file() for name in (NETWORK, SCHEDULER)) for one in parts
    )


def read_event(network: object) -> tuple[int, ...]:
    """Return the shape of one sample of a network of diffusers, channels first.

    Raises:
        ConfigError: its configuration does not say.
    """
    config = _config_of(network)
    channels, size = config.get("in_channels"), config.get("sample_size")
    if not channels or not size:
        raise ConfigError(
            f"the configuration of {type(network).__name__} has in_channels {channels} and sample_size {size}, which "
            f'tell no shape of a sample; write both into its {NETWORK}, e.g. "sample_size": 32'
        )
    dims = 1 if config.get("_class_name") == "UNet1DModel" else 2
    sizes = [int(one) for one in size] if isinstance(size, list | tuple) else [int(size)] * dims
    if len(sizes) != dims:
        raise ConfigError(
            f"sample_size of {type(network).__name__} has {dims} sizes, got {size}; write them in {NETWORK}"
        )
    return (int(channels), *sizes)


def count_classes(network: object) -> int | None:
    """Return the number of class labels of a network of diffusers; None where it takes none that are counted."""
    config = _config_of(network)
    if config.get("class_embed_type") is not None:
        return None
    count = config.get("num_class_embeds", config.get("num_embeds_ada_norm"))
    return None if count is None else int(count)


def _config_of(network: object) -> Mapping[str, Any]:
    """Return the configuration of a network of diffusers', with the name of its class; empty for any other."""
    config = getattr(network, "config", None)
    return {**config, "_class_name": type(network).__name__} if isinstance(config, Mapping) else {}


def _find_null(network: object) -> dict[str, int]:
    """Return the label that stands for none: a transformer's table of labels has one row more than there are."""
    count = _config_of(network).get("num_embeds_ada_norm")
    return {} if count is None else {"label": int(count)}


def _has_twice(network: object) -> bool:
    """Return whether a network answers with two channels for each that it takes."""
    config = _config_of(network)
    return bool(config.get("in_channels")) and config.get("out_channels") == 2 * config["in_channels"]


def _read(path: Path, fields: Check) -> dict[str, Any]:
    """Return a configuration; CheckpointError where it is none, or a field that is read here is of another kind."""
    try:
        value = parse_json(read_json_file(path), path, infinite=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} cannot be read: it does not exist; {WRITES}") from error
    try:
        fields(value, "")
    except ScoreSDEError as error:
        raise CheckpointError(f"{path}: {error.with_cure(WRITES)}", parameter=error.parameter) from error
    return value


def _load_network(home: Path) -> nn.Module:
    """Return the network of a folder of diffusers', in evaluation mode."""
    config = _read(home / NETWORK, NETWORK_FIELDS)
    kind = str(config.get("_class_name"))
    if kind == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero":
        kind = "DiTTransformer2DModel"  # as it was called before it had a class of its own
    if kind not in CLASSES:
        raise CheckpointError(
            f"{home} holds a {kind!r}; built are {', '.join(CLASSES)}: build it and pass net=", parameter="net"
        )
    try:
        import diffusers
    except ImportError as error:
        raise ConfigError(
            "from_diffusers builds the network with diffusers; pip install diffusers, or pass net="
        ) from error
    stored = [StoredTensors(StoredFile(file)) for file in sorted(home.glob("*.safetensors"))]
    options = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    try:
        known = getattr(diffusers, kind)
        if stored:
            # Shapes without values first: a description of any size costs no memory.
            with torch.device("meta"), Watch(*stored):
                known.from_config({**config, "_class_name": kind})
        with torch.device("cpu"):
            made, found = known.from_pretrained(home, **options)
    except Exception as error:  # what a class makes of options that it was not written for is anything
        if (home / PICKLED).is_file() and not any(home.glob("*.safetensors*")):
            raise CheckpointError(
                f"{home / PICKLED} is a pickle, which is not loaded here; make safetensors of it: "
                f"scoresde convert {home / PICKLED} {home / WEIGHTS}"
            ) from error
        said = " ".join(str(error).split())
        raise CheckpointError(f"{home} cannot be loaded by diffusers: {said}") from error
    # diffusers draws what is missing, and goes on.
    for what in ("missing", "unexpected", "mismatched"):
        names = sorted(str(name) for name in found.get(f"{what}_keys", ()))
        if names:
            raise CheckpointError(
                f"{home} holds weights that are not its network's: {what} {', '.join(names[:LISTED])}"
                + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
                + "; take another copy, or build the network and pass net="
            )
    network: nn.Module = made.eval()
    for name, weight in network.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise CheckpointError(f"{home}: {name} has values that are not finite; take another copy")
    return network
