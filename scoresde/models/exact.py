r"""Models whose score is exact: the ground truth of tests, benchmarks and tutorials.

Each is written in the coordinates normalised to alpha^2 + sigma^2 = 1, as a function of x and log_snr alone, and
predicts v = alpha noise - sigma data there, which is finite at both ends; so it serves every SDE.

Gaussian data N(m, C), C = U diag(c) U^T:   data = m + U [alpha c/(alpha^2 c + sigma^2)] U^T (x - alpha m).
A data set x_1 ... x_N, each with weight 1/N:   data = sum_i p_i(x) x_i, p_i ~ exp(-|x - alpha x_i|^2 / (2 sigma^2)).
A mixture of N(m_k, s_k^2) with weights w_k: with V_k = alpha^2 s_k^2 + sigma^2, the responsibilities
p_k(x) ~ w_k N(x; alpha m_k, V_k) and r_k = p_k/V_k,

    v = sigma [alpha sum_k r_k (1 - s_k^2) x - sum_k r_k m_k].

The last two are products of matrices, |x - alpha m|^2 = |x|^2 - 2 alpha x.m + alpha^2 |m|^2, whose terms cancel where
the widths are small against the distances from the origin. So x and the points are taken relative to the data's mean,
v = (the same) - sigma mean, and the products are of float64, which err by 1e-16 |x|^2/V; only what comes after them is
in the type of x.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Never

import torch
from torch import Tensor, nn

from scoresde.diffusions.gaussian import Gaussian, Moments
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.kinds import ConfigError, DomainError, ShapeError
from scoresde.errors.tensors import check_floating, check_numbers, check_samples
from scoresde.errors.values import check_integer
from scoresde.models.prediction import describe_data
from scoresde.models.score_model import ScoreModel
from scoresde.noise import normal, uniform
from scoresde.ops import chunks, expand, flat, working_dtype

__all__ = ["EmpiricalModel", "ExactModel", "GaussianMixtureModel", "GaussianModel", "vectors"]


NARROW = 8  # coordinates up to which a product in float64 costs less than the exponentials beside it
LEAST = -80.0  # a smaller logarithm of a share counts as this: its exponential is subnormal, which is slow
TABLE = 1 << 18  # entries of samples x components that are held at once


def vectors(x: Tensor, size: int) -> Tensor:
    """Return x (B, *) as (B, D) for a law of D numbers; ShapeError where its samples have another number of them."""
    rows = flat(x)
    if rows.shape[1] != size:
        raise ShapeError(f"x must have samples of {size} numbers, as the model's data have, got shape {tuple(x.shape)}")
    return rows


def _curves(log_snr: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma of the normalised path in float64, as columns (B, 1), or (1, 1) where one serves all."""
    each = log_snr if log_snr.ndim and log_snr.stride(0) else log_snr.reshape(-1)[:1]
    wide = each.to(working_dtype(x.device)).reshape(-1, 1)
    return torch.sigmoid(wide).sqrt(), torch.sigmoid(-wide).sqrt()


class _GaussianNet(nn.Module):
    """The v prediction for Gaussian data, in float64: a rotation mixes wide directions into narrow ones."""

    def __init__(self, moments: Moments) -> None:
        super().__init__()
        self.moments = moments

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        alpha, sigma = _curves(log_snr, x)
        m, c = (part.to(alpha).reshape(-1) for part in (self.moments.mean, self.moments.variance))
        basis = None if self.moments.basis is None else self.moments.basis.to(alpha)
        rows = vectors(x, len(m)) if self.moments.mean.ndim else flat(x)  # the law of a number serves each coordinate
        centred = rows.to(alpha) - alpha * m
        # alpha noise - sigma data, less the mean's part: alpha sigma (1 - c)/total times the deviation.
        factor = alpha * sigma * (1 - c) / (alpha.square() * c + sigma.square())
        part = factor * centred if basis is None else (factor * (centred @ basis)) @ basis.T
        return (part - sigma * m).to(x.dtype).reshape(x.shape)


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
        mean: shape ``event``; a law of one number, (), serves samples of any shape, coordinate by coordinate.
        covariance: shape () or ``event`` (variances), or (D, D).

    Raises:
        DTypeError: what is no tensor. ShapeError: a covariance of another shape. DomainError: one that is not finite
            and positive semi-definite.
    """

    def __init__(self, *, sde: GaussianSDE, mean: Tensor, covariance: Tensor) -> None:
        moments = Moments.exact(mean, covariance)
        super().__init__(_GaussianNet(moments), sde, predicts="v", moments=moments)
        self.law = moments.at(1.0, 0.0)

    def sample_data(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n samples of the data, (n, *), in float32."""
        n = check_integer(n, "n")
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
        if p.t.ndim or q.t.ndim or x.shape[1:] != moments.mean.shape:
            raise ShapeError(
                f"x must be of the event {tuple(moments.mean.shape)}, t and s a single time each, got shapes "
                f"{tuple(x.shape)}, {tuple(p.t.shape)} and {tuple(q.t.shape)}"
            )
        start, end = moments.at(float(p.alpha), float(p.sigma)), moments.at(float(q.alpha), float(q.sigma))
        ratio = Gaussian(torch.zeros_like(start.mean), end.variance / start.variance, start.basis)
        return ratio.from_noise(x - start.mean.to(x)) + end.mean.to(x)


class _MixtureNet(nn.Module):
    """The v prediction for a mixture of isotropic Gaussians."""

    def __init__(self, weights: Tensor, means: Tensor, std: Tensor) -> None:
        super().__init__()
        self.centre = weights @ flat(means)
        points = flat(means) - self.centre
        # Components of one width share one variance.
        self.square = std[:1].square() if bool((std == std[0]).all()) else std.square()
        self.points, self.squares, self.logs = points, points.square().sum(1), weights.log()
        # What makes of (responsibilities, sigma) the output but for the part along x, and of the first that part.
        self.rows, self.shrunk = torch.cat([points, -self.centre[None]]), (1 - std.square())[:, None]

    def logits(self, x: Tensor, alpha: Tensor, variance: Tensor) -> Tensor:
        """Return log(w_k N(x; alpha m_k, V_k)) but for what all components share, (B, K), for x less alpha centre."""
        points, squares, logs = (part.to(x) for part in (self.points, self.squares, self.logs))
        half = -0.5 * alpha.square()
        if len(self.square) == 1:
            return torch.addmm(torch.addcmul(logs, half / variance, squares), alpha / variance * x, points.T)
        of_x = torch.addcmul(-0.5 * x.square().sum(1, keepdim=True), half, squares)
        return torch.addmm(of_x, alpha * x, points.T) / variance + (logs - 0.5 * x.shape[1] * variance.log())

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        count = max(1, TABLE // len(self.points))
        if len(x) > count:
            times = log_snr.expand(len(x))
            return torch.cat([self(x[part], times[part]) for part in chunks(len(x), count)])
        alpha, sigma = _curves(log_snr, x)
        variance = torch.addcmul(sigma.square(), alpha.square(), self.square.to(alpha))  # 1 or B by 1 or K
        centre = self.centre.to(alpha)
        centred = torch.addcmul(vectors(x, len(centre)).to(alpha), alpha, -centre)
        logits = self.logits(centred, alpha, variance)
        # Less the largest, since a large number has few digits in the type of x.
        below = logits.sub_(logits.detach().amax(1, keepdim=True)).to(x.dtype)
        share = torch.softmax(below.clamp_min_(LEAST), 1)
        # The sums of r (1 - s^2) x and of r m cancel near a component.
        wide = alpha.dtype if centred.shape[1] <= NARROW else x.dtype
        weights = share.to(wide) * (-sigma / variance).to(wide)
        rows, shrunk = (part.to(x.device, wide) for part in (self.rows, self.shrunk))
        # Autocast is for networks; the sums would keep none of their digits in bf16.
        with torch.autocast(x.device.type, enabled=False):
            v = torch.cat([weights, sigma.to(wide).expand(len(x), 1)], 1) @ rows
            along = (weights @ shrunk) * alpha.to(wide)
        return v.addcmul_(along, centred.to(wide), value=-1).to(x.dtype).reshape(x.shape)


class GaussianMixtureModel(ExactModel):
    """The exact model of a mixture of isotropic Gaussians.

    Args:
        sde: any Gaussian diffusion.
        weights: (K,), positive; they are normalised.
        means: (K, *event).
        std: a number or (K,), not negative.

    Raises:
        DTypeError, ShapeError, DomainError: what is no tensor, shapes that do not fit, weights not positive, a negative
            std.
    """

    def __init__(self, *, sde: GaussianSDE, weights: Tensor, means: Tensor, std: float | Tensor) -> None:
        if torch.is_tensor(means):
            check_floating(means, "means")
        means = check_samples(check_numbers(means, "means"), "means")
        if len(means) == 0:
            raise ShapeError("means is empty: a mixture needs at least one component")
        share = check_numbers(weights, "weights")
        spread = check_numbers(std, "std")
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
        mean = share @ flat(means)
        centred = flat(means) - mean
        within = (share * spread.square()).sum() * torch.eye(len(mean), dtype=torch.float64, device="cpu")
        moments = Moments.exact(mean.reshape(means.shape[1:]), (centred.T * share) @ centred + within)
        super().__init__(_MixtureNet(share, means, spread), sde, predicts="v", moments=moments)
        self.weights, self.means, self.std = share, means, spread

    def sample_data(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n samples of the data, (n, *event), in float32."""
        u = uniform((check_integer(n, "n"),), generator)
        device = u.device
        pick = torch.searchsorted(self.weights.cumsum(0).float().to(device), u)
        pick = pick.clamp_max(len(self.means) - 1)
        means, std = (c.to(device, torch.float32)[pick] for c in (self.means, self.std))
        z = normal(tuple(means.shape), generator)
        return means + expand(std, z) * z

    def log_prob(self, x: Tensor, t: float = 0.0) -> Tensor:
        """Return the log density of x_t in nats, (B,), in at least float32; t = 0 is the data itself."""
        if check_floating(x).shape[1:] != self.means.shape[1:]:
            raise ShapeError(f"x must have the event {tuple(self.means.shape[1:])} of the means, got {tuple(x.shape)}")
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        time = self.sde.check_time(t, zero=True)
        if time.ndim:
            raise ShapeError(f"t of a density must be a single time, got shape {tuple(time.shape)}")
        if float(time) == 0.0:
            a, s = 1.0, 0.0
        else:
            point = self.sde.at(time)
            a, s = float(point.alpha), float(point.sigma)
        net = self.net
        assert isinstance(net, _MixtureNet)
        alpha = torch.full((1, 1), a, dtype=working_dtype(x.device), device=x.device)
        variance = a**2 * net.square.to(alpha) + s**2
        centred = vectors(x, len(net.centre)).to(alpha) - alpha * net.centre.to(alpha)
        total = torch.logsumexp(net.logits(centred, alpha, variance[None]), 1)
        total = total - 0.5 * centred.shape[1] * math.log(2 * math.pi)
        if len(variance) == 1:
            total = total - 0.5 * (centred.square().sum(1) / variance + centred.shape[1] * variance.log())
        return total.to(x.dtype)


class _EmpiricalNet(nn.Module):
    """The data prediction for a set of points, read in chunks."""

    def __init__(self, data: Tensor, chunk_size: int, centre: Tensor) -> None:
        super().__init__()
        self.data, self.chunk_size = data, chunk_size
        # A number of the data's own type, so that it is the same in every type.
        self.centre = centre.reshape(-1).to(data).to(working_dtype(data.device))
        self.squares = torch.empty(len(data), dtype=self.centre.dtype, device=data.device)
        for part in chunks(len(data), max(1, TABLE // max(1, len(self.centre)))):
            self.squares[part] = 0.5 * (flat(data[part]) - self.centre).square_().sum(1)

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        alpha, sigma = _curves(log_snr, x)
        centre = self.centre.to(alpha)
        centred = vectors(x, len(centre)).to(alpha) - alpha * centre
        wide = alpha.dtype if centred.shape[1] <= NARROW else x.dtype
        scaled, factor = (alpha / sigma.square() * centred).to(wide), (alpha / sigma).square().to(wide)
        shared = (0.5 / sigma.square() * centred.square().sum(1, keepdim=True)).to(wide)
        # A running softmax: the largest logit so far, the sum of weights and of weighted points relative to it.
        top = torch.full((len(x), 1), -math.inf, dtype=x.dtype, device=x.device)
        total, mean = torch.zeros_like(top), torch.zeros_like(centred, dtype=x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            for part in chunks(len(self.data), self.chunk_size):
                points = (flat(self.data[part]) - self.centre.to(wide)).to(x.device, wide)
                # -|x - alpha x_i|^2/(2 sigma^2), with x and the points less their mean.
                logits = (scaled @ points.T).sub_(factor * self.squares[part].to(points)).sub_(shared).to(x.dtype)
                new_top = torch.maximum(top, logits.detach().amax(1, keepdim=True))
                shrink, weights = (top - new_top).exp(), logits.sub_(new_top).clamp_min_(LEAST).exp_()
                total = shrink * total + weights.sum(1, keepdim=True)
                mean = shrink * mean + weights @ points.to(x.dtype)
                top = new_top
        return ((mean / total).to(alpha) + centre).to(x.dtype).reshape(x.shape)


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

    def __init__(self, *, sde: GaussianSDE, data: Tensor, chunk_size: int = 2048) -> None:
        if check_samples(data, "data").shape[0] == 0:
            raise ShapeError("data is empty: an empirical law needs at least one point")
        moments = Moments.of(data)
        net = _EmpiricalNet(data.detach(), check_integer(chunk_size, "chunk_size", 1), moments.mean)
        super().__init__(net, sde, predicts="data", moments=moments)
