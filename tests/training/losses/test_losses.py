"""The denoising loss: one number for every parameterisation, exact for Gaussian data, in nats under its own weight."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import SDES
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest, norm
from torch import Tensor, nn
from watchers import NoReading, NoSync

from scoresde import (
    EDMSDE,
    VESDE,
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    GaussianModel,
    GaussianSDE,
    RectifiedFlow,
    ScoreModel,
    ShapeError,
)
from scoresde.models.parameterization import PARAMETERIZATIONS
from scoresde.nn import MLP
from scoresde.noise import normal, stream
from scoresde.training.losses import (
    TIMES,
    WEIGHTS,
    Weight,
    denoising_score_matching,
    edm,
    log_normal,
    min_snr,
    p2,
    sigmoid,
)
from scoresde.training.losses.denoising import read_scalars

F32, F64 = torch.float32, torch.float64
BATCH, EVENT = 4, (3, 2)
X0, Z, DIRECTION = (normal((BATCH, *EVENT), stream(0, k), dtype=F64) for k in range(3))


class Says(nn.Module):
    """A network that answers what it is told, whatever it is asked, and keeps what it was asked."""

    def __init__(self, answer: Tensor | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Tensor) -> Tensor:
        self.asked = [x, c_noise, *cond.values()]
        return self.answer if isinstance(self.answer, Tensor) else self.answer(x)


class Flow(GaussianSDE):
    """alpha = 1 - t, sigma = t: no signal at t = 1."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return torch.as_tensor(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return 2 * (torch.log1p(-t) - t.log())


def column(c: Tensor) -> Tensor:
    return c.reshape(-1, *(1,) * len(EVENT))


# ---------------------------------------------------------------------------------------------------------------------
# One loss for all parameterisations


@pytest.mark.parametrize("predicts", PARAMETERIZATIONS)
@given(
    name=st.sampled_from(sorted(SDES)),
    weight=st.sampled_from(sorted(WEIGHTS)),
    share=st.lists(st.floats(0, 1), min_size=BATCH, max_size=BATCH),
    size=st.floats(0.01, 10),
)
def test_every_readout_gives_the_same_loss_and_gradient(
    predicts: str, name: str, weight: str, share: list[float], size: float
) -> None:
    # A prediction x0_hat = x_0 + theta d with its noise z - theta (alpha/sigma) d, written in each readout's output.
    sde = SDES[name]
    t = sde.t_min + (sde.t_max - sde.t_min) * torch.tensor(share, dtype=F64)
    point = sde.at(t)
    theta = torch.tensor(size, dtype=F64, requires_grad=True)
    data = X0 + theta * DIRECTION
    noise = Z - theta * column(point.alpha / point.sigma) * DIRECTION
    model = ScoreModel(nn.Identity(), sde, predicts=predicts)
    p, q = (column(c) for c in model.readout(point).pair)
    model.net = Says(p * data + q * noise)
    losses = denoising_score_matching(model, X0, weight=weight, t=t, noise=Z)
    alpha, sigma, g = point.alpha, point.sigma, sde.diffusion(t)
    snr = alpha**2 / sigma**2
    w = {
        "simple": snr,
        "likelihood": g**2 * alpha**2 / (2 * sigma**4),
        "min_snr": torch.minimum(snr, torch.tensor(5.0)),
        "edm": (sigma**2 + 0.25 * alpha**2) / (0.5 * sigma) ** 2,  # in x: (nu^2 + s^2)/(nu s)^2, nu = sigma/alpha
        "sigmoid": g**2 * alpha**2 / (2 * sigma**4) / (1 + snr * math.exp(-2.0)),
        "p2": snr / (1 + snr),
    }[weight]
    expected = w * size**2 * DIRECTION.square().mean((1, 2))
    torch.testing.assert_close(losses.detach(), expected, rtol=1e-10, atol=0)
    (gradient,) = torch.autograd.grad(losses.sum(), theta)
    torch.testing.assert_close(gradient, 2 * expected.sum() / size, rtol=1e-9, atol=0)


def test_simple_weight_is_the_noise_error_and_the_network_sees_its_scaled_state() -> None:
    sde = SDES["ve"]
    t = torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=F64)
    net = Says(DIRECTION)
    losses = denoising_score_matching(ScoreModel(net, sde), X0, t=t, noise=Z)
    torch.testing.assert_close(losses, (DIRECTION - Z).square().mean((1, 2)), rtol=1e-14, atol=0)
    sigma = sde.sigma(t)
    x, c_noise = net.asked
    torch.testing.assert_close(x, (X0 + column(sigma) * Z) / column((1 + sigma**2).sqrt()), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(c_noise, sde.log_snr(t), rtol=1e-14, atol=0)


@pytest.mark.parametrize(("predicts", "factor"), [("noise", 1.0), ("v", 0.0), ("data", 0.0), ("edm", 0.0)])
def test_factor_has_its_limit_where_the_signal_is_gone(predicts: str, factor: float) -> None:
    # w c_out^2 = (alpha/Delta)^2 is 0 * inf for the noise prediction at alpha = 0, and 1 in the limit. A model that
    # reaches that point is refused for the noise; the loss itself has no trouble there.
    model = ScoreModel(nn.Identity(), Flow(t_max=0.999), predicts=predicts)
    at_end = read_scalars(model, model.sde.at(torch.tensor([1.0], dtype=F64)), WEIGHTS["simple"]).multipliers
    assert torch.isfinite(torch.stack(at_end)).all()
    assert float(at_end.loss) == pytest.approx(factor, abs=1e-15)


def test_gradient_of_a_network_is_the_derivative_of_its_loss() -> None:
    net = MLP(EVENT, width=4, depth=1).double()
    with torch.no_grad():
        for k, parameter in enumerate(net.parameters()):
            parameter.copy_(0.5 * normal(parameter.shape, stream(1, k), dtype=F64))
    model = ScoreModel(net, VPSDE(), predicts="v")
    t = torch.tensor([0.05, 0.3, 0.6, 0.9], dtype=F64)

    def loss() -> Tensor:
        return denoising_score_matching(model, X0, weight="likelihood", t=t, noise=Z).mean()

    for parameter, gradient in zip(net.parameters(), torch.autograd.grad(loss(), list(net.parameters())), strict=True):
        ahead = normal(parameter.shape, stream(2, parameter.numel()), dtype=F64)
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter.add_(ahead, alpha=step)
                values.append(float(loss()))
                parameter.sub_(ahead, alpha=step)
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(float((gradient * ahead).sum()), rel=1e-6, abs=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# Exact values for Gaussian data


def expected_loss(model: GaussianModel, covariance: Tensor, t: Tensor, weight: str) -> Tensor:
    """The exact expectation at each t: the loss is a quadratic in (x_0, z), which +-1 in every variable integrates."""
    size = len(covariance)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=2 * size)), dtype=F64)
    x0 = model.moments.mean + signs[:, :size] @ torch.linalg.cholesky(covariance).T
    rows = [denoising_score_matching(model, x0, weight=weight, t=s, noise=signs[:, size:]) for s in t]
    return torch.stack(rows).mean(1)


COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=F64)
MEAN = torch.tensor([1.5, -0.5], dtype=F64)


@pytest.mark.parametrize("name", SDES)
def test_loss_of_the_exact_model_is_the_posterior_variance(name: str) -> None:
    sde = SDES[name]
    t = torch.linspace(0, 1, 7, dtype=F64) * (sde.t_max - sde.t_min) + sde.t_min
    point = sde.at(t)
    loss = expected_loss(GaussianModel(sde=sde, mean=MEAN, covariance=COVARIANCE), COVARIANCE, t, "simple")
    c = torch.linalg.eigvalsh(COVARIANCE)
    variance = c * point.sigma[:, None] ** 2 / (point.alpha[:, None] ** 2 * c + point.sigma[:, None] ** 2)
    torch.testing.assert_close(loss, (point.alpha / point.sigma) ** 2 * variance.mean(1), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", SDES)
def test_likelihood_weight_makes_nats(name: str) -> None:
    # The integral of g^2/2 E|score error|^2 is half that of the posterior variance over the signal-to-noise ratio,
    # which is the information that x at t_min has of x_0 beyond that at t_max (Guo, Shamai, Verdu 2005).
    sde = SDES[name]
    nodes, weights = np.polynomial.legendre.leggauss(200)
    low, high = math.log(sde.t_min), math.log(sde.t_max)
    t = torch.from_numpy(np.exp(low + (high - low) * (nodes + 1) / 2)).clamp(sde.t_min, sde.t_max)
    loss = expected_loss(GaussianModel(sde=sde, mean=MEAN, covariance=COVARIANCE), COVARIANCE, t, "likelihood")
    average = float((loss * t * torch.from_numpy(weights)).sum()) * (high - low) / 2 / (sde.t_max - sde.t_min)
    ends = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=F64)).exp()
    information = 0.5 * (torch.linalg.eigvalsh(COVARIANCE)[:, None] * ends).log1p().sum(0)
    nats = (sde.t_max - sde.t_min) * 2 * average
    # The tabulated schedule is a cubic between knots: its g has kinks there.
    assert nats == pytest.approx(float(information[0] - information[1]), rel=1e-4 if name == "tabulated" else 1e-9)


def test_any_event_shape_has_the_mean_over_its_coordinates() -> None:
    t = torch.tensor([0.1, 0.9, 0.5], dtype=F64)
    for event in ((), (1,), (5,), (2, 3), (1, 2, 2, 2)):
        x0, z, out = (normal((3, *event), stream(k), dtype=F64) for k in range(3))
        loss = denoising_score_matching(ScoreModel(Says(out), VPSDE()), x0, t=t, noise=z)
        torch.testing.assert_close(loss, (out - z).square().reshape(3, -1).mean(1), rtol=1e-14, atol=0)


# ---------------------------------------------------------------------------------------------------------------------
# Times, randomness, types


@pytest.mark.parametrize("times", TIMES)
@given(name=st.sampled_from(sorted(SDES)), n=st.integers(1, 300), seed=st.integers(0, 2**32))
def test_times_lie_in_the_interval(times: str, name: str, n: int, seed: int) -> None:
    t = TIMES[times](n, SDES[name], stream(seed))
    assert t.dtype == F64
    assert t.shape == (n,)
    assert float(t.min()) >= SDES[name].t_min
    assert float(t.max()) <= SDES[name].t_max


def test_times_where_the_signal_is_gone() -> None:
    sde = RectifiedFlow()
    for name in ("uniform", "low_discrepancy", "log_snr", "edm", "logit_normal"):
        t = TIMES[name](500, sde, stream(0))
        assert torch.isfinite(sde.log_snr(t)).sum() >= 499
    assert float(sde.log_snr(TIMES["log_snr"](500, sde, stream(0))).min()) >= -10
    with pytest.raises(ConfigError, match=r"times='importance' needs a finite log_snr .*RectifiedFlow.*lower t_max"):
        denoising_score_matching(
            ScoreModel(Says(torch.zeros_like), sde, predicts="v"), X0, times="importance", generator=stream(0)
        )


@given(n=st.integers(1, 300), seed=st.integers(0, 2**32))
def test_low_discrepancy_times_fill_every_stratum_once(n: int, seed: int) -> None:
    sde = VPSDE()
    u = (TIMES["low_discrepancy"](n, sde, stream(seed)) - sde.t_min) / (sde.t_max - sde.t_min)
    ordered = u.sort().values
    torch.testing.assert_close(ordered.diff(), torch.full((n - 1,), 1 / n, dtype=F64), rtol=0, atol=1e-12)
    assert -1e-12 <= float(ordered[0]) < 1 / n + 1e-12


def law(times: str, sde: GaussianSDE, t: np.ndarray) -> np.ndarray:
    """The distribution function of a law of times, from its definition."""
    low, high = sde.t_min, sde.t_max
    ends = sde.log_snr(torch.tensor([high, low], dtype=F64)).numpy()
    log_snr = sde.log_snr(torch.from_numpy(np.atleast_1d(t))).numpy()
    if times in ("uniform", "low_discrepancy"):
        return (t - low) / (high - low)
    if times in ("log_snr", "importance"):
        return (ends[1] - log_snr) / (ends[1] - ends[0])
    normal_law = {"edm": norm(-1.2, 1.2), "logit_normal": norm(0, 1)}[times]
    below, above = normal_law.cdf(-ends[1] / 2), normal_law.cdf(-ends[0] / 2)
    return (normal_law.cdf(-log_snr / 2) - below) / (above - below)


@pytest.mark.parametrize("name", ["vp", "ve"])
@pytest.mark.parametrize("times", TIMES)
def test_each_time_alone_has_its_law(times: str, name: str) -> None:
    sde = SDES[name]

    def p_value(count: int, salt: int) -> float:
        t = torch.cat([TIMES[times](1 + k % 16, sde, stream(7, salt, k))[-1:] for k in range(count)])
        return float(kstest(t.numpy(), lambda values: law(times, sde, values)).pvalue)

    assert p_value(1000, 0) > 1e-3 or p_value(8000, 1) > 1e-5


@pytest.mark.parametrize("times", sorted(set(TIMES) - {"uniform"}))
def test_stratified_times_fill_the_law_evenly(times: str) -> None:
    sde, n = VPSDE(), 64
    u = np.sort(law(times, sde, TIMES[times](n, sde, stream(3)).numpy()))
    np.testing.assert_allclose(np.diff(u), 1 / n, atol=1e-6)


def test_a_normal_law_of_your_own() -> None:
    sde = VESDE()
    t = log_normal(0.5, 0.1)(4000, sde, stream(0))
    log_sigma = sde.sigma(t).log()
    assert float(log_sigma.mean()) == pytest.approx(0.5, abs=1e-3)
    assert float(log_sigma.std()) == pytest.approx(0.1, rel=1e-2)


@pytest.mark.parametrize("weight", ["likelihood", "simple"])
def test_importance_keeps_the_mean_and_levels_the_likelihood_weight(weight: str) -> None:
    # Against zeros the noise's error is z^2: the loss is its weight, exactly, where z = 1.
    sde, n = VPSDE(t_min=1e-3), 20_000
    x0 = torch.zeros(n, 1, dtype=F64)
    model = ScoreModel(Says(torch.zeros_like), sde)
    both = [
        denoising_score_matching(model, x0, weight=weight, times=times, generator=stream(1), noise=torch.ones_like(x0))
        for times in ("low_discrepancy", "importance")
    ]
    means = [float(losses.mean()) for losses in both]
    assert means[1] == pytest.approx(means[0], rel=2e-3)
    if weight == "likelihood":
        ends = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=F64))
        level = float(ends[0] - ends[1]) / 2 / (sde.t_max - sde.t_min)
        torch.testing.assert_close(both[1], torch.full((n,), level, dtype=F64), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("weight", "same"),
    [(min_snr(1e12), "simple"), (p2(1.0, 0.0), "simple"), (sigmoid(60.0), "likelihood")],
)
def test_weights_reduce_to_others_at_their_limits(weight: Weight, same: str) -> None:
    sde = VPSDE()
    point = sde.at(torch.linspace(sde.t_min, sde.t_max, 50, dtype=F64))
    torch.testing.assert_close(weight(point, sde), WEIGHTS[same](point, sde), rtol=1e-12, atol=0)


def test_edm_weight_makes_the_edm_error_count_the_same_everywhere() -> None:
    sde = EDMSDE()
    t = torch.logspace(-2, 1.8, 9, dtype=F64)
    model = ScoreModel(Says(torch.zeros_like), sde, predicts="edm")
    factors = read_scalars(model, sde.at(t), edm(0.5)).multipliers.loss
    torch.testing.assert_close(factors, torch.ones(9, dtype=F64), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: min_snr(0.0), r"gamma must .*got 0"),
        (lambda: edm(-0.5), r"sigma_data must .*got -0.5"),
        (lambda: p2(k=0.0), r"k must .*got 0"),
        (lambda: p2(gamma=-1.0), r"gamma must .*got -1"),
        (lambda: sigmoid(math.nan), r"bias must .*got nan"),
        (lambda: log_normal(0.0, 0.0), r"std must .*got 0"),
    ],
)
def test_parameters_of_weights_and_laws_are_checked(make: Callable[[], object], message: str) -> None:
    with pytest.raises(DomainError, match=message):
        make()


def test_generator_alone_decides_and_neither_data_nor_state_is_touched() -> None:
    model, x0 = ScoreModel(Says(torch.zeros_like), VPSDE()), X0.float()
    before = x0.clone()
    first, again = (denoising_score_matching(model, x0, generator=stream(3)) for _ in range(2))
    assert torch.equal(first, again)
    generator = stream(3)
    denoising_score_matching(model, x0, generator=generator)
    assert not torch.equal(first, denoising_score_matching(model, x0, generator=generator))
    assert torch.equal(x0, before)
    # Against zeros the loss is the noise's own square: times and noise are drawn, and not from the same numbers.
    assert len(set(first.tolist())) == BATCH
    assert model.net.asked[1].unique().numel() == BATCH


def test_given_times_and_noise_need_no_generator() -> None:
    model = ScoreModel(Says(torch.zeros_like), VPSDE())
    loss = denoising_score_matching(model, X0, t=0.5, noise=Z)
    torch.testing.assert_close(loss, Z.square().mean((1, 2)), rtol=1e-14, atol=0)
    half = [denoising_score_matching(model, X0, generator=stream(3), **given) for given in ({"t": 0.5}, {"noise": Z})]
    assert half[0].shape == half[1].shape == (BATCH,)
    torch.testing.assert_close(half[1], loss, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_compute_in_float32(dtype: torch.dtype) -> None:
    model, x0 = ScoreModel(Says(lambda x: x.cos()), VPSDE(), predicts="v"), X0.to(dtype)
    low = denoising_score_matching(model, x0, generator=stream(4))
    high = denoising_score_matching(model, x0.float(), generator=stream(4))
    assert low.dtype == torch.float32
    assert torch.equal(low, high)


def test_a_bf16_network_is_asked_in_bf16_and_judged_in_float32() -> None:
    class Half(Says):
        def __init__(self) -> None:
            super().__init__(lambda x: x.cos())
            self.weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))

    narrow, wide = ScoreModel(Half(), VPSDE()), ScoreModel(Says(lambda x: x.cos()), VPSDE())
    loss = denoising_score_matching(narrow, X0.float(), generator=stream(4))
    assert narrow.net.asked[0].dtype == torch.bfloat16
    assert narrow.net.asked[1].dtype == torch.float32
    assert loss.dtype == torch.float32
    exact = denoising_score_matching(wide, X0.float(), generator=stream(4))
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0.02)


def test_float64_stays_and_float32_agrees_with_it() -> None:
    for predicts, weight in itertools.product(PARAMETERIZATIONS, WEIGHTS):
        model = ScoreModel(Says(lambda x: x.cos()), VPSDE(t_min=1e-3), predicts=predicts)
        t = torch.tensor([1e-3, 0.1, 0.5, 1.0], dtype=F64)
        wide, narrow = (denoising_score_matching(model, X0.to(d), weight=weight, t=t, noise=Z) for d in (F64, F32))
        assert (wide.dtype, narrow.dtype) == (F64, F32)
        torch.testing.assert_close(narrow.double(), wide, rtol=2e-5, atol=0)


@pytest.mark.parametrize("predicts", PARAMETERIZATIONS)
def test_loss_and_gradient_never_wait_for_the_device(predicts: str) -> None:
    model = ScoreModel(MLP(EVENT, width=4, depth=1), VPSDE(), predicts=predicts)
    with NoSync(), NoReading():
        denoising_score_matching(model, X0.float(), generator=stream(5)).mean().backward()
    assert float(model.net.output.weight.grad.abs().sum()) > 0


def test_weights_times_and_conditions_of_your_own() -> None:
    net = Says(torch.zeros_like)
    model = ScoreModel(net, VPSDE(), predicts="data")
    labels = torch.arange(BATCH)
    loss = denoising_score_matching(
        model,
        X0,
        weight=lambda point, sde: 2.0 * torch.ones_like(point.t),
        times=lambda n, sde, generator: torch.full((n,), 0.25, dtype=F64),
        generator=stream(0),
        cond={"label": labels},
    )
    torch.testing.assert_close(loss, 2 * X0.square().mean((1, 2)), rtol=1e-12, atol=0)
    assert torch.equal(net.asked[2], labels)
    torch.testing.assert_close(net.asked[1], VPSDE().log_snr(0.25).expand(BATCH).to(F64))


def test_an_empty_batch_calls_no_network() -> None:
    net = Says(torch.zeros_like)
    assert denoising_score_matching(ScoreModel(net, VPSDE()), X0[:0], generator=stream(0)).shape == (0,)
    assert net.asked == []


# ---------------------------------------------------------------------------------------------------------------------
# Errors


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"weight": "likelyhood"}, ConfigError, r"unknown weight 'likelyhood'; did you mean 'likelihood'\?"),
        ({"times": "unifrom"}, ConfigError, r"unknown time sampler 'unifrom'; did you mean 'uniform'\?"),
        ({"generator": None}, ConfigError, "generator must be a torch.Generator on the CPU, got None; make one"),
        ({"generator": 3}, ConfigError, "generator must be a torch.Generator on the CPU, got 3"),
        ({"t": 1.5}, DomainError, r"t must lie in \[1e-05, 1\], got 1.5"),
        ({"t": torch.zeros(BATCH, 1)}, ShapeError, r"t must have shape \(\) or \(4,\), got \(4, 1\)"),
        ({"t": torch.ones(BATCH, dtype=torch.long)}, DTypeError, "t must be floating"),
        ({"noise": Z.to("meta")}, ConfigError, "noise is on meta, x0 on cpu; move one of them"),
        ({"noise": Z[:2]}, ShapeError, r"noise must have the shape \(4, 3, 2\) of x0, got \(2, 3, 2\)"),
        ({"cond": {"label": torch.zeros(3)}}, ShapeError, r"cond\['label'\] must have a first dimension of 4"),
        ({"cond": [1]}, ConfigError, "cond must be a dict of tensors"),
        ({"x0": X0.long()}, DTypeError, r"x0 must have a real floating dtype, got torch.int64; convert it"),
        ({"x0": X0[0, 0, 0]}, ShapeError, r"x0 must have shape \(B, \*\)"),
        ({"x0": [1.0]}, DTypeError, "x0 must be a torch.Tensor, got list"),
        ({"model": nn.Identity()}, DTypeError, "model must be a ScoreModel, got Identity; wrap a network as"),
        ({"x0": X0.to("meta")}, ConfigError, "x0 is on meta, the model on cpu; move one of them"),
        ({"weight": lambda p, s: p.t / 0}, DomainError, "the weighted loss is not finite at t = 0.5; raise t_min"),
    ],
)
def test_errors_come_before_the_network(options: dict[str, object], kind: type[Exception], message: str) -> None:
    net = Says(torch.zeros_like)
    net.weight = nn.Parameter(torch.zeros(1))
    given: dict[str, object] = {"model": ScoreModel(net, VPSDE()), "x0": X0, "generator": stream(0)}
    if "t" not in options and "weight" in options and callable(options["weight"]):
        given["t"] = 0.5
    given |= options
    with pytest.raises(kind, match=message):
        denoising_score_matching(given.pop("model"), given.pop("x0"), **given)
    assert net.asked == []
