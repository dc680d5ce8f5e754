r"""Weights of earlier predictions in the integral of a step: exact quadrature, and the roundings of publications.

Let v be the variable in which P is replaced by the polynomial through its values at the nodes v_0, v_1, ..., and mu the
measure of ``solvers/forms.py`` on the interval from t down to s. A rule is a linear functional of that polynomial f. In
v = lambda, with h = lambda_s - lambda_t, f, f' and f'' at lambda_t, and m_k = int (lambda - lambda_t)^k dmu,

| rule | functional | order |
|---|---|---|
| exact | int f dmu: the integrals of the Lagrange basis | number of nodes |
| rounded, B = m_0 | m_0 f + B h/2 f' : the measure spread evenly over h | 2 |
| rounded, B = h edge | the same with the measure's density at s times h in the place of m_0 | 2 |
| halved | m_0 f + m_1 f' + m_2 f''/4, where exact is m_2 f''/2 | 2 |
| constant | m_0 times Adams and Bashforth's weights for even steps in an even measure | 2 on uneven grids |

Every rounding leaves m_0 f, the first-order step, and errs by O(h^3) in one step. It applies to the numbers of nodes
that the publication rounds; all others are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

__all__ = ["COEFFICIENTS", "Coefficients", "CoefficientsName", "Integral", "integrate"]

CoefficientsName = Literal["exact", "midpoint", "dpmpp_3m", "dpmpp_3m_sde", "bh1", "bh2", "constant"]


@dataclass(frozen=True, eq=False)
class Integral:
    """The integrals of n steps with k nodes each.

    Args:
        nodes: where the predictions were made, newest first, in v, (n, k).
        values: the quadrature nodes in v, (n, nodes).
        measure: the weights of P there, (n, nodes).
        start: lambda_t, (n,).
        end: lambda_s, (n,).
        edge: density of the measure at s, (n,).
    """

    nodes: Tensor
    values: Tensor
    measure: Tensor
    start: Tensor
    end: Tensor
    edge: Tensor

    def moment(self, power: int) -> Tensor:
        """Return int (lambda - lambda_t)^power dmu for v = lambda, and the whole measure for power 0: (n, 1)."""
        return ((self.values - self.start[:, None]) ** power * self.measure).sum(1, keepdim=True)

    def others(self, k: int) -> list[Tensor]:
        """Return the nodes but number k, (n,) each."""
        return [self.nodes[:, j] for j in range(self.nodes.shape[1]) if j != k]


Rule = Callable[[Integral], Tensor]


def integrate(step: Integral) -> Tensor:
    """Integrate the Lagrange basis against the measure: (n, k)."""
    weights = []
    for k in range(step.nodes.shape[1]):
        basis = step.measure
        for other in step.others(k):
            basis = basis * ((step.values - other[:, None]) / (step.nodes[:, k] - other)[:, None])
        weights.append(basis.sum(1))
    return torch.stack(weights, 1)


def _round(step: Integral, total: Tensor) -> Tensor:
    """Return the weights of m_0 f + total h/2 f' for two nodes: (n, 2)."""
    reach = 0.5 * total * (step.end - step.start)[:, None]
    whole = step.moment(0)
    weights = []
    for k in range(2):
        (other,) = step.others(k)
        weights.append((whole * (step.start - other)[:, None] + reach) / (step.nodes[:, k] - other)[:, None])
    return torch.cat(weights, 1)


def _round_by_measure(step: Integral) -> Tensor:
    return _round(step, step.moment(0))


def _round_by_edge(step: Integral) -> Tensor:
    return _round(step, (step.edge * (step.end - step.start))[:, None])


def _halve_last(step: Integral) -> Tensor:
    """Return the exact weights less half of the last term, m_2 times the second divided difference: (n, 3)."""
    shares = [1 / torch.stack([step.nodes[:, k] - other for other in step.others(k)]).prod(0) for k in range(3)]
    return integrate(step) - 0.5 * step.moment(2) * torch.stack(shares, 1)


EVEN_STEPS = {1: (1.0,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}


def _share_evenly(step: Integral) -> Tensor:
    """Share m_0 by the weights of Adams and Bashforth for even steps: (n, k)."""
    return step.moment(0) * torch.tensor(EVEN_STEPS[step.nodes.shape[1]], dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class Coefficients:
    """How the weights are computed.

    Args:
        rules: number of nodes -> rule; every other number is exact.
        order: the order of the method that they belong to; None for every order.
        limit: the order that they cannot exceed.
        corrects: whether they serve a corrector.
        in_log_snr: whether they are defined for the variable log_snr alone.
    """

    rules: Mapping[int, Rule] = field(default_factory=dict)
    order: int | None = None
    limit: float = 5.0
    corrects: bool = True
    in_log_snr: bool = True

    def weights(self, step: Integral) -> Tensor:
        """Return the weights (n, k)."""
        return self.rules.get(step.nodes.shape[1], integrate)(step)


COEFFICIENTS: dict[CoefficientsName, Coefficients] = {
    "exact": Coefficients(in_log_snr=False),
    "midpoint": Coefficients({2: _round_by_measure}, order=2, corrects=False),
    "dpmpp_3m": Coefficients({2: _round_by_measure, 3: _halve_last}, order=3, limit=2.0, corrects=False),
    "dpmpp_3m_sde": Coefficients({3: _halve_last}, order=3, limit=2.0, corrects=False),
    "bh1": Coefficients({2: _round_by_edge}),
    "bh2": Coefficients({2: _round_by_measure}),
    "constant": Coefficients(dict.fromkeys(EVEN_STEPS, _share_evenly), limit=2.0, corrects=False, in_log_snr=False),
}
