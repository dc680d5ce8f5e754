"""Objectives on a chain: against the laws they are made of, their gradients, their indices, in the training loop."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import Net, gaussian
from scipy.optimize import brentq
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from scoresde import (
    DDPM,
    SMLD,
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    ScoreModel,
    ShapeError,
    SolverError,
    fit,
    sample,
    solvers,
)
from scoresde.chains.base import Chain
from scoresde.likelihood import GaussianDecoder, variational_bound
from scoresde.nn import MLP
from scoresde.noise import normal, stream
from scoresde.training import Trainer
from scoresde.training.losses import ChainLoss, ImportanceIndices, denoising_score_matching

F64 = torch.float64
CHAINS: dict[str, Chain] = {
    "ddpm": DDPM.cosine(12),
    "smld": SMLD.geometric(9, sigma_max=8.0),
    "one": DDPM.linear(1, beta_end=0.3),
}
PREDICTS = ["noise", "data", "v", "score", "velocity", "edm"]
X0, Z = normal((7, 2, 3), stream(0), dtype=F64), normal((7, 2, 3), stream(1), dtype=F64)


class Wide(nn.Module):
    """F = a tanh(x + c/10) and u = b sin(3 x), with a parameter each."""

    def __init__(self, dtype: torch.dtype = F64) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.tensor(value, dtype=dtype)) for value in (0.8, 0.7))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        f = self.a * torch.tanh(x + 0.1 * c_noise.reshape(-1, *(1,) * (x.ndim - 1)))
        return torch.cat([f, self.b * torch.sin(3 * x)], 1)


def wide(chain: Chain, predicts: str = "noise") -> ScoreModel:
    sde = chain.sde() if len(chain) > 1 else VPSDE()
    return ScoreModel(Wide(), sde, predicts=predicts, variance="learned")


def some(chain: Chain) -> Tensor:
    return torch.arange(7) % len(chain)


def mean(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1).mean(1)


# ---------------------------------------------------------------------------------------------------------------------
# What each objective is


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("name", ["ddpm", "smld"])
def test_the_simple_loss_is_the_denoising_loss_at_the_knots(name: str, predicts: str) -> None:
    chain = CHAINS[name]
    model, i = wide(chain, predicts), some(chain)
    expected = denoising_score_matching(model, X0, t=chain.times[i], noise=Z)
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
    torch.testing.assert_close(both, simple + 1e-3 * len(chain) * bound, rtol=1e-12, atol=0)
    heavier = ChainLoss.hybrid(chain, weight=0.5)(model, X0, index=i, noise=Z)
    torch.testing.assert_close(heavier, simple + 0.5 * len(chain) * bound, rtol=1e-12, atol=0)


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


# ---------------------------------------------------------------------------------------------------------------------
# One network, on the chain and under the SDE


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
            denoising_score_matching(model, x0, t=chain.times[i], noise=z),
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
    torch.testing.assert_close(loss, denoising_score_matching(other, x, t=float(chain.times[4]), noise=x))
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


# ---------------------------------------------------------------------------------------------------------------------
# Indices


def test_indices_are_spread_evenly() -> None:
    """A batch of a multiple of n holds every index equally often, whatever the generator."""
    chain = CHAINS["ddpm"]
    model, seen = wide(chain), list[float]()
    net = ScoreModel(lambda x, c: (seen.extend(c.tolist()), model.net(x, c))[1], model.sde, variance="learned")
    losses = ChainLoss.simple(chain)(net, X0.repeat(12, 1, 1), stream(4))
    assert losses.shape == (84,)
    found = torch.tensor(seen, dtype=F64)[:, None] - chain.points.log_snr[1:]
    assert torch.equal(found.abs().argmin(1).bincount(minlength=12), torch.full((12,), 7))
    again = ChainLoss.simple(chain)(net, X0.repeat(12, 1, 1), stream(4))
    assert torch.equal(losses, again)
    assert not torch.equal(losses, ChainLoss.simple(chain)(net, X0.repeat(12, 1, 1), stream(5)))


def test_importance_sampling_keeps_the_mean() -> None:
    """Indices come as often as their probability says, and the weights 1/(n p) put the mean back."""
    chain = CHAINS["ddpm"]
    indices = ImportanceIndices(12, history=2, uniform_share=0.1)
    size = torch.arange(1, 13, dtype=F64) ** 2
    for _ in range(2):
        indices.update(torch.arange(12), size)
    law = 0.9 * size / size.sum() + 0.1 / 12
    torch.testing.assert_close(indices.probabilities, law, rtol=1e-12, atol=0)
    calls: list[Tensor] = []

    class Recorder(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            calls.append((c_noise[:, None] - chain.points.log_snr[1:]).abs().argmin(1))
            return torch.zeros_like(x)

    model, batch = ScoreModel(Recorder(), chain.sde()), 4000
    ones = torch.ones(batch, 1, dtype=F64)
    with torch.no_grad():
        losses = ChainLoss.simple(chain, indices=indices)(model, ones, stream(6), noise=ones)
    counts = calls[0].bincount(minlength=12)
    assert float((counts - batch * law).abs().max()) <= 1.0
    # The error of a network that says 0 is z = 1, so each loss is its weight.
    torch.testing.assert_close(losses, 1 / (12 * law[calls[0]]), rtol=1e-9, atol=0)
    assert float(losses.mean()) == pytest.approx(1.0, abs=12 / batch / float(law.min()))


def test_history_forgets_the_oldest_and_what_is_not_finite() -> None:
    indices = ImportanceIndices(3, history=2, uniform_share=0.0)
    even = torch.full((3,), 1 / 3, dtype=F64)
    for value in (1.0, math.nan, math.inf):
        indices.update(torch.tensor([0, 1, 2]), torch.full((3,), value))
        assert torch.equal(indices.probabilities, even)
    indices.update(torch.tensor([0, 1, 2]), torch.tensor([1.0, 1.0, 3.0]))
    size = torch.tensor([1.0, 1.0, math.sqrt(5.0)], dtype=F64)
    torch.testing.assert_close(indices.probabilities, size / size.sum(), rtol=1e-12, atol=0)
    indices.update(torch.tensor([0, 0, 0]), torch.tensor([7.0, 2.0, 4.0]))
    size[0] = math.sqrt(10.0)
    torch.testing.assert_close(indices.probabilities, size / size.sum(), rtol=1e-12, atol=0)
    zero = ImportanceIndices(2, history=1)
    zero.update(torch.tensor([0, 1]), torch.zeros(2))
    assert torch.equal(zero.probabilities, torch.full((2,), 0.5, dtype=F64))


def test_a_loss_feeds_its_indices_while_it_trains() -> None:
    chain = DDPM.cosine(3)
    indices = ImportanceIndices(3, history=1, uniform_share=0.0)
    loss, model = ChainLoss.bound(chain, indices=indices), wide(chain)
    with torch.no_grad():
        loss(model, X0, index=torch.tensor([0, 1, 2, 0, 1, 2, 0]), noise=Z)
    assert torch.equal(indices.probabilities, torch.full((3,), 1 / 3, dtype=F64))
    values = loss(model, X0, index=torch.tensor([0, 1, 2, 0, 1, 2, 0]), noise=Z).detach()
    last = values[[6, 4, 5]].abs()
    torch.testing.assert_close(indices.probabilities, last / last.sum(), rtol=1e-12, atol=0)


# ---------------------------------------------------------------------------------------------------------------------
# The training loop


def test_a_step_takes_the_objective_and_its_own_generator() -> None:
    chain, x0 = DDPM.cosine(5), X0[:, 0].float()
    model = ScoreModel(MLP(3, width=8, depth=1), chain.sde())
    loss = ChainLoss.simple(chain)
    trainer = Trainer(model, objective=loss, seed=3)
    assert torch.equal(trainer.losses(x0), loss(model, x0, stream(3, "objective", 0)))
    expected = loss(model, x0, stream(3, "objective", 0)).mean().item()
    assert float(trainer(x0)) == expected
    assert not torch.equal(loss(model, x0, stream(3, "objective", 0)), trainer.losses(x0))


def test_fit_resumes_an_objective_to_the_bit(tmp_path: Path) -> None:
    chain, data = DDPM.cosine(5), normal((30, 2), stream(7))

    def run(steps: int, folder: str, **options: object) -> Tensor:
        model = ScoreModel(MLP(2, width=8, depth=1, out_channels=4), chain.sde(), variance="learned")
        objective = ChainLoss.hybrid(chain)
        options = {"progress": False, "decay": "constant", "warmup": 0, "folder": tmp_path / folder, **options}
        got = fit(model, data, steps=steps, batch_size=8, objective=objective, **options)
        assert got.log[-1]["loss_by_log_snr"] == [None] * 10
        assert got.model.variance == "learned"
        return torch.cat([p.detach().flatten() for p in got.model.net.parameters()])

    whole = run(6, "whole")
    run(3, "parts")
    assert torch.equal(run(6, "parts", resume=True), whole)
    loaded = ScoreModel.load(tmp_path / "whole" / "checkpoint")
    table = chain.ancestral(variance="learned")
    assert sample(loaded, (4, 2), solver=table, final="sample", seed=0).isfinite().all()


def test_an_objective_may_be_any_function() -> None:
    def halved(model: ScoreModel, x0: Tensor, generator: torch.Generator, cond: object) -> Tensor:
        return 0.5 * denoising_score_matching(model, x0, generator=generator)

    model = ScoreModel(MLP(2, width=8, depth=1), VPSDE())
    x0 = normal((6, 2), stream(8))
    got = Trainer(model, objective=halved, seed=1).losses(x0)
    assert torch.equal(got, 0.5 * denoising_score_matching(model, x0, generator=stream(1, "objective", 0)))
    with torch.no_grad():
        model.net.output.weight.fill_(0.1)
    low = Trainer(model, objective=ChainLoss.simple(DDPM.cosine(5)), autocast=torch.bfloat16, seed=1).losses(x0)
    wide_type = Trainer(model, objective=ChainLoss.simple(DDPM.cosine(5)), seed=1).losses(x0)
    assert low.dtype == torch.float32
    assert not torch.equal(low, wide_type)
    torch.testing.assert_close(low, wide_type, rtol=0.1, atol=0.05)


def test_objectives_that_do_not_fit() -> None:
    chain, data = DDPM.cosine(5), normal((30, 2), stream(9))
    model, loss = ScoreModel(MLP(2, width=8, depth=1), VPSDE()), ChainLoss.simple(chain)
    for option in ({"weight": "likelihood"}, {"times": "uniform"}):
        with pytest.raises(ConfigError, match="an objective= has its own, leave them out"):
            Trainer(model, objective=loss, **option)
    with pytest.raises(ConfigError, match="held_out= is judged by the denoising loss"):
        fit(model, data, steps=2, objective=loss, held_out=data)
    with pytest.raises(DTypeError, match="objective must be a function"):
        Trainer(model, objective="hybrid")
    with pytest.raises(ShapeError, match=r"objective must return losses of shape \(30,\), got \(\)"):
        Trainer(model, objective=lambda m, x, g, c: loss(m, x, g).mean())(data)
    with pytest.raises(ConfigError, match="this loss has a learned variance, the model has none; pass ScoreModel"):
        fit(model, data, steps=2, objective=ChainLoss.hybrid(chain), progress=False)
    with pytest.raises(SolverError, match=r"not finite at step 1, learning rate .*: 30 of 30 samples; no checkpoint"):
        fit(model, data, steps=2, batch_size=30, objective=lambda m, x, g, c: loss(m, x, g) * math.nan, progress=False)


# ---------------------------------------------------------------------------------------------------------------------
# Faults


def test_types_of_the_losses() -> None:
    chain = CHAINS["ddpm"]
    model = ScoreModel(Wide(torch.float32), chain.sde(), variance="learned")
    loss = ChainLoss.hybrid(chain)
    wide_loss = loss(model, X0.float(), index=3, noise=Z.float())
    assert wide_loss.dtype == torch.float32
    half = loss(model, X0.bfloat16(), index=3, noise=Z.bfloat16())
    assert half.dtype == torch.float32
    rounded = loss(model, X0.bfloat16().float(), index=3, noise=Z.bfloat16().float())
    assert torch.equal(half, rounded)
    assert loss(model, X0[:0].float(), stream(0)).shape == (0,)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda loss, model: loss(None, X0, stream(0)), DTypeError, "model must be a ScoreModel"),
        (lambda loss, model: loss(model, X0.long(), stream(0)), DTypeError, "x0 must have a real floating dtype"),
        (lambda loss, model: loss(model, X0, index=0.5, noise=Z), DTypeError, "index of a chain must be an integer"),
        (lambda loss, model: loss(model, X0, index=12, noise=Z), DomainError, r"index must lie in \[0, 12\)"),
        (lambda loss, model: loss(model, X0, index=torch.zeros(3).long(), noise=Z), ShapeError, r"\(7,\), got \(3,\)"),
        (lambda loss, model: loss(model, X0, index=1, noise=Z[:, :1]), ShapeError, "noise must have the shape"),
        (lambda loss, model: loss(model, X0, index=1, noise=Z.to("meta")), ConfigError, "noise is on meta, x0 on cpu"),
        (lambda loss, model: loss(model, X0, index=1), ConfigError, "generator must be a torch.Generator on the CPU"),
        (lambda loss, model: loss(model, X0, noise=Z), ConfigError, "generator must be a torch.Generator on the CPU"),
        (lambda loss, model: loss(model, X0, stream(0), {"label": X0[:2]}), ShapeError, "first dimension of 7"),
    ],
)
def test_bad_calls(call: Callable[..., object], error: type[Exception], message: str) -> None:
    chain = CHAINS["ddpm"]
    net = Net(dtype=F64)
    with pytest.raises(error, match=message):
        call(ChainLoss.simple(chain), ScoreModel(net, chain.sde()))
    assert net.calls == []


def test_bad_objectives() -> None:
    chain = CHAINS["ddpm"]
    with pytest.raises(DTypeError, match="chain must be a chain"):
        ChainLoss.simple(VPSDE())
    with pytest.raises(ConfigError, match="unknown variance 'learnt'; did you mean 'learned'"):
        ChainLoss.bound(chain, variance="learnt")
    with pytest.raises(DomainError, match="weight must lie in"):
        ChainLoss.hybrid(chain, weight=-1.0)
    with pytest.raises(ConfigError, match="indices are for 5 indices, the chain has 12"):
        ChainLoss.simple(chain, indices=ImportanceIndices(5))
    for options, message in (
        ({"n": 0}, "n must be"),
        ({"history": 0}, "history must"),
        ({"uniform_share": 2.0}, "share"),
    ):
        with pytest.raises(DomainError, match=message):
            ImportanceIndices(**{"n": 3, **options})
