"""Objectives on a chain: against the laws they are made of, their gradients, under any SDE."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import gaussian
from scipy.optimize import brentq
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from two_headed import CHAINS, F64, X0, Z, some, wide

from scoresde import DDPM, VPSDE, ScoreModel, fit, sample, solvers
from scoresde.likelihood import GaussianDecoder, variational_bound
from scoresde.nn import MLP
from scoresde.noise import normal, stream
from scoresde.training import Trainer
from scoresde.training.losses import ChainLoss, denoising_score_matching

PREDICTS = ["noise", "data", "v", "score", "velocity", "edm"]


def mean(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1).mean(1)


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("name", ["ddpm", "smld"])
def test_the_simple_loss_is_the_denoising_loss_at_the_knots(name: str, predicts: str) -> None:
    chain = CHAINS[name]
    model, i = wide(chain, predicts), some(chain)
    expected = denoising_score_matching(model, X0, weight="simple", t=chain.times[i], noise=Z)
    got = ChainLoss.simple(chain)(model, X0, index=i, noise=Z)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=0)
    seen = model.at(chain.perturb(X0, i, Z), chain.points[i + 1])
    torch.testing.assert_close(got, mean((seen.noise - Z).square()), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("predicts", ["noise", "data", "v"])
@pytest.mark.parametrize("variance", ["small", "large", "learned"])
@pytest.mark.parametrize("name", CHAINS)
def test_the_bound_is_the_divergence_of_two_gaussians(name: str, variance: str, predicts: str) -> None:
    """torch's own divergence of the chain's own laws; at index 0 the decoder's log density."""
    chain = CHAINS[name]
    model, i = wide(chain, predicts), some(chain)
    x = chain.perturb(X0, i, Z)
    seen = model.at(x, chain.points[i + 1])
    options = {"fraction": seen.variance_fraction} if variance == "learned" else {}
    wanted, std = chain.posterior(X0, x, i)
    std = std.reshape(-1, 1, 1)
    guess, wide_std = chain.reverse(seen.data, x, i, variance=variance, **options)
    if variance != "learned":
        # The decoder of a fixed variance has the standard deviation sigma_0/alpha_0.
        wide_std = torch.where(i == 0, (-0.5 * chain.points.log_snr[1]).exp(), wide_std).reshape(-1, 1, 1)
    step = kl_divergence(Normal(wanted, std + (std == 0)), Normal(guess, wide_std))
    decoder = -Normal(guess, wide_std).log_prob(X0)
    expected = mean(torch.where((i == 0).reshape(-1, 1, 1), decoder, step))
    got = ChainLoss.bound(chain, variance=variance)(model, X0, index=i, noise=Z)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_the_indices_sum_to_the_variational_bound(variance: str) -> None:
    """With the same noise at every index; the learned variance's own decoder stands at index 0."""
    chain = CHAINS["ddpm"]
    model, size = wide(chain), X0[0].numel()
    decoder = GaussianDecoder() if variance != "learned" else None
    bound = variational_bound(model, chain, X0, variance=variance, decoder=decoder, noise=[Z] * len(chain))
    loss = ChainLoss.bound(chain, variance=variance)
    terms = [size * loss(model, X0, index=i, noise=Z).mean().item() for i in range(len(chain))]
    first = 1 if variance == "learned" else 0
    assert terms[first:] == pytest.approx(bound.terms.tolist()[first:], rel=1e-9)


def test_the_hybrid_loss_is_the_sum_of_both() -> None:
    chain = CHAINS["ddpm"]
    model, i = wide(chain), some(chain)
    simple, bound, both = (
        loss(model, X0, index=i, noise=Z)
        for loss in (ChainLoss.simple(chain), ChainLoss.bound(chain, variance="learned"), ChainLoss.hybrid(chain))
    )
    torch.testing.assert_close(both, simple + 1e-3 * len(chain) * bound, rtol=1e-12, atol=1e-12)
    heavier = ChainLoss.hybrid(chain, weight=0.5)(model, X0, index=i, noise=Z)
    torch.testing.assert_close(heavier, simple + 0.5 * len(chain) * bound, rtol=1e-12, atol=1e-12)


def test_the_bound_trains_the_variance_and_the_simple_loss_the_mean() -> None:
    """In the hybrid loss no gradient of L_vlb reaches the mean; in the bound alone it does."""
    chain = CHAINS["ddpm"]
    model, i = wide(chain), some(chain)
    parameters = list(model.parameters())

    def gradient(loss: ChainLoss) -> list[float]:
        total = loss(model, X0, index=i, noise=Z).mean()
        got = torch.autograd.grad(total, parameters, allow_unused=True)
        return [0.0 if g is None else float(g) for g in got]

    only_bound = ChainLoss(chain, 0.0, 1.0, "learned", fixed_mean=True)
    on_mean, on_variance = gradient(only_bound)
    assert on_mean == 0.0
    free_mean, free_variance = gradient(ChainLoss.bound(chain, variance="learned"))
    assert abs(free_mean) > 1e-3
    assert on_variance == pytest.approx(free_variance, rel=1e-12)
    simple_mean, simple_variance = gradient(ChainLoss.simple(chain))
    assert simple_variance == 0.0
    hybrid = gradient(ChainLoss.hybrid(chain))
    assert hybrid == pytest.approx([simple_mean, 1e-3 * len(chain) * on_variance], rel=1e-12)


@pytest.mark.parametrize("i", [1, 2, 6, 11])
def test_the_best_learned_variance_is_the_exact_one(i: int) -> None:
    """Gaussian data, exact mean: the bound is least where p's variance is that of x_{i-1} given x_i.

    The loss is quadratic in x_0 and z, so four points of each (two times two) have its exact expectation.
    """
    chain, centre, spread = DDPM.cosine(12), 0.7, 0.5
    exact = gaussian(chain.sde(), centre, spread**2)
    x0, z = (torch.tensor(v, dtype=F64)[:, None] for v in zip(*itertools.product((-1.0, 1.0), repeat=2), strict=True))

    def slope(v: float) -> float:
        number = torch.tensor(v, dtype=F64, requires_grad=True)
        model = ScoreModel(
            lambda x, c: torch.cat([exact.net(x, c), (2 * number - 1).expand_as(x)], 1),
            exact.sde,
            predicts=exact.parameterization,
            variance="learned",
        )
        loss = ChainLoss.hybrid(chain)(model, centre + spread * x0, index=i, noise=z).mean()
        return float(torch.autograd.grad(loss, number)[0])

    best = brentq(slope, -3.0, 3.0, xtol=1e-14)
    signal = chain.points.alpha.square() * spread**2 + chain.points.sigma.square()
    step = chain.points.alpha[i + 1] / chain.points.alpha[i]
    # Of x_{i-1} given x_i, two Gaussians whose covariance is the step times the first one's variance.
    posterior = float(signal[i] - (step * signal[i]).square() / signal[i + 1])
    small, large = (float(s[i]) ** 2 for s in chain.learned_range)
    assert small < posterior < large
    assert small ** (1 - best) * large**best == pytest.approx(posterior, rel=1e-10)


@pytest.mark.parametrize("predicts", PREDICTS)
def test_an_index_and_its_time_are_the_same_call_of_the_network(predicts: str) -> None:
    sde = VPSDE()
    chain, i, x0, z = DDPM.from_sde(sde, 20), torch.arange(0, 20, 3), X0[:, 0], Z[:, 0]
    calls: list[tuple[Tensor, Tensor]] = []

    def net(x: Tensor, c_noise: Tensor) -> Tensor:
        calls.append((x, c_noise))
        return torch.tanh(x)

    losses = [
        loss
        for model in (ScoreModel(net, sde, predicts=predicts), ScoreModel(net, chain.sde(), predicts=predicts))
        for loss in (
            ChainLoss.simple(chain)(model, x0, index=i, noise=z),
            denoising_score_matching(model, x0, weight="simple", t=chain.times[i], noise=z),
        )
    ]
    # The velocity's target has the SDE's rates in it, which the curve through the knots has between them only nearly.
    compared = losses[:2] if predicts == "velocity" else losses
    for loss in compared[1:]:
        torch.testing.assert_close(loss, compared[0], rtol=1e-8, atol=0)
    for x, c_noise in calls[1:]:
        torch.testing.assert_close(x, calls[0][0], rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(c_noise, calls[0][1], rtol=1e-11, atol=1e-12)


def test_a_network_trained_on_the_chain_samples_under_the_sde_and_back() -> None:
    sde = VPSDE()
    chain, data = DDPM.from_sde(sde, 10), normal((40, 2), stream(2))
    trained = fit(
        ScoreModel(MLP(2, width=8, depth=1), chain.sde()),
        data,
        steps=3,
        objective=ChainLoss.simple(chain),
        progress=False,
    ).model
    times = torch.cat([chain.times.flip(0), torch.zeros(1, dtype=F64)])
    x = normal((5, 2), stream(3))
    on_chain = sample(trained, x_init=x, solver=chain.ancestral(), final="sample", seed=1)
    under_sde = sample(trained, sde=sde, x_init=x, solver=solvers.ancestral()(sde, times), final="sample", seed=1)
    torch.testing.assert_close(under_sde, on_chain, rtol=1e-5, atol=1e-6)
    other = fit(ScoreModel(MLP(2, width=8, depth=1), sde), data, steps=3, progress=False).model
    loss = ChainLoss.simple(chain)(other, x, index=4, noise=x)
    torch.testing.assert_close(
        loss, denoising_score_matching(other, x, weight="simple", t=float(chain.times[4]), noise=x)
    )
    assert sample(other, x_init=x, solver=chain.ddim(), final="sample").isfinite().all()


def test_a_trained_variance_lies_where_it_should() -> None:
    """The hybrid loss with an exact mean and one number v an index, trained by the loop to the optimum."""
    chain = DDPM.cosine(4)
    exact = gaussian(chain.sde(), 0.0, 0.25)

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.u = nn.Parameter(torch.zeros(4, dtype=F64))

        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            i = (c_noise[:, None] - chain.points.log_snr[1:]).abs().argmin(1)
            return torch.cat([exact.net(x, c_noise), self.u[i][:, None].expand_as(x)], 1)

    net = Table()
    model = ScoreModel(net, exact.sde, predicts=exact.parameterization, variance="learned")
    x0 = 0.5 * torch.tensor([[1.0], [-1.0]], dtype=F64).repeat(32, 1)
    trainer = Trainer(model, objective=ChainLoss.hybrid(chain, weight=1.0), learning_rate=0.05, clip_norm=None, seed=5)
    for _ in range(300):
        trainer(x0)
    points, (small, large) = chain.points, chain.learned_range
    signal = points.alpha.square() * 0.25 + points.sigma.square()
    posterior = signal[:-1] - ((points.alpha[1:] / points.alpha[:-1]) * signal[:-1]) ** 2 / signal[1:]
    best = (posterior / small.square()).log() / (large / small).square().log()
    torch.testing.assert_close(net.u.detach()[1:], (2 * best - 1)[1:], rtol=0, atol=0.15)
