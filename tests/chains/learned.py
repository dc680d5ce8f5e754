"""Models that learn their variance."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from scoresde import (
    DDPM,
    VPSDE,
    ScoreModel,
    Tableau,
    sample,
)

F64 = torch.float64
X = torch.linspace(-1.5, 1.5, 12).reshape(4, 3)
TAPE = [torch.cos(3.0 * k + 2 * X) for k in range(40)]
CHAIN = DDPM.cosine(7)
Fraction = Callable[[Tensor, Tensor], Tensor]


class Wide(nn.Module):
    """A network F with a second half that says v(x, c_noise)."""

    def __init__(self, net: Callable[..., Tensor], fraction: Fraction) -> None:
        super().__init__()
        self.net, self.fraction = net, fraction

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        v = self.fraction(x, c_noise).expand_as(x)
        return torch.cat([self.net(x, c_noise), 2 * v - 1], 1)


def smooth(x: Tensor, c_noise: Tensor) -> Tensor:
    return torch.tanh(x + 0.1 * c_noise.reshape(-1, *(1,) * (x.ndim - 1)).to(x))


def constant(v: float) -> Fraction:
    return lambda x, c: torch.full_like(x, v)


def learned(fraction: Fraction, net: Callable[..., Tensor] = smooth, **options: object) -> ScoreModel:
    return ScoreModel(Wide(net, fraction), options.pop("sde", VPSDE()), variance="learned", **options)


def run(model: ScoreModel, table: Tableau, x: Tensor = X, **options: object) -> Tensor:
    out = sample(model, x_init=x, solver=table, final="sample", noise=[z.to(x) for z in TAPE], **options)
    assert isinstance(out, Tensor)
    return out
