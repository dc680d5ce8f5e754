"""Calibration: the model's own grid against the known optimum of Gaussian data, what is chosen, kept and used."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scoresde import (
    EDMSDE,
    VPSDE,
    ConfigError,
    DomainError,
    GaussianMixtureModel,
    GaussianModel,
    GaussianSDE,
    RectifiedFlow,
    SamplingModule,
    ScoreModel,
    ShapeError,
    SubVPSDE,
    TrainingWarning,
    build_table,
    calibrate,
    fit,
    product,
    sample,
    tune,
)
from scoresde.cli import main
from scoresde.nn import MLP
from scoresde.noise import normal, stream
from scoresde.sampling.calibration import Calibration, Rung
from scoresde.sampling.tuning.calibrate import RUNGS, measure_density, place
from scoresde.sampling.tuning.choose import Ranked
from scoresde.sampling.tuning.pairs import Errors, make_pairs
from scoresde.solvers import grids
from scoresde.solvers.candidates import find_candidate
from scoresde.training.batches import Batches
from scoresde.training.sources import RowSource

SDES = [VPSDE(), SubVPSDE(), EDMSDE(), RectifiedFlow()]


def gaussian(sde: GaussianSDE, variance: float) -> GaussianModel:
    return GaussianModel(sde=sde, mean=torch.zeros(3), covariance=torch.full((3,), variance))


def start_of(sde: GaussianSDE, variance: float, count: int = 8) -> Tensor:
    z = normal((count, 3), stream(1), dtype=torch.float64)
    point = sde.at(torch.tensor(sde.t_max, dtype=torch.float64))
    return z * (point.alpha**2 * variance + point.sigma**2).sqrt()


def mixture(std: float = 0.05) -> GaussianMixtureModel:
    means = torch.tensor([[-1.0, 0.3], [0.2, -1.1], [1.1, 0.9]])
    return GaussianMixtureModel(sde=VPSDE(), weights=torch.tensor([0.2, 0.3, 0.5]), means=means, std=std)


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("variance", [0.02, 1.0, 4.0])
def test_the_grid_of_first_order_of_a_gaussian_has_equal_angles(sde: GaussianSDE, variance: float) -> None:
    """DDIM multiplies the state by cos(phi_i - phi_{i+1}), tan phi = sigma/(alpha sqrt(c)): equal angles are best."""
    u, density = measure_density(gaussian(sde, variance), start_of(sde, variance), None, 64, order=1)
    levels, shares = (torch.tensor(each, dtype=torch.float64) for each in place(u, density))
    angles = torch.atan2(levels, (1 - levels) * math.sqrt(variance))
    torch.testing.assert_close(shares, (angles[0] - angles) / angles[0], rtol=0, atol=4e-3)


def test_ddim_on_that_grid_loses_what_equal_angles_lose() -> None:
    """The product of the cosines against DDIM itself; no other grid of the library loses less."""
    sde, variance, steps = VPSDE(), 0.1, 12
    model = gaussian(sde, variance)
    grid = grids.curve(*place(*measure_density(model, start_of(sde, variance), None, 64, order=1)))

    def shrink(choice: grids.Grid) -> float:
        x = start_of(sde, variance)
        out = sample(model, x_init=x, solver="ddim", times=choice(sde, steps), final="sample", dtype=torch.float64)
        return float((out / x)[0, 0])

    def angle(t: Tensor) -> Tensor:
        point = sde.at(t)
        return torch.atan2(point.sigma, point.alpha * math.sqrt(variance))

    times = grid(sde, steps)
    angles = angle(times)
    torch.testing.assert_close(angles.diff(), angles.diff().mean().expand(steps), rtol=0.02, atol=0)
    first, last = (sde.at(times[k]) for k in (0, -1))
    exact = (last.alpha**2 * variance + last.sigma**2).sqrt() / (first.alpha**2 * variance + first.sigma**2).sqrt()
    assert shrink(grid) == pytest.approx(float(exact * angles.diff().cos().prod()), rel=1e-6)
    others = [grids.rectified(), grids.rectified(power=1.5), grids.log_snr(), grids.karras(), grids.diffused()]
    assert shrink(grid) > max(map(shrink, others))


@pytest.mark.parametrize("variance", [0.05, 0.5, 2.0])
def test_the_density_of_third_order_of_a_gaussian(variance: float) -> None:
    """The path is sqrt(c (1 - u)^2 + u^2) times a number: F is its derivative, g the ratio to its end."""
    sde = VPSDE()
    u, density = measure_density(gaussian(sde, variance), start_of(sde, variance), None, 64, order=3)
    at = u.clone().requires_grad_()
    path = (variance * (1 - at) ** 2 + at**2).sqrt()
    bend = path
    for _ in range(4):
        (bend,) = torch.autograd.grad(bend.sum(), at, create_graph=True)
    exact = (bend.abs() / path).detach() ** 0.25
    inside = slice(6, -2)  # wide steps at the ends
    ratio = (density / exact)[inside]
    # Where F''' changes its sign a divided difference is not it.
    near = exact[inside] > 0.5 * float(exact.mean())
    torch.testing.assert_close(ratio[near], ratio[near].median().expand(int(near.sum())), rtol=0.08, atol=0)


def test_a_curve_is_a_grid() -> None:
    grid = grids.curve([1.0, 0.5, 0.25, 0.0], [0.0, 0.2, 0.9, 1.0])
    assert grid == grids.curve((1.0, 0.5, 0.25, 0.0), (0.0, 0.2, 0.9, 1.0))
    for sde in SDES:
        times = grid(sde, 10)
        assert float(times[0]) == sde.t_max
        assert float(times[-1]) == sde.t_min
        assert bool((times.diff() < 0).all())
        u = torch.sigmoid(-0.5 * sde.log_snr(times))
        inside = ((u < 0.49) & (u > 0.26)).sum()
        assert 6 <= int(inside) <= 7
    with pytest.raises(ShapeError, match="as many shares as levels"):
        grids.curve([1.0, 0.0], [0.0, 0.5, 1.0])
    with pytest.raises(ShapeError, match="two at least"):
        grids.curve([1.0], [0.0])
    with pytest.raises(DomainError, match="must fall"):
        grids.curve([0.0, 1.0], [0.0, 1.0])
    with pytest.raises(DomainError, match="shares rise"):
        grids.curve([1.0, 0.0], [1.0, 0.0])


def test_a_calibrated_model_beats_the_usual_tables_on_noises_it_never_saw() -> None:
    model = mixture()
    pairs, _ = make_pairs(model, 200, 5, "unseen", event=None, cond=None, tolerance=1e-6, size=256)
    scale = float(model.sde.at(torch.tensor(model.sde.t_max, dtype=torch.float64)).r)

    def errors(steps: int, **options) -> Errors:
        return Errors.of(pairs.measure(sample(model, x_init=scale * pairs.start, steps=steps, **options)))

    usual, old = ({steps: errors(steps, **o) for steps in (5, 8, 12)} for o in ({}, {"solver": "flow_abm"}))
    found = calibrate(model)
    assert [rung.steps for rung in found.rungs] == list(RUNGS)
    assert 25_000 < found.evaluations < 35_000
    now = {steps: errors(steps) for steps in (5, 8, 12)}
    assert all(now[steps].product < 1.2 * usual[steps].product for steps in now)
    assert all(now[steps].product < 0.5 * old[steps].product for steps in now)
    assert all(usual[steps].product < 0.5 * old[steps].product for steps in (5, 8))


def test_what_is_usual_without_a_calibration() -> None:
    """Up to 2, 5, 10, beyond; and where another ending or times are asked for."""
    model = mixture()
    for steps, wanted in (
        (2, build_table(model.sde, "flow_abm", steps=2)),
        (5, find_candidate("dpmpp_2m", grids.log_snr(width=2.0), 4.0).build(model.sde, 5)),
        (4, find_candidate("dpmpp_2m", grids.log_snr(width=2.0), 4.0).build(model.sde, 4)),
        (9, find_candidate("flow_abm (order 2, first kept)", grids.rectified(power=1.5), math.inf).build(model.sde, 9)),
        (11, build_table(model.sde, "flow_abm", steps=11)),
    ):
        assert Calibration().table(model.sde, steps) == wanted
        x = sample(model, 5, steps=steps, seed=0)
        assert torch.equal(x, sample(model, 5, solver=wanted, final="sample", seed=0))
        assert torch.equal(x, sample(model, 5, solver=f"default:{steps}", seed=0))
    assert torch.equal(sample(model, 5, seed=0), sample(model, 5, solver="flow_abm", seed=0))
    options: list[dict] = [
        {"steps": 5, "final": "sample"},
        {"steps": 5, "times": grids.karras()},
        {"times": torch.tensor([1.0, 0.5, 0.1])},
    ]
    for option in options:
        assert torch.equal(sample(model, 5, seed=0, **option), sample(model, 5, solver="flow_abm", seed=0, **option))
    with pytest.raises(DomainError, match="steps must be at least 1"):
        sample(model, 5, steps=0)


def made(*rungs: Rung) -> Calibration:
    return Calibration(rungs, (1.0, 0.3, 0.0), (0.0, 0.6, 1.0), 1000)


RUNG_4 = Rung(4, "dpmpp_2m", "log_snr (centre = 0, width = 2)", 4.0, 0.1, 0.05)
RUNG_16 = Rung(16, "flow_abm (order 2)", "curve", None, 0.01, 0.005)


def test_the_nearest_rung_serves() -> None:
    found = made(RUNG_4, RUNG_16)
    assert [str(found.candidate(steps))[:8] for steps in (4, 7, 9, 16, 100)] == ["dpmpp_2m"] * 2 + ["flow_abm"] * 3
    # Below the first rung what is usual: at two evaluations the tables of three are far off.
    assert found.table(VPSDE(), 2) == build_table(VPSDE(), "flow_abm", steps=2)
    assert str(found).splitlines()[-1] == "   16      0.01     0.005  flow_abm (order 2), curve"
    assert repr(found) == "<Calibration for 4 to 16 evaluations>"
    # An SDE that ends before the rung does.
    late = VPSDE().starting_at(float(VPSDE().time(torch.tensor(3.0, dtype=torch.float64))))
    assert found.table(late, 5) == find_candidate("dpmpp_2m", grids.log_snr(width=2.0), math.inf).build(late, 5)
    for other in (Rung(4, "dpmpp_9m", None, None, 0.1, 0.1), Rung(4, "dpmpp_2m", "log", None, 0.1, 0.1)):
        with pytest.raises(ConfigError, match="which this scoresde lacks; update it"):
            made(other).candidate(4)


def test_a_calibration_is_kept_with_the_model(tmp_path: Path) -> None:
    data = normal((64, 2), stream(2))
    model = fit(ScoreModel(MLP(2, width=8, depth=1), VPSDE()), data, steps=3, progress=False).model
    assert model.calibration is None
    model.calibration = made(RUNG_4, RUNG_16).to_json()
    again = Calibration.from_json(model.calibration)
    assert (again.rungs, again.levels, again.shares, again.evaluations) == (
        (RUNG_4, RUNG_16),
        (1.0, 0.3, 0.0),
        (0.0, 0.6, 1.0),
        1000,
    )
    model.save(tmp_path / "model")
    read = ScoreModel.load(tmp_path / "model")
    assert json.loads(str(read.calibration)) == json.loads(model.calibration)
    x = sample(read, 6, steps=16, seed=1)
    assert torch.equal(x, sample(model, 6, steps=16, seed=1))
    assert torch.equal(x, sample(model, 6, solver=again, steps=16, seed=1))
    assert not torch.equal(x, sample(model, 6, solver="flow_abm", steps=16, seed=1))
    module = SamplingModule(model, (6, 2), steps=16)
    assert module.table == again.table(model.sde, 16)
    # Carried to another diffusion; not to a model that predicts something else.
    carried = model.with_sde(SubVPSDE())
    assert carried.calibration == model.calibration
    wanted = again.table(SubVPSDE(), 16)
    assert torch.equal(sample(carried, 6, steps=16, seed=1), sample(carried, 6, solver=wanted, final="sample", seed=1))
    assert product([model], [2.0]).calibration is None


def test_training_calibrates_at_its_end_and_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = normal((200, 2), stream(2))
    labels = torch.arange(200) % 3
    net = MLP(2, width=16, depth=1, classes=3)
    result = fit(
        ScoreModel(net, VPSDE()),
        data,
        steps=30,
        cond={"label": labels},
        label_dropout=0.1,
        folder=tmp_path / "run",
        calibrate=True,
        progress=False,
    )
    assert result.model.calibration is not None
    assert ScoreModel.load(tmp_path / "run").calibration is not None
    assert main(["describe", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "calibrated   3 evaluations: " in shown
    assert "\n             30: " in shown
    more = fit(result.model, data, steps=2, cond={"label": labels}, calibrate=False, progress=False)
    assert more.model.calibration is None


@pytest.mark.parametrize(("steps", "calibrated"), [(1300, True), (1200, False)])
def test_it_is_calibrated_where_that_is_cheap(steps: int, calibrated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 000 evaluations are a sixteenth of 3 x 128 x 1250."""
    calls = []
    monkeypatch.setattr(sys.modules["scoresde.training.fit"], "find_calibration", lambda *a, **k: calls.append(k))
    monkeypatch.setattr("scoresde.training.loop.Loop.__call__", lambda self, progress: torch.zeros(0))
    fit(ScoreModel(MLP(2, width=4, depth=1), VPSDE()), normal((64, 2), stream(4)), steps=steps, progress=False)
    assert bool(calls) == calibrated


class Bad(nn.Module):
    """A network whose predictions are no numbers once it does not train."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.scale * x if self.training else x * math.nan


def test_conditions_are_spread_over_the_data() -> None:
    """Labels that come sorted: all classes are drawn."""
    labels = torch.arange(90) // 30
    source = RowSource(normal((90, 2), stream(5)), {"label": labels}, size=8, seed=0)
    batches = Batches(source, dropout={}, seed=0, device=torch.device("cpu"), dtype=torch.float32)
    assert batches.spread_conditions(6)["label"].tolist() == [0, 0, 1, 1, 2, 2]


def test_a_calibration_that_fails_loses_nothing() -> None:
    with pytest.warns(TrainingWarning, match="was not calibrated, so that sample takes the usual tables"):
        found = fit(ScoreModel(Bad(), VPSDE()), normal((64, 2), stream(4)), steps=2, calibrate=True, progress=False)
    assert found.model.calibration is None


def test_parts_of_a_batch_change_nothing() -> None:
    model = mixture(0.3)
    one, two = (calibrate(model, samples=10, chunk_size=size, keep=False) for size in (256, 6))
    assert model.calibration is None
    torch.testing.assert_close(torch.tensor(one.shares), torch.tensor(two.shares), rtol=0, atol=0.02)
    assert one.evaluations == pytest.approx(two.evaluations, rel=0.05)


def test_conditions_are_told_to_both_paths() -> None:
    """Three classes of other widths: under one label, the grid of that Gaussian."""
    sde, variances = VPSDE(), torch.tensor([4.0, 0.1, 1.0], dtype=torch.float64)

    def data(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        point, c = sde.at(t), variances[label]
        return (point.alpha * c / (point.alpha**2 * c + point.sigma**2))[:, None] * x

    model = ScoreModel.from_callable(data, sde, predicts="data")
    start, label = start_of(sde, 0.1), torch.ones(8, dtype=torch.int64)
    told, alone = (
        torch.tensor(place(*measure_density(one, start, cond, 6, order=1))[1])
        for one, cond in ((model, {"label": label}), (gaussian(sde, 0.1), None))
    )
    torch.testing.assert_close(told, alone, rtol=0, atol=1e-3)


def test_what_explodes_is_no_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    worst = Errors(math.inf, math.inf)

    def rank(model, pairs, steps, candidates, **_: object) -> tuple[list[Ranked], int, int]:
        one = candidates[0]
        return [Ranked(one, one.build(model.sde, steps), errors=worst)], 1, 0

    monkeypatch.setattr(sys.modules["scoresde.sampling.tuning.calibrate"], "rank", rank)
    found = calibrate(mixture(), samples=2)
    assert found.rungs == ()
    assert found.table(VPSDE(), 20) == build_table(VPSDE(), "flow_abm", steps=20)


FAULTS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "shape": (
        lambda: calibrate(ScoreModel.from_callable(lambda x, t: -x, VPSDE(), predicts="score")),
        ConfigError,
        "the model knows no moments, so no event; pass event=",
    ),
    "samples": (lambda: calibrate(mixture(), samples=0), DomainError, "samples must be at least 1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_options_are_refused(fault: str) -> None:
    act, kind, message = FAULTS[fault]
    with pytest.raises(kind, match=message):
        act()


def test_tune_begins_from_the_calibrations_table_too() -> None:
    plain, known = (
        GaussianMixtureModel(sde=VPSDE(), weights=torch.ones(2), means=torch.tensor([[-1.0], [1.0]]), std=0.3)
        for _ in range(2)
    )
    calibrate(known, samples=8, event=(1,))
    options = {"samples": 8, "iterations": 1, "starts": 1, "event": (1,), "keep": False}
    assert tune(known, 4, **options).evaluations > tune(plain, 4, **options).evaluations


RUNG = {"steps": 4, "solver": "dpmpp_2m", "grid": None, "end": None, "rms": 0.1, "median": 0.05}
SOUND: dict[str, object] = {"rungs": [RUNG], "levels": [0.9, 0.5], "shares": [0.0, 1.0], "evaluations": 12}
WRONG: dict[str, tuple[object, str]] = {
    "no text": (3, "the JSON object must be str"),
    "no JSON": ("{", "Expecting property name"),
    "no object": ("[]", r"it is \[\], not an object"),
    "brackets": ("[" * 100_000, "it is nested too deeply"),
    "NaN": ('{"rungs": NaN}', "NaN is no number of JSON"),
    "a key twice": ('{"rungs": [], "rungs": []}', "it has the key 'rungs' twice"),
    "nothing": ({}, "rungs must be there"),
    "another field": ({**SOUND, "more": 1}, "unknown field 'more'"),
    "rungs": ({**SOUND, "rungs": {}}, "rungs must be a list"),
    "rung": ({**SOUND, "rungs": [{"steps": 4}]}, r"rungs\[0\].solver must be there"),
    "steps": ({**SOUND, "rungs": [{**RUNG, "steps": 0}]}, r"rungs\[0\].steps must be in \[1, "),
    "rms": ({**SOUND, "rungs": [{**RUNG, "rms": -1.0}]}, r"rungs\[0\].rms must lie in \[0, inf\)"),
    "solver": ({**SOUND, "rungs": [{**RUNG, "solver": 3}]}, r"rungs\[0\].solver must be a text"),
    "order": ({**SOUND, "rungs": [RUNG, RUNG]}, "rungs must be by rising steps"),
    "levels": ({**SOUND, "levels": [0.5, 0.9]}, "levels must be falling"),
    "level": ({**SOUND, "levels": [1.5, 0.9]}, r"levels\[0\] must lie in \[0, 1\]"),
    "one level": ({**SOUND, "levels": [0.5], "shares": [0.5]}, "levels must be none, or at least two"),
    "shares": ({**SOUND, "shares": [0.5, 0.5]}, "shares must be rising"),
    "numbers of them": ({**SOUND, "shares": [0.1, 0.5, 0.9]}, "shares must be 2 numbers"),
    "evaluations": ({**SOUND, "evaluations": True}, "evaluations must be a whole number, got True"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_calibration_is_held_to_its_fields(name: str) -> None:
    given, message = WRONG[name]
    text = json.dumps(given) if isinstance(given, dict) else given
    with pytest.raises(ConfigError, match=f"this is no saved calibration: {message}") as caught:
        Calibration.from_json(text)
    assert str(caught.value).endswith("; make one with Calibration.to_json()")
    assert "\n" not in str(caught.value)
    assert Calibration.from_json(json.dumps(SOUND)).levels == (0.9, 0.5)
