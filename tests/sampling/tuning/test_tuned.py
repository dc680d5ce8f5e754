"""Tables as numbers: the same table from them, a point mass whatever they are, and fits that are never worse."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scoresde import (
    DDPM,
    EDMSDE,
    VESDE,
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    EnergyModel,
    GaussianMixtureModel,
    GaussianSDE,
    RectifiedFlow,
    ScoreModel,
    SubVPSDE,
    Tableau,
    build_table,
    fit,
    guidance,
    guided,
    map_prediction,
    posterior,
    sample,
    tune,
)
from scoresde.models.prediction import Predictor
from scoresde.nn import MLP
from scoresde.noise import normal, stream
from scoresde.sampling.tuning import learn
from scoresde.sampling.tuning.learn import improve, measure, run
from scoresde.sampling.tuning.pairs import Errors, Pairs, make_pairs
from scoresde.solvers.rows import Knot
from scoresde.solvers.tuned import PARTS, Layout

SDES: dict[str, GaussianSDE] = {
    "vp": VPSDE(),
    "sub_vp": SubVPSDE(),
    "ve": VESDE(),
    "edm": EDMSDE(),
    "rectified": RectifiedFlow(),
}
MEANS = torch.tensor([[-1.0, -1.0], [1.0, 1.2], [1.0, -1.0]], dtype=torch.float64)


def mixture(sde: GaussianSDE | None = None, std: float = 0.2) -> GaussianMixtureModel:
    return GaussianMixtureModel(sde=sde or VPSDE(), weights=torch.tensor([1.0, 2.0, 3.0]), means=MEANS, std=std)


def pairs_of(model: ScoreModel, count: int = 64) -> Pairs:
    return make_pairs(model, count, 3, event=None, cond=None, tolerance=1e-6, size=256)[0]


def shaken(layout: Layout, size: float = 0.3, key: int = 0) -> Tensor:
    return layout.values + size * normal((len(layout.values),), stream(key, "shake"), dtype=torch.float64)


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize(
    "solver", ["ddim", "dpmpp_2m", "deis", "exponential_ab", "flow_ab", "flow_abm", "unipc", "dpm_solver_3", "midpoint"]
)
def test_the_numbers_of_a_published_table_make_that_table(sde: str, solver: str) -> None:
    model = mixture(SDES[sde])
    if sde == "rectified" and solver == "deis":
        with pytest.raises(DomainError):
            build_table(SDES[sde], solver, steps=6)
        return
    table = build_table(SDES[sde], solver, steps=6)
    layout = Layout.of(table, SDES[sde])
    again = layout.table(SDES[sde], layout.values, "again")
    assert again.nfe == table.nfe
    x = table.prior_std * normal((20, 2), stream(0), dtype=torch.float64)
    wanted, got = (sample(model, x_init=x, solver=one, final="sample") for one in (table, again))
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sde", SDES)
def test_whatever_the_numbers_a_point_mass_is_met(sde: str) -> None:
    layout = Layout.of(build_table(SDES[sde], "flow_abm", steps=7), SDES[sde])
    for key in range(3):
        table = layout.table(SDES[sde], shaken(layout, 0.5, key), "shaken")
        for mean in (-3.0, 0.7):
            assert table.law(mean, 0.0) == (pytest.approx(mean, abs=1e-9), pytest.approx(0.0, abs=1e-12))
    assert len(table.rows) == 7
    assert table.end.sigma == 0


def test_it_tends_to_its_start() -> None:
    """The law for Gaussian data, and samples, by first order of the change."""
    layout = Layout.of(build_table(VPSDE(), "dpmpp_2m", steps=6), VPSDE())
    model, pairs = mixture(), pairs_of(mixture())
    tables = [layout.table(VPSDE(), layout.values + e * (shaken(layout) - layout.values), "t") for e in (0, 1e-4, 2e-4)]
    laws = [torch.tensor(table.law(0.3, 0.5)) for table in tables]
    torch.testing.assert_close(laws[2] - laws[0], 2 * (laws[1] - laws[0]), rtol=2e-2, atol=1e-9)
    out = [pairs.run(model, table, 64).double() for table in tables]
    assert float((out[1] - out[0]).abs().max()) < 1e-2


def test_one_table_serves_every_sde() -> None:
    layout = Layout.of(build_table(VPSDE(), "flow_abm", steps=6), VPSDE())
    values, z = shaken(layout, 0.1), normal((30, 2), stream(1), dtype=torch.float64)
    out = []
    for sde in (VPSDE(), EDMSDE(sigma_max=math.exp(-0.5 * layout.start))):  # from the same log-SNR
        table = layout.table(sde, values, "t")
        x = float(table.start.point().r) * z
        out.append(sample(mixture(sde), x_init=x, solver=table, final="sample"))
    torch.testing.assert_close(out[0], out[1], rtol=1e-7, atol=1e-7)


def test_the_differentiable_run_is_the_table() -> None:
    model, single = mixture(), pairs_of(mixture())
    pairs = Pairs(single.start.double(), single.end.double(), None)
    layout = Layout.of(build_table(VPSDE(), "flow_abm", steps=6), VPSDE())
    for key in range(3):
        values = shaken(layout, 0.2, key)
        out = run(model, layout, values.expand(len(pairs), -1), pairs)
        wanted = pairs.run(model, layout.table(VPSDE(), values, "t"), 64)
        torch.testing.assert_close(out, wanted, rtol=1e-8, atol=1e-8)


def test_its_jacobian_is_right() -> None:
    model, pairs = mixture(), pairs_of(mixture()).first(4)
    pairs = Pairs(pairs.start.double(), pairs.end.double(), None)
    layout = Layout.of(build_table(VPSDE(), "dpmpp_2m", steps=4), VPSDE())
    values = shaken(layout, 0.1)

    def call(v: Tensor) -> Tensor:
        return run(model, layout, v.expand(4, -1), pairs)

    jacobian = torch.autograd.functional.jacobian(call, values)
    for k in range(len(values)):
        step = torch.zeros_like(values)
        step[k] = 1e-5
        slope = (call(values + step) - call(values - step)) / 2e-5
        torch.testing.assert_close(jacobian[..., k], slope, rtol=1e-5, atol=1e-6)


def test_memory_does_not_grow_with_the_network() -> None:
    """What the graph holds between the calls is of the states' size: activations are computed again."""
    held: list[int] = []

    def measure_graph(width: int) -> int:
        held.clear()
        model = ScoreModel(MLP(2, width=width, depth=2), VPSDE(), moments=mixture().moments)
        layout = Layout.of(build_table(VPSDE(), "dpmpp_2m", steps=6), VPSDE())
        pairs = pairs_of(mixture(), 16)
        values = layout.values.expand(16, -1).clone().requires_grad_(True)
        inputs = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in inputs:
                held.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run(model, layout, values, pairs)
        return sum(held)

    assert measure_graph(512) < 1.1 * measure_graph(8)


@pytest.mark.parametrize("sde", SDES)
def test_pairs_lead_where_the_flow_does(sde: str) -> None:
    """Under every diffusion, whatever the scale of its start."""
    model = mixture(SDES[sde])
    pairs = pairs_of(model)
    fine = build_table(SDES[sde], "flow_abm", steps=200)
    errors = Errors.of(pairs.measure(pairs.run(model, fine, 50)))
    assert errors.median < 1e-3
    assert abs(float(pairs.start.std()) - 1) < 0.2


def test_errors_are_below_where_both_are() -> None:
    assert Errors(1.0, 1.0).below(Errors(1.0, 2.0))
    assert not Errors(1.0, 2.0).below(Errors(2.0, 1.0))
    assert not Errors(2.0, 1.0).below(Errors(1.0, 2.0))
    assert Errors(math.nan, 1.0).product == math.inf


@pytest.mark.parametrize("size", [64, 10])
def test_a_few_wild_samples_do_not_bend_the_fit(size: int) -> None:
    """Three of 64 references are wrong by 30; the others are met as if they were not there."""
    model, pairs = mixture(), pairs_of(mixture())
    wild = pairs.end.clone()
    wild[[20, 40, 63]] += 30.0
    layout, seen = Layout.of(build_table(VPSDE(), "dpmpp_2m", steps=5), VPSDE()), []
    for end in (pairs.end, wild):
        found: list[Tensor] = []
        told = Pairs(pairs.start, end, None)
        improve(model, layout, layout.values, told, iterations=8, parts=PARTS, size=size, seed=0, seen=found.append)
        seen.append(Errors.of(measure(model, layout, found[-1], pairs, 64)))
    before = Errors.of(measure(model, layout, layout.values, pairs, 64))
    assert seen[1].median < 2 * seen[0].median
    assert seen[1].median < 0.2 * before.median


def test_the_fit_does_not_depend_on_the_chunks() -> None:
    model, single = mixture(), pairs_of(mixture(), 30)
    pairs = Pairs(single.start.double(), single.end.double(), None)
    layout, seen = Layout.of(build_table(VPSDE(), "dpmpp_2m", steps=4), VPSDE()), []
    for size in (30, 7):
        found: list[Tensor] = []
        improve(model, layout, layout.values, pairs, iterations=3, parts=PARTS, size=size, seed=0, seen=found.append)
        seen.append(found)
    assert len(seen[0]) == len(seen[1]) > 1
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-6, atol=1e-8)


def test_tune_moves_only_what_it_is_told() -> None:
    found = tune(mixture(), 5, start="dpmpp_2m", parts=("weights",), samples=64, iterations=4)
    assert found.values is not None
    moved = (found.values != found.layout.values).nonzero()[:, 0]
    assert set(moved.tolist()) <= set(found.layout.places(("weights",)).tolist())
    assert len(moved) > 0
    fixed = build_table(VPSDE(), "dpmpp_2m", steps=5)
    assert found.table.times == pytest.approx(fixed.times, rel=1e-9)


def test_a_call_off_its_knot_cannot_be_tuned() -> None:
    table = build_table(VPSDE(), "ddim", steps=4)
    assert Layout.of(table, VPSDE()).count == 4
    other = Knot.of(VPSDE().at(torch.tensor([0.9 * table.rows[2].at.t], dtype=torch.float64)))[0]
    moved = (*table.rows[:2], replace(table.rows[2], at=other), table.rows[3])
    with pytest.raises(ConfigError, match="its calls are not at ever lower noise levels of its own path"):
        Layout.of(replace(table, rows=moved), VPSDE())


@pytest.mark.parametrize("part", PARTS)
def test_each_part_alone_lowers_the_error(part: str) -> None:
    model, pairs = mixture(), pairs_of(mixture(), 128)
    layout = Layout.of(build_table(VPSDE(), "dpmpp_2m", steps=5), VPSDE())
    seen: list[Tensor] = []
    used = improve(model, layout, layout.values, pairs, iterations=5, parts=(part,), size=50, seed=0, seen=seen.append)
    before, after = (Errors.of(measure(model, layout, v, pairs, 50)) for v in (layout.values, seen[-1]))
    assert after.median < 0.9 * before.median
    assert used >= 5 * 128 * 5
    moved = (seen[-1] != layout.values).nonzero()[:, 0]
    assert set(moved.tolist()) <= set(layout.places((part,)).tolist())


def test_tune_is_much_better_on_noise_that_it_has_not_seen() -> None:
    model = mixture()
    found = tune(model, 6, start="flow_abm", seed=1)
    unseen = make_pairs(model, 500, 99, event=None, cond=None, tolerance=1e-6, size=500)[0]
    before, after = (
        Errors.of(unseen.measure(unseen.run(model, table, 500)))
        for table in (build_table(VPSDE(), "flow_abm", steps=6), found.table)
    )
    assert after.median < 0.2 * before.median
    assert after.rms < before.rms
    assert found.after.below(found.before)
    assert found.table.nfe == 6
    assert model.tables[6] == found.table.to_json()
    again = tune(mixture(), 6, start="flow_abm", seed=1)
    assert again.table == found.table
    x = sample(model, 5, solver="tuned", steps=6, seed=0)
    for other in (found, found.table, "tuned:6", "tuned"):
        assert torch.equal(sample(model, 5, solver=other, seed=0), x)
    torch.testing.assert_close(sample(model.with_sde(RectifiedFlow()), 5, solver=found, seed=0), x, rtol=0, atol=0.1)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.02, 0.3]), st.integers(3, 7), st.sampled_from(sorted(SDES)))
def test_never_worse_than_its_start(seed: int, std: float, steps: int, sde: str) -> None:
    means = 1.5 * normal((4, 2), stream(seed, "means"), dtype=torch.float64)
    model = GaussianMixtureModel(sde=SDES[sde], weights=torch.ones(4), means=means, std=std)
    start = build_table(SDES[sde], "flow_abm", steps=steps)
    found = tune(model, steps, start=start, samples=32, held_out=32, iterations=3, seed=seed, keep=False)
    assert found.after.below(found.before)
    assert not model.tables
    held = make_pairs(model, 32, seed, "held out", event=None, cond=None, tolerance=1e-4, size=256)[0]
    errors = Errors.of(held.measure(held.run(model, found.table, 256)))
    assert errors.rms == pytest.approx(found.after.rms, rel=0.05, abs=1e-5)


def test_under_guidance_and_conditions() -> None:
    model = fit(
        ScoreModel(MLP(2, classes=3, width=16, depth=1), VPSDE()),
        MEANS.float().repeat(20, 1),
        cond={"label": torch.arange(3).repeat(20)},
        cond_dropout={"label": 0.2},
        steps=30,
        batch_size=32,
        progress=False,
    ).model
    told = lambda n: {"label": torch.arange(n) % 3}  # noqa: E731
    bent = guided(model, 2.0)
    found = tune(bent, 5, start="dpmpp_2m", samples=32, held_out=32, iterations=3, cond=told)
    assert found.after.below(found.before)
    assert bent.tables
    assert not model.tables
    x = sample(bent, 6, solver="tuned", cond=told(6), seed=0)
    assert bool(torch.isfinite(x).all())


def test_tables_travel_with_the_checkpoint(tmp_path) -> None:
    model = ScoreModel(MLP(2, width=16, depth=1), VPSDE(), moments=mixture().moments)
    found = tune(model, 4, start="dpmpp_2m", samples=16, held_out=16, iterations=2)
    model.save(tmp_path / "model")
    again = ScoreModel.load(tmp_path / "model")
    assert {n: Tableau.from_json(t) for n, t in again.tables.items()} == {4: found.table}
    assert torch.equal(sample(again, 3, solver="tuned", seed=0), sample(model, 3, solver="tuned", seed=0))
    # Training changes the network that they were made for.
    fit(again, torch.randn(8, 2, generator=stream(0)), steps=1, batch_size=4, progress=False)
    assert not again.tables


class Valley(torch.nn.Module):
    """An energy, whose gradient is the score."""

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        return 0.5 * x.square().sum(1) + 0.1 * torch.cos(3 * x).sum(1)


OTHERS: Mapping[str, Callable[[], Predictor]] = {
    "energy": lambda: EnergyModel(Valley(), VPSDE(), moments=mixture().moments),
    "posterior": lambda: posterior(mixture(), torch.tensor([True, False]), torch.tensor([0.5]), noise_std=0.1),
    "mapped": lambda: map_prediction(mixture(), guidance.Clamp(-2, 2)),
    "chain": lambda: mixture(DDPM.linear(1000).sde()),
    "velocity": lambda: ScoreModel(
        MLP(2, width=8, depth=1), RectifiedFlow(), predicts="velocity", moments=mixture().moments
    ),
    "bf16": lambda: ScoreModel(MLP(2, width=8, depth=1).bfloat16(), VPSDE(), moments=mixture().moments),
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_model_is_tuned(name: str) -> None:
    model = OTHERS[name]()
    found = tune(model, 4, samples=16, iterations=2)
    assert found.after.below(found.before)
    assert bool(torch.isfinite(sample(model, 3, solver="tuned", seed=0)).all())
    assert all(p.grad is None for p in model.parameters())


def test_one_call_has_nothing_to_fit() -> None:
    found = tune(mixture(), 1, samples=16, iterations=2)
    assert found.values is None
    assert found.after == found.before
    assert found.table.nfe == 1


def test_it_works_where_gradients_are_off() -> None:
    model = mixture()
    with torch.inference_mode():
        off = tune(model, 4, start="ddim", samples=16, iterations=2)
    assert off.table == tune(mixture(), 4, start="ddim", samples=16, iterations=2).table
    assert off.values is not None


def untunable() -> Tableau:
    return build_table(VPSDE(), "heun", steps=3)


FAULTS: Mapping[str, tuple[Callable[[], object], type[Exception], str]] = {
    "model": (lambda: tune(torch.neg, 4), DTypeError, "model must be a ScoreModel"),
    "steps": (lambda: tune(mixture(), 0), DomainError, "steps must"),
    "samples": (lambda: tune(mixture(), 4, samples=0), DomainError, "samples must"),
    "iterations": (lambda: tune(mixture(), 4, iterations=0), DomainError, "iterations must"),
    "tolerance": (lambda: tune(mixture(), 4, tolerance=-1.0), DomainError, "tolerance must"),
    "parts": (lambda: tune(mixture(), 4, parts=("grid",)), ConfigError, "unknown part 'grid'"),
    "event": (
        lambda: tune(ScoreModel.from_callable(lambda x, t: -x, VPSDE()), 4, start="ddim"),
        ConfigError,
        "pass event=, the shape of one sample",
    ),
    "stages": (lambda: tune(mixture(), 4, start=untunable()), ConfigError, "cannot be tuned: its calls are not at"),
    "noise": (lambda: tune(mixture(), 4, start="ancestral"), ConfigError, "cannot be tuned: it must be deterministic"),
    "none": (lambda: sample(mixture(), 4, solver="tuned"), ConfigError, "the model has no tuned tables; make one with"),
    "which": (
        lambda: sample(_with_two(), 4, solver="tuned"),
        ConfigError,
        "of 4, 5 evaluations; name one",
    ),
    "other": (lambda: sample(_with_two(), 4, solver="tuned:9"), ConfigError, "no tuned table of 9 .* has 4, 5;"),
    "result": (
        lambda: sample(mixture(), 4, solver=tune(mixture(), 3, start="ddim", iterations=1), steps=7),
        ConfigError,
        "the tuned table has 3 evaluations",
    ),
}


def _with_two() -> GaussianMixtureModel:
    model = mixture()
    model.tables = {n: build_table(VPSDE(), "ddim", steps=n).to_json() for n in (4, 5)}
    return model


@pytest.mark.parametrize("name", FAULTS)
def test_bad_input_gets_one_line(name: str) -> None:
    call, kind, words = FAULTS[name]
    with pytest.raises(kind, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_proposal_out_of_range_is_no_step() -> None:
    """A call where the network's readout has no value ends a trial, not the fit."""
    model, pairs = ScoreModel(Bent(), VPSDE(), predicts="noise", moments=mixture().moments), pairs_of(mixture(), 16)
    layout = Layout.of(build_table(VPSDE(), "dpmpp_2m", steps=4), VPSDE())
    refused: list[Tensor] = []

    def run_or_refuse(*args: object) -> Tensor:
        refused.append(args[2])
        raise DomainError("no finite value")

    seen: list[Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        first = learn.measure

        def measure_once(*args: object) -> Tensor:
            return first(*args) if not refused and args[2] is layout.values else run_or_refuse(*args)

        patch.setattr(learn, "measure", measure_once)
        improve(model, layout, layout.values, pairs, iterations=2, parts=PARTS, size=16, seed=0, seen=seen.append)
    assert len(refused) == learn.TRIALS
    assert not seen


class Bent(torch.nn.Module):
    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        return torch.tanh(x + 0.01 * log_snr[:, None])
