"""Networks: net(x, c_noise, **conditions) -> a tensor of x's shape and dtype, for a ``ScoreModel``.

Each has a ``config``, the constructor's arguments as JSON-able values, and ``NETWORKS[name](**config)`` makes it again.
``SIZES[name]`` has options by name, small to large, and ``count`` says what a network costs. Any other
``torch.nn.Module`` of that call serves a ``ScoreModel`` as well. ``Autoencoder`` gives the
codes in which one may be trained (``scoresde.Latent``).
"""

from __future__ import annotations

from typing import Final

from scoresde.nn.autoencoder import Autoencoder
from scoresde.nn.conditions import drop_conditions, drop_labels
from scoresde.nn.dit import DiT
from scoresde.nn.equivariant import EGNN
from scoresde.nn.magnitude_unet import MagnitudeUNet
from scoresde.nn.mlp import MLP
from scoresde.nn.sizes import SIZES, count
from scoresde.nn.unet import UNet

__all__ = [
    "EGNN",
    "MLP",
    "NETWORKS",
    "SIZES",
    "Autoencoder",
    "DiT",
    "MagnitudeUNet",
    "UNet",
    "count",
    "drop_conditions",
    "drop_labels",
]

NETWORKS: Final[dict[str, type[MLP] | type[UNet] | type[MagnitudeUNet] | type[DiT] | type[EGNN]]] = {
    "MLP": MLP,
    "UNet": UNet,
    "MagnitudeUNet": MagnitudeUNet,
    "DiT": DiT,
    "EGNN": EGNN,
}
