"""One condition for many samples stands for all of them; data need one each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scoresde import VPSDE, ScoreModel, ShapeError, denoising_score_matching, encode, fit, sample
from scoresde.nn import MLP, UNet
from scoresde.noise import normal, stream

NET = MLP(2, width=8, depth=1, classes=5, context_features=3, seed=1)
for p in NET.parameters():
    torch.nn.init.normal_(p, std=0.3, generator=stream(2))
MODEL = ScoreModel(NET, VPSDE())
X = normal((6, 2), stream(0))


@pytest.mark.parametrize("label", [3, np.int64(3), torch.tensor(3), torch.tensor([3]), np.array(3), np.array([3])])
def test_a_label_for_all(label: object) -> None:
    context = torch.tensor([[0.1, 0.2, 0.3]])
    every = {"label": torch.full((6,), 3), "context": context.expand(6, 3)}
    one = {"label": label, "context": context}
    assert torch.equal(MODEL(X, 0.5, cond=one).data, MODEL(X, 0.5, cond=every).data)
    drawn = [sample(MODEL, (6, 2), steps=4, seed=0, cond=cond) for cond in (one, every)]
    assert torch.equal(*drawn)
    parts = sample(MODEL, (6, 2), steps=4, seed=0, cond=one, chunk_size=4)
    torch.testing.assert_close(parts, drawn[0])
    assert torch.equal(encode(MODEL, X, cond=one), encode(MODEL, X, cond=every))


def test_an_image_beside_all() -> None:
    model = ScoreModel(UNet(1, width=8, multipliers=(1,), concat_channels=1), VPSDE())
    beside = normal((1, 1, 4, 4), stream(1))
    one = sample(model, (3, 1, 4, 4), steps=2, seed=0, cond={"concat": beside})
    every = sample(model, (3, 1, 4, 4), steps=2, seed=0, cond={"concat": beside.expand(3, 1, 4, 4)})
    assert torch.equal(one, every)


def test_data_need_one_each() -> None:
    cond = {"label": torch.tensor([3])}
    with pytest.raises(ShapeError, match=r"cond\['label'\] must have a first dimension of 6, got shape \(1,\)"):
        fit(MODEL, X, steps=1, cond=cond, progress=False)
    with pytest.raises(ShapeError, match="a first dimension of 6, got shape"):
        denoising_score_matching(MODEL, X, cond=cond, generator=stream(0))
    with pytest.raises(ShapeError, match=r"a first dimension of 6 \(or 1, for all\), got shape \(4,\)"):
        sample(MODEL, (6, 2), steps=2, cond={"label": torch.zeros(4, dtype=torch.long)})
