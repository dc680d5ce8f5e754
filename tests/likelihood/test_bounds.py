"""Bounds on -log p: every term by its definition, the limits, the losses, levels."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import mpmath
import numpy as np
import pytest
import torch
from exact_bounds import CHAINS, ENTROPY, between, even_chain, exact_bound, exact_nodes, lattice, vector
from helpers import VARIANCE, gaussian, slope
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from scoresde import (
    DDPM,
    EDMSDE,
    SMLD,
    VESDE,
    VPSDE,
    Affine,
    CosineVPSDE,
    Gaussian,
    GaussianMixtureModel,
    GaussianModel,
    GaussianSDE,
    LevelsDecoder,
    Logit,
    RectifiedFlow,
    ScoreModel,
    SubVPSDE,
    continuous_elbo,
    denoising_score_matching,
    variational_bound,
)

# ---------------------------------------------------------------------------------------------------------------------
# Every term, by its definition


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("name", CHAINS)
def test_terms_are_divergences_of_normal_laws(name: str, variance: str) -> None:
    chain, model = CHAINS[name](), gaussian()
    x = vector(0.1, -1.3, 2.0)
    noise = list(torch.linspace(-2, 2, 3 * len(chain), dtype=torch.float64).reshape(len(chain), 3).flip(1))
    got = variational_bound(model, chain, x, variance=variance, noise=noise)
    zero = torch.zeros((), dtype=torch.float64)
    point = chain.points[-1]
    start = model.moments.at(float(point.alpha), float(point.sigma))
    mean, std = chain.marginal(x, len(chain) - 1)
    prior = kl_divergence(Normal(mean, std), Normal(start.mean, start.variance.sqrt()))
    at = [model.at(chain.perturb(x, i, noise[i]), chain.points[i + 1]).data for i in range(len(chain))]
    first = chain.points[1]
    terms = [-Normal(at[0], first.sigma / first.alpha).log_prob(x)]
    for i in range(1, len(chain)):
        state = chain.perturb(x, i, noise[i])
        p, s = chain.reverse(at[i], state, i, variance=variance)
        q, small = chain.posterior(x, state, i)
        terms.append(kl_divergence(Normal(q, small), Normal(p, s)))
    torch.testing.assert_close(got.terms, torch.stack(terms).mean(1), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(got.per_sample, prior + sum(terms, zero), rtol=1e-10, atol=1e-12)
    assert got.prior == pytest.approx(float(prior.mean()), rel=1e-10, abs=1e-12)
    assert got.total == pytest.approx(got.prior + float(got.terms.sum()), rel=1e-12)
    assert got.reconstruction == float(got.terms[0])


class Wide(nn.Module):
    """A network with a second half that says v."""

    def __init__(self, net: nn.Module, fraction: Tensor) -> None:
        super().__init__()
        self.net, self.fraction = net, fraction

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        v = self.fraction.to(x).expand_as(x)
        return torch.cat([self.net(x, c_noise), 2 * v - 1], 1)


def learned(fraction: Tensor) -> ScoreModel:
    """The exact model of two independent coordinates, whose variance lies at ``fraction``."""
    exact = GaussianModel(sde=VPSDE(), mean=vector(0.2, 0.1), covariance=vector(0.5, 0.9))
    return ScoreModel(Wide(exact.net, fraction), VPSDE(), predicts="v", moments=exact.moments, variance="learned")


def test_learned_variance_by_its_definition() -> None:
    chain, x = DDPM.linear(25), torch.linspace(-1, 2, 6, dtype=torch.float64).reshape(3, 2)
    noise = list(torch.linspace(-2, 2, 150, dtype=torch.float64).reshape(25, 3, 2).flip(1))
    for variance, v in (("small", 0.0), ("large", 1.0)):
        fixed = variational_bound(learned(vector(v)), chain, x, variance=variance, noise=noise)
        found = variational_bound(learned(vector(v)), chain, x, variance="learned", noise=noise)
        torch.testing.assert_close(found.terms, fixed.terms, rtol=1e-10, atol=1e-12)
    fraction = vector(0.3, -0.2)
    model = learned(fraction)
    terms = variational_bound(model, chain, x, variance="learned", noise=noise).terms
    for i in (1, 12, 24):
        state = chain.perturb(x, i, noise[i])
        data = model.at(state, chain.points[i + 1]).data
        p = Normal(*chain.reverse(data, state, i, variance="learned", fraction=fraction.expand(3, 2)))
        q, small = chain.posterior(x, state, i)
        wanted = kl_divergence(Normal(q, small), p).sum(1).mean()
        assert float(terms[i]) == pytest.approx(float(wanted), rel=1e-10)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_gaussian_data_in_closed_form(variance: str) -> None:
    chain = DDPM.linear(60)
    bound = exact_bound(chain, variance=variance)
    alpha, sigma, log_snr = chain.curves
    snr = log_snr.exp()
    share = 1.0 if variance == "small" else (chain.posterior_variance / chain.transition_weights[1].square())[1:]
    error = VARIANCE / (1 + VARIANCE * snr)  # the posterior variance of x_0
    terms = 0.5 * (snr[:-1] - snr[1:]) * error[1:] * share
    if variance == "large":
        terms = terms + 0.5 * (share - 1 - share.log())
    torch.testing.assert_close(bound.terms[1:], terms, rtol=1e-10, atol=1e-12)
    spread = (sigma[0] / alpha[0]).square()
    reconstruction = 0.5 * (2 * math.pi * spread).log() + error[0] / (2 * spread)
    assert bound.reconstruction == pytest.approx(float(reconstruction), rel=1e-10)
    assert bound.prior == pytest.approx(0.5 * math.log1p(VARIANCE * float(snr[-1])), abs=1e-12)
    assert bound.bits_per_dim == pytest.approx(bound.total / math.log(2))


def test_events_of_several_coordinates_with_a_full_covariance() -> None:
    covariance = torch.tensor([[0.5, 0.2, 0.0], [0.2, 0.7, -0.1], [0.0, -0.1, 0.3]], dtype=torch.float64)
    mean, chain = vector(0.3, -0.2, 1.0), DDPM.from_sde(VPSDE(beta_max=3.0), 4)
    model = GaussianModel(sde=VPSDE(), mean=mean, covariance=covariance)
    x = torch.stack([mean + 0.4, vector(0.0, 1.0, -1.0)])
    noise = list(torch.linspace(-1.5, 1.4, 24, dtype=torch.float64).reshape(4, 2, 3))
    bound = variational_bound(model, chain, x, noise=noise)
    last = chain.points[-1]
    start = MultivariateNormal(
        last.alpha * mean, last.alpha**2 * covariance + last.sigma**2 * torch.eye(3, dtype=torch.float64)
    )
    here = MultivariateNormal(last.alpha * x, last.sigma**2 * torch.eye(3, dtype=torch.float64).expand(2, 3, 3))
    total = kl_divergence(here, start)
    for i in range(4):
        point, state = chain.points[i + 1], chain.perturb(x, i, noise[i])
        law = point.alpha**2 * covariance + point.sigma**2 * torch.eye(3, dtype=torch.float64)
        data = mean + torch.linalg.solve(law, (state - point.alpha * mean).T).T @ (point.alpha * covariance)
        if i == 0:
            total = total - Normal(data, point.sigma / point.alpha).log_prob(x).sum(1)
        else:
            gap = chain.curves[2].exp()[i - 1] - chain.curves[2].exp()[i]
            total = total + 0.5 * gap * (x - data).square().sum(1)
    torch.testing.assert_close(bound.per_sample, total, rtol=1e-10, atol=1e-10)
    assert bound.bits_per_dim == pytest.approx(bound.total / (3 * math.log(2)))


def test_independent_coordinates_add_up() -> None:
    x = torch.linspace(-1, 2, 6, dtype=torch.float64).reshape(3, 2)
    noise = list(torch.linspace(-2, 2, 150, dtype=torch.float64).reshape(25, 3, 2).flip(1))
    both = GaussianModel(sde=VPSDE(), mean=vector(0.2, 0.1), covariance=vector(0.5, 0.9))
    parts = [gaussian(mean=m, variance=c) for m, c in ((0.2, 0.5), (0.1, 0.9))]
    for prior in (None, Gaussian(vector(0.1)[0], vector(1.3)[0])):
        chain = variational_bound(both, DDPM.linear(25), x, prior=prior, noise=noise).per_sample
        limit = continuous_elbo(both, VPSDE(), x, prior=prior, samples=24, noise=noise).per_sample
        for d, part in enumerate(parts):
            z = [c[:, d] for c in noise]
            chain = chain - variational_bound(part, DDPM.linear(25), x[:, d], prior=prior, noise=z).per_sample
            limit = limit - continuous_elbo(part, VPSDE(), x[:, d], prior=prior, samples=24, noise=z).per_sample
        torch.testing.assert_close(torch.stack([chain, limit]), torch.zeros(2, 3).double(), rtol=0, atol=1e-10)


def test_a_prior_of_ones_own_and_one_without_moments() -> None:
    chain, (x, z) = DDPM.linear(30), exact_nodes()
    bare = ScoreModel(gaussian().net, VPSDE(), predicts="v")
    own = Gaussian(vector(0.4)[0], vector(1.7)[0])
    last = chain.points[-1]
    here = Normal(last.alpha * x, last.sigma)
    for model, prior, law in (
        (bare, None, Normal(0.0 * x, 1.0)),
        (gaussian(), own, Normal(0.4 + 0 * x, math.sqrt(1.7))),
    ):
        bound = variational_bound(model, chain, x, prior=prior, noise=[z] * 30)
        assert bound.prior == pytest.approx(float(kl_divergence(here, law).mean()), rel=1e-10)
    levels = SMLD.geometric(30)
    bound = variational_bound(bare, levels, x, noise=[z] * 30)
    assert bound.prior == pytest.approx(float((x.square() / (2 * 50.0**2)).mean()), rel=1e-8)


# ---------------------------------------------------------------------------------------------------------------------
# The limits


def test_bound_falls_to_its_continuous_limit_at_first_order() -> None:
    steps = (80, 160, 320, 640)
    log_snr = vector(8.0, -8.0)
    mutual = 0.5 * torch.log1p(VARIANCE * log_snr.exp())  # of the data and the state
    first = exact_bound(even_chain(2)).reconstruction
    limit = first + float(mutual[0] - mutual[1]) + float(mutual[1])
    bounds = [exact_bound(even_chain(n)).total for n in steps]
    assert all(a > b > limit > ENTROPY for a, b in itertools.pairwise(bounds))
    assert slope([b - limit for b in bounds], [n - 1 for n in steps]) == pytest.approx(1.0, abs=0.05)
    # The end at log_snr = 8 costs what the decoder does not know.
    spread = math.exp(-8.0)
    assert limit - ENTROPY == pytest.approx(
        0.5 * math.log1p(spread / VARIANCE) - 0.5 * spread / (VARIANCE + spread), rel=1e-9
    )


@pytest.mark.parametrize("high", [4.0, 8.0, 12.0, 16.0])
def test_continuous_bound_becomes_minus_log_p_as_the_lower_end_falls(high: float) -> None:
    # Each stratum's mean is between the integrand at its ends, which grows with log_snr: no statistics.
    x, z = exact_nodes()
    sde, samples = between(VPSDE(), high, -8.0), 4000
    bound = continuous_elbo(gaussian(sde), sde, x, samples=samples, noise=[z] * (samples + 1))
    spread = math.exp(-high)
    excess = 0.5 * math.log1p(spread / VARIANCE) - 0.5 * spread / (VARIANCE + spread)
    resolution = 0.5 * (high + 8.0) / samples
    assert bound.total - ENTROPY == pytest.approx(excess, abs=resolution)
    assert 0 < excess < 0.6 * spread / VARIANCE * 0.5 * spread / VARIANCE  # second order in sigma^2
    assert bound.total == pytest.approx(bound.prior + float(bound.terms.sum()), rel=1e-12)
    assert len(bound.terms) == samples + 1
    # The parts of the integral, from the data's end on.
    lam = torch.linspace(high, -8.0, samples + 1, dtype=torch.float64)
    parts = (0.5 * torch.log1p(VARIANCE * lam.exp())).diff().neg()
    torch.testing.assert_close(bound.terms[1:], parts, rtol=0.01, atol=1e-9)


def test_bounds_of_a_mixture_fall_to_minus_log_p_from_above() -> None:
    sde = between(VPSDE(), 9.0, -9.0)
    model = GaussianMixtureModel(sde=sde, weights=vector(1, 2), means=vector(-1.0, 0.8), std=0.5)
    # The trapezoidal rule, which for these smooth densities is exact to 1e-9.
    x, z = (a.reshape(-1) for a in torch.meshgrid(lattice(4.5, 60), lattice(6.5, 28), indexing="ij"))
    weight = (model.log_prob(x) - 0.5 * z.square()).exp()
    weight = weight / weight.sum()
    entropy = -float((weight * model.log_prob(x)).sum())
    steps = (40, 80, 160, 320)
    bounds = [
        float((weight * variational_bound(model, chain, x, noise=[z] * len(chain), chunk_size=4000).per_sample).sum())
        for chain in (even_chain(n, 9.0, -9.0) for n in steps)
    ]
    # The limit of a sequence whose errors are of first, second and third order in 1/(n - 1).
    fit = np.vander(1 / (np.array(steps) - 1.0), increasing=True)
    limit = float(np.linalg.solve(fit, bounds)[0])
    assert limit == pytest.approx(entropy, abs=5e-5)
    assert all(a > b > entropy for a, b in itertools.pairwise(bounds))
    assert slope([b - entropy for b in bounds[1:]], [n - 1 for n in steps[1:]]) == pytest.approx(1.0, abs=0.1)
    samples = 120
    continuous = continuous_elbo(model, sde, x, samples=samples, noise=[z] * (samples + 1), chunk_size=4000)
    assert float((weight * continuous.per_sample).sum()) == pytest.approx(limit, abs=9.0 / samples)


def test_on_knots_i_over_n_the_excess_tends_to_half_eulers_constant() -> None:
    # Near the data nu^2 is proportional to i: layer i costs 1/(2i), not the log(1 + 1/i)/2 of its continuous part.
    euler = 0.5772156649015329

    def excess(n: int, variance: str) -> float:
        spread = 1e-7 * torch.arange(1, n + 1, dtype=torch.float64)  # nu^2, small beside the data's variance
        logs = -torch.log1p(spread)
        chain = DDPM(logs.diff(prepend=torch.zeros(1, dtype=torch.float64)))
        return exact_bound(chain, variance=variance).total - ENTROPY

    small = [excess(n, "small") for n in (50, 200, 800)]
    harmonic = [0.5 * (sum(1 / k for k in range(1, n)) - math.log(n)) for n in (50, 200, 800)]
    assert small == pytest.approx(harmonic, abs=1e-3)
    assert small[-1] == pytest.approx(0.5 * euler, abs=1.5e-3)
    # The transition's own variance is that of the true reverse step where the density is flat: no excess.
    assert [excess(n, "large") for n in (50, 200, 800)] == pytest.approx([0.0] * 3, abs=1e-3)


def test_on_the_knots_of_a_vp_sde_more_steps_leave_an_excess() -> None:
    bounds = {n: exact_bound(DDPM.from_sde(VPSDE(), n)) for n in (250, 1000, 4000)}
    excess = [b.total - ENTROPY for b in bounds.values()]
    assert excess[0] > excess[1] > excess[2] > 0.2886
    # The reconstruction moves with n, by log(n)/2 where sigma^2 is proportional to 1/n.
    drop = bounds[1000].reconstruction - bounds[4000].reconstruction
    sigma = [float(DDPM.from_sde(VPSDE(), n).points[1].sigma) for n in (1000, 4000)]
    assert drop == pytest.approx(math.log(sigma[0] / sigma[1]), abs=1e-3)
    large = [exact_bound(DDPM.from_sde(VPSDE(), n), variance="large").total - ENTROPY for n in (250, 1000)]
    assert large[0] > large[1] > 0
    assert large[1] < 0.002
    assert slope(large, (250, 1000)) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    "other", [CosineVPSDE(), SubVPSDE(), EDMSDE(), VESDE(), RectifiedFlow()], ids=lambda s: type(s).__name__
)
def test_continuous_bound_does_not_depend_on_the_schedule(other: GaussianSDE) -> None:
    high, low = 7.0, -7.0
    model = GaussianMixtureModel(sde=VPSDE(), weights=vector(1, 2), means=vector(-1.0, 0.8), std=0.3)
    x = vector(-1.2, -0.7, 0.3, 0.9, 2.0)
    options: dict[str, object] = {"samples": 6, "seed": 3}
    reference = continuous_elbo(model, between(VPSDE(), high, low), x, **options)
    found = continuous_elbo(model, between(other, high, low), x, **options)
    torch.testing.assert_close(found.per_sample, reference.per_sample, rtol=1e-7, atol=1e-7)
    wider = continuous_elbo(model, between(other, high + 1, low), x, **options)
    assert abs(wider.total - reference.total) > 1e-3


# ---------------------------------------------------------------------------------------------------------------------
# The losses


def test_simple_loss_is_the_denoising_loss_with_weight_sigma_squared() -> None:
    chain, model = DDPM.linear(25), gaussian().with_sde(DDPM.linear(25).sde())
    x, index, z = vector(0.3, -0.5, 1.9), torch.tensor([0, 9, 19]), vector(0.7, -1.1, 0.2)
    state, point = chain.perturb(x, index, z), chain.points[index + 1]
    simple = (model.at(state, point).noise - z).square()
    score_error = model.at(state, point).score + z / point.sigma
    torch.testing.assert_close(simple, point.sigma.square() * score_error.square(), rtol=1e-10, atol=1e-12)
    loss = denoising_score_matching(model, x, weight="simple", t=chain.times[index], noise=z)
    torch.testing.assert_close(loss, simple, rtol=1e-9, atol=1e-12)


def test_a_layer_tends_to_the_likelihood_weighted_loss_times_the_step() -> None:
    x, z, sde = vector(0.3, -0.5), vector(0.7, -1.1), VPSDE()
    errors, steps = [], (100, 200, 400, 800)
    for n in steps:
        chain = DDPM.from_sde(sde, n)
        index = n // 2 - 1  # t = 1/2
        layer = variational_bound(gaussian(), chain, x, noise=[z] * n).terms[index]
        loss = denoising_score_matching(gaussian(), x, weight="likelihood", t=0.5, noise=z).mean()
        errors.append(float(layer / loss * n) - 1)
    assert abs(errors[-1]) < 0.02
    assert slope(errors, steps) == pytest.approx(1.0, abs=0.05)


# ---------------------------------------------------------------------------------------------------------------------
# Levels


@pytest.mark.parametrize("transform", [None, Affine(0.5, 0.5), Logit(1e-3, -0.1, 1.1)], ids=str)
@pytest.mark.parametrize(("mean", "std"), [(0.2, 0.01), (0.5, 3.0), (-40.0, 0.2), (3.0, 0.004)])
def test_probabilities_of_the_levels_sum_to_one(transform: object, mean: float, std: float) -> None:
    decoder = LevelsDecoder(64, 0.0, 1.0)
    x = torch.linspace(0, 1, 64, dtype=torch.float64)
    y = x if transform is None else transform.forward(x)
    log_p = -decoder.nats(y, torch.full_like(y, mean), std, transform)
    assert float(torch.logsumexp(log_p, 0)) == pytest.approx(0.0, abs=1e-10)
    assert bool((log_p <= 0).all())


def test_levels_against_mpmath() -> None:
    decoder, width = LevelsDecoder(256), 2 / 255
    level = torch.tensor([0, 1, 100, 200, 254, 255])
    y = -1 + width * level.double()
    with mpmath.workdps(60):
        for mean, std in ((0.1, 0.05), (0.9, 0.003), (-2.0, 0.01)):
            got = decoder.nats(y, torch.full_like(y, mean), std, None)
            for k, found in zip(level.tolist(), got.tolist(), strict=True):
                lower = -mpmath.inf if k == 0 else mpmath.mpf(-1) + mpmath.mpf(2) * (k - mpmath.mpf(1) / 2) / 255
                upper = mpmath.inf if k == 255 else mpmath.mpf(-1) + mpmath.mpf(2) * (k + mpmath.mpf(1) / 2) / 255
                a, b = ((end - mpmath.mpf(mean)) / mpmath.mpf(std) for end in (lower, upper))
                a, b = (a, b) if a + b <= 0 else (-b, -a)
                probability = (mpmath.erfc(-b / mpmath.sqrt(2)) - mpmath.erfc(-a / mpmath.sqrt(2))) / 2
                assert found == pytest.approx(float(-mpmath.log(probability)), rel=1e-9)


def test_bound_on_levels_is_one_on_their_probability() -> None:
    # Two levels in a chain of one index: the reconstruction is the model's own law of the levels, exactly.
    chain, decoder = DDPM.from_sde(VPSDE(), 1), LevelsDecoder(2, 3.0, 5.0)
    model = GaussianModel(sde=VPSDE(), mean=vector(0.1)[0], covariance=vector(0.8)[0])
    model.transform = Affine(4.0, 1.0)
    x, z = vector(3.0, 5.0), vector(0.5, -0.5)
    bound = variational_bound(model, chain, x, decoder=decoder, noise=[z])
    point = chain.points[1]
    data = model.at(chain.perturb(x - 4.0, 0, z), point).data
    above = 1 - Normal(data, point.sigma / point.alpha).cdf(torch.zeros(2, dtype=torch.float64))
    wanted = -torch.stack([1 - above[0], above[1]]).log()
    assert bound.reconstruction == pytest.approx(float(wanted.mean()), rel=1e-9)
    assert bound.discrete
    assert bound.log_abs_det == 0
    stated = variational_bound(model, chain, x, decoder=replace(decoder, std=0.2), noise=[z])
    assert stated.reconstruction != pytest.approx(bound.reconstruction, rel=1e-3)
