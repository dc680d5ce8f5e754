"""Models of diffusers in the command line: a folder that a pipeline's ``save_pretrained`` wrote serves as a checkpoint.

Its samples are images in [-1, 1], as diffusers has them, or the latents of a decoder that is not applied here. Their
shape and the number of classes are those of the network's configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from scoresde.errors.kinds import ConfigError
from scoresde.models.adapters import Adapted
from scoresde.models.diffusers_files import count_classes, from_diffusers, is_of_diffusers, read_event
from scoresde.models.networks import describe_network
from scoresde.models.score_model import ScoreModel

__all__ = ["Foreign", "describe_foreign", "find_network", "open_foreign"]

TOLD_MORE = "UNet2DConditionModel"
DECODERS = ("vae", "vqvae")


@dataclass(frozen=True, eq=False)
class Foreign:
    """A model of diffusers.

    Args:
        model: ready to sample.
        event: the shape of one sample.
        classes: the number of class labels; None without.
        latents: whether a decoder makes images of the samples.
    """

    model: ScoreModel
    event: tuple[int, ...]
    classes: int | None
    latents: bool


def find_network(model: ScoreModel) -> object:
    """Return a model's network, of one that is adapted the other library's."""
    return model.net.net if isinstance(model.net, Adapted) else model.net


def open_foreign(folder: Path) -> Foreign | None:
    """Read the model of a folder of diffusers; None where the folder is none.

    Raises:
        CheckpointError, ConfigError: what ``from_diffusers`` raises; a network that is told more than labels, or whose
            configuration does not say the shape of a sample.
    """
    if not (folder.is_dir() and is_of_diffusers(folder)):
        return None
    model = from_diffusers(folder)
    network = find_network(model)
    if type(network).__name__ == TOLD_MORE:
        raise ConfigError(
            f"{folder} holds a {TOLD_MORE}, which is told of a text; the command line has none to tell: in Python, "
            'sample(from_diffusers(folder), ..., cond={"encoder_hidden_states": ...})'
        )
    latents = any((folder / part).is_dir() for part in DECODERS)
    return Foreign(model, read_event(network), count_classes(network), latents)


def describe_foreign(folder: Path, found: Foreign) -> list[str]:
    """Say what a folder of diffusers holds, a line each."""
    network, model = find_network(found.model), found.model
    types = sorted({str(one.dtype).removeprefix("torch.") for one in model.parameters()})
    sizes = f"of shape {found.event}"
    return [
        f"diffusers    {folder}/",
        f"network      {describe_network(network) if isinstance(network, nn.Module) else network}",
        f"weights      {sum(one.numel() for one in model.parameters())} of {', '.join(types)}",
        f"sde          {model.sde}",
        f"predicts     {model.parameterization.name}, variance {model.variance}",
        f"makes        {f'latents {sizes}, for a decoder' if found.latents else f'samples {sizes}'}",
        f"classes      {'none' if found.classes is None else found.classes}",
    ]
