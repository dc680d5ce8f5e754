"""Training without a word on weight and times learns, where one loss for all predictions did not."""

from __future__ import annotations

import pytest
import torch

from scoresde import EDMSDE, GaussianMixtureModel, GaussianSDE, RectifiedFlow, ScoreModel, SubVPSDE, fit, sample
from scoresde.nn import MLP
from scoresde.noise import stream


@pytest.mark.parametrize(
    ("sde", "predicts"),
    [(SubVPSDE(), "data"), (RectifiedFlow(), "data"), (EDMSDE(), "v")],
    ids=str,
)
def test_a_mixture_is_learned(sde: GaussianSDE, predicts: str) -> None:
    means = torch.tensor([[-1.2], [0.6]])
    exact = GaussianMixtureModel(sde=sde, weights=torch.tensor([0.35, 0.65]), means=means, std=0.2)
    model = ScoreModel(MLP(1, width=64, depth=2), sde, predicts=predicts)
    data = exact.sample_data(10_000, stream(0, "data"))
    trained = fit(model, data, steps=400, batch_size=128, learning_rate=3e-3, ema_decay=0.99, progress=False).model
    x, y = sample(trained, (2000, 1), steps=20, seed=0), exact.sample_data(2000, stream(0, "fresh"))
    assert float((x.sort(0).values - y.sort(0).values).abs().mean()) < 0.13
