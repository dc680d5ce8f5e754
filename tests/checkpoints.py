"""Models to save, and what to compare of them afterwards."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from scoresde import VPSDE, Affine, Moments, ScoreModel
from scoresde.nn import MLP
from scoresde.noise import normal, stream


def filled(net: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter a value that is not its first one."""
    with torch.no_grad():
        for k, parameter in enumerate(net.parameters()):
            parameter.copy_(0.1 * normal(parameter.shape, stream(seed, k)))
    return net


def small(seed: int = 0, **options: object) -> ScoreModel:
    data = normal((64, 3), stream(9)) * 2 + 1
    options = {"moments": Moments.of(data), "transform": Affine((1.0, 0.1, -2.0), 3.0), **options}
    return ScoreModel(filled(MLP(3, width=8, depth=1), seed), VPSDE(beta_max=12.3), predicts="v", **options)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def files(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir()}


class Own(nn.Module):
    def __init__(self, size: int = 3, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.1, 0.7, size, dtype=dtype))
        self.register_buffer("shift", torch.full((size,), 0.25))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.scale * x + self.shift
