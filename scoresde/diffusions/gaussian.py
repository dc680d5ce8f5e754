r"""Gaussian laws: the moments of the data and the priors of the samplers.

With data of mean m and covariance C, the state at time t of x_t = alpha x_0 + sigma z has the mean alpha m and the
covariance alpha^2 C + sigma^2, exactly, whatever the law of the data. A covariance is a scalar, one number for each
coordinate, or a full matrix; a full one is held by its eigenvectors, so that the law at every (alpha, sigma) costs one
decomposition in all:

    x = alpha m + U sqrt(alpha^2 c + sigma^2) U^T z,        C = U diag(c) U^T.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from scoresde.errors.kinds import DomainError, DTypeError, ShapeError, show
from scoresde.errors.tensors import check_floating, check_numbers, check_samples, check_values
from scoresde.errors.values import check_sizes
from scoresde.ops import flat, gather_moments, parts, working_dtype

__all__ = ["FULL_COVARIANCE_LIMIT", "Gaussian", "Moments"]

FULL_COVARIANCE_LIMIT = 256


@dataclass(frozen=True, eq=False)
class Gaussian:
    """The normal law N(mean, U diag(variance) U^T) over events of shape ``event``.

    Args:
        mean: shape ``event`` or (), any unit.
        variance: shape ``event`` or (), or (D,) when ``basis`` is given; the unit of x squared.
        basis: None for independent coordinates, else the orthonormal eigenvectors as columns, (D, D) with D the
            number of coordinates of an event.
    """

    mean: Tensor
    variance: Tensor
    basis: Tensor | None = None

    def __repr__(self) -> str:
        return f"Gaussian({_summarise(self.mean, self.variance, self.basis)})"

    def from_noise(self, z: Tensor) -> Tensor:
        """Map standard normal ``z`` of shape (B, *) to samples of this law: mean + U sqrt(variance) U^T z."""
        dtype, z = self._check(z, "z").dtype, z.to(torch.promote_types(z.dtype, torch.float32))
        std = self.variance.sqrt().to(z)
        if self.basis is None:
            return (self.mean.to(z) + std * z).to(dtype)
        # Autocast is for networks; here it would round a start state to bf16.
        with torch.autocast(z.device.type, enabled=False):
            basis = self.basis.to(z)
            mixed = (flat(z) @ basis * std) @ basis.T
        return (self.mean.to(z) + mixed.reshape(z.shape)).to(dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log density in nats, (B,), of x (B, *), computed in float64 and returned in at least float32."""
        dtype = torch.promote_types(self._check(x, "x").dtype, torch.float32)
        x = x.to(working_dtype(x.device))
        centred = flat(x - self.mean.to(x))
        variance = self.variance.to(x).expand(x.shape[1:]) if self.basis is None else self.variance.to(x)
        if self.basis is not None:
            with torch.autocast(x.device.type, enabled=False):
                centred = centred @ self.basis.to(x)
        variance = variance.reshape(-1)
        quadratic = (centred.square() / variance).sum(1)
        return (-0.5 * (quadratic + variance.log().sum() + centred.shape[1] * math.log(2 * math.pi))).to(dtype)

    def _check(self, x: Tensor, name: str) -> Tensor:
        """Return x (B, *) if its events are this law's."""
        if self.mean.shape not in ((), check_floating(x, name).shape[1:]):
            raise ShapeError(f"{name} must have shape (B, *{tuple(self.mean.shape)}), got {tuple(x.shape)}")
        check_values(x, name)
        return x


def _summarise(mean: Tensor, variance: Tensor, basis: Tensor | None) -> str:
    """Return the event, the kind of covariance, and the ranges of the means and of the principal deviations."""

    def span(values: Tensor) -> str:
        low, high = float(values.min()), float(values.max())
        return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"

    kind = "diagonal" if basis is None else "full"
    return (
        f"event {tuple(mean.shape)}, {kind} covariance, mean {span(mean)}, standard deviation {span(variance.sqrt())}"
    )


def _check_finite(numbers: object, name: str) -> Tensor:
    """Return finite real numbers in float64 on the CPU."""
    wide = check_numbers(numbers, name)
    if wide.numel() == 0:
        raise ShapeError(f"{name} is empty, of shape {tuple(wide.shape)}; an event has at least one coordinate")
    if not bool(torch.isfinite(wide).all()):
        raise DomainError(f"{name} must be finite", parameter=name, allowed="finite values")
    return wide


def _check_sign(variances: Tensor, what: str, room: float) -> None:
    """Raise DomainError for a negative variance, rounding apart."""
    least = float(variances.min()) if variances.numel() else 0.0
    if least < -room:
        raise DomainError(
            f"covariance must be positive semi-definite, {what} is {least:g}",
            parameter="covariance",
            got=least,
            allowed="at least 0",
        )


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance of data of one event shape.

    Args:
        mean: shape ``event`` (or () for one number that serves every coordinate).
        variance: the covariance's eigenvalues, (D,), when ``basis`` is given; else one variance for each coordinate.
        basis: the covariance's orthonormal eigenvectors as columns, (D, D), or None for a diagonal covariance.
    """

    mean: Tensor
    variance: Tensor
    basis: Tensor | None = None

    def __repr__(self) -> str:
        return f"Moments({_summarise(self.mean, self.variance, self.basis)})"

    @classmethod
    def of(cls, x: Tensor) -> Moments:
        """Measure the moments of data (N, *) in float64: the full covariance up to 256 coordinates, else its diagonal.

        Raises DTypeError, ShapeError or DomainError where x is no finite floating tensor of shape (N, *).
        """
        check_samples(x, "data")
        if x.shape[0] == 0:
            raise ShapeError("data is empty: moments need at least one sample")
        return cls.of_parts(parts(x), x.shape[1:])

    @classmethod
    def of_parts(cls, x: Iterable[Tensor], event: Sequence[int]) -> Moments:
        """Measure the moments, as ``of``, of finite data that come in parts (n, *), of which one is in memory.

        Their event is that of the first part, which need not be ``event``: a transform may have changed it.
        """
        if isinstance(x, Tensor) or not isinstance(x, Iterable):
            raise DTypeError(f"x must be parts of data, tensors (n, *), got {show(x)}; Moments.of takes a tensor")
        rest = (check_floating(part) for part in x)
        first = next(rest, torch.empty(0, *check_sizes(event, "event"), dtype=torch.float32, device="cpu"))
        event = first.shape[1:]
        size = math.prod(event)
        count, mean, scatter = gather_moments(map(flat, chain([first], rest)), FULL_COVARIANCE_LIMIT)
        mean = _check_finite(mean, "the mean of the data").reshape(tuple(event))
        if size > FULL_COVARIANCE_LIMIT:
            return cls(mean, (scatter / count).reshape(mean.shape))
        values, vectors = torch.linalg.eigh(scatter / count)
        return cls(mean, values.clamp_min(0.0), vectors.contiguous())

    @classmethod
    def exact(cls, mean: Tensor, covariance: Tensor) -> Moments:
        """Take a mean of shape ``event`` and a covariance of shape (), ``event`` or (D, D).

        Raises:
            DTypeError: no real tensors. ShapeError: a covariance of another shape. DomainError: one that is not finite,
            symmetric and positive semi-definite, up to the rounding of its type.
        """
        given: object = covariance
        dtype = given.dtype if isinstance(given, Tensor) and given.is_floating_point() else torch.float64
        mean, covariance = _check_finite(mean, "mean"), _check_finite(covariance, "covariance")
        # The rounding of a sum of as many terms as a product of matrices has.
        room = (16 + mean.numel()) * torch.finfo(dtype).eps
        size = mean.numel()
        room *= float(covariance.abs().max()) if covariance.numel() else 0.0
        if covariance.ndim == 2 and covariance.shape == (size, size):
            if bool(((covariance - covariance.T).abs() > room).any()):
                raise DomainError("covariance must be symmetric", parameter="covariance", cure="take (C + C.T)/2")
            values, vectors = torch.linalg.eigh(covariance)
            _check_sign(values, "its smallest eigenvalue", room)
            # Contiguous, as after a checkpoint: the layout decides a product's last bits.
            return cls(mean, values.clamp_min(0.0), vectors.contiguous())
        if covariance.ndim and covariance.shape != mean.shape:
            raise ShapeError(
                f"covariance must have shape (), {tuple(mean.shape)} or ({size}, {size}), got {tuple(covariance.shape)}"
            )
        _check_sign(covariance, "its smallest variance", 0.0)
        return cls(mean, covariance)

    def at(self, alpha: float, sigma: float) -> Gaussian:
        """Return N(alpha m, alpha^2 C + sigma^2), the Gaussian with the moments of x_t."""
        return Gaussian(alpha * self.mean, alpha**2 * self.variance + sigma**2, self.basis)

    def describe_values(self) -> tuple[float, float]:
        """Return the mean and the standard deviation of all values, whatever their coordinate."""
        variance = self.variance.mean() + self.mean.var(correction=0)
        return float(self.mean.mean()), float(variance.sqrt())

    @property
    def covariance(self) -> Tensor:
        """The covariance: (D, D) when full, else one variance for each coordinate."""
        if self.basis is None:
            return self.variance
        return (self.basis * self.variance) @ self.basis.T
