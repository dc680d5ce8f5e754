"""A network with a learned variance, chains and data, for the tests of the objectives on a chain."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scoresde import DDPM, SMLD, VPSDE, ScoreModel
from scoresde.chains.base import Chain
from scoresde.noise import normal, stream

F64 = torch.float64
CHAINS: dict[str, Chain] = {
    "ddpm": DDPM.cosine(12),
    "smld": SMLD.geometric(9, sigma_max=8.0),
    "one": DDPM.linear(1, beta_end=0.3),
}
X0, Z = normal((7, 2, 3), stream(0), dtype=F64), normal((7, 2, 3), stream(1), dtype=F64)


class Wide(nn.Module):
    """F = a tanh(x + c/10) and u = b sin(3 x), with a parameter each."""

    def __init__(self, dtype: torch.dtype = F64) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.tensor(value, dtype=dtype)) for value in (0.8, 0.7))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        f = self.a * torch.tanh(x + 0.1 * c_noise.reshape(-1, *(1,) * (x.ndim - 1)))
        return torch.cat([f, self.b * torch.sin(3 * x)], 1)


def wide(chain: Chain, predicts: str = "noise") -> ScoreModel:
    sde = chain.sde() if len(chain) > 1 else VPSDE()
    return ScoreModel(Wide(), sde, predicts=predicts, variance="learned")


def some(chain: Chain) -> Tensor:
    return torch.arange(7) % len(chain)
