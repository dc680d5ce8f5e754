"""Churn, restart and ancestral noise: the published loops written by hand, and what wrapping leaves alone."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import MEAN, SDES, VARIANCE, coefficients, draws, gaussian, slope

from scoresde import (
    DDPM,
    EDMSDE,
    VESDE,
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
WIDE = EDMSDE(sigma_max=200.0)  # churn may lift 80 to 113 there
# Uneven levels from sigma_max down.
LEVELS = np.array([80.0, 46.0, 30.1, 12.0, 5.2, 2.2, 0.9, 0.4, 0.12, 0.04, 0.011, 0.002])


def times(levels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(levels)


def denoiser(x: np.ndarray, sigma: float) -> np.ndarray:
    """E[x_0 | x_0 + sigma z] for data N(MEAN, VARIANCE); x holds weights on [1, start state, draws]."""
    one = np.eye(len(x))[0]
    return MEAN * one + VARIANCE / (VARIANCE + sigma**2) * (x - MEAN * one)


def algorithm_2(
    levels: np.ndarray, churn: float, s_min: float, s_max: float, s_noise: float, second: bool = True
) -> np.ndarray:
    """Karras et al. 2022, algorithm 2, with a draw for every step that is churned: weights on [1, start, draws]."""
    count = int((levels > 0).sum())
    unit = np.eye(2 + len(levels))
    x, used = unit[1], 0
    for t, s in itertools.pairwise(levels):
        gamma = min(churn / count, math.sqrt(2) - 1) if s_min <= t <= s_max else 0.0
        hat = t + gamma * t
        if gamma > 0:
            x = x + math.sqrt(hat**2 - t**2) * s_noise * unit[2 + used]
            used += 1
        d = (x - denoiser(x, hat)) / hat
        following = x + (s - hat) * d
        if s != 0 and second:
            following = x + (s - hat) * 0.5 * (d + (following - denoiser(following, s)) / s)
        x = following
    return x[: 2 + used]


@pytest.mark.parametrize("ends_at_zero", [False, True])
@pytest.mark.parametrize(
    ("churn", "s_min", "s_max", "s_noise"),
    [(40.0, 0.05, 50.0, 1.003), (3.0, 0.0, math.inf, 1.0), (1.0, 1.0, 4.0, 0.98), (0.0, 0.0, math.inf, 1.0)],
)
def test_edm_is_algorithm_2(churn: float, s_min: float, s_max: float, s_noise: float, ends_at_zero: bool) -> None:
    levels = np.append(LEVELS, 0.0) if ends_at_zero else LEVELS
    table = solvers.edm(churn=churn, s_min=s_min, s_max=s_max, s_noise=s_noise)(WIDE, times(levels))
    expected = algorithm_2(levels, churn, s_min, s_max, s_noise)
    assert draws(table) == len(expected) - 2
    np.testing.assert_allclose(table.affine_map(MEAN, VARIANCE), expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    got = coefficients(gaussian(WIDE), table)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12 * max(1.0, np.abs(expected).max()))


def test_churn_never_lifts_a_level_above_the_sdes_own() -> None:
    """No network was trained there; the step is then churned up to it, or not at all."""
    for sde in (VPSDE(), VESDE(), EDM, DDPM.linear(100).sde()):
        for steps in (1, 2, 6, 40):
            table = build_table(sde, solvers.churned(solvers.heun(), churn=5.0), steps=steps)
            assert max(row.at.t for row in table.rows) <= sde.t_max
        assert table.stochastic
    # nu rises from 70 to 80, not to 70 sqrt(2).
    table = solvers.churned(solvers.euler(variable="nu"), churn=50.0)(EDM, times(np.array([70.0, 1.0])))
    assert table.rows[0].at.sigma == pytest.approx(80.0, rel=1e-12)


def test_the_last_jump_of_final_denoise_is_algorithm_2_where_churn_has_ended() -> None:
    """With s_min above sigma_min, as the authors have it, the appended data prediction is algorithm 2's last step."""
    table = solvers.edm()(EDM, times(LEVELS)).denoised()
    expected = algorithm_2(np.append(LEVELS, 0.0), 40.0, 0.05, 50.0, 1.003)
    np.testing.assert_allclose(table.affine_map(MEAN, VARIANCE), expected, rtol=0, atol=1e-13)


def test_churn_around_euler_is_the_same_loop_with_one_call() -> None:
    base = solvers.euler(variable="nu")
    table = solvers.churned(base, churn=5.0, s_noise=1.01)(WIDE, times(LEVELS))
    expected = algorithm_2(LEVELS, 5.0, 0.0, math.inf, 1.01, second=False)
    np.testing.assert_allclose(table.affine_map(MEAN, VARIANCE), expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("name", SDES)
def test_edm_is_the_same_sampler_under_every_sde(name: str) -> None:
    """x/alpha at equal nu, through the real sampler, with the same draws."""
    log_snr = torch.linspace(-4.0, 5.0, 9, dtype=torch.float64)
    churn = solvers.edm(churn=2.0, s_min=0.3, s_max=5.0, s_noise=1.01)

    def twice(sde: GaussianSDE, at: torch.Tensor) -> Tableau:
        # Restarts around churn: a jump to t_max and the churn's own lift above it become one.
        return solvers.restart(churn, t_min=float(at[6]), t_max=float(at[3]), repeats=2)(sde, at)

    for build in (churn, twice):
        ends = []
        for sde in (EDM, SDES[name]):
            at = sde.time(log_snr)
            ends.append(build(sde, at).affine_map(MEAN, VARIANCE))
            ends[-1][0] /= float(sde.alpha(at[-1]))
            ends[-1][1] *= float(sde.alpha(at[0]) / sde.alpha(at[-1]))
            ends[-1][2:] /= float(sde.alpha(at[-1]))
        np.testing.assert_allclose(ends[1], ends[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("base", ["dpmpp_2m", "unipc", "seeds_2", "ancestral", "sa_solver", "dpmpp_2s"])
def test_a_churned_step_is_the_forward_transition_and_the_solvers_own_leg(base: str) -> None:
    """Whatever the solver: the law of the wrapped run is that of its legs and jumps, one after the other."""
    sde, solver = VPSDE(), solvers.by_name(base)
    at = grids.log_snr()(sde, 7)
    nu = sde.sigma(at) / sde.alpha(at)
    table = solvers.churned(solver, churn=2.0, s_min=0.1, s_max=20.0)(sde, at)
    mean, variance = sde.alpha(at[0]) * MEAN, sde.alpha(at[0]) ** 2 * VARIANCE + sde.sigma(at[0]) ** 2
    mean, variance = float(mean), float(variance)
    gamma, leg = 2.0 / len(at), [float(at[0])]
    for i in range(len(at)):
        churns = i + 1 < len(at) and 0.1 <= float(nu[i]) <= 20.0
        if churns or i + 1 == len(at):
            if len(leg) > 1:
                mean, variance = solver(sde, torch.tensor(leg, dtype=torch.float64)).law(
                    MEAN, VARIANCE, start=(mean, variance)
                )
            if churns:
                up = sde.time(-2 * (nu[i] * (1 + gamma)).log())
                a, b = (float(w) for w in sde.transition_weights(at[i], up))
                mean, variance = a * mean, a**2 * variance + b**2
                leg = [float(up)]
        if i + 1 < len(at):
            leg.append(float(at[i + 1]))
    assert table.law(MEAN, VARIANCE) == pytest.approx((mean, variance), rel=1e-12)
    assert any(row.restart for row in table.rows)
    got, expected = coefficients(gaussian(sde), table), table.affine_map(MEAN, VARIANCE)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["dpmpp_3m", "unipc", "flow_abm", "sa_solver"])
def test_a_multistep_method_has_no_history_where_a_leg_starts(name: str) -> None:
    """The rows of all legs at once are those of each leg alone, out of alpha = 0 and into sigma = 0 too."""
    for sde in (VPSDE(), RectifiedFlow()):
        build, cuts = solvers.by_name(name).build, [0, 1, 4, 5]
        at = torch.tensor([1.0, 0.8, 1.0, 0.7, 0.4, 0.3, 0.6, 0.5, 0.9, 0.5, 0.2, 0.1, 0.0], dtype=torch.float64)
        legs = [at[0:2], at[2:6], at[6:8], at[8:]]
        late, early = (sde.at(torch.cat([leg[part] for leg in legs])) for part in (slice(-1), slice(1, None)))
        together = build.write_legs(sde, late, early, cuts)
        for rows, leg in zip(together, legs, strict=True):
            alone = build(sde, leg)
            assert len(rows) == len(alone.rows)
            for got, expected in zip(rows, alone.rows, strict=True):
                assert got.state == pytest.approx(expected.state, rel=1e-12)
                assert (got.anchor or ()) == pytest.approx(expected.anchor or (), rel=1e-12)
                assert got.noise == pytest.approx(expected.noise, rel=1e-12)
                assert (got.at, got.increment) == (expected.at, expected.increment)


def test_no_churn_and_no_restart_leave_the_table_as_it_is() -> None:
    sde = VPSDE()
    for base in (solvers.heun(), solvers.dpmpp_2m(), solvers.ancestral()):
        at = base.grid(sde, 6)
        plain = base(sde, at)
        for solver in (
            solvers.churned(base, churn=0.0),
            solvers.churned(base, churn=3.0, s_min=1e5),
            solvers.restart(base, t_min=0.001, t_max=0.002),
        ):
            at_top = at if "churned" in solver.name else at[:-2]
            table = solver(sde, at_top)
            assert table.rows == base(sde, at_top).rows
            assert table.lift == plain.lift


# --- restart


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
    torch.testing.assert_close(alone[0], whole[4], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(parts, whole, rtol=1e-13, atol=1e-13)
    assert len(set(whole.tolist())) == 6


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_edm_starts_from_pure_noise(steps: int) -> None:
    """The first step of the rectified flow is the data prediction's, without churn, since nu is infinite there."""
    sde = RectifiedFlow()
    table = solvers.edm(s_max=math.inf)(sde, grids.karras()(sde, steps))
    assert table.lift == (1.0, 0.0)
    mean, variance = table.law(MEAN, VARIANCE)
    assert math.isfinite(variance)
    assert mean == pytest.approx(MEAN, abs=1e-4)


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
