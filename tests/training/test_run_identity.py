"""What a run is stands in its checkpoint: what differs is refused by name, or changed on purpose and kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import DATA, same, tiny, weights
from torch import Tensor

from scoresde import (
    DDPM,
    VPSDE,
    Affine,
    CheckpointError,
    ConfigError,
    DomainError,
    GaussianSDE,
    ScoreModel,
    TrainingWarning,
    fit,
    losses,
)
from scoresde.diffusions.point import Point
from scoresde.models import checkpoint
from scoresde.nn import MLP

LABELS = torch.arange(len(DATA)) % 3
OPTIONS: dict[str, Any] = {"steps": 12, "batch_size": 16, "learning_rate": 1e-3, "progress": False, "save_every": 4}


def conditional(**options: Any) -> ScoreModel:
    return ScoreModel(MLP(2, width=16, depth=1, classes=3), VPSDE(), **options)


class Stop(Exception):
    """Raised in the middle of a run."""


def begin(folder: Path, model: ScoreModel | None = None, data: Tensor = DATA, **options: Any) -> None:
    """Leave a run that was killed after its checkpoint at step 8."""

    def stop(record: dict[str, float]) -> None:
        if record["step"] == 9:
            raise Stop

    given = {**OPTIONS, "cond": {"label": LABELS}, "log_every": 1, **options}
    with pytest.raises(Stop):
        fit(model or conditional(), data, folder=folder, on_log=stop, **given)


def double(point: Point, sde: GaussianSDE) -> Tensor:
    return 2 * torch.ones_like(point.t)


class Own(VPSDE):
    """A diffusion that JSON cannot rebuild."""


DIFFERENT: dict[str, tuple[Callable[[], ScoreModel], dict[str, Any]]] = {
    "network": (lambda: ScoreModel(MLP(2, width=16, depth=2, classes=3), VPSDE()), {}),
    "sde": (lambda: ScoreModel(MLP(2, width=16, depth=1, classes=3), VPSDE(beta_max=10.0)), {}),
    "predicts": (lambda: conditional(predicts="v"), {"weight": "simple"}),
    "condition_on": (lambda: conditional(condition_on="time"), {}),
    "data": (conditional, {"data": DATA + 1}),
    "transform": (conditional, {"transform": Affine(0.5, 2.0)}),
    "cond": (conditional, {"cond": {"label": LABELS.flip(0)}}),
    "cond_dropout": (conditional, {"label_dropout": 0.1}),
    "steps": (conditional, {"steps": 13}),
    "batch_size": (conditional, {"batch_size": 8}),
    "seed": (conditional, {"seed": 1}),
    "learning_rate": (conditional, {"learning_rate": 2e-3}),
    "warmup": (conditional, {"warmup": 3}),
    "decay": (conditional, {"decay": "linear"}),
    "weight": (conditional, {"weight": "likelihood"}),
    "times": (conditional, {"times": "log_snr"}),
    "clip_norm": (conditional, {"clip_norm": None}),
    "weight_decay": (conditional, {"weight_decay": 0.01}),
    "ema_decay": (conditional, {"ema_decay": 0.9}),
    "autocast": (conditional, {"autocast": torch.bfloat16}),
}
MODELS = ("network", "sde", "predicts", "condition_on")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    begin(folder)
    return folder


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_differs_is_refused_by_name_before_anything_changes(run: Path, name: str) -> None:
    make, options = DIFFERENT[name]
    given = {**OPTIONS, "cond": {"label": LABELS}, **options}
    data, model = given.pop("data", DATA), make()
    before = weights(model), {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    what, cure = (
        ("the run of another model", "start a new run") if name in MODELS else ("another run", "pass what it had")
    )
    with pytest.raises(ConfigError, match=rf"run is {what}: {name} .*, now .*; {cure}") as caught:
        fit(model, data, folder=run, resume=True, **given)
    assert caught.value.allowed == (name,)
    assert same(weights(model), before[0])
    assert model.moments is None
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before[1]


@pytest.mark.parametrize("name", MODELS)
def test_another_model_is_another_run_even_on_purpose(run: Path, name: str) -> None:
    model = DIFFERENT[name][0]()
    words = rf"is the run of another model: {name} .*; start a new run, from its weights"
    with pytest.raises(ConfigError, match=words):
        fit(model, DATA, folder=run, resume="change", cond={"label": LABELS}, **OPTIONS)


@pytest.mark.parametrize("name", [name for name in DIFFERENT if name not in MODELS])
def test_what_is_changed_on_purpose_is_kept_with_its_step(tmp_path: Path, name: str) -> None:
    begin(tmp_path / "run")
    given = {**OPTIONS, "cond": {"label": LABELS}, **DIFFERENT[name][1]}
    data = given.pop("data", DATA)
    result = fit(conditional(), data, folder=tmp_path / "run", resume="change", **given)
    assert len(result.losses) == given["steps"] - 8
    kept = checkpoint.read(tmp_path / "run" / "checkpoint").document("run")
    assert [change["step"] for change in kept["changes"]] == [8]
    assert list(kept["changes"][0]["was"]) == [name]
    # The run is the new one from here on.
    fit(conditional(), data, folder=tmp_path / "run", resume=True, **given)
    with pytest.raises(ConfigError, match=f"another run: {name} "):
        fit(conditional(), DATA, folder=tmp_path / "run", resume=True, cond={"label": LABELS}, **OPTIONS)


def test_changes_add_up(tmp_path: Path) -> None:
    begin(tmp_path / "run")
    given = {**OPTIONS, "cond": {"label": LABELS}, "folder": tmp_path / "run", "resume": "change"}
    fit(conditional(), DATA, **{**given, "steps": 14})
    fit(conditional(), DATA, **{**given, "steps": 16, "batch_size": 8})
    kept = checkpoint.read(tmp_path / "run" / "checkpoint").document("run")
    assert [(one["step"], one["was"]) for one in kept["changes"]] == [
        (8, {"steps": 12}),
        (14, {"batch_size": 16, "steps": 14}),
    ]


def test_the_same_run_goes_on_to_the_same_bits(run: Path, tmp_path: Path) -> None:
    begin(tmp_path / "run")
    whole = conditional()
    fit(whole, DATA, cond={"label": LABELS}, **OPTIONS)
    again = ScoreModel(MLP(2, width=16, depth=1, classes=3, seed=5), VPSDE())  # its first weights are none of the run's
    # Arrays, other records and other checkpoints are the same run.
    fit(
        again,
        DATA.numpy(),
        cond={"label": LABELS.numpy()},
        folder=tmp_path / "run",
        resume=True,
        log_every=7,
        **{**OPTIONS, "save_every": 3},
    )
    assert same(weights(again), weights(whole))


def test_a_run_that_made_more_steps_than_asked_for_says_so(tmp_path: Path) -> None:
    begin(tmp_path / "run", decay="constant", warmup=0)
    options = {**OPTIONS, "cond": {"label": LABELS}, "decay": "constant", "warmup": 0}
    with pytest.raises(DomainError, match=r"steps must be at least 8, which .*run has made, got 5"):
        fit(conditional(), DATA, folder=tmp_path / "run", resume=True, **{**options, "steps": 5})
    # Where no rate depends on their number, more of them are the same run.
    assert fit(conditional(), DATA, folder=tmp_path / "run", resume=True, **{**options, "steps": 14}).steps == 14
    begin(tmp_path / "other")
    with pytest.raises(DomainError, match="steps must be at least 8"):
        fit(conditional(), DATA, folder=tmp_path / "other", resume="change", **{**OPTIONS, "steps": 5})


def test_functions_and_diffusions_of_ones_own_are_told_apart(tmp_path: Path) -> None:
    begin(tmp_path / "run", weight=double, times="low_discrepancy")
    options = {**OPTIONS, "cond": {"label": LABELS}, "times": "low_discrepancy"}
    with pytest.raises(ConfigError, match="another run: weight 'your own: double', now 'simple'"):
        fit(conditional(), DATA, folder=tmp_path / "run", resume=True, **options)
    fit(conditional(), DATA, folder=tmp_path / "run", resume=True, weight=double, **options)

    def model(beta: float) -> ScoreModel:
        return ScoreModel(MLP(2, width=16, depth=1, classes=3), Own(beta_max=beta))

    begin(tmp_path / "own", model(20.0))
    with pytest.raises(ConfigError, match="another model: sde "):
        fit(model(10.0), DATA, folder=tmp_path / "own", resume=True, cond={"label": LABELS}, **OPTIONS)
    fit(model(20.0), DATA, folder=tmp_path / "own", resume=True, cond={"label": LABELS}, **OPTIONS)


def test_objectives_are_told_apart(tmp_path: Path) -> None:
    chain, other = DDPM.linear(50), DDPM.linear(60)
    begin(tmp_path / "run", objective=losses.ChainLoss.simple(chain))
    options = {**OPTIONS, "cond": {"label": LABELS}, "folder": tmp_path / "run", "resume": True}
    for objective in (losses.ChainLoss.simple(other), losses.ChainLoss.bound(chain)):
        with pytest.raises(ConfigError, match="another run: objective "):
            fit(conditional(), DATA, objective=objective, **options)
    with pytest.raises(ConfigError, match="another run: "):
        fit(conditional(), DATA, **options)
    fit(conditional(), DATA, objective=losses.ChainLoss.simple(chain), **options)


def test_a_checkpoint_without_an_identity_says_that_it_was_not_compared(tmp_path: Path) -> None:
    begin(tmp_path / "run")
    folder = tmp_path / "run" / "checkpoint"
    contents = checkpoint.read(folder)
    documents = {name: value for name, value in contents.documents.items() if name != "run"}
    checkpoint.write(folder, documents, {part: contents.tensors(part) for part in contents.parts})
    with pytest.warns(TrainingWarning, match=r"written by an earlier scoresde, .*: not compared"):
        fit(conditional(), DATA, cond={"label": LABELS}, folder=tmp_path / "run", resume=True, **OPTIONS)


def test_other_words_for_resume_and_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="resume must be True, False or 'change', got 'yes'"):
        fit(tiny(), DATA, folder=tmp_path / "run", resume="yes", **OPTIONS)
    with pytest.raises(CheckpointError):
        fit(tiny(), DATA, folder=tmp_path / "none", resume="change", **OPTIONS)
