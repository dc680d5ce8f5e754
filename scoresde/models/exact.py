r"""Models whose score is exact: the ground truth of tests, benchmarks and tutorials.

Each is written in the coordinates normalised to alpha^2 + sigma^2 = 1, as a function of x and log_snr alone, and
predicts v = alpha noise - sigma data there, which is finite at both ends; so it serves every SDE.

Gaussian data N(m, C), C = U diag(c) U^T:   data = m + U [alpha c/(alpha^2 c + sigma^2)] U^T (x - alpha m).
A data set x_1 ... x_N, each with weight 1/N:   data = sum_i p_i(x) x_i, p_i ~ exp(-|x - alpha x_i|^2 / (2 sigma^2)).
A mixture of N(m_k, s_k^2) with weights w_k: responsibilities p_k(x) ~ w_k N(x; alpha m_k, alpha^2 s_k^2 + sigma^2), and
data and noise are their averages of the components' own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Never

import torch
from torch import Tensor, nn

from scoresde.diffusions.gaussian import Gaussian, Moments
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors import ConfigError, DomainError, ShapeError, check_floating, check_integer, check_samples
from scoresde.models.prediction import describe_data
from scoresde.models.score_model import ScoreModel
from scoresde.noise import normal, uniform
from scoresde.ops import expand

__all__ = ["EmpiricalModel", "ExactModel", "GaussianMixtureModel", "GaussianModel"]


def _curves(log_snr: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma of the normalised path for log_snr (B,), with x's dimensions."""
    return tuple((0.5 * nn.functional.logsigmoid(sign * log_snr)).exp() for sign in (1, -1))  # type: ignore[return-value]


class _GaussianNet(nn.Module):
    """The v prediction for Gaussian data."""

    def __init__(self, moments: Moments) -> None:
        super().__init__()
        self.moments = moments

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        alpha, sigma = (expand(c, x) for c in _curves(log_snr, x))
        m, c, basis = self.moments.mean.to(x), self.moments.variance.to(x), self.moments.basis
        centred = x - alpha * m
        if basis is not None:
            centred = (centred.reshape(len(x), -1) @ basis.to(x)).reshape(x.shape)
            c = c.reshape(x.shape[1:])
        total = alpha.square() * c + sigma.square()
        # alpha noise - sigma data, less the mean's part: alpha sigma (1 - c)/total times the deviation.
        part = alpha * sigma * (1 - c) / total * centred
        if basis is not None:
            part = (part.reshape(len(x), -1) @ basis.to(x).T).reshape(x.shape)
        return part - sigma * m


class ExactModel(ScoreModel):
    """What the models have in common whose score is a formula."""

    def contents(self, ema: Mapping[str, Tensor] | None = None) -> Never:
        """Raise ConfigError: a formula has no weights that a checkpoint could hold."""
        raise ConfigError(
            f"{type(self).__name__} is a formula and has no weights to save; keep what it was made from and make it "
            "again, or keep the object with torch.save(model, file)"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join([repr(self.sde), *describe_data(self.moments, self.transform)])})"


class GaussianModel(ExactModel):
    """The exact model of data N(mean, covariance).

    Args:
        sde: any Gaussian diffusion.
        mean: shape ``event``.
        covariance: shape () or ``event`` (variances), or (D, D).

    Raises:
        ShapeError: a covariance of another shape. DomainError: one that is not finite and positive
            semi-definite.
    """

    def __init__(self, *, sde: GaussianSDE, mean: Tensor, covariance: Tensor) -> None:
        mean, covariance = torch.as_tensor(mean), torch.as_tensor(covariance)
        if not bool(torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
            raise DomainError("mean and covariance must be finite")
        if covariance.ndim == 2 and covariance.shape == (mean.numel(), mean.numel()):
            lowest = float(torch.linalg.eigvalsh(covariance.double()).min())
            if lowest < -1e-10 * float(covariance.abs().max()) or not torch.allclose(covariance, covariance.T):
                raise DomainError(
                    f"covariance must be symmetric and positive semi-definite, lowest eigenvalue {lowest:g}"
                )
        elif bool((covariance < 0).any()):
            raise DomainError(f"covariance must not be negative, got {float(covariance.min()):g}")
        moments = Moments.exact(mean, covariance)
        super().__init__(_GaussianNet(moments), sde, predicts="v", moments=moments)
        self.law = moments.at(1.0, 0.0)

    def sample_data(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n samples of the data, (n, *), in float32."""
        return self.law.from_noise(normal((n, *self.law.mean.shape), generator))

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the data's log density in nats, (B,)."""
        return self.law.log_prob(x)

    def flow(self, x: Tensor, t: float, s: float) -> Tensor:
        """Map x (B, *) from time t to time s along the exact probability flow.

        In each eigendirection, with the variance V = alpha^2 c + sigma^2,
        x_s = alpha_s m + sqrt(V_s/V_t) (x_t - alpha_t m).
        """
        moments = self.moments
        if moments is None:
            raise ConfigError("this model lost its moments; they define the flow")
        check_floating(x)
        p, q = (self.sde.at(self.sde.check_time(time, name=name, zero=True)) for time, name in ((t, "t"), (s, "s")))
        start, end = moments.at(float(p.alpha), float(p.sigma)), moments.at(float(q.alpha), float(q.sigma))
        ratio = Gaussian(torch.zeros_like(start.mean), end.variance / start.variance, start.basis)
        return ratio.from_noise(x - start.mean.to(x)) + end.mean.to(x)


class _MixtureNet(nn.Module):
    """The v prediction for a mixture of isotropic Gaussians."""

    def __init__(self, weights: Tensor, means: Tensor, std: Tensor) -> None:
        super().__init__()
        self.weights, self.means, self.std = weights, means, std

    def responsibilities(self, x: Tensor, alpha: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Return log(w_k N(x; alpha m_k, variance_k)) up to a constant, (B, K), and the deviations (B, K, D)."""
        flat = x.reshape(len(x), 1, math.prod(x.shape[1:]))
        centred = flat - alpha.reshape(-1, 1, 1) * self.means.to(x).reshape(1, len(self.means), -1)
        quadratic = centred.square().sum(2) / variance
        return self.weights.to(x).log() - 0.5 * (quadratic + flat.shape[2] * variance.log()), centred

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        alpha, sigma = (c.to(x).expand(len(x)) for c in _curves(log_snr, x))
        std = self.std.to(x)
        variance = alpha[:, None].square() * std.square() + sigma[:, None].square()  # (B, K)
        logits, centred = self.responsibilities(x, alpha, variance)
        share = torch.softmax(logits, 1)
        part = (alpha * sigma)[:, None] * (1 - std.square()) / variance * share
        v = (part[:, :, None] * centred).sum(1) - sigma[:, None] * (
            share @ self.means.to(x).reshape(len(self.means), -1)
        )
        return v.reshape(x.shape)


class GaussianMixtureModel(ExactModel):
    """The exact model of a mixture of isotropic Gaussians.

    Args:
        sde: any Gaussian diffusion.
        weights: (K,), positive; they are normalised.
        means: (K, *event).
        std: a number or (K,), not negative.

    Raises:
        ShapeError, DomainError: shapes that do not fit, weights not positive, a negative std.
    """

    def __init__(self, *, sde: GaussianSDE, weights: Tensor, means: Tensor, std: float | Tensor) -> None:
        means = check_samples(torch.as_tensor(means), "means").detach().to("cpu", torch.float64)
        if len(means) == 0:
            raise ShapeError("means is empty: a mixture needs at least one component")
        share = torch.as_tensor(weights, dtype=torch.float64).cpu()
        spread = torch.as_tensor(std, dtype=torch.float64).cpu()
        if share.shape != (len(means),) or spread.shape not in ((), (len(means),)):
            raise ShapeError(
                f"weights must have shape ({len(means)},) and std () or ({len(means)},) for {len(means)} means, "
                f"got {tuple(share.shape)} and {tuple(spread.shape)}"
            )
        if not bool((share > 0).all()) or not bool(torch.isfinite(share).all()):
            raise DomainError(f"weights must be positive and finite, got {share.tolist()}")
        if not bool(((spread >= 0) & torch.isfinite(spread)).all()):
            raise DomainError(f"std must not be negative and must be finite, got {spread.tolist()}")
        share, spread = share / share.sum(), spread.expand(len(means))
        flat = means.reshape(len(means), -1)
        mean = share @ flat
        centred = flat - mean
        within = (share * spread.square()).sum() * torch.eye(flat.shape[1], dtype=torch.float64)
        moments = Moments.exact(mean.reshape(means.shape[1:]), (centred.T * share) @ centred + within)
        super().__init__(_MixtureNet(share, means, spread), sde, predicts="v", moments=moments)
        self.weights, self.means, self.std = share, means, spread

    def sample_data(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n samples of the data, (n, *event), in float32."""
        pick = torch.searchsorted(self.weights.cumsum(0).float().to(generator.device), uniform((n,), generator))
        pick = pick.clamp_max(len(self.means) - 1)
        means, std = (c.to(generator.device, torch.float32)[pick] for c in (self.means, self.std))
        z = normal(tuple(means.shape), generator)
        return means + expand(std, z) * z

    def log_prob(self, x: Tensor, t: float = 0.0) -> Tensor:
        """Return the log density of x_t in nats, (B,), in at least float32; t = 0 is the data itself."""
        if check_floating(x).shape[1:] != self.means.shape[1:]:
            raise ShapeError(f"x must have the event {tuple(self.means.shape[1:])} of the means, got {tuple(x.shape)}")
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if t == 0.0:
            a, s = 1.0, 0.0
        else:
            point = self.sde.at(self.sde.check_time(t))
            a, s = float(point.alpha), float(point.sigma)
        net = self.net
        assert isinstance(net, _MixtureNet)
        alpha = torch.full((len(x),), a, dtype=x.dtype, device=x.device)
        variance = (a**2 * self.std.square() + s**2).to(x).expand(len(x), -1)
        logits, centred = net.responsibilities(x, alpha, variance)
        return torch.logsumexp(logits, 1) - 0.5 * centred.shape[2] * math.log(2 * math.pi)


class _EmpiricalNet(nn.Module):
    """The data prediction for a set of points, read in chunks."""

    def __init__(self, data: Tensor, chunk_size: int) -> None:
        super().__init__()
        self.data, self.chunk_size = data, chunk_size

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        alpha, sigma = (c.to(x).expand(len(x)) for c in _curves(log_snr, x))
        flat = x.reshape(len(x), -1)
        scaled = flat * (alpha / sigma.square())[:, None]
        half = 0.5 * (alpha / sigma).square()[:, None]
        # A running softmax: the largest logit so far, the sum of weights and of weighted points relative to it.
        top = torch.full((len(x), 1), -math.inf, dtype=x.dtype, device=x.device)
        total, mean = torch.zeros_like(top), torch.zeros_like(flat)
        for chunk in torch.split(self.data, self.chunk_size):
            points = chunk.to(x).reshape(len(chunk), -1)
            # -|x - alpha x_i|^2/(2 sigma^2) less the part that all points share.
            logits = scaled @ points.T - half * points.square().sum(1)
            new_top = torch.maximum(top, logits.amax(1, keepdim=True))
            shrink, weights = (top - new_top).exp(), (logits - new_top).exp()
            total, mean = shrink * total + weights.sum(1, keepdim=True), shrink * mean + weights @ points
            top = new_top
        return (mean / total).reshape(x.shape)


class EmpiricalModel(ExactModel):
    """The exact model of a data set taken as the law itself: each point with weight 1/N.

    It is what a network that memorises its training set perfectly would be; its samples are training points. Memory is
    that of the data and of one chunk's distances, B x chunk_size.

    Args:
        sde: any Gaussian diffusion.
        data: (N, *), finite; kept where it is and as it is.
        chunk_size: points compared at once.

    Raises:
        DTypeError, ShapeError, DomainError: data that are no finite floating tensor of at least one sample, or a
            chunk size below 1.
    """

    def __init__(self, *, sde: GaussianSDE, data: Tensor, chunk_size: int = 4096) -> None:
        if check_samples(data, "data").shape[0] == 0:
            raise ShapeError("data is empty: an empirical law needs at least one point")
        net = _EmpiricalNet(data.detach(), check_integer(chunk_size, "chunk_size", 1))
        super().__init__(net, sde, predicts="data", moments=Moments.of(data))
