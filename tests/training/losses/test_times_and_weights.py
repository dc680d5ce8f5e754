"""Laws of the time and weights of the loss: in range, stratified, of the stated law, equal where they should be."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import SDES
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest, norm
from told import F64, X0, Says

from scoresde import EDMSDE, VESDE, VPSDE, ConfigError, DomainError, GaussianSDE, RectifiedFlow, ScoreModel
from scoresde.noise import stream
from scoresde.training.losses import (
    TIMES,
    WEIGHTS,
    Weight,
    denoising_score_matching,
    edm,
    log_normal,
    min_snr,
    p2,
    sigmoid,
)
from scoresde.training.losses.denoising import read_scalars


@pytest.mark.parametrize("times", TIMES)
@given(name=st.sampled_from(sorted(SDES)), n=st.integers(1, 300), seed=st.integers(0, 2**32))
def test_times_lie_in_the_interval(times: str, name: str, n: int, seed: int) -> None:
    t = TIMES[times](n, SDES[name], stream(seed))
    assert t.dtype == F64
    assert t.shape == (n,)
    assert float(t.min()) >= SDES[name].t_min
    assert float(t.max()) <= SDES[name].t_max


def test_times_where_the_signal_is_gone() -> None:
    sde = RectifiedFlow()
    for name in ("uniform", "low_discrepancy", "log_snr", "edm", "logit_normal", "cauchy"):
        t = TIMES[name](500, sde, stream(0))
        assert torch.isfinite(sde.log_snr(t)).sum() >= 499
    assert float(sde.log_snr(TIMES["log_snr"](500, sde, stream(0))).min()) >= -10
    with pytest.raises(ConfigError, match=r"times='importance' needs a finite log_snr .*RectifiedFlow.*lower t_max"):
        denoising_score_matching(
            ScoreModel(Says(torch.zeros_like), sde, predicts="v"), X0, times="importance", generator=stream(0)
        )


@given(n=st.integers(1, 300), seed=st.integers(0, 2**32))
def test_low_discrepancy_times_fill_every_stratum_once(n: int, seed: int) -> None:
    sde = VPSDE()
    u = (TIMES["low_discrepancy"](n, sde, stream(seed)) - sde.t_min) / (sde.t_max - sde.t_min)
    ordered = u.sort().values
    torch.testing.assert_close(ordered.diff(), torch.full((n - 1,), 1 / n, dtype=F64), rtol=0, atol=1e-12)
    assert -1e-12 <= float(ordered[0]) < 1 / n + 1e-12


def law(times: str, sde: GaussianSDE, t: np.ndarray) -> np.ndarray:
    """The distribution function of a law of times, from its definition."""
    low, high = sde.t_min, sde.t_max
    ends = sde.log_snr(torch.tensor([high, low], dtype=F64)).numpy()
    log_snr = sde.log_snr(torch.from_numpy(np.atleast_1d(t))).numpy()
    if times in ("uniform", "low_discrepancy"):
        return (t - low) / (high - low)
    if times in ("log_snr", "importance"):
        return (ends[1] - log_snr) / (ends[1] - ends[0])
    if times == "cauchy":
        places = np.arctan(ends / 3)
        return (places[1] - np.arctan(log_snr / 3)) / (places[1] - places[0])
    normal_law = {"edm": norm(-1.2, 1.2), "logit_normal": norm(0, 1)}[times]
    below, above = normal_law.cdf(-ends[1] / 2), normal_law.cdf(-ends[0] / 2)
    return (normal_law.cdf(-log_snr / 2) - below) / (above - below)


@pytest.mark.parametrize("name", ["vp", "ve"])
@pytest.mark.parametrize("times", TIMES)
def test_each_time_alone_has_its_law(times: str, name: str) -> None:
    sde = SDES[name]

    def p_value(count: int, salt: int) -> float:
        t = torch.cat([TIMES[times](1 + k % 16, sde, stream(7, salt, k))[-1:] for k in range(count)])
        return float(kstest(t.numpy(), lambda values: law(times, sde, values)).pvalue)

    assert p_value(1000, 0) > 1e-3 or p_value(8000, 1) > 1e-5


@pytest.mark.parametrize("times", sorted(set(TIMES) - {"uniform"}))
def test_stratified_times_fill_the_law_evenly(times: str) -> None:
    sde, n = VPSDE(), 64
    u = np.sort(law(times, sde, TIMES[times](n, sde, stream(3)).numpy()))
    np.testing.assert_allclose(np.diff(u), 1 / n, atol=1e-6)


def test_a_normal_law_of_your_own() -> None:
    sde = VESDE()
    t = log_normal(0.5, 0.1)(4000, sde, stream(0))
    log_sigma = sde.sigma(t).log()
    assert float(log_sigma.mean()) == pytest.approx(0.5, abs=1e-3)
    assert float(log_sigma.std()) == pytest.approx(0.1, rel=1e-2)


@pytest.mark.parametrize("weight", ["likelihood", "simple"])
def test_importance_keeps_the_mean_and_levels_the_likelihood_weight(weight: str) -> None:
    # Against zeros the noise's error is z^2: the loss is its weight, exactly, where z = 1.
    sde, n = VPSDE(t_min=1e-3), 20_000
    x0 = torch.zeros(n, 1, dtype=F64)
    model = ScoreModel(Says(torch.zeros_like), sde)
    both = [
        denoising_score_matching(model, x0, weight=weight, times=times, generator=stream(1), noise=torch.ones_like(x0))
        for times in ("low_discrepancy", "importance")
    ]
    means = [float(losses.mean()) for losses in both]
    assert means[1] == pytest.approx(means[0], rel=2e-3)
    if weight == "likelihood":
        ends = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=F64))
        level = float(ends[0] - ends[1]) / 2 / (sde.t_max - sde.t_min)
        torch.testing.assert_close(both[1], torch.full((n,), level, dtype=F64), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("weight", "same"),
    [(min_snr(1e12), "simple"), (p2(1.0, 0.0), "simple"), (sigmoid(60.0), "likelihood")],
)
def test_weights_reduce_to_others_at_their_limits(weight: Weight, same: str) -> None:
    sde = VPSDE()
    point = sde.at(torch.linspace(sde.t_min, sde.t_max, 50, dtype=F64))
    torch.testing.assert_close(weight(point, sde), WEIGHTS[same](point, sde), rtol=1e-12, atol=0)


def test_edm_weight_makes_the_edm_error_count_the_same_everywhere() -> None:
    sde = EDMSDE()
    t = torch.logspace(-2, 1.8, 9, dtype=F64)
    model = ScoreModel(Says(torch.zeros_like), sde, predicts="edm")
    factors = read_scalars(model, sde.at(t), edm(0.5)).multipliers.loss
    torch.testing.assert_close(factors, torch.ones(9, dtype=F64), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: min_snr(0.0), r"gamma must .*got 0"),
        (lambda: edm(-0.5), r"sigma_data must .*got -0.5"),
        (lambda: p2(k=0.0), r"k must .*got 0"),
        (lambda: p2(gamma=-1.0), r"gamma must .*got -1"),
        (lambda: sigmoid(math.nan), r"bias must .*got nan"),
        (lambda: log_normal(0.0, 0.0), r"std must .*got 0"),
    ],
)
def test_parameters_of_weights_and_laws_are_checked(make: Callable[[], object], message: str) -> None:
    with pytest.raises(DomainError, match=message):
        make()
