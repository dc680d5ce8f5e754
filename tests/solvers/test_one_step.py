"""One-step methods: both ends, batches, SRA1 on an equation that is not linear, weights, options."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import MEAN, VARIANCE, slope

from scoresde import (
    EDMSDE,
    VESDE,
    VPSDE,
    ConfigError,
    CosineVPSDE,
    DomainError,
    GaussianMixtureModel,
    GaussianSDE,
    RectifiedFlow,
    ScoreModel,
    SolverError,
    SubVPSDE,
    Tableau,
    TabulatedSDE,
    sample,
    solvers,
)
from scoresde.solvers.exponential import _integrate
from scoresde.solvers.rows import Increment
from scoresde.solvers.runge_kutta import HEUN


def same(one: Tableau, two: Tableau) -> None:
    got, expected = one.affine_map(MEAN, VARIANCE), two.affine_map(MEAN, VARIANCE)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12 * max(1.0, np.abs(expected).max()))


# --- the ends

ENDS: dict[str, GaussianSDE] = {
    "vp": VPSDE(),
    "sub_vp": SubVPSDE(),
    "ve": VESDE(),
    "edm": EDMSDE(),
    "rectified": RectifiedFlow(),
    "cosine": CosineVPSDE(),
    "cosine to alpha = 0": CosineVPSDE(t_max=1.0),
}
SINGLE = [
    *("dpm_solver_2", "dpm_solver_3", "dpmpp_2s", "dpmpp_2s_ancestral", "dpmpp_3s", "edm", "euler_ancestral"),
    *("exponential_euler", "exponential_rk2", "exponential_rk3", "res", "seeds_1", "seeds_2", "seeds_3"),
    *("euler", "heun", "midpoint", "ralston", "rk3", "rk4", "euler_maruyama", "sra1"),
    *("ancestral", "ddim", "reverse_diffusion"),
]
# In t the mean of Gaussian data is only exact in the limit.
IN_TIME = {"euler_maruyama", "sra1", "reverse_diffusion"}


@pytest.mark.parametrize("sde", ENDS)
@pytest.mark.parametrize("name", SINGLE)
def test_few_steps_and_both_ends(name: str, sde: str) -> None:
    """1, 2 and 3 steps: finite, and without a bias in the mean of Gaussian data, also into sigma = 0."""
    diffusion, solver = ENDS[sde], solvers.by_name(name)
    for steps in (1, 2, 3):
        times = solver.grid(diffusion, steps)
        into_zero = torch.cat([times, torch.zeros(1, dtype=torch.float64)])
        tables = [solver(diffusion, times), solver(diffusion, times).denoised(), solver(diffusion, into_zero)]
        for table in tables:
            mean, variance = table.law(MEAN, VARIANCE)
            assert math.isfinite(variance)
            if name not in IN_TIME:
                assert mean == pytest.approx(table.end.alpha * MEAN, rel=1e-6, abs=1e-9 * math.sqrt(variance) + 1e-9)


@pytest.mark.parametrize("name", [*SINGLE, "sra1 in nu", "rk4 in t", "ancestral, eta 0"])
def test_a_step_out_of_alpha_zero_is_the_limit_of_the_first_order_one(name: str) -> None:
    """Where x says nothing about the data, the next state is the forward process at the data's mean, or its flow."""
    others = {"sra1 in nu": solvers.sra1(variable="nu"), "rk4 in t": solvers.rk4(variable="t")}
    others["ancestral, eta 0"] = solvers.ancestral(eta=0.0)
    solver, sde = others[name] if name in others else solvers.by_name(name), RectifiedFlow()
    table = solver(sde, torch.tensor([1.0, 0.6], dtype=torch.float64))
    weights = table.affine_map(MEAN, 1e-12)
    assert weights[0] == pytest.approx(0.4 * MEAN, abs=1e-9)
    assert math.sqrt((weights[1:] ** 2).sum()) == pytest.approx(0.6, abs=1e-9)


def test_a_table_in_the_noise_prediction_is_written_in_the_flow_from_alpha_zero() -> None:
    sde, solver = RectifiedFlow(), solvers.seeds_2()
    times = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    below = solver(RectifiedFlow(t_max=0.95), times)
    assert below.prediction == "noise"
    whole = solver(sde, torch.cat([torch.ones(1, dtype=torch.float64), times]))
    assert whole.prediction == "flow"
    # The steps after the first are the same numbers, read in another prediction.
    first = solver(sde, torch.tensor([1.0, 0.9], dtype=torch.float64))
    rest = below.law(MEAN, VARIANCE, start=first.law(MEAN, VARIANCE))
    assert whole.law(MEAN, VARIANCE) == pytest.approx(rest, rel=1e-12)
    noise = ScoreModel.from_callable(lambda x, t: -x, RectifiedFlow(t_max=0.99), predicts="noise")
    with pytest.raises((DomainError, ConfigError, SolverError)):
        sample(noise, (2, 1), sde=sde, solver=solver, steps=3)


def test_sra1_ends_on_a_schedule_through_knots() -> None:
    """t = 0 lies before the first knot; the step into it is the data prediction."""
    t = torch.linspace(0.01, 1.0, 20, dtype=torch.float64)
    sde = TabulatedSDE(t, torch.linspace(8.0, -8.0, 20, dtype=torch.float64))
    for solver in (solvers.sra1(), solvers.heun(variable="t"), solvers.seeds_3()):
        times = torch.tensor([1.0, 0.4, 0.05, 0.0], dtype=torch.float64)
        same(solver(sde, times), solver(sde, times[:-1]).denoised())


# --- batches


@pytest.mark.parametrize("name", ["euler_maruyama", "sra1", "seeds_2", "seeds_3", "rk4", "dpm_solver_3"])
def test_a_sample_is_the_same_in_any_batch(name: str) -> None:
    model = GaussianMixtureModel(
        sde=VPSDE(), weights=torch.tensor([0.3, 0.7]), means=torch.tensor([[-1.0, 0.2], [1.0, 0.5]]), std=0.4
    )
    whole = sample(model, (6, 2), solver=name, steps=5, seed=3)
    alone = sample(model, (1, 2), solver=name, steps=5, seed=3, first_sample=4)
    parts = sample(model, (6, 2), solver=name, steps=5, seed=3, chunk_size=4)
    torch.testing.assert_close(alone[0], whole[4], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


# --- SRA1's order on an equation that is not linear


def drawn(batch: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn((2, count, batch), generator=generator, dtype=torch.float64)
    return z[0], z[1]


def coarser(one: torch.Tensor, two: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The two draws of steps twice as long, from those of the steps, both of length 1 before and after.

    With I the increment of a step and J the mean of W - W(start) over it: I = I_a + I_b, J = (J_a + I_a + J_b)/2.
    """
    whole, mean = 3**0.5 / 2 * one + 0.5 * two, one / 3**0.5
    a, b = slice(0, None, 2), slice(1, None, 2)
    total = (whole[a] + whole[b]) / 2**0.5
    first = 3**0.5 * (mean[a] + whole[a] + mean[b]) / 2 / 2**0.5
    return first, 2 * (total - 3**0.5 / 2 * first)


def test_sra1_has_strong_order_three_halves_on_a_mixture() -> None:
    """Root mean square distance to the finest grid on the same path; 4000 paths leave the slope some hundredths."""
    sde = VPSDE(t_min=0.05, t_max=0.5)
    model = GaussianMixtureModel(sde=sde, weights=torch.tensor([0.4, 0.6]), means=torch.tensor([-1.0, 0.8]), std=0.25)
    batch, finest = 4000, 512
    one, two = drawn(batch, finest)
    start = 0.4 * (one[0] - two[1])
    ends, steps = {}, []
    n = finest
    while n >= 16:
        if n <= 64 or n == finest:
            table = solvers.sra1()(sde, torch.linspace(0.5, 0.05, n + 1, dtype=torch.float64))
            tape = [z for pair in zip(one, two, strict=True) for z in pair]
            ends[n] = sample(model, x_init=start, solver=table, noise=tape, final="sample")
            steps = [n, *steps]
        one, two = coarser(one, two)
        n //= 2
    errors = [float((ends[k] - ends[finest]).square().mean().sqrt()) for k in steps[:-1]]
    assert slope(errors, steps[:-1]) == pytest.approx(1.5, abs=0.2)


# --- options, weights, JSON


def test_the_integrals_are_the_phi_functions() -> None:
    """phi_k(z) by their recursion in exact arithmetic, at arguments of either sign."""
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 40
    theta = 0.5 * (torch.from_numpy(np.polynomial.legendre.leggauss(48)[0]) + 1)
    for z in (-25.0, -3.0, -1e-4, 1e-4, 0.7, 12.0, 30.0):
        exact = (mpmath.e ** mpmath.mpf(z) - 1) / z
        for k in (1, 2, 3):
            got = float(_integrate(torch.tensor([z], dtype=torch.float64), theta ** (k - 1) / math.factorial(k - 1)))
            assert got == pytest.approx(float(exact), rel=1e-13)
            exact = (exact - mpmath.mpf(1) / math.factorial(k)) / z


def test_an_increment_keeps_its_shape_in_json() -> None:
    table = solvers.sra1()(VPSDE(), torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64))
    assert Tableau.from_json(table.to_json()) == table
    assert table.rows[1].increment == Increment(0.9, 0.5, None, (-1.0, 3.0))
    # A table written before increments had a shape.
    old = table.to_json().replace(', "shape": [-1.0, 3.0]', "")
    assert Tableau.from_json(old).rows[1].increment == Increment(0.9, 0.5, None)


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: solvers.rk4(variable="lambda"), ConfigError, "choices: log_snr, nu, rectified, t"),
        (lambda: solvers.sra1(variable="rectified"), ConfigError, "rectified has no stochastic form, got eta = 1"),
        (
            lambda: solvers.runge_kutta(HEUN, variable="t", eta=0.5),
            ConfigError,
            "no stochastic form",
        ),
        (lambda: solvers.milstein(eta=-0.1), DomainError, "eta must lie in"),
        (lambda: solvers.exponential(prediction="flow"), ConfigError, "choices: data, noise"),
        (lambda: solvers.exponential(coefficients="rounded"), ConfigError, "choices: exact, published"),
        (lambda: solvers.exponential(order=4), DomainError, r"order must be in \[1, 3\], got 4"),
        (lambda: solvers.exponential(order=2, nodes=(0.2, 0.4)), ConfigError, "must be 1 numbers"),
        (lambda: solvers.exponential(order=3, nodes=(0.4, 0.3)), DomainError, r"nodes\[1\] must lie in \(0.4, 1\)"),
        (lambda: solvers.exponential(order=3, nodes=(0.4, 0.9)), ConfigError, "must end at 2/3, got 0.9"),
        (lambda: solvers.dpm_solver_2(r=1.0), DomainError, r"r must lie in \(0, 1\)"),
        (lambda: solvers.seeds_2(eta=math.inf), DomainError, "eta must lie in"),
        (lambda: solvers.euler_ancestral(3.0)(VPSDE(), torch.tensor([1.0, 0.1])), DomainError, "use eta <= 1"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(make: Callable[[], object], kind: type, words: str) -> None:
    with pytest.raises(kind, match=words):
        make()
