"""The adaptive probability flow: its error, its independence of the batch, its counts, its refusals."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers import MEAN, SDES, VARIANCE, Net, gaussian
from torch import Tensor

from scoresde import (
    EDMSDE,
    VESDE,
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    GaussianMixtureModel,
    GaussianModel,
    GaussianSDE,
    ProbabilityFlow,
    ScoreModel,
    ShapeError,
    SolverError,
    sample,
)
from scoresde.noise import normal, stream
from scoresde.sampling.flow import solve as follow
from scoresde.solvers.adaptive import Field, FlowResult
from scoresde.solvers.pairs import EMBEDDED

X = torch.linspace(-2.0, 2.0, 12, dtype=torch.float64).reshape(6, 2)
# The step controller bounds the error of each step; what adds up stays below this factor of the tolerance.
FACTOR = 10.0


def ends(sde: GaussianSDE) -> tuple[object, object]:
    return sde.at(sde.t_max), sde.at(sde.t_min)


def solve(model: ScoreModel, x: Tensor, flow: ProbabilityFlow, **options: object) -> FlowResult:
    start, end = ends(model.sde)
    return follow(flow, model, x, start, end, **options)


def plane(sde: GaussianSDE) -> GaussianModel:
    """Correlated data in the plane, so that the coordinates of a sample differ."""
    mean = torch.tensor([0.7, -0.4], dtype=torch.float64)
    return GaussianModel(sde=sde, mean=mean, covariance=torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64))


def mixture(sde: GaussianSDE, std: float = 0.6) -> GaussianMixtureModel:
    return GaussianMixtureModel(
        sde=sde, weights=torch.tensor([0.3, 0.7]), means=torch.tensor([[-1.5, 0.0], [1.0, 0.5]]), std=std
    )


@pytest.mark.parametrize("method", EMBEDDED)
@pytest.mark.parametrize("sde", SDES)
def test_the_error_is_of_the_size_of_the_tolerance(sde: str, method: str) -> None:
    model = plane(SDES[sde])
    x = X * float(SDES[sde].prior_std(SDES[sde].t_max))
    exact = model.flow(x, SDES[sde].t_max, SDES[sde].t_min)
    errors, evaluations, tolerances = [], [], (1e-3, 1e-5, 1e-7, *((1e-10,) if method == "dopri5" else ()))
    for tolerance in tolerances:
        result = solve(model, x, ProbabilityFlow(rtol=tolerance, atol=tolerance, method=method))
        errors.append(float(((result.x - exact).abs() / (1 + exact.abs())).max()))
        evaluations.append(float(result.nfe.double().mean()))
        assert errors[-1] < FACTOR * tolerance
    assert errors[-1] > 0
    assert evaluations == sorted(evaluations)


@pytest.mark.parametrize("method", EMBEDDED)
def test_the_error_estimate_is_solution_minus_embedded_solution(method: str) -> None:
    """Consistency of the coefficients: rows sum to their nodes, the last to 1, the error weights to 0.

    The solution satisfies the quadrature conditions of its order, an embedded one those of its own, and no more: one
    less, but 5 and 3 for the two of order 8.
    """
    pair = EMBEDDED[method]
    nodes = [0.0, *(sum(row) for row in pair.stages)]
    solution = [*pair.stages[-1], 0.0]
    errors = {pair.order - 1: pair.error} if pair.second is None else {5: pair.error, 3: pair.second}
    assert nodes[-1] == pytest.approx(1, abs=1e-14)

    def moment(weights: list[float], k: int) -> float:
        return sum(w * c ** (k - 1) for w, c in zip(weights, nodes, strict=True))

    for k in range(1, pair.order + 1):
        assert moment(solution, k) == pytest.approx(1 / k, abs=1e-14)
    for order, error in errors.items():
        embedded = [w - e for w, e in zip(solution, error, strict=True)]
        for k in range(1, order + 1):
            assert moment(embedded, k) == pytest.approx(1 / k, abs=1e-14)
        assert abs(moment(embedded, order + 1) - 1 / (order + 1)) > 1e-4


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("method", EMBEDDED)
def test_a_batch_equals_its_members_alone(method: str, dtype: torch.dtype, tolerance: float) -> None:
    """Near and far starts, so that samples take different steps and leave the batch at different times."""
    model, flow = mixture(VESDE(), std=0.05), ProbabilityFlow(rtol=1e-5, atol=1e-5, method=method)
    x = (X * torch.tensor([[0.1], [50.0], [1.0], [20.0], [300.0], [5.0]])).to(dtype)
    together = solve(model, x, flow)
    assert len(set(together.nfe.tolist())) > 1
    for k in range(len(x)):
        alone = solve(model, x[k : k + 1], flow)
        torch.testing.assert_close(alone.x[0], together.x[k], rtol=tolerance, atol=tolerance)
        if dtype == torch.float64:
            for field in ("nfe", "accepted", "rejected"):
                assert getattr(alone, field)[0] == getattr(together, field)[k], field
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(solve(model, x[order], flow).x, together.x[order], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("method", EMBEDDED)
def test_the_integrator_itself_gives_the_same_in_any_batch(method: str, dtype: torch.dtype, tolerance: float) -> None:
    """On a field without sums over the batch: every member's steps, and its states but for rounding."""
    rate = torch.linspace(0.5, 30.0, 23, dtype=dtype)

    def field(rates: Tensor) -> Field:
        def stages(u: Tensor, rows: Tensor):
            here, u = rates[rows, None], u.to(dtype)[..., None]
            return lambda i, y: torch.sin(here * y) * torch.cos(3 * u[i])

        return Field(stages, 1.0, 0.1, (2.0, 0.5), lambda u: u, "u")

    x = torch.linspace(-3.0, 3.0, 69, dtype=dtype).reshape(23, 3)
    flow = ProbabilityFlow(rtol=1e-5, atol=1e-5, method=method)
    together = flow.integrate(field(rate), x)
    assert len(set(together.accepted.tolist())) > 5
    assert int(together.rejected.sum()) > 0
    for part in ([4], [22, 0, 9], list(range(7, 20))):
        some = flow.integrate(field(rate[part]), x[part])
        torch.testing.assert_close(some.x, together.x[part], rtol=tolerance, atol=tolerance)
        for name in ("nfe", "accepted", "rejected"):
            assert torch.equal(getattr(some, name), getattr(together, name)[part]), name


def test_each_sample_keeps_its_own_condition_to_the_end() -> None:
    """Samples with other conditions leave the batch at other times; the rest keep theirs."""
    scale = torch.tensor([0.1, 3.0, 1.0, 6.0, 0.5, 2.0], dtype=torch.float64)

    def net(x: Tensor, log_snr: Tensor, scale: Tensor) -> Tensor:
        return torch.sin(scale[:, None] * x)

    model, flow = ScoreModel(net, VPSDE(), predicts="data"), ProbabilityFlow(rtol=1e-4, atol=1e-4)
    together = solve(model, X, flow, cond={"scale": scale})
    assert len(set(together.accepted.tolist())) > 2
    for k in range(len(X)):
        alone = solve(model, X[k : k + 1], flow, cond={"scale": scale[k : k + 1]})
        torch.testing.assert_close(alone.x[0], together.x[k], rtol=1e-12, atol=1e-12)


def test_evaluations_are_counted_sample_by_sample() -> None:
    net = Net(dtype=torch.float64)
    net.act = lambda x, k: torch.sin(3 * x)
    for method, stages in (("dopri5", 6), ("bosh3", 3)):
        net.calls.clear()
        result = solve(ScoreModel(net, VPSDE()), X, ProbabilityFlow(rtol=1e-4, atol=1e-4, method=method))
        # First same as last: one evaluation at the start, then the stages of each step, accepted or not.
        assert torch.equal(result.nfe, 1 + stages * (result.accepted + result.rejected))
        assert int(result.nfe.sum()) == sum(shape[0] for shape, _ in net.calls)
        assert int(result.rejected.sum()) > 0


@pytest.mark.parametrize("sde", SDES)
def test_the_two_directions_invert_each_other(sde: str) -> None:
    model, flow = mixture(SDES[sde]), ProbabilityFlow(rtol=1e-9, atol=1e-9)
    start, end = ends(SDES[sde])
    down = follow(flow, model, X, end, start)
    back = follow(flow, model, down.x, start, end)
    assert float((down.x - X).abs().max()) > 0.1
    torch.testing.assert_close(back.x, X, rtol=1e-6, atol=1e-6)


def test_no_interval_is_no_step() -> None:
    net = Net()
    result = follow(ProbabilityFlow(), ScoreModel(net, VPSDE()), X, VPSDE().at(0.5), VPSDE().at(0.5))
    torch.testing.assert_close(result.x, X, rtol=1e-15, atol=0)
    assert (net.calls, result.nfe.sum()) == ([], 0)
    empty = solve(ScoreModel(net, VPSDE()), X[:0], ProbabilityFlow())
    assert empty.x.shape == (0, 2)
    assert net.calls == []


@pytest.mark.parametrize("sde", [VESDE(), EDMSDE(), VESDE(sigma_max=1000.0)], ids=["50", "80", "1000"])
def test_a_loose_tolerance_from_a_large_sigma_is_kept(sde: GaussianSDE) -> None:
    """Where a solver in sigma takes its relative tolerance of a state of sigma's size and stops early, wrong."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    ring = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    model = GaussianMixtureModel(sde=sde, weights=torch.arange(1.0, 9.0), means=ring, std=0.1)
    x = float(sde.sigma(sde.t_max)) * normal((64, 2), stream(0, "ring"), dtype=torch.float64)
    exact = solve(model, x, ProbabilityFlow(rtol=1e-10, atol=1e-10)).x
    loose = solve(model, x, ProbabilityFlow(rtol=1e-3, atol=1e-3))
    errors = (loose.x - exact).square().mean(1).sqrt()
    assert float(errors.square().mean().sqrt()) < FACTOR * 1e-3
    assert float(errors.median()) < 1e-3
    assert int(loose.nfe.min()) > 25
    # The exact flow ends on the ring, in modes of width 0.1.
    assert float((torch.cdist(exact, ring).min(1).values > 0.5).double().mean()) < 0.01


# --- refusals


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"rtol": 0.0}, DomainError, r"rtol must lie in \(0, inf\), got 0"),
        ({"atol": -1e-3}, DomainError, "atol must lie in"),
        ({"rtol": math.nan}, DomainError, "rtol"),
        ({"atol": math.inf}, DomainError, "atol"),
        ({"rtol": "1e-3"}, DTypeError, "rtol must be a number"),
        ({"max_steps": 0}, DomainError, "max_steps must be at least 1"),
        ({"max_steps": 5.0}, DTypeError, "max_steps must be an integer"),
        ({"method": "dopri8"}, ConfigError, "did you mean 'dopri5'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], kind, words: str) -> None:
    with pytest.raises(kind, match=words):
        ProbabilityFlow(**options)


def test_tolerances_below_the_states_epsilon_are_refused_before_any_call() -> None:
    net = Net()
    with pytest.raises(DomainError, match=r"at least 1\.19209e-07 for torch\.float32, got 1e-08, 0\.001"):
        solve(ScoreModel(net, VPSDE()), X.float(), ProbabilityFlow(rtol=1e-8, atol=1e-3))
    assert net.calls == []
    solve(gaussian(), X[:, 0], ProbabilityFlow(rtol=1e-8, atol=1e-8))


def failing(act) -> tuple[Net, ScoreModel]:
    net = Net(act, dtype=torch.float64)
    return net, ScoreModel(net, VPSDE())


def test_a_prediction_that_is_not_finite_stops_the_flow() -> None:
    _, model = failing(lambda x, k: torch.where((x[:, :1] > 1.0) & (torch.tensor(k > 10)), math.nan, 1.0) * x)
    with pytest.raises(
        SolverError, match=r"stopped at t = 0\.\d+ .* for \d+\.\d% .*: the prediction is not finite"
    ) as e:
        solve(model, X, ProbabilityFlow())
    assert e.value.partial.shape == X.shape
    assert bool(torch.isfinite(e.value.partial).all())


def test_a_prediction_that_is_never_finite_stops_the_first_step() -> None:
    model = ScoreModel.from_callable(lambda x, t: math.nan * x, VPSDE())
    with pytest.raises(
        SolverError, match=r"stopped at t = 1 .* for 100\.0% .*: the prediction is not finite"
    ) as caught:
        solve(model, X, ProbabilityFlow())
    assert caught.value.partial.shape == X.shape
    assert bool(torch.isfinite(caught.value.partial).all())


def test_a_step_that_underflows_stops_the_flow() -> None:
    """A pole of the slope at log_snr = 0, so at t = 0.25896 (VP): no step across it is short enough."""

    def act(x: Tensor, k: int) -> Tensor:
        # A stage may fall on the pole itself, by the rounding of the machine.
        return x + 1 / (net.calls[-1][1] or 1e-30)

    net, model = failing(act)
    with pytest.raises(
        SolverError, match=r"stopped at t = 0\.25896 .* = 0\.5\) for 100\.0% .*: the step underflows"
    ) as e:
        solve(model, X[:1], ProbabilityFlow())
    assert e.value.partial.shape == (1, 2)
    assert float(e.value.partial.abs().max()) < 10


def test_too_many_steps_stop_the_flow_and_just_enough_do_not() -> None:
    model, flow = plane(VPSDE()), ProbabilityFlow(rtol=1e-8, atol=1e-8)
    result = solve(model, X, flow)
    needed = int((result.accepted + result.rejected).max())
    enough = ProbabilityFlow(rtol=1e-8, atol=1e-8, max_steps=needed)
    assert torch.equal(solve(model, X, enough).x, result.x)
    with pytest.raises(SolverError, match=f"max_steps = {needed - 1} is used up; loosen rtol and atol"):
        solve(model, X, ProbabilityFlow(rtol=1e-8, atol=1e-8, max_steps=needed - 1))


# --- through sample


def test_sample_starts_at_the_prior_and_ends_with_the_denoised_state() -> None:
    model, sde = gaussian(), VPSDE()
    flow = ProbabilityFlow(rtol=1e-9, atol=1e-9)
    z = X[:, 0]
    results = {
        final: sample(model, (6,), solver=flow, noise=[z], final=final, dtype=torch.float64, full_output=True)
        for final in ("sample", "denoise")
    }
    first, last = sde.at(sde.t_max), sde.at(sde.t_min)
    start = model.moments.at(float(first.alpha), float(first.sigma)).from_noise(z)
    exact = model.flow(start, sde.t_max, sde.t_min)
    torch.testing.assert_close(results["sample"].x, exact, rtol=0, atol=1e-7)
    a, s = float(last.alpha), float(last.sigma)
    clean = MEAN + a * VARIANCE / (a**2 * VARIANCE + s**2) * (exact - a * MEAN)
    torch.testing.assert_close(results["denoise"].x, clean, rtol=0, atol=1e-7)
    assert torch.equal(results["denoise"].nfe, results["sample"].nfe + 1)
    assert results["sample"].times == (1.0, 1e-5)
    assert results["sample"].status.tolist() == [0] * 6
    between = torch.tensor([0.8, 0.3], dtype=torch.float64)
    part = sample(model, x_init=z, solver=flow, times=between, final="sample")
    torch.testing.assert_close(part, model.flow(z, 0.8, 0.3), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("times", "kind", "words"),
    [
        (torch.tensor([0.3, 0.8]), DomainError, r"flip\(0\)"),
        (torch.tensor([1.5, 0.1]), DomainError, "times must lie in"),
        (torch.tensor([math.nan, 0.1]), DomainError, "NaN"),
        (torch.tensor([1, 0]), DTypeError, "times must be a floating tensor"),
        (torch.tensor([[1.0, 0.5]]), ShapeError, "times must be a vector"),
        (torch.tensor([0.9, 0.5, 0.1]), ConfigError, r"its own steps: times= gives its two ends, got 3 times; use a"),
    ],
    ids=["rising", "out of range", "NaN", "integers", "matrix", "more than two"],
)
def test_ends_of_the_adaptive_flow_are_checked_before_any_call(times: Tensor, kind, words: str) -> None:
    net = Net()
    with pytest.raises(kind, match=words):
        sample(ScoreModel(net, VPSDE()), (2, 2), solver="probability_flow", times=times, seed=0)
    assert net.calls == []


@pytest.mark.parametrize(
    "options",
    [{"steps": 5}, {"trajectory": True}, {"differentiable": True}, {"on_step": print}, {"on_nonfinite": "freeze"}],
    ids=lambda o: next(iter(o)),
)
def test_what_the_adaptive_flow_cannot_do_is_refused(options: dict[str, object]) -> None:
    net = Net()
    with pytest.raises(ConfigError, match="adaptive"):
        sample(ScoreModel(net, VPSDE()), (2, 2), solver="probability_flow", seed=0, **options)
    assert net.calls == []


def test_the_error_of_an_integral_holds_what_the_states_error_will_add() -> None:
    """dy/du = y, and an integral I of 0: its own error is 0, and with V = 3 y that of the result is 3 |dy| a step."""

    def stages(u: Tensor, rows: Tensor):
        return lambda i, y: torch.stack([y[:, 0], torch.zeros_like(y[:, 1])], 1)

    start = torch.tensor([[1.0, 0.0], [-2.0, 0.0]], dtype=torch.float64)
    plain = Field(stages, 0.0, 1.0, (1.0, 1.0), float, "u", integrals=1)
    weighed = replace(plain, gradient=lambda y, slope, u: torch.full_like(y[:, :1], 3.0))
    flow = ProbabilityFlow(rtol=1e-4, atol=1e-4)
    assert flow.integrate(plain, start).error.tolist() == [[0.0], [0.0]]
    result = flow.integrate(weighed, start)
    true = (result.x[:, :1] - start[:, :1] * math.e).abs()
    # The embedded solution's error, of one order less, is above that of the solution; both scale with the state.
    assert bool((result.error > 3 * true).all())
    assert bool((result.error < 3e-3).all())
    assert result.x[:, 1].tolist() == [0.0, 0.0]


def test_an_integrals_own_error_bounds_the_step() -> None:
    """I' = cos(40 u) beside a state that never moves: without a check of I one step would do."""

    def stages(u: Tensor, rows: Tensor):
        return lambda i, y: torch.stack([torch.zeros_like(y[:, 0]), (40 * u[i].expand(len(y))).cos()], 1)

    field = Field(stages, 0.0, 1.0, (1.0, 1.0), float, "u", integrals=1)
    result = ProbabilityFlow(rtol=1e-6, atol=1e-6).integrate(field, torch.zeros(2, 2, dtype=torch.float64))
    exact = math.sin(40) / 40
    torch.testing.assert_close(result.x[:, 1], torch.full((2,), exact, dtype=torch.float64), rtol=0, atol=1e-5)
    assert bool((result.error[:, 0] < 1e-4).all())
    assert int(result.accepted[0]) > 10
