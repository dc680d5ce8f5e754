"""Orders of convergence against exact flows and exact laws; no Monte Carlo.

Deterministic: the probability flow of scalar data maps quantiles to quantiles, so the exact flow of any law is
F_s^{-1}(F_t(x)). Multistep methods start from exact history. Weak: the table's exact law for Gaussian data. Strong:
for Gaussian data both the reverse SDE and the table are linear in the driving path, so the mean square distance of
their solutions on the same path is an integral over each interval.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import MEAN, SDES, slope
from scipy.special import ndtr

from scoresde import VESDE, VPSDE, GaussianMixtureModel, GaussianSDE, Solver, SubVPSDE, Tableau, sample, solvers
from scoresde.ode import EMBEDDED
from scoresde.solvers import Butcher
from scoresde.tableau import Increment, Knot

# A mixture of unequal components, away from the origin's symmetry, at five quantiles.
SHARES, MEANS, STDS = np.array([0.35, 0.65]), np.array([-1.0, 0.8]), np.array([0.45, 0.6])
LEVELS = np.array([0.07, 0.3, 0.45, 0.62, 0.9])
NAMES = ("vp", "sub_vp", "ve")


def quantiles(at: Knot) -> np.ndarray:
    """States at the levels of the mixture's law at a point: bisection, then Newton's method."""
    mean, std = at.alpha * MEANS, np.hypot(at.alpha * STDS, at.sigma)
    low, high = np.full(len(LEVELS), (mean - 12 * std).min()), np.full(len(LEVELS), (mean + 12 * std).max())
    for _ in range(50):
        middle = (low + high) / 2
        below = ndtr((middle[:, None] - mean) / std) @ SHARES < LEVELS
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    x = (low + high) / 2
    for _ in range(2):
        z = (x[:, None] - mean) / std
        x = x - (ndtr(z) @ SHARES - LEVELS) / (np.exp(-z * z / 2) / std / math.sqrt(2 * math.pi) @ SHARES)
    return x


def predictions(kind: str, at: Knot, x: np.ndarray) -> np.ndarray:
    """E[x_0 | x], E[z | x] or their difference for the mixture."""
    variance, centred = (at.alpha * STDS) ** 2 + at.sigma**2, x[:, None] - at.alpha * MEANS
    share = SHARES / np.sqrt(variance) * np.exp(-0.5 * centred**2 / variance)
    share /= share.sum(1, keepdims=True)
    data = (share * (MEANS + at.alpha * STDS**2 / variance * centred)).sum(1)
    noise = (share * (at.sigma / variance * centred)).sum(1)
    return {"data": data, "noise": noise, "flow": noise - data}[kind]


def flow_error(table: Tableau, first: int) -> float:
    """Run the rows from number ``first`` on, with exact states and predictions before it."""
    rows, kind = table.rows, table.prediction
    past = [predictions(kind, row.at, quantiles(row.at)) for row in rows[:first]][::-1]
    x = y = quantiles(rows[first].at)
    for row in rows[first:]:
        past = [predictions(kind, row.at, x), *past][:6]
        x = sum(w * v for w, v in zip(row.state, [y, *past], strict=False))
        y = x if row.anchor is None else y
    return float(np.sqrt(np.mean((x - quantiles(table.end)) ** 2)))


def flow_order(solver: Solver, sde: GaussianSDE, first: int = 0) -> float:
    # Where the error is asymptotic and yet far above rounding.
    steps = {1: (160, 320), 2: (160, 320), 3: (800, 1600), 4: (800, 1600), 5: (320, 640)}[solver.order.deterministic]
    errors = [flow_error(solver(sde, solver.grid(sde, n)), first) for n in steps]
    return slope(errors, steps)


SINGLE: dict[str, Solver] = {
    "ddim": solvers.ddim(),
    "dpmpp_2m": solvers.dpmpp_2m(),
    "heun": solvers.heun(),
    **{f"heun in {v}": solvers.heun(variable=v) for v in ("t", "nu", "log_snr")},
    "euler_maruyama, eta 0": solvers.euler_maruyama(eta=0.0),
    "reverse_diffusion, eta 0": solvers.reverse_diffusion(eta=0.0),
    **{  # the adaptive pairs, at a fixed step and in a variable in which their errors can be seen
        name: solvers.runge_kutta(
            Butcher(name, ((), *pair.stages[:-1]), pair.stages[-1], pair.order), variable="log_snr"
        )
        for name, pair in EMBEDDED.items()
    },
}
ADAMS = [
    (order, prediction, variable)
    for order, prediction, variable in itertools.product(
        (1, 2, 3, 4), ("data", "noise", "flow"), ("log_snr", "nu", "rectified", "t")
    )
    if order > 1 or variable == "log_snr"  # a constant is the same in every variable
]


@pytest.mark.parametrize("sde", NAMES)
@pytest.mark.parametrize("name", SINGLE)
def test_order_of_a_named_method(name: str, sde: str) -> None:
    assert flow_order(SINGLE[name], SDES[sde]) == pytest.approx(SINGLE[name].order.deterministic, abs=0.1)


@pytest.mark.parametrize(("order", "prediction", "variable"), ADAMS)
def test_order_of_a_multistep_method(order: int, prediction: str, variable: str) -> None:
    solver = solvers.multistep(order=order, prediction=prediction, variable=variable)
    assert solver.order.deterministic == order
    for name in NAMES if order < 4 else ("vp",):
        assert flow_order(solver, SDES[name], order - 1) == pytest.approx(order, abs=0.1), name


def test_a_weight_from_the_wrong_end_of_the_step_costs_an_order() -> None:
    """The published slip, sigma_t for sigma_s, in DPM-Solver++(2M): this file must see it."""
    good = solvers.dpmpp_2m()

    def build(sde: GaussianSDE, times: torch.Tensor) -> Tableau:
        table = good.build(sde, times)
        rows = []
        for row in table.rows:
            tilt = 1 + 1e-2 * (row.at.sigma - table.end.sigma) / len(table.rows)
            rows.append(type(row)(row.at, (row.state[0] * tilt, *row.state[1:])))
        return Tableau("wrong", "data", tuple(rows), table.start, table.end, 1.0)

    assert flow_order(Solver("wrong", build, good.grid, order=good.order), SDES["vp"]) < 1.5


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "heun", "heun in nu", "heun in t"])
def test_the_real_sampler_converges_to_the_exact_flow_of_a_mixture(name: str) -> None:
    sde = VPSDE()
    model = GaussianMixtureModel(
        sde=sde, weights=torch.from_numpy(SHARES), means=torch.from_numpy(MEANS), std=torch.from_numpy(STDS)
    )
    first, last = (Knot.of(sde.at(torch.tensor([t])))[0] for t in (sde.t_max, sde.t_min))
    start, errors, steps = torch.from_numpy(quantiles(first)), [], (40, 80, 160)
    for n in steps:
        x = sample(model, x_init=start, solver=SINGLE[name], steps=n, final="sample")
        errors.append(float((x - torch.from_numpy(quantiles(last))).norm()))
    assert slope(errors, steps) > SINGLE[name].order.deterministic - 0.2
    assert errors[-1] < {1: 3e-2, 2: 2e-3}[int(SINGLE[name].order.deterministic)]


@pytest.mark.parametrize(
    "solver",
    [
        solvers.ddim(),
        solvers.heun(),
        solvers.heun(variable="nu"),
        solvers.heun(variable="log_snr"),
        solvers.dpmpp_2m(),
        *(
            solvers.multistep(order=3, prediction=p, variable=v)
            for p in ("data", "noise", "flow")
            for v in ("log_snr", "nu", "rectified")
        ),
        solvers.multistep(order=2, eta=1.0),
        solvers.ancestral(eta=0.5),
    ],
    ids=lambda s: s.name,
)
def test_the_scaled_state_is_the_same_under_every_sde(solver: Solver) -> None:
    """x/alpha depends on nu alone: VP, sub-VP and VE at equal nu, through the real sampler, on a mixture."""
    model = GaussianMixtureModel(
        sde=VPSDE(), weights=torch.tensor([0.3, 0.7]), means=torch.tensor([[-1.0, 0.2], [1.0, 0.5]]), std=0.4
    )
    log_snr = torch.linspace(-6.0, 6.5, 13, dtype=torch.float64)
    y = torch.linspace(-8.0, 8.0, 8, dtype=torch.float64).reshape(4, 2)
    noise = [torch.sin(k + y) for k in range(12)]
    ends = []
    for sde in (VPSDE(), SubVPSDE(), VESDE(sigma_min=1e-3, sigma_max=200.0)):
        times = sde.time(log_snr)
        x = sample(
            model, x_init=sde.alpha(times[0]) * y, sde=sde, solver=solver, times=times, noise=noise, final="sample"
        )
        ends.append(x / sde.alpha(times[-1]))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-12, atol=1e-12)


# --- stochastic methods

STOCHASTIC: dict[str, tuple[Solver, float]] = {
    "euler_maruyama": (solvers.euler_maruyama(), 1.0),
    "euler_maruyama, eta 0.5": (solvers.euler_maruyama(eta=0.5), 0.5),
    "reverse_diffusion": (solvers.reverse_diffusion(), 1.0),
    "ancestral": (solvers.ancestral(), 1.0),
    "ancestral, eta 0.5": (solvers.ancestral(eta=0.5), 0.5),
    "ddim, eta 1": (solvers.ddim(1.0), 1.0),
    "dpmpp_2m, eta 1": (solvers.dpmpp_2m(eta=1.0), 1.0),
    "multistep data 2, eta 0.7": (solvers.multistep(order=2, eta=0.7), 0.7),
    "multistep data 3 in nu": (solvers.multistep(order=3, variable="nu", eta=1.0), 1.0),
    "multistep noise 2": (solvers.multistep(order=2, prediction="noise", eta=1.0), 1.0),
}
# They end where sigma is not yet small: at VE's t_min Euler-Maruyama's first-order error in the variance cancels, and
# under VP the ancestral draw's clock nu^-2 is too uneven over the last steps of a grid uniform in t.
LATE: dict[str, GaussianSDE] = {"vp": VPSDE(t_min=0.05), "sub_vp": SubVPSDE(t_min=0.05), "ve": VESDE(t_min=0.4)}


def total(at: Knot, variance: float) -> float:
    return at.alpha**2 * variance + at.sigma**2


def weak_error(table: Tableau) -> float:
    """Root mean square of the relative errors of the variance at three data variances, and of the mean."""
    errors = []
    for variance in (0.05, 0.4, 3.0):
        mean, got = table.law(MEAN, variance)
        errors += [got / total(table.end, variance) - 1, (mean - table.end.alpha * MEAN)]
    return float(np.sqrt(np.mean(np.square(errors))))


@pytest.mark.parametrize("sde", NAMES)
@pytest.mark.parametrize("name", [*STOCHASTIC, "ancestral, large variance"])
def test_weak_order(name: str, sde: str) -> None:
    solver = STOCHASTIC[name][0] if name in STOCHASTIC else solvers.ancestral(variance="large")
    steps = (160, 320)
    errors = [weak_error(solver(LATE[sde], solver.grid(LATE[sde], n))) for n in steps]
    assert slope(errors, steps) == pytest.approx(solver.order.weak, abs=0.15)


NODES, WEIGHTS = np.polynomial.legendre.leggauss(12)


def kernel(sde: GaussianSDE, increment: Increment) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times in the interval, their quadrature weights, and k there, normalised to an integral of k^2 of 1."""
    half = (increment.start - increment.end) / 2
    t = torch.from_numpy(increment.end + half * (NODES + 1))
    if increment.power is None:
        return t.numpy(), half * WEIGHTS, np.full(len(NODES), (2 * half) ** -0.5)
    point, ends = sde.at(t), sde.at(torch.tensor([increment.start, increment.end], dtype=torch.float64))
    # The clock nu^p runs at the rate |p| nu^p g^2/(2 sigma^2).
    rate = 0.5 * abs(increment.power) * (point.sigma / point.alpha) ** increment.power
    rate *= (sde.diffusion(t) / point.sigma).square()
    change = ((ends.sigma / ends.alpha) ** increment.power).diff().abs()
    return t.numpy(), half * WEIGHTS, (rate / change).sqrt().numpy()


def strong_error(sde: GaussianSDE, table: Tableau, eta: float, variance: float = 0.25) -> float:
    """Root mean square distance at the end from the exact solution with the same start state and the same path.

    For Gaussian data the reverse SDE is linear; with V the variance at each time its solution carries an increment
    eta g dw at tau to the end with the factor (V_end/V)^((1 + eta^2)/2) (alpha/alpha_end)^(eta^2).
    """
    weights, end, begin = table.affine_map(MEAN, variance), table.end, table.start

    def factor(alpha: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        ratio = total(end, variance) / (alpha**2 * variance + sigma**2)
        return ratio ** ((1 + eta**2) / 2) * (alpha / end.alpha) ** (eta**2)

    square = (weights[1] - factor(begin.alpha, begin.sigma)) ** 2 * total(begin, variance)
    for weight, row in zip(weights[2:], (row for row in table.rows if row.draws), strict=True):
        t, measure, k = kernel(sde, row.increment)
        point = sde.at(torch.from_numpy(t))
        exact = factor(point.alpha.numpy(), point.sigma.numpy()) * eta * sde.diffusion(point.t).numpy()
        square += float((measure * (exact - weight * k) ** 2).sum())
    return math.sqrt(square)


@pytest.mark.parametrize("sde", NAMES)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_strong_order_on_the_path_that_the_rows_name(name: str, sde: str) -> None:
    (solver, eta), steps = STOCHASTIC[name], (160, 320)
    errors = [strong_error(LATE[sde], solver(LATE[sde], solver.grid(LATE[sde], n)), eta) for n in steps]
    assert slope(errors, steps) == pytest.approx(solver.order.strong, abs=0.15)


def test_independent_noise_has_no_strong_order() -> None:
    """The same table with the increments of other intervals does not converge on the path."""
    sde, solver, errors, steps = LATE["vp"], solvers.euler_maruyama(), [], (160, 320)
    for n in steps:
        table = solver(sde, solver.grid(sde, n))
        rows, shift = list(table.rows), n // 16
        moved = [row.increment for row in (*rows[shift:], *rows[:shift])]
        rows = [type(row)(row.at, row.state, noise=row.noise, increment=i) for row, i in zip(rows, moved, strict=True)]
        errors.append(strong_error(sde, Tableau("wrong", "noise", tuple(rows), table.start, table.end, 1.0), 1.0))
    assert slope(errors, steps) < 0.1


@pytest.mark.parametrize("sde", NAMES)
@pytest.mark.parametrize("eta", [0.6, 1.0])
@pytest.mark.parametrize("form", ["data", "noise"])
def test_the_draw_of_an_exponential_method_is_the_exact_noise_of_its_linear_part(
    form: str, eta: float, sde: str
) -> None:
    """Pointwise: weight times kernel is the integrating factor times eta g, so the named clock is the right one."""
    diffusion = SDES[sde]
    built = [solvers.multistep(prediction=form, order=2, eta=eta)]
    if form == "data":
        built += [solvers.ancestral(eta=eta), solvers.dpmpp_2m(eta=eta)]
    for solver in built:
        table = solver(diffusion, solver.grid(diffusion, 7))
        ends = [*(row.at for row in table.rows[1:]), table.end]
        for row, end in zip(table.rows, ends, strict=True):
            t, _, k = kernel(diffusion, row.increment)
            p = diffusion.at(torch.from_numpy(t))
            lag = (p.log_snr - end.log_snr) / 2
            carried = end.alpha / p.alpha if form == "noise" else end.sigma / p.sigma * (eta**2 * lag).exp()
            exact = carried * eta * diffusion.diffusion(p.t)
            np.testing.assert_allclose(row.noise[0] * k, exact.numpy(), rtol=1e-10)


def test_the_draw_of_reverse_diffusion_is_the_forward_transitions() -> None:
    sde = SDES["sub_vp"]
    table = solvers.reverse_diffusion()(sde, torch.tensor([1.0, 0.7, 0.3, 0.01], dtype=torch.float64))
    for row in table.rows:
        t, _, k = kernel(sde, row.increment)
        expected = row.at.alpha / sde.alpha(torch.from_numpy(t)) * sde.diffusion(torch.from_numpy(t))
        np.testing.assert_allclose(row.noise[0] * k, expected, rtol=1e-10)
