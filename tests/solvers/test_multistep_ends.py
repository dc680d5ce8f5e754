"""Linear multistep methods at both ends, in few steps and in any batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import MEAN, VARIANCE
from multistep_cases import BUILT, DIFFUSIONS, MIXTURE, NAMES

from scoresde import (
    VPSDE,
    DomainError,
    RectifiedFlow,
    Solver,
    Tableau,
    build_table,
    sample,
    solvers,
)
from scoresde.solvers import grids

# Their noise prediction has no step out of alpha = 0.
NOISE = ("deis", "ipndm", "lms")


def named(name: str) -> Solver:
    solver = solvers.by_name(name)
    assert isinstance(solver, Solver)
    return solver


def same(one: Tableau, two: Tableau, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(
        one.affine_map(MEAN, VARIANCE), two.affine_map(MEAN, VARIANCE), rtol=tolerance, atol=tolerance
    )


# --- ends and few steps


@pytest.mark.parametrize("sde", DIFFUSIONS)
@pytest.mark.parametrize("name", NAMES)
def test_one_two_and_three_steps(name: str, sde: str) -> None:
    """One step is the first-order one; the mean is exact, the variance of the right size at every end."""
    diffusion, solver = DIFFUSIONS[sde], named(name)
    if sde == "rectified" and name in NOISE:
        with pytest.raises(DomainError, match=f"at t = 1 alpha is 0 and the noise prediction of '{name}' says nothing"):
            build_table(diffusion, solver, steps=3)
        with pytest.raises(DomainError, match=f"the last step of '{name}' has no finite value at t = 1"):
            build_table(diffusion, solver, steps=1)
        return
    eta = 1.0 if "sde" in name or name == "sa_solver" else 0.0
    times = solver.grid(diffusion, 1)
    same(solver(diffusion, times), solvers.ancestral(eta=eta)(diffusion, times), 1e-11)
    for steps in (1, 2, 3):
        for final in ("denoise", "sample"):
            table = build_table(diffusion, solver, steps=steps, final=final)
            assert table.nfe == steps
            mean, variance = table.law(MEAN, VARIANCE)
            assert mean == pytest.approx(table.end.alpha * MEAN, abs=1e-11)
            exact = table.end.alpha**2 * VARIANCE + table.end.sigma**2
            # The bound is what too few steps cost, a factor of 60 in the standard deviation, not an accuracy.
            assert 0 <= variance < 4000 * exact


@pytest.mark.parametrize("name", NAMES)
def test_a_step_into_clean_data_is_the_data_prediction(name: str) -> None:
    """At the predicted state for the data and flow predictions; a noise prediction carries the corrected state."""
    solver = named(name)
    times = torch.tensor([1.0, 0.6, 0.2, 0.05], dtype=torch.float64)
    to_zero = solver(VPSDE(), torch.cat([times, torch.zeros(1, dtype=torch.float64)]))
    assert to_zero.end.sigma == 0
    if name not in ("flow_ab", "flow_abm"):  # their clock ends at 0 too, and they arrive there at full order
        same(to_zero, solver(VPSDE(), times).denoised())
    else:
        assert len(to_zero.rows[-1].state) == 4


@pytest.mark.parametrize("variable", ["log_snr", "nu", "rectified", "t"])
@pytest.mark.parametrize("prediction", ["data", "flow"])
def test_out_of_alpha_zero_and_into_sigma_zero(prediction: str, variable: str) -> None:
    """Every setting with a corrector is finite; the first prediction is forgotten where the variable is infinite."""
    times = torch.tensor([1.0, 0.9, 0.7, 0.5, 0.3, 0.1, 0.0], dtype=torch.float64)
    sde = RectifiedFlow()
    table = BUILT(prediction=prediction, variable=variable, order=3, corrector=4)(sde, times)
    finite = prediction == "flow" and variable in ("rectified", "t")
    used = [len(row.state) - 1 for row in table.rows]
    assert used[:3] == ([1, 2, 3] if finite else [1, 1, 2])
    assert (table.rows[0].anchor is None) is not finite
    mean, variance = table.law(MEAN, VARIANCE)
    assert mean == pytest.approx(MEAN, abs=1e-12)
    assert variance == pytest.approx(VARIANCE, rel=0.35)


def test_the_first_prediction_of_a_step_from_noise_alone_matters_once() -> None:
    """Out of alpha = 0 the data prediction is the mean: the whole first step, and no corrected one."""
    table = solvers.unipc()(RectifiedFlow(), torch.tensor([1.0, 0.8, 0.5, 0.3], dtype=torch.float64))
    assert table.rows[0].state == pytest.approx((0.8, 0.2), rel=1e-14)
    assert table.rows[0].anchor is None
    assert table.rows[1].anchor == (1.0, 0.0)
    assert [len(row.state) - 1 for row in table.rows] == [1, 1, 2]


@pytest.mark.parametrize(
    ("options", "predicts", "corrects"),
    [
        ({"order": 3}, [1, 2, 3, 3, 2, 1], [0] * 6),
        ({"order": 2, "corrector": 4}, [1, 2, 2, 2, 2, 1], [2, 3, 4, 4, 3, 0]),
        ({"order": 4, "corrector": 2}, [1, 2, 3, 3, 2, 1], [2, 2, 2, 2, 2, 0]),
    ],
)
def test_lower_order_final_counts_the_steps_to_go(
    options: dict[str, int], predicts: list[int], corrects: list[int]
) -> None:
    """Read off where the plain weights stop: steps of a model that answers 1 at one call and 0 elsewhere."""
    plain, lower = (
        BUILT(variable="nu", lower_order_final=flag, **options)(VPSDE(), grids.log_snr(6)) for flag in (False, True)
    )
    assert lower.nfe == plain.nfe == 6
    for i, row in enumerate(lower.rows):
        carried = corrects[i - 1] if i else 0
        assert len(row.state) - 1 == max(predicts[i], carried)
        assert (row.anchor is not None) == (corrects[i] > 0)
    assert lower.rows[0] == plain.rows[0]
    assert lower.rows[-1] != plain.rows[-1]


def test_a_lower_ending_of_order_one_is_the_first_order_step() -> None:
    times = grids.log_snr()(VPSDE(), 7)
    lower = solvers.dpmpp_3m(lower_order_final=True)(VPSDE(), times)
    assert lower.rows[-1] == solvers.dpmpp_2m()(VPSDE(), times[-2:]).rows[0]
    assert lower.rows[-2] == solvers.dpmpp_2m()(VPSDE(), times).rows[-2]


# --- batches


@pytest.mark.parametrize("name", ["unipc", "sa_solver", "deis"])
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    options = {"solver": name, "steps": 6, "seed": 3, "dtype": torch.float64}
    whole = sample(MIXTURE, (7, 2), **options)
    assert isinstance(whole, torch.Tensor)
    chunked = sample(MIXTURE, (7, 2), chunk_size=3, **options)
    alone = sample(MIXTURE, (1, 2), first_sample=4, **options)
    torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(alone, whole[4:5], rtol=1e-12, atol=1e-12)
    assert float((whole[4] - whole[3]).abs().max()) > 1e-3
