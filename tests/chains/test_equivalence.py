"""Discrete and continuous are one: a chain is its SDE at the knots, and its sampler a table of the SDE's.

The statements are properties over schedules, numbers of steps and data laws; most are equalities of tables, which need
no network and no samples.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from chain_weights import close
from helpers import MEAN, VARIANCE, Net, coefficients, gaussian, slope
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from scoresde import (
    DDPM,
    EDMSDE,
    SMLD,
    VESDE,
    VPSDE,
    GaussianSDE,
    Langevin,
    RectifiedFlow,
    ScoreModel,
    Solver,
    SubVPSDE,
    Tableau,
    sample,
    solvers,
)
from scoresde.chains.base import Chain
from scoresde.diffusions.targets import target, view
from scoresde.noise import normal, stream

F64 = torch.float64
vps = st.builds(
    lambda low, rise, end: VPSDE(beta_min=low, beta_max=low + rise, t_max=end),
    st.floats(0.01, 3.0),
    st.one_of(st.floats(0.0, 20.0), st.floats(20.0, 300.0)),
    st.floats(0.5, 1.0),
)
ves = st.builds(
    lambda low, ratio: VESDE(sigma_min=low, sigma_max=low * ratio), st.floats(1e-3, 1.0), st.floats(2.0, 1e5)
)
ZERO = torch.zeros(1, dtype=F64)


def rows(table: Tableau, kind: str = "score") -> np.ndarray:
    """Each row's weights of the state, of the prediction ``kind`` and of the noise, whatever it is written in."""
    assert all(row.anchor is None and len(row.state) == 2 and len(row.noise) <= 1 for row in table.rows)
    here = table.points
    a, b = (c.numpy() for c in view(target(kind, here), target(table.prediction, here), here))
    on_x, on_prediction = np.array([row.state for row in table.rows]).T
    on_noise = [row.noise[0] if row.noise else 0.0 for row in table.rows]
    return np.stack([on_x + on_prediction * a, on_prediction * b, on_noise], 1)


def knots_of(sde: GaussianSDE, n: int) -> Tensor:
    """Times t_max (i + 1)/n from the last one down, and clean data."""
    return torch.cat([sde.t_max * torch.arange(n, 0, -1, dtype=F64) / n, ZERO])


# ---------------------------------------------------------------------------------------------------------------------
# 1. A DDPM chain is a variance-preserving SDE at its knots


def check_laws(chain: Chain, sde: GaussianSDE, first: int, rtol: float = 1e-12) -> None:
    """Marginals, and from index ``first`` on transitions and posteriors, are those of the SDE at t_max (i + 1)/n."""
    n = len(chain)
    t = sde.t_max * torch.arange(1, n + 1, dtype=F64) / n
    early = torch.cat([ZERO, t[:-1]])
    x0, x = normal((n, 2), stream(0), dtype=F64), normal((n, 2), stream(1), dtype=F64)
    every, later = torch.arange(n), torch.arange(first, n)
    for got, expected in (
        (chain.marginal(x0, every), sde.marginal(x0, t)),
        (chain.transition(x[later], later), sde.transition(x[later], early[later], t[later])),
        (chain.posterior(x0[later], x[later], later), sde.posterior(x0[later], x[later], early[later], t[later])),
    ):
        close(got[0], expected[0], rtol, 1e-13)
        # It comes from the difference of two log_snr: where they nearly agree it loses what they lose.
        gap = float(-sde.log_snr(t).diff().max()) if n > 1 else 1.0
        close(got[1], expected[1], rtol + 1e-15 * (1 + float(sde.log_snr(t).abs().max())) / gap)


@settings(max_examples=60)
@given(vps, st.integers(1, 80))
def test_the_exact_rule_has_the_laws_of_its_sde(sde: VPSDE, n: int) -> None:
    """Also for one step, and for betas that a linear rule could not have."""
    chain = DDPM.from_sde(sde, n)
    check_laws(chain, sde, 0)
    t = sde.t_max * torch.arange(1, n + 1, dtype=F64) / n
    a, b = sde.transition_weights(torch.cat([ZERO, t[:-1]]), t)
    close(chain.log_alphas.exp(), a.square())
    close(chain.betas, b.square())


@pytest.mark.parametrize("n", [1, 2, 7, 100, 1000])
def test_the_exact_rule_on_the_usual_schedule(n: int) -> None:
    check_laws(DDPM.from_sde(VPSDE(), n), VPSDE(), 0)


@settings(max_examples=15)
@given(vps.filter(lambda sde: sde.beta_max < 40))
def test_the_song_rule_converges_at_first_order(sde: VPSDE) -> None:
    steps, errors = (500, 1000, 2000), []
    for n in steps:
        exact, song = (DDPM.from_sde(sde, n, rule=rule) for rule in ("exact", "song"))
        errors.append(float((exact.log_alphas_cumprod - song.log_alphas_cumprod).abs().max()))
    # beta(i/(n - 1))/n: a sum at the wrong points, and log(1 - beta) < -beta.
    assert slope(errors, steps) == pytest.approx(1.0, abs=0.1)


def test_the_song_rule_is_ho_et_al() -> None:
    close(DDPM.from_sde(VPSDE(), 1000, rule="song").betas, DDPM.linear(1000).betas)
    close(DDPM.linear(1000).betas[[0, -1]], [1e-4, 0.02])


# ---------------------------------------------------------------------------------------------------------------------
# 2. The chain's samplers are tables of the reverse SDE's


def frozen(prediction: str, eta: float) -> Solver:
    """The exponential step of first order with this prediction frozen."""
    return solvers.multistep(order=1, prediction=prediction, eta=eta)


@settings(max_examples=40)
@given(vps, st.integers(1, 60), st.floats(0.01, 9.0))
def test_ancestral_sampling_is_the_exponential_step_with_frozen_data(sde: VPSDE, n: int, variance: float) -> None:
    chain, times = DDPM.from_sde(sde, n), knots_of(sde, n)
    ancestral, exponential = chain.ancestral(), frozen("data", 1.0)(sde, times)
    np.testing.assert_allclose(rows(ancestral, "data"), rows(exponential, "data"), rtol=1e-10, atol=1e-12)
    for table in (exponential, solvers.ancestral()(sde, times), chain.ddim(1.0)):
        assert table.law(MEAN, variance) == pytest.approx(ancestral.law(MEAN, variance), rel=1e-11, abs=1e-12)
    # DDIM(0) is the exponential step of the probability flow, with either prediction frozen.
    flow = rows(chain.ddim(), "data")
    np.testing.assert_allclose(flow, rows(frozen("data", 0.0)(sde, times), "data"), rtol=1e-10, atol=1e-12)
    # x_0 = (x - sigma z)/alpha loses a factor 1/alpha of the digits.
    rtol = max(1e-9, 1e-14 / float(chain.points.alpha[-1]))
    np.testing.assert_allclose(flow[:-1], rows(frozen("noise", 0.0)(sde, times), "data")[:-1], rtol=rtol, atol=1e-11)


def test_with_frozen_noise_it_is_another_table() -> None:
    """Its steps differ at second order: the weights at ten steps by more than a tenth, at many by little."""
    sde, gaps, steps = VPSDE(), [], (200, 400, 800)
    for n in (10, *steps):
        times = torch.linspace(1.0, 0.2, n + 1, dtype=F64)
        data, noise = (rows(frozen(kind, 1.0)(sde, times)) for kind in ("data", "noise"))
        gaps.append(float(np.abs(data - noise)[:, :2].max()))
    assert gaps[0] > 0.1
    assert slope(gaps[1:], steps) == pytest.approx(2.0, abs=0.1)
    ten = torch.linspace(1.0, 0.2, 11, dtype=F64)
    laws = [frozen(kind, 1.0)(sde, ten).law(MEAN, VARIANCE)[1] for kind in ("data", "noise")]
    assert abs(laws[0] - laws[1]) > 0.05


THREE = {
    "ancestral": solvers.ancestral(),
    "reverse diffusion": solvers.reverse_diffusion(),
    "Euler-Maruyama": solvers.euler_maruyama(),
}


@settings(max_examples=6)
@given(st.floats(0.05, 2.0), st.floats(2.0, 25.0))
def test_three_steps_agree_to_second_order(low: float, rise: float) -> None:
    """Weights of the state and of the score, and the variance of the noise, on [0.2, 1] and with n steps."""
    sde, steps = VPSDE(beta_min=low, beta_max=low + rise), (200, 400, 800)
    gaps: dict[str, list[np.ndarray]] = {"reverse diffusion": [], "Euler-Maruyama": []}
    for n in steps:
        times = torch.linspace(1.0, 0.2, n + 1, dtype=F64)
        got = {name: rows(solver(sde, times)) for name, solver in THREE.items()}
        for weights in got.values():
            weights[:, 2] **= 2
        for name, seen in gaps.items():
            seen.append(np.abs(got[name] - got["ancestral"]).max(0))
    for seen in gaps.values():
        for column in np.array(seen).T:
            assert slope(column, steps) == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(
    "sde", [VPSDE(), SubVPSDE(), VESDE(sigma_min=0.1, sigma_max=20.0)], ids=lambda s: type(s).__name__
)
def test_their_laws_converge_to_the_reverse_sdes_at_first_order(sde: GaussianSDE) -> None:
    """At the fixed time 0.3, where the reverse SDE's law is that of x_t."""
    steps, end = (300, 600), sde.at(0.3)
    for solver in THREE.values():
        errors = []
        for n in steps:
            mean, variance = solver(sde, torch.linspace(1.0, 0.3, n + 1, dtype=F64)).law(MEAN, VARIANCE)
            exact = float(end.alpha) ** 2 * VARIANCE + float(end.sigma) ** 2
            errors.append(abs(variance / exact - 1) + abs(mean - float(end.alpha) * MEAN))
        assert slope(errors, steps) == pytest.approx(1.0, abs=0.1)


# ---------------------------------------------------------------------------------------------------------------------
# 3. An SMLD chain is a variance-exploding SDE at its knots, and annealed Langevin its corrector alone


@settings(max_examples=60)
@given(ves, st.integers(2, 80))
def test_smld_is_ve_from_its_second_knot_on(sde: VESDE, n: int) -> None:
    chain = SMLD.from_sde(sde, n)
    check_laws(chain, sde, 1)
    # The first transition comes from the data, not from the SDE's x_0 + sigma_min z.
    _, std = chain.transition(torch.zeros(1, 1, dtype=F64), 0)
    assert float(std) == pytest.approx(float(chain.sigmas[0]), rel=1e-14)
    assert float(sde.transition_weights(0.0, 1 / n)[1]) < float(std)
    # Its ancestral table: the exponential step with frozen data down to the first knot, then the data prediction.
    times = torch.arange(n, 0, -1, dtype=F64) / n
    expected = frozen("data", 1.0)(sde, times).denoised()
    np.testing.assert_allclose(rows(chain.ancestral(), "data"), rows(expected, "data"), rtol=1e-9, atol=1e-12)
    expected = frozen("data", 0.0)(sde, times).denoised()
    np.testing.assert_allclose(rows(chain.ddim(), "data"), rows(expected, "data"), rtol=1e-9, atol=1e-12)


@settings(max_examples=30)
@given(
    st.sampled_from([VPSDE(), SubVPSDE(), VESDE(sigma_min=0.02, sigma_max=20.0)]),
    st.lists(st.floats(0.02, 1.0), min_size=1, max_size=5, unique=True),
    st.floats(0.02, 0.9),
    st.integers(1, 3),
)
def test_annealed_langevin_is_the_corrector_without_a_predictor(
    sde: GaussianSDE, times: list[float], snr: float, repeats: int
) -> None:
    """The kernel's steps e = 2 (snr sigma)^2 at each time, and the last denoising: the same weights of every draw."""
    ends = torch.tensor(sorted(times, reverse=True), dtype=F64)
    assume(len(ends) < 2 or float(ends.diff().max()) < -1e-3)
    model = gaussian(sde)
    annealed = solvers.annealed_langevin(repeats=repeats, step=2 * snr**2)(sde, ends).denoised()
    unit = torch.eye(2 + repeats * len(ends), dtype=F64)
    out = sample(
        model,
        x_init=unit[1],
        noise=list(unit[2:]),
        solver=solvers.corrector_only(),
        times=ends,
        kernels=[Langevin(snr, steps=repeats, norms="level")],
    )
    got = torch.cat([out[:1], out[1:] - out[:1]]).numpy()
    expected = annealed.affine_map(MEAN, VARIANCE)
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12 * scale)
    np.testing.assert_allclose(coefficients(model, annealed), expected, rtol=0, atol=1e-12 * scale)


# ---------------------------------------------------------------------------------------------------------------------
# 6. One model under every diffusion

# Where alpha is 0 a noise prediction says nothing of the data, and a model of that kind is refused.
CARRIERS = [VPSDE(), SubVPSDE(), VESDE(), EDMSDE(), RectifiedFlow(t_max=0.9999)]


@settings(max_examples=12)
@given(
    st.lists(st.floats(-7.0, 8.5), min_size=2, max_size=8, unique=True),
    st.sampled_from(["ancestral", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "heun", "annealed_langevin"]),
    st.sampled_from(["noise", "data", "v", "score", "edm"]),
)
def test_every_diffusion_carries_a_model_to_the_same_samples(log_snrs: list[float], solver: str, kind: str) -> None:
    """Times matched by log-SNR, the start states by x/alpha, the same draws; the network is no exact score."""
    log_snr = torch.tensor(sorted(log_snrs), dtype=F64)
    assume(float(log_snr.diff().min()) > 0.05)
    trained = ScoreModel(Net(dtype=F64), VPSDE(), predicts=kind)
    y = torch.linspace(-3.0, 3.0, 6, dtype=F64).reshape(3, 2)
    ends = []
    for sde in CARRIERS:
        times = sde.time(log_snr)
        solved = solvers.named.by_name(solver)(sde, times).denoised()
        noise = [torch.sin(k + y) for k in range(5 * len(log_snr))]
        start = sde.alpha(times[0]) * y * float((-0.5 * log_snr[0]).exp())
        ends.append(sample(trained.with_sde(sde), x_init=start, solver=solved, noise=noise, final="sample"))
    scale = float(ends[0].abs().max())
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=0, atol=1e-9 * scale)


# ---------------------------------------------------------------------------------------------------------------------
# 7. The forward posterior is Bayes' rule

ddpms = st.lists(st.floats(1e-4, 0.95), min_size=2, max_size=12).map(
    lambda b: DDPM.from_betas(torch.tensor(b, dtype=F64))
)
smlds = st.lists(st.floats(1.02, 5.0), min_size=2, max_size=12).map(
    lambda r: SMLD(0.05 * torch.tensor(r, dtype=F64).cumprod(0))
)


@settings(max_examples=60)
@given(st.one_of(ddpms, smlds), st.data(), st.floats(-3.0, 3.0), st.floats(-3.0, 3.0))
def test_the_posterior_is_bayes_rule_done_numerically(
    chain: DDPM | SMLD, data: st.DataObject, start: float, z: float
) -> None:
    """q(x_{i-1} | x_0) q(x_i | x_{i-1}) on a grid of x_{i-1}, normalised there."""
    i = data.draw(st.integers(1, len(chain) - 1))
    x0 = torch.full((1, 1), start, dtype=F64)
    x_i = chain.perturb(x0, i, torch.full((1, 1), z, dtype=F64))
    mean, std = chain.posterior(x0, x_i, i)
    grid = float(mean) + float(std) * torch.linspace(-14, 14, 4001, dtype=F64)[:, None]
    before, spread = chain.marginal(x0, i - 1)
    forward, noise = chain.transition(grid, i)
    log_p = -0.5 * ((grid - before) / spread).square() - 0.5 * ((x_i - forward) / noise).square()
    p = (log_p - log_p.max()).exp()
    p = p / p.sum()
    numeric = float((p * grid).sum())
    assert numeric == pytest.approx(float(mean), rel=1e-9, abs=1e-9 * float(std))
    assert float((p * (grid - numeric).square()).sum()) == pytest.approx(float(std) ** 2, rel=1e-8)
    # The noise's form of the mean, for every chain: (x_i - b^2/sigma_i noise)/a.
    a, b = (float(w[i]) for w in chain.transition_weights)
    sigma = float(chain.curves[1][i])
    assert (float(x_i) - b**2 / sigma * z) / a == pytest.approx(float(mean), rel=1e-9, abs=1e-9)
