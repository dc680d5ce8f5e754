"""Distances of each coordinate: those of scipy, their floors, in blocks."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import draw

from scoresde.metrics import marginal_distances, marginals


@settings(max_examples=40)
@given(n=st.integers(1, 30), m=st.integers(1, 30), seed=st.integers(0, 10**6), ties=st.booleans())
def test_marginal_distances_are_scipys(n: int, m: int, seed: int, ties: bool) -> None:
    x, y = draw(n, 2, 2, key=f"x{seed}"), 1.5 * draw(m, 2, 2, key=f"y{seed}") + 0.3
    if ties:
        x, y = x.round(), y.round()
    w1, ks = marginal_distances(x, y), marginal_distances(x, y, distance="kolmogorov_smirnov")
    assert w1.shape == ks.shape == (2, 2)
    for i, j in itertools.product(range(2), range(2)):
        a, b = x[:, i, j].numpy(), y[:, i, j].numpy()
        assert float(w1[i, j]) == pytest.approx(scipy.stats.wasserstein_distance(a, b), rel=1e-11, abs=1e-14)
        # scipy's two-sided statistic, without its p-value, which is slow for odd sizes
        places = np.concatenate([a, b])
        gap = np.searchsorted(np.sort(a), places, "right") / n - np.searchsorted(np.sort(b), places, "right") / m
        assert float(ks[i, j]) == pytest.approx(np.abs(gap).max(), rel=1e-12, abs=1e-15)
    assert float(ks.max()) <= 1.0


def test_kolmogorov_smirnov_is_scipys_statistic() -> None:
    x, y = draw(40, 3, key="x"), draw(25, 3, key="y") * 2
    ks = marginal_distances(x, y, distance="kolmogorov_smirnov")
    expected = [scipy.stats.ks_2samp(x[:, k].numpy(), y[:, k].numpy(), method="asymp").statistic for k in range(3)]
    assert ks.tolist() == pytest.approx(expected, rel=1e-12)
    monotone = marginal_distances(x.exp(), y.exp(), distance="kolmogorov_smirnov")
    assert torch.equal(monotone, ks)


def test_a_shift_shows_in_its_own_coordinate_in_its_own_unit() -> None:
    x = draw(50, 3)
    shift = torch.tensor([0.0, -2.5, 1e-6], dtype=torch.float64)
    assert torch.allclose(marginal_distances(x, x + shift), shift.abs(), rtol=1e-9, atol=1e-15)
    assert marginal_distances(x[:, 0], x[:, 0] + 1).shape == ()
    assert float(marginal_distances(x, x + 100, distance="kolmogorov_smirnov").min()) == 1.0


def test_the_stated_floors_of_the_marginal_distances() -> None:
    n, m = 600, 1200
    x, y = draw(n, 1500, key="x"), draw(m, 1500, key="y")
    scale = math.sqrt(1 / n + 1 / m)
    spread = scipy.integrate.quad(lambda u: math.sqrt(scipy.stats.norm.cdf(u) * scipy.stats.norm.sf(u)), -12, 12)[0]
    # means over 1500 coordinates, known to 1 %
    assert float(marginal_distances(x, y).mean()) / scale == pytest.approx(math.sqrt(2 / math.pi) * spread, rel=0.05)
    assert math.sqrt(2 / math.pi) * spread == pytest.approx(1.29, abs=0.005)
    ks = float(marginal_distances(x, y, distance="kolmogorov_smirnov").mean())
    assert ks / scale == pytest.approx(math.sqrt(math.pi / 2) * math.log(2), rel=0.05)
    assert math.sqrt(math.pi / 2) * math.log(2) == pytest.approx(0.87, abs=0.005)


def test_blocks_of_coordinates_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draw(9, 11, key="x"), draw(7, 11, key="y")
    whole = [marginal_distances(x, y, distance=name) for name in marginals.DISTANCES]
    monkeypatch.setattr(marginals, "BLOCK", 50)
    for name, one in zip(marginals.DISTANCES, whole, strict=True):
        torch.testing.assert_close(marginal_distances(x, y, distance=name), one, rtol=1e-12, atol=0)
