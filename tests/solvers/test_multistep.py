"""Linear multistep methods: correctors, changing eta, equalities, invariance, faults."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import MEAN, VARIANCE, gaussian
from hypothesis import given
from hypothesis import strategies as st
from multistep_cases import BUILT, DIFFUSIONS, MIXTURE, NAMES

from scoresde import (
    EDMSDE,
    VESDE,
    VPSDE,
    ConfigError,
    DomainError,
    Langevin,
    RectifiedFlow,
    Solver,
    SubVPSDE,
    Tableau,
    sample,
    solvers,
)
from scoresde.solvers import grids
from scoresde.solvers.forms import FORMS


def jumping(t: float) -> float:
    return 0.0 if t < 0.3 else 1.7 * math.sqrt(t)


def named(name: str) -> Solver:
    solver = solvers.by_name(name)
    assert isinstance(solver, Solver)
    return solver


def same(one: Tableau, two: Tableau, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(
        one.affine_map(MEAN, VARIANCE), two.affine_map(MEAN, VARIANCE), rtol=tolerance, atol=tolerance
    )


# --- correctors


@pytest.mark.parametrize("name", ["unipc", "sa_solver"])
def test_a_corrector_costs_no_evaluation_and_leaves_the_last_state_alone(name: str) -> None:
    table = named(name)(VPSDE(), grids.log_snr(9))
    assert table.nfe == 9
    assert [row.anchor is None for row in table.rows] == [False] * 8 + [True]
    assert table.rows[0].anchor == (1.0, 0.0)
    assert all(row.at.t > other.at.t for row, other in zip(table.rows, table.rows[1:], strict=False))
    assert table.memory == 3


def test_the_corrected_state_is_the_published_weighted_sum() -> None:
    """UniC-1 with B(h) = e^h - 1: the trapezoidal rule on the exact first-order step, from the state before it."""
    times = torch.tensor([0.9, 0.6, 0.3], dtype=torch.float64)
    table = solvers.unipc(order=1)(VPSDE(), times)
    points = VPSDE().at(times)
    h = 0.5 * float(points.log_snr[1] - points.log_snr[0])
    whole = float(points.alpha[1]) * -math.expm1(-h)
    on_x = float(points.sigma[1] / points.sigma[0])
    assert table.rows[0].state == pytest.approx((on_x, whole), rel=1e-13)
    assert table.rows[0].anchor == (1.0, 0.0)
    # Row 1 holds the corrected state at t_1 inside its step to t_2.
    h = 0.5 * float(points.log_snr[2] - points.log_snr[1])
    carried = float(points.sigma[2] / points.sigma[1])
    step = float(points.alpha[2]) * -math.expm1(-h)
    expected = (carried * on_x, carried * whole / 2 + step, carried * whole / 2)
    assert table.rows[1].state == pytest.approx(expected, rel=1e-13)
    assert table.rows[1].anchor is None


def test_a_corrector_reuses_its_predictors_draw() -> None:
    table = solvers.sa_solver()(VPSDE(), grids.log_snr(6))
    widths = [row.noise[0] for row in table.rows]
    for i, row in enumerate(table.rows):
        assert row.draws
        assert len(row.noise) == 1 + (i > 0)
        if 0 < i < 5:
            assert row.anchor_noise == (0.0, widths[i - 1])
    silent = solvers.sa_solver(tau=lambda t: 0.0)(VPSDE(), grids.log_snr(6))
    assert not silent.stochastic
    same(silent, solvers.sa_solver(tau=0.0)(VPSDE(), grids.log_snr(6)), 0.0)


@pytest.mark.parametrize("name", ["unipc", "sa_solver"])
def test_kernels_are_refused_where_a_corrector_moves_the_state(name: str) -> None:
    with pytest.raises(ConfigError, match="corrects its anchor"):
        sample(gaussian(), (2,), solver=name, steps=4, kernels=[Langevin(snr=0.1)])


# --- eta that changes


@pytest.mark.parametrize("sde", ["vp", "edm", "rectified"])
def test_a_changing_eta_is_a_chain_of_steps_with_each_its_own(sde: str) -> None:
    diffusion = DIFFUSIONS[sde]
    times = grids.log_snr()(diffusion, 6)
    etas = dict(zip(times.tolist(), (0.0, 0.4, 1.0, 1.0, 1.7, 0.2), strict=False))
    whole = BUILT(order=1, eta=etas.__getitem__)(diffusion, times)
    for i, row in enumerate(whole.rows):
        one = BUILT(order=1, eta=etas[float(times[i])])(diffusion, times[i : i + 2]).rows[0]
        assert row == one
    same(BUILT(order=3, eta=lambda t: 0.7)(diffusion, times), BUILT(order=3, eta=0.7)(diffusion, times), 0.0)


def test_every_eta_has_the_law_of_the_exact_process_in_the_limit() -> None:
    sde, n = VPSDE(t_min=0.01), 400
    end = sde.at(0.01)
    exact = float(end.alpha**2 * VARIANCE + end.sigma**2)
    for eta in (0.0, 0.5, 1.5, lambda t: 3 * t, lambda t: float(t > 0.4)):
        table = BUILT(order=2, eta=eta)(sde, grids.log_snr(n))
        assert table.law(MEAN, VARIANCE) == pytest.approx((float(end.alpha) * MEAN, exact), rel=1e-3)


# --- equalities


@pytest.mark.parametrize("sde", DIFFUSIONS)
def test_published_names_are_settings_of_the_builder(sde: str) -> None:
    diffusion = DIFFUSIONS["rectified, late start" if sde == "rectified" else sde]
    times = grids.karras()(diffusion, 9)
    pairs = [
        (solvers.deis(order=3, variable="nu"), solvers.lms(order=3)),
        (solvers.exponential_ab(order=3), BUILT(order=3)),
        (solvers.unipc(order=3, corrected=False, variant="exact"), BUILT(order=3)),
        (solvers.sa_solver(predictor_order=3, corrector_order=0, tau=0.8), BUILT(order=3, eta=0.8)),
        (solvers.sa_solver(predictor_order=2, corrector_order=3, tau=0.0), solvers.unipc(order=2, variant="exact")),
        (solvers.dpmpp_2m(), solvers.unipc(order=2, corrected=False)),
        (solvers.dpmpp_2m(eta=0.5), BUILT(order=2, eta=0.5, coefficients="bh2")),
        (solvers.dpmpp_2m_sde(), solvers.dpmpp_2m(eta=1.0)),
        (solvers.flow_ab(order=1), solvers.ddim()),
        (solvers.ipndm(order=1), solvers.ddim()),
        (solvers.deis(order=1), solvers.ddim()),
        (solvers.unipc(order=1, corrected=False), solvers.ddim()),
    ]
    for one, two in pairs:
        same(one(diffusion, times), two(diffusion, times), 1e-11)


def test_constant_weights_are_right_for_even_steps_in_nu() -> None:
    even = torch.linspace(40.0, 0.02, 12, dtype=torch.float64)
    times = VPSDE().time(-2 * even.log())
    for order in (2, 3, 4):
        same(solvers.ipndm(order=order)(VPSDE(), times), solvers.lms(order=order)(VPSDE(), times), 1e-11)


@given(data=st.data())
def test_data_at_one_point_are_sampled_exactly(data: st.DataObject) -> None:
    """Along every path of the reverse family the data prediction is then constant, and along the flow all are.

    Whatever the grid, the order, the corrector and the rounding, the law at the end is the exact one.
    """
    sde = DIFFUSIONS[data.draw(st.sampled_from([name for name in DIFFUSIONS if name != "rectified"]))]
    prediction = data.draw(st.sampled_from(["data", "noise", "flow"]))
    # Where a step h in lambda is large, the noise form subtracts numbers e^h times their difference.
    gaps = data.draw(st.lists(st.integers(1, 3 if prediction == "noise" else 8), min_size=1, max_size=7))
    fractions = torch.tensor([0, *itertools.accumulate(gaps)], dtype=torch.float64) / 60
    ends = sde.log_snr(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64))
    times = sde.time(ends[0] + (ends[1] - ends[0]) * fractions)
    coefficients = data.draw(st.sampled_from(["exact", "bh1", "bh2", "constant"]))
    rounded = coefficients in ("bh1", "bh2")
    solver = BUILT(
        prediction=prediction,
        variable="log_snr" if rounded else data.draw(st.sampled_from(["log_snr", "nu", "rectified", "t"])),
        order=data.draw(st.integers(1, 4)),
        corrector=0 if coefficients == "constant" else data.draw(st.integers(0, 5)),
        eta=data.draw(st.sampled_from([0.0, 0.5, 1.3, jumping])) if prediction == "data" else 0.0,
        coefficients=coefficients,
        lower_order_final=data.draw(st.booleans()),
    )
    table = solver(sde, times.clamp(sde.t_min, sde.t_max))
    mean, variance = table.law(MEAN, 0.0)
    assert mean == pytest.approx(table.end.alpha * MEAN, abs=1e-8)
    assert variance == pytest.approx(table.end.sigma**2, rel=1e-7)


@pytest.mark.parametrize("prediction", ["data", "noise"])
def test_the_roundings_differ_from_the_exact_weights_at_third_order(prediction: str) -> None:
    """Halving the steps divides the difference in one step by 8, and the exact weights of a constant are kept."""
    for coefficients, order in (("bh1", 2), ("bh2", 2), ("constant", 3), ("dpmpp_3m", 3), ("dpmpp_3m_sde", 3)):
        gaps = []
        for n in (400, 800):
            times = grids.log_snr()(VPSDE(), n)[n // 2 - 4 : n // 2]
            rough, fine = (
                BUILT(order=order, prediction=prediction, coefficients=c)(VPSDE(), times).rows[-1].state
                for c in (coefficients, "exact")
            )
            assert sum(rough[1:]) == pytest.approx(sum(fine[1:]), rel=1e-11)
            # A prediction whose derivatives in lambda are all of order one: e^{-lambda}, newest first.
            lam = 0.5 * VPSDE().log_snr(times)[: order if order == 3 else 3].flip(0)
            values = (-(lam - lam[0])).exp()[: len(rough) - 1]
            gaps.append(abs(float((torch.tensor(rough[1:]) - torch.tensor(fine[1:])).double() @ values)))
        assert math.log2(gaps[0] / gaps[1]) == pytest.approx(3, abs=0.25), coefficients


INVARIANT: list[Solver] = [
    *(named(name) for name in NAMES if name != "deis"),
    solvers.deis(variable="log_snr"),
    solvers.deis(variable="nu"),
    solvers.unipc(order=2, variant="bh1"),
    solvers.unipc(order=2, prediction="noise"),
    BUILT(prediction="flow", variable="nu", order=3, corrector=3),
    BUILT(prediction="data", variable="rectified", order=4, corrector=2, eta=0.5),
]


@pytest.mark.parametrize("solver", INVARIANT, ids=lambda s: s.name)
def test_the_scaled_state_is_the_same_under_every_sde(solver: Solver) -> None:
    """x/alpha depends on nu alone, through the real sampler, on a mixture."""
    log_snr = torch.linspace(-6.0, 6.5, 11, dtype=torch.float64)
    y = torch.linspace(-8.0, 8.0, 8, dtype=torch.float64).reshape(4, 2)
    noise, ends = [torch.sin(k + y) for k in range(10)], []
    for sde in (VPSDE(), VESDE(sigma_min=1e-3, sigma_max=200.0), SubVPSDE(), EDMSDE(), RectifiedFlow()):
        times = sde.time(log_snr)
        start = sde.alpha(times[0]) * y
        x = sample(MIXTURE, x_init=start, sde=sde, solver=solver, times=times, noise=noise, final="sample")
        ends.append(x / sde.alpha(times[-1]))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-12, atol=1e-12)


def test_the_variable_t_is_not_invariant() -> None:
    """The same comparison tells a method in t from the others."""
    log_snr, ends = torch.linspace(-5.0, 6.0, 9, dtype=torch.float64), []
    for sde in (VPSDE(), EDMSDE()):
        table = solvers.deis()(sde, sde.time(log_snr))
        ends.append(table.affine_map(0.0, VARIANCE)[1] * table.start.alpha / table.end.alpha)
    assert abs(ends[0] / ends[1] - 1) > 1e-3


# --- faults


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: BUILT(order=0), DomainError, r"order must be in \[1, 4\], got 0"),
        (lambda: BUILT(corrector=6), DomainError, r"corrector must be in \[0, 5\], got 6"),
        (lambda: BUILT(corrector=-1), DomainError, "corrector"),
        (lambda: BUILT(coefficients="bh3"), ConfigError, "did you mean 'bh2'"),
        (lambda: BUILT(coefficients="bh1", variable="nu"), ConfigError, "'bh1' need variable='log_snr', got .*'nu'"),
        (lambda: BUILT(coefficients="dpmpp_3m"), ConfigError, "need order=3 and variable='log_snr', got order=2 and"),
        (lambda: BUILT(coefficients="midpoint", corrector=2), ConfigError, "no corrector; take 'exact'"),
        (lambda: BUILT(coefficients="constant", corrector=2), ConfigError, "no corrector; take 'exact'"),
        (lambda: BUILT(prediction="flow", eta=lambda t: 0.0), ConfigError, "no stochastic form"),
        (lambda: solvers.sa_solver(tau=-0.5), DomainError, "tau must lie in"),
        (lambda: BUILT(eta=-0.5), DomainError, "eta must lie in"),
        (
            lambda: solvers.sa_solver(tau=lambda t: math.nan)(VPSDE(), grids.log_snr(3)),
            DomainError,
            "tau at t = 1 must",
        ),
        (lambda: BUILT(eta=lambda t: -t)(VPSDE(), grids.log_snr(3)), DomainError, "eta at t = 1 must"),
        (lambda: solvers.unipc(order=5), DomainError, r"order must be in \[1, 4\]"),
        (lambda: solvers.unipc(variant="bh"), ConfigError, "did you mean 'bh[12]'"),
        (lambda: solvers.deis(variable="rho"), ConfigError, "choices: log_snr, nu, rectified, t"),
    ],
)
def test_wrong_options_are_refused(make: Callable[[], object], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        make()


@pytest.mark.parametrize("form", FORMS)
def test_the_edge_of_a_measure_is_its_density_at_the_end_of_the_step(form: str) -> None:
    points = SubVPSDE().at(torch.tensor([0.7, 0.4, 0.1], dtype=torch.float64))
    end, h = 0.5 * points.log_snr, 1e-7
    eta = torch.tensor([0.0, 0.6, 1.4], dtype=torch.float64) * (form != "flow")
    _, measure = FORMS[form].measure(points, end - h, end, eta)
    torch.testing.assert_close(measure.sum(1) / h, FORMS[form].edge(points, eta), rtol=1e-6, atol=0)


@pytest.mark.parametrize("prediction", ["data", "noise", "flow"])
def test_a_prediction_that_serves_its_own_step_alone_serves_it(prediction: str) -> None:
    """``first_alone`` leaves the first step of first order and the second without what it predicted."""
    options = {"prediction": prediction, "variable": "rectified", "grid": grids.rectified()}
    alone = solvers.multistep(order=3, first_alone=True, **options)(VPSDE(), grids.rectified(5))
    first = solvers.multistep(order=1, **options)(VPSDE(), grids.rectified(5))
    assert alone.rows[0].state == pytest.approx(first.rows[0].state, rel=1e-12)
    assert [len(row.state) - 1 for row in alone.rows] == [1, 1, 2, 3, 3]
