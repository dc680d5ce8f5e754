"""Every event shape, trained, saved, loaded and sampled: points, series, images and volumes under three diffusions.

The data are Gaussian with a known mean and known independent coordinates, so the samples' mean has a known target. A
network that only scales its coordinates holds the exact noise prediction, so that training can reach it.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scoresde import (
    VESDE,
    VPSDE,
    GaussianModel,
    GaussianSDE,
    Langevin,
    ProbabilityFlow,
    RectifiedFlow,
    ScoreModel,
    denoising_score_matching,
    fit,
    sample,
)
from scoresde.noise import normal, stream

EVENTS: list[tuple[int, ...]] = [(), (3,), (2, 4), (3, 2, 2), (2, 2, 2, 2)]
STD = 0.5
SDES: dict[str, GaussianSDE] = {"vp": VPSDE(t_min=1e-3), "ve": VESDE(sigma_max=20.0), "flow": RectifiedFlow(t_min=1e-3)}
SAMPLERS: dict[str, dict[str, object]] = {
    "table": {"solver": "dpmpp_2m", "steps": 8},
    "stochastic": {"solver": "dpmpp_2m_sde", "steps": 16},
    "adaptive": {"solver": ProbabilityFlow(rtol=1e-2, atol=1e-2)},
    "Langevin": {"solver": "ddim", "steps": 8, "kernels": [Langevin(snr=0.05)]},
}


class Pointwise(nn.Module):
    """Each coordinate alone: a x + b, with a and b a line in a few functions of log_snr."""

    def __init__(self, event: tuple[int, ...]) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(6))
        self.shift = nn.Parameter(torch.zeros(*event, 6))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        centres = torch.linspace(-6, 6, 5).to(c_noise)
        features = torch.cat([torch.ones_like(c_noise)[:, None], torch.sigmoid(c_noise[:, None] - centres)], 1).to(x)
        slope = (features @ self.slope).reshape(-1, *(1,) * (x.ndim - 1))
        return slope * x + torch.tensordot(features, self.shift, ([1], [self.shift.ndim - 1]))


def mean_of(event: tuple[int, ...]) -> Tensor:
    return torch.linspace(-1, 1, math.prod(event)).reshape(event) + 0.5


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_an_event_shape_is_trained_saved_loaded_and_sampled(tmp_path: Path, event: tuple[int, ...], name: str) -> None:
    sde, mean = SDES[name], mean_of(event)
    data = mean + STD * normal((2048, *event), stream(0, "data"))
    model = ScoreModel(Pointwise(event), sde, predicts="v")
    trained = fit(model, data, steps=120, batch_size=256, learning_rate=0.1, ema_decay=0.9, progress=False).model

    # On fresh data the loss lies just above the exact model's, far below that of a network that says 0.
    exact = GaussianModel(sde=sde, mean=mean, covariance=torch.full(event, STD**2))
    fresh = mean + STD * normal((2048, *event), stream(1, "data"))
    reached, best, silent = (
        float(
            denoising_score_matching(m, fresh, weight="simple", times="low_discrepancy", generator=stream(2))
            .detach()
            .mean()
        )
        for m in (trained, exact, ScoreModel(lambda x, c: 0 * x, sde, predicts="v"))
    )
    assert best * 0.98 < reached < best + 0.1 * (silent - best)

    trained.save(tmp_path / "model")
    loaded = ScoreModel.load(tmp_path / "model", net=Pointwise(event))
    count = 200
    for sampler in SAMPLERS.values():
        before, after = (sample(m, (16, *event), seed=4, **sampler) for m in (trained, loaded))
        assert torch.equal(before, after)
        x = sample(loaded, (count, *event), seed=3, **sampler)
        assert x.shape == (count, *event)
        assert float((x.mean(0) - mean).abs().max()) < 5 * STD / math.sqrt(count)
        # Few steps make the spread too small; the exact model's, from the same noise, shares that.
        ideal = sample(exact, (count, *event), seed=3, **sampler)
        assert float((x - mean).std()) == pytest.approx(float((ideal - mean).std()), rel=0.2)
