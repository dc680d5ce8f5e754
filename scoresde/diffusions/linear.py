r"""Linear SDEs: the forward process beyond one pair of curves.

    dx = F(t) x dt + dw',  dw' = G(t) dw,  G G^T = Q(t),          x_t = M(t) x_0 + L(t) z,    L L^T = Sigma(t),

with linear maps M, L, F and Q in the place of numbers (``diffusions.blocks``): one number for each group of coordinates
(``diffusions.grouped``), or a matrix (``diffusions.matrix``). M' = F M, Sigma' = F Sigma + Sigma F^T + Q, and

    transition      x_t | x_s ~ N(A x_s, C),   A = M_t M_s^{-1},   Sigma_t = A Sigma_s A^T + C
    posterior       x_s | x_t, x_0 ~ N(M_s x_0 + H (x_t - M_t x_0), (1 - H A) Sigma_s),   H = Sigma_s A^T Sigma_t^{-1}
    prior           N(M m, M C_0 M^T + Sigma) for data of mean m and covariance C_0
    score           of x_t | x_0: -Sigma^{-1} (x_t - M x_0) = -L^{-T} z
    reverse family  dx = [F x - (1 + eta^2)/2 Q score] dt + eta dw',  eta = 1 reverse SDE, eta = 0 probability flow

x_t = M (x_0 + N^{1/2} z) with N = M^{-1} Sigma M^{-T}, which grows in every direction: M^{-1} x is one Brownian-like
motion in a clock that is a matrix. ``log_snr`` is its mean over the coordinates, -log det(N)/D, which no change of
basis alters: it is what a network is told of the time and what grids are even in.

Source: Särkkä and Solin 2019, "Applied stochastic differential equations", chapter 6; Song et al. 2021,
arXiv:2011.13456; Singhal et al. 2023, "Where to diffuse, how to diffuse, and how to get back", arXiv:2302.07261.
"""

from __future__ import annotations

import html
import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Never, NoReturn, Self

import torch
from torch import Tensor

from scoresde.diffusions.blocks import Blocks, invert, root, turned
from scoresde.diffusions.curves import curve, in_float64
from scoresde.diffusions.gaussian import Gaussian, Moments
from scoresde.diffusions.sde import SDE, GaussianSDE
from scoresde.errors.kinds import ConfigError, DomainError, ShapeError
from scoresde.errors.tensors import check_device, check_floating

__all__ = ["LinearPoint", "LinearSDE"]

Maps = tuple[Tensor, Tensor]
SCALAR = (
    *("alpha", "sigma", "r", "numbers", "alpha_rate", "sigma_rate", "drift_rate", "prior_std", "match", "starting_at"),
    *("transition_weights", "posterior_weights", "describe", "how_to_end_earlier"),
)
KNOTS, ROUNDS = 257, 14  # of the search for a time
FULL_LIMIT = 1024  # coordinates up to which a prior has a full covariance


def _refuse_scalars(owner: object, name: str) -> NoReturn:
    """Raise ConfigError for what only a diffusion of one alpha and sigma has, AttributeError for anything else."""
    if name in SCALAR:
        raise ConfigError(
            f"this needs a diffusion of one alpha and sigma ({name}), and a linear SDE has maps in their place; a "
            "LinearModel is trained, sampled by tables and bounded by linear_elbo"
        )
    raise AttributeError(f"{type(owner).__name__!r} object has no attribute {name!r}")


@dataclass(frozen=True, eq=False)
class LinearPoint:
    """One or many points on a linear SDE, in float64 on the CPU.

    Args:
        t: times, of any shape.
        mean: M, (*t, G, K, K).
        root: L, a root of the covariance Sigma = L L^T, (*t, G, K, K).
        owner: the SDE.
    """

    t: Tensor
    mean: Tensor
    root: Tensor
    owner: LinearSDE

    def __getattr__(self, name: str) -> NoReturn:
        """Refuse what only a diffusion of one alpha and sigma has."""
        _refuse_scalars(self, name)

    @property
    def covariance(self) -> Tensor:
        """Sigma, (*t, G, K, K)."""
        return self.root @ turned(self.root)

    def __getitem__(self, part: int | slice | Tensor | None) -> LinearPoint:
        """Return some of the points."""
        return LinearPoint(self.t[part], self.mean[part], self.root[part], self.owner)

    def of_each(self, batch: int) -> LinearPoint:
        """Return a single point, or one for each of ``batch`` samples, as (1, batch) of them."""
        shape = self.mean.shape[-3:]
        mean, roots = (maps.expand(batch, *shape)[None] for maps in (self.mean, self.root))
        return LinearPoint(self.t.expand(batch)[None], mean, roots, self.owner)


@dataclass(frozen=True, eq=False)
class LinearSDE(SDE):
    """dx = F(t) x dt + G(t) dw on [t_min, t_max]; its two kinds are ``GroupedSDE`` and ``MatrixSDE``."""

    def __getattr__(self, name: str) -> NoReturn:
        """Refuse what only a diffusion of one alpha and sigma has."""
        _refuse_scalars(self, name)

    @property
    @abstractmethod
    def blocks(self) -> Blocks:
        """How its maps act on events."""

    @abstractmethod
    def maps(self, t: Tensor) -> Maps:
        """Return M and L at float64 times t on the CPU, each (*t, G, K, K)."""

    @abstractmethod
    def coefficients(self, t: Tensor) -> Maps:
        """Return F and Q = G G^T at float64 times t on the CPU, each (*t, G, K, K)."""

    @abstractmethod
    def transition_maps(self, s: Tensor, t: Tensor) -> Maps:
        """Return A and C of x_t | x_s ~ N(A x_s, C) for float64 times s <= t on the CPU, each (*t, G, K, K)."""

    @abstractmethod
    def to_dict(self) -> dict[str, object]:
        """Return a JSON-able description."""

    @in_float64
    def log_snr(self, t: Tensor) -> Tensor:
        """Return -log det(M^{-1} Sigma M^{-T})/D, of t's shape: the mean over the D coordinates of log-SNR."""
        mean, roots = self.maps(t)
        # |det| of L by its triangle or, of M, in full.
        log_mean = torch.linalg.slogdet(mean)[1]
        log_root = torch.diagonal(roots, dim1=-2, dim2=-1).log().sum(-1)
        total: Tensor = (2 * (log_mean - log_root) / self.blocks.parts) @ self.blocks.shares()
        return total

    @property
    def clock(self) -> GaussianSDE:
        """The variance-preserving diffusion of the same times and log-SNR, for grids and laws of the time."""
        return _Clock(self, t_min=self.t_min, t_max=self.t_max)

    def time(self, log_snr: Tensor | float) -> Tensor:
        """Return the t with this mean log-SNR; DomainError where there is none."""
        return self.clock.time(log_snr)

    def at(self, t: Tensor | float) -> LinearPoint:
        """Return the points at times t (no check of the interval)."""
        time = (
            t.to("cpu", torch.float64)
            if isinstance(t, Tensor)
            else torch.tensor(float(t), dtype=torch.float64, device="cpu")
        )
        return LinearPoint(time, *self.maps(time), self)

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>"

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return F(t) x, of x's shape."""
        return self._act(self.coefficients(self.check_time(t, check_floating(x)))[0], x)

    def diffusion(self, t: Tensor | float) -> Never:
        """Raise ConfigError: the noise has no one strength; ``coefficients`` has its matrix Q."""
        raise ConfigError(
            f"the noise of {self!r} is a linear map and no number; sde.coefficients(t) is Q = G G^T, tables sample it"
        )

    def marginal(self, x0: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return the mean M x_0, (B, *), and the root L, (*t, G, K, K), of x_t | x_0."""
        point = self.at(self.check_time(t, check_floating(x0, "x0")))
        return self._act(point.mean, x0), point.root

    def perturb(self, x0: Tensor, t: Tensor | float, noise: Tensor) -> Tensor:
        """Return x_t = M x_0 + L noise, of x_0's type; ``noise`` has x_0's shape and device."""
        if check_floating(x0, "x0").shape != check_floating(noise, "noise").shape:
            raise ShapeError(f"noise must have the shape {tuple(x0.shape)} of x0, got {tuple(noise.shape)}")
        check_device(noise.device, "noise", x0.device, "x0")
        mean, roots = self.marginal(x0, t)
        return mean + self._act(roots, noise)

    def transition(self, x_s: Tensor, s: Tensor | float, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return the mean A x_s, (B, *), and the covariance C, (*t, G, K, K), of x_t | x_s for s <= t."""
        early, late = self._check_order(check_floating(x_s, "x_s"), s, t)
        onward, covariance = self.transition_maps(early, late)
        return self._act(onward, x_s), covariance

    def posterior_maps(self, early: LinearPoint, late: LinearPoint) -> tuple[Tensor, Tensor, Tensor]:
        """Return the maps of x_t and of x_0 in the mean of x_s | x_t, x_0, and its covariance.

        The covariance is written as a sum, (1 - H A) Sigma_s (1 - H A)^T + H C H^T, in which nothing is negative.
        """
        onward, fresh = self.transition_maps(early.t, late.t)
        covariance = early.covariance
        gain = covariance @ turned(onward) @ invert(late.covariance)
        kept = torch.eye(self.blocks.parts, dtype=torch.float64, device="cpu") - gain @ onward
        spread = kept @ covariance @ turned(kept) + gain @ fresh @ turned(gain)
        return gain, early.mean - gain @ late.mean, spread

    def posterior(self, x0: Tensor, x_t: Tensor, s: Tensor | float, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return the mean, (B, *), and the covariance, (*t, G, K, K), of x_s | x_t, x_0 for s <= t (Bayes)."""
        if check_floating(x0, "x0").shape != check_floating(x_t, "x_t").shape:
            raise ShapeError(f"x0 and x_t must agree, got shapes {tuple(x0.shape)} and {tuple(x_t.shape)}")
        early, late = (self.at(time) for time in self._check_order(x0, s, t))
        on_xt, on_x0, covariance = self.posterior_maps(early, late)
        return self._act(on_x0, x0) + self._act(on_xt, x_t), covariance

    def frozen_maps(self, late: LinearPoint, early: LinearPoint, eta: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the maps of x_t, x_0 and a draw in the reverse family's exact step from t to s with x_0 known.

        x_s = M_s x_0 + Psi (x_t - M_t x_0) + V z with Psi' = (F + (1 + eta^2)/2 Q Sigma^{-1}) Psi; V V^T is what
        is then left of Sigma_s. At eta = 1 it is the posterior, at eta = 0 DDIM's step with the root that the flow
        carries along (Zhang, Tao and Chen 2023, "gDDIM", arXiv:2206.05564).
        """
        if eta == 1:
            on_xt, on_x0, covariance = self.posterior_maps(early, late)
            return on_xt, on_x0, root(covariance)
        onward = self.carry_deviation(late, early, eta)
        left = early.covariance - onward @ late.covariance @ turned(onward)
        noise = root(left) if eta else torch.zeros_like(left)
        return onward, early.mean - onward @ late.mean, noise

    @abstractmethod
    def carry_deviation(self, late: LinearPoint, early: LinearPoint, eta: float) -> Tensor:
        """Return Psi of ``frozen_maps``, (n, G, K, K), from points ``late`` to ``early``, (n,) each."""

    def prior(self, t: Tensor | float | None = None, moments: Moments | None = None) -> Gaussian:
        """Return the Gaussian that sampling starts from at t (t_max by default).

        With the data's moments it is N(M m, M C M^T + Sigma); without them, or with a matrix and variances of more than
        1024 coordinates, N(M m, Sigma), with m = 0 where it is not known.
        """
        time = self.check_time(self.t_max if t is None else t)
        if time.ndim:
            raise ShapeError(f"t of a prior must be a single time, got shape {tuple(time.shape)}")
        point, blocks = self.at(time), self.blocks
        zero = torch.zeros((), dtype=torch.float64, device="cpu")
        if moments is None:
            return _BlockGaussian(zero, zero + 1, None, blocks=blocks, root=point.root)
        event = tuple(moments.mean.shape) or blocks.event
        if event is None:
            raise ConfigError("the moments have no event, and a matrix acts on one; pass prior= or Moments.of(data)")
        centre = self._act(point.mean, moments.mean.expand(event)[None])[0]
        if moments.basis is None and blocks.parts == 1:
            factors, own = blocks.spread(point.mean), blocks.spread(point.covariance)
            return Gaussian(centre, (factors.square() * moments.variance + own).expand(event))
        if moments.basis is None and centre.numel() > FULL_LIMIT:
            return _BlockGaussian(centre, zero + 1, None, blocks=blocks, root=point.root)
        full = moments.covariance
        full = full if full.ndim == 2 and moments.basis is not None else torch.diag(full.expand(event).reshape(-1))
        onward = blocks.dense(point.mean, event)
        covariance = onward @ full @ onward.T + blocks.dense(point.covariance, event)
        law = Moments.exact(centre, 0.5 * (covariance + covariance.T))
        return Gaussian(law.mean, law.variance, law.basis)

    def _act(self, maps: Tensor, x: Tensor) -> Tensor:
        """Return maps, (G, K, K) or (B, G, K, K), on x (B, *), in at least float32 and cast to x's type."""
        self.blocks.check(x.shape[1:])
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return self.blocks.apply(maps.to(wide), wide).to(x.dtype)

    def _check_order(self, x: Tensor, s: Tensor | float, t: Tensor | float) -> Maps:
        early, late = self.check_time(s, x, name="s", zero=True), self.check_time(t, x)
        if bool((early > late).any()):
            raise DomainError(f"s must not exceed t, got s = {early.max():g} and t = {late.min():g}; swap them")
        return early, late


@dataclass(frozen=True, eq=False, repr=False)
class _BlockGaussian(Gaussian):
    """N(mean, L L^T) with a map L (G, K, K), over events of any shape that it acts on."""

    blocks: Blocks = field(kw_only=True)
    root: Tensor = field(kw_only=True)

    def __repr__(self) -> str:
        return f"Gaussian(mean {tuple(self.mean.shape)}, covariance of {self.blocks.groups} blocks)"

    def from_noise(self, z: Tensor) -> Tensor:
        """Map standard normal ``z`` (B, *) to samples: mean + L z."""
        self.blocks.check(check_floating(z, "z").shape[1:], "z")
        wide = z.to(torch.promote_types(z.dtype, torch.float32))
        return (self.mean.to(wide) + self.blocks.apply(self.root.to(wide), wide)).to(z.dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log density in nats, (B,)."""
        event = check_floating(x).shape[1:]
        self.blocks.check(event)
        law = Moments.exact(self.mean.expand(event), self.blocks.dense(self.root @ turned(self.root), event))
        return Gaussian(law.mean, law.variance, law.basis).log_prob(x)


@dataclass(frozen=True, eq=False)
class _Clock(GaussianSDE):
    """alpha^2 + sigma^2 = 1 with the log-SNR of a linear SDE."""

    sde: LinearSDE

    def starting_at(self, t_min: float) -> Self:
        return type(self)(self.sde, t_min=t_min, t_max=self.t_max)

    @in_float64
    def _invert(self, log_snr: Tensor) -> Tensor:
        """Find t between knots by the Illinois rule, to rounding: a log-SNR costs an exponential of matrices."""
        first = torch.linspace(
            math.log(1e-3 * self.t_min), math.log(self.t_max), KNOTS, dtype=torch.float64, device="cpu"
        ).exp()
        knots, values = first.to(log_snr), self.log_snr(first).to(log_snr)
        place = torch.searchsorted(-values, -log_snr.contiguous()).clamp(1, KNOTS - 1)
        low, high = knots[place - 1], knots[place]
        above, below = values[place - 1] - log_snr, values[place] - log_snr
        t, before = high, torch.zeros_like(log_snr, dtype=torch.bool)
        for turn in range(ROUNDS):
            t = torch.where(above == below, high, (low * below - high * above) / (below - above))
            off = self.log_snr(t) - log_snr
            early = off > 0
            # The end that stays where it is twice loses half of its weight.
            half = 0.5 * (early == before) + 1.0 * (early != before) if turn else torch.ones_like(off)
            low, high = torch.where(early, t, low), torch.where(early, high, t)
            above, below = torch.where(early, off, half * above), torch.where(early, half * below, off)
            before = early
        beyond = log_snr > values[0]
        return torch.where(beyond, super()._invert(log_snr), t) if bool(beyond.any()) else t

    @curve
    def alpha(self, t: Tensor) -> Tensor:
        return torch.sigmoid(self.sde.log_snr(t)).sqrt()

    @curve
    def sigma(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-self.sde.log_snr(t)).sqrt()

    @curve
    def log_snr(self, t: Tensor) -> Tensor:
        return self.sde.log_snr(t)
