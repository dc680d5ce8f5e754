r"""Exponential Runge-Kutta methods on the data and noise predictions, for the reverse family of every eta.

On a step of length h in lambda = log(alpha/sigma) the linear part and the noise are exact (``solvers/forms.py``). With
theta in [0, 1] the share of the step, p the density of the integral's measure at the end and the exponent

    data    z = -(1 + eta^2) h,    p = (1 + eta^2) alpha_s          noise    z = h,    p = -(1 + eta^2) sigma_s,

the prediction's part of a step is h p times the integral of e^{(1 - theta) z} P d theta. A stage at c_i is a step of
c_i h of its own. Its weights integrate the polynomial through the predictions before it; with phi_k(z) the integral of
e^{(1 - theta) z} theta^{k-1}/(k-1)!, the classical forms are

    order 2       a_21 = phi_1(c_2 z),  b_2 = phi_2/c_2  ("published": phi_1/(2 c_2)),  b_1 = phi_1 - b_2
    order 3       a_32 = c_3/c_2 phi_2(c_3 z);  "exact": the parabola through all three stages;
                  "published": b_3 = phi_2/c_3, b_2 = 0, b_1 = phi_1 - b_3; both of order 3 at c_3 = 2/3 alone

(a_ij in units of c_i). The noise is that of one path: a draw for each part of the step between two stages, carried to
every later state by the exact linear part.

Source: Hochbruck and Ostermann 2005, "Explicit exponential Runge-Kutta methods for semilinear parabolic problems"; Lu
et al. 2022, "DPM-Solver", arXiv:2206.00927, and "DPM-Solver++", arXiv:2211.01095; Zhang et al. 2023, "Improved order
analysis and design of exponential integrator for diffusion models sampling" (RES), arXiv:2308.02157; Gonzalez et al.
2023, "SEEDS: exponential SDE solvers for fast high-quality sampling from diffusion models", arXiv:2305.14267.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from scoresde.diffusions.point import Point
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.kinds import ConfigError
from scoresde.errors.names import check_choice
from scoresde.errors.values import check_integer, check_number, check_sequence
from scoresde.solvers.forms import FORMS, NODES, WEIGHTS
from scoresde.solvers.grids import Grid, diffused, log_snr
from scoresde.solvers.one_step import OneStep, Stage, express, name_increments
from scoresde.solvers.rows import Order
from scoresde.solvers.solver import Solver

SHARE, MEASURE = 0.5 * (NODES + 1), 0.5 * WEIGHTS
FAR = -12.0
STAGES: dict[int, tuple[float, ...]] = {1: (0.0,), 2: (0.0, 1 / 2), 3: (0.0, 1 / 3, 2 / 3)}
Prediction = Literal["data", "noise"]
Weighting = Literal["exact", "published"]


def exponential(
    *,
    prediction: Prediction = "data",
    order: int = 2,
    eta: float = 0.0,
    nodes: tuple[float, ...] | None = None,
    coefficients: Weighting = "exact",
    grid: Grid | None = None,
    name: str | None = None,
    paper: str = "Hochbruck and Ostermann 2005",
) -> Solver:
    """Return the exponential Runge-Kutta method of these settings: ``order`` evaluations a step.

    Args:
        prediction: "data" or "noise".
        order: 1, 2 or 3; with eta > 0 the weak order is at most 2 and the strong order 1.
        eta: the reverse family's index, >= 0.
        nodes: places of the stages after the first, increasing in (0, 1); (1/2,) and (1/3, 2/3) by default. With three
            stages the last one must be 2/3, since the second stage is itself of first order and may have no weight as
            h goes to 0.
        coefficients: "exact" or "published"; the module's docstring has both.
        grid: native time grid. By default, what is best on the exact mixtures: ``grids.diffused()`` with stages and
            eta = 0, ``grids.diffused(power=2)`` for the noise prediction with eta > 0, else the papers', log_snr.
        name: name of the solver.
        paper: authors, year.

    Raises:
        ConfigError: unknown names, or nodes that do not fit the order. DomainError: order, eta or a node out of range.
    """
    check_choice("prediction of an exponential method", prediction, get_args(Prediction))
    check_choice("coefficients", coefficients, get_args(Weighting))
    order = check_integer(order, "order", 1, 3)
    eta = check_number(eta, "eta", 0.0)
    given = () if nodes is None else check_sequence(nodes, "nodes", "numbers")
    places = STAGES[order] if nodes is None else (0.0, *(check_number(c, f"nodes[{k}]") for k, c in enumerate(given)))
    if len(places) != order:
        raise ConfigError(f"nodes of a method of order {order} must be {order - 1} numbers, got {nodes}")
    for k, (low, c) in enumerate(itertools.pairwise(places)):
        check_number(c, f"nodes[{k}]", low, 1.0, open_low=True, open_high=True)
    if order == 3 and abs(places[2] - 2 / 3) > 1e-12:
        raise ConfigError(f"nodes of a method of order 3 must end at 2/3, got {places[2]}; elsewhere it has order 2")
    declared = Order(float(order)) if eta == 0 else Order(strong=1.0, weak=float(min(order, 2)))
    title = f"exponential {order} ({prediction}, eta = {eta:g})" if name is None else name
    build = _Exponential(title, prediction, eta, declared, places, coefficients)
    native = _choose_grid(prediction, order, eta) if grid is None else grid
    leap = 0 if order == 1 else 1 if eta else 2
    return Solver("exponential" if name is None else name, build, native, order, declared, paper, leap=leap)


def _choose_grid(prediction: Prediction, order: int, eta: float) -> Grid:
    """Return the grid of the settings; a noise prediction with noise diverges in long steps from almost no signal."""
    if prediction == "noise" and eta > 0:
        return diffused(power=2.0)
    if eta > 0 or order == 1:
        return log_snr()
    # At order 3 and power 4 the error rises with an evaluation at 23 on the mixtures of ``benchmarks/quality.py``.
    return diffused(power=3.5 if order == 3 else 4.0)


@dataclass(frozen=True)
class _Exponential(OneStep):
    """An exponential Runge-Kutta method with these stages; ``exponential`` checks its options."""

    nodes: tuple[float, ...]
    coefficients: Weighting

    def __str__(self) -> str:
        eta = f", eta = {self.eta:g}" if self.eta else ""
        nodes = "".join(f", node {c:.3g}" for c in self.nodes[1:])
        return f"{self.prediction}{eta}{nodes}, {self.coefficients}"

    def limits(self, late: Point, early: Point) -> Tensor:
        # With noise, a long step of the noise form multiplies the state by about e^h (published steps start at -10.1).
        gap = early.log_snr - late.log_snr
        far = (late.log_snr < FAR) & (gap > 1.0) & (self.prediction == "noise") & (self.eta > 0)
        return far | torch.isinf(late.log_snr) | torch.isinf(early.log_snr)

    def stages(self, sde: GaussianSDE, late: Point, early: Point, prediction: str) -> list[Stage]:
        form, start, eta = FORMS[self.prediction], 0.5 * late.log_snr, self.eta
        h, etas = 0.5 * early.log_snr - start, torch.full_like(start, eta)
        exponent = -(1 + eta**2) if self.prediction == "data" else 1.0
        ends = [late, *(sde.at(sde.time(2 * (start + c * h))) for c in self.nodes[1:]), early]
        places = (*self.nodes, 1.0)
        parts = zip(itertools.pairwise(ends), itertools.pairwise(places), strict=True)
        fresh = [form.linear(p, q, (d - c) * h, etas)[1] for (p, q), (c, d) in parts] if eta else []
        stages = []
        for j, (c, end) in enumerate(zip(places[1:], ends[1:], strict=True)):
            final = c == 1.0 and self.coefficients == "published"
            weights = _weigh(c * exponent * h, [n / c for n in self.nodes[: j + 1]], final)
            front = form.edge(end, etas) * c * h
            # Noise made up to a place is carried from there to the stage's end.
            before = zip(ends[1 : j + 1], places[1:], strict=False)
            carried = [form.linear(p, end, (c - d) * h, etas)[0] for p, d in before]
            draws = tuple(a * z for a, z in zip([*carried, torch.ones_like(h)], fresh, strict=False))
            stages.append(
                Stage(
                    ends[j],
                    express(self.prediction, prediction, ends[j], self.name),
                    form.linear(late, end, c * h, etas)[0],
                    tuple(front * w for w in weights),
                    draws,
                    name_increments(ends[j], end, float(form.power(etas[:1]))) if eta else (),
                )
            )
        return stages


def _integrate(z: Tensor, values: Tensor) -> Tensor:
    """Return the integral of e^{(1 - theta) z} times the values at the quadrature nodes, (n,)."""
    return (((1 - SHARE) * z[:, None]).exp() * values * MEASURE).sum(1)


def _weigh(z: Tensor, nodes: list[float], published: bool) -> list[Tensor]:
    """Return the weights of the predictions at ``nodes`` (shares of the step) in a step of exponent z."""
    if published and len(nodes) > 1:
        whole, last = _integrate(z, torch.ones_like(SHARE)), nodes[-1]
        newest = whole / (2 * last) if len(nodes) == 2 else _integrate(z, SHARE) / last
        return [whole - newest, *(torch.zeros_like(z) for _ in nodes[1:-1]), newest]
    weights = []
    for c in nodes:
        basis = torch.ones_like(SHARE)
        for other in nodes:
            if other != c:
                basis = basis * (SHARE - other) / (c - other)
        weights.append(_integrate(z, basis))
    return weights


def _check_place(value: float, name: str, before: float = 1.0) -> float:
    """Return the place of a method's inner stage, checked under the method's own name for it."""
    return check_number(value, name, 0.0, before, open_low=True, open_high=True)


def exponential_euler(*, prediction: Prediction = "data", eta: float = 1.0) -> Solver:
    """Return the exponential Euler method: the prediction frozen, the linear part and the noise exact.

    For the data prediction it is ancestral sampling (eta = 0: DDIM), for the noise prediction SEEDS-1. Order 1, strong
    and weak.
    """
    return exponential(prediction=prediction, order=1, eta=eta, name="exponential_euler")


def exponential_rk2(*, prediction: Prediction = "data", eta: float = 0.0, node: float = 1 / 2) -> Solver:
    """Return Hochbruck and Ostermann's exponential method of order 2: b_2 = phi_2/c_2, two evaluations a step.

    On the data prediction it is the single-step refined exponential solver of Zhang et al. 2023, "Improved order
    analysis and design of exponential integrator for diffusion models sampling", arXiv:2308.02157, which has eta = 0:
    "res" is a name of it.
    """
    return exponential(
        prediction=prediction, order=2, eta=eta, nodes=(_check_place(node, "node"),), name="exponential_rk2"
    )


def exponential_rk3(*, prediction: Prediction = "data", eta: float = 0.0, node: float = 1 / 3) -> Solver:
    """Return Hochbruck and Ostermann's exponential method of order 3 with c_3 = 2/3: three evaluations a step.

    Source: their section 5.2: a_32 = 2/(3 c_2) phi_2(2/3 z) in units of c_3, b_3 = 3/2 phi_2, b_2 = 0.
    """
    return exponential(
        prediction=prediction,
        order=3,
        eta=eta,
        nodes=(_check_place(node, "node", 2 / 3), 2 / 3),
        coefficients="published",
        name="exponential_rk3",
    )


def dpm_solver_2(*, r: float = 1 / 2, coefficients: Weighting = "published") -> Solver:
    """Return DPM-Solver-2: noise prediction, one inner stage at the share r of the step in log(alpha/sigma); order 2.

    u = alpha_m/alpha_t x - sigma_m (e^{r h} - 1) noise(x), x_s = alpha_s/alpha_t x - sigma_s (e^h - 1) [(1 - 1/(2 r))
    noise(x) + 1/(2 r) noise(u)]. At r = 1/2 it is the midpoint method in nu with the geometric middle, k-diffusion's
    DPM2. ``coefficients="exact"`` has phi_2/r in the place of phi_1/(2 r). Source: Lu et al. 2022, "DPM-Solver: a fast
    ODE solver for diffusion probabilistic model sampling in around 10 steps", arXiv:2206.00927, algorithms 1 and 4.
    """
    return exponential(
        prediction="noise",
        order=2,
        nodes=(_check_place(r, "r"),),
        coefficients=coefficients,
        name="dpm_solver_2",
        paper="Lu et al. 2022a",
    )


def dpm_solver_3(*, r: float = 1 / 3, coefficients: Weighting = "published") -> Solver:
    """Return DPM-Solver-3: noise prediction, inner stages at r and 2/3; order 3, three evaluations a step.

    It is ``exponential_rk3(prediction="noise", node=r)``; ``coefficients="exact"`` integrates the parabola through all
    three stages. Source: Lu et al. 2022, "DPM-Solver", arXiv:2206.00927, algorithm 2 (r_1 = 1/3, r_2 = 2/3).
    """
    return exponential(
        prediction="noise",
        order=3,
        nodes=(_check_place(r, "r", 2 / 3), 2 / 3),
        coefficients=coefficients,
        name="dpm_solver_3",
        paper="Lu et al. 2022a",
    )


def dpmpp_2s(*, r: float = 1 / 2, coefficients: Weighting = "published") -> Solver:
    """Return DPM-Solver++(2S): data prediction, one inner stage at the share r of the step; order 2.

    u = sigma_m/sigma_t x - alpha_m (e^{-r h} - 1) data(x), x_s = sigma_s/sigma_t x - alpha_s (e^{-h} - 1)
    [(1 - 1/(2 r)) data(x) + 1/(2 r) data(u)]. ``coefficients="exact"`` is RES. Source: Lu et al. 2022, "DPM-Solver++:
    fast solver for guided sampling of diffusion probabilistic models", arXiv:2211.01095, algorithm 1.
    """
    return exponential(
        order=2, nodes=(_check_place(r, "r"),), coefficients=coefficients, name="dpmpp_2s", paper="Lu et al. 2022b"
    )


def dpmpp_3s(*, r: float = 1 / 3, coefficients: Weighting = "published") -> Solver:
    """Return DPM-Solver++(3S): data prediction, inner stages at r and 2/3; order 3, three evaluations a step.

    It is ``exponential_rk3(node=r)``: DPM-Solver-3's formula with data predictions. Source: Lu et al. 2022,
    "DPM-Solver++", arXiv:2211.01095, in the authors' program.
    """
    return exponential(
        order=3,
        nodes=(_check_place(r, "r", 2 / 3), 2 / 3),
        coefficients=coefficients,
        name="dpmpp_3s",
        paper="Lu et al. 2022b",
    )


def seeds_1(*, eta: float = 1.0) -> Solver:
    """Return SEEDS-1: exponential Euler on the noise prediction.

    x_s = alpha_s/alpha_t x - 2 sigma_s (e^h - 1) noise(x) + sigma_s sqrt(e^{2h} - 1) z at eta = 1. Source: Gonzalez et
    al. 2023, "SEEDS", arXiv:2305.14267.
    """
    return _make_seeds(1, eta, "published")


def seeds_2(*, eta: float = 1.0, coefficients: Weighting = "published") -> Solver:
    """Return SEEDS-2: DPM-Solver-2's stages with twice the weight of the noise prediction and the noise of one path.

    Two draws a step, one for each half of it in log(alpha/sigma); weak order 2, strong order 1. Source: Gonzalez et al.
    2023, "SEEDS", arXiv:2305.14267.
    """
    return _make_seeds(2, eta, coefficients)


def seeds_3(*, eta: float = 1.0, coefficients: Weighting = "published") -> Solver:
    """Return SEEDS-3: DPM-Solver-3's stages with the noise of one path, three draws a step; weak order 2, strong 1.

    Source: Gonzalez et al. 2023, "SEEDS", arXiv:2305.14267.
    """
    return _make_seeds(3, eta, coefficients)


def _make_seeds(order: int, eta: float, coefficients: Weighting) -> Solver:
    return exponential(
        prediction="noise",
        order=order,
        eta=eta,
        coefficients=coefficients,
        name=f"seeds_{order}",
        paper="Gonzalez et al. 2023",
    )
