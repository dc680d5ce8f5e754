"""The named diffusions: references in four types, closed forms against automatic differentiation, tables, faults."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scoresde import (
    EDMSDE,
    VESDE,
    VPSDE,
    ConfigError,
    CosineVPSDE,
    DomainError,
    DTypeError,
    GaussianSDE,
    RectifiedFlow,
    ScoreModel,
    ShapeError,
    SubVPSDE,
    TabulatedSDE,
    sample,
)
from scoresde.diffusions.named import DIFFUSIONS, sde_from_dict, sde_to_dict

F64 = torch.float64
REFERENCE = Path(__file__).parents[1] / "reference"
CASES = json.loads((REFERENCE / "schedules.json").read_text(encoding="utf-8"))
IDS = [f"{c['kind']}-{'-'.join(map(str, c['options'].values()))}" for c in CASES]
CURVES = ("alpha", "sigma", "log_snr", "alpha_rate", "sigma_rate", "drift_rate", "diffusion")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-7}


def build(case: dict) -> GaussianSDE:
    return DIFFUSIONS[case["kind"]](**case["options"])


def representable(values: list[float], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The values that ``dtype`` holds exactly, and which they are."""
    exact = torch.tensor(values, dtype=F64)
    kept = exact.to(dtype).to(F64) == exact
    assert kept.sum() >= 15
    return exact[kept].to(dtype), kept


def ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    info = torch.finfo(dtype)
    size = values.abs().clamp_min(info.smallest_normal)
    return torch.exp2(size.log2().floor()) * info.eps


def test_stored_references_are_what_the_script_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REFERENCE))
    import make_references

    for name, make in make_references.TABLES.items():
        assert json.loads((REFERENCE / f"{name}.json").read_text(encoding="utf-8")) == make(), name


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_curves_match_references(case: dict, name: str, dtype: torch.dtype) -> None:
    t, kept = representable(case["curves"]["t"], dtype)
    expected = torch.tensor(case["curves"][name], dtype=F64)[kept]
    got = getattr(build(case), name)(t)
    assert got.dtype == dtype
    scale = expected.abs().clamp_min(1) if name == "log_snr" else expected.abs()
    assert bool(((got.to(F64) - expected).abs() <= TOLERANCE[dtype] * scale).all())


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_types_are_within_one_ulp(case: dict, dtype: torch.dtype) -> None:
    sde = build(case)
    t, kept = representable(case["curves"]["t"], dtype)
    for name in CURVES:
        expected = torch.tensor(case["curves"][name], dtype=F64)[kept]
        got = getattr(sde, name)(t)
        assert got.dtype == dtype
        assert bool(((got.to(F64) - expected).abs() <= ulp(expected, dtype)).all()), name


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_time_of_log_snr_matches_references(case: dict, dtype: torch.dtype) -> None:
    log_snr, kept = representable(case["inverse"]["log_snr"], dtype)
    expected = torch.tensor(case["inverse"]["time"], dtype=F64)[kept]
    got = build(case).time(log_snr)
    assert got.dtype == dtype
    bound = {torch.float64: 1e-12, torch.float32: 2e-6}.get(dtype, 0) * expected
    if dtype.itemsize == 2:
        bound = ulp(expected, dtype)
    if case["kind"] == "VESDE":
        # t is a difference of logarithms there: each is rounded by half a unit, whatever t.
        low, high = (math.log(c) for c in case["options"].values())
        bound = bound + 2 * np.finfo(float).eps * (log_snr.to(F64).abs() / 2 + abs(low)) / (high - low)
    assert bool(((got.to(F64) - expected).abs() <= bound).all())


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_time_inverts_log_snr(case: dict, dtype: torch.dtype) -> None:
    """The error is what rounding log_snr costs, |log_snr| eps / (d log_snr / dt)."""
    sde = build(case)
    # Just short of 1, where alpha of two schedules is 0, and no further than the schedule itself.
    t = torch.logspace(-7, -1e-3, 300, dtype=F64).clamp_max(sde.t_max * (1 - 1e-6)).to(dtype)
    log_snr = sde.log_snr(t)
    slope = (sde.diffusion(t.to(F64)) / sde.sigma(t.to(F64))).square()
    # The float64 logarithms inside VE's log_snr and time are rounded too.
    size = log_snr.to(F64).abs() + 2 * abs(math.log(case["options"].get("sigma_min", 1.0)))
    bound = 4 * torch.finfo(dtype).eps * (size / slope + t.to(F64))
    assert bool(((sde.time(log_snr) - t).to(F64).abs() <= bound).all())
    if case["kind"] != "VESDE":
        tight = {torch.float64: 1e-12, torch.float32: 2e-6}[dtype]
        assert bool(((sde.time(log_snr) / t - 1).abs() <= tight).all())


beta_pairs = st.tuples(st.floats(0.0, 5.0), st.floats(0.01, 30.0)).map(lambda p: {"beta_min": p[0], "beta_max": sum(p)})
sigma_pairs = st.tuples(st.floats(1e-3, 1.0), st.floats(2.0, 1e4)).map(
    lambda p: {"sigma_min": p[0], "sigma_max": p[0] * p[1]}
)
any_sde = st.one_of(
    st.sampled_from([CosineVPSDE(), EDMSDE(), RectifiedFlow()]),
    beta_pairs.map(lambda o: VPSDE(**o)),
    beta_pairs.map(lambda o: SubVPSDE(**o)),
    sigma_pairs.map(lambda o: VESDE(**o)),
)


@given(any_sde)
def test_closed_forms_equal_automatic_differentiation(sde: GaussianSDE) -> None:
    t = torch.logspace(-6, math.log10(0.99 * sde.t_max), 40, dtype=F64)
    for name in ("alpha_rate", "sigma_rate", "drift_rate", "diffusion"):
        closed, derived = getattr(sde, name)(t), getattr(GaussianSDE, name)(sde, t)
        # torch differentiates expm1 as expm1 + 1, which rounds where e^{-B} is small: absolutely, not relatively.
        atol = 1e-15 * float(closed.abs().max()) if name == "sigma_rate" else 0.0
        torch.testing.assert_close(closed, derived, rtol=1e-12, atol=atol, msg=name)
    torch.testing.assert_close(sde.log_snr(t), GaussianSDE.log_snr(sde, t), rtol=1e-12, atol=1e-12)


@given(any_sde)
def test_curves_are_monotone(sde: GaussianSDE) -> None:
    t = torch.logspace(-7, math.log10(0.99 * sde.t_max), 500, dtype=F64)
    # Rounding may level alpha where beta t is under 1e-16, and sigma where alpha is.
    assert bool((sde.alpha(t).diff() <= 0).all())
    assert bool((sde.sigma(t).diff() >= 0).all())
    assert bool((sde.log_snr(t).diff() < 0).all())
    assert bool((sde.log_snr(t).exp() / (sde.alpha(t) / sde.sigma(t)).square() - 1).abs().max() < 1e-12)


@given(any_sde, st.floats(1e-5, 0.99))
def test_numbers_and_tensors_give_the_same(sde: GaussianSDE, t: float) -> None:
    for name in (*CURVES, "time", "prior_std"):
        function = getattr(sde, name)
        at = float(sde.log_snr(t)) if name == "time" else t
        one, many = function(at), function(torch.tensor([at, at], dtype=F64))
        assert one.dtype == F64
        assert one.shape == ()
        assert many.shape == (2,)
        assert bool((many == one).all())


def test_ends_are_exact_and_conventions_hold() -> None:
    ve = VESDE(sigma_min=0.3, sigma_max=1348.0)
    assert float(ve.sigma(0.0)) == 0.3
    assert float(ve.sigma(1.0)) == 1348.0
    assert float(ve.prior_std(1.0)) == 1348.0
    for sde in (VPSDE(), SubVPSDE()):
        assert float(sde.alpha(0.0)) == 1.0
        assert float(sde.sigma(0.0)) == 0.0
        assert float(sde.prior_std(0.3)) == 1.0
    assert float(VPSDE().beta(0.5)) == pytest.approx(10.05, rel=1e-15)
    assert float(VPSDE().integral(1.0)) == pytest.approx(10.05, rel=1e-15)


def test_parameters_may_be_integers_and_equal_sdes_are_equal() -> None:
    assert VPSDE(beta_max=20) == VPSDE()
    assert VPSDE(beta_max=19.0) != VPSDE()
    assert repr(VESDE()) == "VESDE(t_min=1e-05, t_max=1.0, sigma_min=0.01, sigma_max=50.0)"


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (VPSDE, {"beta_min": 3.0, "beta_max": 2.0}, r"beta_max must lie in \[3, inf\), got 2\.0"),
        (VPSDE, {"beta_min": -0.1}, r"beta_min must lie in \[0, inf\), got -0\.1"),
        (SubVPSDE, {"beta_min": math.nan}, r"beta_min must lie in \[0, inf\), got nan"),
        (SubVPSDE, {"beta_min": 0.0, "beta_max": 0.0}, "beta_max must be positive, got 0: nothing would diffuse"),
        (VESDE, {"sigma_min": 0.0}, r"sigma_min must lie in \(0, inf\), got 0\.0"),
        (VESDE, {"sigma_min": 2.0, "sigma_max": 2.0}, r"sigma_max must lie in \(2, inf\), got 2\.0"),
        (VESDE, {"sigma_max": math.inf}, r"sigma_max must lie in \(0\.01, inf\), got inf"),
        (VPSDE, {"t_min": 0.0}, r"t_min must lie in \(0, inf\), got 0\.0"),
        (VESDE, {"t_min": 0.5, "t_max": 0.5}, r"t_max must lie in \(0\.5, inf\), got 0\.5"),
    ],
)
def test_impossible_parameters(kind: type[GaussianSDE], options: dict, message: str) -> None:
    with pytest.raises(DomainError, match=message):
        kind(**options)


def test_wrong_types() -> None:
    with pytest.raises(DTypeError, match=r"beta_min must be a number, got '0\.1' of type str"):
        VPSDE(beta_min="0.1")
    with pytest.raises(DTypeError, match=r"a continuous time must be floating, got torch.int64"):
        VPSDE().alpha(torch.arange(3))


# ---------------------------------------------------------------------------------------------------------------------
# TabulatedSDE


@st.composite
def tables(draw: st.DrawFn) -> TabulatedSDE:
    size = draw(st.integers(2, 12))
    gaps, falls, drops = (
        torch.tensor(draw(st.lists(st.floats(low, high), min_size=size, max_size=size)), dtype=F64).cumsum(0)
        for low, high in ((1e-3, 1.0), (1e-3, 5.0), (0.0, 2.0))
    )
    return TabulatedSDE(gaps, 10 - falls, draw(st.sampled_from([None, -drops])))


@given(tables())
def test_table_passes_its_knots_exactly(sde: TabulatedSDE) -> None:
    assert (sde.t_min, sde.t_max) == (float(sde.knots[0]), float(sde.knots[-1]))
    assert torch.equal(sde.log_snr(sde.knots), sde.knot_log_snr)
    assert torch.equal(sde.time(sde.knot_log_snr), sde.knots)
    if sde.knot_log_alpha is None:
        assert float((sde.alpha(sde.knots).square() + sde.sigma(sde.knots).square() - 1).abs().max()) < 1e-15
    else:
        assert torch.equal(sde.log_alpha(sde.knots), sde.knot_log_alpha)


@settings(max_examples=30)
@given(tables())
def test_table_is_monotone_and_its_time_inverts(sde: TabulatedSDE) -> None:
    t = torch.linspace(sde.t_min, sde.t_max, 400, dtype=F64)
    log_snr = sde.log_snr(t)
    assert bool((log_snr.diff() <= 0).all())
    assert bool((sde.alpha(t).diff() <= 1e-15).all())
    assert float((sde.log_snr(sde.time(log_snr)) - log_snr).abs().max()) < 1e-10
    torch.testing.assert_close((sde.alpha(t) / sde.sigma(t)).square(), log_snr.exp(), rtol=1e-12, atol=0)
    # t itself comes back wherever log_snr is not flat.
    steep = (sde.diffusion(t) / sde.sigma(t)).square() > 1e-3
    assert float(torch.where(steep, sde.time(log_snr) - t, torch.zeros_like(t)).abs().max()) < 1e-10


@settings(max_examples=30)
@given(tables())
def test_table_has_a_continuous_derivative_that_diffuses(sde: TabulatedSDE) -> None:
    t = torch.linspace(sde.t_min, sde.t_max, 50, dtype=F64)
    assert bool(torch.isfinite(sde.diffusion(torch.cat([t, sde.knots]))).all())
    knots = sde.knots[1:-1]
    for curve in (lambda t: sde.drift_rate(t), lambda t: (sde.diffusion(t) / sde.sigma(t)).square()):
        left, right = curve(knots - 1e-12), curve(knots + 1e-12)
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-4)


def test_table_of_vp_is_vp() -> None:
    vp = VPSDE()
    knots = torch.linspace(1e-3, 1, 1000, dtype=F64)
    table = TabulatedSDE(knots, vp.log_snr(knots))
    t = torch.linspace(0.0105, 0.9995, 777, dtype=F64)
    for name, tolerance in (("alpha", 1e-6), ("sigma", 1e-6), ("diffusion", 1e-3), ("drift_rate", 1e-3)):
        torch.testing.assert_close(getattr(table, name)(t), getattr(vp, name)(t), rtol=tolerance, atol=tolerance)
    assert float(table.prior_std(1.0)) == 1.0


def test_table_starts_from_clean_data() -> None:
    t = torch.tensor([0.1, 0.4, 1.0], dtype=F64)
    for log_alpha in (None, torch.tensor([-0.1, -0.2, -2.0], dtype=F64)):
        sde = TabulatedSDE(t, torch.tensor([4.0, 1.0, -5.0]), log_alpha)
        clean = sde.at(0.0)
        assert (float(clean.alpha), float(clean.sigma), float(clean.log_snr)) == (1.0, 0.0, math.inf)
        x0, x_t = torch.full((2, 1), 3.0, dtype=F64), torch.full((2, 1), -1.0, dtype=F64)
        mean, std = sde.posterior(x0, x_t, 0.0, 0.4)
        assert torch.equal(mean, x0)
        assert float(std) == 0.0


@pytest.mark.parametrize(
    ("curves", "error", "message"),
    [
        (([0.1, 0.2], [1.0, 2.0]), DomainError, "log_snr must be finite and decrease"),
        (([0.2, 0.1], [2.0, 1.0]), DomainError, "t must be finite and increase"),
        (([0.1, 0.2], [2.0, math.nan]), DomainError, "log_snr must be finite and decrease"),
        (([0.0, 0.2], [2.0, 1.0]), DomainError, "t must start above 0, got 0"),
        (([0.1, 0.2], [2.0, 1.0], [-0.1, 0.0]), DomainError, "log_alpha must be finite and decrease"),
        (([0.1], [2.0]), ShapeError, r"t must be a vector of at least two knots, one for each t, got \(1,\)"),
        (([0.1, 0.2], [2.0, 1.0, 0.0]), ShapeError, r"log_snr must be a vector .* got \(3,\)"),
    ],
)
def test_impossible_tables(curves: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TabulatedSDE(*map(torch.tensor, curves))


# ---------------------------------------------------------------------------------------------------------------------
# JSON


@settings(max_examples=30)
@given(st.one_of(any_sde, tables()))
def test_description_rebuilds_the_sde(sde: GaussianSDE) -> None:
    again = sde_from_dict(json.loads(json.dumps(sde_to_dict(sde))))
    assert type(again) is type(sde)
    assert (again.t_min, again.t_max) == (sde.t_min, sde.t_max)
    t = torch.linspace(sde.t_min, sde.t_max, 20, dtype=F64)
    for name in ("alpha", "sigma", "log_snr", "diffusion"):
        assert torch.equal(getattr(again, name)(t), getattr(sde, name)(t))


def test_description_keeps_the_interval_of_time() -> None:
    sde = VESDE(t_min=1e-3, t_max=0.9)
    assert sde_from_dict(sde_to_dict(sde)) == sde


def test_descriptions_that_cannot_be_rebuilt() -> None:
    class Mine(VPSDE):
        pass

    with pytest.raises(ConfigError, match=r"Mine is your own SDE: JSON cannot rebuild it; pass sde="):
        sde_to_dict(Mine())
    with pytest.raises(ConfigError, match=r"unknown SDE 'VPSED'; did you mean 'VPSDE'\? choices: "):
        sde_from_dict({"kind": "VPSED"})
    with pytest.raises(ConfigError, match=r"unknown option of VPSDE 'beta_mim'; did you mean 'beta_min'\?"):
        sde_from_dict({"kind": "VPSDE", "beta_mim": 0.1})
    with pytest.raises(ConfigError, match="the description of a TabulatedSDE lacks 'log_snr'"):
        sde_from_dict({"kind": "TabulatedSDE", "t": [0.1, 0.2]})
    with pytest.raises(DTypeError, match="beta_max must be a number, got 'big'"):
        sde_from_dict({"kind": "VPSDE", "beta_max": "big"})


def test_the_new_schedules_state_their_ends() -> None:
    edm = EDMSDE(sigma_min=0.01, sigma_max=20)
    assert (edm.t_min, edm.t_max) == (0.01, 20.0)
    assert float(edm.prior_std(20.0)) == 20.0
    assert float(RectifiedFlow().alpha(1.0)) == 0.0
    assert float(RectifiedFlow().log_snr(1.0)) == -math.inf
    assert float(CosineVPSDE().sigma(0.0)) == 0.0
    assert -9.6 < float(CosineVPSDE().log_snr(CosineVPSDE().t_max)) < -9.5
    for bad in (lambda: EDMSDE(sigma_min=0.0), lambda: EDMSDE(sigma_min=2, sigma_max=1)):
        with pytest.raises(DomainError, match="sigma_m"):
            bad()
    for bad in (lambda: RectifiedFlow(t_max=1.5), lambda: CosineVPSDE(t_max=1.5), lambda: CosineVPSDE(offset=-1.0)):
        with pytest.raises(DomainError, match="must lie in"):
            bad()


@pytest.mark.parametrize("predicts", ["noise", "score"])
def test_zero_terminal_snr_is_refused_where_nothing_can_be_read(predicts: str) -> None:
    with pytest.raises(DomainError, match="alpha = 0"):
        ScoreModel(lambda x, c: x, RectifiedFlow(), predicts=predicts)


@pytest.mark.parametrize("predicts", ["data", "v", "velocity", "edm"])
@pytest.mark.parametrize("solver", ["dpmpp_2m", "ddim", "ancestral", "heun", "dpmpp_2m_sde"])
def test_zero_terminal_snr_works_for_the_others(predicts: str, solver: str) -> None:
    """An exact model of N(0, 1) data on the straight path: the samples are N(0, 1) again, up to the step's error."""
    sde = RectifiedFlow()

    def exact(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = 1 - t[:, None], t[:, None]
        return alpha / (alpha.square() + sigma.square()) * x

    literal = ScoreModel.from_callable(exact, sde, predicts="data")
    net = ScoreModel(lambda x, c: 0 * x, sde, predicts=predicts)
    net.parameterization = replace(net.parameterization, sigma_data=None)  # the network's input is x itself

    def through(x: Tensor, t: Tensor) -> Tensor:
        # What a network of this parameterisation would return, from the exact data prediction.
        out, pair = literal(x, t), net.readout(sde.at(t)).pair
        p, q = (c[:, None].to(x) for c in pair)
        noise = torch.where(t[:, None] == 1.0, x, (x - (1 - t[:, None]) * out.data) / t[:, None])
        return p * out.data + q * noise

    model = ScoreModel(through, sde, predicts=predicts, condition_on="time")
    model.parameterization = net.parameterization
    z = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    got = sample(model, x_init=z, solver=solver, steps=200, seed=0)
    direct = sample(literal, x_init=z, solver=solver, steps=200, seed=0)
    torch.testing.assert_close(got, direct, rtol=1e-9, atol=1e-9)
    if solver in ("dpmpp_2m", "ddim", "heun"):
        torch.testing.assert_close(got, z, rtol=0.02, atol=0.02)
