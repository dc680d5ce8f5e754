"""Tables under linear SDEs: their law is what the sampler does, and they tend to the data."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import slope
from linear_cases import SDES, draw, exact, full, moments, sampled_law
from torch import Tensor

from scoresde import (
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    GaussianModel,
    GroupedSDE,
    Langevin,
    LinearMixtureModel,
    LinearModel,
    MatrixSDE,
    Picard,
    ProbabilityFlow,
    SampleResult,
    ShapeError,
    build_blocks,
    build_table,
    log_likelihood,
    nn,
    sample,
    solvers,
)
from scoresde.solvers.block_table import BlockTableau

GROUPED = ("rates", "blur", "levels")
CARRIED: dict[str, tuple[object, ...]] = {
    **{name: ("ancestral", "ddim", "dpmpp_2m", "unipc", "flow_abm", "sa_solver", "heun") for name in GROUPED},
    **{
        name: ("ancestral", "ddim", "euler_maruyama", solvers.ancestral(eta=0.5), solvers.splitting())
        for name in ("matrix", "langevin")
    },
}
CASES = [(name, solver) for name, carried in CARRIED.items() for solver in carried]


def name_case(value: object) -> str:
    return value if isinstance(value, str) else str(getattr(value, "name", value))


@pytest.mark.parametrize(("name", "solver"), CASES, ids=name_case)
def test_the_law_of_a_table_is_what_the_sampler_does(name: str, solver: object) -> None:
    model = exact(name)
    for final in ("denoise", "sample", "mean"):
        table = build_blocks(model.linear, solver, steps=6, final=final)
        mean, spread = table.block_law(moments(model))
        got, own = sampled_law(model, table)
        scale = 1 + float(spread.abs().max())
        assert float((mean - got).abs().max()) < 1e-10 * scale
        assert float((spread - own).abs().max()) < 1e-10 * scale


@pytest.mark.parametrize(("name", "solver"), [case for case in CASES if case[1] != "sa_solver"], ids=name_case)
def test_more_steps_lead_to_the_data_at_the_declared_order(name: str, solver: object) -> None:
    model = exact(name)
    counts = (80, 160)
    laws = [build_blocks(model.linear, solver, steps=n, final="sample").block_law(moments(model)) for n in counts]
    want = full(model.linear.prior(model.linear.t_min, moments(model)))
    errors = [float((spread - want).abs().max()) for _, spread in laws]
    order = slope(errors, counts)
    table = build_blocks(model.linear, solver, steps=4)
    declared = table.order.deterministic or table.order.weak or 0.0
    assert errors[1] < 0.35
    # Groups that enter late begin their steps there, and a grid in the mean log-SNR is no group's own.
    assert order > min(declared, 1.0 if name == "levels" else 2.0) - 0.45


def test_equal_rates_are_the_scalar_table() -> None:
    sde, covariance = GroupedSDE.with_rates((1.0, 1.0)), torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
    linear = LinearMixtureModel(sde=sde, weights=torch.ones(1), means=torch.zeros(1, 2), covariances=covariance)
    scalar = GaussianModel(sde=VPSDE(), mean=torch.zeros(2), covariance=covariance)
    times = torch.linspace(1.0, 1e-3, 9, dtype=torch.float64)
    for solver in ("ancestral", "dpmpp_2m", "unipc"):
        one, two = (sample(m, 50, solver=solver, times=times, seed=1, dtype=torch.float64) for m in (linear, scalar))
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-9)


def test_a_matrix_that_commutes_is_the_groups_of_its_eigenvectors() -> None:
    # F = -V diag(r) V^T/2 is VP at the rates r in the basis V.
    vectors, _ = torch.linalg.qr(draw(3, 3, key="basis"))
    rates = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    matrix = MatrixSDE(-0.5 * (vectors * rates) @ vectors.T, t_min=1e-4)
    groups = GroupedSDE.with_rates(tuple(rates.tolist()), t_min=1e-4)
    covariance = torch.tensor([[1.0, 0.6, 0.1], [0.6, 0.5, 0.0], [0.1, 0.0, 0.3]], dtype=torch.float64)
    turned = vectors.T @ covariance @ vectors
    one = LinearMixtureModel(sde=matrix, weights=torch.ones(1), means=torch.zeros(1, 3), covariances=covariance)
    two = LinearMixtureModel(sde=groups, weights=torch.ones(1), means=torch.zeros(1, 3), covariances=turned)
    times = torch.linspace(1.0, 1e-2, 9, dtype=torch.float64)
    for solver in ("ancestral", "ddim", solvers.ancestral(eta=0.5)):
        laws = [build_blocks(m.linear, solver, times=times).block_law(moments(m))[1] for m in (one, two)]
        torch.testing.assert_close(laws[0], vectors @ laws[1] @ vectors.T, rtol=1e-7, atol=1e-8)


def test_the_splitting_is_its_own_algorithm() -> None:
    # Dockhorn et al. 2022, algorithm 1, written out with the score of the exact model and the same draws.
    model = exact("langevin")
    sde, steps = model.linear, 5
    assert isinstance(sde, MatrixSDE)
    assert sde.noise is not None
    table = build_blocks(sde, solvers.splitting(), steps=steps, final="sample")
    ends = torch.linspace(sde.t_max, sde.t_min, steps + 1, dtype=torch.float64)
    stationary = torch.diag(torch.tensor([1.0, 0.25], dtype=torch.float64))
    back = stationary @ sde.matrix.T @ torch.linalg.inv(stationary)
    turning = MatrixSDE(back, sde.noise, beta_min=1.0, beta_max=1.0)
    z = draw(steps + 1, 1, 2, 2, key="splitting")
    x = draw(1, 4, key="start")
    want, last = x.reshape(2, 2), 0.0
    for i in range(steps):
        b = float(sde.integral(ends[i]) - sde.integral(ends[i + 1]))
        spans = [0.5 * last + 0.5 * b]
        m, c = turning.transition_maps(torch.zeros(1, dtype=torch.float64), torch.tensor(spans, dtype=torch.float64))
        values, vectors = torch.linalg.eigh(c[0, 0])
        want = m[0, 0] @ want + (vectors * values.sqrt()) @ vectors.T @ z[i, 0]
        middle = sde.inverse_integral(0.5 * (sde.integral(ends[i]) + sde.integral(ends[i + 1])))
        score = model(want.reshape(1, 4), float(middle)).score.reshape(2, 2)
        want = want + b * sde.noise @ (score + torch.linalg.inv(stationary) @ want)
        last = b
    m, c = turning.transition_maps(torch.zeros(1, dtype=torch.float64), torch.tensor([0.5 * last], dtype=torch.float64))
    values, vectors = torch.linalg.eigh(c[0, 0])
    want = m[0, 0] @ want + (vectors * values.sqrt()) @ vectors.T @ z[steps, 0]
    tape = [one.reshape(1, 4) for one in z]
    got = sample(model, x_init=x, solver=table, final="sample", noise=tape)
    torch.testing.assert_close(got, want.reshape(1, 4), rtol=1e-8, atol=1e-10)


def test_a_mixture_is_sampled_under_a_matrix() -> None:
    means = torch.tensor([[1.0, 1.0, 0.0], [-1.0, 0.0, 1.0]], dtype=torch.float64)
    model = LinearMixtureModel(
        sde=SDES["matrix"], weights=torch.tensor([0.3, 0.7]), means=means, covariances=0.05 * torch.eye(3)
    )
    x = draw(5, 3, key="x").requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_prob(x, 0.2).sum(), x)
    torch.testing.assert_close(model(x.detach(), 0.2).score, gradient, rtol=1e-9, atol=1e-10)
    y = sample(model, 4000, solver="ancestral", steps=60, seed=0).double()
    near = (y[:, None] - means).square().sum(2).argmin(1)
    share = float((near == 0).double().mean())
    assert abs(share - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 4000)
    left = y - means[near]
    assert float(left.mean(0).abs().max()) < 5 * math.sqrt(0.05 / 4000) / 0.5
    assert float((left.T @ left / len(left) - 0.05 * torch.eye(3)).abs().max()) < 0.02  # the bias of 60 steps is 0.014


class Counting(torch.nn.Module):
    """A network that gives 0 and remembers the shapes and times that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape))
        return 0.5 * x


def test_a_group_at_rest_is_no_part_of_what_the_network_is_given() -> None:
    sde = GroupedSDE.levels((1, 4, 4), (0.3, 0.6))
    net = Counting()
    model = LinearModel(net, sde)
    result = sample(model, (2, 1, 4, 4), solver="ancestral", steps=10, seed=0, full_output=True, trajectory=True)
    assert isinstance(result, SampleResult)
    table = build_blocks(sde, "ancestral", steps=10)
    want = [(2, *sde.kept(row.at.t)) for row in table.rows]
    assert net.seen == want
    assert {shape[-1] for shape in net.seen} == {1, 2, 4}
    # What rests does not move until it enters.
    assert result.trajectory is not None
    for i, row in enumerate(table.rows):
        rests = (sde.ends < row.at.t - 1e-9)[sde.index]
        before, after = result.trajectory[i][:, rests], result.trajectory[i + 1][:, rests]
        assert torch.equal(before, after)
    whole = Counting()
    sample(LinearModel(whole, sde, drop=False), (2, 1, 4, 4), solver="ancestral", steps=10, seed=0)
    assert {shape[-1] for shape in whole.seen} == {4}


def test_leaving_out_what_rests_changes_nothing_where_it_is_told_nothing() -> None:
    # Independent coordinates: the exact prediction of one asks no other.
    sde = GroupedSDE.levels((1, 4), (0.4,))
    variances = torch.tensor([0.5, 1.0, 2.0, 0.3], dtype=torch.float64)

    def net(x: Tensor, t: Tensor) -> Tensor:
        point = sde.at(t)
        m, s = (sde.blocks.spread(maps)[..., : x.shape[-1]].to(x) for maps in (point.mean, point.covariance))
        c = variances[: x.shape[-1]].to(x)
        return m * c / (m.square() * c + s) * x

    outs = []
    for drop in (True, False):
        model = LinearModel(net, sde, predicts="data", condition_on="time", sigma_data=1.0, drop=drop)
        model.read_at = _unscaled(model)  # type: ignore[method-assign]
        outs.append(sample(model, (8, 1, 4), solver="dpmpp_2m", steps=12, seed=4, dtype=torch.float64))
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-12, atol=1e-12)


def _unscaled(model: LinearModel) -> object:
    from dataclasses import replace

    inner = model.read_at

    def read(point: object) -> object:
        reading = inner(point)  # type: ignore[arg-type]
        return replace(reading, c_in=torch.ones_like(reading.c_in))

    return read


def test_what_a_linear_sde_cannot_do_is_refused_with_what_it_can() -> None:
    groups, matrix = SDES["rates"], SDES["matrix"]
    with pytest.raises(ConfigError, match=r"calls the model inside its steps.*one call a step"):
        build_blocks(groups, "exponential_rk2", steps=5)
    with pytest.raises(ConfigError, match=r"has no form with a matrix; take 'ancestral'"):
        build_blocks(matrix, "dpmpp_2m", steps=5)
    with pytest.raises(ConfigError, match="a table under a MatrixSDE"):
        build_table(VPSDE(), solvers.splitting(), steps=5)
    with pytest.raises(DTypeError, match="with tables under a linear SDE"):
        build_blocks(groups, solvers.ProbabilityFlow())
    with pytest.raises(DomainError, match="ends at t_min"):
        build_blocks(matrix, "ancestral", times=torch.tensor([1.0, 0.5, 0.0]))
    with pytest.raises(ConfigError, match="has maps for weights"):
        build_blocks(matrix, "ancestral", steps=3).to_json()
    with pytest.raises(ConfigError, match="leave out steps="):
        build_blocks(matrix, build_blocks(matrix, "ancestral", steps=3), steps=4)
    with pytest.raises(ConfigError, match="lives on another SDE"):
        build_blocks(groups, build_blocks(matrix, "ancestral", steps=3))
    with pytest.raises(ConfigError, match="jumps upwards"):
        build_blocks(groups, solvers.churned(solvers.heun(), churn=5.0), steps=8)
    model = exact("matrix")
    with pytest.raises(ConfigError, match="leave out kernels="):
        sample(model, 2, solver="ancestral", kernels=[Langevin()])
    for solver in (Picard("ddim"), ProbabilityFlow()):
        with pytest.raises((ConfigError, DTypeError), match="build_blocks"):
            sample(model, 2, solver=solver)
    with pytest.raises(ConfigError, match="linear_elbo"):
        log_likelihood(model, torch.zeros(2, 3))
    with pytest.raises(ConfigError, match="no other SDE has the same ratios"):
        sample(model, 2, sde=VPSDE())
    with pytest.raises(ShapeError, match="a multiple of 3"):
        sample(LinearModel(nn.MLP(2, width=4, depth=1), matrix), (3, 2), solver="ancestral", steps=2)
    assert isinstance(build_blocks(groups, "ddim", steps=3), BlockTableau)
    assert sample(exact("matrix"), 3, steps=4, seed=0).shape == (3, 3)
    assert sample(exact("rates"), 3, steps=4, seed=0).shape == (3, 3)


def test_a_table_of_maps_is_printed_in_short() -> None:
    groups = str(build_blocks(SDES["rates"], "dpmpp_2m", steps=4))
    assert groups.startswith("<Tableau dpmpp_2m: 4 evaluations")
    assert ".." in groups
    assert "Block" not in groups
    assert "[3 x 3]" in str(build_blocks(SDES["matrix"], "ancestral", steps=4))
