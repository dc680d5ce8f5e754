"""Times drawn by importance are paid for in the weight: the loss is what its formula says, not another objective."""

from __future__ import annotations

import pytest
import torch
from small_models import DATA, tiny

from scoresde.training import Trainer
from scoresde.training.losses import denoising_score_matching

F64 = torch.float64


@pytest.mark.parametrize("step", [0, 5])
def test_a_trainers_importance_times_level_the_likelihood_weight(step: int) -> None:
    """The likelihood's loss at them is (lambda_max - lambda_min)/(2 (t_max - t_min)) times the noise's error."""
    model = tiny()
    trainer = Trainer(model, weight="likelihood", times="importance", seed=4)
    trainer.step = step
    x0 = DATA[:64]
    t, noise = trainer.draw_times(64, step), trainer.draw_noise(x0, step)
    sde = model.sde
    low, high = sde.log_snr(torch.tensor([sde.t_max, sde.t_min], dtype=F64)).tolist()
    # The times themselves are even in log-SNR.
    places = ((sde.log_snr(t) - low) / (high - low)).sort().values
    torch.testing.assert_close(places.diff(), torch.full((63,), 1 / 64, dtype=F64), rtol=1e-6, atol=0)
    errors = denoising_score_matching(model, x0, weight="simple", t=t, noise=noise)
    expected = (high - low) / (2 * (sde.t_max - sde.t_min)) * errors
    torch.testing.assert_close(trainer.losses(x0), expected, rtol=1e-4, atol=1e-6)
