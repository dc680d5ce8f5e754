"""The Frechet distance of features and of moments."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.errors.kinds import DomainError, ShapeError
from scoresde.errors.tensors import check_samples
from scoresde.metrics.pairs import check_pair
from scoresde.ops import Array, accept_arrays

__all__ = ["frechet_distance", "frechet_distance_of_moments"]


def frechet_distance(features_x: Array, features_y: Array) -> float:
    """Return the squared Frechet (Wasserstein-2) distance of Gaussians fitted to two sets of features.

    |mu_x - mu_y|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) with A, B the covariances (divisor n - 1), in squared units of
    the features: the number that is known as FID for Inception features. Computed in float64 on the CPU.

    With factors A = F^T F, B = G^T G (the triangular factors of the centred sets), the trace is min |F - O G|^2 over
    orthogonal O, solved by the singular vectors of F G^T. No covariance is formed, squared or inverted: singular
    covariances (fewer samples than features) are exact, and the result is never negative.

    Args:
        features_x: features (n, *), n >= 2.
        features_y: features (m, *) of the same event shape, m >= 2; n and m may differ.

    Raises:
        DTypeError, ShapeError, DomainError, ConfigError: not finite floating features, fewer than two samples, event
            shapes or devices that differ, features whose squares overflow.

    Source: Dowson, Landau (1982); Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter (2017), arXiv:1706.08500.
    """
    first, second = check_pair(features_x, features_y, names=("features_x", "features_y"), least=2)
    first, second = first.to("cpu", torch.float64), second.to("cpu", torch.float64)
    mean_x, mean_y = first.mean(dim=0), second.mean(dim=0)
    return _frechet(mean_x, _factor_samples(first - mean_x), mean_y, _factor_samples(second - mean_y))


def frechet_distance_of_moments(mean_x: Array, covariance_x: Array, mean_y: Array, covariance_y: Array) -> float:
    """Return the squared Frechet distance of N(mean_x, covariance_x) and N(mean_y, covariance_y).

    The formula of ``frechet_distance``, from moments that are known or stored. Singular covariances are allowed.

    Args:
        mean_x: mean (D,).
        covariance_x: symmetric positive semidefinite matrix (D, D).
        mean_y: mean (D,).
        covariance_y: symmetric positive semidefinite matrix (D, D).

    Raises:
        DTypeError, ShapeError: not floating tensors of these shapes.
        DomainError: non-finite values, values whose squares overflow, or a matrix that is not symmetric positive
            semidefinite to rounding.
    """
    moments: list[tuple[Tensor, Tensor]] = []
    for mean, covariance, label in ((mean_x, covariance_x, "x"), (mean_y, covariance_y, "y")):
        centre = check_samples(accept_arrays(mean, f"mean_{label}"), f"mean_{label}").detach().to("cpu", torch.float64)
        if centre.ndim != 1 or centre.numel() == 0:
            raise ShapeError(f"mean_{label} must have shape (D,), got {tuple(mean.shape)}; flatten it")
        if moments and centre.shape != moments[0][0].shape:
            raise ShapeError(f"mean_y must have shape {tuple(mean_x.shape)}, that of mean_x, got {tuple(mean.shape)}")
        moments.append((centre, _factor(covariance, centre.numel(), f"covariance_{label}")))
    return _frechet(*moments[0], *moments[1])


def _factor_samples(centred: Tensor) -> Tensor:
    """Return F (D, D) with F^T F the covariance of centred samples (n, D)."""
    upper = torch.linalg.qr(centred, mode="r").R / math.sqrt(centred.shape[0] - 1)  # (min(n, D), D)
    missing = upper.shape[1] - upper.shape[0]
    return torch.cat([upper, upper.new_zeros(missing, upper.shape[1])])


def _factor(covariance: Array, size: int, name: str) -> Tensor:
    """Return F (D, D) with F^T F = covariance, from its eigenvalues; check that it is a covariance."""
    given = check_samples(accept_arrays(covariance, name), name).detach()
    matrix = given.to("cpu", torch.float64)
    if matrix.shape != (size, size):
        raise ShapeError(
            f"{name} must have shape ({size}, {size}) for a mean of {size} values, got {tuple(matrix.shape)}"
        )
    # a matrix stored in float32 is symmetric and non-negative only to float32 rounding
    slack = 8 * size * torch.finfo(given.dtype).eps * float(matrix.abs().max())
    skew = float((matrix - matrix.T).abs().max())
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    if skew > slack or float(values[0]) < -slack:
        raise DomainError(
            f"{name} must be symmetric positive semidefinite, got asymmetry {skew:.3g} and smallest eigenvalue "
            f"{float(values[0]):.3g}; pass a covariance, for instance torch.cov(samples.T)"
        )
    factor: Tensor = values.clamp(min=0.0).sqrt()[:, None] * vectors.T
    return factor


def _frechet(mean_x: Tensor, factor_x: Tensor, mean_y: Tensor, factor_y: Tensor) -> float:
    """Return |mean_x - mean_y|^2 + min over orthogonal O of |factor_x - O factor_y|^2 (orthogonal Procrustes)."""
    across = factor_x @ factor_y.T
    if bool(torch.isfinite(across).all()):
        left, _, right = torch.linalg.svd(across)
        spread = factor_x - left @ (right @ factor_y)
        distance = float((mean_x - mean_y).square().sum() + spread.square().sum())
        if math.isfinite(distance):
            return distance
    largest = max(float(part.abs().max()) for part in (mean_x, factor_x, mean_y, factor_y))
    raise DomainError(f"the squares of these features, up to {largest:g}, pass the largest number; scale them down")
