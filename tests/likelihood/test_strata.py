"""The places of the bound's draws: evenly spread, one in every stratum of a sample, and dealt out at random."""

from __future__ import annotations

import pytest
import torch
from helpers import gaussian
from torch import Tensor

from scoresde.likelihood.bound import Task

F64 = torch.float64


def places(batch: int, repeats: int, seed: int) -> Tensor:
    task = Task(
        gaussian(), torch.zeros(batch, dtype=F64), decoder=None, cond=None, repeats=repeats, seed=seed,
        generator=None, noise=None, chunk_size=8,
    )  # fmt: skip
    return task.places()


@pytest.mark.parametrize(("batch", "repeats"), [(1, 1), (5, 1), (1, 7), (4, 3)])
def test_places_are_evenly_spaced_and_meet_every_stratum(batch: int, repeats: int) -> None:
    u = places(batch, repeats, 3)
    assert u.shape == (repeats, batch)
    ordered = u.flatten().sort().values
    torch.testing.assert_close(ordered.diff(), torch.full_like(ordered[1:], 1 / (batch * repeats)), rtol=1e-9, atol=0)
    assert 0 <= float(ordered[0]) < 1 / (batch * repeats)
    assert torch.equal((u * repeats).long(), torch.arange(repeats)[:, None].expand(repeats, batch))


def test_the_strata_are_dealt_out_at_random() -> None:
    # Of three samples the second's place is one third or two thirds past the first's; in order it were always one.
    steps = [round(3 * float((u[0, 1] - u[0, 0]) % 1)) for u in (places(3, 1, seed) for seed in range(40))]
    assert 8 <= steps.count(1) <= 32  # of 40 fair coins: missed with a probability of 1e-4, and never again
    assert steps.count(1) + steps.count(2) == 40
    # The first sample's own place is uniform, not always the lowest.
    firsts = [int(3 * float(places(3, 1, seed)[0, 0])) for seed in range(40)]
    assert {*firsts} == {0, 1, 2}
