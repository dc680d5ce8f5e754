"""ScoreModel: every parameterisation reads the same prediction; its calls, its types, and what networks get wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scoresde import (
    VESDE,
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    GaussianModel,
    GaussianSDE,
    ScoreModel,
    ShapeError,
    SolverError,
    SubVPSDE,
)
from scoresde.diffusions.targets import TARGETS
from scoresde.models.parameterization import PARAMETERIZATIONS, Parameterization
from scoresde.noise import normal, stream

F64 = torch.float64
PRECONDITIONING = json.loads((Path(__file__).parents[1] / "reference" / "preconditioning.json").read_text("utf-8"))
SDES = {"vp": VPSDE(), "sub_vp": SubVPSDE(), "ve": VESDE()}
T = torch.tensor([1e-3, 0.2, 0.6, 1.0], dtype=F64)
X0, Z = (normal((4, 3, 2), stream(0, k), dtype=F64) for k in range(2))


class EDM(GaussianSDE):
    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t


def column(c: Tensor) -> Tensor:
    return c.reshape(-1, 1, 1)


class Recorder(nn.Module):
    """Returns a given tensor, or a function of its input, and keeps what it was called with."""

    def __init__(self, answer: Tensor | Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Tensor) -> object:
        self.x, self.c_noise, self.cond = x.clone(), c_noise, cond
        return self.answer(x, c_noise) if callable(self.answer) else self.answer


def exact_output(kind: str, sde: GaussianSDE) -> Tensor:
    """What a perfect network of this kind returns at (X0, Z, T), from the definitions in the literature."""
    p = sde.at(T)
    a, s, r, da, ds = map(column, (p.alpha, p.sigma, p.r, sde.alpha_rate(T), sde.sigma_rate(T)))
    total = (s**2 + 0.25 * a**2).sqrt()
    return {
        "noise": Z,
        "data": X0,
        "v": (a * Z - s * X0) / r,
        "score": r * (-Z / s),
        "velocity": da * X0 + ds * Z,
        # Karras et al. 2022, table 1: F = (x_0 - c_skip y)/c_out with y = x/alpha and the noise level nu = sigma/alpha.
        "edm": (X0 - 0.25 / ((s / a) ** 2 + 0.25) * (X0 + s / a * Z)) / (s / a * 0.5 / (total / a)),
    }[kind]


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
@pytest.mark.parametrize("kind", PARAMETERIZATIONS)
def test_every_parameterisation_gives_the_same_views(kind: str, sde: GaussianSDE) -> None:
    net = Recorder(exact_output(kind, sde))
    model = ScoreModel(net, sde, predicts=kind)
    p = sde.at(T)
    a, s, r, da, ds = map(column, (p.alpha, p.sigma, p.r, sde.alpha_rate(T), sde.sigma_rate(T)))
    x = a * X0 + s * Z
    got = model(x, T)
    # Data from noise, and noise from data, lose what is small beside the other: nu and 1/nu, up to 5000 here.
    limit = 1e-11
    expected = {
        "data": X0,
        "noise": Z,
        "score": -Z / s,
        "v": (a * Z - s * X0) / r,
        "velocity": da * X0 + ds * Z,
    }
    for name, value in expected.items():
        torch.testing.assert_close(
            getattr(got, name), value, rtol=limit, atol=limit * float(value.abs().max()), msg=name
        )
    # The network saw states of the size of unit-variance data (0.5 for edm) and the log-SNR of each sample.
    d = 0.5 if kind == "edm" else 1.0
    torch.testing.assert_close(net.x, x / (d**2 * a**2 + s**2).sqrt(), rtol=1e-13, atol=0)
    torch.testing.assert_close(net.c_noise, p.log_snr, rtol=1e-13, atol=0)
    assert got.view("flow").shape == x.shape
    torch.testing.assert_close(got.view("flow"), Z - X0, rtol=limit, atol=limit * 1e3)


@pytest.mark.parametrize("row", PRECONDITIONING, ids=lambda r: f"{r['sigma']:g}-{r['sigma_data']:g}")
def test_edm_preconditioning_matches_references(row: dict) -> None:
    net = Recorder(lambda x, c: torch.zeros_like(x))
    model = ScoreModel(net, EDM(t_min=0.002, t_max=80.0), predicts="edm", sigma_data=row["sigma_data"])
    one = torch.ones(1, 1, dtype=F64)
    skip = float(model(one, row["sigma"]).data)
    net.answer = one
    out = float(model(one, row["sigma"]).data) - skip
    a, b = model.readout(model.sde.at(row["sigma"])).weights("data")
    got = {"c_skip": float(a), "c_out": float(b), "c_in": float(net.x)}
    for name, value in got.items():
        assert value == pytest.approx(row[name], rel=1e-12), name
    assert (skip, out) == pytest.approx((row["c_skip"], row["c_out"]), rel=1e-9)


@pytest.mark.parametrize("condition_on", ["log_snr", "time", lambda t: 1000 * t])
@pytest.mark.parametrize("kind", PARAMETERIZATIONS)
def test_another_sde_at_equal_nu_is_the_same_call(kind: str, condition_on: str | Callable[[Tensor], Tensor]) -> None:
    net = Recorder(lambda x, c: (x + column(c).tanh()).sin())
    model = ScoreModel(net, VPSDE(), predicts=kind, condition_on=condition_on)
    check_same_call(model, net)


@pytest.mark.parametrize("kind", TARGETS)
def test_a_literal_callable_under_another_sde(kind: str) -> None:
    net = Recorder(lambda x, t: (x + column(t).tanh()).sin())
    check_same_call(ScoreModel.from_callable(net, VPSDE(), predicts=kind), net)


def check_same_call(model: ScoreModel, net: Recorder) -> None:
    """x/alpha under VP equals x/alpha under VE at equal nu, and so does the prediction, there and back."""
    vp, ve = VPSDE(), VESDE(sigma_min=1e-4, sigma_max=500.0)
    other = model.with_sde(ve)
    t = torch.tensor([1e-3, 0.2, 0.6, 0.95], dtype=F64)
    p = vp.at(t)
    x = column(p.alpha) * X0 + column(p.sigma) * Z
    here = model(x, t)
    seen, told = net.x, net.c_noise
    t_ve = ve.time(p.log_snr)
    there = other(x / column(p.alpha), t_ve)
    torch.testing.assert_close(net.x, seen, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(net.c_noise, told, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(there.data, here.data, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(there.noise, here.noise, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(there.score, here.score * column(p.alpha), rtol=1e-10, atol=1e-10)
    back = other.with_sde(vp)(x, t)
    torch.testing.assert_close(back.data, here.data, rtol=1e-10, atol=1e-10)
    assert other.net is model.net
    assert (other.sde, other.trained_sde) == (ve, vp)


@pytest.mark.parametrize("kind", TARGETS)
def test_callables_are_read_literally(kind: str) -> None:
    sde, t = VESDE(), torch.tensor([0.1, 0.5, 0.9, 1.0], dtype=F64)
    x = normal((4, 3, 2), stream(1), dtype=F64)
    net = Recorder(lambda x, t: x.cos() * column(t))
    model = ScoreModel.from_callable(net, sde, predicts=kind)
    got = model(x, t).view(kind)
    torch.testing.assert_close(got, x.cos() * column(t), rtol=1e-14, atol=0)
    assert torch.equal(net.x, x)
    assert torch.equal(net.c_noise, t)


def test_c_noise_is_clamped_and_may_be_a_time_or_a_function() -> None:
    net, sde = Recorder(lambda x, c: x), EDM(t_min=1e-12, t_max=1e12)
    x = torch.ones(3, 1)
    t = torch.tensor([1e-12, 1.0, 1e12], dtype=F64)
    ScoreModel(net, sde)(x, t)
    assert net.c_noise.tolist() == [40.0, 0.0, -40.0]
    assert net.c_noise.dtype == torch.float32
    ScoreModel(net, sde, condition_on="time")(x, t)
    assert torch.equal(net.c_noise, t.float())
    ScoreModel(net, sde, condition_on=lambda t: t.log() / 4)(x, 0.5)
    assert net.c_noise.tolist() == pytest.approx([math.log(0.5) / 4] * 3, rel=1e-7)


def test_an_own_parameterisation() -> None:
    """The sum of data and noise, a target of two lines."""
    both = Parameterization("both", lambda p, d: (torch.ones_like(p.alpha), torch.ones_like(p.alpha)))
    model = ScoreModel(Recorder(X0 + Z), VPSDE(), predicts=both)
    t = torch.tensor([0.05, 0.2, 0.6, 1.0], dtype=F64)
    got = model(VPSDE().perturb(X0, t, Z), t)
    torch.testing.assert_close(got.data, X0, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(got.noise, Z, rtol=1e-11, atol=1e-11)


# ---------------------------------------------------------------------------------------------------------------------
# Types, conditions, modes


@pytest.mark.parametrize("net_dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_types_of_state_and_network_are_kept_apart(dtype: torch.dtype, net_dtype: torch.dtype) -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((), 0.5, dtype=net_dtype))

        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            assert x.dtype == net_dtype
            assert c_noise.dtype == torch.promote_types(torch.float32, net_dtype)
            return self.weight * x

    model, x = ScoreModel(Scale(), VPSDE()), normal((5, 2), stream(2)).to(dtype)
    assert model.dtype == net_dtype
    got = model(x, 0.5)
    # noise = x/2, so data = (1 - sigma/2)/alpha x.
    factor = float((1 - VPSDE().sigma(0.5) / 2) / VPSDE().alpha(0.5))
    for view, expected in ((got.noise, 0.5 * x.to(F64)), (got.data, factor * x.to(F64))):
        assert view.dtype == dtype
        # Rounding x to the network's type costs half a unit of noise, and sigma/alpha = 3.4 times as much of data.
        eps = max(torch.finfo(dtype).eps, torch.finfo(net_dtype).eps)
        torch.testing.assert_close(view.to(F64), expected, rtol=6 * eps, atol=0)


def test_conditions_reach_the_network() -> None:
    net = Recorder(lambda x, c: x)
    labels = torch.arange(3)
    ScoreModel(net, VPSDE())(torch.zeros(3, 2), 0.5, cond={"label": labels})
    assert torch.equal(net.cond["label"], labels)
    ScoreModel(net, VPSDE())(torch.zeros(3, 2), 0.5)
    assert net.cond == {}


def test_gradients_flow_and_inputs_stay() -> None:
    model = GaussianModel(sde=VPSDE(), mean=torch.zeros(2, dtype=F64), covariance=torch.tensor(0.25, dtype=F64))
    x = normal((3, 2), stream(3), dtype=F64).requires_grad_()
    before = x.detach().clone()
    (slope,) = torch.autograd.grad(model(x, 0.5).score.sum(), x)
    p = VPSDE().at(0.5)
    torch.testing.assert_close(slope, (-1 / (0.25 * p.alpha**2 + p.sigma**2)).expand(3, 2), rtol=1e-12, atol=0)
    assert torch.equal(x.detach(), before)
    assert x.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(model(before, 0.5).score, model(x, 0.5).score.detach(), rtol=0, atol=0)
    jacobian = torch.func.jacrev(lambda x: model(x, 0.5).score.sum(0))(before)
    torch.testing.assert_close(jacobian[0, 0, 0], slope[0, 0], rtol=1e-12, atol=0)


def test_layouts_do_not_matter() -> None:
    net = Recorder(lambda x, c: x.sin() + column(c)[..., None])
    model, x = ScoreModel(net, VPSDE()), normal((4, 3, 5, 5), stream(4), dtype=F64)
    expected = model(x, T).data
    for same in (x.to(memory_format=torch.channels_last), x.transpose(1, 3).contiguous().transpose(1, 3)):
        torch.testing.assert_close(model(same, T).data, expected, rtol=1e-12, atol=1e-12)
    row = x[:1, :1].expand(4, 3, 5, 5)
    torch.testing.assert_close(model(row, T).data, model(row.clone(), T).data, rtol=1e-12, atol=1e-12)
    assert model(x[:0], T[:0]).data.shape == (0, 3, 5, 5)


# ---------------------------------------------------------------------------------------------------------------------
# Faults

X = torch.zeros(3, 2)


class Output:
    def __init__(self, sample: object) -> None:
        self.sample = sample


def test_a_model_output_is_unpacked() -> None:
    got = ScoreModel(lambda x, c: Output(2 * x), VPSDE())(X + 1, 0.5)
    assert torch.equal(got.noise, 2 * (X + 1))


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (lambda x, c: (x, x), DTypeError, "the network must return a tensor of x's shape, got tuple"),
        (lambda x, c: Output([1.0]), DTypeError, "the network must return a tensor of x's shape, got list"),
        (lambda x, c: x[:, :1], ShapeError, r"the network must return x's shape \(3, 2\), got \(3, 1\)"),
        (lambda x, c: torch.cat([x, x], 1), ShapeError, r"got \(3, 4\); pass variance=\"learned\" if half"),
        (lambda x, c: x.add_(1), SolverError, "the network changed its input in place; clone x inside the network"),
    ],
)
def test_networks_that_misbehave(answer: Callable[..., object], error: type[Exception], message: str) -> None:
    x = X.clone()
    with pytest.raises(error, match=message):
        ScoreModel(Recorder(answer), VPSDE())(x, 0.5)
    assert torch.equal(x, X)


@pytest.mark.parametrize(
    ("x", "t", "error", "message"),
    [
        ([0.0], 0.5, DTypeError, "x must be a torch.Tensor, got list"),
        (torch.zeros(3, 2, dtype=torch.int32), 0.5, DTypeError, "x must have a real floating dtype, got torch.int32"),
        (torch.zeros(3, dtype=torch.cfloat), 0.5, DTypeError, "take its real and imaginary parts as channels"),
        (torch.tensor(1.0), 0.5, ShapeError, r"x must have shape \(B, \*\), got a 0-d tensor; add a batch dimension"),
        (X, torch.ones(3, 1), ShapeError, r"t must have shape \(\) or \(3,\), got \(3, 1\)"),
        (X, torch.ones(4), ShapeError, r"t must have shape \(\) or \(3,\), got \(4,\)"),
        (X, torch.tensor(1), DTypeError, "t must be floating for a continuous SDE, got torch.int64"),
        (X, 0.0, DomainError, r"t must lie in \[1e-05, 1\], got 0"),
        (X, math.nan, DomainError, r"t must lie in \[1e-05, 1\], got nan"),
    ],
)
def test_bad_calls_never_reach_the_network(x: object, t: Tensor | float, error: type[Exception], message: str) -> None:
    def fail(x: Tensor, c: Tensor) -> Tensor:
        raise AssertionError("the network was called")

    with pytest.raises(error, match=message):
        ScoreModel(fail, VPSDE())(x, t)


def test_bad_conditions() -> None:
    model = ScoreModel(Recorder(lambda x, c: x), VPSDE())
    with pytest.raises(
        ShapeError, match=r"cond\['label'\] must have a first dimension of 3 \(or 1, for all\), got shape \(4,\)"
    ):
        model(X, 0.5, cond={"label": torch.arange(4)})
    with pytest.raises(ConfigError, match="cond must be a dict of tensors"):
        model(X, 0.5, cond=torch.arange(3))


def test_bad_choices() -> None:
    with pytest.raises(ConfigError, match=r"unknown parameterisation 'nosie'; did you mean 'noise'\? choices: data"):
        ScoreModel(nn.Identity(), VPSDE(), predicts="nosie")
    with pytest.raises(ConfigError, match=r"unknown conditioning 'logsnr'; did you mean 'log_snr'\?"):
        ScoreModel(nn.Identity(), VPSDE(), condition_on="logsnr")
    with pytest.raises(DomainError, match=r"sigma_data must lie in \(0, inf\), got 0"):
        ScoreModel(nn.Identity(), VPSDE(), sigma_data=0)
    with pytest.raises(ConfigError, match="unknown prediction 'edm'"):
        ScoreModel.from_callable(nn.Identity(), VPSDE(), predicts="edm")
    at_end = ScoreModel(Recorder(X), VPSDE()).at(X, VPSDE().at(0.0))
    assert torch.equal(at_end.data, X)
    with pytest.raises(DomainError, match="the score prediction has no finite value at t = 0"):
        _ = at_end.score
