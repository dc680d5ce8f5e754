"""MMD and its bandwidth against closed forms and double loops; its floor."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import agrees_with, draw
from torch import Tensor

from scoresde.metrics import floor, median_bandwidth, mmd, pairs, two_sample, two_sample_test
from scoresde.noise import permutation, stream


def gaussian_mmd(h: float, mean_x: Tensor, std_x: float, mean_y: Tensor, std_y: float) -> float:
    """MMD^2 of N(mean, std^2 I): E k(a, b) = (h^2/v)^(D/2) exp(-|mean_a - mean_b|^2/(2 v)), v = h^2 + s_a^2 + s_b^2."""

    def expected(mean_a: Tensor, std_a: float, mean_b: Tensor, std_b: float) -> float:
        v = h**2 + std_a**2 + std_b**2
        gap = float((mean_a - mean_b).square().sum())
        return (h**2 / v) ** (len(mean_a) / 2) * math.exp(-gap / (2 * v))

    x, y = (mean_x, std_x), (mean_y, std_y)
    return expected(*x, *x) + expected(*y, *y) - 2 * expected(*x, *y)


@pytest.mark.parametrize("h", [0.5, 2.0])
@pytest.mark.parametrize(("shift", "std"), [(0.0, 1.0), (0.8, 1.0), (0.0, 1.7), (0.5, 0.6)])
def test_mmd_is_an_unbiased_estimate_of_the_closed_form_for_gaussians(h: float, shift: float, std: float) -> None:
    origin, mean = torch.zeros(3, dtype=torch.float64), torch.tensor([shift, -shift, 0.0], dtype=torch.float64)
    exact = gaussian_mmd(h, origin, 1.0, mean, std)

    def observe(stage: int, size: int) -> Tensor:
        values = []
        for k in range(size):
            x = draw(7, 3, key=f"x{stage},{k}")
            y = mean + std * draw(5, 3, key=f"y{stage},{k}")
            values.append(mmd(x, y, bandwidth=h))
        return torch.tensor(values)

    assert agrees_with(exact, observe, 500)


def test_mmd_of_large_sets_comes_near_the_closed_form() -> None:
    mean = torch.tensor([0.7, 0.0], dtype=torch.float64)
    exact = gaussian_mmd(1.0, 0 * mean, 1.0, mean, 1.0)
    value = mmd(draw(3000, 2, key="x"), mean + draw(3000, 2, key="y"), bandwidth=1.0)
    assert value == pytest.approx(exact, rel=0.2)
    assert exact == pytest.approx(2 / 3 * (1 - math.exp(-0.49 / 6)), rel=1e-14)


@given(n=st.integers(2, 9), m=st.integers(2, 9), seed=st.integers(0, 10**6), h=st.floats(0.1, 10.0))
def test_mmd_is_the_plain_double_loop(n: int, m: int, seed: int, h: float) -> None:
    x, y = draw(n, 2, 2, key=f"x{seed}"), draw(m, 2, 2, key=f"y{seed}") + 0.5

    def k(a: Tensor, b: Tensor) -> float:
        return math.exp(-float((a - b).square().sum()) / (2 * h**2))

    def off(z: Tensor) -> float:
        return float(np.mean([k(a, b) for a, b in itertools.permutations(z, 2)]))

    expected = off(x) + off(y) - 2 * float(np.mean([k(a, b) for a in x for b in y]))
    assert mmd(x, y, bandwidth=h) == pytest.approx(expected, rel=1e-11, abs=1e-13)
    assert mmd(y, x, bandwidth=h) == pytest.approx(expected, rel=1e-11, abs=1e-13)
    assert mmd(3 * x, 3 * y, bandwidth=3 * h) == pytest.approx(expected, rel=1e-9, abs=1e-13)


def test_blocks_of_distances_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draw(53, 2, key="x"), draw(31, 2, key="y") + 0.5
    whole, test = mmd(x, y), two_sample_test(x, y, permutations=20)
    monkeypatch.setattr(pairs, "BLOCK", 150)
    monkeypatch.setattr(two_sample, "BLOCK", 150)
    assert mmd(x, y) == pytest.approx(whole, rel=1e-12)
    again = two_sample_test(x, y, permutations=20)
    assert again.value == pytest.approx(test.value, rel=1e-12)
    assert again.p_value == test.p_value


def test_the_bandwidth_is_the_median_distance_of_the_pooled_samples() -> None:
    x, y = draw(8, 3, key="x"), draw(6, 3, key="y")
    pooled = torch.cat([x, y]).numpy()
    apart = sorted(np.linalg.norm(a - b) for a, b in itertools.combinations(pooled, 2))
    assert len(apart) == 91
    assert median_bandwidth(x, y) == pytest.approx(apart[45], rel=1e-14)
    assert median_bandwidth(10 * x, 10 * y) == pytest.approx(10 * apart[45], rel=1e-13)
    assert mmd(x, y) == mmd(x, y, bandwidth=median_bandwidth(x, y))
    # distances of zero are no scale
    lattice = torch.tensor([0.0, 0.0, 0.0, 0.0, 3.0])[:, None]
    assert median_bandwidth(lattice, lattice) == 3.0


def test_the_median_of_many_samples_is_nearly_theirs_and_blind_to_the_labels() -> None:
    pooled = torch.cat([draw(2000, 2, key="x"), 3 + draw(1500, 2, key="y")])
    value = median_bandwidth(pooled[:2000], pooled[2000:])
    assert value == pytest.approx(float(torch.pdist(pooled).median()), rel=0.01)
    order = permutation(3500, stream(0, "order"))
    assert median_bandwidth(pooled[order[:10]], pooled[order[10:]]) == value


def test_the_floor_of_mmd_is_zero() -> None:
    def observe(stage: int, size: int) -> Tensor:
        values = []
        for k in range(size):
            reference = draw(50, 2, key=f"floor{stage},{k}")
            values.append(floor(lambda x, y: mmd(x, y, bandwidth=1.0), reference, 20, other=30, repeats=2).mean)
        return torch.tensor(values)

    assert agrees_with(0.0, observe, 300)
