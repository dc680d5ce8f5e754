"""Solvers, tables and grids travel: pickle, deepcopy, torch.save and another process give back what was sent."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import multiprocessing

from scoresde import (
    VPSDE,
    ConfigError,
    DomainError,
    ProbabilityFlow,
    RectifiedFlow,
    Solver,
    Tableau,
    build_table,
    solvers,
)
from scoresde.solvers import SOLVERS, AdditiveNoise, Butcher, by_name, grids
from scoresde.solvers.grids import Grid
from scoresde.solvers.rows import CLEAN, Increment, Knot, Order, Row

THIRD = Butcher("heun3", ((), (1 / 3,), (0.0, 2 / 3)), (0.25, 0.0, 0.75), 3)
NOISY = Butcher("noisy", ((),), (1.0,), 1, AdditiveNoise((0.0,), (), (1.0,), (), 1.0, 1.0))


def falling(t: float) -> float:
    """An eta of a user's own, in a module."""
    return 0.3 + 0.5 * t


BUILDERS: dict[str, Callable[[], Solver]] = {
    "ancestral": lambda: solvers.ancestral(variance="learned"),
    "ancestral, eta": lambda: solvers.ancestral(eta=0.4),
    "ddim": lambda: solvers.ddim(0.4),
    "euler_ancestral": lambda: solvers.euler_ancestral(0.3),
    "reverse_diffusion": lambda: solvers.reverse_diffusion(eta=0.0),
    "runge_kutta": lambda: solvers.runge_kutta(THIRD, variable="nu", grid=grids.uniform(power=2.0), name="mine"),
    "runge_kutta, noise": lambda: solvers.runge_kutta(NOISY, variable="log_snr", eta=0.6),
    "sra1": lambda: solvers.sra1(variable="nu", eta=0.7),
    "multistep": lambda: solvers.multistep(order=3, corrector=4, eta=falling, lower_order_final=True),
    "multistep, flow": lambda: solvers.multistep(prediction="flow", variable="t", order=4, first_alone=True),
    "sa_solver": lambda: solvers.sa_solver(tau=falling, coefficients="bh1"),
    "unipc": lambda: solvers.unipc(order=2, variant="exact", corrected=False),
    "deis": lambda: solvers.deis(order=2, variable="nu"),
    "exponential": lambda: solvers.exponential(order=3, eta=0.5, nodes=(0.2, 2 / 3), grid=grids.karras(rho=5.0)),
    "seeds_3": lambda: solvers.seeds_3(eta=0.5, coefficients="exact"),
    "churned": lambda: solvers.churned(solvers.dpmpp_2m(), churn=4.0, s_min=0.1, s_max=5.0, s_noise=1.01),
    "edm": lambda: solvers.edm(churn=10.0),
    "restart": lambda: solvers.restart(solvers.heun(variable="nu"), t_min=0.1, t_max=0.4, repeats=2, steps=3),
    "restart of a churned": lambda: solvers.restart(solvers.edm(), t_min=0.1, t_max=0.4),
    "dpmpp_2s_ancestral": lambda: solvers.dpmpp_2s_ancestral(eta=0.5),
    "annealed_langevin": lambda: solvers.annealed_langevin(repeats=2, step=0.1),
    "corrector_only": lambda: solvers.corrector_only(grid=grids.rectified(power=2.0)),
}
TABLES = sorted(set(SOLVERS) - {"probability_flow"})
MADE: dict[str, Callable[[], Solver]] = {**{name: SOLVERS[name] for name in TABLES}, **BUILDERS}
SDES = {"vp": VPSDE(), "rectified": RectifiedFlow()}


def by_pickle(thing: object) -> object:
    return pickle.loads(pickle.dumps(thing))


def by_file(thing: object) -> object:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {"pickle": by_pickle, "deepcopy": copy.deepcopy, "torch.save": by_file}
every_way = pytest.mark.parametrize("send", WAYS.values(), ids=WAYS.keys())


def tables_of(solver: Solver) -> dict[str, Tableau | str]:
    """Its table on every SDE, built anew; where it refuses one, what it says."""
    made: dict[str, Tableau | str] = {}
    for name, sde in SDES.items():
        try:
            made[name] = solver(sde, solver.grid(sde, 9))
        except (DomainError, ConfigError) as error:
            made[name] = str(error)
    return made


@every_way
@pytest.mark.parametrize("name", MADE)
def test_a_solver_arrives_equal_and_builds_the_same_table(name: str, send: Callable[[object], object]) -> None:
    solver = MADE[name]()
    arrived = send(solver)
    assert isinstance(arrived, Solver)
    assert arrived == solver
    assert hash(arrived) == hash(solver)
    assert repr(arrived) == repr(solver)
    tables = tables_of(solver)
    assert any(isinstance(table, Tableau) for table in tables.values())
    assert tables_of(arrived) == tables


@pytest.mark.parametrize("name", MADE)
def test_solvers_of_the_same_options_are_equal_and_share_their_tables(name: str) -> None:
    one, two = MADE[name](), MADE[name]()
    assert one is not two
    assert one == two
    assert len({one, two}) == 1
    assert build_table(VPSDE(), one, steps=9) is build_table(VPSDE(), two, steps=9)


def test_solvers_of_other_options_differ() -> None:
    every = [make() for name, make in MADE.items() if name not in ("milstein", "euler_heun", "res")]
    assert len(set(every)) == len(every)
    for one, two in (
        (solvers.ddim(0.1), solvers.ddim(0.2)),
        (solvers.heun(), solvers.heun(variable="nu", grid=grids.rectified())),
        (solvers.multistep(eta=falling), solvers.multistep(eta=0.5)),
        (solvers.restart(solvers.heun(), t_min=0.1, t_max=0.4), solvers.restart(solvers.heun(), t_min=0.1, t_max=0.5)),
    ):
        assert one != two
        assert build_table(VPSDE(), one, steps=9) != build_table(VPSDE(), two, steps=9)


GRIDS: dict[str, Callable[[], Grid]] = {
    "uniform": lambda: grids.uniform(5, power=2.0),
    "even": lambda: grids.even(5),
    "log_snr": lambda: grids.log_snr(5, centre=1.0, width=3.0),
    "karras": lambda: grids.karras(5, rho=3.0),
    "rectified": lambda: grids.rectified(5, power=2.0),
    "diffused": lambda: grids.diffused(5, power=3.0),
    "knots": lambda: grids.knots(torch.linspace(0.1, 1.0, 11, dtype=torch.float64), 5),
}


@every_way
@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_arrives_equal_and_gives_the_same_times(name: str, send: Callable[[object], object]) -> None:
    grid = GRIDS[name]()
    arrived = send(grid)
    assert isinstance(arrived, Grid)
    assert arrived == grid == GRIDS[name]()
    assert hash(arrived) == hash(GRIDS[name]())
    for sde in SDES.values():
        assert arrived(sde).tolist() == grid(sde).tolist()


def test_grids_of_other_options_differ() -> None:
    every = [make() for make in GRIDS.values()]
    every += [grids.karras(6, rho=3.0), grids.karras(5), grids.log_snr(5), grids.diffused(5), grids.uniform(5)]
    every.append(grids.knots(torch.linspace(0.1, 0.9, 11, dtype=torch.float64), 5))
    assert len(set(every)) == len(every)


@every_way
def test_tables_and_their_parts_arrive_equal(send: Callable[[object], object]) -> None:
    here = Knot(0.5, 0.8, 0.6)
    row = Row(here, (1.0, 0.5), noise=(0.1,), increment=Increment(0.5, 0.2, -2.0), spread=(0.1, 0.2))
    table = solvers.ancestral(variance="learned")(VPSDE(), grids.karras(5)).denoised()
    assert table.points.t.shape == (6,)  # computed once and kept: it travels too
    for thing in (here, CLEAN, row, Order(strong=1.0, weak=2.0), table, ProbabilityFlow(rtol=1e-3, method="bosh3")):
        assert send(thing) == thing
    arrived = send(table)
    assert isinstance(arrived, Tableau)
    assert arrived.to_json() == table.to_json()
    assert arrived.points.t.tolist() == table.points.t.tolist()


@every_way
def test_the_table_of_every_name_arrives_equal(send: Callable[[object], object]) -> None:
    for name in TABLES:
        solver = by_name(name)
        assert isinstance(solver, Solver)
        table = solver(VPSDE(), solver.grid(VPSDE(), 4))
        assert send(table) == table


def answer(index: int, things: list[tuple[Solver, Grid]], queue: multiprocessing.SimpleQueue) -> None:
    """What the other process does: build the tables, and send their text back."""
    queue.put([solver(VPSDE(), grid).to_json() for solver, grid in things])


def test_another_process_builds_the_same_tables() -> None:
    things = [(make(), grids.karras(4)) for make in (solvers.flow_abm, BUILDERS["multistep"], BUILDERS["restart"])]
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    process = multiprocessing.spawn(answer, (things, queue), nprocs=1, join=False)
    there = queue.get()
    assert process.join(timeout=60)
    here = [solver(VPSDE(), grid) for solver, grid in things]
    for table, text in zip(here, there, strict=True):
        got = Tableau.from_json(text)
        assert (got.name, got.nfe, got.order, got.times) == (table.name, table.nfe, table.order, table.times)
        for row, other in zip(table.rows, got.rows, strict=True):
            assert other.state == pytest.approx(row.state, rel=1e-12, abs=1e-15)
            assert other.noise == pytest.approx(row.noise, rel=1e-12, abs=1e-15)


def test_a_solver_with_a_function_made_on_the_spot_works_but_stays_here() -> None:
    solver = solvers.multistep(eta=lambda t: 0.5 * t)
    assert build_table(VPSDE(), solver, steps=5).stochastic
    assert build_table(VPSDE(), solver, steps=5) is build_table(VPSDE(), solver, steps=5)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(solver)


def test_a_method_of_lists_is_a_solver_too() -> None:
    """Nothing that keeps tables asks for a hash of what a user wrote as lists."""
    lists = Butcher("heun3", [[], [1 / 3], [0.0, 2 / 3]], [0.25, 0.0, 0.75], 3)
    solver = solvers.runge_kutta(lists)
    assert build_table(VPSDE(), solver, steps=5) is build_table(VPSDE(), solver, steps=5)
    assert build_table(VPSDE(), solver, steps=5) == build_table(VPSDE(), solvers.runge_kutta(THIRD), steps=5)
