"""Annealed Langevin dynamics as a table: the papers' loops, the choice of the step, the same under every diffusion."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import MEAN, VARIANCE, coefficients, draws, gaussian
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from scoresde import (
    DDPM,
    SMLD,
    VESDE,
    VPSDE,
    DomainError,
    DTypeError,
    GaussianMixtureModel,
    Langevin,
    RectifiedFlow,
    SubVPSDE,
    build_table,
    sample,
    solvers,
)
from scoresde.solvers.langevin import choose_step

F64 = torch.float64
CHAIN = SMLD.geometric(5, sigma_min=0.1, sigma_max=9.0)
GAUSSIAN = gaussian(VESDE(sigma_min=0.1, sigma_max=9.0))


def score(x: np.ndarray, sigma: float) -> np.ndarray:
    """Weights of the score for data N(MEAN, VARIANCE), x being weights on [1, start, z_1, ...]."""
    one = np.eye(len(x))[0]
    return -(x - MEAN * one) / (VARIANCE + sigma**2)


def ncsn(sigmas: list[float], epsilon: float, repeats: int) -> np.ndarray:
    """Song and Ermon 2019, algorithm 1: sigmas from the largest down."""
    x, z = np.eye(2 + len(sigmas) * repeats)[1], iter(np.eye(2 + len(sigmas) * repeats)[2:])
    for sigma in sigmas:
        step = epsilon * sigma**2 / sigmas[-1] ** 2
        for _ in range(repeats):
            x = x + step / 2 * score(x, sigma) + math.sqrt(step) * next(z)
    return x


def ncsnv2(sigmas: list[float], epsilon: float, repeats: int) -> np.ndarray:
    """Song and Ermon 2020, algorithm 1, with the last denoising step."""
    x, z = np.eye(2 + len(sigmas) * repeats)[1], iter(np.eye(2 + len(sigmas) * repeats)[2:])
    for sigma in sigmas:
        step = epsilon * sigma**2 / sigmas[-1] ** 2
        for _ in range(repeats):
            x = x + step * score(x, sigma) + math.sqrt(2 * step) * next(z)
    return x + sigmas[-1] ** 2 * score(x, sigmas[-1])


@pytest.mark.parametrize("repeats", [1, 3])
def test_the_papers_loops(repeats: int) -> None:
    """The real sampler's weights, for the epsilon of each paper; the chain's levels and the solver's on VE."""
    downwards, smallest = CHAIN.sigmas.flip(0).tolist(), 0.1
    for paper, epsilon, step, denoise in (
        (ncsn, 2e-3, 2e-3 / (2 * smallest**2), False),
        (ncsnv2, 2e-3, 2e-3 / smallest**2, True),
    ):
        expected = paper(downwards, epsilon, repeats)
        table = CHAIN.annealed_langevin(repeats=repeats, step=step, denoise=denoise)
        assert table.nfe == 5 * repeats + denoise
        assert table.prior_std == 9.0
        np.testing.assert_allclose(coefficients(GAUSSIAN, table), expected, rtol=0, atol=1e-12)
        # Variance and mean alone.
        mean, variance = table.law(MEAN, VARIANCE, start=(0.4, 30.0))
        assert mean == pytest.approx(expected[0] + 0.4 * expected[1], rel=1e-12)
        assert variance == pytest.approx(30.0 * expected[1] ** 2 + (expected[2:] ** 2).sum(), rel=1e-12)
        # The native grid under VE is geometric, but for its end at t_min, where sigma is not yet sigma_min.
        times = VESDE(sigma_min=0.1, sigma_max=9.0).time(-2 * CHAIN.sigmas.flip(0).log()).clamp_min(1e-5)
        solver = solvers.annealed_langevin(repeats=repeats, step=step)
        table = solver(VESDE(sigma_min=0.1, sigma_max=9.0), times)
        table = table.denoised() if denoise else table
        np.testing.assert_allclose(coefficients(GAUSSIAN, table), expected, rtol=0, atol=3e-4)
        # Five levels: four intervals, and under "denoise" the fifth is the jump to clean data.
        final, steps = ("denoise", 5) if denoise else ("sample", 4)
        native = build_table(VESDE(sigma_min=0.1, sigma_max=9.0), solver, steps=steps, final=final)
        np.testing.assert_allclose(native.times[:-1], table.times[:-1], rtol=0, atol=1e-5)
        assert native.nfe == table.nfe


def test_ncsns_own_numbers_are_a_tenth() -> None:
    """epsilon = 2e-5 at sigma_L = 0.01, one hundred steps a level."""
    sigmas = SMLD.geometric(3, sigma_min=0.01, sigma_max=1.0)
    table = sigmas.annealed_langevin(repeats=100, step=0.1, denoise=False)
    expected = ncsn(sigmas.sigmas.flip(0).tolist(), 2e-5, 100)
    np.testing.assert_allclose(table.affine_map(MEAN, VARIANCE), expected, rtol=0, atol=1e-12)


@settings(max_examples=30)
@given(st.floats(1.01, 8.0), st.integers(1, 40))
def test_the_default_step_is_technique_4(gamma: float, repeats: int) -> None:
    """It minimises the variance at a single data point after ``repeats`` steps, iterated here as the steps are."""

    def variance(c: float) -> float:
        v = gamma**2
        for _ in range(repeats):
            v = (1 - c) ** 2 * v + 2 * c
        return v

    best = minimize_scalar(variance, bounds=(0, 1), method="bounded", options={"xatol": 1e-10})
    got = float(choose_step(torch.tensor(gamma, dtype=F64), repeats))
    assert got == pytest.approx(best.x, abs=1e-6)
    assert variance(got) <= best.fun + 1e-12
    # No other minimum: the brute force of a grid finds none below.
    assert variance(got) <= min(variance(k / 200) for k in range(1, 200)) + 1e-12
    # NCSNv2's equation 4 at that step.
    w = 2 * got / (1 - (1 - got) ** 2)
    assert (1 - got) ** (2 * repeats) * (gamma**2 - w) + w == pytest.approx(variance(got), rel=1e-9)


def test_the_default_step_is_chosen_level_by_level() -> None:
    chain = SMLD(torch.tensor([0.1, 0.3, 0.6, 4.0], dtype=F64))
    table = chain.annealed_langevin(repeats=2)
    for row, ratio in zip(table.rows[:-1], np.repeat([4 / 0.6, 4 / 0.6, 2, 3], 2), strict=True):
        c = float(choose_step(torch.tensor(ratio, dtype=F64), 2))
        assert row.state == pytest.approx((1.0, -c * row.at.sigma), rel=1e-12)
        assert row.noise == pytest.approx((math.sqrt(2 * c) * row.at.sigma,), rel=1e-12)
    # One level has no neighbour: NCSN's own size.
    one = SMLD(torch.tensor([2.0])).annealed_langevin(repeats=1, denoise=False)
    assert one.rows[0].state == pytest.approx((1.0, -0.2), rel=1e-14)
    # Song and Ermon's example: 232 levels from 50 to 0.01 with T = 5 take epsilon = 6.2e-6.
    song = SMLD.geometric(232).annealed_langevin(repeats=5)
    assert -song.rows[-2].state[1] / 0.01 * 0.01**2 == pytest.approx(6.2e-6, rel=0.01)


@pytest.mark.parametrize("step", [None, 0.2])
def test_the_scaled_state_is_the_same_under_every_diffusion(step: float | None) -> None:
    model = GaussianMixtureModel(
        sde=VPSDE(), weights=torch.tensor([0.3, 0.7]), means=torch.tensor([[-1.0, 0.2], [1.0, 0.5]]), std=0.4
    )
    log_snr = torch.linspace(-6.0, 6.5, 7, dtype=F64)
    y = torch.linspace(-8.0, 8.0, 8, dtype=F64).reshape(4, 2)
    solver = solvers.annealed_langevin(repeats=3, step=step)
    noise = [torch.sin(k + y) for k in range(21)]
    ends = []
    for sde in (VPSDE(), SubVPSDE(), VESDE(sigma_min=1e-3, sigma_max=200.0), RectifiedFlow()):
        times = sde.time(log_snr)
        x = sample(
            model, x_init=sde.alpha(times[0]) * y, sde=sde, solver=solver, times=times, noise=noise, final="sample"
        )
        ends.append(x / sde.alpha(times[-1]))
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=1e-11, atol=1e-12)


def test_it_ends_in_the_data_prediction_and_without_the_last_noise() -> None:
    times = torch.tensor([1.0, 0.6, 0.2, 0.05], dtype=F64)
    solver = solvers.annealed_langevin(repeats=2)
    to_zero = solver(VPSDE(), torch.cat([times, torch.zeros(1, dtype=F64)]))
    np.testing.assert_allclose(
        to_zero.affine_map(MEAN, VARIANCE), solver(VPSDE(), times).denoised().affine_map(MEAN, VARIANCE), atol=1e-13
    )
    assert to_zero.end.sigma == 0
    assert to_zero.nfe == 9
    mean = build_table(VPSDE(), solver, times=times, final="mean")
    assert (draws(mean), draws(solver(VPSDE(), times))) == (7, 8)
    # A DDPM chain runs it too, on x/alpha.
    chain = DDPM.linear(50)
    table = chain.annealed_langevin(repeats=2, steps=7)
    assert (table.nfe, table.prior_std, table.end.sigma) == (15, 1.0, 0.0)
    assert [row.at.t for row in table.rows[:-1:2]] == pytest.approx(chain.strided(7).times.flip(0).tolist())


def test_it_samples_a_mixture() -> None:
    """The published size on an easy density, by its exact moments: the end is near the data's law, not only finite."""
    data = GaussianMixtureModel(
        sde=VESDE(sigma_min=0.02, sigma_max=8.0), weights=torch.ones(2), means=torch.tensor([[-1.0], [1.0]]), std=0.2
    )
    table = SMLD.geometric(60, sigma_min=0.02, sigma_max=8.0).annealed_langevin(repeats=5)
    x = sample(data, (4000, 1), solver=table, final="sample", seed=0, dtype=F64)
    # |x| is N(1, 0.2^2) but for tails; its mean has a standard error of 0.0032.
    assert float(x.abs().mean()) == pytest.approx(1.0, abs=0.04)
    assert float(x.abs().std()) == pytest.approx(0.2, abs=0.04)
    assert float((x > 0).double().mean()) == pytest.approx(0.5, abs=0.06)


def test_samples_do_not_see_their_neighbours() -> None:
    options = {"solver": "annealed_langevin", "steps": 4, "seed": 5, "dtype": F64}
    whole = sample(GAUSSIAN, (6,), **options)
    chunked, alone = sample(GAUSSIAN, (6,), chunk_size=4, **options), sample(GAUSSIAN, (1,), first_sample=5, **options)
    torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(alone, whole[5:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norms", ["level", "sample", "batch"])
def test_corrector_only_is_songs_loop_without_its_predictor(norms: str) -> None:
    """The Langevin kernel at each time in turn, nothing else; the state is scaled as the alphas are."""
    sde = VPSDE()
    times = torch.tensor([0.9, 0.5, 0.2], dtype=F64)
    x0 = torch.linspace(-1.0, 2.0, 6, dtype=F64).reshape(3, 2)
    noise = [torch.cos(k + x0) for k in range(6)]
    got = sample(
        gaussian_vector(),
        x_init=x0,
        solver=solvers.corrector_only(),
        times=times,
        kernels=[Langevin(0.2, steps=2, norms=norms)],
        noise=noise,
        final="denoise",
    )
    x, tape = x0.numpy(), iter(noise)
    for k, t in enumerate(times):
        a, s = float(sde.alpha(t)), float(sde.sigma(t))
        x = x if k == 0 else x * a / float(sde.alpha(times[k - 1]))
        for _ in range(2):
            z = next(tape).numpy()
            gradient = -(x - a * MEAN) / (a * a * VARIANCE + s * s)
            tops, bottoms = np.linalg.norm(z, axis=1), np.linalg.norm(gradient, axis=1)
            ratio = {"level": s, "sample": (tops / bottoms)[:, None], "batch": tops.mean() / bottoms.mean()}[norms]
            e = 2 * (0.2 * ratio) ** 2
            x = x + e * gradient + np.sqrt(2 * e) * z
    x = MEAN + a * VARIANCE / (a * a * VARIANCE + s * s) * (x - a * MEAN)
    np.testing.assert_allclose(got.numpy(), x, rtol=0, atol=1e-12)
    closed = solvers.corrector_only()(sde, torch.cat([times, torch.zeros(1, dtype=F64)]))
    assert (closed.nfe, closed.end.sigma) == (3, 0.0)


def gaussian_vector():
    """The exact model of two independent coordinates."""
    return GaussianMixtureModel(
        sde=VPSDE(), weights=torch.ones(1), means=torch.full((1, 2), MEAN, dtype=F64), std=math.sqrt(VARIANCE)
    )


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: solvers.annealed_langevin(repeats=0), DomainError, "repeats must be at least 1, got 0"),
        (lambda: solvers.annealed_langevin(repeats=2.0), DTypeError, "repeats must be an integer"),
        (lambda: solvers.annealed_langevin(step=0.0), DomainError, r"step must lie in \(0, 2\), got 0"),
        (lambda: solvers.annealed_langevin(step=2.0), DomainError, r"step must lie in \(0, 2\), got 2"),
        (lambda: solvers.annealed_langevin(step=math.nan), DomainError, "step must lie in"),
        (lambda: CHAIN.annealed_langevin(step=-1.0), DomainError, "step must lie in"),
        (lambda: CHAIN.annealed_langevin(repeats=0), DomainError, "repeats must be at least 1"),
        (lambda: CHAIN.annealed_langevin(steps=6), DomainError, r"steps must be in \[1, 5\], got 6"),
        *(
            (lambda s=s: build_table(RectifiedFlow(), s(), steps=4), DomainError, "alpha is 0 at t = 1; start below")
            for s in (solvers.annealed_langevin, solvers.corrector_only)
        ),
    ],
)
def test_faults(make, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        make()
