"""What the tests and distances of two sets refuse, and what they leave alone."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from samples import Halves, draw
from torch import Tensor

from scoresde.errors import ConfigError, DomainError, DTypeError, ScoreSDEError, ShapeError
from scoresde.metrics import (
    classifier_two_sample_test,
    energy_distance,
    marginal_distances,
    median_bandwidth,
    mmd,
    two_sample_test,
)

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
            "statistic must be a function of two sets, e.g. energy_distance, got",
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
    with pytest.raises(ConfigError, match=r'the classifier needs scikit-learn; .*pip install "\.\[data\]"'):
        classifier_two_sample_test(draw(8, 2), draw(8, 2))
    assert classifier_two_sample_test(draw(8, 2), draw(8, 2) + 9, classifier=Halves()).value == 1.0
