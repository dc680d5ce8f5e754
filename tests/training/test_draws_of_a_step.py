"""Every step has draws of its own: times, noise, and those of a transform; and the same ones when it is made again."""

from __future__ import annotations

import pytest
import torch
from small_models import F64
from torch import Tensor, nn

from scoresde import VPSDE, Compose, Dequantise, ScoreModel
from scoresde.nn import MLP
from scoresde.training import fit

STEPS, BATCH = 12, 4
LITTLE = VPSDE(beta_max=0.2, t_min=1e-5, t_max=2e-5)  # next to no noise: what is seen is the transform's


class Watches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = MLP(1, width=4, depth=1)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        self.seen.append((x.detach().flatten().clone(), c_noise.detach().flatten().clone()))
        return self.inner(x, c_noise)


def draws(sde: VPSDE, transform: object = None) -> tuple[Tensor, Tensor]:
    """States and times of each step of a training on one datum, 0: (steps, batch) each."""
    net = Watches()
    options = {"transform": transform, "steps": STEPS, "batch_size": BATCH, "seed": 2, "progress": False}
    fit(ScoreModel(net, sde), torch.zeros(1, 1), learning_rate=1e-9, calibrate=False, **options)
    states, times = zip(*net.seen, strict=True)
    return torch.stack(states).to(F64), torch.stack(times).to(F64)


@pytest.mark.parametrize("what", ["noise", "times", "transform"])
def test_no_two_steps_share_their_draws(what: str) -> None:
    transform = Compose((Dequantise(2, 0.0, 1.0),)) if what == "transform" else None
    states, times = draws(LITTLE if what == "transform" else VPSDE(), transform)
    seen = times if what == "times" else states
    assert seen.shape == (STEPS, BATCH)
    # 48 draws from a continuous law: no two are one, in a step or between steps, but for the law's own rounding.
    ordered = seen.flatten().sort().values
    width = float(ordered[-1] - ordered[0])
    assert float(ordered.diff().min()) > 1e-7 * width
    again = draws(LITTLE if what == "transform" else VPSDE(), transform)[what == "times"]
    assert torch.equal(seen, again)
