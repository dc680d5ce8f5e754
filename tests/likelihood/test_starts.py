"""From data to the state at t_min: decoders, levels, several draws; gradients; classes and ratios; between two data."""

from __future__ import annotations

import itertools
import math
import weakref

import pytest
import torch
from helpers import MEAN, VARIANCE, gaussian
from known import correlated, data_of, many, ring
from torch import Tensor

from scoresde import (
    VPSDE,
    Affine,
    ConfigError,
    Dequantisation,
    Dequantise,
    DomainError,
    DTypeError,
    Gaussian,
    GaussianDecoder,
    GaussianModel,
    LevelsDecoder,
    ProbabilityFlow,
    ScoreModel,
    bridge,
    classify,
    decode,
    encode,
    interpolate,
    log_likelihood,
    log_likelihood_ratio,
    map_prediction,
    nn,
)

TIGHT = ProbabilityFlow(rtol=1e-8, atol=1e-8)
NOISY = VPSDE(t_min=0.04)  # sigma 0.14, as wide as a bin: the data are on its levels at no finer scale
LEVELS = torch.linspace(-1.0, 1.0, 5, dtype=torch.float64)


def mass(model: GaussianModel, low: Tensor, high: Tensor) -> Tensor:
    """Return the log of the mass that the law at t_min has between alpha low and alpha high."""
    point = model.sde.at(model.sde.t_min)
    alpha = float(point.alpha)
    law = model.moments.at(alpha, float(point.sigma))
    normal = torch.distributions.Normal(law.mean, law.variance.sqrt())
    return (normal.cdf(alpha * high) - normal.cdf(alpha * low)).log()


# ---------------------------------------------------------------------------------------------------------------------
# Bounds by draws


@pytest.mark.parametrize("law", ["uniform", "truncated_normal"])
def test_levels_by_draws_in_their_bins(law: str) -> None:
    """One coordinate: a lower bound of the bin's mass, tighter with more draws, the mass itself with very many."""
    model = gaussian(NOISY)
    exact = mass(model, LEVELS - 0.25, LEVELS + 0.25)
    start = Dequantisation(5, law=law)
    n = 100
    x = LEVELS.repeat_interleave(n)

    def bound(draws: int, seed: int) -> Tensor:
        got = log_likelihood(model, x, decoder=start, importance=draws, seed=seed, solver="rk3", steps=15)
        assert got.discrete
        return got.values.reshape(5, n).mean(1)

    means = [bound(k, seed) for seed, k in enumerate((1, 4, 16))]
    assert bool((means[0] < exact + 0.03).all())
    assert all(bool((b > a - 0.03).all()) for a, b in itertools.pairwise(means))
    assert float(means[0].sum()) < float(means[1].sum()) < float(exact.sum()) + 0.01
    torch.testing.assert_close(means[-1], exact, rtol=0, atol=0.15)


@pytest.mark.parametrize("law", ["uniform", "truncated_normal"])
def test_equal_weights_give_the_plain_value_for_any_number_of_draws(law: str) -> None:
    """Where p/q is constant on the bin, log mean exp is the value of one draw."""
    y = torch.tensor([0.5], dtype=torch.float64)
    wide = GaussianModel(sde=NOISY, mean=torch.zeros(()), covariance=torch.tensor(1e6))
    if law == "truncated_normal":
        # Data of no width at 0.5: inside the bin the law at t_min is q but for a factor.
        wide = GaussianModel(sde=NOISY, mean=torch.tensor(0.5), covariance=torch.tensor(0.0))
    values = [
        log_likelihood(wide, y, decoder=Dequantisation(5, law=law), importance=k, solver="rk4", steps=40).values
        for k in (1, 3, 9)
    ]
    torch.testing.assert_close(values[1], values[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(values[2], values[0], rtol=0, atol=1e-4)


def test_the_truncated_normals_entropy() -> None:
    """E[-log q] = N/2 (1 + log 2 pi sigma^2) + N log Z - N tau exp(-tau^2/2)/(sqrt(2 pi) Z), the published constant."""
    sde = VPSDE(t_min=0.05)
    point = sde.at(sde.t_min)
    alpha, sigma = float(point.alpha), float(point.sigma)
    tau = alpha * 0.25 / sigma
    z = math.erf(tau / math.sqrt(2))
    exact = 0.5 * (1 + math.log(2 * math.pi * sigma**2)) + math.log(z)
    exact -= tau * math.exp(-0.5 * tau**2) / (math.sqrt(2 * math.pi) * z)
    # Even quantiles stand for the draws.
    share = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    y = torch.zeros(20000, dtype=torch.float64)
    _, nats = Dequantisation(5).begin(gaussian(sde), y, point, torch.special.ndtri(share), None)
    assert float(nats.mean()) == pytest.approx(exact, abs=1e-4)


def test_a_bin_in_the_models_coordinates() -> None:
    """A transform carries the bins along: the mass is the same in any unit."""
    base = gaussian(NOISY)
    model = map_prediction(base, lambda p: p.data)
    model.transform = Affine(10.0, 4.0)
    raw = 10 + 4 * LEVELS
    kwargs = {"importance": 3, "solver": "rk4", "steps": 20}
    own = log_likelihood(base, LEVELS, decoder=Dequantisation(5), **kwargs)
    there = log_likelihood(model, raw, decoder=Dequantisation(5, 6.0, 14.0), **kwargs)
    torch.testing.assert_close(there.values, own.values, rtol=0, atol=1e-9)


@pytest.mark.parametrize("decoder", [GaussianDecoder(), LevelsDecoder(5)])
def test_a_decoder_gives_a_lower_bound(decoder: object) -> None:
    """Against the density, or the levels' probabilities under the model's own last step: their sum is at most 1."""
    model = gaussian(NOISY)
    x = LEVELS.repeat_interleave(100)
    got = log_likelihood(model, x, decoder=decoder, solver="rk4", steps=25)
    means = got.values.reshape(5, 100).mean(1)
    assert got.discrete == isinstance(decoder, LevelsDecoder)
    assert bool((got.truncation == 0).all())
    if got.discrete:
        assert float(means.exp().sum()) < 1
        torch.testing.assert_close(means, mass(model, LEVELS - 0.25, LEVELS + 0.25), rtol=0, atol=0.8)
    else:
        # What the last step makes of x ~ p_t: N(data prediction, (sigma/alpha)^2).
        alpha, sigma = (float(c) for c in NOISY.at(NOISY.t_min).numbers[1:3])
        variance = alpha**2 * VARIANCE**2 / (alpha**2 * VARIANCE + sigma**2) + (sigma / alpha) ** 2
        exact = torch.distributions.Normal(MEAN, math.sqrt(variance)).log_prob(LEVELS)
        assert bool((means < exact + 0.02).all())
        assert float((exact - means).max()) < 0.5


def test_dequantised_data_by_the_transform() -> None:
    """Dequantise in the model's own transform: the density of the spread data, plus log width for the levels."""
    model = map_prediction(gaussian(NOISY), lambda p: p.data)
    model.transform = Dequantise(9)
    x = LEVELS.repeat_interleave(300)
    got = log_likelihood(model, x, solver="rk4", steps=25).values.reshape(5, 300).mean(1) + math.log(0.25)
    exact = mass(gaussian(NOISY), LEVELS - 0.125, LEVELS + 0.125)
    assert bool((got < exact + 0.02).all())
    torch.testing.assert_close(got, exact, rtol=0, atol=0.2)


def test_a_transforms_draws_are_each_samples_own() -> None:
    """A batch, its chunks and its samples alone agree, though the model's own transform draws."""
    model = map_prediction(gaussian(NOISY), lambda p: p.data)
    model.transform = Dequantise(9)
    x = LEVELS.repeat(2)
    together = log_likelihood(model, x, solver="rk3", steps=6).values
    assert len(set(together.tolist())) == len(x)
    chunked = log_likelihood(model, x, solver="rk3", steps=6, chunk_size=3).values
    alone = torch.cat(
        [log_likelihood(model, x[k : k + 1], solver="rk3", steps=6, first_sample=k).values for k in (1, 7)]
    )
    torch.testing.assert_close(chunked, together, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(alone, together[[1, 7]], rtol=1e-9, atol=1e-9)


def test_what_does_not_suit_is_refused() -> None:
    model, x = gaussian(), LEVELS
    with pytest.raises(DTypeError, match="decoder must be"):
        log_likelihood(model, x, decoder="levels")
    with pytest.raises(DomainError, match="on the 4 levels"):
        log_likelihood(model, x, decoder=Dequantisation(4))
    with pytest.raises(ConfigError, match="unknown law of dequantisation"):
        Dequantisation(4, law="logistic")
    times = torch.tensor([1.0, 0.0], dtype=torch.float64)
    with pytest.raises(ConfigError, match="starts from a noisy state"):
        log_likelihood(model, x, decoder=Dequantisation(5), times=times)


# ---------------------------------------------------------------------------------------------------------------------
# Gradients


def small() -> ScoreModel:
    net = nn.MLP(2, width=8, depth=1, seed=3).double()
    with torch.no_grad():
        for k, p in enumerate(net.parameters()):
            p += 0.2 * torch.sin(torch.arange(p.numel()).reshape(p.shape) + k)
    return ScoreModel(net, VPSDE(t_min=0.02))


X = torch.tensor([[0.3, -0.7], [1.1, 0.2]], dtype=torch.float64)
SOLVERS = {
    "table": {"solver": "midpoint", "steps": 8},
    "adjoint": {"solver": bridge.TorchDiffEq(adjoint=True, rtol=1e-6, atol=1e-6)},
    "torchdiffeq": {"solver": bridge.TorchDiffEq(rtol=1e-6, atol=1e-6)},
}


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("probes", [{}, {"probes": 1, "draws": 1}, {"decoder": GaussianDecoder()}])
def test_gradients_are_those_of_finite_differences(name: str, probes: dict[str, object]) -> None:
    model, options = small(), {**SOLVERS[name], **probes}
    weight = dict(model.net.named_parameters())["input.weight"]

    def value(x: Tensor) -> Tensor:
        return log_likelihood(model, x, differentiable=True, **options).values.sum()

    here = X[:1]
    x = here.clone().requires_grad_(True)
    on_x, on_weight = torch.autograd.grad(value(x), (x, weight))
    place, step = (0, 1), 3e-3
    moved = torch.zeros_like(here)
    moved[place] = step
    with torch.no_grad():
        on_moved = float(value(here + moved) - value(here - moved)) / (2 * step)
        assert float(on_x[place]) == pytest.approx(on_moved, rel=5e-3, abs=5e-3)
        weight[place] += step
        above = float(value(here))
        weight[place] -= 2 * step
        below = float(value(here))
    assert float(on_weight[place]) == pytest.approx((above - below) / (2 * step), rel=5e-3, abs=5e-3)


def test_gradients_hold_states_and_nothing_else() -> None:
    """A step more keeps a few numbers of a state more, not the network's activations."""

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    def count(steps: int) -> int:
        kept: list[weakref.ref[Kept]] = []

        def pack(tensor: Tensor) -> Kept:
            box = Kept(tensor)
            kept.append(weakref.ref(box))
            return box

        model = ScoreModel(nn.MLP(2, width=64, depth=3).double(), VPSDE())
        x = X.clone().requires_grad_(True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
            result = log_likelihood(model, x, solver="midpoint", steps=steps, differentiable=True)
        weights = {id(p) for p in model.parameters()}
        boxes = [box for one in kept if (box := one()) is not None and id(box.tensor) not in weights]
        assert result.values.requires_grad
        return sum(box.tensor.numel() for box in boxes if box.tensor.shape not in {p.shape for p in model.parameters()})

    state = 2 * 3
    assert 0 < count(16) - count(8) <= 8 * 2 * 2 * state


def test_a_flow_learns_by_its_likelihood() -> None:
    """Ascent on log p raises it."""
    model = small()
    x = data_of(ring(), 16) / 2
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    values = []
    for _ in range(12):
        optimiser.zero_grad()
        loss = -log_likelihood(model, x, solver="midpoint", steps=6, differentiable=True).values.mean()
        loss.backward()
        optimiser.step()
        values.append(float(loss.detach()))
    assert values[-1] < values[0] - 0.1


# ---------------------------------------------------------------------------------------------------------------------
# Ratios and classes


def test_a_ratio_shares_its_probes() -> None:
    """Two models that differ a little: the paired error is a fraction of each one's own."""
    a, x = correlated(), data_of(correlated(), 20)
    law = a.moments
    b = GaussianModel(sde=a.sde, mean=law.mean + 0.1, covariance=law.covariance * 1.01)
    exact = a.log_prob(x) - b.log_prob(x)
    got = log_likelihood_ratio(a, b, x, probes=1, draws=16, solver=TIGHT)
    alone = log_likelihood(a, x, probes=1, draws=16)
    torch.testing.assert_close(got.values, exact, rtol=0, atol=0.05)
    assert float(got.standard_error.mean()) < 0.05 * float(alone.standard_error.mean())
    same = log_likelihood_ratio(a, a, x, probes=1)
    assert bool((same.values == 0).all())


class Classes(torch.nn.Module):
    """The noise prediction of N(m_y, v_y) in one dimension under VP, y the class."""

    means = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
    variances = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
        alpha, sigma = torch.sigmoid(c_noise.double()).sqrt(), torch.sigmoid(-c_noise.double()).sqrt()
        m, v = self.means[label], self.variances[label]
        return (sigma * (x.double() - alpha * m) / (alpha.square() * v + sigma.square())).to(x)


@pytest.mark.parametrize("by", ["flow", "bound"])
def test_classes_by_bayes_rule(by: str) -> None:
    model = ScoreModel(Classes(), VPSDE())
    x = torch.linspace(-2.5, 3.5, 13, dtype=torch.float64)
    share = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    laws = torch.distributions.Normal(Classes.means, Classes.variances.sqrt())
    exact = torch.softmax(laws.log_prob(x[:, None]) + share.log(), 1)
    prior = {} if by == "flow" else {"samples": 64, "draws": 8}
    got = classify(model, x, range(3), by=by, log_prior=share.log(), **prior)
    error = (got.probabilities - exact).abs()
    if by == "flow":
        # The prior is N(0, 1) for all; at t_max the classes' means are still 0.007 apart for each unit.
        assert float(error.max()) < 1e-2
        assert bool(got.standard_error.isnan().all())
    else:
        assert bool((error < 6 * got.standard_error + 2e-3).all())
        assert float(error.max()) < 0.25
    sure = exact.max(1).values > 0.8
    assert torch.equal(got.predicted[sure], exact.argmax(1)[sure])
    assert torch.allclose(got.probabilities.sum(1), torch.ones(13, dtype=torch.float64))


def test_classes_that_are_none() -> None:
    model, x = ScoreModel(Classes(), VPSDE()), torch.zeros(2, dtype=torch.float64)
    with pytest.raises(ConfigError, match="at least one class"):
        classify(model, x, [])
    with pytest.raises(ConfigError, match="takes no probes"):
        classify(model, x, range(3), probes=2)
    with pytest.raises(ConfigError, match="takes no decoder"):
        classify(model, x, range(3), by="flow", decoder=GaussianDecoder())
    with pytest.raises(ConfigError, match="unknown way to classify"):
        classify(model, x, range(3), by="score")


# ---------------------------------------------------------------------------------------------------------------------
# Between two data


@pytest.mark.parametrize("path", ["linear", "spherical"])
def test_between_two_gaussian_data(path: str) -> None:
    """For Gaussian data the flow is affine: a linear way stays linear, a spherical one keeps the whitened norm."""
    model = correlated()
    a, b = data_of(model, 3, 1), data_of(model, 3, 2)
    got = interpolate(model, a, b, 5, path=path, solver=TIGHT)
    assert got.shape == (5, 3, 4)
    torch.testing.assert_close(got[0], a, rtol=0, atol=1e-5)
    torch.testing.assert_close(got[-1], b, rtol=0, atol=1e-5)
    law = model.moments
    z_a, z_b = (encode(model, x, solver=TIGHT) - law.mean * float(model.sde.alpha(1.0)) for x in (a, b))
    half = encode(model, got[2], solver=TIGHT) - law.mean * float(model.sde.alpha(1.0))
    if path == "linear":
        torch.testing.assert_close(got[2], 0.5 * (a + b), rtol=0, atol=1e-5)
    else:
        angle = torch.acos(torch.cosine_similarity(z_a, z_b))[:, None]
        torch.testing.assert_close(half, (angle / 2).sin() / angle.sin() * (z_a + z_b), rtol=0, atol=1e-5)


def test_between_data_with_conditions_and_a_fixed_solver() -> None:
    model = ScoreModel(Classes(), VPSDE())
    a, b = torch.tensor([-1.0, 0.4], dtype=torch.float64), torch.tensor([-0.8, 0.6], dtype=torch.float64)
    got = interpolate(model, a, b, 3, solver="heun", steps=60, cond={"label": torch.tensor([0, 1])})
    torch.testing.assert_close(got[0], a, rtol=0, atol=1e-2)
    torch.testing.assert_close(got[2], b, rtol=0, atol=1e-2)
    alone = interpolate(model, a[1:], b[1:], 3, solver="heun", steps=60, cond={"label": torch.tensor([1])})
    torch.testing.assert_close(alone[:, 0], got[:, 1], rtol=0, atol=1e-9)
    with pytest.raises(ConfigError, match="unknown path"):
        interpolate(model, a, b, path="geodesic")
    same = interpolate(many(), data_of(many(), 2), data_of(many(), 2), 3)
    torch.testing.assert_close(same[1], data_of(many(), 2), rtol=0, atol=1e-3)
    assert decode(many(), encode(many(), data_of(many(), 1))).shape == (1, 12)
    assert isinstance(Gaussian(torch.zeros(()), torch.ones(())), Gaussian)
