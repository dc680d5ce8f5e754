"""Networks: net(x, c_noise, **conditions) -> a tensor of x's shape and dtype, for a ``ScoreModel``.

Each has a ``config``, the constructor's arguments as JSON-able values, and ``NETWORKS[name](**config)`` makes it again.
Any other ``torch.nn.Module`` of that call serves a ``ScoreModel`` as well. ``Autoencoder`` gives the codes in which one
may be trained (``scoresde.Latent``).
"""

from __future__ import annotations

from typing import Final

from scoresde.nn.autoencoder import Autoencoder
from scoresde.nn.conditions import drop_conditions, drop_labels
from scoresde.nn.mlp import MLP
from scoresde.nn.unet import UNet

__all__ = ["MLP", "NETWORKS", "Autoencoder", "UNet", "drop_conditions", "drop_labels"]

NETWORKS: Final[dict[str, type[MLP] | type[UNet]]] = {"MLP": MLP, "UNet": UNet}
