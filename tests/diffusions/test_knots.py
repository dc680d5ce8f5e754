"""A tabulated diffusion meets its knots to the last bit, in both directions."""

from __future__ import annotations

import pytest
import torch

from scoresde import TabulatedSDE
from scoresde.noise import stream, uniform

F64 = torch.float64


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("whole", [False, True], ids=["variance preserving", "with log alpha"])
def test_the_curves_meet_their_knots_to_the_last_bit(seed: int, whole: bool) -> None:
    steps = 0.01 + uniform((3, 12), stream(seed, "knots"), dtype=F64)
    t, log_snr, log_alpha = steps[0].cumsum(0), 7.3 - steps[1].cumsum(0), -0.1 * steps[2].cumsum(0)
    sde = TabulatedSDE(t, log_snr, log_alpha if whole else None)
    assert torch.equal(sde.log_snr(t), log_snr)
    assert torch.equal(sde.time(log_snr), t)
    if whole:
        assert torch.equal(sde.log_alpha(t), log_alpha)


def test_a_flat_piece_gives_its_knots_times_back() -> None:
    # At the ends of a piece the monotone cubic may be flat, where Newton's method crawls.
    t = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5], dtype=F64)
    log_snr = torch.tensor([5.0, 5.0 - 1e-9, 0.0, -1e-9, -5.0], dtype=F64)
    assert torch.equal(TabulatedSDE(t, log_snr).time(log_snr), t)
