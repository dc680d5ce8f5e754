"""Distances against closed forms and independent references; the floor against its known expectation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import agrees_with
from torch import Tensor

from scoresde.errors import ConfigError, DomainError, DTypeError, ShapeError
from scoresde.metrics import (
    Comparison,
    Floor,
    distances,
    energy_distance,
    floor,
    frechet_distance,
    frechet_distance_of_moments,
    pairs,
    sliced_wasserstein,
)
from scoresde.metrics.pairs import cut_quantiles
from scoresde.noise import normal, stream, uniform

DISTANCES = [sliced_wasserstein, energy_distance, frechet_distance]


def draw(*shape: int, key: int | str = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return normal(shape, stream(11, "test_metrics", key), dtype=dtype)


def gaussian_quantiles(n: int) -> Tensor:
    return torch.as_tensor(scipy.stats.norm.ppf((np.arange(n) + 0.5) / n))


# --- sliced Wasserstein


@given(n=st.integers(1, 12), m=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_one_dimensional_w2_of_unequal_sizes_equals_w2_of_the_repeated_sets(n: int, m: int, seed: int) -> None:
    x, y = draw(n, key=f"x{seed}"), draw(m, key=f"y{seed}")
    repeated = (x.repeat(m).sort().values - y.repeat(n).sort().values).square().mean().sqrt()
    assert sliced_wasserstein(x, y) == pytest.approx(float(repeated), rel=1e-12)


@given(n=st.integers(1, 40), m=st.integers(1, 40), seed=st.integers(0, 10**6))
def test_the_pieces_of_the_quantile_functions_give_scipys_w1(n: int, m: int, seed: int) -> None:
    x, y = draw(n, key=f"x{seed}").sort().values, draw(m, key=f"y{seed}").sort().values
    left, right, weight = cut_quantiles(n, m, x)
    assert float(weight.sum()) == pytest.approx(1.0, rel=1e-14)
    w1 = float((weight * (x[left] - y[right]).abs()).sum())
    assert w1 == pytest.approx(scipy.stats.wasserstein_distance(x.numpy(), y.numpy()), rel=1e-12)


def test_w2_of_one_dimensional_gaussians() -> None:
    z = gaussian_quantiles(20_001)
    value = sliced_wasserstein(0.5 + 2.0 * z, -1.0 + 0.7 * z)
    second = float(z.square().mean())  # tends to 1 as the quantiles fill in
    assert value == pytest.approx(math.sqrt(1.5**2 + 1.3**2 * second), rel=1e-12)
    assert value == pytest.approx(math.sqrt(1.5**2 + 1.3**2), rel=1e-4)
    assert sliced_wasserstein(0.5 + 2.0 * z, -1.0 + 0.7 * gaussian_quantiles(9_998)) == pytest.approx(value, rel=1e-4)


def test_a_shift_has_its_length_per_coordinate() -> None:
    x = draw(50, 5)
    shift = torch.tensor([3.0, -1.0, 0.0, 2.0, 0.5], dtype=torch.float64)

    def squared(stage: int, size: int) -> Tensor:
        values = [sliced_wasserstein(x, x + shift, projections=1, seed=stage * 10**6 + k) ** 2 for k in range(size)]
        return torch.tensor(values)

    assert agrees_with(float(shift.square().sum()) / 5, squared, 1000)
    total = sum(sliced_wasserstein(x, x + shift, projections=500, seed=k) ** 2 for k in range(4)) / 4
    assert math.sqrt(total) == pytest.approx(float(shift.norm()) / math.sqrt(5), rel=0.1)


def test_blocks_of_projections_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draw(30, 3, key="x"), draw(20, 3, key="y")
    whole = sliced_wasserstein(x, y, projections=100)
    monkeypatch.setattr(distances, "BLOCK", 7 * 50)
    assert sliced_wasserstein(x, y, projections=100) == pytest.approx(whole, rel=1e-12)


def test_the_directions_are_named_by_the_seed_or_taken_from_the_generator() -> None:
    x, y = draw(30, 3, key="x"), draw(30, 3, key="y")
    assert sliced_wasserstein(x, y, seed=4) == sliced_wasserstein(x, y, seed=4)
    assert sliced_wasserstein(x, y, seed=4) != sliced_wasserstein(x, y, seed=5)
    generator = stream(4, "sliced_wasserstein")
    assert sliced_wasserstein(x, y, generator=generator) == sliced_wasserstein(x, y, seed=4)
    assert sliced_wasserstein(x, y, generator=generator) != sliced_wasserstein(x, y, seed=4)


# --- energy distance


@given(n=st.integers(1, 30), m=st.integers(1, 30), seed=st.integers(0, 10**6))
def test_energy_distance_is_scipys_in_one_dimension(n: int, m: int, seed: int) -> None:
    x, y = draw(n, key=f"x{seed}"), 1.3 * draw(m, key=f"y{seed}") + 0.4
    assert energy_distance(x, y) == pytest.approx(scipy.stats.energy_distance(x.numpy(), y.numpy()), rel=1e-9)


def test_energy_distance_of_two_points_and_of_a_plain_double_loop() -> None:
    assert energy_distance(torch.zeros(3, 2), torch.tensor([[3.0, 4.0]])) == pytest.approx(math.sqrt(10.0), rel=1e-14)
    x, y = draw(7, 2, 3, key="x"), draw(5, 2, 3, key="y") + 1

    def mean(a: Tensor, b: Tensor) -> float:
        return float(np.mean([[np.linalg.norm((p - q).numpy()) for q in b] for p in a]))

    assert energy_distance(x, y) ** 2 == pytest.approx(2 * mean(x, y) - mean(x, x) - mean(y, y), rel=1e-12)


@pytest.mark.parametrize("block", [1, 64, 150, 1000])
def test_energy_distance_holds_no_more_than_a_block(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    x, y = draw(53, 2, key="x"), draw(31, 2, key="y") + 0.5
    whole = energy_distance(x, y)
    held: list[int] = []
    every_pair = distances.measure_distances

    def recorded(a: Tensor, b: Tensor) -> Tensor:
        result = every_pair(a, b)
        held.append(result.numel())
        return result

    monkeypatch.setattr(pairs, "BLOCK", block)
    monkeypatch.setattr(distances, "measure_distances", recorded)
    assert energy_distance(x, y) == pytest.approx(whole, rel=1e-12)
    assert max(held) <= max(block, 53)  # never less than one row


# --- Frechet distance


def test_frechet_distance_of_one_dimensional_moments() -> None:
    one = torch.ones(1, dtype=torch.float64)
    value = frechet_distance_of_moments(0.5 * one, 4.0 * one[None], -one, 0.49 * one[None])
    assert value == pytest.approx(1.5**2 + 1.3**2, rel=1e-12)


@pytest.mark.parametrize("size", [1, 2, 5, 20])
def test_frechet_distance_against_the_matrix_square_root(size: int) -> None:
    means = [draw(size, key=f"m{k}") for k in range(2)]
    roots = [draw(size, size, key=f"r{k}") for k in range(2)]
    a, b = (root @ root.T for root in roots)
    cross = np.trace(scipy.linalg.sqrtm((a @ b).numpy()).real)
    expected = float((means[0] - means[1]).square().sum() + a.trace() + b.trace()) - 2 * cross
    assert frechet_distance_of_moments(means[0], a, means[1], b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance_of_moments(means[1], b, means[0], a) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_of_features_is_that_of_their_moments() -> None:
    x, y = draw(40, 6, key="x") @ draw(6, 6, key="mix"), draw(25, 6, key="y") + 1
    moments = frechet_distance_of_moments(x.mean(0), torch.cov(x.T), y.mean(0), torch.cov(y.T))
    assert frechet_distance(x, y) == pytest.approx(moments, rel=1e-10)


def test_frechet_distance_of_fewer_samples_than_features() -> None:
    # y = c x has covariance c^2 A whatever the rank of A: the distance is (1 - c)^2 (|mean|^2 + tr A)
    x = draw(5, 64)
    expected = 0.4**2 * float(x.mean(0).square().sum() + x.var(dim=0).sum())
    assert frechet_distance(x, 0.6 * x) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(x, x) < 1e-26
    # orthogonal supports: no transport can use the other's spread, so the traces add
    p, q = torch.zeros(4, 9, dtype=torch.float64), torch.zeros(3, 9, dtype=torch.float64)
    p[:, :4], q[:, 5:] = draw(4, 4, key="p"), draw(3, 4, key="q")
    expected = float((p.mean(0) - q.mean(0)).square().sum() + p.var(dim=0).sum() + q.var(dim=0).sum())
    assert frechet_distance(p, q) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_resolves_a_tiny_change() -> None:
    # tr A + tr B - 2 tr (AB)^1/2 by subtraction would be rounding noise: 1e-20 against traces of order 1
    x = draw(500, 8)
    expected = 1e-20 * float(x.mean(0).square().sum() + x.var(dim=0).sum())
    assert frechet_distance(x, x * (1 + 1e-10)) == pytest.approx(expected, rel=1e-4)


# --- what all three share


@pytest.mark.parametrize("distance", DISTANCES)
@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 20), m=st.integers(2, 20))
def test_invariances(distance: Callable[[Tensor, Tensor], float], seed: int, n: int, m: int) -> None:
    x, y = draw(n, 3, key=f"x{seed}"), 0.5 * draw(m, 3, key=f"y{seed}") + 1
    value = distance(x, y)
    assert value > 0
    assert distance(y, x) == pytest.approx(value, rel=1e-9)
    order = draw(n, key=f"o{seed}").argsort()
    assert distance(x[order], y) == pytest.approx(value, rel=1e-9)
    shift = torch.tensor([5.0, -2.0, 1.0], dtype=torch.float64)
    assert distance(x + shift, y + shift) == pytest.approx(value, rel=1e-7)
    power = {sliced_wasserstein: 1.0, energy_distance: 0.5, frechet_distance: 2.0}[distance]
    assert distance(3 * x, 3 * y) == pytest.approx(3**power * value, rel=1e-9)


@pytest.mark.parametrize("distance", [energy_distance, frechet_distance])
def test_rotations_change_nothing(distance: Callable[[Tensor, Tensor], float]) -> None:
    x, y = draw(30, 4, key="x"), draw(20, 4, key="y") + 0.3
    rotation = torch.linalg.qr(draw(4, 4, key="q")).Q
    assert distance(x @ rotation, y @ rotation) == pytest.approx(distance(x, y), rel=1e-10)


@pytest.mark.parametrize("distance", [sliced_wasserstein, energy_distance])
@settings(max_examples=25)
@given(seed=st.integers(0, 10**6))
def test_triangle_inequality_and_repetition(distance: Callable[[Tensor, Tensor], float], seed: int) -> None:
    x, y, z = (draw(size, 2, key=f"{name}{seed}") for name, size in (("x", 6), ("y", 9), ("z", 4)))
    assert distance(x, z) <= distance(x, y) + distance(y, z) + 1e-12
    assert distance(x.repeat(3, 1), y) == pytest.approx(distance(x, y), rel=1e-9)


@pytest.mark.parametrize("distance", DISTANCES)
def test_events_are_flattened_and_arguments_untouched(distance: Callable[[Tensor, Tensor], float]) -> None:
    x, y = draw(12, 2, 3, 4, key="x"), draw(15, 2, 3, 4, key="y")
    value = distance(x.flatten(1), y.flatten(1))
    assert distance(x, y) == value
    assert distance(x.transpose(1, 3).contiguous().transpose(1, 3), y) == value
    tracked = x.clone().requires_grad_(True)
    assert distance(tracked, y) == value
    assert tracked.requires_grad
    assert tracked.grad is None
    assert torch.equal(tracked.detach(), x)
    # float32 and half are computed in float64, so only their own rounding shows
    assert distance(x.half(), y.half()) == distance(x.half().double(), y.half().double())
    assert distance(x[:, 0, 0, 0], y[:, 0, 0, 0]) == distance(x[:, 0, 0, :1], y[:, 0, 0, :1])


@pytest.mark.parametrize("distance", DISTANCES)
def test_bad_samples_are_refused(distance: Callable[[Tensor, Tensor], float]) -> None:
    x = draw(4, 3)
    names = ("features_x", "features_y") if distance is frechet_distance else ("x", "y")
    with pytest.raises(DTypeError, match=f"{names[1]} must be a torch.Tensor, got list"):
        distance(x, [1.0])  # type: ignore[arg-type]
    with pytest.raises(DTypeError, match=rf"{names[0]} must have a real floating dtype, got torch.int64"):
        distance(torch.ones(4, 3, dtype=torch.int64), x)
    with pytest.raises(ShapeError, match=r"same event shape, got \(4, 3\) and \(4, 2\)"):
        distance(x, x[:, :2])
    with pytest.raises(ShapeError, match=rf"{names[0]} must hold at least . non-empty samples, got shape \(0, 3\)"):
        distance(x[:0], x)
    with pytest.raises(ShapeError, match=rf"{names[0]} has samples of shape \(0,\), which hold no number"):
        distance(x[:, :0], x[:, :0])
    broken = x.clone()
    broken[2, 1] = math.nan
    with pytest.raises(DomainError, match=rf"{names[1]} has 1 non-finite values of 12, the first at index \(2, 1\)"):
        distance(x, broken)
    with pytest.raises(ConfigError, match=r"is on cpu, .* on meta; move one"):
        distance(x, torch.empty(4, 3, device="meta"))


def test_bad_options_are_refused() -> None:
    x = draw(4, 3)
    with pytest.raises(DomainError, match="projections must be at least 1, got 0"):
        sliced_wasserstein(x, x, projections=0)
    with pytest.raises(DomainError, match=r"seed must lie in \[0, 2\*\*64\), got -1"):
        sliced_wasserstein(x, x, seed=-1)
    with pytest.raises(ShapeError, match=r"features_y must hold at least 2 non-empty samples, got shape \(1, 3\)"):
        frechet_distance(x, x[:1])


def test_bad_moments_are_refused() -> None:
    mean, eye = torch.zeros(2), torch.eye(2)
    with pytest.raises(ShapeError, match=r"mean_y must have shape \(2,\), that of mean_x, got \(3,\)"):
        frechet_distance_of_moments(mean, eye, torch.zeros(3), torch.eye(3))
    with pytest.raises(ShapeError, match=r"mean_x must have shape \(D,\), got \(1, 2\)"):
        frechet_distance_of_moments(mean[None], eye, mean[None], eye)
    with pytest.raises(ShapeError, match=r"covariance_y must have shape \(2, 2\).*got \(3, 3\)"):
        frechet_distance_of_moments(mean, eye, mean, torch.eye(3))
    with pytest.raises(DomainError, match=r"covariance_x must be symmetric positive semidefinite.*eigenvalue -1"):
        frechet_distance_of_moments(mean, -eye, mean, eye)
    with pytest.raises(DomainError, match=r"covariance_x.*asymmetry 0.5"):
        frechet_distance_of_moments(mean, torch.tensor([[1.0, 0.5], [0.0, 1.0]]), mean, eye)


def test_features_whose_squares_overflow_are_refused() -> None:
    far = 1e200 * draw(5, 3).double()
    for distance in (frechet_distance, energy_distance, sliced_wasserstein):
        with pytest.raises(
            DomainError, match=r"reach .*e\+200, and the squares of their distances pass the largest num"
        ):
            distance(far, draw(4, 3).double())
    with pytest.raises(DomainError, match=r"the squares of these features, up to .*, pass .*; scale them down"):
        frechet_distance_of_moments(far[0], torch.eye(3), torch.zeros(3), torch.eye(3))


# --- the floor


def test_floor_draws_disjoint_sets_of_the_given_sizes() -> None:
    reference = torch.arange(20.0)
    seen: list[tuple[set[float], set[float]]] = []

    def metric(x: Tensor, y: Tensor) -> float:
        assert x.shape == (7,)
        assert y.shape == (11,)
        seen.append((set(x.tolist()), set(y.tolist())))
        return float(len(seen))

    result = floor(metric, reference, 7, other=11, repeats=5, seed=3)
    assert result == Floor(mean=3.0, std=math.sqrt(2.5), size=7, other=11, repeats=5)
    for x, y in seen:
        assert len(x) == 7
        assert len(y) == 11
        assert not x & y
        assert x | y <= set(reference.tolist())
    assert len({frozenset(x) for x, _ in seen}) == 5
    assert set.union(*(x | y for x, y in seen)) == set(reference.tolist())


def test_floor_is_repeatable_and_halves_the_reference_by_default() -> None:
    reference = draw(40, 2)
    one, again, other = (floor(energy_distance, reference, 20, repeats=4, seed=s) for s in (1, 1, 2))
    assert one == again
    assert one.mean != other.mean
    assert one.other == 20


def test_floor_of_the_energy_distance_is_the_bias_of_its_v_statistic() -> None:
    # E D^2 = E|x - x'| (1/n + 1/m), and E|x - x'| = 2/sqrt(pi) for N(0, 1)
    n, m = 20, 30

    def observe(stage: int, size: int) -> Tensor:
        values = []
        for k in range(size):
            reference = normal((n + m,), stream(5, "v-statistic", stage, k))
            values.append(floor(lambda x, y: energy_distance(x, y) ** 2, reference, n, other=m, repeats=2).mean)
        return torch.tensor(values)

    assert agrees_with(2 / math.sqrt(math.pi) * (1 / n + 1 / m), observe, 400)


def test_floor_of_w2_between_uniform_samples() -> None:
    # E W2^2 = 2 int (variance of the empirical quantile function): 2 int u(1-u)/n du = 1/(3 n) + O(1/n^2) for U(0, 1).
    # Exactly, with order statistics of n uniform numbers: 2/n sum k(n+1-k)/((n+1)^2 (n+2)) = 1/(3 (n + 1)).
    n = 50

    def observe(stage: int, size: int) -> Tensor:
        values = []
        for k in range(size):
            reference = uniform((2 * n,), stream(6, "w2", stage, k))
            values.append(floor(lambda x, y: sliced_wasserstein(x, y) ** 2, reference, n, repeats=2).mean)
        return torch.tensor(values)

    assert agrees_with(1 / (3 * (n + 1)), observe, 400)


def test_floor_refuses_what_cannot_be_disjoint() -> None:
    reference = draw(10, 2)
    with pytest.raises(
        DomainError, match=r"size \+ other must be at most 10.*got 6 \+ 6; the two sets must be disjoint"
    ):
        floor(energy_distance, reference, 6)
    with pytest.raises(DomainError, match="repeats must be at least 2, got 1"):
        floor(energy_distance, reference, 3, repeats=1)
    with pytest.raises(DTypeError, match=r"size must be an integer, got 2\.0"):
        floor(energy_distance, reference, 2.0)  # type: ignore[arg-type]
    with pytest.raises(DTypeError, match=r"metric must be a function of two sets, e\.g\. energy_distance, got"):
        floor("energy", reference, 3)  # type: ignore[arg-type]


def test_a_comparison_survives_json() -> None:
    row = Comparison(
        sampler="ddim", nfe=20.0, seconds=1.5, samples=500, distances={"energy": 0.1}, floors={"energy": 0.05}
    )
    assert Comparison(**json.loads(json.dumps(row.to_dict()))) == row
