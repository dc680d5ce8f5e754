"""Feynman-Kac correctors against exact products: powers of Gaussians, products, guided mixtures by quadrature."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scoresde import (
    EDMSDE,
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    GaussianMixtureModel,
    GaussianModel,
    GaussianSDE,
    RectifiedFlow,
    correct,
    guided,
    product,
    sample,
)
from scoresde.noise import normal, stream
from scoresde.sampling.particles import Population, _Factor, _step, levels

MEAN, VARIANCE = torch.tensor([0.7, -1.0]), torch.tensor([0.5, 2.0])
N = 4000
WEIGHTS, MEANS, STD = torch.tensor([0.3, 0.7]), torch.tensor([[-1.5], [1.0]]), 0.3


def gaussian(sde: GaussianSDE, mean: Tensor = MEAN, variance: Tensor = VARIANCE) -> GaussianModel:
    return GaussianModel(sde=sde, mean=mean, covariance=variance)


def weighted(particles) -> tuple[Tensor, Tensor]:
    w, x = particles.log_weights.exp()[:, None], particles.x.double()
    mean = (w * x).sum(0)
    return mean, (w * (x - mean) ** 2).sum(0)


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE(), RectifiedFlow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("power", [0.7, 1.0, 2.0, 4.0])
def test_a_power_of_a_gaussian(sde: GaussianSDE, power: float) -> None:
    """q^b of N(m, C) is N(m, C/b); the mass of q_t^b is known, so its ratio is, too."""
    found = correct(product([gaussian(sde)], [power]), N, steps=30, seed=1)
    mean, variance = weighted(found)
    room = 6 * math.sqrt(2.0 / float(found.ess.min()))
    torch.testing.assert_close(mean, MEAN.double(), rtol=0, atol=room)
    torch.testing.assert_close(variance, VARIANCE.double() / power, rtol=room, atol=0)
    point = levels(sde, 30)
    first, last = (VARIANCE.double() + math.exp(-float(point.log_snr[k])) for k in (0, -1))
    exact = float(0.5 * (1 - power) * (last.log() - first.log()).sum())
    assert found.log_normaliser == pytest.approx(exact, abs=6 * found.log_normaliser_error + 1e-4)
    # All weights are equal where the noise is large against the data, and of the law itself everywhere.
    far = int((torch.exp(-point.log_snr[1:]) >= 30 * float(VARIANCE.max())).sum()) if power != 1 else 30
    assert far > 0
    assert found.ess[:far].tolist() == pytest.approx([N] * far)


def test_a_product_of_gaussians_where_the_sum_of_scores_fails() -> None:
    sde = VPSDE()
    a = gaussian(sde)
    b = gaussian(sde, torch.tensor([-0.5, 0.5]), torch.tensor([0.3, 0.8]))
    both = product([a, b])
    precision = 1 / VARIANCE.double() + 1 / torch.tensor([0.3, 0.8], dtype=torch.float64)
    exact = (
        MEAN.double() / VARIANCE.double()
        + torch.tensor([-0.5, 0.5], dtype=torch.float64) / torch.tensor([0.3, 0.8], dtype=torch.float64)
    ) / precision
    mean, variance = weighted(correct(both, N, steps=60, seed=0))
    torch.testing.assert_close(mean, exact, rtol=0, atol=0.06)
    torch.testing.assert_close(variance, 1 / precision, rtol=0.12, atol=0)
    # Following the score alone.
    plain = sample(both, (N, 2), solver="ancestral", steps=200, seed=0).double()
    assert float((plain.var(0) * precision - 1).abs().max()) > 0.25


def test_posteriors_of_single_observations_make_that_of_all() -> None:
    """theta ~ N(0, 1), x_i ~ N(theta, s^2): prod_i p(theta | x_i) p(theta)^{1 - n} is p(theta | x_1, ..., x_n)."""
    sde, std, seen = VPSDE(), 0.7, (0.4, 1.3, 0.9)
    ones = [gaussian(sde, torch.tensor([x / (1 + std**2)]), torch.tensor([std**2 / (1 + std**2)])) for x in seen]
    whole = product([*ones, gaussian(sde, torch.zeros(1), torch.ones(1))], [1.0, 1.0, 1.0, -2.0])
    mean, variance = weighted(correct(whole, N, steps=40, seed=0))
    precision = 1 + 3 / std**2
    assert float(mean) == pytest.approx(sum(seen) / std**2 / precision, abs=0.03)
    assert float(variance) == pytest.approx(1 / precision, rel=0.1)


def density(model: GaussianMixtureModel, x: Tensor) -> Tensor:
    return model.log_prob(x[:, None])


@pytest.mark.parametrize("power", [0.6, 2.0])
def test_a_power_of_a_mixture_of_two_widths(power: float) -> None:
    """p^b by quadrature: shares move between modes by their widths, which the noise of the particles must not hide."""
    model = GaussianMixtureModel(
        sde=VPSDE(),
        weights=torch.tensor([0.5, 0.5]),
        means=torch.tensor([[-1.0], [1.0]]),
        std=torch.tensor([0.2, 0.6]),
    )
    x = torch.linspace(-6, 6, 6001, dtype=torch.float64)
    mass = (power * density(model, x)).exp()
    share = float(mass[x < -0.3].sum() / mass.sum())
    runs = [correct(product([model], [power]), N, steps=150, seed=seed) for seed in range(4)]
    found = sum(float((run.log_weights.exp() * (run.x[:, 0] < -0.3)).sum()) for run in runs) / 4
    assert found == pytest.approx(share, abs=0.08)  # one run errs by 0.04, measured; half as much noise finds 0.54
    # The mass of the start is that of a power of the Gaussian that p is at t_max, in x/alpha.
    first = torch.exp(-levels(model.sde, 150).log_snr[0]) + model.moments.variance.double()
    start = float(0.5 * (1 - power) * torch.log(2 * math.pi * first) - 0.5 * math.log(power))
    exact = math.log(float(mass.sum() * (x[1] - x[0]))) - start
    assert sum(run.log_normaliser for run in runs) / 4 == pytest.approx(exact, abs=0.25)


@pytest.mark.parametrize(("ratio", "share"), [(31.0, 3.0), (29.0, 1.0), (1.0, 1.0)])
def test_particles_move_with_less_noise_only_where_every_law_is_a_gaussian(ratio: float, share: float) -> None:
    """In a small step by the diffusion's own noise over W where nu^2 > 30 c, by all of it below."""
    factors = [_Factor(1.5, torch.zeros(2), torch.tensor([0.2, 0.5], dtype=torch.float64))] * 2
    after = math.sqrt(0.5 * ratio)
    nu = after * (1 + 1e-4)
    _, spread, _ = _step(factors, [torch.zeros(3, 2, dtype=torch.float64)] * 2, nu, after)
    torch.testing.assert_close(
        spread.square() * share / (nu**2 - after**2), torch.ones(2, dtype=torch.float64), rtol=2e-3, atol=0
    )


@pytest.mark.parametrize("scale", [2.0, 4.0])
def test_guidance_samples_what_it_claims_to(scale: float) -> None:
    """p(x)^{1-w} p(x|y)^w in one dimension, by quadrature; plain guidance is off by a multiple."""
    sde = VPSDE()
    whole = GaussianMixtureModel(sde=sde, weights=WEIGHTS, means=MEANS, std=STD)
    one = GaussianMixtureModel(sde=sde, weights=torch.tensor([0.8, 0.2]), means=torch.tensor([[0.8], [-1.2]]), std=0.35)
    model = product([one, whole], [scale, 1 - scale])
    x = torch.linspace(-6, 6, 6001, dtype=torch.float64)
    log = scale * density(one, x) + (1 - scale) * density(whole, x)
    mass = torch.softmax(log, 0)
    mean = float((mass * x).sum())
    std = math.sqrt(float((mass * (x - mean) ** 2).sum()))
    found_mean, found_variance = weighted(correct(model, N, steps=300, seed=3))
    plain = sample(model, (N, 1), solver="ancestral", steps=300, seed=3).double()
    error = abs(float(found_mean) - mean) + abs(math.sqrt(float(found_variance)) - std)
    biased = abs(float(plain.mean()) - mean) + abs(float(plain.std()) - std)
    assert error < 0.1
    assert biased > 2 * error


def test_runs_repeat_and_chunks_change_nothing() -> None:
    model = product([gaussian(VPSDE())], [2.0])
    one, two = (correct(model, 50, steps=20, seed=5, chunk_size=size) for size in (None, 7))
    torch.testing.assert_close(one.x, two.x, rtol=1e-5, atol=1e-5)
    assert one.resampled == two.resampled
    assert not torch.equal(correct(model, 50, steps=20, seed=6).x, one.x)
    assert one.nfe == 20
    again = one.samples(20, seed=1)
    assert again.shape == (20, 2)
    assert "resampled" in repr(one)


def test_systematic_resampling_keeps_shares() -> None:
    """A particle of weight w is taken floor(n w) or ceil(n w) times."""
    population = Population(8, 1.0, 0)
    more = torch.log(torch.tensor([4.0, 2.0, 1.0, 0.5, 0.25, 0.25, 0.0, 0.0], dtype=torch.float64))
    places = population.reweigh(more)
    assert places is not None
    counts = torch.bincount(places, minlength=8)
    assert counts.tolist()[:3] == [4, 2, 1]
    assert int(counts.sum()) == 8
    assert counts.tolist()[6:] == [0, 0]
    assert population.log_normaliser == pytest.approx(0.0, abs=1e-12)
    assert population.ess[0] == pytest.approx(64 / float(more.exp().square().sum()))


def test_families_say_how_far_a_population_errs() -> None:
    """By hand: two steps of three particles, resampled in between."""
    population = Population(3, 1.0, 0)
    places = population.reweigh(torch.log(torch.tensor([1.0, 1.0, 4.0])))
    assert places is not None
    first = torch.tensor([1.0, 1.0, 4.0]).double() / 6
    assert population.result(torch.zeros(3, 1), 1).log_normaliser_error == pytest.approx(float((first - 1 / 3).norm()))
    population.reweigh(torch.log(torch.tensor([2.0, 1.0, 1.0])))
    second, weights = torch.zeros(3).double(), torch.tensor([0.5, 0.25, 0.25]).double()
    for place, weight in zip(places.tolist(), weights, strict=True):
        second[place] += weight
    assert population.log_normaliser_error == pytest.approx(math.sqrt(float(second.square().sum()) - 1 / 3))


@pytest.mark.parametrize("threshold", [0.0, 0.9])
def test_the_error_of_a_populations_mass_is_that_of_many(threshold: float) -> None:
    """Gaussian random walks with weights exp(x): the deviation of 300 populations, resampled at every other step."""
    logs, errors = [], []
    for seed in range(300):
        draw = stream(seed, "walk")
        x, population = torch.zeros(100, dtype=torch.float64), Population(100, threshold, seed)
        for _ in range(4):
            x = x + 0.4 * normal((100,), draw, dtype=torch.float64)
            places = population.reweigh(0.8 * x)
            x = x if places is None else x[places]
        logs.append(population.log_normaliser)
        errors.append(population.log_normaliser_error)
        assert bool(population.resampled) == (threshold > 0)
    true = float(torch.tensor(logs).std())
    said = float(torch.tensor(errors).square().mean().sqrt())
    assert said == pytest.approx(true, rel=0.25)


def test_what_does_not_suit_is_refused() -> None:
    model = gaussian(VPSDE())
    with pytest.raises(DTypeError, match=r"needs guided\(\.\.\.\) or product"):
        correct(model, 10)
    with pytest.raises(ConfigError, match="on an interval, rescaled"):
        correct(guided(model, 2.0, weak=model, interval=(0.1, 1.0)), 10)
    with pytest.raises(DomainError, match="is no law at t_max"):
        correct(product([model], [-1.0]), 10)
    with pytest.raises(DomainError, match="n must be at least 1"):
        correct(product([model]), 0)
