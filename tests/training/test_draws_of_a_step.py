"""Every step has draws of its own: times, noise, and those of a transform; and the same ones when it is made again."""

from __future__ import annotations

import itertools

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


def halfway(n: int, sde: VPSDE, generator: torch.Generator) -> Tensor:
    return torch.full((n,), 0.5, dtype=F64)


def draws(what: str) -> tuple[Tensor, Tensor]:
    """States and times of each step of a training on one datum, 0: (steps, batch) each."""
    net, sde, options = Watches(), VPSDE(), {}
    if what == "transform":
        sde, options = LITTLE, {"transform": Compose((Dequantise(2, 0.0, 1.0),))}
    if what == "noise":
        options = {"times": halfway}  # so that the states are the noise, but for one factor
    options |= {"steps": STEPS, "batch_size": BATCH, "seed": 2, "progress": False}
    fit(ScoreModel(net, sde), torch.zeros(1, 1), learning_rate=1e-9, calibrate=False, **options)
    states, times = zip(*net.seen, strict=True)
    return torch.stack(states).to(F64), torch.stack(times).to(F64)


@pytest.mark.parametrize("what", ["noise", "times", "transform"])
def test_no_two_steps_share_their_draws(what: str) -> None:
    states, times = draws(what)
    seen = times if what == "times" else states
    assert seen.shape == (STEPS, BATCH)
    width = float(seen.max() - seen.min())
    # The diffusion's own noise is a thousandth of what a transform draws.
    apart = (0.05 if what == "transform" else 1e-4) * width
    assert all(float((one - other).abs().max()) > apart for one, other in itertools.combinations(seen, 2))
    again = draws(what)[what == "times"]
    assert torch.equal(seen, again)
