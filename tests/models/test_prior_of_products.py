"""What a product of models starts from: the first one's prior where the powers add up to 1, else the SDE's."""

from __future__ import annotations

import pytest
import torch
from helpers import gaussian

from scoresde import VPSDE, Moments, product, sample

F64 = torch.float64


@pytest.mark.parametrize(
    ("powers", "whole"), [([2.0, -1.0], True), ([0.5, 0.5], True), ([1.0, 1.0], False), ([0.7], False)]
)
def test_powers_that_do_not_add_up_start_from_the_sdes_own_prior(powers: list[float], whole: bool) -> None:
    sde, far = VPSDE(t_max=0.3), 50.0
    model = gaussian(sde, mean=far)
    made = product([model] * len(powers), powers)
    assert (made.moments is None) != whole
    # A grid of one time gives the start states back.
    start = torch.tensor([sde.t_max], dtype=F64)
    options = {"times": start, "final": "sample", "seed": 0, "dtype": F64}
    states = sample(made, (200, *model.moments.mean.shape), solver="ddim", **options)
    wanted = float(sde.alpha(start)) * far if whole else 0.0
    assert isinstance(model.moments, Moments)
    assert float(states.mean()) == pytest.approx(wanted, abs=6 / 200**0.5)
