"""Exact laws: the real sampler's coefficients against the tables, and the tables against the papers' formulas."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import MEAN, SDES, VARIANCE, coefficients, draws, gaussian

from scoresde import VPSDE, ConfigError, DomainError, GaussianSDE, Solver, Tableau, build_table, sample, solvers
from scoresde.solvers import SOLVERS, Butcher, grids
from scoresde.solvers.rows import Row
from scoresde.solvers.runge_kutta import EULER

FIXED = sorted(set(SOLVERS) - {"probability_flow"})
HEUN_3 = Butcher("heun3", ((), (1 / 3,), (0.0, 2 / 3)), (0.25, 0.0, 0.75), 3)
RK_4 = Butcher("rk4", ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4)
OTHERS: dict[str, Solver] = {
    "ancestral large": solvers.ancestral(variance="large"),
    "ancestral eta 0.5": solvers.ancestral(eta=0.5),
    "ddim eta 0.4": solvers.ddim(0.4),
    "euler in t": solvers.euler_maruyama(eta=0.0),
    "heun nu": solvers.heun(variable="nu"),
    "heun t": solvers.heun(variable="t"),
    "heun log_snr": solvers.heun(variable="log_snr"),
    "heun3": solvers.runge_kutta(HEUN_3),
    "rk4 t": solvers.runge_kutta(RK_4, variable="t"),
    "multistep noise 4": solvers.multistep(prediction="noise", variable="nu", order=4),
    "multistep flow 3": solvers.multistep(prediction="flow", variable="rectified", order=3),
    "multistep data 3, eta 0.7": solvers.multistep(order=3, eta=0.7),
    "multistep noise 2, eta 1": solvers.multistep(prediction="noise", order=2, eta=1.0),
}


def solver_named(name: str) -> Solver:
    solver = OTHERS[name] if name in OTHERS else solvers.named.by_name(name)
    assert isinstance(solver, Solver)
    return solver


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("name", [*FIXED, *OTHERS])
def test_the_sampler_applies_exactly_the_tables_numbers(name: str, sde: str) -> None:
    for final in ("denoise", "sample", "mean"):
        table = build_table(SDES[sde], solver_named(name), steps=9, final=final)
        expected = table.affine_map(MEAN, VARIANCE)
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(coefficients(gaussian(SDES[sde]), table), expected, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("name", FIXED)
def test_a_tape_that_starts_with_the_start_state_gives_the_law_from_the_prior(name: str) -> None:
    """The same through ``noise=``, ``steps=`` and ``final=``: draw 0 is the start state, scaled by the exact prior."""
    model, sde = gaussian(), VPSDE()
    table = build_table(sde, solver_named(name), steps=6)
    unit = torch.eye(2 + draws(table), dtype=torch.float64)
    out = sample(model, (len(unit),), solver=name, steps=6, noise=list(unit[1:]), dtype=torch.float64)
    weights = table.affine_map(MEAN, VARIANCE)
    start = model.moments.at(table.start.alpha, table.start.sigma)
    expected = weights.copy()
    expected[0] += weights[1] * float(start.mean)
    expected[1] *= math.sqrt(float(start.variance))
    expected[1:] += expected[0]
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(out.numpy(), expected, rtol=0, atol=1e-12 * scale)
    mean, variance = table.law(MEAN, VARIANCE)
    assert mean == pytest.approx(expected[0], abs=1e-12 * scale)
    assert variance == pytest.approx(((expected[1:] - expected[0]) ** 2).sum(), rel=1e-12)


# --- published numbers and formulas


@pytest.mark.parametrize(
    ("solver", "expected"),
    [
        (solvers.euler_maruyama(), 0.2562826429849),
        (solvers.heun(variable="t"), 0.2504208100474),
        (solvers.ddim(), 0.2289680126671),
        (solvers.ancestral(), 0.2063627237598),
    ],
    ids=["euler_maruyama", "heun in t", "ddim", "ancestral"],
)
def test_output_variance_has_the_reference_value(solver: Solver, expected: float) -> None:
    times = 1 + (1e-3 - 1) * torch.arange(65, dtype=torch.float64) / 64
    table = solver(VPSDE(), times)
    assert table.law(0.0, 0.25, start=(0.0, 1.0))[1] == pytest.approx(expected, abs=1e-13)
    weights = coefficients(gaussian(mean=0.0), table)
    assert (weights[1:] ** 2).sum() == pytest.approx(expected, abs=1e-12)


# Variance preserving as in the papers, from its definition: alpha_bar = exp(-B), B the integral of beta.
def integral(t: np.ndarray) -> np.ndarray:
    return 0.1 * t + 19.9 * t**2 / 2


def alpha(t: np.ndarray) -> np.ndarray:
    return np.exp(-integral(t) / 2)


def sigma(t: np.ndarray) -> np.ndarray:
    return np.sqrt(1 - np.exp(-integral(t)))


def beta(t: float) -> float:
    return 0.1 + 19.9 * t


def denoiser(x: np.ndarray, t: float) -> np.ndarray:
    """E[x_0 | x_t] for data N(MEAN, VARIANCE)."""
    a, s = alpha(t), sigma(t)
    return MEAN + a * VARIANCE / (a**2 * VARIANCE + s**2) * (x - a * MEAN)


def epsilon(x: np.ndarray, t: float) -> np.ndarray:
    return (x - alpha(t) * denoiser(x, t)) / sigma(t)


def score(x: np.ndarray, t: float) -> np.ndarray:
    return -(x - alpha(t) * MEAN) / (alpha(t) ** 2 * VARIANCE + sigma(t) ** 2)


Recursion = Callable[[np.ndarray, np.ndarray, list[np.ndarray]], np.ndarray]


def song_euler_maruyama(ts, x, z):
    """Song et al. 2021, eq. 6 with Euler-Maruyama: dx = [f - g^2 score] dt + g dw backwards."""
    for i, (t, s) in enumerate(itertools.pairwise(ts)):
        dt = s - t
        x = x + (-0.5 * beta(t) * x - beta(t) * score(x, t)) * dt + math.sqrt(beta(t) * -dt) * z[i]
    return x


def song_reverse_diffusion(ts, x, z):
    """Song et al. 2021, eq. 46, with x_{i+1} = sqrt(1 - beta_i) x_i + sqrt(beta_i) z forwards."""
    for i, (t, s) in enumerate(itertools.pairwise(ts)):
        b = 1 - math.exp(integral(s) - integral(t))
        x = (2 - math.sqrt(1 - b)) * x + b * score(x, t) + math.sqrt(b) * z[i]
    return x


def ho_ancestral(large: bool) -> Recursion:
    """Ho et al. 2020, eq. 11, with the variance beta or its posterior value."""

    def run(ts, x, z):
        for i, (t, s) in enumerate(itertools.pairwise(ts)):
            bar, before = math.exp(-integral(t)), math.exp(-integral(s))
            b = 1 - bar / before
            variance = b if large else (1 - before) / (1 - bar) * b
            x = (x - b / math.sqrt(1 - bar) * epsilon(x, t)) / math.sqrt(1 - b) + math.sqrt(variance) * z[i]
        return x

    return run


def song_ddim(eta: float) -> Recursion:
    """Song, Meng and Ermon 2021, eq. 12 and 16."""

    def run(ts, x, z):
        for i, (t, s) in enumerate(itertools.pairwise(ts)):
            bar, before = math.exp(-integral(t)), math.exp(-integral(s))
            std = eta * math.sqrt((1 - before) / (1 - bar)) * math.sqrt(1 - bar / before)
            clean = (x - math.sqrt(1 - bar) * epsilon(x, t)) / math.sqrt(bar)
            x = math.sqrt(before) * clean + math.sqrt(1 - before - std**2) * epsilon(x, t) + (std * z[i] if eta else 0)
        return x

    return run


def lu_dpmpp_2m(stochastic: bool) -> Recursion:
    """Lu et al. 2022, algorithm 2; the SDE form multiplies the same extrapolation D in the exact first-order step."""

    def run(ts, x, z):
        lam = np.log(alpha(ts) / sigma(ts))
        before = None
        for i, (t, s) in enumerate(itertools.pairwise(ts)):
            h, clean = lam[i + 1] - lam[i], denoiser(x, t)
            r = None if before is None else (lam[i] - lam[i - 1]) / h
            mixed = clean if r is None else (1 + 1 / (2 * r)) * clean - before / (2 * r)
            if stochastic:
                x = sigma(s) / sigma(t) * math.exp(-h) * x + alpha(s) * (1 - math.exp(-2 * h)) * mixed
                x = x + sigma(s) * math.sqrt(1 - math.exp(-2 * h)) * z[i]
            else:
                x = sigma(s) / sigma(t) * x - alpha(s) * (math.exp(-h) - 1) * mixed
            before = clean
        return x

    return run


def karras_heun(ts, x, z):
    """Karras et al. 2022, algorithm 1, for the state divided by alpha, where the noise level is sigma/alpha."""
    nu, y = sigma(ts) / alpha(ts), x / alpha(ts[0])
    for i, (t, s) in enumerate(itertools.pairwise(ts)):
        d = (y - denoiser(alpha(t) * y, t)) / nu[i]
        trial = y + (nu[i + 1] - nu[i]) * d
        y = y + (nu[i + 1] - nu[i]) * 0.5 * (d + (trial - denoiser(alpha(s) * trial, s)) / nu[i + 1])
    return y * alpha(ts[-1])


def classical_heun(ts, x, z):
    """Heun's method for dx/dt = -beta/2 (x + score)."""
    for t, s in itertools.pairwise(ts):
        slope = -0.5 * beta(t) * (x + score(x, t))
        trial = x + (s - t) * slope
        x = x + (s - t) * 0.5 * (slope - 0.5 * beta(s) * (trial + score(trial, s)))
    return x


PAPERS: dict[str, tuple[Solver, Recursion]] = {
    "euler_maruyama": (solvers.euler_maruyama(), song_euler_maruyama),
    "reverse_diffusion": (solvers.reverse_diffusion(), song_reverse_diffusion),
    "ancestral small": (solvers.ancestral(), ho_ancestral(large=False)),
    "ancestral large": (solvers.ancestral(variance="large"), ho_ancestral(large=True)),
    "ddim 0": (solvers.ddim(), song_ddim(0.0)),
    "ddim 0.6": (solvers.ddim(0.6), song_ddim(0.6)),
    "ddim 1": (solvers.ddim(1.0), song_ddim(1.0)),
    "dpmpp_2m": (solvers.dpmpp_2m(), lu_dpmpp_2m(stochastic=False)),
    "dpmpp_2m_sde": (solvers.dpmpp_2m(eta=1.0), lu_dpmpp_2m(stochastic=True)),
    "heun in nu": (solvers.heun(variable="nu"), karras_heun),
    "heun in t": (solvers.heun(variable="t"), classical_heun),
}
# Uneven, so that no step length can stand for another.
UNEVEN = np.array([1.0, 0.93, 0.8, 0.71, 0.5, 0.42, 0.25, 0.19, 0.08, 0.05, 0.011])


def weights_of(recursion: Recursion, ts: np.ndarray) -> np.ndarray:
    """The recursion's weights on [1, start state, draw 1, ...], with a draw for every interval."""
    unit = np.eye(1 + len(ts))
    out = recursion(ts, unit[1], list(unit[2:]))
    return np.concatenate([out[:1], out[1:] - out[0]])


def distance(table: Tableau, name: str) -> float:
    """Largest difference of the real sampler's coefficients from the paper's recursion."""
    expected = weights_of(PAPERS[name][1], UNEVEN)
    got = np.zeros_like(expected)
    got[: 2 + draws(table)] = coefficients(gaussian(), table)
    return float(np.abs(got - expected).max())


@pytest.mark.parametrize("name", PAPERS)
def test_a_solver_is_what_its_paper_says(name: str) -> None:
    table = PAPERS[name][0](VPSDE(), torch.from_numpy(UNEVEN))
    assert distance(table, name) < 2e-12


# --- the same test must fail on wrong tables


def wrong_euler_maruyama(sde: GaussianSDE, times: torch.Tensor, fault: str) -> Tableau:
    """Euler-Maruyama with one of the mistakes that published samplers have made."""
    good = solvers.euler_maruyama()(sde, times)
    if fault == "first step skipped":
        return Tableau(good.name, good.prediction, good.rows[1:], good.start, good.end, 1.0)
    rows = []
    for i, row in enumerate(good.rows):
        t, s = float(times[i]), float(times[i + 1])
        dt = (float(times[0]) / (len(times) - 1)) if fault == "dt unlike the grid" else t - s
        drift_at = s if fault == "drift at the end of the step" else t
        noise_at = s if fault == "diffusion at the end of the step" else t
        g2 = beta(s if fault == "score weight at the end of the step" else t)
        on_x, on_noise = 1 + 0.5 * beta(drift_at) * dt, math.sqrt(beta(noise_at) * dt)
        rows.append(Row(row.at, (on_x, -dt * g2 / row.at.sigma), noise=(on_noise,)))
    return Tableau(good.name, "noise", tuple(rows), good.start, good.end, 1.0)


FAULTS = [
    "drift at the end of the step",
    "diffusion at the end of the step",
    "score weight at the end of the step",
    "dt unlike the grid",
    "first step skipped",
]


def test_the_hand_made_table_without_a_fault_is_euler_maruyama() -> None:
    assert distance(wrong_euler_maruyama(VPSDE(), torch.from_numpy(UNEVEN), "none"), "euler_maruyama") < 2e-12


@pytest.mark.parametrize("fault", FAULTS)
def test_the_exact_law_tells_a_wrong_table(fault: str) -> None:
    """Each mistake shifts the variance at 1000 steps by some 1e-4 to 1e-2, which samples hide and 1e-12 does not."""
    times = 1 + (1e-3 - 1) * torch.arange(1001, dtype=torch.float64) / 1000
    bad = wrong_euler_maruyama(VPSDE(), times, fault)
    recursion = weights_of(song_euler_maruyama, times.numpy())
    law = recursion[0], (recursion[1:] ** 2).sum()
    good = solvers.euler_maruyama()(VPSDE(), times).law(MEAN, VARIANCE, start=(0.0, 1.0))
    assert good == pytest.approx(law, abs=1e-12)
    assert bad.law(MEAN, VARIANCE, start=(0.0, 1.0)) != pytest.approx(law, abs=1e-9)
    assert distance(wrong_euler_maruyama(VPSDE(), torch.from_numpy(UNEVEN), fault), "euler_maruyama") > 1e-3


# --- equalities between tables


def same(one: Tableau, two: Tableau, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(
        one.affine_map(MEAN, VARIANCE), two.affine_map(MEAN, VARIANCE), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("sde", SDES)
def test_methods_that_are_the_same_give_the_same_map(sde: str) -> None:
    """DDIM(1) is ancestral, DDIM(0) is ancestral with eta 0 and the first-order multistep method of any prediction."""
    diffusion = SDES[sde]
    times = grids.karras(12)(diffusion)
    same(solvers.ddim(1.0)(diffusion, times), solvers.ancestral()(diffusion, times))
    for other in (
        solvers.ancestral(eta=0.0),
        *(solvers.multistep(order=1, prediction=p, variable=v) for p, v in (("data", "t"), ("data", "log_snr"))),
    ):
        same(solvers.ddim()(diffusion, times), other(diffusion, times))
    same(solvers.ancestral(eta=0.6)(diffusion, times), solvers.multistep(order=1, eta=0.6)(diffusion, times))
    euler = solvers.runge_kutta(EULER, variable="nu")(diffusion, times)
    same(solvers.multistep(order=1, prediction="noise")(diffusion, times), euler)
    same(solvers.ddim()(diffusion, times), euler)
    euler = solvers.runge_kutta(EULER, variable="rectified")(diffusion, times)
    same(solvers.multistep(order=1, prediction="flow")(diffusion, times), euler)


@pytest.mark.parametrize(
    "name",
    [
        *("ancestral", "ancestral eta 0.5", "ddim", "ddim eta 0.4", "dpmpp_2m", "dpmpp_2m_sde", "heun", "heun nu"),
        *("multistep noise 4", "multistep data 3, eta 0.7", "multistep noise 2, eta 1"),
    ],
)
def test_a_step_into_clean_data_is_the_data_prediction(name: str) -> None:
    """Ending at t = 0 equals ending at the last time before it and denoising there."""
    solver = solver_named(name)
    times = torch.tensor([1.0, 0.6, 0.2, 0.05], dtype=torch.float64)
    to_zero = solver(VPSDE(), torch.cat([times, torch.zeros(1, dtype=torch.float64)]))
    same(to_zero, solver(VPSDE(), times).denoised())
    assert to_zero.end.sigma == 0
    assert to_zero.denoised() is to_zero


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: solvers.multistep(prediction="dat"), ConfigError, "did you mean 'data'"),
        (lambda: solvers.multistep(variable="logsnr"), ConfigError, "did you mean 'log_snr'"),
        (lambda: solvers.multistep(coefficients="exat"), ConfigError, "did you mean 'exact'"),
        (lambda: solvers.multistep(coefficients="midpoint", order=3), ConfigError, "order=2"),
        (lambda: solvers.multistep(prediction="flow", eta=1.0), ConfigError, "no stochastic form"),
        (lambda: solvers.multistep(order=5), DomainError, r"\[1, 4\], got 5"),
        (lambda: solvers.multistep(eta=-1.0), DomainError, "eta must lie in"),
        (lambda: solvers.heun(variable="x"), ConfigError, "choices: log_snr, nu, rectified, t"),
        (lambda: solvers.ancestral(variance="big"), ConfigError, "large, learned, small"),
        (lambda: solvers.ancestral(variance="large", eta=0.5), DomainError, "belongs to eta = 1"),
        (lambda: solvers.ddim(math.nan), DomainError, "eta must lie in"),
        (lambda: solvers.ddim(3.0)(VPSDE(), torch.tensor([1.0, 0.1])), DomainError, "use eta <= 1"),
        (lambda: solvers.euler_maruyama(eta=-0.1), DomainError, "eta must lie in"),
        (lambda: solvers.reverse_diffusion(eta=-0.1), DomainError, "eta must lie in"),
    ],
)
def test_wrong_options_are_refused_when_the_solver_is_made(make: Callable[[], object], kind, words: str) -> None:
    with pytest.raises(kind, match=words):
        make()
