"""Denoising, implicit and sliced score matching are one loss up to constants; the divergence they need is exact."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import Net, gaussian
from torch import Tensor, nn

from scoresde import (
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    GaussianMixtureModel,
    ScoreModel,
    ShapeError,
    denoising_score_matching,
    implicit_score_matching,
    sliced_score_matching,
)
from scoresde.ops import divergence, jacobian_products

F64 = torch.float64
T = 0.3
SDE = VPSDE()
WEIGHTS, STD = torch.tensor([0.3, 0.7], dtype=F64), 0.5
MEANS = {1: torch.tensor([[-1.0], [0.8]], dtype=F64), 2: torch.tensor([[-1.0, 0.2], [0.8, -0.5]], dtype=F64)}
SIGNS = {d: torch.tensor(list(itertools.product((-1.0, 1.0), repeat=d)), dtype=F64) for d in (1, 2)}


class Small(nn.Module):
    """Eleven parameters of fixed values, different in every coordinate."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.sin(torch.arange(3.0 * d, dtype=F64) + 1).reshape(3, d))
        self.shift = nn.Parameter(torch.tensor([0.1, -0.4, 0.3], dtype=F64))
        self.last = nn.Parameter(torch.cos(torch.arange(3.0 * d, dtype=F64)).reshape(d, 3))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return torch.tanh(x @ self.first.T + self.shift + 0.1 * c_noise[:, None]) @ self.last.T


def nodes(count: int, d: int) -> tuple[Tensor, Tensor]:
    """Nodes (count^d, d) and weights of Gauss and Hermite's rule for a standard normal law."""
    x, w = (torch.from_numpy(c) for c in np.polynomial.hermite_e.hermegauss(count))
    w = w / w.sum()
    grid = torch.stack(torch.meshgrid(*[x] * d, indexing="ij"), -1).reshape(-1, d)
    return grid, torch.stack(torch.meshgrid(*[w] * d, indexing="ij"), -1).reshape(-1, d).prod(1)


def marginal(d: int, count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the law of x_t."""
    z, w = nodes(count, d)
    std = math.sqrt(float(SDE.alpha(T)) ** 2 * STD**2 + float(SDE.sigma(T)) ** 2)
    return torch.cat([float(SDE.alpha(T)) * m + std * z for m in MEANS[d]]), torch.cat([c * w for c in WEIGHTS])


def joint(d: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes of x_0 and of z, and their weights."""
    z, w = nodes(count, 2 * d)
    x0 = torch.cat([m + STD * z[:, :d] for m in MEANS[d]])
    return x0, z[:, d:].repeat(len(WEIGHTS), 1), torch.cat([c * w for c in WEIGHTS])


def exact(d: int) -> GaussianMixtureModel:
    return GaussianMixtureModel(sde=SDE, weights=WEIGHTS, means=MEANS[d], std=STD)


@pytest.mark.parametrize(("d", "count", "tolerance"), [(1, 80, 1e-10), (2, 40, 3e-6)])
def test_the_three_losses_are_one(d: int, count: int, tolerance: float) -> None:
    """Expectations by quadrature: the losses differ by their constants and have one gradient, that of Fisher's."""
    model = ScoreModel(Small(d), SDE, predicts="score")
    sigma = float(SDE.sigma(T))
    x, w = marginal(d, count)
    truth = exact(d)(x, T).score
    fisher = (w * 0.5 * (model(x, T).score - truth).square().sum(1)).sum()
    constant = float((w * 0.5 * truth.square().sum(1)).sum())
    values = {"implicit": (w * implicit_score_matching(model, x, T)).sum() + constant}
    # Every sign vector once is the law of the probes.
    probes = SIGNS[d][:, None].expand(-1, len(x), -1)
    for reduced in (True, False):
        sliced = sliced_score_matching(model, x, T, probes=probes, reduced=reduced)
        # In the plane (v^T s)^2 has the mean |s|^2 because the products of two signs cancel.
        values[f"sliced, reduced={reduced}"] = (w * sliced).sum() + constant
    x0, z, w0 = joint(d, count if d == 1 else 16)

    def weight(point, sde):  # 1/2 of the score's squared error, summed over the coordinates
        return 0.5 * d * point.alpha.square() / point.sigma**4

    denoising = (w0 * denoising_score_matching(model, x0, weight=weight, t=T, noise=z)).sum()
    values["denoising"] = denoising - d / (2 * sigma**2) + constant
    expected = torch.autograd.grad(fisher, list(model.parameters()), retain_graph=True)
    assert float(fisher.detach()) > 0.1
    for name, value in values.items():
        assert float(value.detach()) == pytest.approx(float(fisher.detach()), rel=tolerance), name
        for got, gradient in zip(torch.autograd.grad(value, list(model.parameters())), expected, strict=True):
            torch.testing.assert_close(got, gradient, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_the_exact_score_has_the_least_loss() -> None:
    """Its value is minus half of Fisher's information, and a factor other than 1 is worse by half its square."""
    x, w = marginal(2, 40)
    model = exact(2)
    information = float((w * model(x, T).score.square().sum(1)).sum())
    for factor in (0.8, 1.0, 1.1):
        value = (w * implicit_score_matching(lambda x, t, c=factor: c * model(x, t).score, x, T)).sum()
        assert float(value) == pytest.approx(information * (0.5 * factor**2 - factor), rel=1e-5)


@torch.no_grad()
def test_drawn_probes_are_signs_and_average_to_the_exact_loss() -> None:
    """The sum over k probes has a known variance: that of v^T J v over signs is 2 sum_{i != j} (sym J)_{ij}^2."""
    matrix = torch.tensor([[0.3, 1.0], [-0.4, 0.9]], dtype=F64)
    x = torch.tensor([[0.3, -1.0]], dtype=F64)

    def score(x: Tensor, t: Tensor) -> Tensor:
        return x @ matrix.T

    target = float(implicit_score_matching(score, x, 0.5))
    assert target == pytest.approx(float(matrix.trace() + 0.5 * (matrix @ x[0]).square().sum()), rel=1e-12)
    off = float((matrix[0, 1] + matrix[1, 0]) / 2)
    generator = torch.Generator().manual_seed(0)
    for count in (1, 4):
        draws = sliced_score_matching(score, x.expand(4096, 2), 0.5, projections=count, generator=generator) - target
        if count == 1:  # both values of v_1 v_2, and no other
            seen = draws.unique()
            torch.testing.assert_close(seen[[0, -1]], torch.tensor([-2 * abs(off), 2 * abs(off)], dtype=F64))
        # A sum of 4096 k signs, of which five standard errors are 3e-7.
        assert abs(float(draws.mean())) < 5 * 2 * abs(off) / math.sqrt(4096 * count)
        assert float(draws.square().mean()) == pytest.approx(4 * off**2 / count, rel=0.2)
    again = sliced_score_matching(score, x, 0.5, generator=torch.Generator().manual_seed(3))
    assert torch.equal(again, sliced_score_matching(score, x, 0.5, generator=torch.Generator().manual_seed(3)))


def test_events_types_and_conditions() -> None:
    """Scalars, pictures and half types; a model's condition reaches its network; nothing is left on x."""
    scalar = gaussian()
    x = torch.linspace(-1, 2, 5, dtype=F64)
    variance = float(SDE.alpha(T)) ** 2 * 0.25 + float(SDE.sigma(T)) ** 2
    centred = x - 0.7 * float(SDE.alpha(T))
    expected = 0.5 * (centred / variance).square() - 1 / variance
    torch.testing.assert_close(implicit_score_matching(scalar, x, T), expected, rtol=1e-12, atol=1e-12)
    for reduced in (True, False):  # in one dimension a sign has no say
        got = sliced_score_matching(scalar, x, T, generator=torch.Generator(), projections=3, reduced=reduced)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    half = implicit_score_matching(scalar, x.half(), T)
    assert half.dtype == torch.float32
    picture = torch.linspace(-1, 1, 24, dtype=F64).reshape(2, 3, 2, 2)
    value = implicit_score_matching(lambda x, t: -x.square(), picture, 0.5)
    torch.testing.assert_close(value, (0.5 * picture**4 - 2 * picture).sum((1, 2, 3)), rtol=1e-12, atol=0)
    model = ScoreModel(Net(dtype=F64), SDE, predicts="score")
    label = torch.tensor([1.0, -2.0], dtype=F64)
    plain, shifted = (implicit_score_matching(model, picture, T, cond=c) for c in (None, {"label": label}))
    assert not torch.allclose(plain, shifted)
    assert not picture.requires_grad
    assert not implicit_score_matching(model, picture, T).detach().requires_grad
    with torch.no_grad():
        assert not implicit_score_matching(model, picture, T).requires_grad
    assert implicit_score_matching(model, picture[:0], T).shape == (0,)
    assert sliced_score_matching(model, picture[:0], T, generator=torch.Generator(), reduced=False).shape == (0,)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda m, x: implicit_score_matching(m, x.long(), T), DTypeError, "x must have a real floating dtype"),
        (lambda m, x: implicit_score_matching(m, x, 7.0), DomainError, "t must lie in"),
        (lambda m, x: implicit_score_matching(m, x, torch.ones(3)), ShapeError, "t must have shape"),
        (
            lambda m, x: implicit_score_matching(lambda x, t: x[:, :1], x, T),
            ShapeError,
            "the score must have",
        ),
        (lambda m, x: implicit_score_matching(lambda x, t: x, x, T, cond={}), ConfigError, "cond goes with a Score"),
        (lambda m, x: sliced_score_matching(m, x, T), ConfigError, "generator must be a torch.Generator, got None"),
        (lambda m, x: sliced_score_matching(m, x, T, projections=0), DomainError, "projections must be at least 1"),
        (lambda m, x: sliced_score_matching(m, x, T, probes=x), ShapeError, r"probes must have shape \(K, 4, 2\)"),
        (lambda m, x: sliced_score_matching(m, x, T, probes=x[None], projections=2), ConfigError, "probes are given"),
    ],
)
def test_faults(call, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        call(exact(2), torch.zeros(4, 2, dtype=F64))


# ---------------------------------------------------------------------------------------------------------------------
# The divergence


@pytest.mark.parametrize("event", [(), (1,), (3,), (2, 3)])
def test_divergence_of_linear_maps(event: tuple[int, ...]) -> None:
    size = math.prod(event)
    matrix = torch.sin(torch.arange(1.0, size**2 + 1, dtype=F64)).reshape(size, size)
    x = torch.cos(torch.arange(4.0 * size, dtype=F64)).reshape(4, *event)
    value, trace = divergence(lambda y: (y.reshape(4, size) @ matrix.T).reshape(y.shape), x)
    torch.testing.assert_close(value, (x.reshape(4, size) @ matrix.T).reshape(x.shape), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(trace, matrix.trace().expand(4), rtol=1e-12, atol=1e-13)
    assert not x.requires_grad
    probes = torch.sin(torch.arange(3.0 * x.numel(), dtype=F64)).reshape(3, *x.shape)
    _, products = jacobian_products(lambda y: (y.reshape(4, size) @ matrix.T).reshape(y.shape), x, probes)
    flat = probes.reshape(3, 4, size)
    torch.testing.assert_close(torch.stack(products), ((flat @ matrix.T) * flat).sum(2), rtol=1e-12, atol=1e-13)


def test_divergence_is_differentiable_in_parameters_and_in_x() -> None:
    scale = torch.tensor(1.5, dtype=F64, requires_grad=True)
    x = torch.tensor([[0.3, -0.8]], dtype=F64, requires_grad=True)
    _, trace = divergence(lambda y: scale * y**3, x)
    by_scale, by_x = torch.autograd.grad(trace.sum(), (scale, x))
    assert float(by_scale) == pytest.approx(float(3 * x.detach().square().sum()), rel=1e-12)
    torch.testing.assert_close(by_x, 6 * 1.5 * x.detach(), rtol=1e-14, atol=0)
    with torch.no_grad():
        value, trace = divergence(lambda y: scale * y**3, x)
    assert not value.requires_grad
    assert not trace.requires_grad


def test_divergence_of_what_does_not_depend_on_x() -> None:
    x = torch.zeros(3, 2, dtype=F64)
    for constant in (torch.ones(3, 2, dtype=F64), nn.Parameter(torch.ones(3, 2, dtype=F64))):
        _, trace = divergence(lambda y, c=constant: c, x)
        assert torch.equal(trace, torch.zeros(3, dtype=F64))
