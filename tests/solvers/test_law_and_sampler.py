"""A table's exact law and the loop that runs it are two programs: they must say the same, term by term."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import MEAN, SDES, VARIANCE, coefficients, gaussian

from scoresde import Solver, build_table, solvers

# With memory, stages, correctors, shared draws and jumps upwards.
SOLVERS: dict[str, Solver] = {
    "dpmpp_3m": solvers.dpmpp_3m(),
    "lms": solvers.lms(),
    "unipc": solvers.unipc(),
    "seeds_3": solvers.seeds_3(),
    "sra1": solvers.sra1(),
    "sa_solver": solvers.sa_solver(),
    "dpmpp_3m_sde": solvers.dpmpp_3m_sde(),
    "edm": solvers.edm(),
}


@pytest.mark.parametrize("sde", ["vp", "ve"])
@pytest.mark.parametrize("name", SOLVERS)
def test_the_law_of_a_table_is_what_the_sampler_does(name: str, sde: str) -> None:
    """The output's weights on 1, on the start state and on every draw, for exact predictions of Gaussian data."""
    table = build_table(SDES[sde], SOLVERS[name], steps=5)
    law = table.affine_map(MEAN, VARIANCE)
    np.testing.assert_allclose(coefficients(gaussian(SDES[sde]), table), law, rtol=1e-8, atol=1e-9)
    assert len(law) == 2 + sum(row.draws for row in table.rows) + (table.lift[1] != 0)
