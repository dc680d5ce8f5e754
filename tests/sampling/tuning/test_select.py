"""``select``: what is found against what running everything finds, and bad input."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch

from scoresde import (
    VESDE,
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    GaussianMixtureModel,
    RectifiedFlow,
    ScoreModel,
    sample,
    select,
)
from scoresde.sampling.tuning import choose
from scoresde.sampling.tuning.choose import rank
from scoresde.sampling.tuning.pairs import Errors, make_pairs
from scoresde.solvers import by_name, grids
from scoresde.solvers.candidates import Candidate, list_candidates

MEANS = torch.tensor([[-1.0, -1.0], [1.0, 1.2], [1.0, -1.0]], dtype=torch.float64)


def mixture(sde=None) -> GaussianMixtureModel:
    return GaussianMixtureModel(sde=sde or VPSDE(), weights=torch.ones(3), means=MEANS, std=0.1)


def test_it_finds_what_running_everything_finds() -> None:
    """With the same start states, of a list that is short enough for no candidate to be dropped."""
    tried = [
        Candidate(name, by_name(name), grid, end)
        for name in ("ddim", "dpmpp_2m", "flow_abm")
        for grid in (None, grids.karras())
        for end in (float("inf"), 7.0)
    ]
    model = mixture()
    pairs = make_pairs(model, 40, 1, event=None, cond=None, tolerance=1e-6, size=64)[0]
    for by in ("both", "rms", "median"):
        rows, count, used = rank(model, pairs, 7, tried, by=by, noise=False, size=64)
        every = {one: Errors.of(pairs.measure(pairs.run(model, one.build(VPSDE(), 7), 64))) for one in tried}
        key = {"both": lambda e: e.product, "rms": lambda e: e.rms, "median": lambda e: e.median}[by]
        assert rows[0].candidate == min(every, key=lambda one: key(every[one]))
        assert [key(row.errors) for row in rows] == sorted(key(row.errors) for row in rows)
        assert count == 12
        assert used == 12 * 7 * (6 + 20 + 40)
        assert all(row.table.nfe == 7 for row in rows)


@pytest.mark.parametrize("end", [12.0, 6.0])
def test_a_candidate_ends_where_it_says(end: float) -> None:
    for name, grid in (("dpmpp_2m", grids.log_snr()), ("deis", None), ("unipc", grids.rectified())):
        table = Candidate(name, by_name(name), grid, end).build(VPSDE(), 8)
        assert table.rows[-1].at.log_snr == pytest.approx(end, abs=1e-6)
        assert table.nfe == 8
    own = Candidate("dpmpp_2m", by_name("dpmpp_2m"), None, float("inf")).build(VPSDE(), 8)
    assert own.rows[-1].at.log_snr == pytest.approx(float(VPSDE().log_snr(1e-5)), abs=1e-6)
    with pytest.raises(ConfigError, match="ends before log_snr = 20"):
        Candidate("dpmpp_2m", by_name("dpmpp_2m"), None, 20.0).build(VPSDE(), 8)


class Planted(Candidate):
    """The flow itself, by many more steps than it says."""

    def build(self, sde, steps):
        return Candidate("fine", by_name("flow_abm"), None, float("inf")).build(sde, 60)


def test_a_planted_best_is_found_among_all() -> None:
    model, planted = mixture(), Planted("planted", by_name("ddim"), None, float("inf"))
    usual = list_candidates(noise=False)
    pairs = make_pairs(model, 40, 1, event=None, cond=None, tolerance=1e-6, size=64)[0]
    rows, *_ = rank(model, pairs, 6, (*usual[:200], planted, *usual[200:]), by="both", noise=False, size=64)
    assert rows[0].candidate is planted
    assert len(rows) == choose.STAGES[-1][1]


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), RectifiedFlow()], ids=lambda s: type(s).__name__)
def test_a_selection_is_a_solver(sde) -> None:
    model = mixture(sde)
    found = select(model, 6, samples=24)
    assert found.table.nfe == 6
    assert found.evaluations >= 24 * found.tried // 3
    x = sample(model, 5, solver=found, seed=0)
    assert torch.equal(sample(model, 5, solver=found.table, seed=0), x)
    assert torch.equal(sample(model, 5, solver=found, steps=6, seed=0), x)
    lines = str(found).splitlines()
    assert len(lines) == 2 + len(found.rows)
    assert str(found.rows[0].candidate) in lines[2]
    assert select(model, 6, samples=24).rows[0].candidate == found.rows[0].candidate
    pairs = make_pairs(model, 300, 5, event=None, cond=None, tolerance=1e-6, size=300)[0]
    mine, usual = (
        Errors.of(pairs.measure(pairs.run(model, table, 300)))
        for table in (found.table, Candidate("flow_abm", by_name("flow_abm"), None, float("inf")).build(sde, 6))
    )
    assert mine.product < usual.product


def test_solvers_that_draw_are_ranked_by_their_law() -> None:
    model = mixture()
    found = select(model, 10, noise=True, samples=200)
    assert found.table.stochastic
    assert found.rows[0].errors is None
    distances = [row.sw2 for row in found.rows]
    assert distances == sorted(distances)
    assert "sliced W2" in str(found)
    assert sample(model, 3, solver=found, seed=0).shape == (3, 2)


FAULTS: Mapping[str, tuple[Callable[[], object], type[Exception], str]] = {
    "model": (lambda: select("model", 4), DTypeError, "model must be a ScoreModel"),
    "steps": (lambda: select(mixture(), 0), DomainError, "steps must"),
    "by": (lambda: select(mixture(), 4, by="mean"), ConfigError, "unknown by 'mean'"),
    "samples": (lambda: select(mixture(), 4, samples=0), DomainError, "samples must"),
    "event": (
        lambda: select(ScoreModel.from_callable(lambda x, t: -x, VPSDE()), 4),
        ConfigError,
        "pass event=, the shape of one sample",
    ),
    "other steps": (
        lambda: sample(mixture(), 4, solver=select(mixture(), 4, samples=8), steps=9),
        ConfigError,
        "the selected table has 4 evaluations",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_bad_input_gets_one_line(name: str) -> None:
    call, kind, words = FAULTS[name]
    with pytest.raises(kind, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
