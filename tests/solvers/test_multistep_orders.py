"""Orders of the linear multistep methods on every kind of diffusion: predictors, correctors, stochastic forms."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import pytest
import torch
from helpers import slope
from orders import FLOWS, LATE, MEANS, SHARES, STDS, flow_error, quantiles, strong_error, weak_error

from scoresde import GaussianMixtureModel, GaussianSDE, Solver, Tableau, sample, solvers
from scoresde.solvers.rows import Knot, Row

BUILT = solvers.multistep
OTHERS = [name for name in FLOWS if name != "vp"]
ADAMS = [
    (order, prediction, variable)
    for order, prediction, variable in itertools.product(
        (1, 2, 3, 4), ("data", "noise", "flow"), ("log_snr", "nu", "rectified", "t")
    )
    if order > 1 or variable == "log_snr"  # a constant is the same in every variable
]
# x/alpha depends on nu alone but in the variable t, so that one or two diffusions each will do.
ELSEWHERE = dict(zip(ADAMS, itertools.cycle(OTHERS)))


def order_of(solver: Solver, sde: GaussianSDE, order: int, steps: tuple[int, int]) -> float:
    """Measured order with exact history, after the steps that start up."""
    errors = [flow_error(solver(sde, solver.grid(sde, n)), order) for n in steps]
    return slope(errors, steps)


@pytest.mark.parametrize(("order", "prediction", "variable"), ADAMS)
def test_order_of_a_predictor(order: int, prediction: str, variable: str) -> None:
    solver = BUILT(order=order, prediction=prediction, variable=variable)
    assert solver.order.deterministic == order
    few = order < 3 or prediction != "noise"  # where the noise prediction's error is not yet asymptotic
    steps = {1: (160, 320), 2: (160, 320)}.get(order, (400, 800) if few else (800, 1600))
    for name in {ELSEWHERE[order, prediction, variable], *(("vp",) if order < 4 else ())}:
        assert order_of(solver, FLOWS[name], order - 1, steps) == pytest.approx(order, abs=0.1), name


# (solver, predictions that a step reads at most, steps): where the error is asymptotic and above rounding.
NAMED: dict[str, tuple[Solver, int, tuple[int, int]]] = {
    "dpmpp_2m": (solvers.dpmpp_2m(), 2, (160, 320)),
    "dpmpp_3m": (solvers.dpmpp_3m(), 3, (200, 400)),
    "deis 2 in t": (solvers.deis(order=2), 2, (160, 320)),
    "deis 3 in t": (solvers.deis(), 3, (200, 400)),
    "deis 3 in nu": (solvers.deis(order=3, variable="nu"), 3, (400, 800)),
    "deis 2 in log_snr": (solvers.deis(order=2, variable="log_snr"), 2, (160, 320)),
    "exponential_ab 3": (solvers.exponential_ab(), 3, (200, 400)),
    "ipndm 4": (solvers.ipndm(), 4, (640, 1280)),
    "lms 4": (solvers.lms(), 4, (400, 800)),
    "flow_ab 3": (solvers.flow_ab(), 3, (100, 200)),
    "flow_abm 3, 4": (solvers.flow_abm(), 4, (200, 400)),
    "unipc 1, bh1": (solvers.unipc(order=1, variant="bh1"), 2, (160, 320)),
    "unipc 1, bh2": (solvers.unipc(order=1), 2, (160, 320)),
    "unipc 2, bh1": (solvers.unipc(order=2, variant="bh1"), 3, (200, 400)),
    "unipc 2, bh2": (solvers.unipc(order=2), 3, (200, 400)),
    "unipc 2, noise": (solvers.unipc(order=2, prediction="noise"), 3, (200, 400)),
    "unipc 3": (solvers.unipc(order=3), 4, (200, 400)),
    "sa_solver 3, 2 with tau = 0": (solvers.sa_solver(predictor_order=3, corrector_order=2, tau=0.0), 3, (200, 400)),
}


@pytest.mark.parametrize("sde", FLOWS)
@pytest.mark.parametrize("name", NAMED)
def test_order_of_a_named_method(name: str, sde: str) -> None:
    solver, reads, steps = NAMED[name]
    assert order_of(solver, FLOWS[sde], reads, steps) == pytest.approx(solver.order.deterministic, abs=0.1)


@pytest.mark.parametrize(
    ("solver", "expected"),
    [
        (solvers.dpmpp_3m(), 2),
        (BUILT(order=3), 3),
        (solvers.ipndm(), 2),
        (solvers.unipc(order=3), 4),
        (solvers.unipc(order=3, corrected=False), 3),
        (solvers.flow_abm(), 4),
        (solvers.sa_solver(tau=0.0), 4),
        (solvers.sa_solver(corrector_order=2, tau=0.0), 2),
        (solvers.sa_solver(corrector_order=1, tau=0.0), 1),
        (BUILT(order=1, corrector=5), 2),
        (BUILT(order=4, corrector=5), 5),
    ],
    ids=lambda value: value.name if isinstance(value, Solver) else "",
)
def test_declared_orders(solver: Solver, expected: int) -> None:
    assert (solver.order.deterministic, solver.order.strong, solver.order.weak) == (expected, None, None)


@pytest.mark.parametrize(("prediction", "variable"), [("data", "t"), ("noise", "nu"), ("flow", "rectified")])
def test_a_corrector_in_any_variable_is_one_order_above_its_predictor(prediction: str, variable: str) -> None:
    solver = BUILT(prediction=prediction, variable=variable, order=2, corrector=3)
    for sde in ("vp", "edm"):
        assert order_of(solver, FLOWS[sde], 3, (400, 800)) == pytest.approx(3, abs=0.1)


def changed(solver: Solver, change: Callable[[Row], Row]) -> Solver:
    """The same method with a mistake in every row."""

    def build(sde: GaussianSDE, times: torch.Tensor) -> Tableau:
        table = solver.build(sde, times)
        return dataclasses.replace(table, rows=tuple(map(change, table.rows)))

    return dataclasses.replace(solver, build=build)


def test_mistakes_in_a_corrector_cost_orders() -> None:
    """What the tests above must see: the corrected state forgotten, or the predicted state in its place."""
    good, sde = solvers.unipc(order=2), FLOWS["vp"]
    assert order_of(good, sde, 3, (100, 200)) > 2.8

    def stale(row: Row) -> Row:
        return row if row.anchor is None else dataclasses.replace(row, anchor=(1.0,))

    def tilted(row: Row) -> Row:
        if row.anchor is None or len(row.anchor) < 4:
            return row
        x, new, current, before = row.anchor
        shift = 0.1 * new
        return dataclasses.replace(row, anchor=(x, new + shift, current - 2 * shift, before + shift))

    assert order_of(changed(good, stale), sde, 3, (100, 200)) < 0.5
    assert order_of(changed(good, tilted), sde, 3, (100, 200)) < 2.5


@pytest.mark.parametrize("name", ["unipc", "lms", "flow_ab", "flow_abm", "deis"])
def test_the_real_sampler_converges_to_the_exact_flow_of_a_mixture(name: str) -> None:
    """From its own start-up steps, of order 1 and 2, so that some methods show less than their order."""
    sde, solver = FLOWS["vp"], solvers.by_name(name)
    model = GaussianMixtureModel(
        sde=sde, weights=torch.from_numpy(SHARES), means=torch.from_numpy(MEANS), std=torch.from_numpy(STDS)
    )
    first, last = (Knot.of(sde.at(torch.tensor([t])))[0] for t in (sde.t_max, sde.t_min))
    start, errors, steps = torch.from_numpy(quantiles(first)), [], (40, 80, 160)
    for n in steps:
        x = sample(model, x_init=start, solver=solver, steps=n, final="sample")
        errors.append(float((x - torch.from_numpy(quantiles(last))).norm()))
    assert slope(errors, steps) > 1.9
    assert errors[-1] < 3e-3


# --- stochastic methods: (solver, eta)

STOCHASTIC: dict[str, tuple[Solver, float]] = {
    "dpmpp_2m_sde": (solvers.dpmpp_2m_sde(), 1.0),
    "dpmpp_3m_sde": (solvers.dpmpp_3m_sde(), 1.0),
    "sa_solver": (solvers.sa_solver(), 1.0),
    "sa_solver 1, 2 with tau = 0.5": (solvers.sa_solver(predictor_order=1, corrector_order=2, tau=0.5), 0.5),
    "sa_solver 2, 3, noise": (
        solvers.sa_solver(predictor_order=2, corrector_order=3, tau=1.0, prediction="noise"),
        1.0,
    ),
}


@pytest.mark.parametrize("sde", LATE)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_weak_order(name: str, sde: str) -> None:
    solver, steps = STOCHASTIC[name][0], (160, 320)
    errors = [weak_error(solver(LATE[sde], solver.grid(LATE[sde], n))) for n in steps]
    assert solver.order.weak == 2
    assert slope(errors, steps) == pytest.approx(2, abs=0.1)


def test_weak_order_of_a_stochasticity_that_jumps() -> None:
    """Constant on each interval it adds no error to the law, wherever the grid's knots lie."""
    solver, steps = solvers.sa_solver(tau=lambda t: 1.0 if t > 0.3 else 0.3), (200, 400)
    errors = [weak_error(solver(LATE["vp"], solver.grid(LATE["vp"], n))) for n in steps]
    assert slope(errors, steps) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("sde", LATE)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_strong_order_on_the_path_that_the_rows_name(name: str, sde: str) -> None:
    # With 160 steps SA-Solver's higher terms still make 1.09 of its order on VE.
    (solver, eta), steps = STOCHASTIC[name], (200, 400) if name == "sa_solver" else (160, 320)
    errors = [strong_error(LATE[sde], solver(LATE[sde], solver.grid(LATE[sde], n)), eta) for n in steps]
    assert solver.order.strong == 1
    assert slope(errors, steps) == pytest.approx(1, abs=0.1)


def test_a_corrector_with_another_draw_than_its_predictor_has_no_strong_order() -> None:
    def fresh(row: Row) -> Row:
        return dataclasses.replace(row, anchor_noise=(0.0,) if row.anchor_noise else ())

    solver, steps, errors = changed(solvers.sa_solver(), fresh), (80, 160), []
    for n in steps:
        errors.append(strong_error(LATE["vp"], solver(LATE["vp"], solver.grid(LATE["vp"], n)), 1.0))
    assert slope(errors, steps) < 0.3
