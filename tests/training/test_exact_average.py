"""The average keeps what float32 cannot hold: its two parts are exchanged without an error."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scoresde.noise import normal, stream
from scoresde.training import EMA
from scoresde.training.ema import REBASE_EVERY

F64 = torch.float64


class Weights(nn.Module):
    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.p = nn.Parameter(values.clone())


def value(ema: EMA) -> torch.Tensor:
    return ema.base[0].double() + ema.offset[0].double()


@pytest.mark.parametrize("grown", [1.0, 1e-3, 1e4], ids=["alike", "shrunk", "grown"])
def test_the_rebase_loses_no_bit(grown: float) -> None:
    """With d = 0 the average is b + fl(p - b) throughout, whichever of the two is the larger one."""
    first, last = normal((1000,), stream(0, "first")), grown * normal((1000,), stream(0, "last"))
    module = Weights(first)
    ema = EMA(module, 0.0)
    with torch.no_grad():
        module.p.copy_(last)
    for _ in range(REBASE_EVERY - 1):
        ema.update()
    before = value(ema)
    assert torch.equal(before, first.double() + (last - first).double())
    ema.update()
    assert torch.equal(value(ema), before)
    # The base now is the sum as float32 knows it, and the offset what is missing.
    assert torch.equal(ema.base[0], before.float())
