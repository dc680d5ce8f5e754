r"""What may be done to a data prediction: ``map_prediction(model, Clamp(-1, 1))``.

Both are published for images in [-1, 1], and change what is sampled: they are for networks whose prediction leaves the
range of the data, as guidance makes it do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.errors.values import keep_number
from scoresde.models.prediction import Prediction
from scoresde.ops import flat
from scoresde.transforms.base import keep_interval

__all__ = ["Clamp", "DynamicThreshold"]


@dataclass(frozen=True)
class Clamp:
    """Clamp the data prediction to [low, high], in the model's coordinates.

    Args:
        low: the least value.
        high: the largest value.

    Raises:
        DomainError: low is not below high.
    """

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        keep_interval(self)

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return the clamped data prediction."""
        return prediction.data.clamp(self.low, self.high)


@dataclass(frozen=True)
class DynamicThreshold:
    """Clamp each sample's data prediction to [-s, s] and divide it by s/limit, s a quantile of its moduli.

    s is at least ``limit``, so that a prediction inside [-limit, limit] stays (Saharia et al. 2022, arXiv:2205.11487).

    Args:
        quantile: in (0, 1].
        limit: the range of the data in the model's coordinates.

    Raises:
        DomainError: options out of range.
    """

    quantile: float = 0.995
    limit: float = 1.0

    def __post_init__(self) -> None:
        keep_number(self, "quantile", 0.0, 1.0, open_low=True)
        keep_number(self, "limit", 0.0, open_low=True)

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return the thresholded data prediction."""
        data = prediction.data
        values = flat(data).abs()
        # The smallest modulus that is at least as large as this share of them.
        place = max(1, min(values.shape[1], -int(-self.quantile * values.shape[1] // 1)))
        s = values.kthvalue(place, dim=1).values.clamp_min(self.limit).reshape(-1, *(1,) * (data.ndim - 1))
        return torch.minimum(torch.maximum(data, -s), s) * (self.limit / s)
