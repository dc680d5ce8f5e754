"""Orders of convergence against exact flows and exact laws; ``orders.py`` has the errors. No Monte Carlo."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import SDES, slope
from orders import FLOWS, LATE, MEANS, SHARES, STDS, flow_error, flow_order, kernel, quantiles, strong_error, weak_error

from scoresde import VESDE, VPSDE, GaussianMixtureModel, GaussianSDE, Solver, SubVPSDE, Tableau, sample, solvers
from scoresde.solvers import Butcher, grids
from scoresde.solvers.pairs import EMBEDDED
from scoresde.solvers.rows import Knot


def embedded(name: str, variable: str) -> Solver:
    """Return an adaptive pair at a fixed step."""
    pair = EMBEDDED[name]
    rule = Butcher(name, ((), *pair.stages[:-1]), pair.stages[-1], pair.order)
    return solvers.runge_kutta(rule, variable=variable)


SINGLE: dict[str, Solver] = {
    "ddim": solvers.ddim(),
    "dpmpp_2m": solvers.dpmpp_2m(),
    "heun": solvers.heun(),
    **{f"heun in {v}": solvers.heun(variable=v) for v in ("t", "nu", "log_snr")},
    "euler_maruyama, eta 0": solvers.euler_maruyama(eta=0.0),
    "reverse_diffusion, eta 0": solvers.reverse_diffusion(eta=0.0),
    # In a variable in which their errors are far above rounding; those of order 8 are not, from 160 steps up.
    **{name: embedded(name, "log_snr") for name in ("bosh3", "dopri5")},
}
# Steps uniform in t are too coarse for reverse diffusion near alpha = 0 of the rectified flow, where it shows 0.85 from
# 160 steps to 320, and under EDM, whose t is sigma, up to 80. There it is measured on a grid made in the noise level.
COARSE = {("reverse_diffusion, eta 0", sde): grids.diffused(power=2.0) for sde in ("edm", "rectified")}


@pytest.mark.parametrize("sde", FLOWS)
@pytest.mark.parametrize("name", SINGLE)
def test_order_of_a_named_method(name: str, sde: str) -> None:
    measured = flow_order(SINGLE[name], FLOWS[sde], grid=COARSE.get((name, sde)))
    assert measured == pytest.approx(SINGLE[name].order.deterministic, abs=0.1)


@pytest.mark.parametrize("sde", FLOWS)
@pytest.mark.parametrize("name", EMBEDDED)
def test_order_of_an_embedded_pair_in_the_clock_of_the_adaptive_solver(name: str, sde: str) -> None:
    """In the rectified clock's own grid a high order reaches rounding before it shows; a power of it is coarser."""
    power, steps = {"bosh3": (1.0, (160, 320)), "dopri5": (2.0, (40, 80)), "dop853": (3.0, (20, 40))}[name]
    grid = grids.rectified(power=power)
    errors = [flow_error(embedded(name, "rectified")(FLOWS[sde], grid(FLOWS[sde], n))) for n in steps]
    assert 1e-14 < errors[-1] < 1e-8
    assert slope(errors, steps) == pytest.approx(EMBEDDED[name].order, abs=0.15 if name == "dop853" else 0.1)


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


# Where the higher terms are still felt at 160 steps on a method's own grid: those of third order in nu where alpha is
# small, and Euler's on the rectified flow (1.26 where the order is 1).
EVEN = {
    **{("multistep data 3 in nu", sde): grids.log_snr() for sde in LATE},
    ("euler_maruyama, eta 0.5", "rectified"): grids.diffused(power=2.0),
}


@pytest.mark.parametrize("sde", LATE)
@pytest.mark.parametrize("name", [*STOCHASTIC, "ancestral, large variance"])
def test_weak_order(name: str, sde: str) -> None:
    solver = STOCHASTIC[name][0] if name in STOCHASTIC else solvers.ancestral(variance="large")
    grid, steps = EVEN.get((name, sde), solver.grid), (160, 320)
    errors = [weak_error(solver(LATE[sde], grid(LATE[sde], n))) for n in steps]
    assert slope(errors, steps) == pytest.approx(solver.order.weak, abs=0.1)


@pytest.mark.parametrize("sde", LATE)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_strong_order_on_the_path_that_the_rows_name(name: str, sde: str) -> None:
    (solver, eta), steps = STOCHASTIC[name], (160, 320)
    errors = [strong_error(LATE[sde], solver(LATE[sde], solver.grid(LATE[sde], n)), eta) for n in steps]
    assert slope(errors, steps) == pytest.approx(solver.order.strong, abs=0.1)


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


@pytest.mark.parametrize("sde", LATE)
@pytest.mark.parametrize("eta", [0.6, 1.0])
@pytest.mark.parametrize("form", ["data", "noise"])
def test_the_draw_of_an_exponential_method_is_the_exact_noise_of_its_linear_part(
    form: str, eta: float, sde: str
) -> None:
    """Pointwise: weight times kernel is the integrating factor times eta g, so the named clock is the right one."""
    diffusion = FLOWS[sde]
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
