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
from scoresde.transforms import RandomFlip


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
        ({"autocast": torch.float64}, ConfigError, "autocast must be None, torch.bfloat16 or torch.float16, got"),
        ({"accumulate": 0}, DomainError, "accumulate must be at least 1, got 0"),
        ({"keep": 0}, DomainError, "keep must be at least 1, got 0"),
        ({"patience": 3}, ConfigError, "patience= counts held-out losses; pass held_out= data"),
        ({"patience": 0, "held_out": DATA}, DomainError, "patience must be at least 1"),
        ({"held_out": DATA[:0]}, ShapeError, "held_out is empty"),
        ({"held_out": DATA, "held_out_cond": {"label": torch.zeros(3)}}, ShapeError, "must have a first dimension of"),
        ({"sigma_rel": 0.3}, DomainError, "sigma_rel must lie in"),
        ({"sigma_rel": ()}, ConfigError, "sigma_rel must be 1 to 8 widths, got 0"),
        ({"workers": 1}, ConfigError, "workers= are for data sets and loaders; leave them out for arrays"),
        ({"unpack": lambda item: item}, ConfigError, "unpack= and workers= are for data sets and loaders"),
        ({"unpack": 3}, DTypeError, "unpack must be a function or None, got 3"),
        ({"on_log": 3}, DTypeError, "on_log must be a function or None, got 3"),
        ({"watch": 3}, DTypeError, "watch must be a function or None, got 3"),
        ({"augment": 3}, DTypeError, "augment must be a function or None, got 3"),
        ({"moments": 3}, DTypeError, "moments must be scoresde.Moments, as Moments.of.data. makes, got 3"),
        ({"transform": RandomFlip()}, DTypeError, "is not inverted: .*pass it to fit as augment="),
        ({"optimizer": 3}, DTypeError, "optimizer must be a torch.optim.Optimizer, or a function .*got 3"),
        ({"optimizer": lambda p: None}, DTypeError, "optimizer must be a torch.optim.Optimizer"),
        ({"optimizer": torch.optim.LBFGS}, ConfigError, "LBFGS calls the loss several times a step"),
        ({"optimizer": torch.optim.SGD, "weight_decay": 0.1}, ConfigError, "weight_decay= is that of the usual"),
        (
            {"optimizer": torch.optim.SGD(MLP(2, width=8, depth=1).parameters(), lr=0.1)},
            ConfigError,
            "the optimizer holds .* parameters that are not the network's",
        ),
        ({"learning_rate": lambda k: 0.1, "warmup": 3}, ConfigError, "a function has its own, leave them out"),
        ({"uncertainty": True, "objective": lambda m, x, g, c: x.sum(1)}, ConfigError, "uncertainty= weighs the"),
        ({"trackers": ["tensorbord"]}, ConfigError, "unknown tracker 'tensorbord'; did you mean 'tensorboard'"),
        ({"trackers": 3}, DTypeError, "trackers must be a list of trackers, got 3"),
        ({"trackers": [3]}, DTypeError, "trackers must be names or have a method log"),
        ({"data": {"x": DATA}}, DTypeError, "data must be a torch.Tensor, got dict"),
        ({"data": 3}, DTypeError, "data must be a torch.Tensor, got int"),
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


def test_a_step_takes_dense_data_with_values() -> None:
    trainer = Trainer(tiny())
    with pytest.raises(ShapeError, match=r"x0 is laid out as torch.sparse_coo"):
        trainer(DATA[:4].to_sparse())
    with pytest.raises(ConfigError, match="x0 is on the meta device, which holds no values"):
        trainer(DATA[:4].to("meta"))
    with pytest.raises(DTypeError, match=r"x0 must be a torch\.Tensor, got list"):
        trainer(DATA[:4].tolist())
    assert trainer.step == 0
