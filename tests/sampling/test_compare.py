"""The comparison of samplers, on a model whose score is exact: what it measures is then the samplers' own error."""

from __future__ import annotations

import functools
import re

import pytest
import torch
from torch import Tensor

from scoresde import (
    DDPM,
    SMLD,
    VESDE,
    VPSDE,
    ConfigError,
    DomainError,
    GaussianMixtureModel,
    GaussianSDE,
    Langevin,
    ScoreModel,
    SubVPSDE,
    sample,
)
from scoresde.metrics import Comparison, Floor, energy_distance, floor, sliced_wasserstein
from scoresde.noise import stream
from scoresde.sampling.compare import DEFAULT_SAMPLERS, compare, format_table
from scoresde.sampling.samplers import parse_sampler
from scoresde.solvers import SOLVERS, ProbabilityFlow

SDE = VPSDE()
DRAWN = 1000


def mixture(sde: GaussianSDE = SDE) -> GaussianMixtureModel:
    means = torch.tensor([[1.2, 0.0], [-0.6, 1.0], [-0.6, -1.0]])
    return GaussianMixtureModel(sde=sde, weights=torch.tensor([0.5, 0.3, 0.2]), means=means, std=torch.full((3,), 0.15))


HEAD = ["sampler", "NFE", "samples", "seconds", "error", "x", "variance", "x"]


@functools.cache
def held_out() -> Tensor:
    return mixture().sample_data(2000, stream(1, "held-out"))


@functools.cache
def floors(size: int) -> dict[str, Floor]:
    pool = mixture().sample_data(4 * size + 4000, stream(1, "floor"))
    return {
        name: floor(measure, pool, size, other=len(held_out()), repeats=16)
        for name, measure in (("sliced_wasserstein", sliced_wasserstein), ("energy_distance", energy_distance))
    }


METRICS = {
    "sliced_wasserstein": lambda x: sliced_wasserstein(x, held_out()),
    "energy_distance": lambda x: energy_distance(x, held_out()),
}


def table(names: list[str], model: ScoreModel) -> list[Comparison]:
    samplers = [parse_sampler(name, model.sde) for name in names]
    return compare(model, samplers, METRICS, floors=floors, samples=DRAWN, progress=False)[0]


def excess(row: Comparison, name: str) -> float:
    """How many standard deviations of the floor a distance lies above it."""
    return (row.distances[name] - row.floors[name]) / row.floor_stds[name]


@pytest.mark.parametrize("sde", [SDE, VESDE(), SubVPSDE()], ids=lambda sde: type(sde).__name__)
def test_good_samplers_reach_the_floor_and_bad_ones_do_not(sde: GaussianSDE) -> None:
    """The floor's spread is that of the modes' shares, half-normal: 8 deviations leave a chance below 1e-6."""
    good, bad = ["probability_flow", "dpmpp_2m:60", "heun:40"], ["ddim:2", "euler_maruyama:4"]
    for row in table(good, mixture(sde)):
        assert all(excess(row, name) < 8 for name in METRICS), row
    for row in table(bad, mixture(sde)):
        assert all(excess(row, name) > 12 for name in METRICS), row


def test_rows_say_what_was_run() -> None:
    model = mixture()
    samplers = [parse_sampler(name, SDE) for name in ("ddpm:30@40", "pc:10", "heun:6", "probability_flow")]
    seen: list[tuple[str, int]] = []
    rows, drawn = compare(
        model,
        samplers,
        METRICS,
        samples=50,
        floors=lambda n: {"energy_distance": Floor(mean=float(n), std=0.5, size=n, other=1, repeats=2)},
        progress=False,
        on_row=lambda row, x: seen.append((row.sampler, len(x))),
    )
    assert [row.sampler for row in rows] == ["ddpm", "pc", "heun", "probability_flow"]
    assert [row.nfe for row in rows[:3]] == [30.0, 20.0, 12.0]
    assert [row.samples for row in rows] == [40, 50, 50, 50] == [len(x) for x in drawn]
    assert seen == [(row.sampler, row.samples) for row in rows]
    assert [row.floors for row in rows] == [{"energy_distance": float(row.samples)} for row in rows]
    assert [row.floor_stds for row in rows] == [{"energy_distance": 0.5}] * 4
    for row, x in zip(rows, drawn, strict=True):
        assert row.distances == {name: metric(x) for name, metric in METRICS.items()}
        assert row.seconds > 0


def test_rows_hold_the_samples_that_the_library_draws() -> None:
    model = mixture()
    names = ["dpmpp_2m:7", "ddpm:20", "pc:5"]
    _, drawn = compare(model, [parse_sampler(n, SDE) for n in names], {}, samples=9, seed=4, progress=False)
    alone = [
        sample(model, (9, 2), solver="dpmpp_2m", steps=7, seed=4),
        sample(model, (9, 2), solver=DDPM.from_sde(SDE, 20).ancestral(), seed=4),
        sample(model, (9, 2), solver="reverse_diffusion", steps=5, kernels=[Langevin()], seed=4),
    ]
    for x, y in zip(drawn, alone, strict=True):
        assert isinstance(y, Tensor)
        assert torch.equal(x, y)


def test_samplers_share_their_noise() -> None:
    """Sample k of every sampler starts at the same point; flows of high accuracy then end at the same point too."""
    model = mixture()
    samplers = [parse_sampler(name, SDE) for name in ("probability_flow", "heun:200", "heun:200@20")]
    _, (flow, fixed, fewer) = compare(model, samplers, {}, samples=60, seed=2, progress=False)
    assert float((flow - fixed).abs().max()) < 5e-3
    assert torch.equal(fixed[:20], fewer)
    _, (again, *_) = compare(model, samplers, {}, samples=60, seed=3, progress=False)
    assert float((flow - again).abs().mean()) > 0.1


def test_conditions_are_made_for_each_size() -> None:
    asked: list[int] = []

    def shifted(x: Tensor, t: Tensor, shift: Tensor) -> Tensor:
        return shift[:, None] - x

    def cond(n: int) -> dict[str, Tensor]:
        asked.append(n)
        return {"shift": torch.arange(n).float()}

    model = ScoreModel.from_callable(shifted, SDE, moments=mixture().moments)
    samplers = [parse_sampler(name, SDE) for name in ("ddim:30@4", "ddim:30")]
    _, (few, many) = compare(model, samplers, {}, samples=6, cond=cond, progress=False)
    assert asked == [4, 6]
    assert torch.equal(few, many[:4])
    assert bool((many.mean(1).diff() > 0.2).all())


def test_an_interrupt_leaves_the_rows_so_far() -> None:
    rows: list[Comparison] = []

    def stop(row: Comparison, x: Tensor) -> None:
        rows.append(row)
        if len(rows) == 2:
            raise KeyboardInterrupt

    samplers = [parse_sampler(name, SDE) for name in ("ddim:2", "ddim:3", "ddim:4")]
    with pytest.raises(KeyboardInterrupt):
        compare(mixture(), samplers, METRICS, samples=5, progress=False, on_row=stop)
    assert [row.nfe for row in rows] == [2.0, 3.0]


def test_a_model_without_moments_has_the_event_that_is_named() -> None:
    samplers = [parse_sampler("ddim:4", SDE)]
    model = ScoreModel.from_callable(lambda x, t: -x, SDE)
    with pytest.raises(ConfigError, match="moments"):
        compare(model, samplers, {}, progress=False)
    x = compare(model, samplers, {}, samples=3, event=(2, 5), seed=4, progress=False)[1][0]
    torch.testing.assert_close(x, sample(model, (3, 2, 5), solver="ddim", steps=4, seed=4))
    with pytest.raises(DomainError, match=r"event\[0\] must be at least 1, got 0"):
        compare(model, samplers, {}, samples=3, event=(0, 5), progress=False)


@pytest.mark.parametrize("samples", [0, -3])
def test_no_samples_are_refused(samples: int) -> None:
    with pytest.raises(DomainError, match="samples must be at least 1"):
        compare(mixture(), [], {}, samples=samples, progress=False)


# ---------------------------------------------------------------------------------------------------------------------
# Names


def test_every_name_is_read() -> None:
    for name in SOLVERS:
        one = parse_sampler(name, SDE)
        assert (one.name, one.steps, one.kernels, one.samples) == (name, None, (), None)
    assert isinstance(parse_sampler("probability_flow", SDE).solver, ProbabilityFlow)
    assert parse_sampler(" heun:12 ", SDE).steps == 12
    assert parse_sampler("heun:12@7", SDE).samples == 7
    assert parse_sampler("heun@7", SDE, samples=3).samples == 7
    assert parse_sampler("heun", SDE, samples=3).samples == 3
    assert parse_sampler("probability_flow@9", SDE).samples == 9
    assert parse_sampler("ddpm:40", SDE).solver == DDPM.from_sde(SDE, 40).ancestral()
    assert parse_sampler("pc", SDE).kernels == (Langevin(),)
    assert parse_sampler("pc", SDE).steps == 100
    assert [parse_sampler(name, SDE).name for name in DEFAULT_SAMPLERS]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("dimm", ConfigError, "unknown sampler 'dimm'; did you mean 'ddim'? choices: ancestral"),
        ("ddmp:10", ConfigError, "did you mean 'ddpm'?"),
        ("", ConfigError, "unknown sampler ''"),
        ("heun:", ConfigError, "after the colon stands a number of steps, e.g. heun:20"),
        ("heun:ten", ConfigError, "after the colon stands a number of steps"),
        ("heun:-1", ConfigError, "after the colon stands a number of steps"),
        ("heun:0", DomainError, "steps of heun must be at least 1, got 0"),
        ("heun:5@", ConfigError, "after the @ stands a number of samples, e.g. heun:5@100"),
        ("heun:5@x", ConfigError, "after the @ stands a number of samples"),
        ("heun:5@0", DomainError, "samples of heun must be at least 1, got 0"),
        ("probability_flow:10", ConfigError, "chooses its own steps; write 'probability_flow'"),
    ],
)
def test_what_is_no_sampler_is_refused_with_a_cure(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        parse_sampler(text, SDE)


@pytest.mark.parametrize("sde", [VESDE(), SubVPSDE()])
def test_the_discrete_chain_needs_a_variance_preserving_sde(sde: GaussianSDE) -> None:
    with pytest.raises(ConfigError, match=f"{type(sde).__name__} does not; use ancestral:50"):
        parse_sampler("ddpm:50", sde)


# ---------------------------------------------------------------------------------------------------------------------
# The table


def row(sampler: str, samples: int, value: float, floor_at: float | None) -> Comparison:
    known = {} if floor_at is None else {"energy_distance": floor_at}
    return Comparison(
        sampler=sampler,
        nfe=48.84,
        seconds=1.234,
        samples=samples,
        amplification=4.6,
        distances={"energy_distance": value, "share": 0.5},
        floors=known,
        floor_stds={name: 0.0123 for name in known},
    )


def test_table_shows_every_number_and_one_floor_for_each_size() -> None:
    text = format_table(
        [row("ddim", 100, 0.123456, 0.25), row("a_rather_long_name", 2000, 3.0, 0.05), row("c", 100, 1, 0.25)]
    )
    lines = text.splitlines()
    assert lines[0].split() == [*HEAD, "energy_distance", "share"]
    assert lines[1].split() == ["ddim", "48.84", "100", "1.23", "4.6", "-", "0.1235", "0.5"]
    assert lines[2].split() == ["a_rather_long_name", "48.84", "2000", "1.23", "4.6", "-", "3", "0.5"]
    assert [line.split() for line in lines[4:]] == [
        ["floor", "100", "0.25", "±", "0.012", "-"],
        ["floor", "2000", "0.05", "±", "0.012", "-"],
    ]
    ends = {
        line.rindex(last) + len(last)
        for line, last in zip(lines, ["share", "0.5", "0.5", "0.5", "-", "-"], strict=True)
    }
    assert len(ends) == 1, "columns are aligned"


def test_table_without_floors_or_rows() -> None:
    assert "floor" not in format_table([row("ddim", 100, 0.1, None)])
    assert format_table([]).split() == HEAD


def test_chains_are_samplers_of_the_sdes_that_have_them() -> None:
    for text, sde, chain in (("ddpm:7", SDE, DDPM), ("smld:7", VESDE(), SMLD)):
        assert parse_sampler(text, sde).solver == chain.from_sde(sde, 7).ancestral()
    with pytest.raises(ConfigError, match="'smld' is a discrete chain that keeps the data's scale, and VPSDE does not"):
        parse_sampler("smld:7", SDE)
