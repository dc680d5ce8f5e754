r"""Linear multistep methods with exact integrating factors.

With lambda = log(alpha/sigma), the reverse family of index eta is solved exactly but for one integral of the
prediction. For an interval from t down to s and h = lambda_s - lambda_t,

    data    x_s = sigma_s/sigma_t e^{-eta^2 h} x_t + int alpha_s (1 + eta^2) e^{-(1 + eta^2)(lambda_s - l)} P(l) dl
                  + sigma_s sqrt(1 - e^{-2 eta^2 h}) z
    noise   x_s = alpha_s/alpha_t x_t - int (1 + eta^2) sigma_s e^{lambda_s - l} P(l) dl
                  + eta sigma_s sqrt(e^{2h} - 1) z
    flow    x_s/(alpha_s + sigma_s) = x_t/(alpha_t + sigma_t) + int P du,       u = sigma/(alpha + sigma), eta = 0.

P is replaced by the polynomial through its last ``order`` values in a chosen variable; its weights are integrals of the
Lagrange basis, taken by Gauss-Legendre quadrature in float64. A step into sigma = 0 is of first order in the data and
noise predictions, where higher weights diverge; a step out of alpha = 0 is too, and leaves no history.

Source: Lu et al. 2022, "DPM-Solver++"; Zhang and Chen 2023, "Fast sampling of diffusion models with exponential
integrator"; Xue et al. 2023, "SA-Solver".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scoresde.errors import ConfigError, check_integer, check_number, unknown
from scoresde.grids import Grid, log_snr
from scoresde.readout import Point
from scoresde.sde import GaussianSDE
from scoresde.solvers.base import Solver
from scoresde.solvers.variables import VARIABLES
from scoresde.tableau import Increment, Knot, Order, Row, Tableau

__all__ = ["multistep"]

NODES, WEIGHTS = (torch.from_numpy(c) for c in np.polynomial.legendre.leggauss(48))


@dataclass(frozen=True)
class Form:
    """The exact solution with one prediction under the integral, on n intervals at once.

    Args:
        linear: (late, early, h, eta) -> weights of x_t and of z, (n,) each.
        measure: (early, lambda_t, lambda_s, eta) -> quadrature nodes in lambda and the weights of P there, (n, nodes).
        closing: (late, early) -> weight of P in a step into sigma = 0 or out of alpha = 0, where lambda is infinite;
            None where the measure serves there too.
        power: eta -> the clock of the noise, as in ``tableau.Increment``.
    """

    linear: Callable[[Point, Point, Tensor, float], tuple[Tensor, Tensor]]
    measure: Callable[[Point, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    closing: Callable[[Point, Point], Tensor] | None
    power: Callable[[float], float]


def _nodes(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Return Gauss-Legendre nodes and weights on n intervals, (n, nodes)."""
    half = 0.5 * (end - start)[:, None]
    return start[:, None] + half * (NODES + 1), half * WEIGHTS


def _data_linear(late: Point, early: Point, h: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    # h is infinite from alpha = 0 and into sigma = 0.
    exponent = -(eta**2) * h if eta else torch.zeros_like(h)
    on_x = early.sigma / late.sigma * exponent.exp()
    on_noise = early.sigma * (-torch.expm1(2 * exponent)).sqrt()
    closes = early.sigma == 0
    return on_x.masked_fill(closes, 0.0), on_noise.masked_fill(closes, 0.0)


def _noise_linear(late: Point, early: Point, h: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    on_noise = eta * early.sigma * torch.expm1(2 * h).sqrt()
    return early.alpha / late.alpha, on_noise.masked_fill(early.sigma == 0, 0.0)


def _flow_linear(late: Point, early: Point, h: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    return (early.alpha + early.sigma) / (late.alpha + late.sigma), torch.zeros_like(h)


def _data_measure(early: Point, start: Tensor, end: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    (lam, weights), factor = _nodes(start, end), 1 + eta**2
    return lam, early.alpha[:, None] * factor * (-factor * (end[:, None] - lam)).exp() * weights


def _noise_measure(early: Point, start: Tensor, end: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    lam, weights = _nodes(start, end)
    return lam, -(1 + eta**2) * early.sigma[:, None] * (end[:, None] - lam).exp() * weights


def _flow_measure(early: Point, start: Tensor, end: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    u, weights = _nodes(torch.sigmoid(-start), torch.sigmoid(-end))
    return torch.log1p(-u) - u.log(), (early.alpha + early.sigma)[:, None] * weights


FORMS: dict[str, Form] = {
    "data": Form(_data_linear, _data_measure, lambda late, early: early.alpha, lambda eta: -2 * eta**2),
    "noise": Form(
        _noise_linear, _noise_measure, lambda late, early: -early.alpha * late.sigma / late.alpha, lambda eta: 2.0
    ),
    "flow": Form(_flow_linear, _flow_measure, None, lambda eta: 2.0),
}

Rule = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def _exact(nodes: Tensor, values: Tensor, measure: Tensor, history: Tensor, end: Tensor) -> Tensor:
    """Integrate the Lagrange basis through ``nodes`` (n, k) at ``values`` (n, nodes) against the measure: (n, k)."""
    weights = []
    for k in range(nodes.shape[1]):
        basis = measure
        for j in range(nodes.shape[1]):
            if j != k:
                basis = basis * ((values - nodes[:, j, None]) / (nodes[:, k] - nodes[:, j])[:, None])
        weights.append(basis.sum(1))
    return torch.stack(weights, 1)


def _midpoint(nodes: Tensor, values: Tensor, measure: Tensor, history: Tensor, end: Tensor) -> Tensor:
    """Give the whole first-order weight to the linear extrapolation to the middle of the step in lambda: (n, k)."""
    total = measure.sum(1, keepdim=True)
    if history.shape[1] == 1:
        return total
    extra = (0.5 * (end - history[:, 0]) / (history[:, 0] - history[:, 1]))[:, None]
    return torch.cat([total * (1 + extra), -total * extra], 1)


COEFFICIENTS: dict[str, Rule] = {"exact": _exact, "midpoint": _midpoint}


def multistep(
    *,
    prediction: str = "data",
    variable: str = "log_snr",
    order: int = 2,
    eta: float = 0.0,
    coefficients: str = "exact",
    grid: Grid | None = None,
    name: str | None = None,
) -> Solver:
    """Return the linear multistep method of these settings.

    Args:
        prediction: what is extrapolated: "data", "noise" or "flow" (the rectified path's velocity, eta = 0 only).
        variable: in which the polynomial is: "log_snr", "nu", "rectified" or "t".
        order: number of predictions used, 1 to 4; the first steps use what there is.
        eta: the reverse family's index, >= 0.
        coefficients: "exact", or "midpoint" for DPM-Solver++(2M)'s published rounding, in which the whole first-order
            weight multiplies the linear extrapolation to the middle of the step (order 2, log_snr).
        grid: native time grid; uniform in log_snr by default.
        name: name of the table.

    Raises:
        ConfigError: unknown names or settings that do not go together. DomainError: order or eta out of range.
    """
    if prediction not in FORMS:
        raise unknown("prediction of a multistep method", prediction, FORMS)
    if variable not in VARIABLES:
        raise unknown("variable", variable, VARIABLES)
    if coefficients not in COEFFICIENTS:
        raise unknown("coefficients", coefficients, COEFFICIENTS)
    if coefficients == "midpoint" and (order, variable) != (2, "log_snr"):
        raise ConfigError("coefficients='midpoint' is DPM-Solver++(2M)'s: it needs order=2 and variable='log_snr'")
    if prediction == "flow" and eta != 0:
        raise ConfigError("the flow prediction has no stochastic form; use prediction='data' with eta > 0")
    check_integer(order, "order", 1, 4)
    check_number(eta, "eta", 0.0)
    declared = Order(deterministic=float(order)) if eta == 0 else Order(strong=1.0, weak=float(min(order, 2)))
    form, clock, rule = FORMS[prediction], VARIABLES[variable], COEFFICIENTS[coefficients]
    title = name or f"multistep ({prediction}, {variable}, order {order}, eta = {eta:g})"

    def build(sde: GaussianSDE, times: Tensor) -> Tableau:
        points = sde.at(times)
        knots, lam = Knot.of(points), 0.5 * points.log_snr
        late, early = points[:-1], points[1:]
        on_x, on_noise = form.linear(late, early, lam[1:] - lam[:-1], eta)
        weights: list[list[float]] = []
        intervals = len(times) - 1
        infinite = form.closing(late, early).tolist() if form.closing is not None and intervals else []
        opens = bool(infinite) and knots[0].alpha == 0
        closes = len(infinite) > opens and knots[-1].sigma == 0
        if opens:
            weights.append(infinite[:1])
        for used in range(1, min(order, intervals - opens - closes) + 1):
            # Interval ``low`` has this many usable predictions; with ``order`` of them there are enough from there on.
            low = opens + used - 1
            high = intervals - closes if used == order else low + 1
            history = torch.stack([lam[low - k : high - k] for k in range(used)], 1)
            end = lam[low + 1 : high + 1]
            nodes, measure = form.measure(early[low:high], history[:, 0], end, eta)
            values = clock.of_lambda(sde, nodes)
            weights += rule(clock.of_lambda(sde, history), values, measure, history, end).tolist()
        if closes:
            weights.append(infinite[-1:])
        rows = [
            Row(
                at=knots[i],
                state=(x_weight, *weights[i]),
                noise=(z_weight,) if z_weight else (),
                increment=Increment(knots[i].t, knots[i + 1].t, form.power(eta)) if z_weight else None,
            )
            for i, (x_weight, z_weight) in enumerate(zip(on_x.tolist(), on_noise.tolist(), strict=True))
        ]
        prior_std = float(sde.prior_std(times[0]))
        return Tableau(title, prediction, tuple(rows), knots[0], knots[-1], prior_std, order=declared)

    return Solver(name or "multistep", build, grid or log_snr(), 1, declared, "Lu et al. 2022")
