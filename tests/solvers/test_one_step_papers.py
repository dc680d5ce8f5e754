"""One-step methods: published formulas written by hand, equalities, and the same numbers under every SDE."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import MEAN, VARIANCE, coefficients, draws, gaussian

from scoresde import (
    VESDE,
    VPSDE,
    GaussianMixtureModel,
    GaussianSDE,
    RectifiedFlow,
    Solver,
    SubVPSDE,
    Tableau,
    sample,
    solvers,
)
from scoresde.solvers.runge_kutta import KUTTA3, MIDPOINT

# Variance preserving as in the papers, from its definition.


def integral(t: float) -> float:
    return 0.1 * t + 19.9 * t**2 / 2


def alpha(t: float) -> float:
    return math.exp(-integral(t) / 2)


def sigma(t: float) -> float:
    return math.sqrt(1 - math.exp(-integral(t)))


def lam(t: float) -> float:
    return math.log(alpha(t) / sigma(t))


def time_of(level: float) -> float:
    """The paper's t_lambda for the linear schedule."""
    b = math.log1p(math.exp(-2 * level))
    return 2 * b / (0.1 + math.sqrt(0.1**2 + 2 * 19.9 * b))


def data(x: np.ndarray, t: float) -> np.ndarray:
    """E[x_0 | x_t] for data N(MEAN, VARIANCE); x holds weights on [1, start state, draws]."""
    a, s, one = alpha(t), sigma(t), np.eye(len(x))[0]
    return MEAN * one + a * VARIANCE / (a**2 * VARIANCE + s**2) * (x - a * MEAN * one)


def eps(x: np.ndarray, t: float) -> np.ndarray:
    return (x - alpha(t) * data(x, t)) / sigma(t)


Step = Callable[[np.ndarray, float, float, list[np.ndarray]], np.ndarray]


def dpm_solver_2(r: float) -> Step:
    """Lu et al. 2022, DPM-Solver, algorithm 4."""

    def step(x, t, s, z):
        h = lam(s) - lam(t)
        m = time_of(lam(t) + r * h)
        u = alpha(m) / alpha(t) * x - sigma(m) * (math.exp(r * h) - 1) * eps(x, t)
        return (
            alpha(s) / alpha(t) * x
            - sigma(s) * (math.exp(h) - 1) * eps(x, t)
            - sigma(s) / (2 * r) * (math.exp(h) - 1) * (eps(u, m) - eps(x, t))
        )

    return step


def dpm_solver_3(x, t, s, z):
    """Lu et al. 2022, DPM-Solver, algorithm 2, r1 = 1/3 and r2 = 2/3."""
    h, r1, r2 = lam(s) - lam(t), 1 / 3, 2 / 3
    t1, t2 = time_of(lam(t) + r1 * h), time_of(lam(t) + r2 * h)
    u1 = alpha(t1) / alpha(t) * x - sigma(t1) * (math.exp(r1 * h) - 1) * eps(x, t)
    d1 = eps(u1, t1) - eps(x, t)
    u2 = (
        alpha(t2) / alpha(t) * x
        - sigma(t2) * (math.exp(r2 * h) - 1) * eps(x, t)
        - sigma(t2) * r2 / r1 * ((math.exp(r2 * h) - 1) / (r2 * h) - 1) * d1
    )
    d2 = eps(u2, t2) - eps(x, t)
    return (
        alpha(s) / alpha(t) * x
        - sigma(s) * (math.exp(h) - 1) * eps(x, t)
        - sigma(s) / r2 * ((math.exp(h) - 1) / h - 1) * d2
    )


def dpmpp_2s(r: float) -> Step:
    """Lu et al. 2022, DPM-Solver++, algorithm 1."""

    def step(x, t, s, z):
        h = lam(s) - lam(t)
        m = time_of(lam(t) + r * h)
        u = sigma(m) / sigma(t) * x - alpha(m) * (math.exp(-r * h) - 1) * data(x, t)
        mixed = (1 - 1 / (2 * r)) * data(x, t) + 1 / (2 * r) * data(u, m)
        return sigma(s) / sigma(t) * x - alpha(s) * (math.exp(-h) - 1) * mixed

    return step


def dpmpp_3s(x, t, s, z):
    """The third-order single step of the authors' DPM-Solver++ program, r1 = 1/3 and r2 = 2/3."""
    h, r1, r2 = lam(s) - lam(t), 1 / 3, 2 / 3
    t1, t2 = time_of(lam(t) + r1 * h), time_of(lam(t) + r2 * h)
    x1 = sigma(t1) / sigma(t) * x - alpha(t1) * math.expm1(-r1 * h) * data(x, t)
    phi_22 = math.expm1(-r2 * h) / (r2 * h) + 1
    x2 = sigma(t2) / sigma(t) * x - alpha(t2) * math.expm1(-r2 * h) * data(x, t)
    x2 = x2 + r2 / r1 * alpha(t2) * phi_22 * (data(x1, t1) - data(x, t))
    phi_2 = math.expm1(-h) / h + 1
    return (
        sigma(s) / sigma(t) * x
        - alpha(s) * math.expm1(-h) * data(x, t)
        + 1 / r2 * alpha(s) * phi_2 * (data(x2, t2) - data(x, t))
    )


def res(c2: float) -> Step:
    """Hochbruck and Ostermann 2005, order 2: a21 = c2 phi1(-c2 h), b2 = phi2/c2, in y = x/sigma and lambda."""

    def step(x, t, s, z):
        h = lam(s) - lam(t)
        m = time_of(lam(t) + c2 * h)
        phi_1, phi_2 = (1 - math.exp(-h)) / h, (math.exp(-h) - 1 + h) / h**2
        # In y = x/alpha: y' = data - y.
        y = x / alpha(t)
        u = math.exp(-c2 * h) * y + (1 - math.exp(-c2 * h)) * data(x, t)
        two = data(alpha(m) * u, m)
        return alpha(s) * (math.exp(-h) * y + h * ((phi_1 - phi_2 / c2) * data(x, t) + phi_2 / c2 * two))

    return step


def seeds_1(x, t, s, z):
    """Gonzalez et al. 2023, SEEDS-1."""
    h = lam(s) - lam(t)
    return (
        alpha(s) / alpha(t) * x
        - 2 * sigma(s) * (math.exp(h) - 1) * eps(x, t)
        + sigma(s) * math.sqrt(math.exp(2 * h) - 1) * z[0]
    )


def seeds_2(x, t, s, z):
    """Gonzalez et al. 2023, SEEDS-2."""
    h = lam(s) - lam(t)
    m = time_of(lam(t) + h / 2)
    u = (
        alpha(m) / alpha(t) * x
        - 2 * sigma(m) * (math.exp(h / 2) - 1) * eps(x, t)
        + sigma(m) * math.sqrt(math.exp(h) - 1) * z[0]
    )
    noise = math.sqrt(math.exp(2 * h) - math.exp(h)) * z[0] + math.sqrt(math.exp(h) - 1) * z[1]
    return alpha(s) / alpha(t) * x - 2 * sigma(s) * (math.exp(h) - 1) * eps(u, m) + sigma(s) * noise


def seeds_3(x, t, s, z):
    """Gonzalez et al. 2023, SEEDS-3, r1 = 1/3 and r2 = 2/3."""
    h, r1, r2 = lam(s) - lam(t), 1 / 3, 2 / 3
    t1, t2 = time_of(lam(t) + r1 * h), time_of(lam(t) + r2 * h)
    e = math.exp
    u1 = alpha(t1) / alpha(t) * x - 2 * sigma(t1) * (e(r1 * h) - 1) * eps(x, t)
    u1 = u1 + sigma(t1) * math.sqrt(e(2 * r1 * h) - 1) * z[0]
    d1 = eps(u1, t1) - eps(x, t)
    u2 = alpha(t2) / alpha(t) * x - 2 * sigma(t2) * (e(r2 * h) - 1) * eps(x, t)
    u2 = u2 - 2 * sigma(t2) * r2 / r1 * ((e(r2 * h) - 1) / (r2 * h) - 1) * d1
    u2 = u2 + sigma(t2) * (math.sqrt(e(2 * r2 * h) - e(2 * r1 * h)) * z[0] + math.sqrt(e(2 * r1 * h) - 1) * z[1])
    d2 = eps(u2, t2) - eps(x, t)
    noise = (
        math.sqrt(e(2 * h) - e(2 * r2 * h)) * z[0]
        + math.sqrt(e(2 * r2 * h) - e(2 * r1 * h)) * z[1]
        + math.sqrt(e(2 * r1 * h) - 1) * z[2]
    )
    return (
        alpha(s) / alpha(t) * x
        - 2 * sigma(s) * (e(h) - 1) * eps(x, t)
        - 2 * sigma(s) / r2 * ((e(h) - 1) / h - 1) * d2
        + sigma(s) * noise
    )


def sra1(eta: float) -> Step:
    """Roessler 2010, SRA1, for dx = [f x + (1 + eta^2)/2 g^2 eps/sigma] dt + eta g dw run backwards by k = t - s."""

    def step(x, t, s, z):
        k = t - s
        one, two = math.sqrt(k) * (math.sqrt(3) / 2 * z[0] + 0.5 * z[1]), math.sqrt(k / 3) * z[0]

        def drift(x, t):
            beta = 0.1 + 19.9 * t
            return 0.5 * beta * x - 0.5 * (1 + eta**2) * beta * eps(x, t) / sigma(t)

        def width(t):
            return eta * math.sqrt(0.1 + 19.9 * t)

        a1 = drift(x, t)
        a2 = drift(x + 3 / 4 * k * a1 + 3 / 2 * two * width(s), t - 3 / 4 * k)
        return x + k * (a1 / 3 + 2 / 3 * a2) + one * width(s) + two * (width(t) - width(s))

    return step


def kutta(stages: list[list[float]], weights: list[float]) -> Step:
    """A Runge-Kutta method for dy/du = noise - data in y = x/(alpha + sigma), u = sigma/(alpha + sigma)."""

    def place(t):
        return sigma(t) / (alpha(t) + sigma(t))

    def step(x, t, s, z):
        y, h, slopes = x / (alpha(t) + sigma(t)), place(s) - place(t), []
        for row in stages:
            u = place(t) + sum(row) * h
            at = time_of(math.log((1 - u) / u))
            state = (alpha(at) + sigma(at)) * (y + h * sum(a * k for a, k in zip(row, slopes, strict=True)))
            slopes.append(eps(state, at) - data(state, at))
        return (alpha(s) + sigma(s)) * (y + h * sum(b * k for b, k in zip(weights, slopes, strict=True)))

    return step


PAPERS: dict[str, tuple[Solver, Step, int]] = {
    "dpm_solver_2": (solvers.dpm_solver_2(), dpm_solver_2(0.5), 0),
    "dpm_solver_2 at 0.3": (solvers.dpm_solver_2(r=0.3), dpm_solver_2(0.3), 0),
    "dpm_solver_3": (solvers.dpm_solver_3(), dpm_solver_3, 0),
    "dpmpp_2s": (solvers.dpmpp_2s(), dpmpp_2s(0.5), 0),
    "dpmpp_2s at 0.7": (solvers.dpmpp_2s(r=0.7), dpmpp_2s(0.7), 0),
    "dpmpp_3s": (solvers.dpmpp_3s(), dpmpp_3s, 0),
    "res": (solvers.res(), res(0.5), 0),
    "exponential_rk2 at 0.8": (solvers.exponential_rk2(node=0.8), res(0.8), 0),
    "seeds_1": (solvers.seeds_1(), seeds_1, 1),
    "seeds_2": (solvers.seeds_2(), seeds_2, 2),
    "seeds_3": (solvers.seeds_3(), seeds_3, 3),
    "sra1": (solvers.sra1(), sra1(1.0), 2),
    "sra1, eta 0.6": (solvers.sra1(eta=0.6), sra1(0.6), 2),
    "sra1, eta 0": (solvers.sra1(eta=0.0), sra1(0.0), 2),
    "euler": (solvers.euler(), kutta([[]], [1.0]), 0),
    "midpoint": (solvers.midpoint(), kutta([[], [0.5]], [0.0, 1.0]), 0),
    "heun": (solvers.heun(), kutta([[], [1.0]], [0.5, 0.5]), 0),
    "ralston": (solvers.ralston(), kutta([[], [2 / 3]], [1 / 4, 3 / 4]), 0),
    "rk3": (solvers.rk3(), kutta([[], [0.5], [-1.0, 2.0]], [1 / 6, 4 / 6, 1 / 6]), 0),
    "rk4": (
        solvers.rk4(),
        kutta([[], [0.5], [0.0, 0.5], [0.0, 0.0, 1.0]], [1 / 6, 2 / 6, 2 / 6, 1 / 6]),
        0,
    ),
}
UNEVEN = np.array([1.0, 0.93, 0.8, 0.71, 0.5, 0.42, 0.25, 0.19, 0.08, 0.05, 0.011])


@pytest.mark.parametrize("name", PAPERS)
def test_a_solver_is_what_its_paper_says(name: str) -> None:
    solver, step, count = PAPERS[name]
    table = solver(VPSDE(), torch.from_numpy(UNEVEN))
    total = 2 + max(count, 1) * (len(UNEVEN) - 1)
    unit = np.eye(total)
    x, z = unit[1], list(unit[2:])
    for i, (t, s) in enumerate(itertools.pairwise(UNEVEN)):
        x = step(x, t, s, z[count * i : count * (i + 1)])
    got = np.zeros(total)
    got[: 2 + draws(table)] = coefficients(gaussian(), table)
    np.testing.assert_allclose(got, x, rtol=0, atol=3e-12 * max(1.0, np.abs(x).max()))


def test_published_and_exact_coefficients_differ_where_the_papers_round() -> None:
    at = torch.from_numpy(UNEVEN)
    for make in (solvers.dpm_solver_2, solvers.dpmpp_2s, solvers.dpm_solver_3, solvers.dpmpp_3s, solvers.seeds_2):
        one, two = (make(coefficients=c)(VPSDE(), at).affine_map(MEAN, VARIANCE) for c in ("published", "exact"))
        assert np.abs(one - two).max() > 1e-5


def same(one: Tableau, two: Tableau) -> None:
    got, expected = one.affine_map(MEAN, VARIANCE), two.affine_map(MEAN, VARIANCE)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE()], ids=["vp", "sub_vp", "ve"])
def test_methods_that_are_the_same(sde: GaussianSDE) -> None:
    at = sde.time(torch.linspace(-5.0, 6.0, 8, dtype=torch.float64))
    drift = solvers.Butcher("drift", ((), (0.75,)), (1 / 3, 2 / 3), 2)
    for one, two in (
        (solvers.milstein(eta=0.7), solvers.euler_maruyama(eta=0.7)),
        (solvers.euler_heun(), solvers.euler_maruyama()),
        (solvers.exponential_euler(), solvers.ancestral()),
        (solvers.exponential_euler(eta=0.5), solvers.ancestral(eta=0.5)),
        (solvers.exponential_euler(eta=0.0), solvers.ddim()),
        (solvers.exponential_euler(prediction="noise"), solvers.seeds_1()),
        (solvers.exponential_euler(prediction="noise", eta=0.0), solvers.euler(variable="nu")),
        (solvers.euler(), solvers.euler(variable="nu")),
        (solvers.res(), solvers.dpmpp_2s(coefficients="exact")),
        (solvers.exponential_rk3(), solvers.dpmpp_3s()),
        (solvers.exponential_rk3(prediction="noise"), solvers.dpm_solver_3()),
        (solvers.seeds_2(eta=0.0), solvers.dpm_solver_2()),
        (solvers.seeds_3(eta=0.0), solvers.dpm_solver_3()),
        (solvers.euler_ancestral(0.6), solvers.ddim(0.6)),
        (solvers.dpmpp_2s_ancestral(eta=0.0), solvers.dpmpp_2s()),
        (solvers.edm(churn=0.0), solvers.heun(variable="nu")),
        (solvers.sra1(eta=0.0, variable="nu"), solvers.runge_kutta(drift, variable="nu")),
    ):
        same(one(sde, at), two(sde, at))


INVARIANT: dict[str, Solver] = {
    **{
        f"{name} in {v}": solvers.runge_kutta({"midpoint": MIDPOINT, "rk3": KUTTA3}[name], variable=v)
        for name in ("midpoint", "rk3")
        for v in ("nu", "rectified", "log_snr")
    },
    **{
        name: solvers.by_name(name)
        for name in ("rk4", "ralston", "dpm_solver_2", "dpm_solver_3", "dpmpp_2s", "dpmpp_3s")
    },
    **{name: solvers.by_name(name) for name in ("res", "seeds_1", "seeds_2", "seeds_3", "dpmpp_2s_ancestral", "edm")},
    "exponential 3, eta 0.5": solvers.exponential(order=3, eta=0.5),
    "sra1 in nu": solvers.sra1(variable="nu"),
    "sra1 in log_snr": solvers.sra1(variable="log_snr", eta=0.5),
    "euler_maruyama in log_snr": solvers.euler_maruyama(variable="log_snr"),
}


@pytest.mark.parametrize("name", INVARIANT)
def test_the_scaled_state_is_the_same_under_every_sde(name: str) -> None:
    """x/alpha depends on nu alone: through the real sampler, on a mixture, with the same draws."""
    model = GaussianMixtureModel(
        sde=VPSDE(), weights=torch.tensor([0.3, 0.7]), means=torch.tensor([[-1.0, 0.2], [1.0, 0.5]]), std=0.4
    )
    log_snr = torch.linspace(-6.0, 6.5, 9, dtype=torch.float64)
    y = torch.linspace(-8.0, 8.0, 8, dtype=torch.float64).reshape(4, 2)
    noise = [torch.sin(k + y) for k in range(24)]
    ends = []
    for sde in (VPSDE(), SubVPSDE(), VESDE(sigma_min=1e-3, sigma_max=200.0), RectifiedFlow(t_max=0.999)):
        times = sde.time(log_snr)
        x = sample(
            model,
            x_init=sde.alpha(times[0]) * y,
            sde=sde,
            solver=INVARIANT[name],
            times=times,
            noise=noise,
            final="sample",
        )
        ends.append(x / sde.alpha(times[-1]))
    scale = float(ends[0].abs().max())
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=1e-12, atol=1e-12 * scale)
