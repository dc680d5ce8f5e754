"""Orders of the one-step methods on five diffusions, against exact flows and exact laws; no Monte Carlo."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import slope
from orders import FLOWS, carried, flow_error, kernel, kernels, strong_error, weak_error

from scoresde import EDMSDE, VESDE, VPSDE, GaussianSDE, RectifiedFlow, Solver, SubVPSDE, Tableau, solvers
from scoresde.solvers import grids
from scoresde.solvers.rows import Row

RUNGE_KUTTA = ("euler", "heun", "midpoint", "ralston", "rk3", "rk4")
EXPONENTIAL = ("exponential_rk2", "exponential_rk3", "res", "dpm_solver_2", "dpm_solver_3", "dpmpp_2s", "dpmpp_3s")
VARIANTS: dict[str, Solver] = {
    **{name: solvers.by_name(name) for name in (*RUNGE_KUTTA, *EXPONENTIAL)},
    "dpmpp_2s_ancestral, eta 0": solvers.dpmpp_2s_ancestral(eta=0.0),
    "edm, no churn": solvers.edm(churn=0.0),
}
SETTINGS: dict[str, Solver] = {
    **{f"rk4 in {v}": solvers.rk4(variable=v) for v in ("nu", "log_snr")},
    **{f"rk3 in {v}": solvers.rk3(variable=v) for v in ("nu", "log_snr")},
    "midpoint in log_snr": solvers.midpoint(variable="log_snr"),
    "ralston in nu": solvers.ralston(variable="nu"),
    "sra1's drift": solvers.sra1(eta=0.0, grid=grids.karras()),
    "euler_maruyama in nu, eta 0": solvers.euler_maruyama(eta=0.0, variable="nu", grid=grids.karras()),
    "dpm_solver_2 exact": solvers.dpm_solver_2(coefficients="exact"),
    "dpm_solver_2 at 0.7": solvers.dpm_solver_2(r=0.7),
    "dpm_solver_3 exact": solvers.dpm_solver_3(coefficients="exact"),
    "dpmpp_2s at 0.3": solvers.dpmpp_2s(r=0.3),
    "dpmpp_3s exact": solvers.dpmpp_3s(coefficients="exact"),
    "dpmpp_3s at 0.5": solvers.dpmpp_3s(r=0.5, coefficients="exact"),
    "exponential_rk3, noise": solvers.exponential_rk3(prediction="noise", node=0.5),
    "exponential_euler, eta 0": solvers.exponential_euler(prediction="noise", eta=0.0),
}


def measured(solver: Solver, sde: GaussianSDE) -> float:
    steps = (160, 320) if solver.order.deterministic < 3 else (120, 240)
    # Down to a very small t_min the native grid of three data predictions shows the order from more steps on.
    grid = grids.diffused() if solver.name in ("dpmpp_3s", "exponential_rk3") else solver.grid
    return slope([flow_error(solver(sde, grid(sde, n))) for n in steps], steps)


@pytest.mark.parametrize("sde", FLOWS)
@pytest.mark.parametrize("name", VARIANTS)
def test_order_on_the_flow_of_a_mixture(name: str, sde: str) -> None:
    solver = VARIANTS[name]
    assert measured(solver, FLOWS[sde]) == pytest.approx(solver.order.deterministic, abs=0.1)


@pytest.mark.parametrize("name", SETTINGS)
def test_order_of_other_settings(name: str) -> None:
    solver = SETTINGS[name]
    for sde in ("vp", "edm"):
        assert measured(solver, FLOWS[sde]) == pytest.approx(solver.order.deterministic, abs=0.1), sde


@pytest.mark.parametrize("name", ["midpoint", "ralston", "rk3", "rk4"])
def test_order_in_t(name: str) -> None:
    """Under EDM t is nu, and uniform steps in it are none for so wide a range."""
    solver = {"midpoint": solvers.midpoint, "ralston": solvers.ralston, "rk3": solvers.rk3, "rk4": solvers.rk4}[name]
    for sde in ("vp", "sub_vp", "ve", "rectified"):
        order = solver().order.deterministic
        assert measured(solver(variable="t"), FLOWS[sde]) == pytest.approx(order, abs=0.1), sde


# --- stochastic methods, where neither end dominates the error

NARROW: dict[str, GaussianSDE] = {
    "vp": VPSDE(t_min=0.1, t_max=0.4),
    "sub_vp": SubVPSDE(t_min=0.15, t_max=0.4),
    "ve": VESDE(t_min=0.45, t_max=0.6),
    "edm": EDMSDE(sigma_min=0.4, sigma_max=2.0),
    "rectified": RectifiedFlow(t_min=0.2, t_max=0.7),
}
STOCHASTIC: dict[str, tuple[Solver, float]] = {
    "exponential_euler": (solvers.exponential_euler(), 1.0),
    "exponential_euler, noise, eta 0.5": (solvers.exponential_euler(prediction="noise", eta=0.5), 0.5),
    "seeds_1": (solvers.seeds_1(), 1.0),
    "seeds_2": (solvers.seeds_2(), 1.0),
    "seeds_2, eta 0.5": (solvers.seeds_2(eta=0.5), 0.5),
    "seeds_3": (solvers.seeds_3(), 1.0),
    "exponential 2": (solvers.exponential(eta=1.0), 1.0),
    "exponential 2, published, eta 0.7": (solvers.exponential(eta=0.7, coefficients="published"), 0.7),
    "exponential 3": (solvers.exponential(order=3, eta=1.0), 1.0),
    "euler_maruyama in nu": (solvers.euler_maruyama(variable="nu"), 1.0),
    "sra1": (solvers.sra1(), 1.0),
    "sra1 in nu, eta 0.6": (solvers.sra1(variable="nu", eta=0.6), 0.6),
    "sra1 in log_snr": (solvers.sra1(variable="log_snr"), 1.0),
    "euler_ancestral": (solvers.euler_ancestral(), 1.0),
}
IN_LAW: dict[str, Solver] = {
    "dpmpp_2s_ancestral": solvers.dpmpp_2s_ancestral(),
    "dpmpp_2s_ancestral, eta 0.5": solvers.dpmpp_2s_ancestral(eta=0.5),
    "edm, s_noise 1": solvers.edm(churn=3.0, s_min=0.0, s_noise=1.0),
    "heun, churned": solvers.churned(solvers.heun(), churn=3.0),
    "dpmpp_2m, churned": solvers.churned(solvers.dpmpp_2m(), churn=3.0),
    "seeds_2, churned": solvers.churned(solvers.seeds_2(), churn=1.0),
}


def weak_slope(solver: Solver, sde: GaussianSDE) -> float:
    steps = (160, 320)
    return slope([weak_error(solver(sde, solver.grid(sde, n))) for n in steps], steps)


@pytest.mark.parametrize("sde", NARROW)
@pytest.mark.parametrize("name", [*STOCHASTIC, *IN_LAW])
def test_weak_order(name: str, sde: str) -> None:
    solver = IN_LAW[name] if name in IN_LAW else STOCHASTIC[name][0]
    assert weak_slope(solver, NARROW[sde]) == pytest.approx(solver.order.weak, abs=0.1)


def coupled_error(sde: GaussianSDE, table: Tableau, eta: float, variance: float = 0.25) -> float:
    """``orders.strong_error`` for tables that make several draws on one interval.

    There the error is |e - sum w k|^2 for the exact increment e. The kernels are orthonormal, so that ``strong_error``,
    which adds |e - w k|^2 for each draw, counts |e|^2 too much for each draw after the first.
    """
    increments = [row.increment for row in table.rows if row.draws]
    first = {(one.start, one.end): i for i, one in reversed(list(enumerate(increments)))}
    again = [one for i, one in enumerate(increments) if first[one.start, one.end] != i]
    square = strong_error(sde, table, eta, variance) ** 2
    if again:
        t, measure, _ = kernels(sde, again)
        square -= float((measure * carried(sde, t, table.end, eta, variance) ** 2).sum())
    return math.sqrt(square)


@pytest.mark.parametrize("sde", NARROW)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_strong_order_on_the_path_that_the_rows_name(name: str, sde: str) -> None:
    """Gaussian data make the equation linear, where SRA1's order 1.5 shows as 2; the mixture below shows 1.5."""
    (solver, eta), steps = STOCHASTIC[name], (160, 320)
    errors = [coupled_error(NARROW[sde], solver(NARROW[sde], solver.grid(NARROW[sde], n)), eta) for n in steps]
    expected = 2.0 if name.startswith("sra1") else solver.order.strong
    assert slope(errors, steps) == pytest.approx(expected, abs=0.1)


def test_the_two_draws_of_sra1_are_orthonormal_and_make_the_increment() -> None:
    sde = NARROW["sub_vp"]
    for solver in (solvers.sra1(), solvers.sra1(variable="nu"), solvers.sra1(variable="log_snr")):
        first, second = solver(sde, solver.grid(sde, 5)).rows[4:6]
        (_, measure, one), (_, _, two) = kernel(sde, first.increment), kernel(sde, second.increment)
        gram = [[float((measure * a * b).sum()) for a in (one, two)] for b in (one, two)]
        np.testing.assert_allclose(gram, np.eye(2), atol=1e-9)
        _, _, whole = kernel(sde, replace(first.increment, shape=(1.0,)))
        np.testing.assert_allclose(math.sqrt(3) / 2 * one + 0.5 * two, whole, rtol=1e-9)


def test_the_second_integral_is_what_makes_sra1_better_than_order_one() -> None:
    """With the two draws of each step swapped the order falls to that of noise on no path."""
    sde, steps, errors = NARROW["vp"], (40, 80), []
    for n in steps:
        table = solvers.sra1()(sde, solvers.sra1().grid(sde, n))
        rows: list[Row] = []
        for one, two in zip(table.rows[::2], table.rows[1::2], strict=True):
            rows += [replace(one, increment=two.increment), replace(two, increment=one.increment)]
        errors.append(coupled_error(sde, replace(table, rows=tuple(rows)), 1.0))
    assert slope(errors, steps) < 0.7


@pytest.mark.parametrize("eta", [0.6, 1.0])
def test_the_draws_of_a_step_make_the_exact_noise_of_its_linear_part(eta: float) -> None:
    """On every part of a step the last row's weight times the kernel is the integrating factor times eta g."""
    sde = NARROW["sub_vp"]
    for form, order in (("noise", 2), ("noise", 3), ("data", 3)):
        table = solvers.exponential(prediction=form, order=order, eta=eta)(sde, grids.log_snr()(sde, 3))
        rows = table.rows[order : 2 * order]
        end = table.rows[2 * order].at
        for row, weight in zip(rows, reversed(rows[-1].noise), strict=True):
            t, _, k = kernel(sde, row.increment)
            p = sde.at(torch.from_numpy(t))
            lag = (p.log_snr - end.log_snr) / 2
            carried = end.alpha / p.alpha if form == "noise" else end.sigma / p.sigma * (eta**2 * lag).exp()
            # What one row's draw leaves on the predictions of later stages is not part of it.
            exact = (carried * eta * sde.diffusion(p.t)).numpy()
            np.testing.assert_allclose(weight * k, exact, rtol=1e-9)


def test_restart_keeps_the_order_of_its_solver() -> None:
    base = solvers.heun()
    for name in ("vp", "ve"):
        sde = NARROW[name]
        low, high = (sde.t_min + (sde.t_max - sde.t_min) * share for share in (0.3, 0.7))
        solver = solvers.restart(base, t_min=low, t_max=high, repeats=3)
        assert solver.order.weak == 2.0
        errors, steps = [], (160, 320)
        for n in steps:
            times = base.grid(sde, n)
            # With the two places among the times, so that nothing is rounded to the grid.
            times = torch.cat([times, torch.tensor([low, high], dtype=torch.float64)]).sort(descending=True).values
            errors.append(weak_error(solver(sde, times)))
        assert slope(errors, steps) == pytest.approx(2.0, abs=0.1), name
