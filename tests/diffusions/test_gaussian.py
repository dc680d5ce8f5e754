"""Gaussian laws: densities, samples and moments, with full, diagonal and scalar covariance."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from scoresde import DomainError, DTypeError, Gaussian, Moments, ShapeError
from scoresde.diffusions.gaussian import FULL_COVARIANCE_LIMIT
from scoresde.noise import normal, stream

F64 = torch.float64
ROOT = torch.tensor(
    [[1.0, 0.0, 0.0, 0.0], [0.5, 0.2, 0.0, 0.0], [-1.0, 0.3, 0.1, 0.0], [0.2, 0.1, 0.3, 2.0]], dtype=F64
)
COVARIANCE = ROOT @ ROOT.T


def full(shape: tuple[int, ...] = (4,)) -> Moments:
    return Moments.exact(normal(shape, stream(0), dtype=F64), COVARIANCE)


def test_the_reference_likelihood() -> None:
    """NUMERICS: N(0, 0.25) at x = 0.3 has -0.4057913526447 nats."""
    law = Moments.exact(torch.tensor(0.0), torch.tensor(0.25)).at(1.0, 0.0)
    got = float(law.log_prob(torch.tensor([0.3], dtype=F64)))
    assert got == pytest.approx(-0.5 * 0.09 / 0.25 - 0.5 * math.log(2 * math.pi * 0.25), rel=1e-14)
    assert got == pytest.approx(-0.4057913526447, rel=1e-12)


@pytest.mark.parametrize("shape", [(4,), (2, 2), (1, 4, 1)])
def test_full_covariance_density(shape: tuple[int, ...]) -> None:
    moments, x = full(shape), normal((9, *shape), stream(1), dtype=F64)
    law = moments.at(0.8, 0.6)
    expected = MultivariateNormal(0.8 * moments.mean.reshape(-1), 0.64 * COVARIANCE + 0.36 * torch.eye(4, dtype=F64))
    torch.testing.assert_close(law.log_prob(x), expected.log_prob(x.reshape(9, 4)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
@pytest.mark.parametrize("scalar", [True, False])
def test_diagonal_density(shape: tuple[int, ...], scalar: bool) -> None:
    mean = normal(shape, stream(2), dtype=F64)
    variance = torch.tensor(0.7, dtype=F64) if scalar else normal(shape, stream(3), dtype=F64).square() + 0.1
    law, x = Moments.exact(mean, variance).at(0.5, 2.0), normal((9, *shape), stream(4), dtype=F64)
    expected = Normal(0.5 * mean, (0.25 * variance + 4).sqrt()).log_prob(x).reshape(9, -1).sum(1)
    torch.testing.assert_close(law.log_prob(x), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(law.from_noise(x), 0.5 * mean + (0.25 * variance + 4).sqrt() * x, rtol=1e-14, atol=0)


@pytest.mark.parametrize("shape", [(4,), (2, 2)])
def test_from_noise_has_the_law_exactly(shape: tuple[int, ...]) -> None:
    """The map is affine: its constant is the mean, its matrix a root of the covariance."""
    moments = full(shape)
    law = moments.at(0.8, 0.6)
    moved = law.from_noise(torch.cat([torch.zeros(1, 4), torch.eye(4)]).to(F64).reshape(5, *shape)).reshape(5, 4)
    matrix = (moved[1:] - moved[0]).T
    torch.testing.assert_close(moved[0], 0.8 * moments.mean.reshape(-1), rtol=1e-14, atol=0)
    total = 0.64 * COVARIANCE + 0.36 * torch.eye(4, dtype=F64)
    torch.testing.assert_close(matrix @ matrix.T, total, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_keep_the_type_of_the_noise(dtype: torch.dtype) -> None:
    law = full().at(1.0, 0.1)
    z = normal((6, 4), stream(5), dtype=F64).to(dtype)
    got, expected = law.from_noise(z), law.from_noise(z.to(F64))
    assert got.dtype == dtype
    torch.testing.assert_close(got.to(F64), expected, rtol=0, atol=16 * torch.finfo(dtype).eps * 4)


def test_measured_moments_are_the_samples_own() -> None:
    x = normal((500, 2, 2), stream(6), dtype=F64) @ torch.tensor([[1.0, 0.4], [0.0, 2.0]], dtype=F64) + 3
    before = x.clone()
    got, flat = Moments.of(x), x.reshape(500, 4)
    torch.testing.assert_close(got.mean, x.mean(0), rtol=1e-13, atol=0)
    torch.testing.assert_close(got.covariance, flat.T.cov(correction=0), rtol=1e-11, atol=1e-13)
    assert torch.equal(x, before)
    # float32 data are measured in float64.
    shifted = Moments.of(normal((1000, 1), stream(7)) * 1e-3 + 100)
    exact = (normal((1000, 1), stream(7)) * 1e-3 + 100).to(F64)
    assert shifted.mean.dtype == F64
    assert float(shifted.covariance) == pytest.approx(float(exact.var(correction=0)), rel=1e-9)


def test_many_coordinates_keep_the_diagonal_only() -> None:
    for size, diagonal in ((FULL_COVARIANCE_LIMIT, False), (FULL_COVARIANCE_LIMIT + 1, True)):
        x = normal((20, size), stream(8), dtype=F64)
        moments = Moments.of(x)
        assert (moments.basis is None) is diagonal
        values = moments.covariance if diagonal else moments.covariance.diagonal()
        torch.testing.assert_close(values, x.var(0, correction=0), rtol=1e-10, atol=0)
    degenerate = Moments.of(torch.ones(5, 3))
    assert float(degenerate.covariance.abs().max()) == 0.0
    assert bool((degenerate.variance >= 0).all())


def test_samples_of_measured_moments_pass_for_the_law() -> None:
    law = full().at(0.3, 0.9)
    total = 0.09 * COVARIANCE + 0.81 * torch.eye(4, dtype=F64)

    def p_value(seed: int, count: int) -> float:
        """The squared Mahalanobis distance is chi-squared with four degrees of freedom."""
        x = law.from_noise(normal((count, 4), stream(seed, "law"))).to(F64) - 0.3 * full().mean
        return float(stats.kstest((x @ torch.linalg.inv(total) * x).sum(1).numpy(), "chi2", (4,)).pvalue)

    # alpha 1e-3, and on rejection a fresh seed with eight times the samples at 1e-5.
    assert p_value(0, 20_000) > 1e-3 or p_value(1, 160_000) > 1e-5


def test_a_law_without_moments() -> None:
    zero = torch.zeros((), dtype=F64)
    law, x = Gaussian(zero, zero + 4), normal((3, 2, 2), stream(9), dtype=F64)
    expected = Normal(zero, zero + 2).log_prob(x).reshape(3, -1).sum(1)
    torch.testing.assert_close(law.log_prob(x), expected, rtol=1e-13, atol=0)
    assert torch.equal(law.from_noise(x), 2 * x)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (torch.zeros(0, 2), ShapeError, "data is empty: moments need at least one sample"),
        (torch.zeros(3, 2, dtype=torch.uint8), DTypeError, r"data must have a real floating dtype, got torch\.uint8"),
        (
            torch.tensor([[0.0], [math.inf]]),
            DomainError,
            r"1 non-finite values of 2, the first at index \(1, 0\)",
        ),
        ([1.0], DTypeError, "data must be a torch.Tensor, got list"),
    ],
)
def test_bad_data(data: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Moments.of(data)


def test_bad_covariance() -> None:
    with pytest.raises(ShapeError, match=r"covariance must have shape \(\), \(2, 2\) or \(4, 4\), got \(2,\)"):
        Moments.exact(torch.zeros(2, 2), torch.ones(2))
