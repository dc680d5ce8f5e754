r"""Tests of whether two sets of samples have one law: by permutation, and by a classifier.

**By permutation.** If P = Q, the n + m pooled samples are exchangeable: which n of them are called x is a matter of
chance. So the statistic T of the given sets is as likely as not to have any rank among its values T_1 ... T_K on K
random relabellings, and

    p = (1 + #{k: T_k >= T})/(1 + K)

is at most a with a probability of at most a, for every a, n, m, K and T (Phipson, Smyth 2010; the 1 is what keeps the
level). The smallest p is 1/(1 + K).

**By a classifier.** A classifier learns x from y on one part of the samples and is judged on the rest, k_x and k_y of
them. If P = Q its predictions say nothing of the labels: given that it calls s held-out samples y, the number h of
those that are is hypergeometric, h ~ H(k_x + k_y, k_y, s), and p = P(H >= h) has the stated level (Fisher 1935). The
labels are drawn without replacement, so the accuracy is *not* binomial: at k_x = k_y = k its variance is up to
2k/(2k - 1) times that of 2k fair coins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from scoresde.errors.kinds import ConfigError, DomainError, DTypeError, show
from scoresde.errors.tensors import check_floating
from scoresde.errors.values import check_callable, check_integer, check_number, check_value
from scoresde.metrics.discrepancy import check_bandwidth, kernel
from scoresde.metrics.floors import Metric
from scoresde.metrics.pairs import BLOCK, check_pair
from scoresde.noise import integers, permutation, stream, undisturbed
from scoresde.ops import Array, accept_arrays, chunks

__all__ = ["Classifier", "TwoSampleTest", "classifier_two_sample_test", "two_sample_test"]


class TwoSampleTest(NamedTuple):
    """What a test found.

    Args:
        value: the statistic, in its own units.
        p_value: the probability, if both sets have one law, of a value as large as this, in (0, 1].
    """

    value: float
    p_value: float


class Classifier(Protocol):
    """A classifier as scikit-learn's are."""

    def fit(self, x: NDArray[np.float64], y: NDArray[np.int64], /) -> object:
        """Learn labels (N,), 0 or 1, of samples (N, D)."""
        ...

    def predict(self, x: NDArray[np.float64], /) -> NDArray[Any]:
        """Return the labels (N,) of samples (N, D)."""
        ...


def two_sample_test(
    x: Array,
    y: Array,
    *,
    statistic: Metric | None = None,
    bandwidth: float | None = None,
    permutations: int = 999,
    seed: int = 0,
) -> TwoSampleTest:
    """Return the statistic of two sets and the p-value of its permutation test.

    Without ``statistic`` it costs (n + m)^2 distances, each used for all relabellings, and holds (n + m) permutations
    numbers at once.

    Args:
        x: samples (n, *), any event shape, n >= 2.
        y: samples (m, *) of the same event shape, m >= 2; n and m may differ.
        statistic: a function of two sets that is large where they differ, e.g. ``energy_distance``, called
            permutations + 1 times. None for ``mmd``, all of whose values come from one pass over the distances.
        bandwidth: of ``mmd``; None for ``median_bandwidth``.
        permutations: number of random relabellings, at least 1.
        seed: names them.

    Raises:
        DTypeError, ShapeError, DomainError, ConfigError: not finite floating samples, fewer than two, event shapes or
            devices that differ, bad options, a statistic that is not finite.

    Source: Gretton, Borgwardt, Rasch, Schoelkopf, Smola (2012); Phipson, Smyth (2010), arXiv:1603.05766.
    """
    first, second = check_pair(x, y, least=2)
    count = check_integer(permutations, "permutations", 1, 10**6)
    n, total = first.shape[0], first.shape[0] + second.shape[0]
    generator = stream(seed, "two_sample_test")
    if statistic is None:
        width = check_bandwidth(bandwidth, first, second)
        values = _mmds(torch.cat([first, second]), n, width, _draw_orders(total, count, generator))
        # All terms lie in [0, 1]: relabellings that are equal but for the order of summation must count as equal.
        slack = 100 * torch.finfo(first.dtype).eps
    else:
        check_callable(statistic, "statistic", "of two sets, e.g. energy_distance", optional=False)
        if bandwidth is not None:
            raise ConfigError("bandwidth is that of mmd; bind it to your own statistic")
        pooled = torch.cat([check_floating(accept_arrays(one)) for one in (x, y)]).detach()
        orders = (order.to(pooled.device) for order in _draw_orders(total, count, generator))
        values = [check_value(statistic(pooled[order[:n]], pooled[order[n:]]), "statistic") for order in orders]
        slack = 1e-12 * abs(values[0])
    bad = [k for k, value in enumerate(values) if not math.isfinite(value)]
    if bad:
        raise DomainError(f"statistic must be finite, got {values[bad[0]]} on relabelling {bad[0]} of {count}")
    reached = sum(value >= values[0] - slack for value in values[1:])
    return TwoSampleTest(values[0], (1 + reached) / (1 + count))


def classifier_two_sample_test(
    x: Array,
    y: Array,
    *,
    seed: int = 0,
    classifier: Classifier | None = None,
    train_share: float = 0.5,
) -> TwoSampleTest:
    """Return the held-out accuracy of a classifier that tells x from y, and its exact p-value.

    The accuracy is balanced, the mean of the shares of x and of y that are recognised: 1/2 by chance whatever n and m,
    1 where the sets can be told apart; no unit. Its floor is 1/2, with a standard deviation of at most
    sqrt((k_x + k_y)/(k_x k_y))/4 for k_x and k_y held-out samples (and a factor 1 + 1/(2 (k_x + k_y)) for few).

    Args:
        x: samples (n, *), any event shape, n >= 4.
        y: samples (m, *) of the same event shape, m >= 4; n and m may differ.
        seed: names the split and the classifier's own random numbers.
        classifier: has ``fit`` and ``predict``; None for scikit-learn's random forest
            of 100 trees, which sees what small networks miss in the plane and costs less.
        train_share: share of the smaller set that is used in training, in (0, 1), and as many of the larger; the rest
            is held out. Coordinates are standardised by the training samples.

    Raises:
        DTypeError, ShapeError, DomainError, ConfigError: not finite floating samples, fewer than four, event shapes or
            devices that differ, bad options, a classifier that returns other labels, or scikit-learn is missing.

    Source: Lopez-Paz, Oquab (2017), arXiv:1610.06545; Fisher (1935) for the exact test.
    """
    first, second = check_pair(x, y, least=4)
    share = check_number(train_share, "train_share", 0.0, 1.0, open_low=True, open_high=True)
    smaller = min(first.shape[0], second.shape[0])
    size = min(max(1, round(share * smaller)), smaller - 1)
    generator = stream(seed, "classifier_two_sample_test")
    sets = [one.to("cpu", torch.float64)[permutation(len(one), generator)] for one in (first, second)]
    train = torch.cat([one[:size] for one in sets])
    mean, std = train.mean(0), train.std(0)
    std = torch.where(std > 0, std, torch.ones_like(std))
    labels = (torch.arange(2 * size, device="cpu") >= size).to(torch.int64)
    order = permutation(2 * size, generator)
    given: object = classifier
    if not (given is None or (callable(getattr(given, "fit", None)) and callable(getattr(given, "predict", None)))):
        raise DTypeError(f"classifier must have fit(x, y) and predict(x), got {show(given)}")
    machine = _make_forest(int(integers(2**31, (), generator))) if classifier is None else classifier
    machine.fit(((train - mean) / std)[order].numpy(), labels[order].numpy())
    # One call in random order: what a classifier makes of the order or of the batch cannot tell the labels.
    held_out = torch.cat([one[size:] for one in sets])
    order = permutation(len(held_out), generator)
    called = np.asarray(machine.predict(((held_out - mean) / std)[order].numpy()))
    if called.shape != (len(held_out),) or not np.isin(called, (0, 1)).all():
        raise DomainError(
            f"classifier must predict {len(held_out)} labels 0 or 1, got {called.shape} values, "
            f"{np.unique(called)[:5].tolist()}; they are what fit was given"
        )
    size_x, size_y = (len(one) - size for one in sets)
    called_y, is_y = called == 1, order.numpy() >= size_x
    return _judge(int((called_y & ~is_y).sum()), size_x, int((called_y & is_y).sum()), size_y)


def _judge(wrong: int, size_x: int, right: int, size_y: int) -> TwoSampleTest:
    """Return balanced accuracy and exact p-value where ``wrong`` of x and ``right`` of y were called y."""
    from scipy.stats import hypergeom

    accuracy = 0.5 * ((size_x - wrong) / size_x + right / size_y)
    return TwoSampleTest(accuracy, float(hypergeom.sf(right - 1, size_x + size_y, size_y, wrong + right)))


def _make_forest(random_state: int) -> Classifier:
    """Return an untrained random forest of scikit-learn's."""
    try:
        with undisturbed():
            from sklearn.ensemble import RandomForestClassifier
    except ImportError as error:
        raise ConfigError(
            'the classifier needs scikit-learn; in the repository run pip install ".[data]", or pass classifier='
        ) from error
    forest: Classifier = RandomForestClassifier(100, min_samples_leaf=5, random_state=random_state)
    return forest


def _draw_orders(total: int, count: int, generator: Generator) -> Iterator[Tensor]:
    """Yield the order as it is and ``count`` random ones."""
    yield torch.arange(total, device="cpu")
    for _ in range(count):
        yield permutation(total, generator)


def _mmds(pooled: Tensor, n: int, bandwidth: float, orders: Iterator[Tensor]) -> list[float]:
    """Return ``mmd`` of the first n samples and the others in each order.

    With the kernel matrix K and the indicator s of the first set, sum over pairs of x is s.K s, and over pairs of one
    of x with any other s.K 1: one pass over K serves many s, the columns of a matrix.
    """
    total = pooled.shape[0]
    m = total - n
    chosen = torch.stack(
        [torch.zeros(total, dtype=torch.float32, device="cpu").index_fill_(0, order[:n], 1.0) for order in orders],
        dim=1,
    ).to(pooled)
    inner, outer = pooled.new_zeros(chosen.shape[1]), pooled.new_zeros(chosen.shape[1])
    everything = pooled.new_zeros(())
    for part in chunks(total, max(1, BLOCK // total)):
        rows = kernel(pooled[part], pooled, bandwidth)
        sums = rows.sum(1)
        inner += (chosen[part] * (rows @ chosen)).sum(0)
        outer += sums @ chosen[part]
        everything += sums.sum()
    within_x, within_y = inner - n, everything - 2 * outer + inner - m
    values: list[float] = (within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * (outer - inner) / (n * m)).tolist()
    return values
