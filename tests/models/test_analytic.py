"""Exact models: their scores against automatic differentiation, their flow against integration, their samples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from scoresde import (
    VESDE,
    VPSDE,
    DomainError,
    DTypeError,
    GaussianMixtureModel,
    GaussianModel,
    GaussianSDE,
    ShapeError,
    SubVPSDE,
)
from scoresde.noise import normal, stream

F64 = torch.float64
SDES = {"vp": VPSDE(), "sub_vp": SubVPSDE(), "ve": VESDE()}
every_sde = pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
ROOT = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.2, 0.0], [-1.0, 0.3, 0.05]], dtype=F64)
MEAN, COVARIANCE = torch.tensor([1.0, -2.0, 0.5], dtype=F64), ROOT @ ROOT.T
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=F64)
MEANS = torch.tensor([[-3.0, 0.0], [1.0, 1.0], [2.0, -2.0]], dtype=F64)
STD = torch.tensor([0.3, 1.2, 0.05], dtype=F64)


def gaussian(sde: GaussianSDE = SDES["vp"]) -> GaussianModel:
    return GaussianModel(sde=sde, mean=MEAN, covariance=COVARIANCE)


def mixture(sde: GaussianSDE = SDES["vp"]) -> GaussianMixtureModel:
    # The weights need not sum to 1.
    return GaussianMixtureModel(sde=sde, weights=10 * WEIGHTS, means=MEANS, std=STD)


def gaussian_law(sde: GaussianSDE, t: float) -> MultivariateNormal:
    p = sde.at(t)
    return MultivariateNormal(p.alpha * MEAN, p.alpha**2 * COVARIANCE + p.sigma**2 * torch.eye(3, dtype=F64))


def mixture_law(sde: GaussianSDE, t: float) -> MixtureSameFamily:
    p = sde.at(t)
    spread = (p.alpha**2 * STD**2 + p.sigma**2).sqrt()[:, None].expand(3, 2)
    return MixtureSameFamily(Categorical(WEIGHTS), Independent(Normal(p.alpha * MEANS, spread), 1))


def unlikely_twice(p_value: Callable[[int, int], float], count: int) -> bool:
    """alpha 1e-3, and on rejection a fresh seed with eight times the samples at 1e-5."""
    return p_value(0, count) < 1e-3 and p_value(1, 8 * count) < 1e-5


CASES = {"gaussian": (gaussian, gaussian_law, 3), "mixture": (mixture, mixture_law, 2)}


@every_sde
@pytest.mark.parametrize("t", [1e-5, 1e-3, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_score_is_the_gradient_of_the_log_density(case: str, t: float, sde: GaussianSDE) -> None:
    make, make_law, size = CASES[case]
    law = make_law(sde, t)
    x = law.mean + 2 * law.variance.sqrt() * normal((50, size), stream(0), dtype=F64)
    moving = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(law.log_prob(moving).sum(), moving)
    p = sde.at(t)
    got = make(sde)(x, t)
    scale = float(expected.abs().max())
    # v stands for the score up to -x and rounding of log_snr: both cost 1e-16 of the largest score there is.
    torch.testing.assert_close(got.score, expected, rtol=1e-10, atol=1e-12 * scale)
    torch.testing.assert_close(got.noise, -p.sigma * expected, rtol=1e-9, atol=1e-11 * float(p.sigma) * scale)
    # Tweedie: E[x_0 | x] = (x + sigma^2 score)/alpha.
    tweedie = (x + p.sigma**2 * expected) / p.alpha
    slack = 1e-12 * float((x.abs().max() + p.sigma**2 * scale) / p.alpha)
    torch.testing.assert_close(got.data, tweedie, rtol=1e-10, atol=slack)


@every_sde
@pytest.mark.parametrize("case", CASES)
def test_float32_scores_hold_at_small_times(case: str, sde: GaussianSDE) -> None:
    make, make_law, size = CASES[case]
    for t in (1e-5, 1e-3, 0.1, 1.0):
        law = make_law(sde, t)
        x = (law.mean + law.variance.sqrt() * normal((200, size), stream(1), dtype=F64)).float()
        x64 = x.to(F64).requires_grad_()
        (expected,) = torch.autograd.grad(law.log_prob(x64).sum(), x64)
        got = make(sde)(x, t).score
        assert got.dtype == torch.float32
        # log_snr up to 28 is rounded to float32 for the network; x - alpha m is divided by the smallest variance.
        p = sde.at(t)
        smallest = STD.min() ** 2 if case == "mixture" else torch.linalg.eigvalsh(COVARIANCE)[0]
        narrow = p.alpha**2 * smallest + p.sigma**2
        bound = 40 * 2**-24 * (expected.abs() + (x64.abs().amax(1, keepdim=True) + 4) / narrow).detach()
        assert bool(((got.to(F64) - expected).abs() <= bound).all())


@every_sde
def test_mixture_log_density(sde: GaussianSDE) -> None:
    model, x = mixture(sde), 3 * normal((40, 2), stream(2), dtype=F64)
    for t in (1e-5, 0.3, 1.0):
        torch.testing.assert_close(model.log_prob(x, t), mixture_law(sde, t).log_prob(x), rtol=1e-11, atol=1e-11)
    data = MixtureSameFamily(Categorical(WEIGHTS), Independent(Normal(MEANS, STD[:, None].expand(3, 2)), 1))
    torch.testing.assert_close(model.log_prob(x), data.log_prob(x), rtol=1e-12, atol=1e-12)


def test_far_components_do_not_overflow() -> None:
    model = GaussianMixtureModel(sde=VPSDE(), weights=[1.0, 1.0], means=torch.tensor([[-300.0], [300.0]]), std=0.01)
    x = torch.tensor([[-200.0], [250.0]])
    got = model(x, 1e-4)
    p, centre = VPSDE().at(1e-4), torch.tensor([[-300.0], [300.0]])
    expected = -(x - p.alpha.float() * centre) / float(p.alpha**2 * 1e-4 + p.sigma**2)
    torch.testing.assert_close(got.score, expected, rtol=1e-4, atol=0)


@every_sde
def test_flow_is_the_probability_flow(sde: GaussianSDE) -> None:
    """Classical Runge-Kutta on the model's own velocity, fine enough for 1e-6."""
    model, (start, end), count = gaussian(sde), (0.9, 0.3), 120
    x = gaussian_law(sde, start).mean + normal((5, 3), stream(3), dtype=F64) * 3
    y, h = x, (end - start) / count
    for i in range(count):
        t = start + i * h
        k1 = model(y, t).velocity
        k2 = model(y + h / 2 * k1, t + h / 2).velocity
        k3 = model(y + h / 2 * k2, t + h / 2).velocity
        k4 = model(y + h * k3, t + h).velocity
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    torch.testing.assert_close(model.flow(x, start, end), y, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.flow(model.flow(x, start, end), end, start), x, rtol=1e-11, atol=1e-11)


def test_flow_carries_one_law_into_the_other() -> None:
    model, sde = gaussian(SubVPSDE()), SubVPSDE()
    law, end = gaussian_law(sde, 0.7), gaussian_law(sde, 0.05)
    basis = torch.cat([torch.zeros(1, 3), torch.eye(3)]).to(F64) + law.mean
    moved = model.flow(basis, 0.7, 0.05)
    matrix = (moved[1:] - moved[0]).T
    torch.testing.assert_close(moved[0], end.mean, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(matrix @ law.covariance_matrix @ matrix.T, end.covariance_matrix, rtol=1e-11, atol=1e-13)
    data = model.flow(basis, 0.7, 0.0)
    matrix = (data[1:] - data[0]).T
    torch.testing.assert_close(matrix @ law.covariance_matrix @ matrix.T, COVARIANCE, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (1, 4, 4)])
def test_event_shapes_with_variances_for_each_coordinate(shape: tuple[int, ...]) -> None:
    sde = VPSDE()
    mean, variance = normal(shape, stream(4), dtype=F64), normal(shape, stream(5), dtype=F64).square() + 0.1
    model, x = GaussianModel(sde=sde, mean=mean, covariance=variance), normal((7, *shape), stream(6), dtype=F64)
    p = sde.at(0.2)
    expected = -(x - p.alpha * mean) / (p.alpha**2 * variance + p.sigma**2)
    torch.testing.assert_close(model(x, 0.2).score, expected, rtol=1e-11, atol=1e-12)
    log_density = Normal(mean, variance.sqrt()).log_prob(x).reshape(7, -1).sum(1)
    torch.testing.assert_close(model.log_prob(x), log_density, rtol=1e-12, atol=1e-13)
    means = torch.stack([mean, -mean])
    pair = GaussianMixtureModel(sde=sde, weights=[0.5, 0.5], means=means, std=0.4)
    single = GaussianMixtureModel(sde=sde, weights=[1.0], means=means[:1], std=0.4)
    torch.testing.assert_close(
        single(x, 0.2).score, -(x - p.alpha * mean) / (p.alpha**2 * 0.16 + p.sigma**2), rtol=1e-11, atol=1e-12
    )
    torch.testing.assert_close(pair(-x, 0.2).score, -pair(x, 0.2).score, rtol=1e-10, atol=1e-12)
    assert pair.sample_data(3, stream(7)).shape == (3, *shape)


def test_moments_are_the_laws() -> None:
    law = mixture_law(VPSDE(), 0.0)
    moments = mixture().moments
    assert moments is not None
    centred = MEANS - WEIGHTS @ MEANS
    covariance = (centred.T * WEIGHTS) @ centred + (WEIGHTS * STD**2).sum() * torch.eye(2, dtype=F64)
    torch.testing.assert_close(moments.mean, WEIGHTS @ MEANS, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(moments.covariance, covariance, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(moments.covariance.diagonal(), law.variance, rtol=1e-12, atol=0)
    torch.testing.assert_close(gaussian().moments.covariance, COVARIANCE, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_gaussian_samples_follow_their_law(axis: int) -> None:
    model, inverse = gaussian(), torch.linalg.inv(ROOT)

    def p_value(seed: int, count: int) -> float:
        x = model.sample_data(count, stream(seed, "gaussian")).to(F64)
        return stats.kstest(((x - MEAN) @ inverse.T)[:, axis].numpy(), "norm").pvalue

    assert not unlikely_twice(p_value, 20_000)


@pytest.mark.parametrize("direction", [(1.0, 0.0), (0.6, 0.8)])
def test_mixture_samples_follow_their_law(direction: tuple[float, float]) -> None:
    along = torch.tensor(direction, dtype=F64)
    centres = (MEANS @ along).numpy()

    def cdf(x: np.ndarray) -> np.ndarray:
        return sum(w * stats.norm.cdf(x, m, s) for w, m, s in zip(WEIGHTS.numpy(), centres, STD.numpy(), strict=True))

    def p_value(seed: int, count: int) -> float:
        x = mixture().sample_data(count, stream(seed, "mixture")).to(F64)
        return stats.kstest((x @ along).numpy(), cdf).pvalue

    assert not unlikely_twice(p_value, 20_000)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"covariance": torch.eye(2)},
            ShapeError,
            r"must have shape \(\), \(3,\) or \(3, 3\), got \(2, 2\)",
        ),
        ({"covariance": torch.tensor(torch.nan)}, DomainError, "covariance must be finite"),
        ({"covariance": -torch.ones(3)}, DomainError, "smallest variance is -"),
        (
            {"covariance": torch.diag(torch.tensor([1.0, 1.0, -1.0]))},
            DomainError,
            "its smallest eigenvalue is -1",
        ),
        ({"covariance": torch.eye(3).roll(1, 0)}, DomainError, "covariance must be symmetric"),
    ],
)
def test_impossible_gaussians(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GaussianModel(sde=VPSDE(), mean=torch.zeros(3), **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weights": [1.0]}, ShapeError, r"weights must have shape \(2,\) and std \(\) or \(2,\) for 2 means"),
        ({"weights": [1.0, 0.0]}, DomainError, "weights must be positive and finite"),
        ({"std": -0.1}, DomainError, "std must not be negative"),
        ({"std": torch.ones(3)}, ShapeError, r"for 2 means, got \(2,\) and \(3,\)"),
        ({"means": torch.tensor([[1.0], [torch.nan]])}, DomainError, r"means has 1 non-finite .* at index \(1, 0\)"),
        ({"means": torch.tensor([[1], [2]])}, DTypeError, "means must have a real floating dtype"),
    ],
)
def test_impossible_mixtures(options: dict, error: type[Exception], message: str) -> None:
    sound = {"weights": [1.0, 1.0], "means": torch.zeros(2, 1), "std": 0.1}
    with pytest.raises(error, match=message):
        GaussianMixtureModel(sde=VPSDE(), **{**sound, **options})
