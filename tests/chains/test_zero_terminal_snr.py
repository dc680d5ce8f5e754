"""Chains whose last beta is 1, and their SDE: nothing of the data is left at the end."""

from __future__ import annotations

import json
import math
import pickle

import mpmath
import pytest
import torch
from torch import Tensor

from scoresde import (
    DDPM,
    ConfigError,
    CosineVPSDE,
    DomainError,
    GaussianModel,
    ScoreModel,
    TabulatedSDE,
    continuous_elbo,
    fit,
    log_likelihood,
    losses,
    sample,
    solvers,
    variational_bound,
)
from scoresde.data import moons
from scoresde.diffusions.named import sde_from_dict, sde_to_dict
from scoresde.nn import MLP
from scoresde.noise import normal, stream
from scoresde.solvers.catalogue import catalogue

F64 = torch.float64


def rescaled(n: int) -> Tensor:
    """Rescale the linear betas so that the last alpha is 0 and the first one stays (Lin et al. 2024, algorithm 1)."""
    alpha = DDPM.linear(n).alphas_cumprod.sqrt()
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    square = alpha.square()
    return 1 - torch.cat([square[:1], square[1:] / square[:-1]])


BETAS = rescaled(60)
CHAIN = DDPM.from_betas(BETAS)
SDE = CHAIN.sde()
MEAN, STD = 1.0, 0.5
MODEL = GaussianModel(sde=SDE, mean=torch.full((2,), MEAN, dtype=F64), covariance=STD**2 * torch.eye(2, dtype=F64))


def exact_net(kind: str) -> ScoreModel:
    """Return the Gaussian's model in a parameterisation of its own, with times as conditions."""

    def net(x: Tensor, t: Tensor) -> Tensor:
        return MODEL(x, t.to(F64)).view(kind).to(x)

    return ScoreModel.from_callable(net, SDE, predicts=kind, moments=MODEL.moments)


def test_the_last_beta_may_be_one_and_no_other() -> None:
    assert float(CHAIN.betas[-1]) == 1.0
    alpha, sigma, log_snr = CHAIN.curves
    assert (float(alpha[-1]), float(sigma[-1]), float(log_snr[-1])) == (0.0, 1.0, -math.inf)
    keep, fresh = CHAIN.transition_weights
    assert (float(keep[-1]), float(fresh[-1])) == (0.0, 1.0)
    # Nothing of x_{n-1} is left to learn from: the posterior is q(x_{n-2} | x_0).
    x0, x = torch.full((1, 2), 3.0, dtype=F64), torch.full((1, 2), 7.0, dtype=F64)
    mean, std = CHAIN.posterior(x0, x, 59)
    torch.testing.assert_close(mean, alpha[-2] * x0)
    torch.testing.assert_close(std, sigma[-2])
    with pytest.raises(DomainError, match=r"the last one in \(0, 1\]; at index 5 it is 1"):
        DDPM.from_betas(torch.cat([BETAS[:5], torch.ones(1), BETAS[5:]]))
    with pytest.raises(DomainError, match="at index 0 it is 1"):
        DDPM.from_betas(torch.ones(1))
    with pytest.raises(DomainError, match=r"at index 59 it is 1\.1"):
        DDPM.from_betas(torch.cat([BETAS[:-1], torch.tensor([1.1])]))


def test_the_chain_of_an_sde_that_ends_there() -> None:
    chain = DDPM.from_sde(CosineVPSDE(t_max=1.0), 40)
    assert float(chain.betas[-1]) == pytest.approx(1.0, abs=1e-15)


def test_subchains_end_there_too() -> None:
    for steps in (2, 7, 59):
        part = CHAIN.strided(steps)
        assert float(part.betas[-1]) == 1.0
        torch.testing.assert_close(part.curves[0], CHAIN.curves[0][(part.times * 60).round().long() - 1])
    assert float(CHAIN.take(torch.tensor([3, 20])).betas[-1]) < 1


def test_the_sde_passes_through_the_knots_and_falls_smoothly_to_the_end() -> None:
    alpha, sigma, log_snr = CHAIN.curves
    assert torch.equal(SDE.log_snr(CHAIN.times), log_snr)
    torch.testing.assert_close(SDE.alpha(CHAIN.times), alpha, rtol=1e-14, atol=0)
    torch.testing.assert_close(SDE.sigma(CHAIN.times), sigma, rtol=1e-14, atol=0)
    a, b = CHAIN.times[-2:].tolist()
    t = torch.linspace(a, b, 200, dtype=F64)
    assert bool((SDE.log_snr(t).diff() < 0).all())
    assert bool((SDE.alpha(t).diff() < 0).all())
    torch.testing.assert_close(SDE.alpha(t).square() + SDE.sigma(t).square(), torch.ones_like(t), rtol=1e-15, atol=0)
    # The derivative goes on at the last knot but one.
    sides = SDE.diffusion(torch.tensor([a - 1e-9, a + 1e-9], dtype=F64))
    assert float(sides[0] / sides[1]) == pytest.approx(1.0, abs=1e-6)


def test_the_rates_at_the_end_are_those_of_mpmath() -> None:
    """alpha = u/sqrt(e^{-l} + u^2), u = (b - t)/(b - a): alpha' = -e^{l/2}/(b - a) and sigma' = 0 at the end."""
    a, b = CHAIN.times[-2:].tolist()
    step = (CHAIN.times[-3].item(), a)
    with mpmath.workdps(30):
        low = mpmath.mpf(CHAIN.curves[2][-2].item())
        slope = mpmath.mpf(-(SDE.diffusion(step[1]).item() ** 2) / SDE.sigma(step[1]).item() ** 2)
        c = 2 + (mpmath.mpf(b) - a) * slope
        expected = float(-mpmath.exp((low + c) / 2) / (mpmath.mpf(b) - a))
    end = torch.tensor(b, dtype=F64)
    assert SDE.alpha_rate(end).item() == pytest.approx(expected, rel=1e-5)
    assert SDE.sigma_rate(end).item() == 0
    middle = torch.tensor(0.3 * a + 0.7 * b, dtype=F64)
    difference = (SDE.sigma(middle + 1e-6) - SDE.sigma(middle - 1e-6)) / 2e-6
    torch.testing.assert_close(SDE.sigma_rate(middle), difference, rtol=1e-4, atol=0)


def test_time_inverts_log_snr_to_minus_infinity() -> None:
    levels = torch.tensor([5.0, 0.0, -8.0, -12.0, -30.0, -60.0, -math.inf], dtype=F64)
    t = SDE.time(levels)
    torch.testing.assert_close(SDE.log_snr(t)[:-2], levels[:-2], rtol=1e-9, atol=1e-9)
    assert float(t[-1]) == SDE.t_max
    inside = torch.linspace(SDE.t_min, SDE.t_max, 300, dtype=F64)
    torch.testing.assert_close(SDE.time(SDE.log_snr(inside)), inside, rtol=1e-12, atol=0)


def test_a_curve_that_is_not_variance_preserving() -> None:
    """x_t = (1 - t) x_0 + t z at five knots: the last alpha is 0 and the last sigma 1."""
    t = torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0], dtype=F64)
    alpha, sigma = 1 - t, t
    alpha[-1] = 0
    sde = TabulatedSDE(t, 2 * (alpha / sigma).log(), alpha.log())
    torch.testing.assert_close(sde.alpha(t), alpha, rtol=1e-14, atol=1e-300)
    torch.testing.assert_close(sde.sigma(t[:-1]), sigma[:-1], rtol=1e-14, atol=0)
    assert float(sde.sigma(1.0)) == pytest.approx(1.0, rel=0.02)  # which two infinities do not say
    late = torch.linspace(0.8, 1.0, 50, dtype=F64)
    # The cubic's derivative before the last knot but one is only near that of the line.
    torch.testing.assert_close(sde.alpha(late), 1 - late, rtol=0.2, atol=1e-15)
    torch.testing.assert_close(sde.sigma(late), late, rtol=0.1, atol=0)
    assert bool(torch.isfinite(sde.alpha_rate(late)).all())
    with pytest.raises(DomainError, match="log_alpha must be minus infinity at the last knot"):
        TabulatedSDE(t, 2 * (alpha / sigma).log(), (1 - 0.9 * t).log())
    with pytest.raises(DomainError, match="log_snr must be finite and decrease"):
        TabulatedSDE(t[:2], torch.tensor([1.0, -math.inf]))


def test_files_and_pickles_keep_it() -> None:
    text = json.dumps(sde_to_dict(SDE), allow_nan=False)
    for other in (sde_from_dict(json.loads(text)), pickle.loads(pickle.dumps(SDE))):
        t = torch.linspace(SDE.t_min, SDE.t_max, 100, dtype=F64)
        assert torch.equal(other.log_snr(t), SDE.log_snr(t))
        assert torch.equal(other.alpha(t), SDE.alpha(t))


@pytest.mark.parametrize("predicts", ["noise", "score"])
def test_predictions_that_say_nothing_there_are_refused_with_a_cure_that_works(predicts: str) -> None:
    words = rf"predicts='{predicts}' says nothing of the data at t_max = 1, where alpha = 0; train another prediction "
    with pytest.raises(DomainError, match=words + r"\(data, v, velocity\), or leave out the last knot") as caught:
        ScoreModel(torch.zeros_like, SDE, predicts=predicts)
    for name in caught.value.allowed:
        ScoreModel(torch.zeros_like, SDE, predicts=name)
    ScoreModel(torch.zeros_like, DDPM.from_betas(BETAS[:-1]).sde(), predicts=predicts)


@pytest.mark.parametrize("kind", ["data", "v", "velocity"])
@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m", "flow_abm", "unipc"])
def test_the_flow_from_nothing_is_the_gaussians(kind: str, solver: str) -> None:
    """From alpha = 0 the flow takes z to the mean plus the deviation times z."""
    z = normal((50, 2), stream(1), dtype=F64)
    x = sample(exact_net(kind), x_init=z, solver=solver, steps=200)
    # The table ends with the data prediction at t_min, where x is alpha m + sqrt(alpha^2 c + sigma^2) z.
    alpha, sigma = float(SDE.alpha(SDE.t_min)), float(SDE.sigma(SDE.t_min))
    scale = STD**2 * alpha / math.sqrt((alpha * STD) ** 2 + sigma**2)
    torch.testing.assert_close(x, MEAN + scale * z, rtol=0, atol=2e-3)


def test_every_table_from_there_has_the_right_law() -> None:
    serving = [one for one in catalogue() if one.from_pure_noise and one.calls is not None]
    for entry in serving:
        # A stage between the last point and clean data looks beyond what the first knot knows.
        if entry.name not in ("midpoint", "ralston"):
            x = sample(MODEL, (4000, 2), solver=entry.name, steps=200 // entry.calls, seed=0, dtype=F64)
            assert float(x.mean()) == pytest.approx(MEAN, abs=0.06), entry.name
            assert float(x.std()) == pytest.approx(STD, abs=0.06), entry.name


@pytest.mark.parametrize("table", [CHAIN.ancestral(), CHAIN.ddim(), CHAIN.ddim(0.5), CHAIN.ddim(steps=20)])
def test_the_chains_tables(table: solvers.Tableau) -> None:
    x = sample(MODEL, (4000, 2), solver=table, seed=0, dtype=F64)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(x.std()) == pytest.approx(STD, abs=0.09)


def test_the_bound_and_its_last_layer() -> None:
    """x_{n-1} says nothing, so that the network says the mean, and the layer costs SNR_{n-2} (x - mean)^2/2."""
    x = torch.tensor([[0.3, 1.4], [2.0, 0.0]], dtype=F64)
    bound = variational_bound(MODEL, CHAIN, x)
    snr = CHAIN.curves[2][-2].exp()
    torch.testing.assert_close(bound.terms[-1], 0.5 * snr * (x - MEAN).square().sum(1).mean(), rtol=1e-8, atol=0)
    assert bound.prior == 0
    assert bound.total > -float(MODEL.log_prob(x).mean())
    # The chain without its last index bounds the same, but for what its last state still knows.
    short = variational_bound(MODEL, DDPM.from_betas(BETAS[:-1]), x)
    torch.testing.assert_close(bound.terms[1:-1], short.terms[1:], rtol=0.5, atol=0.05)


def test_exact_likelihood_from_there() -> None:
    x = torch.tensor([[0.3, 1.4], [2.0, 0.0]], dtype=F64)
    found = log_likelihood(MODEL, x)
    torch.testing.assert_close(found.values + found.truncation, MODEL.log_prob(x), rtol=0, atol=2e-3)
    with pytest.raises(ConfigError, match="reaches alpha = 0; leave out the last knot"):
        continuous_elbo(MODEL, SDE, x)


@pytest.mark.parametrize("objective", [losses.ChainLoss.simple(CHAIN), losses.ChainLoss.bound(CHAIN)])
def test_losses_at_the_last_index(objective: losses.ChainLoss) -> None:
    x, z = torch.full((4, 2), 2.0, dtype=F64), normal((4, 2), stream(0), dtype=F64)
    loss = objective(MODEL, x, index=59, noise=z)
    expected = 0.5 * float(CHAIN.curves[2][-2].exp()) * (2.0 - MEAN) ** 2 * objective.on_bound
    torch.testing.assert_close(loss, torch.full((4,), expected, dtype=F64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("predicts", ["data", "v", "velocity"])
def test_training_on_it(predicts: str) -> None:
    model = ScoreModel(MLP(2, width=32, depth=2), SDE, predicts=predicts)
    done = fit(model, moons(512), steps=60, progress=False)
    assert bool(torch.isfinite(done.losses).all())
    assert bool(torch.isfinite(sample(done.model, 16, seed=0)).all())
