"""Encoding and decoding against exact flows: maps, round trips, conditions, transforms, faults."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import Net, slope
from scipy.special import ndtr
from torch import Tensor

from scoresde import (
    EDMSDE,
    VESDE,
    VPSDE,
    Affine,
    Compose,
    ConfigError,
    Dequantise,
    DomainError,
    DTypeError,
    GaussianMixtureModel,
    GaussianModel,
    GaussianSDE,
    ProbabilityFlow,
    RectifiedFlow,
    SampleResult,
    ScoreModel,
    ShapeError,
    Solver,
    SubVPSDE,
    decode,
    encode,
    sample,
    solvers,
)
from scoresde.noise import normal, stream
from scoresde.sampling import bridge
from scoresde.solvers import grids
from scoresde.solvers.adaptive import FlowSolver
from scoresde.solvers.runge_kutta import EULER
from scoresde.solvers.tableau import Tableau

F64 = torch.float64
SHARES, MEANS, STDS = np.array([0.35, 0.65]), np.array([-1.0, 0.8]), np.array([0.45, 0.6])
ALL = [VPSDE(), SubVPSDE(), VESDE(), EDMSDE(), RectifiedFlow()]
TIGHT = ProbabilityFlow(rtol=1e-9, atol=1e-9)


def gaussian(sde: GaussianSDE) -> GaussianModel:
    covariance = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=F64)
    return GaussianModel(sde=sde, mean=torch.tensor([1.0, -2.0], dtype=F64), covariance=covariance)


def mixture(sde: GaussianSDE) -> GaussianMixtureModel:
    weights, means, std = (torch.from_numpy(c) for c in (SHARES, MEANS, STDS))
    return GaussianMixtureModel(sde=sde, weights=weights, means=means, std=std)


X = torch.tensor([1.0, -2.0], dtype=F64) + 0.6 * normal((6, 2), stream(0), dtype=F64)
POINTS = torch.linspace(-2.2, 2.2, 9, dtype=F64)


def levels(x: Tensor, sde: GaussianSDE, t: float) -> np.ndarray:
    """The mixture's distribution function at time t: the flow of one coordinate keeps it."""
    a, s = float(sde.alpha(t)), float(sde.sigma(t))
    return ndtr((x.numpy()[:, None] - a * MEANS) / np.hypot(a * STDS, s)) @ SHARES


@pytest.mark.parametrize("sde", ALL, ids=lambda s: type(s).__name__)
def test_the_adaptive_flow_is_the_exact_one(sde: GaussianSDE) -> None:
    model = gaussian(sde)
    z = encode(model, X, solver=TIGHT)
    scale = float(model.sde.sigma(sde.t_max))
    torch.testing.assert_close(z, model.flow(X, sde.t_min, sde.t_max), rtol=0, atol=1e-7 * scale)
    torch.testing.assert_close(decode(model, z, solver=TIGHT), X, rtol=0, atol=1e-6)
    # Between two other times, and back.
    times = torch.tensor([0.7, 0.02], dtype=F64)
    z = encode(model, X, solver=TIGHT, times=times)
    torch.testing.assert_close(z, model.flow(X, 0.02, 0.7), rtol=0, atol=1e-7)
    torch.testing.assert_close(decode(model, z, solver=TIGHT, times=times), X, rtol=0, atol=1e-6)
    # A mixture: each point keeps its quantile.
    model = mixture(sde)
    z = encode(model, POINTS, solver=TIGHT)
    np.testing.assert_allclose(levels(z, sde, sde.t_max), levels(POINTS, sde, sde.t_min), rtol=0, atol=1e-7)
    torch.testing.assert_close(decode(model, z, solver=TIGHT), POINTS, rtol=0, atol=1e-6)


def test_the_default_inverts_to_its_tolerance() -> None:
    model, errors = mixture(VPSDE()), []
    for tolerance in (1e-3, 1e-5, 1e-7):
        flow = ProbabilityFlow(rtol=tolerance, atol=tolerance)
        errors.append(float((decode(model, encode(model, POINTS, solver=flow), solver=flow) - POINTS).abs().max()))
        assert errors[-1] < 300 * tolerance
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    default = float((decode(model, encode(model, POINTS)) - POINTS).abs().max())
    assert default == pytest.approx(errors[1], rel=1e-9)
    single = decode(model, encode(model, POINTS.float()))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, POINTS.float(), rtol=0, atol=3e-3)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
    "solver",
    [
        solvers.heun(),
        solvers.dpmpp_2m(),
        solvers.multistep(prediction="flow", variable="rectified"),
        solvers.heun(variable="t"),
    ],
    ids=lambda s: s.name,
)
def test_a_fixed_solver_runs_backwards_at_its_order(solver: Solver, sde: GaussianSDE) -> None:
    model, away, back, steps = gaussian(sde), [], [], (80, 160)
    for n in steps:
        z = encode(model, X, solver=solver, steps=n)
        exact = model.flow(X, sde.t_min, sde.t_max)
        away.append(float((z - exact).norm() / exact.norm()))
        back.append(float((decode(model, z, solver=solver, steps=n) - X).norm()))
    assert slope(away, steps) == pytest.approx(2.0, abs=0.2)
    assert away[-1] < 2e-3
    assert slope(back, steps) > 1.8


@pytest.mark.parametrize("solver", [bridge.ScipyODE(rtol=1e-8, atol=1e-8), bridge.TorchDiffEq(rtol=1e-8, atol=1e-8)])
def test_other_solvers_of_the_flow_serve_too(solver: FlowSolver) -> None:
    model = gaussian(VPSDE())
    z = encode(model, X[:2], solver=solver)
    torch.testing.assert_close(z, model.flow(X[:2], 1e-5, 1.0), rtol=0, atol=1e-6)
    torch.testing.assert_close(decode(model, z, solver=solver), X[:2], rtol=0, atol=1e-5)


def test_encoding_with_a_table_is_the_table_on_the_reversed_times() -> None:
    """Euler's method in nu upwards, written out."""
    sde, model = VESDE(), gaussian(VESDE())
    times = torch.tensor([0.9, 0.6, 0.3, 0.05], dtype=F64)
    euler = solvers.runge_kutta(EULER, variable="nu")
    got = encode(model, X, solver=euler, times=times)
    x = X
    for s, t in ((0.05, 0.3), (0.3, 0.6), (0.6, 0.9)):
        x = x + (sde.sigma(t) - sde.sigma(s)) * model(x, s).noise
    torch.testing.assert_close(got, x, rtol=1e-12, atol=1e-12)
    # A grid, and the grid's own number of steps.
    torch.testing.assert_close(
        encode(model, X, solver=euler, times=grids.karras(7)),
        encode(model, X, solver=euler, times=grids.karras(), steps=7),
    )


def test_decoding_is_sampling_from_the_latent() -> None:
    model = gaussian(VPSDE())
    z = encode(model, X, solver="heun", steps=9)
    expected = sample(model, x_init=z, solver="heun", steps=9, final="sample")
    assert torch.equal(decode(model, z, solver="heun", steps=9), expected)


def test_conditions_go_with_their_samples() -> None:
    """Each sample's own mean: the exact score of N(m, 0.25) under VE, whose flow is known."""

    def score(x: Tensor, t: Tensor, m: Tensor) -> Tensor:
        return -(x - m) / (0.25 + VESDE().sigma(t).square())

    model = ScoreModel.from_callable(score, VESDE())
    m = torch.tensor([0.0, 3.0, -1.0, 0.5, 2.0], dtype=F64)
    x = m + torch.linspace(-0.5, 0.5, 5, dtype=F64)
    ratio = math.sqrt((0.25 + 2500.0) / (0.25 + float(VESDE().sigma(1e-5)) ** 2))
    for chunk in (None, 2):
        z = encode(model, x, cond={"m": m}, chunk_size=chunk, solver=TIGHT)
        torch.testing.assert_close(z, m + ratio * (x - m), rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(
            decode(model, z, cond={"m": m}, chunk_size=chunk, solver=TIGHT), x, rtol=0, atol=1e-6
        )
    fixed = encode(model, x, cond={"m": m}, solver="heun", steps=8)
    alone = encode(model, x[3:4], cond={"m": m[3:4]}, solver="heun", steps=8)
    torch.testing.assert_close(fixed[3:4], alone, rtol=1e-13, atol=0)


def test_the_transform_is_applied_and_undone() -> None:
    plain = gaussian(VPSDE())
    model = ScoreModel(plain.net, VPSDE(), predicts="v", transform=Affine(shift=5.0, scale=(2.0, 0.5)))
    data = model.transform.inverse(X)
    for options in ({}, {"solver": "heun", "steps": 12}):
        z = encode(model, data, **options)
        torch.testing.assert_close(z, encode(plain, X, **options), rtol=1e-12, atol=1e-12)
        expected = model.transform.inverse(decode(plain, z, **options))
        torch.testing.assert_close(decode(model, z, **options), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(decode(model, encode(model, data)), data, rtol=0, atol=1e-4)
    assert model.transform is not None


def test_a_transform_that_draws_takes_the_generator() -> None:
    plain = gaussian(VPSDE())
    transform = Compose((Dequantise(9, -4.0, 4.0), Affine(scale=2.0)))
    model = ScoreModel(plain.net, VPSDE(), predicts="v", transform=transform)
    lattice = X.round()
    one, two, other = (encode(model, lattice, generator=stream(k)) for k in (3, 3, 4))
    assert torch.equal(one, two)
    assert float((one - other).abs().max()) > 1e-3
    # The nearest level takes the noise of the bin and the tolerance away.
    assert torch.equal(decode(model, one), lattice)
    with pytest.raises(ConfigError, match="Dequantise draws noise: pass generator="):
        encode(model, lattice)


def test_another_sde_carries_the_model_over() -> None:
    model = gaussian(VPSDE())
    rectified = RectifiedFlow()
    z = encode(model, X, sde=rectified, solver=TIGHT)
    torch.testing.assert_close(z, gaussian(rectified).flow(X, rectified.t_min, 1.0), rtol=0, atol=1e-7)
    torch.testing.assert_close(decode(model, z, sde=rectified, solver=TIGHT), X, rtol=0, atol=1e-6)


def test_a_batch_is_its_members_and_nothing_of_the_callers_moves() -> None:
    net = Net()
    model = ScoreModel(net, VPSDE())
    net.train()
    x = X.float().requires_grad_()
    kept = x.detach().clone()
    whole = encode(model, x)
    assert not whole.requires_grad
    assert x.grad is None
    assert torch.equal(x.detach(), kept)
    assert net.training
    assert True not in net.modes
    assert torch.equal(encode(model, x, chunk_size=4), whole)
    torch.testing.assert_close(encode(model, x[2:3]), whole[2:3], rtol=1e-6, atol=1e-6)
    half = encode(model, x.detach().to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), whole, rtol=0.03, atol=0.05)


def test_what_it_reports() -> None:
    net = Net()
    model = ScoreModel(net, VPSDE())
    up = encode(model, X.float(), full_output=True)
    assert isinstance(up, SampleResult)
    assert up.times == (1e-5, 1.0)
    assert up.seed is None
    assert torch.equal(up.nfe, 1 + 6 * (up.accepted + up.rejected))
    assert up.status.tolist() == [0] * 6
    down = decode(model, up.x, full_output=True)
    assert down.times == (1.0, 1e-5)
    assert down.seed is None
    net.calls.clear()
    fixed = encode(model, X.float(), solver="heun", steps=5, full_output=True)
    assert fixed.nfe.tolist() == [len(net.calls)] * 6 == [10] * 6
    assert (fixed.times[0], fixed.times[-1]) == (1e-5, 1.0)
    net.calls.clear()
    for solver in ("probability_flow", "heun"):
        assert encode(model, torch.zeros(0, 2), solver=solver).shape == (0, 2)
        assert decode(model, torch.zeros(0, 2), solver=solver).shape == (0, 2)
    assert net.calls == []


def one_way(sde: GaussianSDE, times: Tensor) -> Tableau:
    """A solver whose weights exist downwards only."""
    table = solvers.ancestral(eta=0.0).build(sde, times)
    factor = float((times[0] - times[1]).sqrt())
    rows = tuple(replace(row, state=(row.state[0] * factor / factor, row.state[1])) for row in table.rows)
    return replace(table, rows=rows)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"solver": "ancestral"}, ConfigError, "needs|belong together only without noise, and 'ancestral"),
        ({"solver": solvers.ddim(0.5)}, ConfigError, "use a deterministic solver"),
        ({"solver": solvers.heun()(VPSDE(), grids.uniform(4))}, ConfigError, "a built Tableau runs one way only"),
        ({"solver": solvers.heun}, DTypeError, "solver must be a name, a Solver or a solver of the probability flow"),
        ({"solver": bridge.TorchSDE()}, DTypeError, "a Solver or a solver of the probability flow"),
        ({"solver": "heum"}, ConfigError, "did you mean 'heun'"),
        ({"steps": 5}, ConfigError, "chooses its own steps; leave out steps= and grids"),
        ({"times": grids.uniform(4)}, ConfigError, "chooses its own steps; leave out steps= and grids"),
        ({"times": torch.tensor([1.0, 0.0])}, ConfigError, "times must end above 0: noise-free data have no score"),
        ({"times": torch.tensor([1.0, 0.0]), "solver": "heun"}, ConfigError, "times must end above 0"),
        ({"times": torch.tensor([0.1, 1.0])}, DomainError, r"these increase: use times\.flip\(0\)"),
        ({"times": torch.tensor([2.0, 0.1])}, DomainError, "times must lie in"),
        ({"times": torch.tensor([1.0, 0.1]), "steps": 3, "solver": "heun"}, ConfigError, "steps= or a tensor of times"),
        ({"steps": 0, "solver": "heun"}, DomainError, "steps must be at least 1"),
        ({"chunk_size": 0}, DomainError, "chunk_size must be at least 1"),
        ({"cond": {"m": torch.zeros(5)}}, ShapeError, r"cond\['m'\] must have a first dimension of 6"),
        ({"solver": ProbabilityFlow(rtol=1e-17)}, DomainError, "rtol and atol must be at least"),
    ],
)
def test_wrong_options_are_refused_in_both_directions(change: dict[str, object], kind, words: str) -> None:
    net = Net()
    for call in (encode, decode):
        with pytest.raises(kind, match=words):
            call(ScoreModel(net, VPSDE()), X, **change)
    assert net.calls == []


@pytest.mark.parametrize(
    ("x", "kind", "words"),
    [
        ([1.0, 2.0], DTypeError, "must be a torch.Tensor"),
        (torch.zeros(3, 2, dtype=torch.long), DTypeError, "must have a real floating dtype"),
        (torch.tensor([[1.0, math.nan]]), DomainError, r"has 1 non-finite values of 2, the first at index \(0, 1\)"),
        (torch.zeros(3, 5), ShapeError, r"must be \(B, \*\) with the event \(2,\) of the model's data, got \(3, 5\)"),
        (torch.tensor(1.0), ShapeError, "0-d tensor"),
    ],
)
def test_wrong_tensors_are_refused(x: object, kind, words: str) -> None:
    for call in (encode, decode):
        with pytest.raises(kind, match=words):
            call(gaussian(VPSDE()), x)


def test_other_refusals() -> None:
    with pytest.raises(
        DTypeError, match=r"model must be a ScoreModel, got function; wrap .* ScoreModel\.from_callable"
    ):
        encode(lambda x, t: -x, X)
    # A method with a root of the step: finite downwards, refused upwards before any call.
    net = Net()
    solver = Solver("one way", one_way)
    assert bool(torch.isfinite(decode(ScoreModel(net, VPSDE()), X, solver=solver, steps=3)).all())
    net.calls.clear()
    with pytest.raises(DomainError, match="'one way' cannot run upwards on these times, use the adaptive flow"):
        encode(ScoreModel(net, VPSDE()), X, solver=solver, steps=3)
    assert net.calls == []
