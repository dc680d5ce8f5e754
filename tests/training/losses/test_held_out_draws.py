"""What the held-out loss draws and reports: times dealt out at random, the standard error, and the finite losses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scoresde import VPSDE, ScoreModel
from scoresde.noise import stream, uniform
from scoresde.training.losses import held_out_loss
from scoresde.training.losses.bins import LossBins

F64 = torch.float64


class Told(nn.Module):
    """Predicts what it is told, and keeps the times at which it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor, c_noise: Tensor, value: Tensor) -> Tensor:
        self.asked.append(c_noise.flatten().clone())
        return value[:, None].to(x).expand_as(x)


def ones(point: object, sde: object) -> Tensor:
    return torch.ones_like(point.t)


def test_times_are_dealt_out_at_random() -> None:
    net, size = Told(), 200
    held_out_loss(
        ScoreModel(net, VPSDE()), torch.zeros(size, 1), times="low_discrepancy", cond={"value": torch.ones(size)}
    )
    t = torch.cat(net.asked).to(F64)
    assert len(t.unique()) == size
    # In the order in which they are drawn they fall once; in a random one at every second place, give or take four.
    falls = int((t.diff() < 0).sum())
    assert abs(falls - (size - 1) / 2) < 6 * math.sqrt(size / 12)


@pytest.mark.parametrize("repeats", [1, 3])
def test_mean_and_standard_error_are_those_of_the_losses(repeats: int) -> None:
    """Data at 0 and a prediction of c make a loss of c^2 at every time."""
    values = uniform((40,), stream(0, "values"), dtype=F64)
    model = ScoreModel(Told(), VPSDE(), predicts="data")
    found = held_out_loss(
        model, torch.zeros(40, 3, dtype=F64), weight=ones, cond={"value": values}, repeats=repeats, chunk_size=7
    )
    losses = np.tile(values.square().numpy(), repeats)
    assert found.mean == pytest.approx(losses.mean(), rel=1e-9)
    assert found.standard_error == pytest.approx(losses.std(ddof=1) / math.sqrt(len(losses)), rel=1e-9)


def test_bins_count_finite_losses_alone() -> None:
    bins = LossBins(VPSDE(), torch.device("cpu"))
    index = torch.tensor([0, 0, 0, 3, 3, 5])
    bins.add(index, torch.tensor([1.0, math.inf, 4.0, math.nan, 2.0, -math.inf]))
    means = bins.take_means()
    assert means[0] == pytest.approx(2.5)
    assert means[3] == pytest.approx(2.0)
    assert means[5] is None
    assert bins.take_means() == [None] * 10
