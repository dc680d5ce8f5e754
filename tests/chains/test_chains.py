"""Discrete chains: references, Ho's formulas, the equality with the SDE at the knots, tables, faults."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scoresde import (
    DDPM,
    VESDE,
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    ShapeError,
    SubVPSDE,
    Tableau,
    TabulatedSDE,
)
from scoresde.noise import normal, stream

F64 = torch.float64
CHAINS = json.loads((Path(__file__).parents[1] / "reference" / "chains.json").read_text(encoding="utf-8"))
betas = st.lists(st.floats(1e-5, 0.95), min_size=1, max_size=30).map(lambda b: torch.tensor(b, dtype=F64))


def close(got: Tensor, expected: Tensor | list[float], rtol: float = 1e-12, atol: float = 0.0) -> None:
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=F64), rtol=rtol, atol=atol)


def bars(chain: DDPM) -> tuple[Tensor, Tensor, Tensor]:
    """beta_i, alpha_bar_i and alpha_bar_{i-1}, by the textbook's product."""
    bar = torch.cumprod(1 - chain.betas, 0)
    return chain.betas, bar, torch.cat([torch.ones(1, dtype=F64), bar[:-1]])


def weights(table: Tableau) -> np.ndarray:
    """Each row's weights on the state, the data prediction and the noise."""
    assert table.prediction == "data"
    assert all(row.anchor is None and len(row.state) == 2 and len(row.noise) <= 1 for row in table.rows)
    return np.array([(*row.state, *(row.noise or (0.0,))) for row in table.rows])


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


# ---------------------------------------------------------------------------------------------------------------------
# Faults

X = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (0.5, DTypeError, r"index of a chain must be an integer in \[0, 10\); a real time belongs to its \.sde\(\)"),
        (torch.tensor([0.0, 1.0, 2.0]), DTypeError, "index of a chain must be an integer"),
        (True, DTypeError, "index of a chain must be an integer"),
        (torch.zeros(3, 1, dtype=torch.long), ShapeError, r"index must have shape \(\) or \(3,\), got \(3, 1\)"),
        (torch.zeros(2, dtype=torch.long), ShapeError, r"index must have shape \(\) or \(3,\), got \(2,\)"),
        (10, DomainError, r"index must lie in \[0, 10\), got 10 to 10"),
        (torch.tensor([0, -1, 12]), DomainError, r"index must lie in \[0, 10\), got -1 to 12"),
    ],
)
def test_bad_indices(index: object, error: type[Exception], message: str) -> None:
    chain = DDPM.cosine(10)
    for call in (
        lambda: chain.perturb(X, index, X),
        lambda: chain.posterior(X, X, index),
        lambda: chain.transition(X, index),
        lambda: chain.marginal(X, index),
        lambda: chain.reverse(X, X, index, variance="large"),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.1, 1.0], r"every beta must lie in \(0, 1\); at index 1 it is 1: use more steps or rule='exact'"),
        ([0.1, 1.5], "at index 1 it is 1.5"),
        ([0.0, 0.1], "at index 0 it is 0"),
        ([-0.1], "at index 0 it is -0.1"),
        ([0.5, math.nan], "at index 1 it is nan"),
    ],
)
def test_bad_betas(values: list[float], message: str) -> None:
    with pytest.raises(DomainError, match=message):
        DDPM.from_betas(torch.tensor(values))


def test_bad_chains() -> None:
    with pytest.raises(DomainError, match=r"at index 19 it is 1: use more steps or rule='exact'"):
        DDPM.linear(20)
    with pytest.raises(DomainError, match=r"at index 5 it is 1\.11556"):
        DDPM.linear(10)
    with pytest.raises(DomainError, match="at index 19 it is 1: use more steps"):
        DDPM.from_sde(VPSDE(), 20, rule="song")
    for sde in (VESDE(), SubVPSDE(), TabulatedSDE(*torch.tensor([[0.1, 0.5], [3.0, -3.0], [0.0, -0.1]]))):
        with pytest.raises(ConfigError, match=r"a DDPM chain preserves variance, .* does not; use VPSDE or another"):
            DDPM.from_sde(sde, 10)
    with pytest.raises(ConfigError, match=r"unknown rule 'sonng'; did you mean 'song'\? choices: exact, song"):
        DDPM.from_sde(VPSDE(), 10, rule="sonng")
    with pytest.raises(DomainError, match="n must be at least 1, got 0"):
        DDPM.cosine(0)
    with pytest.raises(DTypeError, match=r"n must be an integer, got 10\.0 of type float"):
        DDPM.linear(10.0)
    with pytest.raises(DomainError, match=r"max_beta must lie in \(0, 1\), got 1"):
        DDPM.cosine(10, max_beta=1)
    with pytest.raises(ShapeError, match=r"log_alphas must be a vector .* got \(2, 2\)"):
        DDPM(torch.full((2, 2), -0.1))
    with pytest.raises(ShapeError, match=r"noise must have the shape \(3, 2\) of x0, got \(2,\)"):
        DDPM.cosine(10).perturb(X, 0, torch.zeros(2))
    with pytest.raises(ShapeError, match=r"x0 and x_i must agree, got shapes \(1, 2\) and \(3, 2\)"):
        DDPM.cosine(10).posterior(X[:1], X, 0)


def test_bad_sub_chains_and_variances() -> None:
    chain = DDPM.cosine(10)
    with pytest.raises(DomainError, match=r"steps must be in \[1, 10\], got 11"):
        chain.strided(11)
    with pytest.raises(DTypeError, match=r"steps must be an integer, got 2\.5"):
        chain.strided(2.5)
    with pytest.raises(ConfigError, match="unknown variance 'learnt'; did you mean 'learned'"):
        chain.reverse(X, X, 1, variance="learnt")
    with pytest.raises(ConfigError, match="fraction= belongs to variance='learned', and it needs one; got variance='s"):
        chain.reverse(X, X, 1, fraction=X)
    with pytest.raises(ConfigError, match="it needs one; got variance='learned'"):
        chain.reverse(X, X, 1, variance="learned")
    with pytest.raises(ShapeError, match=r"fraction must have the shape \(3, 2\) of x_i, got \(3,\)"):
        chain.reverse(X, X, 1, variance="learned", fraction=X[:, 0])
    with pytest.raises(ShapeError, match=r"knot_times must have shape \(1,\), one for each index, got \(2,\)"):
        DDPM(torch.tensor([-0.1]), knot_times=torch.tensor([0.1, 0.2]))
    for times in ([0.5, 0.5], [0.0, 0.5], [0.2, math.inf]):
        with pytest.raises(DomainError, match="knot_times must be positive, finite and increase with the index"):
            DDPM(torch.tensor([-0.1, -0.1]), knot_times=torch.tensor(times))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 0.0}, r"tau must lie in \(0, inf\), got 0"),
        ({"start": 3.0}, r"end must lie in \(3, inf\), got 3"),
        ({"clip": 1.0}, r"clip must lie in \(0, 1\), got 1"),
        (
            {"tau": 0.05},
            "alpha_bar stands still at index 68, at 1e-09: the sigmoid's end is too flat; use a",
        ),
    ],
)
def test_bad_sigmoids(options: dict[str, float], message: str) -> None:
    with pytest.raises(DomainError, match=message):
        DDPM.sigmoid(100, **options)


def test_bad_tables() -> None:
    chain = DDPM.cosine(10)
    with pytest.raises(DomainError, match=r"steps must be in \[1, 10\], got 11"):
        chain.ancestral(steps=11)
    with pytest.raises(DomainError, match=r"steps must be in \[1, 10\], got 0"):
        chain.ddim(steps=0)
    with pytest.raises(ConfigError, match=r"unknown variance 'smal'; did you mean 'small'\? choices: large, learned"):
        chain.ancestral(variance="smal")
    with pytest.raises(DomainError, match=r"eta must lie in \[0, inf\), got -1"):
        chain.ddim(-1)
    with pytest.raises(DomainError, match="eta = 3 asks for more noise than a step of this grid can hold"):
        chain.ddim(3)


def test_half_types_are_rounded_once() -> None:
    chain, index = DDPM.cosine(12), torch.arange(12)
    x0, z = (normal((12, 5), stream(k), dtype=torch.bfloat16) for k in (11, 12))
    wide = x0.float(), z.float()
    expected = chain.perturb(wide[0], index, wide[1]).bfloat16()
    assert torch.equal(chain.perturb(x0, index, z), expected)
    assert torch.equal(chain.perturb(x0, index, wide[1]), expected)
    for law in (chain.marginal, chain.transition):
        assert torch.equal(law(x0, index)[0], law(wide[0], index)[0].bfloat16())
    assert torch.equal(chain.posterior(x0, z, index)[0], chain.posterior(*wide, index)[0].bfloat16())


def test_what_meets_on_a_chain_is_on_one_device() -> None:
    chain, x, away = DDPM.cosine(5), torch.zeros(3, 2), torch.zeros(3, 2, device="meta")
    with pytest.raises(ConfigError, match="noise is on meta, x0 on cpu"):
        chain.perturb(x, 1, away)
    with pytest.raises(ConfigError, match="x0 is on cpu, x_i on meta"):
        chain.posterior(x, away, 1)
    with pytest.raises(ConfigError, match="fraction is on meta, x_i on cpu"):
        chain.reverse(x, x, 1, variance="learned", fraction=away)
    with pytest.raises(DTypeError, match="noise must have a real floating dtype"):
        chain.perturb(x, 1, x.long())
