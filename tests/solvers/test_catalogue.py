"""The catalogue: what it says of each solver is what the solver says and does."""

from __future__ import annotations

import pytest

from scoresde import (
    VPSDE,
    solvers,
)


def test_the_catalogue_says_what_the_solvers_say() -> None:
    entries = {entry.name: entry for entry in solvers.list()}
    assert list(entries) == sorted(solvers.SOLVERS)
    assert entries["heun"].order.deterministic == 2
    assert entries["heun"].calls == 2
    assert not entries["heun"].stochastic
    assert entries["sra1"].order.strong == 1.5
    assert entries["sra1"].stochastic
    assert entries["seeds_3"].order.weak == 2
    assert entries["edm"].stochastic
    assert entries["edm"].grid == "karras (rho = 7)"
    assert entries["dpmpp_2s"].paper == "Lu et al. 2022b"
    assert entries["probability_flow"].calls is None
    assert entries["probability_flow"].order.deterministic == 5
    assert set(entries["rk4"].serves) == {"CosineVPSDE", "EDMSDE", "RectifiedFlow", "SubVPSDE", "VESDE", "VPSDE"}
    for entry in entries.values():
        assert entry.paper, entry.name
        assert {"VPSDE", "VESDE"} <= set(entry.serves), entry.name
        assert entry.from_pure_noise == ("RectifiedFlow" in entry.serves)


@pytest.mark.parametrize("name", ["dpm_solver_3", "seeds_2", "rk4", "ddim", "edm"])
def test_the_number_of_calls_is_the_tables(name: str) -> None:
    solver = solvers.by_name(name)
    assert solver(VPSDE(), solver.grid(VPSDE(), 5)).nfe == 5 * solver.calls


def test_the_catalogue_as_markdown() -> None:
    lines = solvers.markdown().splitlines()
    assert len(lines) == 2 + len(solvers.SOLVERS)
    assert len({line.count("|") for line in lines}) == 1
    row = next(line for line in lines if line.startswith("| `sra1` "))
    assert row == "| `sra1` | 2 |  | 2 | 1.5 | yes | yes | even | Roessler 2010 |"
