"""Toy densities against their exact moments and shapes; the digits and their split."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from scoresde.data import (
    DATASETS,
    checkerboard,
    digits,
    eight_gaussians,
    moons,
    pinwheel,
    swiss_roll,
    two_spirals,
)
from scoresde.errors import ConfigError, DomainError, DTypeError

FUNCTIONS = [swiss_roll, eight_gaussians, moons, checkerboard, pinwheel, two_spirals]
ROLL = (9.75 * math.pi**2 - 0.5) / 2 - 4, (9.75 * math.pi**2 + 0.5) / 2 - 4 / (9 * math.pi**2)


def not_rejected(p_value: Callable[[int, int], float], count: int) -> bool:
    """Two stages: alpha 1e-3, and on rejection a fresh seed with eight times the samples at 1e-5."""
    return p_value(0, count) > 1e-3 or p_value(1, 8 * count) > 1e-5


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("axis", [0, 1])
def test_each_coordinate_has_mean_zero_and_variance_one(
    function: Callable[..., Tensor], noise: float, axis: int
) -> None:
    def worst(stage: int, size: int) -> float:
        x = function(size, seed=stage, noise=noise)[:, axis].double().numpy()
        p_values = [float(scipy.stats.ttest_1samp(v, mean).pvalue) for v, mean in ((x, 0.0), (x**2, 1.0))]
        return min(p_values) * 2

    assert not_rejected(worst, 50_000)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_points_are_repeatable_float32_and_named_by_the_seed(function: Callable[..., Tensor]) -> None:
    x = function(100, seed=7)
    assert x.shape == (100, 2)
    assert x.dtype == torch.float32
    assert torch.equal(x, function(100, seed=7))
    assert not torch.equal(x, function(100, seed=8))
    assert function(0).shape == (0, 2)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_blur_is_gaussian_noise_of_the_given_size(function: Callable[..., Tensor]) -> None:
    # the same seed draws the same shape and the same z, whatever the blur
    shape = function(20_000, seed=3, noise=0.0)
    z = (function(20_000, seed=3, noise=0.6) - 0.8 * shape) / 0.6
    finer = (function(20_000, seed=3, noise=0.28) - 0.96 * shape) / 0.28
    assert torch.allclose(z, finer, atol=1e-5)

    def p_value(stage: int, size: int) -> float:
        clean = function(size, seed=40 + stage, noise=0.0)
        drawn = ((function(size, seed=40 + stage, noise=0.6) - 0.8 * clean) / 0.6).double().numpy()
        return float(scipy.stats.kstest(drawn.ravel(), "norm").pvalue)

    assert not_rejected(p_value, 10_000)


def test_swiss_roll_without_noise_lies_on_its_spiral() -> None:
    b = swiss_roll(2000, noise=0.0).double()
    x = b[:, 0] * math.sqrt(ROLL[0]) + 2.0
    y = b[:, 1] * math.sqrt(ROLL[1]) + 2.0 / (3.0 * math.pi)
    radius = torch.hypot(x, y)
    assert torch.allclose(x, radius * radius.cos(), atol=1e-4)
    assert torch.allclose(y, radius * radius.sin(), atol=1e-4)
    assert 1.5 * math.pi - 1e-4 < float(radius.min()) < 1.6 * math.pi
    assert 4.4 * math.pi < float(radius.max()) < 4.5 * math.pi + 1e-4


def test_swiss_roll_moments_are_the_exact_integrals() -> None:
    r = (np.arange(10**6) + 0.5) / 10**6 * 3 * np.pi + 1.5 * np.pi
    for values, mean, variance in ((r * np.cos(r), 2.0, ROLL[0]), (r * np.sin(r), 2 / (3 * np.pi), ROLL[1])):
        assert values.mean() == pytest.approx(mean, abs=1e-9)
        assert values.var() == pytest.approx(variance, rel=1e-9)


def test_eight_gaussians_are_eight_equal_modes() -> None:
    sharp = eight_gaussians(4000, noise=0.0)
    angles = torch.atan2(sharp[:, 1], sharp[:, 0]) / (math.pi / 4)
    assert torch.allclose(angles, angles.round(), atol=1e-5)
    assert torch.allclose(sharp.norm(dim=1), torch.tensor(math.sqrt(2.0)), atol=1e-6)

    def p_value(stage: int, size: int) -> float:
        x = eight_gaussians(size, seed=stage, noise=0.0)
        mode = (torch.atan2(x[:, 1], x[:, 0]) / (math.pi / 4)).round().long() % 8
        return float(scipy.stats.chisquare(mode.bincount(minlength=8).numpy()).pvalue)

    assert not_rejected(p_value, 8000)


def test_moons_without_noise_are_two_half_circles() -> None:
    b = moons(4000, noise=0.0).double()
    u = b[:, 0] * math.sqrt(0.75) + 0.5
    v = b[:, 1] * math.sqrt(9 / 16 - 1 / math.pi) + 0.25
    upper = (torch.hypot(u, v) - 1).abs() < 1e-5
    lower = (torch.hypot(u - 1, v - 0.5) - 1).abs() < 1e-5
    assert bool((upper | lower).all())
    assert float(v[upper & ~lower].min()) > -1e-5
    assert float(v[lower & ~upper].max()) < 0.5 + 1e-5
    share = int((upper & ~lower).sum())
    assert scipy.stats.binomtest(share, 4000, 0.5).pvalue > 1e-6


def test_checkerboard_is_uniform_on_the_dark_cells() -> None:
    cells = (checkerboard(20_000) / math.sqrt(3.0) + 1.0) * 2.0
    assert float(cells.min()) >= 0.0
    assert float(cells.max()) <= 4.0
    # only float32 rounding at an edge may put a point into the neighbouring cell
    assert int((cells.floor().long().sum(dim=1) % 2).sum()) <= 2

    def p_value(stage: int, size: int) -> float:
        board = (checkerboard(size, seed=stage) / math.sqrt(3.0) + 1.0) * 4.0  # a quarter of a cell
        place = board.floor().long().clamp(0, 7)
        counts = (place[:, 0] * 8 + place[:, 1]).bincount(minlength=64).reshape(8, 8)
        dark = [(i, j) for i in range(8) for j in range(8) if (i // 2 + j // 2) % 2 == 0]
        return float(scipy.stats.chisquare([int(counts[i, j]) for i, j in dark]).pvalue)

    assert not_rejected(p_value, 32_000)


def test_pinwheel_blades_turn_with_the_radius() -> None:
    # exact means by quadrature over the radius r ~ N(1, 0.09) and the offset w ~ N(0, 0.01) in a blade
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    r, w = 1 + 0.3 * nodes[:, None], 0.1 * nodes
    weight = np.outer(weights, weights) / weights.sum() ** 2
    size = np.hypot(r, w)
    bend = (weight * np.cos(5 * (np.arctan2(w, r) + (np.exp(r) - np.exp(size)) / 4))).sum()
    assert (weight * size**2).sum() == pytest.approx(1.1, rel=1e-12)
    assert bend > 0.8

    def p_value(stage: int, count: int) -> float:
        b = pinwheel(count, seed=stage).double().numpy() * math.sqrt(0.55)
        size, angle = np.hypot(*b.T), np.arctan2(b[:, 1], b[:, 0])
        in_blade = np.cos(5 * (angle - np.exp(size) / 4))
        tests = ((size**2, 1.1), (in_blade, bend))
        blade = np.round((angle - np.exp(size) / 4) / (2 * np.pi / 5)).astype(int) % 5
        return 3 * min(
            *(float(scipy.stats.ttest_1samp(values, mean).pvalue) for values, mean in tests),
            float(scipy.stats.chisquare(np.bincount(blade, minlength=5)).pvalue),
        )

    assert not_rejected(p_value, 400_000)


def test_two_spirals_without_noise_are_two_arms_of_one_spiral() -> None:
    square = 9 * math.pi**2
    b = two_spirals(4000, noise=0.0).double()
    x, y = b[:, 0] * math.sqrt((square + 3) / 4), b[:, 1] * math.sqrt((square - 3) / 4)
    radius = torch.hypot(x, y)
    sign = torch.sign(x * radius.cos() + y * radius.sin())
    assert torch.allclose(x, sign * radius * radius.cos(), atol=1e-4)
    assert torch.allclose(y, sign * radius * radius.sin(), atol=1e-4)
    assert scipy.stats.binomtest(int((sign > 0).sum()), 4000).pvalue > 1e-6
    assert scipy.stats.kstest(radius.numpy() ** 2 / square, "uniform").pvalue > 1e-6
    a = (np.arange(10**6) + 0.5) / 10**6 * 3 * np.pi
    for wave, variance in ((np.cos(a), (square + 3) / 4), (np.sin(a), (square - 3) / 4)):
        assert (2 * a / (3 * np.pi) * (a * wave) ** 2).mean() == pytest.approx(variance, rel=1e-9)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_bad_arguments_of_toy_densities(function: Callable[..., Tensor]) -> None:
    with pytest.raises(DomainError, match="n must be at least 0, got -1"):
        function(-1)
    with pytest.raises(DTypeError, match=r"n must be an integer, got 10\.0"):
        function(10.0)
    with pytest.raises(DomainError, match=r"noise must lie in \[0, 1\), got 1.0"):
        function(10, noise=1.0)
    with pytest.raises(DomainError, match=r"noise must lie in \[0, 1\), got nan"):
        function(10, noise=math.nan)
    with pytest.raises(DomainError, match="seed must lie in"):
        function(10, seed=-1)


def test_the_named_data_sets_are_the_functions() -> None:
    assert [f.__name__ for f in FUNCTIONS] == list(DATASETS)
    for name, function in DATASETS.items():
        assert torch.equal(function(5, seed=2), globals()[name](5, seed=2))


def test_digits_are_scikit_learns_and_split_once() -> None:
    train, test = digits(), digits("test")
    assert train.images.shape == (1437, 1, 8, 8)
    assert test.images.shape == (360, 1, 8, 8)
    assert train.levels == 17
    pixels, labels = load_digits(return_X_y=True)
    rows = [(*v, t) for v, t in zip(pixels.astype(int).tolist(), labels.tolist(), strict=True)]
    ours = []
    for part in (train, test):
        assert part.images.dtype == torch.float32
        assert part.labels.dtype == torch.int64
        values = ((part.images + 1) * 8).flatten(1)
        assert torch.equal(values, values.round())
        ours += [(*v, t) for v, t in zip(values.int().tolist(), part.labels.tolist(), strict=True)]
    assert sorted(ours) == sorted(rows)


def test_digits_split_is_stratified_and_fixed() -> None:
    test = digits("test")
    counts = np.bincount(load_digits(return_X_y=True)[1])
    shares = test.labels.bincount(minlength=10).numpy()
    assert np.all(np.abs(shares - counts / 5) <= 1)
    assert torch.equal(test.images, digits("test").images)
    # the rule, said the other way round: file positions of every fifth image after a stable sort by label
    labels = load_digits(return_X_y=True)[1]
    positions = sorted(sorted(range(1797), key=lambda k: labels[k])[::5])
    assert test.labels.tolist() == labels[positions].tolist()
    assert torch.equal(test.images.flatten(1), torch.as_tensor(load_digits().data[positions] / 8 - 1).float())


def test_digits_of_an_unknown_split() -> None:
    with pytest.raises(ConfigError, match="unknown split 'tets'; did you mean 'test'"):
        digits("tets")  # type: ignore[arg-type]


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r'pip install "\.\[data\]"'):
        digits()
