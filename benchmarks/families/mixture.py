"""A Gaussian mixture with full covariances, the document's reference for what needs no network.

It is fitted by scikit-learn to levels spread over their bins, x = k + u with u uniform on [0, 1). The probability of a
level is the density's integral over its bin, P(k) = E_u p(k + u): the log of a mean over draws of u is a lower bound of
its log.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from families.common import LEVELS, SIDE, Split
from sklearn.mixture import GaussianMixture
from torch import Tensor

__all__ = ["Mixture", "fit"]

DRAWS = 16


class Mixture:
    """A fitted mixture."""

    kind = "bound"

    def __init__(self, mixture: GaussianMixture) -> None:
        self.mixture = mixture
        k, size = mixture.means_.shape
        self.size = k * size + k * size * (size + 1) // 2 + k - 1

    def log_prob(self, levels: Tensor, draws: int = DRAWS) -> Mapping[str, Tensor]:
        """Return log mean_u p(k + u), (N,)."""
        flat = levels.reshape(len(levels), -1).double()
        spread = [(flat + torch.rand_like(flat)).numpy() for _ in range(draws)]
        values = torch.stack([torch.from_numpy(self.mixture.score_samples(x)) for x in spread])
        return {"value": torch.logsumexp(values, 0) - math.log(draws)}

    def sample(self, n: int) -> Tensor:
        """Return n images as levels."""
        x, _ = self.mixture.sample(n)
        # They come component by component.
        return torch.from_numpy(x)[torch.randperm(n)].floor().clamp(0, LEVELS - 1).long().reshape(n, SIDE, SIDE)


def fit(split: Split, *, quick: bool = False) -> Mixture:
    """Fit mixtures and take the number of components and the ridge that suit the images to choose by."""
    flat = split.train.reshape(len(split.train), -1).double()
    spread = torch.cat([flat + torch.rand_like(flat) for _ in range(1 if quick else 4)]).numpy()
    best: tuple[float, Mixture] | None = None
    for components in (2,) if quick else (5, 10, 20, 40):
        for ridge in (0.1,) if quick else (0.1, 0.5, 1.5):
            made = GaussianMixture(components, reg_covar=ridge, random_state=0, max_iter=60).fit(spread)
            found = Mixture(made)
            value = float(found.log_prob(split.valid, draws=4)["value"].mean())
            if best is None or value > best[0]:
                best = value, found
    assert best is not None
    return best[1]
