"""The two-sample tests: their p-values against enumeration, their level and power."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from samples import Halves, draw
from torch import Tensor

from scoresde.metrics import classifier_two_sample_test, energy_distance, mmd, two_sample, two_sample_test
from scoresde.noise import integers, stream


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
