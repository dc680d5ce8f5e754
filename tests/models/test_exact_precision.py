"""Exact models in float32: their digits far from 0, in narrow modes and in narrow directions; their memory."""

from __future__ import annotations

import mpmath
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scoresde import VPSDE, EmpiricalModel, GaussianMixtureModel, GaussianModel, Moments
from scoresde.models import exact
from scoresde.noise import normal, stream

F64 = torch.float64
SDE = VPSDE()
TIMES = (1e-5, 1e-3, 1e-2, 0.1, 0.5, 1.0)


def log_snr(t: float) -> Tensor:
    """What a network is told of the time: a number of float32, which counts as exact here."""
    return SDE.log_snr(torch.tensor(t, dtype=F64)).float()


def mixture_by_mpmath(x: list[float], told: float, weights: Tensor, means: Tensor, std: Tensor) -> list[float]:
    """v = alpha noise - sigma data as the average of the components' own, straight from the definition."""
    with mpmath.workdps(40):
        alpha, sigma = (1 / mpmath.sqrt(1 + mpmath.exp(sign * mpmath.mpf(told))) for sign in (-1, 1))
        total, v = mpmath.mpf(0), [mpmath.mpf(0)] * len(x)
        for w, m, s in zip(weights.tolist(), means.tolist(), std.tolist(), strict=True):
            variance = alpha**2 * mpmath.mpf(s) ** 2 + sigma**2
            away = [mpmath.mpf(a) - alpha * mpmath.mpf(b) for a, b in zip(x, m, strict=True)]
            p = w * mpmath.exp(-sum(d**2 for d in away) / (2 * variance)) / mpmath.sqrt(variance) ** len(x)
            total += p
            for i, d in enumerate(away):
                data = mpmath.mpf(m[i]) + alpha * mpmath.mpf(s) ** 2 / variance * d
                v[i] += p * (alpha * (mpmath.mpf(x[i]) - alpha * data) / sigma - sigma * data)
        return [float(c / total) for c in v]


def between(means: Tensor, t: float, count: int) -> Tensor:
    """States at modes and half way between two of them, in float32."""
    p, z = SDE.at(t), normal((count, means.shape[1]), stream(3, "z"), dtype=F64)
    middle = 0.5 * (means[: count // 2] + means[1 : count // 2 + 1])
    return (p.alpha * torch.cat([means[: count - count // 2], middle]) + p.sigma * z).float()


@pytest.mark.parametrize("far", [0.0, 100.0])
@pytest.mark.parametrize("size", [2, 12])  # either side of the size up to which all sums are of float64
@pytest.mark.parametrize("std", [torch.full((30,), 0.02), torch.linspace(0.02, 0.7, 30)], ids=["one width", "many"])
def test_mixtures_keep_float32_digits(std: Tensor, size: int, far: float) -> None:
    means = (normal((30, size), stream(0, "means")) + far).to(F64)
    weights = torch.linspace(1, 3, 30, dtype=F64)
    model = GaussianMixtureModel(sde=SDE, weights=weights, means=means, std=std)
    for t in TIMES:
        x, told = between(means, t, 8), log_snr(t)
        expected = [mixture_by_mpmath(row, float(told), weights, means, std.to(F64)) for row in x.tolist()]
        expected = torch.tensor(expected, dtype=F64)
        scale = float(expected.abs().max())
        # In float64 what is left is 1e-16 |x|^2/variance of the products, in float32 the digits of the answer itself,
        # and where the last sums are of float32 those of the means times sigma/variance.
        torch.testing.assert_close(model.net(x.to(F64), told), expected, rtol=0, atol=1e-10 * scale)
        sigma = float(SDE.sigma(torch.tensor(t, dtype=F64)))
        last = float((means - means.mean(0)).abs().max()) * sigma / max(4e-4, sigma**2) if size > 8 else 0.0
        for net in (model.net(x, told), model.net(x, told.expand(len(x)).clone())):
            torch.testing.assert_close(net.to(F64), expected, rtol=0, atol=2e-6 * scale + 2.0**-23 * last)


def test_a_mixture_of_many_parts_is_the_same_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    means, x = normal((30, 3), stream(0, "means")), normal((50, 3), stream(1, "x"))
    model = GaussianMixtureModel(sde=SDE, weights=torch.ones(30), means=means, std=0.1)
    t = torch.linspace(0.01, 1.0, 50)
    whole = model(x, t).data
    monkeypatch.setattr(exact, "TABLE", 7 * 30)
    torch.testing.assert_close(model(x, t).data, whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(x, 0.3).data, model(x, torch.full((50,), 0.3)).data, rtol=1e-5, atol=1e-6)


def test_a_mixtures_log_density_keeps_its_gradient() -> None:
    means = normal((9, 2), stream(0, "means"), dtype=F64)
    model = GaussianMixtureModel(sde=SDE, weights=torch.ones(9), means=means, std=0.2)
    x = normal((5, 2), stream(1, "x"), dtype=F64).requires_grad_()
    (slope,) = torch.autograd.grad(model.log_prob(x, 0.2).sum(), x)
    torch.testing.assert_close(slope, model(x, 0.2).score.detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("far", [0.0, 100.0, 300.0])
@pytest.mark.parametrize("size", [2, 12])
def test_empirical_keeps_float32_digits(size: int, far: float) -> None:
    data = normal((2000, size), stream(0, "data")) + far
    model = EmpiricalModel(sde=SDE, data=data, chunk_size=300)
    for t in TIMES:
        # In float32 products the states half way between two points are where the distances tie.
        x, told = between(data.to(F64), t, 100)[: 100 if size <= 8 else 50], log_snr(t)
        alpha, sigma = (torch.sigmoid(sign * told.to(F64)).sqrt() for sign in (1, -1))
        away = (x.to(F64)[:, None] - alpha * data.to(F64)).square().sum(2)
        expected = torch.softmax(-away / (2 * sigma**2), 1) @ data.to(F64)
        # The last digits of the answer, and those of the sums, which are as large as the data's deviations.
        atol = 2.0**-23 * float(expected.abs().max()) + (4e-6 if size <= 8 else 2e-5)
        assert float((model.net(x, told).to(F64) - expected).abs().max()) <= atol


def test_a_gaussian_keeps_its_narrow_directions_in_float32() -> None:
    variance = torch.logspace(-8, 4, 13, dtype=F64)
    basis = torch.linalg.qr(normal((13, 13), stream(0, "basis"), dtype=F64)).Q
    model = GaussianModel(sde=SDE, mean=torch.zeros(13, dtype=F64), covariance=(basis * variance) @ basis.T)
    for t in TIMES:
        p = SDE.at(t)
        x = model.moments.at(float(p.alpha), float(p.sigma)).from_noise(normal((50, 13), stream(1), dtype=F64)).float()
        expected = model.net(x.to(F64), log_snr(t))
        # float32 rounds x by 6e-6 of its 100: the narrowest direction would get an error of 1e-3 of v from a rotation.
        assert float((model.net(x, log_snr(t)) - expected).abs().max()) <= 1e-6 * float(expected.abs().max())
        law = model.moments.at(float(p.alpha), float(p.sigma))
        torch.testing.assert_close(law.log_prob(x).to(F64), law.log_prob(x.to(F64)), rtol=1e-6, atol=1e-5)


def test_nothing_of_the_size_of_the_data_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.untyped_storage().data_ptr() != data.untyped_storage().data_ptr():
                sizes.append(out.numel() * out.element_size())
            return out

    data = normal((3000, 300), stream(0, "data"))
    for room in ("errors.tensors", "ops"):
        monkeypatch.setattr(f"scoresde.{room}.PART", 30_000)
    monkeypatch.setattr(exact, "TABLE", 30_000)
    with Watched(), torch.no_grad():
        model = EmpiricalModel(sde=SDE, data=data, chunk_size=100)
        model(data[:20], 0.5)
    assert max(sizes) <= 0.1 * data.numel() * data.element_size()


def test_moments_in_pieces_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (3, 300):
        data = normal((500, size), stream(0, "data")) + 10
        whole = Moments.of(data)
        monkeypatch.setattr("scoresde.ops.PART", 7 * size)
        parts = Moments.of(data)
        monkeypatch.undo()
        flat = data.to(F64)
        expected = flat.var(0, correction=0) if size == 300 else torch.cov(flat.T, correction=0)
        for moments in (whole, parts):
            torch.testing.assert_close(moments.mean, flat.mean(0), rtol=1e-13, atol=0)
            torch.testing.assert_close(moments.covariance, expected, rtol=1e-11, atol=1e-11)
