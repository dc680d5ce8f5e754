"""MMD against closed forms; the tests' p-values against enumeration, their level and power; marginal distances."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import sklearn.ensemble  # noqa: F401 its first import moves Python's random state: rich draws its styles' names
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scoresde.errors import ConfigError, DomainError, DTypeError, ScoreSDEError, ShapeError
from scoresde.metrics import (
    classifier_two_sample_test,
    discrepancy,
    energy_distance,
    floor,
    marginal_distances,
    marginals,
    median_bandwidth,
    mmd,
    two_sample,
    two_sample_test,
)
from scoresde.noise import integers, normal, permutation, stream


def draw(*shape: int, key: int | str = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return normal(shape, stream(12, "test_two_sample", key), dtype=dtype)


def agrees_with(mean: float, observe: Callable[[int, int], Tensor], count: int) -> bool:
    """Two-stage z-test: alpha 1e-3, and on rejection a fresh seed with eight times the samples at 1e-5."""
    for stage, (size, alpha) in enumerate(((count, 1e-3), (8 * count, 1e-5))):
        values = observe(stage, size)
        z = float((values.mean() - mean) / (values.std() / math.sqrt(size)))
        if 2 * scipy.stats.norm.sf(abs(z)) > alpha:
            return True
    return False


# --- maximum mean discrepancy


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
    monkeypatch.setattr(discrepancy, "BLOCK", 150)
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


# --- the permutation test


def test_the_p_value_counts_the_relabellings_that_reach_the_value() -> None:
    for script, expected in (
        ([2.0, 1.0, 3.0, 2.0], 3 / 4),  # an equal one counts
        ([2.0, 1.0, 1.5, 0.0], 1 / 4),
        ([2.0, 3.0, 3.0, 3.0], 1.0),
        ([-1.0, -2.0, -0.5, -3.0], 2 / 4),
    ):
        values = iter(script)
        test = two_sample_test(draw(4), draw(5), statistic=lambda x, y, v=values: next(v), permutations=3)  # type: ignore[misc]
        assert test == (script[0], expected)


def test_relabellings_are_random_orders_of_the_pooled_samples() -> None:
    x, y = torch.arange(4.0).reshape(4, 1, 1), torch.arange(4.0, 10.0).reshape(6, 1, 1)
    seen: list[tuple[float, ...]] = []

    def statistic(a: Tensor, b: Tensor) -> float:
        assert a.shape == (4, 1, 1)
        assert b.shape == (6, 1, 1)
        seen.append((*a.flatten().tolist(), *b.flatten().tolist()))
        return 0.0

    assert two_sample_test(x, y, statistic=statistic, permutations=30, seed=3) == (0.0, 1.0)
    assert seen[0] == tuple(range(10))
    assert all(sorted(order) == list(range(10)) for order in seen)
    assert len(set(seen)) == 31
    first = list(seen)
    seen.clear()
    two_sample_test(x, y, statistic=statistic, permutations=30, seed=3)
    assert seen == first
    two_sample_test(x, y, statistic=statistic, permutations=30, seed=4)
    assert seen[31:] != first


@pytest.mark.parametrize(("n", "m"), [(12, 7), (6, 6), (2, 9)])
def test_one_pass_over_the_kernel_is_mmd_on_each_relabelling(n: int, m: int) -> None:
    x, y = draw(n, 2, key="x"), draw(m, 2, key="y") + 0.8
    slow = two_sample_test(x, y, statistic=lambda a, b: mmd(a, b, bandwidth=1.3), permutations=60)
    fast = two_sample_test(x, y, bandwidth=1.3, permutations=60)
    assert fast.value == pytest.approx(slow.value, rel=1e-12)
    assert fast.p_value == slow.p_value
    assert two_sample_test(x, y, permutations=20).value == pytest.approx(mmd(x, y), rel=1e-12)


def test_the_p_value_tends_to_the_exact_one_of_all_relabellings() -> None:
    x, y = draw(4, 1, key="x"), draw(3, 1, key="y") + 1.0
    pooled = torch.cat([x, y])
    values = [
        mmd(pooled[list(chosen)], pooled[[k for k in range(7) if k not in chosen]], bandwidth=1.0)
        for chosen in itertools.combinations(range(7), 4)
    ]
    exact = float(np.mean([value >= values[0] - 1e-12 for value in values]))
    reached = round(two_sample_test(x, y, bandwidth=1.0, permutations=4999).p_value * 5000) - 1
    assert 0 < exact < 1
    assert scipy.stats.binomtest(reached, 4999, exact).pvalue > 1e-6


@pytest.mark.parametrize("statistic", [None, energy_distance], ids=["mmd", "energy"])
def test_equal_laws_are_rejected_as_often_as_stated(statistic: Callable[[Tensor, Tensor], float] | None) -> None:
    # with 9 relabellings of continuous data p is uniform on 1/10 ... 1, whatever the sizes
    def p_value(stage: int, size: int) -> float:
        counts = np.zeros(10)
        for k in range(size):
            x, y = draw(6, 2, key=f"a{stage},{k}"), draw(4, 2, key=f"b{stage},{k}")
            test = two_sample_test(x, y, statistic=statistic, permutations=9, seed=10**6 * stage + k)
            counts[round(10 * test.p_value) - 1] += 1
        return float(scipy.stats.chisquare(counts).pvalue)

    assert p_value(0, 600) > 1e-3 or p_value(1, 4800) > 1e-5


def test_discrete_data_with_ties_keep_the_level() -> None:
    def p_value(stage: int, size: int) -> float:
        rejected = 0
        for k in range(size):
            drawn = integers(2, (10, 1), stream(5, "ties", stage, k)).double()
            if len(drawn.unique()) > 1:
                test = two_sample_test(drawn[:5], drawn[5:], bandwidth=1.0, permutations=19, seed=k)
                rejected += test.p_value <= 0.05
        return float(scipy.stats.binomtest(rejected, size, 0.05, alternative="greater").pvalue)

    assert p_value(0, 500) > 1e-3 or p_value(1, 4000) > 1e-5


def test_other_laws_are_found() -> None:
    x = draw(60, 2, key="x")
    assert two_sample_test(x, draw(60, 2, key="y") + 0.9).p_value == 1 / 1000
    # same mean, other spread; same marginals, other dependence
    assert two_sample_test(x, 2 * draw(60, 2, key="y")).p_value <= 0.002
    z = draw(300, 1, key="z")
    bent = torch.cat([z, z.abs() * (2.0 * integers(2, (300, 1), stream(0, "s")) - 1)], 1)
    assert two_sample_test(draw(300, 2, key="w"), bent, bandwidth=0.5).p_value <= 0.002
    assert two_sample_test(x, draw(60, 2, key="y") + 0.9, statistic=energy_distance, permutations=99).p_value == 0.01


# --- the classifier's test


class Halves:
    """Learns the two means of the first coordinate and splits between them; records what it was given."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> None:
        self.inputs, self.labels = x, y
        means = [x[y == label, 0].mean() for label in (0, 1)]
        self.middle, self.up = sum(means) / 2, means[1] > means[0]

    def predict(self, x: np.ndarray) -> np.ndarray:
        return ((x[:, 0] > self.middle) == self.up).astype(int)


@pytest.mark.parametrize(("size_x", "size_y", "called"), [(4, 3, 3), (3, 5, 2), (4, 4, 4), (2, 6, 7), (3, 3, 0)])
def test_the_classifiers_p_value_is_that_of_all_labellings(size_x: int, size_y: int, called: int) -> None:
    total = size_x + size_y
    predicted = np.arange(total) < called  # the samples that are called y
    results = []
    for chosen in itertools.combinations(range(total), size_y):
        is_y = np.isin(np.arange(total), chosen)
        right, wrong = int((predicted & is_y).sum()), int((predicted & ~is_y).sum())
        results.append(two_sample._judge(wrong, size_x, right, size_y))
    accuracies = np.array([result.value for result in results])
    for result in results:
        assert result.p_value == pytest.approx(np.mean(accuracies >= result.value - 1e-12), rel=1e-12)
    assert accuracies.mean() == pytest.approx(0.5, rel=1e-12)
    bound = math.sqrt(total / (size_x * size_y)) / 4 * math.sqrt(total / (total - 1))
    assert accuracies.std() <= bound * (1 + 1e-12)
    if 2 * called == total:
        assert accuracies.std() == pytest.approx(bound, rel=1e-12)


def test_equal_laws_do_not_fool_the_classifier() -> None:
    def p_value(stage: int, size: int) -> float:
        rejected, accuracies = 0, []
        for k in range(size):
            x, y = draw(20, 2, key=f"c{stage},{k}"), draw(13, 2, key=f"d{stage},{k}")
            test = classifier_two_sample_test(x, y, seed=k, classifier=Halves())
            rejected += test.p_value <= 0.1
            accuracies.append(test.value)
        level = scipy.stats.binomtest(rejected, size, 0.1, alternative="greater").pvalue
        return float(2 * min(level, scipy.stats.ttest_1samp(accuracies, 0.5).pvalue))

    assert p_value(0, 500) > 1e-3 or p_value(1, 4000) > 1e-5


def test_the_accuracy_of_a_shift_is_that_of_the_best_classifier() -> None:
    # N(0, 1) against N(d, 1): no classifier is right more often than Phi(d/2)
    shift = 1.2
    best = float(scipy.stats.norm.cdf(shift / 2))

    def p_value(stage: int, size: int) -> float:
        x, y = draw(2 * size, 1, key=f"e{stage}"), draw(2 * size, 1, key=f"f{stage}") + shift
        test = classifier_two_sample_test(x, y, seed=stage, classifier=Halves())
        right = round(test.value * 2 * size)
        return float(scipy.stats.binomtest(right, 2 * size, best).pvalue)

    assert p_value(0, 20_000) > 1e-3 or p_value(1, 160_000) > 1e-5


def test_the_classifier_gets_balanced_standardised_samples_and_the_rest_is_held_out() -> None:
    machine = Halves()
    x, y = 5 + 2 * draw(31, 2, 2, key="x"), 5 + 2 * draw(20, 2, 2, key="y")
    x[:, 0, 1], y[:, 0, 1] = 3.0, 3.0  # a coordinate without spread
    seen: list[np.ndarray] = []

    class Recorded(Halves):
        def predict(self, x: np.ndarray) -> np.ndarray:
            seen.append(x)
            return super().predict(x)

    machine = Recorded()
    classifier_two_sample_test(x, y, classifier=machine, train_share=0.3)
    assert machine.inputs.shape == (12, 4)
    assert machine.labels.sum() == 6
    assert len(seen) == 1
    assert seen[0].shape == (31 + 20 - 12, 4)
    assert np.allclose(machine.inputs.mean(0), 0, atol=1e-12)
    assert np.allclose(machine.inputs.std(0, ddof=1), [1, 0, 1, 1])
    everything = np.concatenate([machine.inputs, seen[0]])[:, 0]
    assert len(np.unique(everything)) == 51


def test_the_forest_finds_what_differs_and_nothing_else() -> None:
    x, y = draw(300, 2, key="x"), draw(300, 2, key="y")
    same, again, other = (classifier_two_sample_test(x, y, seed=s) for s in (1, 1, 2))
    assert same == again
    assert same.value != other.value
    assert same.p_value > 1e-6
    # a ring that no line tells from a disc
    ring = 1.4 * y / y.norm(dim=1, keepdim=True)
    found = classifier_two_sample_test(x, ring)
    assert found.value > 0.8
    assert found.p_value < 1e-30
    value, p_value = classifier_two_sample_test(x.float().reshape(300, 2, 1), y.float().reshape(300, 2, 1) + 0.6)
    assert 0.55 < value < 0.8
    assert p_value < 1e-3


# --- marginal distances


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
    assert all(
        torch.equal(marginal_distances(x, y, distance=name), one)
        for name, one in zip(marginals.DISTANCES, whole, strict=True)
    )


# --- what is refused, and what is left alone


FUNCTIONS = [mmd, two_sample_test, classifier_two_sample_test, marginal_distances, median_bandwidth]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_bad_samples_are_refused(function: Callable[[Tensor, Tensor], object]) -> None:
    x = draw(5, 3)
    with pytest.raises(DTypeError, match=r"y must be a torch.Tensor, got list"):
        function(x, [1.0])  # type: ignore[arg-type]
    with pytest.raises(DTypeError, match=r"x must have a real floating dtype, got torch.int64"):
        function(torch.ones(5, 3, dtype=torch.int64), x)
    with pytest.raises(ShapeError, match=r"same event shape, got \(5, 3\) and \(5, 2\)"):
        function(x, x[:, :2])
    with pytest.raises(ShapeError, match=r"x must hold at least . non-empty samples, got shape \(0, 3\)"):
        function(x[:0], x)
    broken = x.clone()
    broken[2, 1] = math.nan
    with pytest.raises(DomainError, match=r"y has 1 non-finite values of 15, the first at index \(2, 1\)"):
        function(x, broken)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_arguments_stay_as_they_are(function: Callable[..., object]) -> None:
    x, y = draw(12, 2, key="x", dtype=torch.float32), draw(10, 2, key="y", dtype=torch.float32)
    options = {"classifier": Halves()} if function is classifier_two_sample_test else {}
    kept, expected = x.clone(), function(x.double(), y.double(), **options)
    tracked = x.requires_grad_(True)
    result = function(tracked, y, **options)
    assert torch.equal(x.detach(), kept)
    assert x.grad is None
    # float32 samples are computed in float64
    assert torch.equal(torch.as_tensor(result), torch.as_tensor(expected))
    assert not torch.as_tensor(result).requires_grad


@pytest.mark.parametrize(
    ("act", "kind", "message"),
    [
        (lambda x: mmd(x, x[:1]), ShapeError, r"y must hold at least 2 non-empty samples, got shape \(1, 3\)"),
        (lambda x: mmd(x, x, bandwidth=0.0), DomainError, r"bandwidth must lie in \(0, inf\), got 0.0"),
        (lambda x: mmd(x, x, bandwidth=math.nan), DomainError, "bandwidth must lie in"),
        (
            lambda x: mmd(0 * x, 0 * x),
            DomainError,
            "all samples are equal, so their distances have no median; pass bandwidth=",
        ),
        (lambda x: two_sample_test(x, x, permutations=0), DomainError, "permutations must be at least 1, got 0"),
        (lambda x: two_sample_test(x, x, seed=-1), DomainError, "seed must lie in"),
        (lambda x: two_sample_test(x, x, bandwidth=-1.0), DomainError, r"bandwidth must lie in \(0, inf\)"),
        (
            lambda x: two_sample_test(x, x, statistic="mmd"),
            DTypeError,
            "statistic must be a function of two sets, got str; pass",
        ),
        (
            lambda x: two_sample_test(x, x, statistic=energy_distance, bandwidth=1.0),
            ConfigError,
            "bandwidth is that of mmd; bind it to your own statistic",
        ),
        (
            lambda x: two_sample_test(x, x, statistic=lambda a, b: math.nan),
            DomainError,
            "statistic must be finite, got nan on relabelling 0 of 999",
        ),
        (lambda x: classifier_two_sample_test(x[:3], x), ShapeError, "x must hold at least 4 non-empty samples"),
        (
            lambda x: classifier_two_sample_test(x, x, train_share=1.0),
            DomainError,
            r"train_share must lie in \(0, 1\), got 1.0",
        ),
        (lambda x: marginal_distances(x, x, distance="wasserstien"), ConfigError, "did you mean 'wasserstein'"),
    ],
)
def test_bad_options_are_refused(act: Callable[[Tensor], object], kind: type[ScoreSDEError], message: str) -> None:
    with pytest.raises(kind, match=message):
        act(draw(5, 3))


def test_a_classifier_that_returns_something_else() -> None:
    class Words(Halves):
        def predict(self, x: np.ndarray) -> np.ndarray:
            return super().predict(x) + 1

    with pytest.raises(DomainError, match=r"classifier must predict 10 labels 0 or 1, got \(10,\) values, \[1, 2\]"):
        classifier_two_sample_test(draw(10, 2), draw(10, 2) + 1, classifier=Words())


def test_the_forest_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(ConfigError, match=r'the classifier needs scikit-learn; .*pip install "scoresde\[data\]"'):
        classifier_two_sample_test(draw(8, 2), draw(8, 2))
    assert classifier_two_sample_test(draw(8, 2), draw(8, 2) + 9, classifier=Halves()).value == 1.0
