"""Churn: EDM's algorithm 2 written by hand, any solver's own legs between jumps, and what churn leaves alone."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import MEAN, SDES, VARIANCE, coefficients, draws, gaussian

from scoresde import (
    DDPM,
    EDMSDE,
    VESDE,
    VPSDE,
    GaussianSDE,
    RectifiedFlow,
    Tableau,
    build_table,
    solvers,
)
from scoresde.solvers import grids

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


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_edm_starts_from_pure_noise(steps: int) -> None:
    """The first step of the rectified flow is the data prediction's, without churn, since nu is infinite there."""
    sde = RectifiedFlow()
    table = solvers.edm(s_max=math.inf)(sde, grids.karras()(sde, steps))
    assert table.lift == (1.0, 0.0)
    mean, variance = table.law(MEAN, VARIANCE)
    assert math.isfinite(variance)
    assert mean == pytest.approx(MEAN, abs=1e-4)
