"""Weights of simulated paths: against the densities they are made of, the sampler's exact law, and each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from helpers import MEAN, VARIANCE, Net, gaussian
from torch import Tensor, nn
from torch.distributions import Normal

from scoresde import (
    DDPM,
    SMLD,
    VESDE,
    VPSDE,
    Affine,
    ConfigError,
    DomainError,
    DTypeError,
    Gaussian,
    GaussianDecoder,
    GaussianMixtureModel,
    GaussianModel,
    LevelsDecoder,
    ScoreModel,
    ShapeError,
    SolverError,
    Tableau,
    forward_path,
    path_log_weight,
    solvers,
    variational_bound,
)
from scoresde.chains.base import Chain

CHAINS: dict[str, Callable[[], Chain]] = {
    "linear": lambda: DDPM.linear(30),
    "smld": lambda: SMLD.geometric(9, sigma_max=4.0),
    "two": lambda: DDPM.from_sde(VPSDE(beta_max=4.0), 2),
    "one": lambda: DDPM.from_sde(VPSDE(beta_max=4.0), 1),
}


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def lattice(draws: int, n: int, end: float = 9.0) -> tuple[list[Tensor], Tensor]:
    """Every combination of ``n`` normal numbers in each of ``draws``, and their probabilities."""
    nodes = torch.linspace(-end, end, n, dtype=torch.float64)
    z = [a.reshape(-1) for a in torch.meshgrid(*[nodes] * draws, indexing="ij")]
    weight = Normal(0.0, 1.0).log_prob(torch.stack(z)).sum(0).exp() * (nodes[1] - nodes[0]) ** draws
    return z, weight


def mixture() -> GaussianMixtureModel:
    return GaussianMixtureModel(sde=VPSDE(), weights=vector(1, 2), means=vector(-1.0, 0.8), std=0.4)


def log_normal(x: float, mean: float, variance: float) -> float:
    return -0.5 * (math.log(2 * math.pi * variance) + (x - mean) ** 2 / variance)


def tables() -> dict[str, Tableau]:
    """Tables of three one-stage steps whose steps all draw noise; they end above sigma = 0."""
    vp, ve = VPSDE(beta_max=6.0), VESDE(sigma_min=0.2, sigma_max=3.0)
    times = vector(1.0, 0.7, 0.4, 0.15)
    return {
        "ancestral": solvers.ancestral()(vp, times),
        "ancestral, eta 0.5": solvers.ancestral(eta=0.5)(vp, times),
        "large variance": solvers.ancestral(variance="large")(ve, times),
        "reverse diffusion": solvers.reverse_diffusion()(ve, times),
        "euler-maruyama": solvers.euler_maruyama()(vp, times),
    }


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("name", CHAINS)
def test_weight_is_the_ratio_of_the_chains_densities(name: str, variance: str) -> None:
    chain, model = CHAINS[name](), gaussian()
    x = vector(0.1, -1.3, 2.0)
    path = forward_path(chain, x, seed=4)
    got = path_log_weight(model, path, chain.ancestral(variance=variance))
    last, first = chain.points[-1], chain.points[1]
    start = model.moments.at(float(last.alpha), float(last.sigma))
    total = Normal(start.mean, start.variance.sqrt()).log_prob(path[-1])
    for i in range(len(chain)):
        data = model.at(path[i + 1], chain.points[i + 1]).data
        mean, std = chain.reverse(data, path[i + 1], i, variance=variance)
        # Clean data have the decoder's law where the small variance is 0, and the table's last step draws nothing.
        law = Normal(data, first.sigma / first.alpha) if i == 0 else Normal(mean, std)
        total = total + law.log_prob(path[i]) - Normal(*chain.transition(path[i], i)).log_prob(path[i + 1])
    torch.testing.assert_close(got, total, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["two", "smld"])
def test_minus_the_mean_log_weight_is_the_variational_bound(name: str) -> None:
    # log w is quadratic in the noise of a Gaussian path: signs of one number are an exact quadrature.
    chain, model = CHAINS[name](), gaussian()
    signs = torch.cartesian_prod(*[vector(1.0, -1.0)] * len(chain))
    z = list(signs.T.contiguous())
    for x in (0.1, 1.9):
        path = forward_path(chain, torch.full((len(signs),), x, dtype=torch.float64), noise=z)
        pair = torch.full((2,), x, dtype=torch.float64)
        bound = variational_bound(model, chain, pair, noise=[vector(1.0, -1.0)] * len(chain))
        assert -float(path_log_weight(model, path, chain).mean()) == pytest.approx(bound.total, rel=1e-10)


@pytest.mark.parametrize("name", tables())
def test_mean_weight_is_the_samplers_exact_density(name: str) -> None:
    table = last_two_steps(tables()[name])
    model = gaussian(VPSDE())
    mean, variance = table.law(MEAN, VARIANCE)
    z, weight = lattice(2, 161, 16.0)
    for x in (mean, mean + 1.5 * math.sqrt(variance)):
        path = forward_path(table, torch.full_like(z[0], x), noise=z)
        density = float((weight * path_log_weight(model, path, table).exp()).sum())
        assert math.log(density) == pytest.approx(log_normal(x, mean, variance), abs=1e-10)


def last_two_steps(table: Tableau) -> Tableau:
    """The last two steps of a table, so that a path has two draws."""
    return replace(table, rows=table.rows[1:], start=table.rows[1].at)


def test_mean_weight_of_a_chain_is_its_density_with_the_decoder() -> None:
    chain, model = CHAINS["two"](), gaussian()
    z, weight = lattice(2, 161)
    for std in (0.3, None):
        decoder = GaussianDecoder(std)
        spread = float(chain.points.sigma[1] / chain.points.alpha[1]) if std is None else std
        mean, variance = chain.ancestral().law(MEAN, VARIANCE)
        for x in (0.2, 1.4):
            path = forward_path(chain, torch.full_like(z[0], x), noise=z)
            found = (weight * path_log_weight(model, path, chain, decoder=decoder).exp()).sum().log()
            assert float(found) == pytest.approx(log_normal(x, mean, variance + spread**2), abs=1e-10)


def test_a_learned_variance_stands_between_the_small_and_the_large_one() -> None:
    class Wide(nn.Module):
        def __init__(self, v: float) -> None:
            super().__init__()
            self.v = v

        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return torch.cat([torch.tanh(x), torch.full_like(x, 2 * self.v - 1)], 1)

    chain, x = DDPM.linear(30), torch.linspace(-1, 2, 6, dtype=torch.float64).reshape(3, 2)
    table = chain.ancestral(variance="learned")
    path = forward_path(table, x)
    for v in (0.0, 0.4, 1.0):
        found = path_log_weight(ScoreModel(Wide(v), VPSDE(), variance="learned"), path, table)
        rows = tuple(
            r if r.spread is None else replace(r, noise=(r.spread[0] ** (1 - v) * r.spread[1] ** v,), spread=None)
            for r in table.rows
        )
        fixed = path_log_weight(ScoreModel(lambda x, c: torch.tanh(x), VPSDE()), path, replace(table, rows=rows))
        torch.testing.assert_close(found, fixed, rtol=1e-10, atol=1e-10)
    with pytest.raises(ConfigError, match="learned"):
        path_log_weight(silent(), path, table)


def test_a_prior_of_ones_own() -> None:
    chain, model, own = CHAINS["two"](), gaussian(), Gaussian(vector(0.4)[0], vector(1.7)[0])
    path = forward_path(chain, vector(0.2, 0.9))
    last = chain.points[-1]
    exact = model.moments.at(float(last.alpha), float(last.sigma))
    change = path_log_weight(model, path, chain, prior=own) - path_log_weight(model, path, chain)
    torch.testing.assert_close(change, own.log_prob(path[-1]) - exact.log_prob(path[-1]), rtol=1e-9, atol=1e-9)


def exact_density(model: ScoreModel, chain: Chain, x: Tensor) -> Tensor:
    """The density of a chain's ancestral sampler at x (M,), by pushing it through the steps on a grid."""
    grid = torch.linspace(-7, 7, 1401, dtype=torch.float64)
    step, points = grid[1] - grid[0], chain.points
    last = points[-1]
    p = model.moments.at(float(last.alpha), float(last.sigma)).log_prob(grid).exp()
    for i in range(len(chain) - 1, -1, -1):
        data = model.at(grid, points[i + 1]).data
        if i == 0:
            law = Normal(data[:, None], points[1].sigma / points[1].alpha)
            return (p[:, None] * law.log_prob(x[None]).exp()).sum(0) * step
        law = Normal(*(a.reshape(-1, 1) for a in chain.reverse(data, grid, i)))
        p = (p[:, None] * law.log_prob(grid[None]).exp()).sum(0) * step
    raise AssertionError


@pytest.mark.parametrize("x", [-0.9, 0.0, 1.3])
def test_two_paths_bound_closer_than_one_and_both_from_above(x: float) -> None:
    # Every expectation is a sum over a lattice: no statistics.
    chain, model = DDPM.from_sde(VPSDE(beta_max=6.0), 2), mixture()
    z, weight = lattice(2, 45, 7.0)
    path = forward_path(chain, torch.full_like(z[0], x), noise=z)
    log_w = path_log_weight(model, path, chain)
    exact = -float(exact_density(model, chain, vector(x)).log())
    assert -float((weight * log_w.exp()).sum().log()) == pytest.approx(exact, abs=1e-6)
    one = -float((weight * log_w).sum())
    kept = weight > 1e-12
    w, log_w = weight[kept], log_w[kept]
    pairs = math.log(2) - torch.logaddexp(log_w[:, None], log_w[None])
    two = float((w[:, None] * w[None] * pairs).sum())
    bound = variational_bound(model, chain, torch.full_like(z[0], x), noise=z)
    assert one == pytest.approx(float((weight * bound.per_sample).sum()), abs=1e-9)
    assert exact + 0.01 < two < one - 0.01


def test_more_paths_bound_closer_down_to_minus_log_p() -> None:
    chain, model, x = DDPM.from_sde(VPSDE(), 12), mixture(), vector(-0.9, 0.0, 1.3)
    count = 4096
    weights = path_log_weight(model, forward_path(chain, x.repeat(count), seed=1), chain, chunk_size=5000).reshape(
        count, 3
    )
    bounds = []
    for k in (1, 4, 16, 64, 256):
        groups = weights.reshape(count // k, k, 3)
        bounds.append((math.log(k) - torch.logsumexp(groups, 1)).mean(0))
    # Jensen's inequality on the same paths: no statistics.
    assert all(bool((a > b).all()) for a, b in itertools.pairwise(bounds))
    exact = -exact_density(model, chain, x).log()
    # Within 5.1 standard errors of the mean weight: a false alarm of 1e-6 for the three.
    share = (weights - torch.logsumexp(weights, 0) + math.log(count)).exp()
    error = share.std(0) / math.sqrt(count)
    assert bool((error < 0.1).all())
    everything = math.log(count) - torch.logsumexp(weights, 0)
    assert bool(((everything - exact).abs() < 5.1 * error).all())


def test_weights_of_single_paths_tend_to_the_density_of_the_data() -> None:
    # With the exact score the path has the same law both ways in the limit: every weight is p(x_0).
    model, x, spreads = gaussian(), vector(0.3), []
    log_snr = torch.linspace(6.0, -8.0, 321, dtype=torch.float64)
    for stride in (4, 2, 1):
        logs = torch.nn.functional.logsigmoid(log_snr[::stride])
        chain = DDPM(logs.diff(prepend=torch.zeros(1, dtype=torch.float64)))
        table = chain.ancestral(variance="large")
        w = path_log_weight(model, forward_path(table, x.repeat(2000), seed=0), table)
        spreads.append(float(w.var()))
    inner = [a / b for a, b in itertools.pairwise(spreads)]
    assert inner == pytest.approx([2.0, 2.0], abs=0.6)


def test_paths_have_the_marginals_of_the_chain() -> None:
    # One draw at a time is 1: the weight of each draw, and by their squares the marginal variance.
    chain = DDPM.linear(30)
    unit = torch.eye(31, dtype=torch.float64)
    x0, z = unit[0], list(unit[1:])
    path = forward_path(chain, x0, noise=z)
    assert torch.equal(path[0], x0)
    alpha, sigma, _ = chain.curves
    torch.testing.assert_close(path[1:, 0], alpha, rtol=1e-12, atol=0)
    torch.testing.assert_close(path[1:, 1:].square().sum(1), sigma.square(), rtol=1e-12, atol=0)
    table = tables()["euler-maruyama"]
    unit = torch.eye(4, dtype=torch.float64)
    path = forward_path(table, unit[0], noise=list(unit[1:]))
    end, start = table.end, table.start
    assert float(path[-1, 0]) == pytest.approx(start.alpha / end.alpha)
    spread = start.sigma**2 - (start.alpha / end.alpha * end.sigma) ** 2
    assert float(path[-1, 1:].square().sum()) == pytest.approx(spread)


def test_levels_and_events_of_several_coordinates() -> None:
    chain, decoder = CHAINS["two"](), LevelsDecoder(3, 0.0, 10.0)
    model = GaussianModel(sde=VPSDE(), mean=vector(0.0, 0.0), covariance=vector(0.5, 0.9))
    model.transform = Affine(5.0, 5.0)
    y = torch.tensor([[-1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    path = forward_path(chain, y)
    plain = path_log_weight(model, path, chain)
    levels = path_log_weight(model, path, chain, decoder=decoder)
    data, first = model.at(path[1], chain.points[1]).data, chain.points[1]
    law = Normal(data, first.sigma / first.alpha)
    below = torch.where(y > -1, law.cdf(y - 0.5), torch.zeros_like(y))
    above = torch.where(y < 1, law.cdf(y + 0.5), torch.ones_like(y))
    wanted = ((above - below).log() - law.log_prob(y)).sum(1)
    torch.testing.assert_close(levels - plain, wanted, rtol=1e-9, atol=1e-9)
    with pytest.raises(DomainError, match="on the 3 levels"):
        path_log_weight(model, path + 0.3, chain, decoder=decoder)


def test_seeds_chunks_and_types() -> None:
    chain, model = DDPM.linear(30), GaussianModel(sde=VPSDE(), mean=vector(0.1, 0.2), covariance=vector(0.5, 0.9))
    x = torch.linspace(-1, 2, 14, dtype=torch.float64).reshape(7, 2)
    path = forward_path(chain, x, seed=3)
    assert torch.equal(path[:, 4:], forward_path(chain, x[4:], seed=3, first_sample=4))
    assert not torch.equal(path[1:], forward_path(chain, x, seed=4)[1:])
    whole = path_log_weight(model, path, chain)
    torch.testing.assert_close(path_log_weight(model, path, chain, chunk_size=3), whole, rtol=1e-12, atol=1e-12)
    narrow = path.float()
    assert path_log_weight(model, narrow, chain).dtype == torch.float64
    torch.testing.assert_close(
        path_log_weight(model, narrow, chain), path_log_weight(model, narrow.double(), chain), rtol=1e-4, atol=1e-4
    )
    assert forward_path(chain, x.bfloat16()).dtype == torch.float32
    assert path_log_weight(model, path[:, :0], chain).shape == (0,)
    net = Net(dtype=torch.float64)
    labelled = ScoreModel(net, VPSDE())
    labelled.train()
    cond = {"label": torch.arange(7.0)}
    first = path_log_weight(labelled, path, chain, cond=cond)
    torch.testing.assert_close(path_log_weight(labelled, path, chain, cond=cond, chunk_size=2), first)
    assert labelled.training
    assert not any(net.modes)


def silent() -> ScoreModel:
    """A model whose network must not be called."""

    def act(x: Tensor, k: int) -> Tensor:
        raise AssertionError("the network was called")

    return ScoreModel(Net(act), VPSDE())


TIMES = vector(1.0, 0.5, 0.1)
PATH = torch.zeros(3, 4, 2)
FAULTS: dict[str, tuple[type[Exception], str, Callable[[], object]]] = {
    "model": (DTypeError, "ScoreModel", lambda: path_log_weight(lambda x, t: x, PATH, CHAINS["two"]())),
    "solver": (DTypeError, "Tableau or a chain", lambda: path_log_weight(silent(), PATH, solvers.ancestral())),
    "states": (ShapeError, r"shape \(31, B", lambda: path_log_weight(silent(), PATH, DDPM.linear(30))),
    "vector": (ShapeError, "path must", lambda: path_log_weight(silent(), torch.zeros(3), CHAINS["two"]())),
    "nan": (
        DomainError,
        "path has",
        lambda: path_log_weight(silent(), torch.cat([PATH[:2], PATH[:1].log()]), CHAINS["two"]()),
    ),
    "memory": (
        ConfigError,
        "state alone",
        lambda: path_log_weight(silent(), PATH, solvers.dpmpp_2m()(VPSDE(), TIMES)),
    ),
    "stages": (ConfigError, "state alone", lambda: forward_path(solvers.heun()(VPSDE(), TIMES), PATH[0])),
    "deterministic": (
        ConfigError,
        "no density",
        lambda: path_log_weight(silent(), PATH, solvers.ancestral(eta=0.0)(VPSDE(), TIMES)),
    ),
    "the mean of the last step": (
        ConfigError,
        "no density",
        lambda: path_log_weight(silent(), PATH, solvers.ancestral()(VPSDE(), TIMES).without_last_noise()),
    ),
    "decoder of a noisy step": (
        ConfigError,
        "leave out decoder",
        lambda: path_log_weight(silent(), PATH, solvers.ancestral()(VPSDE(), TIMES), decoder=GaussianDecoder()),
    ),
    "no rows": (
        ConfigError,
        "no rows",
        lambda: forward_path(replace(tables()["ancestral"], rows=()), PATH[0]),
    ),
    "upwards": (
        ConfigError,
        "step by step",
        lambda: forward_path(replace(tables()["ancestral"], end=tables()["ancestral"].start), PATH[0]),
    ),
    "tape": (ShapeError, "holds 1", lambda: forward_path(CHAINS["two"](), PATH[0], noise=[PATH[0]])),
    "seed": (DomainError, "seed", lambda: forward_path(CHAINS["two"](), PATH[0], seed=-1)),
    "first sample": (DomainError, "first_sample", lambda: forward_path(CHAINS["two"](), PATH[0], first_sample=-1)),
    "prior": (DTypeError, "Gaussian", lambda: path_log_weight(silent(), PATH, CHAINS["two"](), prior=1.0)),
    "cond": (ShapeError, "cond", lambda: path_log_weight(silent(), PATH, CHAINS["two"](), cond={"y": torch.zeros(2)})),
}


def test_a_network_that_answers_nan_is_said_and_not_returned() -> None:
    broken = ScoreModel(Net(lambda x, k: torch.where(x == x[:1], math.nan, x)), VPSDE(), predicts="data")
    with pytest.raises(SolverError, match=r"the log weight is not finite in 33.3% of the samples, since the network"):
        path_log_weight(broken, torch.arange(9.0).reshape(3, 3), CHAINS["two"]())


@pytest.mark.parametrize("case", FAULTS)
def test_bad_input_is_refused_before_any_call(case: str) -> None:
    kind, message, call = FAULTS[case]
    with pytest.raises(kind, match=message):
        call()
