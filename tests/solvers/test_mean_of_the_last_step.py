"""``final="mean"``: what was drawn in the last step is left out of its end, whichever stage drew it, and no more."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import VARIANCE_PRESERVING, coefficients, gaussian

from scoresde import Solver, build_table, solvers

SOLVERS = {
    "seeds_2": solvers.seeds_2(),
    "seeds_3": solvers.seeds_3(),
    "sra1": solvers.sra1(),
    "ancestral": solvers.ancestral(),
    "dpmpp_2m_sde": solvers.multistep(order=2, eta=1.0),
    "corrected": solvers.multistep(order=2, corrector=2, eta=1.0),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_the_mean_has_none_of_the_last_steps_own_draws(name: str) -> None:
    solver: Solver = SOLVERS[name]
    sde, steps = VARIANCE_PRESERVING, 3
    whole = build_table(sde, solver, steps=steps, final="sample")
    mean = build_table(sde, solver, steps=steps, final="mean")
    assert whole.rows[:-1] == mean.rows[:-1]
    drawn, (last, quiet) = sum(row.draws for row in whole.rows), (table.rows[-1] for table in (whole, mean))
    own = drawn // steps  # every step draws as often
    assert drawn % steps == 0
    weights = np.zeros(drawn)
    weights[::-1][: len(last.noise)] = last.noise  # oldest first; an older step's draw may come again
    weights[: drawn - own] = 0.0
    # The sampler feeds the draws one by one: only their own weight in the last sum is gone.
    model = gaussian(sde)
    fed = coefficients(model, whole)
    expected = fed - np.concatenate([[0.0, 0.0], weights])
    got = coefficients(model, mean)
    np.testing.assert_allclose(got, expected[: len(got)], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(expected[len(got) :], 0.0, atol=1e-13)
    assert np.abs(weights).max() > 1e-4
    assert torch.equal(torch.tensor(quiet.state), torch.tensor(last.state))
