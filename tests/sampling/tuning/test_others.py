"""What others fit tables with: dynamic programming against all ways, Adam, the soft objective; what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scoresde import (
    EDMSDE,
    VPSDE,
    ConfigError,
    DomainError,
    GaussianMixtureModel,
    RectifiedFlow,
    SubVPSDE,
    build_table,
    solvers,
    tune,
)
from scoresde.noise import stream, uniform
from scoresde.sampling.tuning.learn import run
from scoresde.sampling.tuning.others import choose_path, descend, find_levels, place_at, pull_back
from scoresde.sampling.tuning.pairs import Errors, make_pairs
from scoresde.solvers.tuned import PARTS, Layout


def mixture() -> GaussianMixtureModel:
    means = torch.tensor([[-1.0, 0.3], [0.2, -1.1], [1.1, 0.9]])
    return GaussianMixtureModel(sde=VPSDE(), weights=torch.tensor([0.2, 0.3, 0.5]), means=means, std=0.1)


@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_the_cheapest_way_is_found(steps: int) -> None:
    """Against all ways through eight places."""
    costs = uniform((8, 8), stream(steps)).double()
    costs = torch.where(torch.ones(8, 8).triu(1).bool(), costs, torch.inf)
    ways = [(0, *middle, 7) for middle in itertools.combinations(range(1, 7), steps - 1)]
    best = min(ways, key=lambda way: sum(float(costs[i, j]) for i, j in itertools.pairwise(way)))
    assert tuple(choose_path(costs, steps)) == best


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), EDMSDE(), RectifiedFlow()], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("name", ["ddim", "flow_abm", "dpmpp_2m", "unipc"])
def test_a_solver_is_placed_at_the_levels(sde, name: str) -> None:
    top = float(sde.log_snr(torch.tensor(sde.t_max, dtype=torch.float64)))
    levels = torch.tensor([max(top, -9.0), -3.0, 0.5, 4.0], dtype=torch.float64)
    table = build_table(sde, name, steps=4, times=place_at(levels))
    asked = torch.tensor([row.at.point().log_snr for row in table.rows])
    assert table.nfe == 4
    torch.testing.assert_close(asked[1:].double(), levels[1:], rtol=1e-6, atol=1e-6)


def test_dynamic_programming_places_ddims_steps_better() -> None:
    model = mixture()
    found = tune(model, 6, start="ddim", method="dynamic", keep=False)
    assert found.after.rms < 0.8 * found.before.rms
    assert found.after.median < 0.5 * found.before.median
    own = model.in_its_own_coordinates()
    pairs, _ = make_pairs(own, 64, 3, "unseen", event=None, cond=None, tolerance=1e-5, size=256)
    levels, used = find_levels(own, pairs, 6)
    assert used == 80 * 64
    assert len(levels) == 6
    assert bool((levels.diff() > 0).all())
    usual, moved = (
        Errors.of(pairs.measure(pairs.run(own, table, 64)))
        for table in (
            build_table(own.sde, "ddim", steps=6),
            build_table(own.sde, "ddim", steps=6, times=place_at(levels)),
        )
    )
    assert moved.product < 0.5 * usual.product


@pytest.mark.parametrize("radius", [0.0, 0.05])
def test_adam_descends(radius: float) -> None:
    start = solvers.dpmpp_2m()
    found = tune(mixture(), 5, start=start, method="adam", iterations=40, radius=radius, samples=64, keep=False)
    assert found.after.product < 0.5 * found.before.product


def test_a_soft_objective_moves_the_start_states_within_the_radius() -> None:
    """A table that cannot move, one value alone: the same descent fits the start states, at most so far."""
    model = mixture()
    pairs, _ = make_pairs(model, 16, 3, "soft", event=None, cond=None, tolerance=1e-5, size=256)
    layout = Layout.of(build_table(model.sde, "ddim", steps=5), model.sde)
    seen: list[Tensor] = []
    used = descend(model, layout, layout.values, pairs, iterations=3, parts=PARTS, size=5, seen=seen.append, radius=0.1)
    hard: list[Tensor] = []
    descend(model, layout, layout.values, pairs, iterations=3, parts=PARTS, size=16, seen=hard.append)
    whole: list[Tensor] = []
    descend(model, layout, layout.values, pairs, iterations=3, parts=PARTS, size=16, seen=whole.append, radius=0.1)
    assert used == 3 * 3 * 5 * 16
    assert len(seen) == 3
    assert not torch.allclose(seen[-1], hard[-1])
    # Parts of a batch share the scale of their own errors, so nearly the same.
    torch.testing.assert_close(seen[-1], whole[-1], rtol=0.1, atol=0.1)
    out = run(model, layout, hard[-1].expand(16, -1), pairs)
    assert bool(torch.isfinite(out).all())


def test_moves_are_pulled_back_to_the_radius() -> None:
    moves = torch.tensor([[3.0, 4.0], [0.03, 0.04], [0.0, 0.0]])
    back = pull_back(moves, 0.5)
    torch.testing.assert_close(back[0], torch.tensor([0.3, 0.4]) * 2**0.5)
    torch.testing.assert_close(back[1:], moves[1:])


FAULTS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "method": (lambda: tune(mixture(), 5, method="adm"), ConfigError, "unknown method 'adm'; did you mean 'adam'"),
    "radius": (lambda: tune(mixture(), 5, radius=0.1), ConfigError, "the soft objective, which method='adam' descends"),
    "negative": (lambda: tune(mixture(), 5, method="adam", radius=-0.1), DomainError, "radius must lie in"),
    "table": (
        lambda: tune(mixture(), 5, method="dynamic", start=build_table(VPSDE(), "ddim", steps=5)),
        ConfigError,
        "method='dynamic' places the steps of a solver; start=",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_options_are_refused(fault: str) -> None:
    act, kind, message = FAULTS[fault]
    with pytest.raises(kind, match=message):
        act()
