r"""The exact solution of the reverse family but for one integral of the prediction.

With lambda = log(alpha/sigma), an interval from t down to s, h = lambda_s - lambda_t and eta constant on it,

    data    x_s = sigma_s/sigma_t e^{-eta^2 h} x_t + int alpha_s (1 + eta^2) e^{-(1 + eta^2)(lambda_s - l)} P(l) dl
                  + sigma_s sqrt(1 - e^{-2 eta^2 h}) z
    noise   x_s = alpha_s/alpha_t x_t - int (1 + eta^2) sigma_s e^{lambda_s - l} P(l) dl
                  + eta sigma_s sqrt(e^{2h} - 1) z
    flow    x_s/(alpha_s + sigma_s) = x_t/(alpha_t + sigma_t) + int P du,       u = sigma/(alpha + sigma), eta = 0.

The *measure* is what multiplies P under the integral, as Gauss-Legendre nodes in lambda and weights, in float64. Its
*edge* is its density in lambda at the end s: what the measure per unit of h tends to as h goes to 0.

Source: Lu et al. 2022, "DPM-Solver++", arXiv:2211.01095; Zhang and Chen 2023, "Fast sampling of diffusion models with
exponential integrator", arXiv:2204.13902; Xue et al. 2023, "SA-Solver", arXiv:2309.05019 (all eta).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from scoresde.diffusions.point import Point

__all__ = ["FORMS", "Form", "FormName", "freeze_data"]

FormName = Literal["data", "noise", "flow"]

NODES, WEIGHTS = (torch.from_numpy(c) for c in np.polynomial.legendre.leggauss(48))


@dataclass(frozen=True)
class Form:
    """The exact solution with one prediction under the integral, on n intervals at once.

    Args:
        linear: (late, early, h, eta) -> weights of x_t and of z, (n,) each.
        measure: (early, lambda_t, lambda_s, eta) -> quadrature nodes in lambda and the weights of P there, (n, nodes).
        edge: (early, eta) -> density of the measure in lambda at s, (n,).
        closing: (late, early) -> weight of P, frozen, in a step into sigma = 0, out of alpha = 0 or, upwards, into it,
            where lambda is infinite; None where the measure serves there too.
        power: eta -> the clock of the noise, (n,), as in ``rows.Increment``.
    """

    linear: Callable[[Point, Point, Tensor, Tensor], tuple[Tensor, Tensor]]
    measure: Callable[[Point, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    edge: Callable[[Point, Tensor], Tensor]
    closing: Callable[[Point, Point], Tensor] | None
    power: Callable[[Tensor], Tensor]


def _nodes(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Return Gauss-Legendre nodes and weights on n intervals, (n, nodes)."""
    half = 0.5 * (end - start)[:, None]
    return start[:, None] + half * (NODES + 1), half * WEIGHTS


def _data_linear(late: Point, early: Point, h: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
    # h is infinite from alpha = 0 and into sigma = 0.
    exponent = torch.where(eta == 0, 0.0, -eta.square() * h)
    on_x = early.sigma / late.sigma * exponent.exp()
    on_noise = early.sigma * (-torch.expm1(2 * exponent)).sqrt()
    closes = early.sigma == 0
    return on_x.masked_fill(closes, 0.0), on_noise.masked_fill(closes, 0.0)


def _noise_linear(late: Point, early: Point, h: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
    # Upwards in noise, where h < 0, only the flow of eta = 0 has a step.
    on_noise = torch.where(eta == 0, 0.0, eta * early.sigma * torch.expm1(2 * h).sqrt())
    return early.alpha / late.alpha, on_noise.masked_fill(early.sigma == 0, 0.0)


def freeze_data(late: Point, early: Point) -> Tensor:
    """Return the weight of a frozen data prediction in the flow's step between two points, (n,).

    Its form serves where alpha or sigma is 0 at an end; elsewhere alpha_s (1 - e^{-h}) does not cancel.
    """
    return early.alpha - late.alpha * early.sigma / late.sigma


def _flow_linear(late: Point, early: Point, h: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
    return (early.alpha + early.sigma) / (late.alpha + late.sigma), torch.zeros_like(h)


def _data_measure(early: Point, start: Tensor, end: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
    (lam, weights), factor = _nodes(start, end), (1 + eta.square())[:, None]
    return lam, early.alpha[:, None] * factor * (-factor * (end[:, None] - lam)).exp() * weights


def _noise_measure(early: Point, start: Tensor, end: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
    lam, weights = _nodes(start, end)
    return lam, -((1 + eta.square()) * early.sigma)[:, None] * (end[:, None] - lam).exp() * weights


def _flow_measure(early: Point, start: Tensor, end: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
    u, weights = _nodes(torch.sigmoid(-start), torch.sigmoid(-end))
    return torch.log1p(-u) - u.log(), (early.alpha + early.sigma)[:, None] * weights


FORMS: dict[FormName, Form] = {
    "data": Form(
        _data_linear,
        _data_measure,
        lambda early, eta: (1 + eta.square()) * early.alpha,
        freeze_data,
        lambda eta: -2 * eta.square(),
    ),
    "noise": Form(
        _noise_linear,
        _noise_measure,
        lambda early, eta: -(1 + eta.square()) * early.sigma,
        lambda late, early: early.sigma - early.alpha * late.sigma / late.alpha,
        lambda eta: torch.full_like(eta, 2.0),
    ),
    "flow": Form(
        _flow_linear,
        _flow_measure,
        lambda early, eta: -early.alpha * early.sigma / (early.alpha + early.sigma),
        None,
        lambda eta: torch.zeros_like(eta),
    ),
}
