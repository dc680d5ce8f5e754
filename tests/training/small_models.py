"""Small models, their data and their faults, for the tests of training."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from scoresde import VPSDE, GaussianModel, ScoreModel
from scoresde.nn import MLP
from scoresde.noise import stream

F64 = torch.float64
MEAN, COVARIANCE = torch.tensor([1.0, -0.5]), torch.tensor([[1.0, 0.6], [0.6, 0.5]])
EXACT = GaussianModel(sde=VPSDE(), mean=MEAN, covariance=COVARIANCE)
DATA = EXACT.sample_data(1000, stream(0, "data"))
QUIET = {"progress": False, "batch_size": 32, "learning_rate": 3e-3}


def tiny(**options: object) -> ScoreModel:
    return ScoreModel(MLP(2, width=16, depth=1), VPSDE(), **options)


def weights(model: ScoreModel | nn.Module) -> list[Tensor]:
    return [v.clone() for v in model.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Fails(nn.Module):
    """A network that answers NaN for some samples from call ``first`` to call ``last``."""

    def __init__(self, first: int, last: float = math.inf, where: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.inner, self.first, self.last, self.calls = MLP(2, width=16, depth=1), first, last, 0
        self.where = where or (lambda c_noise: c_noise < 100)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        self.calls += 1
        out = self.inner(x, c_noise)
        if self.first <= self.calls - 1 <= self.last:
            out = torch.where(self.where(c_noise)[:, None], math.nan, out)
        return out
