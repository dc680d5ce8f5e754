"""Linear multistep methods against the papers' formulas.

The recursions are written from the papers, in float64, and share no code with the package. They run on the exact model
of Gaussian data, where a sampler is known by its weights on the start state and on each draw.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import MEAN, VARIANCE, coefficients, gaussian
from scipy.integrate import quad

from scoresde import VPSDE, Solver, solvers

# The variance-preserving diffusion of the papers: alpha^2 = exp(-B), B the integral of beta.


def alpha(t: float | np.ndarray) -> np.ndarray:
    return np.exp(-(0.1 * t + 9.95 * t**2) / 2)


def sigma(t: float | np.ndarray) -> np.ndarray:
    return np.sqrt(1 - np.exp(-(0.1 * t + 9.95 * t**2)))


def lam(t: float | np.ndarray) -> np.ndarray:
    return np.log(alpha(t) / sigma(t))


def denoiser(x: np.ndarray, t: float) -> np.ndarray:
    return MEAN + alpha(t) * VARIANCE / (alpha(t) ** 2 * VARIANCE + sigma(t) ** 2) * (x - alpha(t) * MEAN)


def epsilon(x: np.ndarray, t: float) -> np.ndarray:
    return (x - alpha(t) * denoiser(x, t)) / sigma(t)


Recursion = Callable[[np.ndarray, np.ndarray, list[np.ndarray]], np.ndarray]


def lu_3m(stochastic: bool) -> Recursion:
    """DPM-Solver++'s third-order multistep update with its phi functions of -h (of -2h for the SDE, as Crowson's)."""

    def run(ts, x, z):
        levels, past = lam(ts), []
        for i, (t, s) in enumerate(itertools.pairwise(ts)):
            past.insert(0, denoiser(x, t))
            h = levels[i + 1] - levels[i]
            g = 2 * h if stochastic else h
            phi_1 = math.expm1(-g)
            phi_2 = phi_1 / g + 1
            phi_3 = phi_2 / g - 0.5
            step = -alpha(s) * phi_1 * past[0]
            if i >= 1:
                r_0 = (levels[i] - levels[i - 1]) / h
                d_10 = (past[0] - past[1]) / r_0
            if i == 1:
                step = step + (alpha(s) * phi_2 * d_10 if stochastic else -0.5 * alpha(s) * phi_1 * d_10)
            if i >= 2:
                r_1 = (levels[i - 1] - levels[i - 2]) / h
                d_11 = (past[1] - past[2]) / r_1
                d_1 = d_10 + r_0 / (r_0 + r_1) * (d_10 - d_11)
                d_2 = (d_10 - d_11) / (r_0 + r_1)
                step = step + alpha(s) * phi_2 * d_1 - alpha(s) * phi_3 * d_2
            x = sigma(s) / sigma(t) * math.exp(h - g) * x + step
            if stochastic:
                x = x + sigma(s) * math.sqrt(-math.expm1(-2 * h)) * z[i]
        return x

    return run


def zhang_tab(order: int) -> Recursion:
    """DEIS's tAB: C_j is the integral of the transition, the score's weight and the Lagrange basis in t."""

    def run(ts, x, z):
        past = []
        for i, (t, s) in enumerate(itertools.pairwise(ts)):
            past.insert(0, epsilon(x, t))
            nodes = ts[max(0, i + 1 - order) : i + 1][::-1]
            x = alpha(s) / alpha(t) * x
            for j, node in enumerate(nodes):
                others = np.delete(nodes, j)

                def integrand(tau: float, node: float = node, others: np.ndarray = others, s: float = s) -> float:
                    basis = np.prod((tau - others) / (node - others))
                    return float(alpha(s) / alpha(tau) * 0.5 * (0.1 + 19.9 * tau) / sigma(tau) * basis)

                x = x + quad(integrand, t, s, epsabs=1e-14, epsrel=1e-13)[0] * past[j]
        return x

    return run


def adams_in(variable: Callable[[np.ndarray], np.ndarray], scale: Callable[[float], float], prediction, order: int):
    """Adams and Bashforth's method for y = x/scale, whose slope in the variable is the prediction."""

    def run(ts, x, z):
        past, v = [], variable(ts)
        for i, (t, s) in enumerate(itertools.pairwise(ts)):
            past.insert(0, prediction(x, t))
            nodes, y = v[max(0, i + 1 - order) : i + 1][::-1], x / scale(t)
            for j, node in enumerate(nodes):
                others = np.delete(nodes, j)
                integral = (np.poly1d(others, r=True) / np.prod(node - others)).integ()
                y = y + (integral(v[i + 1]) - integral(v[i])) * past[j]
            x = scale(s) * y
        return x

    return run


def nu(t: np.ndarray) -> np.ndarray:
    return sigma(t) / alpha(t)


def share(t: np.ndarray) -> np.ndarray:
    return sigma(t) / (alpha(t) + sigma(t))


def velocity(x: np.ndarray, t: float) -> np.ndarray:
    return epsilon(x, t) - denoiser(x, t)


def hochbruck_2(ts, x, z):
    """The exponential Adams method of two steps, with phi_1 and phi_2 of -h, for y' = -y + e^l data, y = x/sigma."""
    levels, before = lam(ts), None
    for i, (t, s) in enumerate(itertools.pairwise(ts)):
        clean, h = denoiser(x, t), levels[i + 1] - levels[i]
        phi_1 = -math.expm1(-h) / h
        phi_2 = (1 - phi_1) / h
        slope = 0.0 if before is None else (clean - before) / (levels[i] - levels[i - 1])
        x = sigma(s) / sigma(t) * x + alpha(s) * (h * phi_1 * clean + h * h * phi_2 * slope)
        before = clean
    return x


def liu_ipndm(ts, x, z):
    """PNDM's linear multistep phase from lower orders, in DDIM's transfer."""
    past = []
    for t, s in itertools.pairwise(ts):
        past.insert(0, epsilon(x, t))
        if len(past) == 1:
            e = past[0]
        elif len(past) == 2:
            e = (3 * past[0] - past[1]) / 2
        elif len(past) == 3:
            e = (23 * past[0] - 16 * past[1] + 5 * past[2]) / 12
        else:
            e = (55 * past[0] - 59 * past[1] + 37 * past[2] - 9 * past[3]) / 24
        x = alpha(s) * (x - sigma(t) * e) / alpha(t) + sigma(s) * e
    return x


def zhao_unipc(order: int, variant: str, corrected: bool = True) -> Recursion:
    """UniP-p and UniC-p with B(h), data prediction: rho solves R(h) rho B(h) = phi(h); 1/2 for a single unknown."""

    def rho(r: list[float], h: float, b: float) -> np.ndarray:
        if len(r) == 1:
            return np.array([0.5])
        # phi_n(h) = h^n n! varphi_{n+1} of the exponential integrator in -h.
        varphi, phi = [math.expm1(-h) / -h], []
        for n in range(1, len(r) + 1):
            varphi.append((varphi[-1] - 1 / math.factorial(n)) / -h)
            phi.append(math.factorial(n) * varphi[-1] * -h / b)
        return np.linalg.solve(np.vander(r, increasing=True).T, phi)

    def run(ts, x, z):
        levels, past = lam(ts), []
        for i, (t, s) in enumerate(itertools.pairwise(ts)):
            if i == 0:
                past.insert(0, denoiser(x, t))
            p, h = min(order, i + 1), levels[i + 1] - levels[i]
            b = -h if variant == "bh1" else math.expm1(-h)
            base = sigma(s) / sigma(t) * x - alpha(s) * math.expm1(-h) * past[0]
            r = [(levels[i - m] - levels[i]) / h for m in range(1, p)]
            predicted = base
            if r:
                for weight, r_m, old in zip(rho(r, h, b), r, past[1:], strict=False):
                    predicted = predicted - alpha(s) * b * weight * (old - past[0]) / r_m
            if i + 2 == len(ts):
                return predicted
            new = denoiser(predicted, s)
            x = predicted
            if corrected:
                x, r = base, [*r, 1.0]
                for weight, r_m, other in zip(rho(r, h, b), r, [*past[1:p], new], strict=True):
                    x = x - alpha(s) * b * weight * (other - past[0]) / r_m
            past.insert(0, new)
        return x

    return run


def xue_sa_solver(predictor: int, corrector: int, tau: Callable[[float], float]) -> Recursion:
    """SA-Solver: its b_j are integrals of e^{(1 + tau^2) l} times the Lagrange basis in l, by adaptive quadrature."""

    def run(ts, x, z):
        levels, past = lam(ts), []
        for i, (t, s) in enumerate(itertools.pairwise(ts)):
            if i == 0:
                past.insert(0, denoiser(x, t))
            power, h = tau(t) ** 2, levels[i + 1] - levels[i]

            def integral(nodes: np.ndarray, j: int, low: float, high: float, power: float = power) -> float:
                others = np.delete(nodes, j)

                def integrand(at: float) -> float:
                    return float(
                        (1 + power) * math.exp((1 + power) * (at - high)) * np.prod((at - others) / (nodes[j] - others))
                    )

                return quad(integrand, low, high, epsabs=1e-14, epsrel=1e-13)[0]

            base = sigma(s) / sigma(t) * math.exp(-power * h) * x
            base = base + sigma(s) * math.sqrt(-math.expm1(-2 * power * h)) * z[i]
            nodes = levels[max(0, i + 1 - predictor) : i + 1][::-1]
            predicted = base
            for j in range(len(nodes)):
                predicted = predicted + alpha(s) * integral(nodes, j, levels[i], levels[i + 1]) * past[j]
            if i + 2 == len(ts):
                return predicted
            past.insert(0, denoiser(predicted, s))
            x = predicted
            if corrector:
                nodes, x = levels[max(0, i + 2 - corrector) : i + 2][::-1], base
                for j in range(len(nodes)):
                    x = x + alpha(s) * integral(nodes, j, levels[i], levels[i + 1]) * past[j]
        return x

    return run


def jumping(t: float) -> float:
    return 0.0 if t > 0.75 or t < 0.15 else 1.3 * t


PAPERS: dict[str, tuple[Solver, Recursion]] = {
    "dpmpp_3m": (solvers.dpmpp_3m(), lu_3m(stochastic=False)),
    "dpmpp_3m_sde": (solvers.dpmpp_3m_sde(), lu_3m(stochastic=True)),
    "deis 2 in t": (solvers.deis(order=2), zhang_tab(2)),
    "deis 4 in t": (solvers.deis(order=4), zhang_tab(4)),
    "deis 3 in nu": (solvers.deis(order=3, variable="nu"), adams_in(nu, alpha, epsilon, 3)),
    "lms": (solvers.lms(), adams_in(nu, alpha, epsilon, 4)),
    "flow_ab": (solvers.flow_ab(), adams_in(share, lambda t: alpha(t) + sigma(t), velocity, 3)),
    "exponential_ab 2": (solvers.exponential_ab(order=2), hochbruck_2),
    "ipndm": (solvers.ipndm(), liu_ipndm),
    **{
        f"unipc {p}, {variant}": (solvers.unipc(order=p, variant=variant), zhao_unipc(p, variant))
        for p in (1, 2, 3)
        for variant in ("bh1", "bh2")
    },
    "unip 2, bh1": (solvers.unipc(order=2, variant="bh1", corrected=False), zhao_unipc(2, "bh1", corrected=False)),
    "sa_solver 3, 4": (solvers.sa_solver(), xue_sa_solver(3, 4, lambda t: 1.0)),
    "sa_solver 2, 0": (solvers.sa_solver(predictor_order=2, corrector_order=0), xue_sa_solver(2, 0, lambda t: 1.0)),
    "sa_solver 1, 3 with a jumping tau": (
        solvers.sa_solver(predictor_order=1, corrector_order=3, tau=jumping),
        xue_sa_solver(1, 3, jumping),
    ),
}
# Uneven, so that no step length can stand for another.
UNEVEN = np.array([1.0, 0.93, 0.8, 0.71, 0.5, 0.42, 0.25, 0.19, 0.08, 0.05, 0.011])


def weights_of(recursion: Recursion, used: list[bool]) -> np.ndarray:
    """The recursion's weights on [1, start state, draws of the intervals that draw]."""
    unit = np.eye(1 + len(UNEVEN))
    out = recursion(UNEVEN, unit[1], list(unit[2:]))
    on_draws = out[2:] - out[0]
    assert not np.any(on_draws[~np.array(used)])
    return np.concatenate([out[:1], out[1:2] - out[0], on_draws[used]])


@pytest.mark.parametrize("name", PAPERS)
def test_a_solver_is_what_its_paper_says(name: str) -> None:
    solver, recursion = PAPERS[name]
    table = solver(VPSDE(), torch.from_numpy(UNEVEN))
    expected = weights_of(recursion, [row.draws for row in table.rows])
    np.testing.assert_allclose(coefficients(gaussian(), table), expected, rtol=0, atol=4e-12)
