"""Models of diffusers, from files on disk: the network and what its scheduler says of the diffusion."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from scoresde.diffusions.levels import RectifiedFlow
from scoresde.errors import CheckpointError, ConfigError, check_choice, check_path, unknown
from scoresde.models.adapters import Adapted, Index, Scale, sde_of_betas
from scoresde.models.parameterization import Predicts
from scoresde.models.score_model import ScoreModel

__all__ = ["from_diffusers", "read_betas"]

# Classes of diffusers that are built, by the name in a file; nothing else is looked up.
CLASSES = ("DiTTransformer2DModel", "UNet1DModel", "UNet2DConditionModel", "UNet2DModel")
KINDS: Final[Mapping[str, Predicts]] = {"epsilon": "noise", "sample": "data", "v_prediction": "v"}
FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
LABELS = "class_labels"  # what diffusers calls the label
SCHEDULER = "scheduler_config.json"


def read_betas(config: Mapping[str, Any]) -> Tensor:
    """Return the betas (n,) of a scheduler's configuration in diffusers, in float64.

    Raises:
        ConfigError: an unknown schedule.
    """
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
    if not root.is_dir():
        raise CheckpointError(f"{root} is no folder of diffusers; save_pretrained of a pipeline makes one")
    home = next((root / part for part in ("unet", "transformer") if (root / part).is_dir()), root)
    scheduler = _read(next((p for p in (root / "scheduler", root) if (p / SCHEDULER).is_file()), root) / SCHEDULER)
    network = _load_network(home) if net is None else net
    kind = str(scheduler.get("_class_name"))
    names = {"label": LABELS}
    if kind in FLOWS:
        n = int(scheduler.get("num_train_timesteps", 1000))
        told = Adapted(network, Scale(n), names=names)
        return ScoreModel.from_callable(told, RectifiedFlow(), predicts="velocity")
    if "prediction_type" not in scheduler and "beta_schedule" not in scheduler and "trained_betas" not in scheduler:
        raise ConfigError(f"{root} has a scheduler {kind!r} of another kind than betas or flow matching; see adapt()")
    predicts = scheduler.get("prediction_type", "epsilon")
    check_choice("prediction_type", predicts, KINDS)
    sde = sde_of_betas(read_betas(scheduler))
    told = Adapted(network, Index(len(sde.knots), whole=False), names=names)
    return ScoreModel(
        told,
        sde,
        predicts=KINDS[predicts],
        condition_on="time",
        variance="learned" if _has_twice(network) else "fixed",
    )


def _has_twice(network: nn.Module) -> bool:
    """Return whether a network answers with two channels for each that it takes."""
    config = getattr(network, "config", None)
    if not isinstance(config, Mapping) or not config.get("in_channels"):
        return False
    return bool(config.get("out_channels") == 2 * config["in_channels"])


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); save_pretrained of diffusers writes it") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object; save_pretrained of diffusers writes one")
    return value


def _load_network(home: Path) -> nn.Module:
    """Return the network of a folder of diffusers', in evaluation mode."""
    kind = str(_read(home / "config.json").get("_class_name"))
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
    try:
        made: nn.Module = getattr(diffusers, kind).from_pretrained(home, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise CheckpointError(f"{home} cannot be loaded by diffusers: {said}") from error
    return made.eval()
