"""The chain that only adds noise: its laws, its SDE, its tables, faults."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from chain_weights import close, weights
from helpers import MEAN, VARIANCE, gaussian
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scoresde import (
    EDMSDE,
    SMLD,
    VESDE,
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    ShapeError,
    TabulatedSDE,
    sample,
)
from scoresde.noise import normal, stream

F64 = torch.float64
# Ratios of neighbours, the first one of all of them a level.
levels = st.lists(st.floats(1.05, 6.0), min_size=1, max_size=20).map(
    lambda r: 0.01 * torch.tensor(r, dtype=F64).cumprod(0)
)


@given(levels)
def test_laws_are_song_et_al(sigmas: Tensor) -> None:
    """Song et al. 2021, appendix B and F: x_i = x_{i-1} + sqrt(sigma_i^2 - sigma_{i-1}^2) z, sigma_{-1} = 0."""
    chain, n = SMLD(sigmas), len(sigmas)
    before = torch.cat([torch.zeros(1, dtype=F64), sigmas[:-1]])
    fresh = (sigmas - before) * (sigmas + before)
    index = torch.arange(n)
    x0, x = normal((n, 2), stream(0), dtype=F64), normal((n, 2), stream(1), dtype=F64)
    mean, std = chain.transition(x, index)
    close(mean, x)
    close(std.square(), fresh)
    mean, std = chain.marginal(x0, index)
    close(mean, x0)
    close(std, sigmas)
    close(chain.perturb(x0, index, x), x0 + sigmas[:, None] * x)
    mean, std = chain.posterior(x0, x, index)
    ratio = (before / sigmas).square()[:, None]
    close(mean, ratio * x + (1 - ratio) * x0, 1e-12, 1e-13)
    close(std.square(), before.square() * fresh / sigmas.square())
    close(chain.posterior_variance, std.square())
    _, large = chain.reverse(x0, x, index, variance="large")
    close(large.square(), fresh)


@given(levels)
def test_ancestral_rows_are_the_papers(sigmas: Tensor) -> None:
    """Appendix F: x_{i-1} = x + (sigma_i^2 - sigma_{i-1}^2) score + sqrt(sigma_{i-1}^2 fresh/sigma_i^2) z."""
    chain = SMLD(sigmas)
    before = torch.cat([torch.zeros(1, dtype=F64), sigmas[:-1]])
    fresh = (sigmas - before) * (sigmas + before)
    # score = (data - x)/sigma^2.
    on_data = fresh / sigmas.square()
    small = (before.square() * fresh).sqrt() / sigmas
    for variance, noise in (("small", small), ("large", torch.where(before > 0, fresh.sqrt(), 0.0))):
        rows = torch.stack([1 - on_data, on_data, noise], 1).flip(0).numpy()
        table = chain.ancestral(variance=variance)
        np.testing.assert_allclose(weights(table), rows, rtol=1e-11, atol=1e-14)
        assert not table.rows[-1].draws
        assert (table.prior_std, table.start.sigma) == (float(sigmas[-1]), float(sigmas[-1]))
        assert (table.end.t, table.end.alpha, table.end.sigma) == (0.0, 1.0, 0.0)
    np.testing.assert_allclose(weights(chain.ddim(1.0)), weights(chain.ancestral()), rtol=1e-12, atol=1e-15)
    # The probability flow from sigma_i to sigma_{i-1} at first order.
    ratio = before / sigmas
    rows = torch.stack([ratio, 1 - ratio, torch.zeros_like(ratio)], 1).flip(0).numpy()
    np.testing.assert_allclose(weights(chain.ddim()), rows, rtol=1e-11, atol=1e-15)


@settings(max_examples=30)
@given(levels.filter(lambda s: len(s) > 1), st.data())
def test_the_sde_and_the_sub_chains_have_the_levels(sigmas: Tensor, data: st.DataObject) -> None:
    chain = SMLD(sigmas)
    sde = chain.sde()
    assert isinstance(sde, TabulatedSDE)
    assert torch.equal(sde.knots, chain.times)
    close(sde.sigma(chain.times), sigmas)
    assert torch.equal(sde.alpha(chain.times), torch.ones_like(sigmas))
    assert float(sde.prior_std(1.0)) == pytest.approx(float(sigmas[-1]), rel=1e-14)
    steps = data.draw(st.integers(1, len(sigmas)))
    sub = chain.strided(steps)
    kept = torch.linspace(0, len(sigmas), steps + 1, dtype=F64).round().long()[1:] - 1
    assert torch.equal(sub.sigmas, sigmas[kept])
    assert torch.equal(sub.times, chain.times[kept])
    np.testing.assert_allclose(weights(sub.ancestral()), weights(chain.ancestral(steps=steps)), rtol=0)


@pytest.mark.parametrize("n", [2, 7, 1000])
def test_geometric_levels_are_ve_in_both_ways_of_counting_time(n: int) -> None:
    """sigma_min r^{i/(n - 1)} is VESDE at i/(n - 1), and at (i + 1)/n the VESDE that starts one level lower."""
    chain, ratio = SMLD.geometric(n, sigma_min=0.01, sigma_max=50.0), 5000.0
    close(chain.sigmas, 0.01 * ratio ** (torch.arange(n, dtype=F64) / (n - 1)))
    assert (float(chain.sigmas[0]), float(chain.sigmas[-1])) == (0.01, 50.0)
    close(SMLD.from_sde(VESDE(), n, rule="song").sigmas, chain.sigmas)
    lower = VESDE(sigma_min=0.01 * ratio ** (-1 / (n - 1)), sigma_max=50.0)
    close(lower.sigma(chain.times), chain.sigmas)
    close(SMLD.from_sde(lower, n).sigmas, chain.sigmas)
    # Between the knots too: log_snr is a straight line through them.
    t = torch.linspace(1 / n, 1, 3 * n + 1, dtype=F64)
    close(chain.sde().sigma(t), lower.sigma(t), 1e-11)
    assert float(SMLD.geometric(1).sigmas[0]) == 50.0


def test_exact_rule_has_the_levels_of_its_sde() -> None:
    close(SMLD.from_sde(VESDE(), 10).sigmas, VESDE().sigma(torch.arange(1, 11, dtype=F64) / 10))
    close(SMLD.from_sde(EDMSDE(), 40).sigmas, torch.arange(1, 41, dtype=F64) * 2)
    assert repr(SMLD.from_sde(EDMSDE(), 40)) == "SMLD(40 levels, sigma 2 to 80)"


def test_the_law_of_ancestral_sampling_is_its_recursion() -> None:
    """The real sampler's output on Gaussian data, by Song et al.'s formula for mean and variance alone."""
    chain, model = SMLD.geometric(12, sigma_min=0.05, sigma_max=20.0), gaussian(VESDE(sigma_min=0.05, sigma_max=20.0))
    table = chain.ancestral()
    sigmas = [0.0, *chain.sigmas.tolist()]
    mean, variance = 0.3, 17.0
    for late, early in zip(sigmas[:0:-1], sigmas[-2::-1], strict=True):
        fresh, total = late**2 - early**2, VARIANCE + late**2
        keep = 1 - fresh / total
        mean = keep * mean + fresh / total * MEAN
        variance = keep**2 * variance + early**2 * fresh / late**2
    assert table.law(MEAN, VARIANCE, start=(0.3, 17.0)) == pytest.approx((mean, variance), rel=1e-12)
    unit = torch.eye(13, dtype=F64)
    out = sample(model, x_init=unit[1], noise=list(unit[2:]), solver=table, final="sample")
    got = (out[1:] - out[0]).numpy()
    assert float(out[0]) + 0.3 * got[0] == pytest.approx(mean, rel=1e-12)
    assert 17.0 * got[0] ** 2 + (got[1:] ** 2).sum() == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: SMLD(torch.zeros(2, 2)), ShapeError, r"sigmas must be a vector .* got \(2, 2\)"),
        (lambda: SMLD(torch.zeros(0)), ShapeError, r"sigmas must be a vector .* got \(0,\)"),
        (lambda: SMLD(torch.tensor([0.0, 1.0])), DomainError, "at index 0 it is 0: clean data are no level"),
        (lambda: SMLD(torch.tensor([1.0, math.nan])), DomainError, "at index 1 it is nan"),
        (lambda: SMLD(torch.tensor([3.0, 2.0, 1.0])), DomainError, r"these decrease: use sigmas\.flip\(0\)"),
        (lambda: SMLD(torch.tensor([1.0, 3.0, 2.0])), DomainError, "at index 2 it is 2 after 3: sort them"),
        (lambda: SMLD(torch.tensor([1.0, 1.0])), DomainError, "at index 1 it is 1 after 1: sort them"),
        (lambda: SMLD.geometric(5, sigma_min=0.0), DomainError, r"sigma_min must lie in \(0, inf\), got 0"),
        (lambda: SMLD.geometric(5, sigma_max=0.01), DomainError, r"sigma_max must lie in \(0\.01, inf\)"),
        (lambda: SMLD.geometric(0), DomainError, "n must be at least 1, got 0"),
        (lambda: SMLD.from_sde(VPSDE(), 5), ConfigError, "an SMLD chain has alpha = 1, VPSDE.* has not; use VESDE"),
        (lambda: SMLD.from_sde(EDMSDE(), 5, rule="song"), DomainError, "at index 0 it is 0"),
        (lambda: SMLD.from_sde(VESDE(), 5, rule="exat"), ConfigError, "did you mean 'exact'"),
        (lambda: SMLD.from_sde(VESDE(), 5.0), DTypeError, r"n must be an integer, got 5\.0"),
        (lambda: SMLD(torch.tensor([1.0])).sde(), ConfigError, "a chain of one index defines no SDE"),
        (
            lambda: SMLD.geometric(5).perturb(torch.zeros(2, 2), 0.5, torch.zeros(2, 2)),
            DTypeError,
            "must be an integer",
        ),
    ],
)
def test_faults(make, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make()
