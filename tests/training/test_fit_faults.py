"""Errors come before training."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from small_models import DATA, EXACT, QUIET, same, tiny, weights
from torch import Tensor

from scoresde import Affine, CheckpointError, ConfigError, DomainError, DTypeError, ShapeError
from scoresde.nn import MLP
from scoresde.training import Trainer, fit


def broken() -> Tensor:
    data = DATA.clone()
    data[17, 1] = math.nan
    return data


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"steps": 0}, DomainError, "steps must be at least 1, got 0"),
        ({"steps": 2.0}, DTypeError, "steps must be an integer, got 2.0"),
        ({"batch_size": 0}, DomainError, "batch_size must be at least 1, got 0"),
        ({"batch_size": True}, DTypeError, "batch_size must be an integer"),
        ({"ema_decay": 1.0}, DomainError, r"ema_decay must lie in \[0, 1\), got 1.0"),
        ({"learning_rate": 0.0}, DomainError, r"learning_rate must lie in \(0, inf\), got 0.0"),
        ({"learning_rate": math.nan}, DomainError, "learning_rate must lie in"),
        ({"warmup": 11}, DomainError, r"warmup must be in \[0, 10\], got 11"),
        ({"transform": 3}, DTypeError, "transform must be one of scoresde.transforms, e.g. Affine.*got 3"),
        ({"decay": "cosinus"}, ConfigError, r"unknown decay 'cosinus'; did you mean 'cosine'\?"),
        ({"weight": "simpel"}, ConfigError, r"unknown weight 'simpel'; did you mean 'simple'\?"),
        ({"times": "low_discrepency"}, ConfigError, r"unknown time sampler .*did you mean 'low_discrepancy'\?"),
        ({"clip_norm": 0.0}, DomainError, r"clip_norm must lie in \(0, inf\)"),
        ({"weight_decay": -1.0}, DomainError, r"weight_decay must lie in \[0, inf\)"),
        ({"autocast": torch.float16}, ConfigError, "autocast must be None or torch.bfloat16, got torch.float16"),
        ({"seed": -1}, DomainError, r"seed must lie in \[0, 2\*\*64\), got -1"),
        ({"log_every": 0}, DomainError, "log_every must be at least 1"),
        ({"save_every": 0}, DomainError, "save_every must be at least 1"),
        ({"data": DATA[:0]}, ShapeError, "data is empty: training needs at least one sample"),
        ({"data": DATA.long()}, DTypeError, "data must have a real floating dtype, got torch.int64"),
        ({"data": broken()}, DomainError, r"data has 1 non-finite values of 2000, the first at index \(17, 1\)"),
        ({"data": DATA.tolist()}, DTypeError, "data must be a torch.Tensor, got list"),
        ({"cond": {"label": torch.zeros(3)}}, ShapeError, r"cond\['label'\] must have a first dimension of 1000"),
        ({"cond": torch.zeros(3)}, ConfigError, "cond must be a dict of tensors"),
        ({"label_dropout": 0.1}, ConfigError, r"dropout of 'label' needs cond=\{'label': values\}; cond holds nothing"),
        (
            {"label_dropout": 0.1, "cond": {"class": DATA}},
            ConfigError,
            r"dropout of 'label' needs .*; cond holds class",
        ),
        ({"label_dropout": 1.5}, DomainError, r"label_dropout must lie in \[0, 1\]"),
        ({"transform": Affine((1.0, 2.0, 3.0), 1.0)}, ShapeError, "the transform serves 3 channels"),
        ({"resume": True}, ConfigError, "resume=True needs the folder="),
        ({"model": MLP(2)}, DTypeError, "model must be a ScoreModel, got MLP; wrap a network as"),
        ({"model": EXACT}, ConfigError, "the model's network has no trainable parameters"),
    ],
)
def test_bad_options_change_nothing(
    tmp_path: Path, options: dict[str, object], kind: type[Exception], message: str
) -> None:
    model, folder = tiny(), tmp_path / "run"
    before = weights(model)
    given: dict[str, object] = {"model": model, "data": DATA, "steps": 10, "progress": False}
    given |= {"folder": folder} if "resume" not in options else {}
    given |= options
    with pytest.raises(kind, match=message):
        fit(given.pop("model"), given.pop("data"), **given)
    assert same(weights(model), before)
    assert model.moments is None
    assert not folder.exists()


def test_folders_that_cannot_serve_are_refused(tmp_path: Path) -> None:
    model = tiny()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine", "utf-8")
    with pytest.raises(CheckpointError, match=r"full is not empty; choose a new folder, or resume=True"):
        fit(model, DATA, steps=1, folder=tmp_path / "full", **QUIET)
    with pytest.raises(CheckpointError, match=r"cannot be written: Not a directory; choose another folder"):
        fit(model, DATA, steps=1, folder=tmp_path / "full" / "notes.txt" / "run", **QUIET)
    with pytest.raises(CheckpointError, match=r"notes.txt cannot be written: File exists"):
        fit(model, DATA, steps=1, folder=tmp_path / "full" / "notes.txt", **QUIET)
    with pytest.raises(CheckpointError, match=r"checkpoint is no folder"):
        fit(model, DATA, steps=1, folder=tmp_path / "full", resume=True, **QUIET)
    assert [f.name for f in (tmp_path / "full").iterdir()] == ["notes.txt"]
    assert model.moments is None
    fit(model, DATA, steps=1, folder=tmp_path / "run", **QUIET)
    with pytest.raises(ConfigError, match="run is another run: seed 0, now 1; steps 1, now 2; pass what it had"):
        fit(model, DATA, steps=2, seed=1, folder=tmp_path / "run", resume=True, **QUIET)
    model.save(tmp_path / "other" / "checkpoint")
    with pytest.raises(CheckpointError, match="holds no 'training'"):
        fit(model, DATA, steps=2, folder=tmp_path / "other", resume=True, **QUIET)


def test_a_loss_that_is_infinite_somewhere_is_refused_before_training() -> None:
    with pytest.raises(DomainError, match="the weighted loss is not finite at t = 1e-05"):
        Trainer(tiny(), weight=lambda point, sde: 1e60 * torch.ones_like(point.t) / point.t)
