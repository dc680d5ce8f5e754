r"""Explicit Runge-Kutta methods in the variable of choice, for the probability flow and for additive noise.

With y = x/S the reverse family of index eta is dy = (A y + C F) dv + b dW in the clock v (``solvers/clocks.py`` lists
S, v, A, C and b). Its noise is additive: b depends on v alone. A method of stages c_i, a_ij and weights b_i takes

    H_i     = y + sum_j a_ij h f(H_j) + sum_k e_ik b(v + d_k h) J
    y_next  = y + sum_j b_j h f(H_j) + sum_k [p_k I + q_k J] b(v + d_k h),

with I the increment of W over the step and J = 1/|h| times the integral of W - W(start) over it (Roessler 2010, "Runge-
Kutta methods for the strong approximation of solutions of stochastic differential equations", section 5). With
independent normal z_1 and z_2,

    J = sqrt(|h|/3) z_1,    I = sqrt(|h|) (sqrt(3)/2 z_1 + 1/2 z_2),

and on the path z_1 is the increment weighted with sqrt(3) (1 - theta), z_2 with 3 theta - 1, where theta is the share
of the step that has passed. Without J one draw I = sqrt(|h|) z is enough.

For additive noise Milstein's correction, g dg/dx (dW^2 - dt)/2, and the Stratonovich correction of Euler-Heun, which
averages g over the step's start and a predicted state, vanish: both methods *are* Euler-Maruyama (Milstein 1974;
Kloeden and Platen 1992).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.diffusions.point import Point
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.kinds import ConfigError, DTypeError, show
from scoresde.errors.names import check_choice, is_name
from scoresde.errors.values import check_number
from scoresde.solvers.clocks import VARIABLES, Variable, VariableName
from scoresde.solvers.grids import Grid, rectified
from scoresde.solvers.one_step import OneStep, Stage, name_increments
from scoresde.solvers.rows import Order
from scoresde.solvers.solver import Solver


@dataclass(frozen=True)
class AdditiveNoise:
    """How a method takes in additive noise.

    Args:
        nodes: places d_k in the step at which b is taken.
        stages: e_ik, one row for each stage; empty where no stage sees noise.
        single: p_k.
        double: q_k; empty where J does not enter.
        strong: strong order.
        weak: weak order.
    """

    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    single: tuple[float, ...]
    double: tuple[float, ...]
    strong: float
    weak: float


@dataclass(frozen=True)
class Butcher:
    """An explicit Runge-Kutta method: stage matrix (rows of growing length), weights, order, and its noise if any."""

    name: str
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    order: int
    noise: AdditiveNoise | None = None

    @property
    def nodes(self) -> tuple[float, ...]:
        """The stages' places in the step."""
        return tuple(sum(row) for row in self.stages)


EULER = Butcher("euler", ((),), (1.0,), 1, AdditiveNoise((0.0,), (), (1.0,), (), 1.0, 1.0))
HEUN = Butcher("heun", ((), (1.0,)), (0.5, 0.5), 2)
MIDPOINT = Butcher("midpoint", ((), (0.5,)), (0.0, 1.0), 2)
RALSTON = Butcher("ralston", ((), (2 / 3,)), (0.25, 0.75), 2)
KUTTA3 = Butcher("rk3", ((), (0.5,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6), 3)
RK4 = Butcher("rk4", ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4)
SRA1 = Butcher(
    "sra1",
    ((), (0.75,)),
    (1 / 3, 2 / 3),
    2,
    AdditiveNoise((1.0, 0.0), ((), (1.5, 0.0)), (1.0, 0.0), (-1.0, 1.0), 1.5, 2.0),
)


def runge_kutta(
    method: Butcher,
    *,
    variable: VariableName = "rectified",
    eta: float = 0.0,
    grid: Grid | None = None,
    name: str | None = None,
    paper: str = "",
) -> Solver:
    """Return an explicit Runge-Kutta method on the reverse family in a variable.

    Args:
        method: its numbers.
        variable: "t", "nu", "rectified" or "log_snr".
        eta: the reverse family's index; above 0 the method needs its ``noise`` and a variable other than "rectified".
        grid: native time grid; by default the variable's own.
        name: name of the solver.
        paper: authors, year, title.

    Raises:
        ConfigError: another variable, or a method or a variable without noise. DomainError: eta < 0.
    """
    check_choice("variable", variable, VARIABLES)
    eta = check_number(eta, "eta", 0.0)
    if not isinstance(method, Butcher):
        raise DTypeError(f"method must be a Butcher, e.g. HEUN, got {show(method)}", parameter="method")
    clock, noise = VARIABLES[variable], method.noise
    if eta and (noise is None or not clock.clocked):
        raise ConfigError(
            f"{method.name} in {variable} has no stochastic form, got eta = {eta:g}; "
            "take EULER or SRA1 in t, nu or log_snr, or eta = 0"
        )
    order = Order(float(method.order)) if not eta or not noise else Order(strong=noise.strong, weak=noise.weak)
    given: object = name
    if not (given is None or isinstance(given, str)):
        raise DTypeError(f"name must be a text, got {show(given)}", parameter="name")
    called = method.name if name is None else name
    build = RungeKutta(f"{called} ({_name_options(variable, eta)})", "flow", eta, order, method, variable)
    # Heun's method in nu goes to the smallest level first, as its authors have it.
    leap = 2 if 1.0 in method.nodes and variable != "nu" else 0
    closes = variable == "rectified" and not leap
    return Solver(called, build, clock.grid if grid is None else grid, len(method.stages), order, paper, closes, leap)


@dataclass(frozen=True)
class RungeKutta(OneStep):
    """An explicit Runge-Kutta method in a variable; ``runge_kutta`` checks its options."""

    method: Butcher
    variable: VariableName

    def __str__(self) -> str:
        return _name_options(self.variable, self.eta)

    @property
    def noise(self) -> AdditiveNoise | None:
        """How noise enters; None where there is none."""
        return self.method.noise if self.eta else None

    @property
    def ends(self) -> set[float]:
        """The places in the step where the field or the noise is taken."""
        return {*self.method.nodes, *(self.noise.nodes if self.noise else ())}

    def limits(self, late: Point, early: Point) -> Tensor:
        # Steps whose ends are infinite in the variable, or that would ask for the noise at sigma = 0.
        clock = VARIABLES[self.variable]
        infinite = ~(torch.isfinite(clock.at(late)) & torch.isfinite(clock.at(early)))
        return infinite | ((early.sigma == 0) & (1.0 in self.ends)) | ((late.alpha == 0) & (self.eta > 0))

    def stages(self, sde: GaussianSDE, late: Point, early: Point, prediction: str) -> list[Stage]:
        # x_i = S_i H_i, and V_i = f(H_i).
        method, clock, eta, noise = self.method, VARIABLES[self.variable], self.eta, self.noise
        v = clock.at(late)
        h = clock.at(early) - v
        places = {0.0: late, 1.0: early}
        for c in (*method.nodes, *(noise.nodes if noise else ())):
            if c not in places:
                places[c] = sde.at(clock.time(sde, v + c * h))
        scale = {c: clock.scale(point) for c, point in places.items()}
        width = {c: _find_width(clock, eta, sde, places[c]) * h.abs().sqrt() for c in noise.nodes} if noise else {}
        count = len(method.nodes)
        # The first row draws z_1 and the last one z_2; without J the last row makes the only draw.
        parts: dict[int, tuple[float, ...]] = {}
        if noise is not None:
            parts = {0: (3**0.5, -(3**0.5)), count - 1: (-1.0, 3.0)} if noise.double else {count - 1: ()}
        stages = []
        for j, c in enumerate(method.nodes):
            last = j + 1 == count
            weights, to = (method.weights, scale[1.0]) if last else (method.stages[j + 1], scale[method.nodes[j + 1]])
            rate, push = _find_field(clock, eta, sde, places[c])
            draws = (
                () if noise is None else _weigh_draws(noise, [width[d] for d in noise.nodes], None if last else j + 1)
            )
            stages.append(
                Stage(
                    places[c],
                    (rate / scale[c], push),
                    to / scale[0.0],
                    tuple(w * h * to for w in weights),
                    tuple(w * to for w in draws),
                    name_increments(late, early, clock.power, *parts[j]) if j in parts else (),
                )
            )
        return stages


def _name_options(variable: str, eta: float) -> str:
    return variable + (f", eta = {eta:g}" if eta else "")


def _weigh_draws(noise: AdditiveNoise, width: list[Tensor], stage: int | None) -> tuple[Tensor, ...]:
    """Return the weights of the step's draws in the state of a stage, or in the step's last state."""

    def total(weights: tuple[float, ...]) -> Tensor:
        return torch.stack([w * b for w, b in zip(weights, width, strict=True)]).sum(0)

    if stage is not None:
        return (total(noise.stages[stage]) / 3**0.5,) if noise.double else ()
    single = total(noise.single)
    if not noise.double:
        return (single,)
    return 3**0.5 / 2 * single + total(noise.double) / 3**0.5, 0.5 * single


def _find_field(clock: Variable, eta: float, sde: GaussianSDE, point: Point) -> tuple[Tensor, Tensor]:
    """Return (A, C) of the reverse family."""
    rate, push = clock.field(sde, point)
    if not eta:
        return rate, push
    extra = -(eta**2) * clock.rate(sde, point) * point.sigma / (point.alpha + point.sigma)
    return rate + extra, push + extra * point.alpha / clock.scale(point)


def _find_width(clock: Variable, eta: float, sde: GaussianSDE, point: Point) -> Tensor:
    """Return b, the noise of y per square root of the clock."""
    return eta * point.sigma / clock.scale(point) * (2 * clock.rate(sde, point).abs()).sqrt()


def euler(*, variable: VariableName = "rectified", grid: Grid | None = None) -> Solver:
    """Return Euler's method on the probability flow; in nu, log_snr's data form and rectified it is DDIM's step.

    Order 1. In t it is the classical one of Song et al. 2021, arXiv:2011.13456.
    """
    return runge_kutta(EULER, variable=variable, grid=grid, paper="Euler 1768")


def heun(*, variable: VariableName = "rectified", grid: Grid | None = None) -> Solver:
    """Return Heun's method on the probability flow: two evaluations a step, order 2.

    In nu it is the deterministic sampler of Karras et al. 2022, "Elucidating the design space of diffusion-based
    generative models", arXiv:2206.00364, algorithm 1; in t the classical Heun method of Song et al.'s probability flow.
    """
    if grid is None and is_name(variable, ("rectified",)):
        grid = rectified(power=1.25)  # on the even one the error rises between 18 and 24 evaluations
    return runge_kutta(HEUN, variable=variable, grid=grid, paper="Karras et al. 2022")


def midpoint(*, variable: VariableName = "rectified", grid: Grid | None = None) -> Solver:
    """Return the midpoint method on the probability flow: two evaluations a step, order 2 (Runge 1895)."""
    return runge_kutta(MIDPOINT, variable=variable, grid=grid, paper="Runge 1895")


def ralston(*, variable: VariableName = "rectified", grid: Grid | None = None) -> Solver:
    """Return Ralston's method on the probability flow: two evaluations, order 2, the least error bound of such methods.

    Source: Ralston 1962, "Runge-Kutta methods with minimum error bounds".
    """
    return runge_kutta(RALSTON, variable=variable, grid=grid, paper="Ralston 1962")


def rk3(*, variable: VariableName = "rectified", grid: Grid | None = None) -> Solver:
    """Return Kutta's method on the probability flow: three evaluations a step, order 3 (Kutta 1901)."""
    return runge_kutta(KUTTA3, variable=variable, grid=grid, paper="Kutta 1901")


def rk4(*, variable: VariableName = "rectified", grid: Grid | None = None) -> Solver:
    """Return the classical Runge-Kutta method on the probability flow: four evaluations, order 4 (Kutta 1901)."""
    return runge_kutta(RK4, variable=variable, grid=grid, paper="Kutta 1901")


def euler_maruyama(*, eta: float = 1.0, variable: VariableName = "t", grid: Grid | None = None) -> Solver:
    """Return Euler-Maruyama for the reverse family (eta = 0: Euler's method on the probability flow).

    x_s = x_t - (t - s) [f x_t - (1 + eta^2)/2 g^2 score] + eta g sqrt(t - s) z with f, g and score taken at t. The
    noise is additive, so it converges strongly at order 1, and is Milstein's method and Euler-Heun as well: "milstein"
    and "euler_heun" are names of it. Source: Song et al. 2021, arXiv:2011.13456, appendix D.
    """
    return runge_kutta(EULER, variable=variable, eta=eta, grid=grid, name="euler_maruyama", paper="Song et al. 2021")


def sra1(*, eta: float = 1.0, variable: VariableName = "t", grid: Grid | None = None) -> Solver:
    """Return Roessler's SRA1 for the reverse family: two evaluations and two draws a step.

    Strong order 1.5 and weak order 2; at eta = 0 an ordinary Runge-Kutta method of order 2. A step into sigma = 0 and
    one out of alpha = 0, where g has no finite value, is the limit of the first-order one. Source: Roessler 2010,
    "Runge-Kutta methods for the strong approximation of solutions of stochastic differential equations".
    """
    return runge_kutta(SRA1, variable=variable, eta=eta, grid=grid, paper="Roessler 2010")
