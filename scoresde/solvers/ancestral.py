r"""First-order steps: ancestral sampling, DDIM and reverse diffusion.

On an interval from t down to s let D = log_snr_t - log_snr_s <= 0, h = -D/2 the step in log(alpha/sigma), and
(a, b) the transition x_t | x_s ~ N(a x_s, b^2).

*Exponential, data prediction frozen.* In lambda = log(alpha/sigma) the reverse family of index eta reads
d(x/sigma) = [-eta^2 x/sigma + (1 + eta^2) e^lambda x_0] d lambda + sqrt(2) eta dw, so

    x_s = sigma_s/sigma_t e^{-eta^2 h} x_t + alpha_s (1 - e^{-(1 + eta^2) h}) x_0 + sigma_s sqrt(1 - e^{-2 eta^2 h}) z.

At eta = 1 this is Bayes' posterior of x_s given x_t and x_0, DDPM's ancestral step with the small variance; the large
variance replaces the weight of z by b, and the learned one lets the network choose between the two for each coordinate,
on a logarithmic scale (Nichol and Dhariwal 2021, eq. 15). At eta = 0 it is DDIM. Between, DDIM's own eta scales the
posterior's standard deviation instead: w = eta sigma_s sqrt(1 - e^D) and
x_s = alpha_s x_0 + sqrt(sigma_s^2 - w^2) noise + w z.

*Reverse diffusion* uses the forward transition in the place of drift and noise,

    x_s = (2 - a) x_t + (1 + eta^2)/2 b^2 score + eta b z,

and, out of alpha = 0, where the transition says nothing about the data, the limit of the exponential step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from scoresde.diffusions.point import Point
from scoresde.diffusions.sde import GaussianSDE, transition_weights
from scoresde.errors.kinds import DomainError
from scoresde.errors.names import check_choice
from scoresde.errors.values import check_number
from scoresde.solvers.forms import freeze_data
from scoresde.solvers.grids import even, karras
from scoresde.solvers.one_step import OneStep, Stage, express, name_increments
from scoresde.solvers.rows import Increment, Knot, Order, Row
from scoresde.solvers.solver import PointMethod, Solver
from scoresde.solvers.tableau import Tableau

Variance = Literal["small", "large", "learned"]
VARIANCES: Final = get_args(Variance)


def _declare_order(eta: float) -> Order:
    return Order(deterministic=1.0) if eta == 0 else Order(strong=1.0, weak=1.0)


def _weigh_data(late: Point, early: Point, share: Tensor) -> Tensor:
    """Return the weight of the data, alpha_s (1 - e^share), and its limit upwards into alpha = 0."""
    return torch.where(early.alpha == 0, freeze_data(late, early), early.alpha * -torch.expm1(share))


def _write_table(
    name: str, points: Point, weights: tuple[Tensor, Tensor, Tensor], *, prior_std: float, power: float, order: Order
) -> Tableau:
    """Build the table of x <- weights[0] x + weights[1] data + weights[2] z on each interval."""
    knots = Knot.of(points)
    rows = []
    for i, (on_x, on_data, on_noise) in enumerate(zip(*(w.tolist() for w in weights), strict=True)):
        increment = Increment(knots[i].t, knots[i + 1].t, power) if on_noise else None
        rows.append(Row(knots[i], (on_x, on_data), noise=(on_noise,) if on_noise else (), increment=increment))
    return Tableau(name, "data", tuple(rows), knots[0], knots[-1], prior_std, order=order)


def ancestral(*, eta: float = 1.0, variance: Variance = "small") -> Solver:
    """Return ancestral sampling: Bayes' posterior with the data prediction in the place of x_0.

    Source: Ho et al. 2020, "Denoising diffusion probabilistic models", arXiv:2006.11239, eq. 6 and 7 (eta = 1); Nichol
    and Dhariwal 2021, "Improved denoising diffusion probabilistic models", arXiv:2102.09672, eq. 15 (the learned
    variance).

    Args:
        eta: the reverse family's index, >= 0; 1 is DDPM, 0 is DDIM.
        variance: "small" (the posterior's), "large" (the transition's b^2) or "learned" (between them, by a model with
            ``variance="learned"``); the last two for eta = 1 only.

    Raises:
        ConfigError: another variance. DomainError: eta < 0, or another variance than the small one with eta other
            than 1.
    """
    eta = check_number(eta, "eta", 0.0)
    check_choice("variance", variance, VARIANCES)
    if variance != "small" and eta != 1.0:
        raise DomainError(f"the {variance} variance belongs to eta = 1, got eta = {eta:g}")
    return Solver("ancestral", Ancestral(eta, variance), even(), 1, _declare_order(eta), "Ho et al. 2020")


@dataclass(frozen=True)
class Ancestral(PointMethod):
    """The exponential first-order step on the data prediction; ``ancestral`` checks its options."""

    eta: float
    variance: Variance

    def __str__(self) -> str:
        return f"eta = {self.eta:g}, {self.variance} variance"

    def on(self, points: Point, prior_std: float) -> Tableau:
        late, early, eta = points[:-1], points[1:], self.eta
        h = 0.5 * (early.log_snr - late.log_snr)
        # h is infinite out of alpha = 0 and into sigma = 0.
        on_x = early.sigma / late.sigma * (torch.zeros_like(h) if eta == 0 else -(eta**2) * h).exp()
        on_data = _weigh_data(late, early, -(1 + eta**2) * h)
        on_noise = early.sigma * (-torch.expm1(-2 * eta**2 * h)).nan_to_num(0.0).sqrt()
        large = torch.where(early.sigma > 0, transition_weights(early, late)[1], on_noise)
        table = _write_table(
            f"ancestral ({self})",
            points,
            (on_x, on_data, large if self.variance == "large" else on_noise),
            prior_std=prior_std,
            power=-2.0 * eta**2,
            order=_declare_order(eta) if self.variance == "small" else Order(weak=1.0),
        )
        if self.variance != "learned":
            return table
        pairs = zip(table.rows, on_noise.tolist(), large.tolist(), strict=True)
        return replace(table, rows=tuple(replace(row, spread=(low, high)) if low else row for row, low, high in pairs))


def ddim(eta: float = 0.0) -> Solver:
    """Return DDIM; here eta is the paper's own: it scales the posterior's standard deviation.

    It equals the reverse family's index at 0 (the first-order exponential integrator of the probability flow) and at 1
    (ancestral sampling), and differs between.

    Source: Song, Meng and Ermon 2021, "Denoising diffusion implicit models", arXiv:2010.02502, eq. 12 and 16.

    Raises:
        DomainError: eta < 0, or so large that a step has no room for the noise.
    """
    eta = check_number(eta, "eta", 0.0)
    return Solver("ddim", DDIM(eta), even(), 1, _declare_order(eta), "Song, Meng and Ermon 2021")


@dataclass(frozen=True)
class DDIM(PointMethod):
    """DDIM's step with its own eta; ``ddim`` checks it."""

    eta: float

    def __str__(self) -> str:
        return f"eta = {self.eta:g}"

    def on(self, points: Point, prior_std: float) -> Tableau:
        late, early, eta = points[:-1], points[1:], self.eta
        gap = late.log_snr - early.log_snr
        # Without noise a step may lead upwards, where the gap is positive, and infinite into alpha = 0.
        drawn = -torch.expm1(gap) if eta else torch.zeros_like(gap)
        # log of e^{D/2} sqrt(1 - eta^2 (1 - e^D)), the share of x_t that survives, relative to alpha_s/alpha_t.
        share = 0.5 * gap + 0.5 * torch.log1p(-(eta**2) * drawn)
        if bool(torch.isnan(share).any()):
            raise DomainError(f"eta = {eta:g} asks for more noise than a step of this grid can hold; use eta <= 1")
        kept = 1 - eta**2 + eta**2 * gap.exp() if eta else torch.ones_like(gap)
        on_x = early.sigma / late.sigma * kept.sqrt()
        on_data = _weigh_data(late, early, share)
        on_noise = eta * early.sigma * drawn.sqrt()
        weights, order = (on_x, on_data, on_noise), _declare_order(eta)
        return _write_table(f"ddim ({self})", points, weights, prior_std=prior_std, power=-2.0, order=order)


def euler_ancestral(eta: float = 1.0) -> Solver:
    """Return k-diffusion's Euler ancestral sampler; here eta is its own, which is DDIM's.

    Euler's method in nu = sigma/alpha runs below the step's end s to nu_down, and noise lifts the state up to s:
    nu_up = eta nu_s sqrt(1 - nu_s^2/nu_t^2) and nu_down = sqrt(nu_s^2 - nu_up^2). Both together are DDIM's step with
    the same eta: 0 is DDIM, 1 is ancestral sampling.

    Source: Crowson 2022, k-diffusion, ``sample_euler_ancestral``, which cuts nu_up at nu_s where eta > 1.

    Raises:
        DomainError: eta < 0, or so large that a step has no room for the noise.
    """
    return replace(ddim(eta), name="euler_ancestral", grid=karras(), paper="Crowson 2022")


def reverse_diffusion(*, eta: float = 1.0) -> Solver:
    """Return the reverse-diffusion predictor: the forward transition's own drift and noise, run backwards.

    Source: Song et al. 2021, arXiv:2011.13456, appendix E, eq. 46.
    """
    eta = check_number(eta, "eta", 0.0)
    order = _declare_order(eta)
    build = _ReverseDiffusion(f"reverse_diffusion (eta = {eta:g})", "noise", eta, order)
    return Solver("reverse_diffusion", build, even(), 1, order, "Song et al. 2021")


@dataclass(frozen=True)
class _ReverseDiffusion(OneStep):
    """The forward transition run backwards; ``reverse_diffusion`` checks eta."""

    def __str__(self) -> str:
        return f"eta = {self.eta:g}"

    def limits(self, late: Point, early: Point) -> Tensor:
        return (late.alpha == 0) | (early.alpha == 0)

    def stages(self, sde: GaussianSDE, late: Point, early: Point, prediction: str) -> list[Stage]:
        a, variance = late.alpha / early.alpha, late.sigma.square() * -torch.expm1(late.log_snr - early.log_snr)
        seen = express("noise", prediction, late, "reverse_diffusion")
        weights = (-0.5 * (1 + self.eta**2) * variance / late.sigma,)
        if not self.eta:
            # The flow's step serves upwards too, where the variance that it takes back is negative.
            return [Stage(late, seen, 2 - a, weights)]
        b = variance.sqrt()
        return [Stage(late, seen, 2 - a, weights, (self.eta * b,), name_increments(late, early, 2.0))]
