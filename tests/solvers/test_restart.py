"""Restart and ancestral noise: the published loops written by hand; wrappers through the sampler; what is refused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import MEAN, VARIANCE, coefficients, gaussian, slope

from scoresde import (
    EDMSDE,
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    GaussianSDE,
    ProbabilityFlow,
    RectifiedFlow,
    Solver,
    Tableau,
    build_table,
    sample,
    solvers,
)
from scoresde.solvers import grids
from scoresde.solvers.rows import Order

EDM = EDMSDE()
# Uneven levels from sigma_max down.
LEVELS = np.array([80.0, 46.0, 30.1, 12.0, 5.2, 2.2, 0.9, 0.4, 0.12, 0.04, 0.011, 0.002])


def times(levels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(levels)


def denoiser(x: np.ndarray, sigma: float) -> np.ndarray:
    """E[x_0 | x_0 + sigma z] for data N(MEAN, VARIANCE); x holds weights on [1, start state, draws]."""
    one = np.eye(len(x))[0]
    return MEAN * one + VARIANCE / (VARIANCE + sigma**2) * (x - MEAN * one)


def heun_by_hand(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    for t, s in itertools.pairwise(levels):
        d = (x - denoiser(x, t)) / t
        trial = x + (s - t) * d
        x = x + (s - t) * 0.5 * (d + (trial - denoiser(trial, s)) / s)
    return x


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("repeats", [1, 3])
def test_restart_is_the_published_loop(repeats: int, steps: int | None) -> None:
    """Xu et al. 2023, algorithm 1: down to t_min; then K times up to t_max with fresh noise and down again; on down."""
    low, high = 0.4, 12.0
    solver = solvers.restart(solvers.heun(variable="nu"), t_min=0.41, t_max=high, repeats=repeats, steps=steps)
    table = solver(EDM, times(LEVELS))
    unit = np.eye(2 + repeats)
    again = LEVELS[(high >= LEVELS) & (low <= LEVELS)]
    if steps is not None:
        again = (high ** (1 / 7) + np.arange(steps + 1) / steps * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    x = heun_by_hand(unit[1], LEVELS[low <= LEVELS])
    for k in range(repeats):
        x = heun_by_hand(x + math.sqrt(high**2 - low**2) * unit[2 + k], again)
    x = heun_by_hand(x, LEVELS[low >= LEVELS])
    np.testing.assert_allclose(table.affine_map(MEAN, VARIANCE), x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(coefficients(gaussian(EDM), table), x, rtol=0, atol=1e-12)
    assert [row.restart for row in table.rows].count(True) == repeats
    assert table.nfe == 2 * (len(LEVELS) - 1 + repeats * (len(again) - 1))


def test_restart_of_a_multistep_method_starts_anew_after_each_jump() -> None:
    sde, solver = VPSDE(), solvers.multistep(order=3)
    at = grids.log_snr()(sde, 10)
    table = solvers.restart(solver, t_min=float(at[7]), t_max=float(at[4]), repeats=2)(sde, at)
    assert [len(row.state) - 1 for row in table.rows] == [1, 2, 3, 3, 3, 3, 3, 1, 2, 3, 1, 2, 3, 3, 3, 3]
    mean, variance = solver(sde, at[:8]).law(MEAN, VARIANCE)
    a, b = (float(w) for w in sde.transition_weights(at[7], at[4]))
    mean, variance = solver(sde, at[4:8]).law(MEAN, VARIANCE, start=(a * mean, a**2 * variance + b**2))
    mean, variance = solver(sde, at[4:]).law(MEAN, VARIANCE, start=(a * mean, a**2 * variance + b**2))
    assert table.law(MEAN, VARIANCE) == pytest.approx((mean, variance), abs=1e-12)


def test_restarts_nest_and_wrap_churn() -> None:
    """Two places, and churn inside: one table, whose law is that of its parts."""
    inner = solvers.edm(churn=2.0, s_noise=1.0, s_min=0.0)
    two = solvers.restart(solvers.restart(inner, t_min=0.12, t_max=0.9), t_min=2.2, t_max=30.1, repeats=2)
    table = two(EDM, times(LEVELS))
    upper = solvers.restart(inner, t_min=2.2, t_max=30.1, repeats=2)(EDM, times(LEVELS))
    lower = solvers.restart(inner, t_min=0.12, t_max=0.9)(EDM, times(LEVELS))
    assert table.nfe == upper.nfe + lower.nfe - inner(EDM, times(LEVELS)).nfe
    assert sum(row.restart for row in table.rows) > 3
    # Exact noise between accurate legs: the law stays near the data's.
    fine = grids.karras()(EDM, 300)
    mean, variance = two(EDM, fine).law(MEAN, VARIANCE)
    assert (mean, variance) == pytest.approx((MEAN, VARIANCE), rel=2e-3)


# --- k-diffusion's ancestral step


def ancestral_2s(levels: np.ndarray, eta: float) -> np.ndarray:
    """k-diffusion's loop for sample_dpmpp_2s_ancestral, with its get_ancestral_step, in float64."""
    unit = np.eye(1 + int((levels > 0).sum()))
    x = unit[1]
    for i, (t, s) in enumerate(itertools.pairwise(levels)):
        up = min(s, eta * (s**2 * (t**2 - s**2) / t**2) ** 0.5)
        down = (s**2 - up**2) ** 0.5
        if down == 0:
            x = x + (down - t) * (x - denoiser(x, t)) / t
        else:
            here, there = -math.log(t), -math.log(down)
            h = there - here
            middle = here + 0.5 * h
            seen = math.exp(-middle) / math.exp(-here) * x - math.expm1(-h * 0.5) * denoiser(x, t)
            x = math.exp(-there) / math.exp(-here) * x - math.expm1(-h) * denoiser(seen, math.exp(-middle))
        if s > 0:
            x = x + up * unit[2 + i]
    return x


@pytest.mark.parametrize("ends_at_zero", [False, True])
@pytest.mark.parametrize("eta", [1.0, 0.6])
def test_dpmpp_2s_ancestral_is_the_published_loop(eta: float, ends_at_zero: bool) -> None:
    levels = np.append(LEVELS, 0.0) if ends_at_zero else LEVELS
    table = solvers.dpmpp_2s_ancestral(eta=eta)(EDM, times(levels))
    expected = ancestral_2s(levels, eta)
    np.testing.assert_allclose(table.affine_map(MEAN, VARIANCE), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(coefficients(gaussian(EDM), table), expected, rtol=0, atol=1e-12)


def test_euler_ancestral_is_the_published_loop() -> None:
    """k-diffusion's sample_euler_ancestral, which is DDIM with the same eta."""
    for eta in (0.0, 0.6, 1.0):
        unit = np.eye(1 + len(LEVELS))
        x = unit[1]
        for i, (t, s) in enumerate(itertools.pairwise(LEVELS)):
            up = min(s, eta * (s**2 * (t**2 - s**2) / t**2) ** 0.5)
            x = x + ((s**2 - up**2) ** 0.5 - t) * (x - denoiser(x, t)) / t + up * unit[2 + i]
        table = solvers.euler_ancestral(eta)(EDM, times(LEVELS))
        got = table.affine_map(MEAN, VARIANCE)
        np.testing.assert_allclose(got, x[: len(got)], rtol=0, atol=1e-12)


# --- through the sampler, and what is refused


@pytest.mark.parametrize(
    "solver",
    [
        solvers.edm(),
        solvers.restart(solvers.sra1(), t_min=0.1, t_max=0.5, repeats=2),
        solvers.churned(solvers.sa_solver(), churn=4.0),
        solvers.dpmpp_2s_ancestral(),
    ],
    ids=["edm", "restart of sra1", "churned sa_solver", "dpmpp_2s_ancestral"],
)
def test_a_sample_is_the_same_in_any_batch(solver: solvers.Solver) -> None:
    model = gaussian(VPSDE())
    whole = sample(model, (6,), solver=solver, steps=8, seed=3, dtype=torch.float64)
    alone = sample(model, (1,), solver=solver, steps=8, seed=3, first_sample=4, dtype=torch.float64)
    parts = sample(model, (6,), solver=solver, steps=8, seed=3, chunk_size=4, dtype=torch.float64)
    torch.testing.assert_close(alone[0], whole[4], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    assert len(set(whole.tolist())) == 6


def test_wrapped_tables_survive_json() -> None:
    for solver in (solvers.edm(), solvers.sra1(), solvers.restart(solvers.seeds_3(), t_min=0.1, t_max=0.5)):
        table = solver(VPSDE(), grids.log_snr()(VPSDE(), 6))
        assert Tableau.from_json(table.to_json()) == table


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: solvers.edm(churn=-1.0), DomainError, "churn must lie in"),
        (lambda: solvers.edm(s_min=2.0, s_max=1.0), DomainError, "s_max must lie in"),
        (lambda: solvers.edm(s_noise=0.0), DomainError, "s_noise must lie in"),
        (lambda: solvers.restart(solvers.heun(), t_min=0.5, t_max=0.2), DomainError, "t_max must lie in"),
        (lambda: solvers.restart(solvers.heun(), t_min=0.1, t_max=0.2, repeats=0), DomainError, "repeats must be"),
        (lambda: solvers.restart(solvers.heun(), t_min=0.1, t_max=0.2, steps=0), DomainError, "steps must be"),
        (
            lambda: solvers.restart(solvers.heun(), t_min=0.1, t_max=2.0)(VPSDE(), torch.tensor([1.0, 0.1])),
            DomainError,
            r"t_min and t_max must lie in \[1e-05, 1\]",
        ),
        (
            lambda: solvers.restart(solvers.heun(), t_min=0.1, t_max=1.0)(RectifiedFlow(), torch.tensor([1.0, 0.1])),
            DomainError,
            "alpha = 0: nothing would be left",
        ),
        (
            lambda: solvers.restart(solvers.heun(), t_min=0.25, t_max=0.28)(VPSDE(), torch.tensor([1.0, 0.3, 0.01])),
            ConfigError,
            "no time near t_min",
        ),
        (lambda: solvers.dpmpp_2s_ancestral(eta=1.2), DomainError, "eta must lie in"),
        (
            lambda: solvers.churned("heun", churn=1.0),
            DTypeError,
            "churned needs a solver that makes tables, got 'heun'",
        ),
        (lambda: solvers.restart(ProbabilityFlow(), t_min=0.1, t_max=0.2), DTypeError, "restart needs a solver"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(make: object, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        make()


def test_a_knot_that_is_t_max_but_for_rounding_makes_no_step() -> None:
    """A step of no length would divide a multistep method's weights by it."""
    plain = torch.linspace(1.0, 0.1, 10, dtype=torch.float64)
    for at in (plain, plain.float()):
        for t_max in (0.9, 0.6, 0.6 + 1e-15, 0.1 * 3):
            table = solvers.restart(solvers.multistep(order=3), t_min=0.2, t_max=t_max)(VPSDE(), at)
            heun = solvers.restart(solvers.heun(), t_min=0.2, t_max=t_max)(VPSDE(), at)
            assert max(abs(w) for row in table.rows for w in row.state) < 10
            assert table.nfe == heun.nfe / 2


@pytest.mark.parametrize("name", ["dpm_solver_2", "seeds_2", "reverse_diffusion"])
def test_wrappers_nest_from_alpha_zero(name: str) -> None:
    """All legs are written in one prediction, wherever they start."""
    sde, base = RectifiedFlow(), solvers.by_name(name)
    churn = solvers.churned(base, churn=2.0, s_max=3.0)
    restart = solvers.restart(base, t_min=0.3, t_max=0.6)
    for solver in (
        solvers.restart(churn, t_min=0.3, t_max=0.6),
        solvers.churned(restart, churn=2.0, s_max=3.0),
        solvers.restart(restart, t_min=0.5, t_max=0.8),
    ):
        table = build_table(sde, solver, steps=400)
        assert table.law(MEAN, VARIANCE) == pytest.approx((MEAN, VARIANCE), rel=0.1)


def test_legs_in_two_predictions_are_refused() -> None:
    """A solver of one's own that changes its prediction from leg to leg cannot be wrapped."""
    data, noise = solvers.multistep(order=1), solvers.multistep(order=1, prediction="noise")

    def build(sde: GaussianSDE, at: torch.Tensor) -> Tableau:
        return (data if float(at[0]) > 0.5 else noise).build(sde, at)

    mixed = Solver("mixed", build, grids.even())
    with pytest.raises(ConfigError, match="the solver writes its legs in data and noise"):
        solvers.churned(mixed, churn=5.0)(VPSDE(), grids.even(9))


@pytest.mark.parametrize("base", [solvers.flow_abm(), solvers.flow_ab()], ids=lambda s: s.name)
def test_restart_leaves_a_multistep_method_weak_order_2(base: Solver) -> None:
    """Each leg begins with a step of first order, whose error is O(h^2)."""
    sde, solver = VPSDE(), solvers.restart(base, t_min=0.1, t_max=0.5)
    assert solver.order == Order(weak=2.0)
    errors, steps = [], (320, 640)
    for n in steps:
        above = torch.linspace(1.0, 0.5, n // 2 + 1, dtype=torch.float64)
        table = solver(sde, torch.cat([above, torch.linspace(0.5, 0.1, n + 1, dtype=torch.float64)[1:]]))
        _, variance = table.law(MEAN, VARIANCE)
        exact = table.end.alpha**2 * VARIANCE + table.end.sigma**2
        errors.append(abs(variance / exact - 1))
    assert slope(errors, steps) == pytest.approx(2.0, abs=0.1)


def test_the_mean_of_a_corrected_step_keeps_the_draw_of_the_step_before() -> None:
    """final="mean" drops the last step's own draw, in two steps as in more."""
    at = torch.tensor([0.5, 0.3, 0.15], dtype=torch.float64)
    for order in (0, 4):
        solver = solvers.sa_solver(corrector_order=order)
        whole = build_table(VPSDE(), solver, times=at, final="sample").affine_map(MEAN, VARIANCE)
        mean = build_table(VPSDE(), solver, times=at, final="mean").affine_map(MEAN, VARIANCE)
        np.testing.assert_allclose(mean, whole[:-1], rtol=0, atol=1e-14)
