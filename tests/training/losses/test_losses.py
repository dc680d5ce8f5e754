"""The denoising loss: one number for every parameterisation, exact for Gaussian data, in nats under its own weight."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import SDES
from hypothesis import given
from hypothesis import strategies as st
from told import BATCH, DIRECTION, EVENT, F64, X0, Flow, Says, Z, column
from torch import Tensor, nn

from scoresde import VPSDE, GaussianModel, ScoreModel
from scoresde.models.parameterization import PARAMETERIZATIONS
from scoresde.nn import MLP
from scoresde.noise import normal, stream
from scoresde.training.losses import WEIGHTS, denoising_score_matching
from scoresde.training.losses.denoising import read_scalars


@pytest.mark.parametrize("predicts", PARAMETERIZATIONS)
@given(
    name=st.sampled_from(sorted(SDES)),
    weight=st.sampled_from(sorted(WEIGHTS)),
    share=st.lists(st.floats(0, 1), min_size=BATCH, max_size=BATCH),
    size=st.floats(0.01, 10),
)
def test_every_readout_gives_the_same_loss_and_gradient(
    predicts: str, name: str, weight: str, share: list[float], size: float
) -> None:
    # A prediction x0_hat = x_0 + theta d with its noise z - theta (alpha/sigma) d, written in each readout's output.
    sde = SDES[name]
    t = sde.t_min + (sde.t_max - sde.t_min) * torch.tensor(share, dtype=F64)
    point = sde.at(t)
    theta = torch.tensor(size, dtype=F64, requires_grad=True)
    data = X0 + theta * DIRECTION
    noise = Z - theta * column(point.alpha / point.sigma) * DIRECTION
    model = ScoreModel(nn.Identity(), sde, predicts=predicts)
    p, q = (column(c) for c in model.readout(point).pair)
    model.net = Says(p * data + q * noise)
    losses = denoising_score_matching(model, X0, weight=weight, t=t, noise=Z)
    alpha, sigma, g = point.alpha, point.sigma, sde.diffusion(t)
    snr = alpha**2 / sigma**2
    w = {
        "simple": snr,
        "bounded": 1 + torch.minimum(snr.sqrt(), torch.tensor(30.0)),
        "v": 1 + snr,
        "velocity": alpha**2 * (g / sigma) ** 4 / 4,
        "likelihood": g**2 * alpha**2 / (2 * sigma**4),
        "min_snr": torch.minimum(snr, torch.tensor(5.0)),
        "edm": (sigma**2 + 0.25 * alpha**2) / (0.5 * sigma) ** 2,  # in x: (nu^2 + s^2)/(nu s)^2, nu = sigma/alpha
        "sigmoid": g**2 * alpha**2 / (2 * sigma**4) / (1 + snr * math.exp(-2.0)),
        "p2": snr / (1 + snr),
    }[weight]
    expected = w * size**2 * DIRECTION.square().mean((1, 2))
    torch.testing.assert_close(losses.detach(), expected, rtol=1e-10, atol=0)
    (gradient,) = torch.autograd.grad(losses.sum(), theta)
    torch.testing.assert_close(gradient, 2 * expected.sum() / size, rtol=1e-9, atol=0)


def test_simple_weight_is_the_noise_error_and_the_network_sees_its_scaled_state() -> None:
    sde = SDES["ve"]
    t = torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=F64)
    net = Says(DIRECTION)
    losses = denoising_score_matching(ScoreModel(net, sde), X0, t=t, noise=Z)
    torch.testing.assert_close(losses, (DIRECTION - Z).square().mean((1, 2)), rtol=1e-14, atol=0)
    sigma = sde.sigma(t)
    x, c_noise = net.asked
    torch.testing.assert_close(x, (X0 + column(sigma) * Z) / column((1 + sigma**2).sqrt()), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(c_noise, sde.log_snr(t), rtol=1e-14, atol=0)


@pytest.mark.parametrize(("predicts", "factor"), [("noise", 1.0), ("v", 0.0), ("data", 0.0), ("edm", 0.0)])
def test_factor_has_its_limit_where_the_signal_is_gone(predicts: str, factor: float) -> None:
    # w c_out^2 = (alpha/Delta)^2 is 0 * inf for the noise prediction at alpha = 0, and 1 in the limit. A model that
    # reaches that point is refused for the noise; the loss itself has no trouble there.
    model = ScoreModel(nn.Identity(), Flow(t_max=0.999), predicts=predicts)
    at_end = read_scalars(model, model.sde.at(torch.tensor([1.0], dtype=F64)), WEIGHTS["simple"]).multipliers
    assert torch.isfinite(torch.stack(at_end)).all()
    assert float(at_end.loss) == pytest.approx(factor, abs=1e-15)


def test_gradient_of_a_network_is_the_derivative_of_its_loss() -> None:
    net = MLP(EVENT, width=4, depth=1).double()
    with torch.no_grad():
        for k, parameter in enumerate(net.parameters()):
            parameter.copy_(0.5 * normal(parameter.shape, stream(1, k), dtype=F64))
    model = ScoreModel(net, VPSDE(), predicts="v")
    t = torch.tensor([0.05, 0.3, 0.6, 0.9], dtype=F64)

    def loss() -> Tensor:
        return denoising_score_matching(model, X0, weight="likelihood", t=t, noise=Z).mean()

    for parameter, gradient in zip(net.parameters(), torch.autograd.grad(loss(), list(net.parameters())), strict=True):
        ahead = normal(parameter.shape, stream(2, parameter.numel()), dtype=F64)
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter.add_(ahead, alpha=step)
                values.append(float(loss()))
                parameter.sub_(ahead, alpha=step)
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(float((gradient * ahead).sum()), rel=1e-6, abs=1e-9)


def expected_loss(model: GaussianModel, covariance: Tensor, t: Tensor, weight: str) -> Tensor:
    """The exact expectation at each t: the loss is a quadratic in (x_0, z), which +-1 in every variable integrates."""
    size = len(covariance)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=2 * size)), dtype=F64)
    x0 = model.moments.mean + signs[:, :size] @ torch.linalg.cholesky(covariance).T
    rows = [denoising_score_matching(model, x0, weight=weight, t=s, noise=signs[:, size:]) for s in t]
    return torch.stack(rows).mean(1)


COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=F64)
MEAN = torch.tensor([1.5, -0.5], dtype=F64)


@pytest.mark.parametrize("name", SDES)
def test_loss_of_the_exact_model_is_the_posterior_variance(name: str) -> None:
    sde = SDES[name]
    t = torch.linspace(0, 1, 7, dtype=F64) * (sde.t_max - sde.t_min) + sde.t_min
    point = sde.at(t)
    loss = expected_loss(GaussianModel(sde=sde, mean=MEAN, covariance=COVARIANCE), COVARIANCE, t, "simple")
    c = torch.linalg.eigvalsh(COVARIANCE)
    variance = c * point.sigma[:, None] ** 2 / (point.alpha[:, None] ** 2 * c + point.sigma[:, None] ** 2)
    torch.testing.assert_close(loss, (point.alpha / point.sigma) ** 2 * variance.mean(1), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", SDES)
def test_likelihood_weight_makes_nats(name: str) -> None:
    # The integral of g^2/2 E|score error|^2 is half that of the posterior variance over the signal-to-noise ratio,
    # which is the information that x at t_min has of x_0 beyond that at t_max (Guo, Shamai, Verdu 2005).
    sde = SDES[name]
    nodes, weights = np.polynomial.legendre.leggauss(200)
    low, high = math.log(sde.t_min), math.log(sde.t_max)
    t = torch.from_numpy(np.exp(low + (high - low) * (nodes + 1) / 2)).clamp(sde.t_min, sde.t_max)
    loss = expected_loss(GaussianModel(sde=sde, mean=MEAN, covariance=COVARIANCE), COVARIANCE, t, "likelihood")
    average = float((loss * t * torch.from_numpy(weights)).sum()) * (high - low) / 2 / (sde.t_max - sde.t_min)
    ends = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=F64)).exp()
    information = 0.5 * (torch.linalg.eigvalsh(COVARIANCE)[:, None] * ends).log1p().sum(0)
    nats = (sde.t_max - sde.t_min) * 2 * average
    # The tabulated schedule is a cubic between knots: its g has kinks there.
    assert nats == pytest.approx(float(information[0] - information[1]), rel=1e-4 if name == "tabulated" else 1e-9)


def test_any_event_shape_has_the_mean_over_its_coordinates() -> None:
    t = torch.tensor([0.1, 0.9, 0.5], dtype=F64)
    for event in ((), (1,), (5,), (2, 3), (1, 2, 2, 2)):
        x0, z, out = (normal((3, *event), stream(k), dtype=F64) for k in range(3))
        loss = denoising_score_matching(ScoreModel(Says(out), VPSDE()), x0, t=t, noise=z)
        torch.testing.assert_close(loss, (out - z).square().reshape(3, -1).mean(1), rtol=1e-14, atol=0)
