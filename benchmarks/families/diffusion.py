"""Score models under three diffusions and two weights, and the discrete DDPM on the same network.

Likelihoods are lower bounds of the levels' log probability, starting where half a bin is two standard deviations of the
noise: along the flow by dequantisation, in continuous time by the bound with a decoder of levels. The chain's bound is
that of its 200 steps, all of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from families.common import LEVELS, Split, count, to_images, to_levels
from torch import Tensor

from scoresde import (
    DDPM,
    VESDE,
    VPSDE,
    Dequantisation,
    GaussianSDE,
    LevelsDecoder,
    ProbabilityFlow,
    ScoreModel,
    SubVPSDE,
    continuous_elbo,
    fit,
    log_likelihood,
    sample,
    variational_bound,
)
from scoresde.nn import UNet

__all__ = ["SDES", "Chain", "Score", "fit_score"]

SDES: Mapping[str, GaussianSDE] = {"VP": VPSDE(), "sub-VP": SubVPSDE(), "VE": VESDE(sigma_max=10.0)}
STEPS = 200


class Score:
    """A score model; samples by 20 evaluations of the default solver."""

    kind = "bound"

    def __init__(self, model: ScoreModel, flows: int) -> None:
        self.model, self.flows = model, flows
        self.size = count(model)

    def log_prob(self, levels: Tensor) -> Mapping[str, Tensor]:
        """Return the flow's bound for the first ``flows`` images, spread over the classes, and the continuous bound."""
        x = to_images(levels)
        some = torch.linspace(0, len(x) - 1, min(self.flows, len(x))).long()
        decoder = Dequantisation(LEVELS)
        flow = log_likelihood(
            self.model, x[some], probes=8, draws=1, decoder=decoder, solver=ProbabilityFlow(1e-2, 1e-2)
        )
        start = self.model.sde.starting_at(decoder.choose_time(self.model.sde, None, x))
        bound = continuous_elbo(self.model, start, x, decoder=LevelsDecoder(LEVELS), samples=64)
        return {"value": -bound.per_sample, "flow": flow.values}

    def sample(self, n: int) -> Tensor:
        """Return n images as levels, the nearest to the samples."""
        return to_levels(sample(self.model, (n, 1, 8, 8), steps=20, seed=0).clamp(-1, 1))


class Chain:
    """The same network as a chain: DDPM's bound, and its ancestral sampler."""

    kind = "bound"

    def __init__(self, model: ScoreModel) -> None:
        self.model, self.chain = model, DDPM.from_sde(model.sde, STEPS)
        self.size = count(model)

    def log_prob(self, levels: Tensor) -> Mapping[str, Tensor]:
        """Return minus the variational bound."""
        decoder = LevelsDecoder(LEVELS)
        return {"value": -variational_bound(self.model, self.chain, to_images(levels), decoder=decoder).per_sample}

    def sample(self, n: int) -> Tensor:
        """Return n images as levels."""
        return to_levels(sample(self.model, (n, 1, 8, 8), solver=self.chain.ancestral(), seed=0).clamp(-1, 1))


def fit_score(split: Split, sde: GaussianSDE, weight: str, *, quick: bool = False) -> Score:
    """Train a U-Net with one weight of the loss; the likelihood weight takes times that share it."""
    times = "importance" if weight == "likelihood" else None
    options = {} if times is None else {"times": times}
    model = ScoreModel(UNet(1, width=16), sde, predicts="noise")
    trained = fit(
        model,
        to_images(split.train),
        weight=weight,
        steps=30 if quick else 2000,
        batch_size=64,
        learning_rate=2e-3,
        ema_decay=0.995,
        seed=0,
        **options,
    ).model
    return Score(trained, 8 if quick else 96)
