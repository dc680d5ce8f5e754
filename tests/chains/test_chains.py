"""Chains: references, laws at the knots, sub-chains and tables."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from chain_weights import CHAINS, F64, bars, betas, close, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scoresde import (
    DDPM,
    VPSDE,
    ConfigError,
    DomainError,
)
from scoresde.noise import normal, stream

# ---------------------------------------------------------------------------------------------------------------------
# The chain


@pytest.mark.parametrize("row", CHAINS, ids=lambda r: f"{r['kind']}-{r['n']}")
def test_chains_match_references(row: dict) -> None:
    chain = {"linear": DDPM.linear, "cosine": DDPM.cosine, "sigmoid": DDPM.sigmoid}[row["kind"]](row["n"])
    index = torch.tensor(row["index"])
    assert len(chain) == row["n"]
    clean = chain.points[0]
    assert (float(clean.t), float(clean.alpha), float(clean.sigma), float(clean.log_snr)) == (0.0, 1.0, 0.0, math.inf)
    # Near pi/2 the cosine's relative error is its angle's rounding over the angle that is left.
    rtol = 1e-12 if row["kind"] == "linear" else 1e-15 * row["n"]
    close(chain.betas[index], row["beta"], rtol)
    close(chain.alphas_cumprod[index], row["alpha_bar"], rtol)
    close(chain.points.sigma[index + 1].square(), row["one_minus_alpha_bar"])
    close(chain.points.log_snr[index + 1], row["log_snr"], 1e-11, 1e-14)  # it crosses zero
    close(chain.posterior_variance[index], row["posterior_variance"], rtol)
    x0, x_i = normal((len(index), 2), stream(0), dtype=F64), normal((len(index), 2), stream(1), dtype=F64)
    mean, std = chain.posterior(x0, x_i, index)
    on_x, on_x0 = (torch.tensor(row[name], dtype=F64)[:, None] for name in ("on_x", "on_x0"))
    close(mean, on_x * x_i + on_x0 * x0, rtol, 1e-14)
    close(std.square(), row["posterior_variance"], rtol)


@given(betas)
def test_posterior_is_ho_equations_6_and_7(b: Tensor) -> None:
    chain = DDPM.from_betas(b)
    beta, bar, before = bars(chain)
    # log1p(-beta) is carried: 1 - alpha_bar of the textbook's product rounds to 1e-16.
    lost = float(1e-15 / (1 - bar).min())
    close(chain.betas, b, 1e-14)
    # The variance comes from the difference of two rounded log_snr.
    log_snr = chain.points.log_snr[1:]
    gap = 1e-15 * (1 + float(log_snr.abs().max())) / float(-log_snr.diff().max()) if len(b) > 1 else 0.0
    close(chain.posterior_variance, (1 - before) / (1 - bar) * beta, 1e-12 + gap + 4 * lost, 1e-16)
    x0, z = normal((len(b), 3), stream(2), dtype=F64), normal((len(b), 3), stream(3), dtype=F64)
    index = torch.arange(len(b))
    x_i = chain.perturb(x0, index, z)
    mean, _ = chain.posterior(x0, x_i, index)
    # Their eq. 11: the same mean from the noise.
    from_noise = (x_i - (beta / (1 - bar).sqrt())[:, None] * z) / (1 - beta).sqrt()[:, None]
    close(mean, from_noise, 1e-10, 1e-11 + 10 * lost)
    close(x_i, bar.sqrt()[:, None] * x0 + (1 - bar).sqrt()[:, None] * z, 1e-12, 1e-12 + lost)


@settings(max_examples=40)
@given(betas.filter(lambda b: len(b) > 1))
def test_the_sde_of_a_chain_is_the_chain_at_its_knots(b: Tensor) -> None:
    chain = DDPM.from_betas(b)
    sde, t = chain.sde(), chain.times
    assert torch.equal(sde.knots, t)
    close(sde.alpha(t).square(), chain.alphas_cumprod)
    close(sde.sigma(t), chain.points.sigma[1:])
    a, scale = sde.transition_weights(torch.cat([torch.zeros(1, dtype=F64), t[:-1]]), t)
    gap = sde.log_snr(t).diff().abs()
    # b^2 = sigma^2 (1 - e^D) loses what the difference D of two rounded log_snr loses.
    lost = 1e-15 * (sde.log_snr(t).abs().max() + 1) / gap.min()
    close(a.square(), 1 - b)
    close(scale.square(), b, 1e-12 + float(lost))


def test_bf16_samples_get_their_noise() -> None:
    """A cumulative product in bf16 adds nothing at the first indices; coefficients in float64 do."""
    chain, one = DDPM.linear(1000), torch.ones(1, 1, dtype=torch.bfloat16)
    for index, expected in ((0, 0.01), (20, 0.0791490457)):
        got = chain.perturb(0 * one, index, one)
        assert got.dtype == torch.bfloat16
        assert float(got) == pytest.approx(expected, rel=2**-8)


def test_cut_betas_and_repr() -> None:
    cosine = DDPM.cosine(1000)
    assert float(cosine.betas[-1]) == pytest.approx(0.999, rel=1e-12)
    assert int((cosine.betas > 0.998).sum()) == 1
    assert repr(DDPM.linear(1000)) == "DDPM(1000 steps, beta 0.0001 to 0.02)"
    assert float(DDPM.linear(10, beta_start=0.1, beta_end=0.5).betas[-1]) == pytest.approx(0.5, rel=1e-14)


@settings(max_examples=40)
@given(st.integers(1, 200), st.floats(-4, 1), st.floats(0.5, 6), st.floats(0.5, 3), st.sampled_from([1e-9, 1e-4]))
def test_sigmoid_is_the_papers(n: int, start: float, width: float, tau: float, clip: float) -> None:
    """Chen 2023, algorithm 1: a sigmoid of t, moved and scaled to 1 and 0, not below the clip."""
    end = start + width

    def logistic(t: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-(t * (end - start) + start) / tau))

    t = np.arange(1, n + 1) / n
    first, last = logistic(np.zeros(1)), logistic(np.ones(1))
    gamma = np.maximum((last - logistic(t)) / (last - first), clip)
    if (np.diff(gamma, prepend=1.0) >= 0).any():
        with pytest.raises(DomainError, match="alpha_bar stands still at index"):
            DDPM.sigmoid(n, start=start, end=end, tau=tau, clip=clip)
        return
    chain = DDPM.sigmoid(n, start=start, end=end, tau=tau, clip=clip)
    np.testing.assert_allclose(chain.alphas_cumprod.numpy(), gamma, rtol=1e-11, atol=1e-14)
    assert float(chain.alphas_cumprod[-1]) == pytest.approx(clip, rel=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Laws between neighbours


def test_laws_are_ho_et_al() -> None:
    """q(x_i | x_{i-1}), q(x_i | x_0), and p(x_{i-1} | x_i) with each variance, one index for each sample."""
    chain = DDPM.cosine(12)
    beta, bar, before = bars(chain)
    index = torch.arange(12)
    x, x0 = normal((12, 2), stream(6), dtype=F64), normal((12, 2), stream(7), dtype=F64)
    mean, std = chain.transition(x, index)
    close(mean, (1 - beta).sqrt()[:, None] * x, 1e-12, 1e-13)
    close(std, beta.sqrt())
    mean, std = chain.marginal(x0, index)
    close(mean, bar.sqrt()[:, None] * x0)
    close(std, (1 - bar).sqrt(), 1e-11)
    small = beta * (1 - before) / (1 - bar)
    expected, _ = chain.posterior(x0, x, index)
    for variance, value in (("small", small), ("large", beta)):
        mean, std = chain.reverse(x0, x, index, variance=variance)
        assert torch.equal(mean, expected)
        close(std, value.sqrt(), 1e-10)
    one, _ = chain.reverse(x0[:1], x[:1], 4)
    assert torch.equal(one, chain.posterior(x0[:1], x[:1], 4)[0])


def test_learned_variance_is_nichol_and_dhariwal_15() -> None:
    chain = DDPM.cosine(12)
    beta, bar, before = bars(chain)
    small = beta * (1 - before) / (1 - bar)
    # Their log variance at the first index, where it would be minus infinity, is the second's.
    clipped = torch.cat([small[1:2], small[1:]])
    x, v = normal((12, 2), stream(8), dtype=F64), normal((12, 2), stream(9), dtype=F64)
    mean, std = chain.reverse(x, 2 * x, torch.arange(12), variance="learned", fraction=v)
    close(std.square(), torch.exp(v * beta.log()[:, None] + (1 - v) * clipped.log()[:, None]), 1e-10)
    assert torch.equal(mean, chain.posterior(x, 2 * x, torch.arange(12))[0])
    _, std = DDPM.from_betas(torch.tensor([0.3])).reverse(x, x, 0, variance="learned", fraction=v)
    close(std.square(), torch.full_like(x, 0.3), 1e-6)


@given(betas, st.data())
def test_a_sub_chain_is_the_chain_at_the_kept_knots(b: Tensor, data: st.DataObject) -> None:
    chain = DDPM.from_betas(b)
    steps = data.draw(st.integers(1, len(b)))
    sub = chain.strided(steps)
    kept = torch.linspace(0, len(b), steps + 1, dtype=F64).round().long()[1:] - 1
    assert isinstance(sub, DDPM)
    assert len(sub) == steps
    assert torch.equal(sub.times, chain.times[kept])
    close(sub.log_alphas_cumprod, chain.log_alphas_cumprod[kept], 1e-13)
    close(sub.points.log_snr[1:], chain.points.log_snr[1:][kept], 1e-11, 1e-13)
    # Chapman-Kolmogorov: the transitions between two kept knots, one after another, are the sub-chain's.
    a, b2 = 1.0, 0.0
    for i in range(int(kept[-2]) + 1 if steps > 1 else 0, len(b)):
        a, b2 = a * math.sqrt(1 - float(b[i])), (1 - float(b[i])) * b2 + float(b[i])
    mean, std = sub.transition(torch.ones(1, dtype=F64), steps - 1)
    assert float(mean) == pytest.approx(a, rel=1e-10)
    assert float(std) ** 2 == pytest.approx(b2, rel=1e-9, abs=1e-13)
    # A sub-chain of all indices is the chain, and strides of strides keep the first chain's times.
    assert torch.equal(chain.strided(len(b)).log_alphas, chain.log_alphas)
    assert float(sub.strided(1).times[0]) == 1.0
    np.testing.assert_allclose(weights(sub.ancestral()), weights(chain.ancestral(steps=steps)), rtol=0, atol=0)


def test_a_sub_chain_has_an_sde_at_the_same_times() -> None:
    chain = DDPM.linear(50)
    sub = chain.strided(7)
    close(sub.sde().log_snr(sub.times), chain.sde().log_snr(sub.times), 1e-12, 1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Tables


@pytest.mark.parametrize(
    "chain", [DDPM.linear(1000), DDPM.cosine(50), DDPM.cosine(4), DDPM.from_sde(VPSDE(), 1)], ids=repr
)
def test_ancestral_rows_are_the_posterior(chain: DDPM) -> None:
    beta, bar, before = bars(chain)
    for variance, noise in (("small", ((1 - before) / (1 - bar) * beta).sqrt()), ("large", beta.sqrt())):
        table = chain.ancestral(variance=variance)
        # No noise enters the last step, in either variance.
        noise = torch.where(torch.arange(len(chain)) == 0, 0.0, noise)
        rows = torch.stack([(1 - beta).sqrt() * (1 - before) / (1 - bar), before.sqrt() * beta / (1 - bar), noise], 1)
        np.testing.assert_allclose(weights(table), rows.flip(0).numpy(), rtol=1e-9, atol=1e-13)
        assert table.nfe == len(chain)
        assert (table.start.t, table.end.t, table.end.alpha, table.end.sigma) == (1.0, 0.0, 1.0, 0.0)
        assert table.prior_std == 1.0
        np.testing.assert_allclose([row.at.t for row in table.rows], chain.times.flip(0).numpy(), rtol=0)
        assert not table.rows[-1].draws


@given(betas, st.floats(0.0, 1.0))
def test_ddim_rows_are_the_papers(b: Tensor, eta: float) -> None:
    """Song, Meng and Ermon 2021, eq. 12 and 16, written in x and x_0."""
    chain = DDPM.from_betas(b)
    _, bar, before = bars(chain)
    noise = eta * ((1 - before) / (1 - bar)).sqrt() * (1 - bar / before).sqrt()
    direction = (1 - before - noise.square()).clamp_min(0).sqrt()
    rows = torch.stack([direction / (1 - bar).sqrt(), before.sqrt() - direction * (bar / (1 - bar)).sqrt(), noise], 1)
    # Where 1 - alpha_bar - noise^2 vanishes (eta = 1 after a large beta), the root of its rounding is left.
    np.testing.assert_allclose(weights(chain.ddim(eta)), rows.flip(0).numpy(), rtol=0, atol=1e-7)


@given(betas, st.integers(1, 30))
def test_ddim_with_eta_one_is_ancestral_sampling(b: Tensor, steps: int) -> None:
    chain = DDPM.from_betas(b)
    steps = min(steps, len(chain))
    np.testing.assert_allclose(
        weights(chain.ddim(1.0, steps=steps)), weights(chain.ancestral(steps=steps)), rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize(("n", "steps"), [(20, 5), (20, 7), (1000, 1), (1000, 999), (3, 2)])
def test_strided_steps_are_bayes_between_the_kept_knots(n: int, steps: int) -> None:
    chain = DDPM.cosine(n)
    table, points = chain.ancestral(steps=steps), chain.points
    kept = np.rint(np.linspace(n, 0, steps + 1)).astype(int)
    assert [round(row.at.t * n) for row in table.rows] == kept[:-1].tolist()
    for row, late, early in zip(weights(table), kept[:-1], kept[1:], strict=True):
        a = float(points.alpha[late] / points.alpha[early])
        variance_t, variance_s = (float(points.sigma[i].square()) for i in (late, early))
        b2 = variance_t - a**2 * variance_s
        expected = (a * variance_s / variance_t, float(points.alpha[early]) * b2 / variance_t)
        np.testing.assert_allclose(row, (*expected, math.sqrt(b2 * variance_s / variance_t)), rtol=1e-10, atol=1e-14)


def test_a_chain_of_one_index_samples_but_has_no_sde() -> None:
    chain = DDPM.from_betas(torch.tensor([0.9]))
    np.testing.assert_allclose(weights(chain.ancestral()), [[0.0, 1.0, 0.0]], atol=1e-15)
    with pytest.raises(ConfigError, match="a chain of one index defines no SDE between knots; its tables work all the"):
        chain.sde()
