"""Networks that answer what they are told, and data, for the tests of the losses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from scoresde import GaussianSDE
from scoresde.noise import normal, stream

F32, F64 = torch.float32, torch.float64
BATCH, EVENT = 4, (3, 2)
X0, Z, DIRECTION = (normal((BATCH, *EVENT), stream(0, k), dtype=F64) for k in range(3))


class Says(nn.Module):
    """A network that answers what it is told, whatever it is asked, and keeps what it was asked."""

    def __init__(self, answer: Tensor | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Tensor) -> Tensor:
        self.asked = [x, c_noise, *cond.values()]
        return self.answer if isinstance(self.answer, Tensor) else self.answer(x)


class Flow(GaussianSDE):
    """alpha = 1 - t, sigma = t: no signal at t = 1."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return torch.as_tensor(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return 2 * (torch.log1p(-t) - t.log())


def column(c: Tensor) -> Tensor:
    return c.reshape(-1, *(1,) * len(EVENT))
