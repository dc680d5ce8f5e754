"""Data that cannot be meant, beside the files of test_data_files.py: paths, transforms, what is learned from.

And what a fault leaves behind: folders, Pillow's limits, models and generators are as they were.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Net
from PIL import Image, ImageFile
from torch import Tensor

from scoresde import (
    VPSDE,
    Affine,
    Compose,
    ConfigError,
    DataError,
    Dequantise,
    DomainError,
    DTypeError,
    Logit,
    Moments,
    ScoreModel,
    ScoreSDEError,
    ShapeError,
    fit,
    sample,
)
from scoresde.data import arrays_from_file, digits, images_from_folder, photographs, tabular
from scoresde.noise import stream

DATA = torch.linspace(0, 1, 12).reshape(4, 3)
HOLE = DATA.clone()
HOLE[2, 1] = torch.nan


def train(data: Tensor, **options: object) -> object:
    return fit(ScoreModel(Net(), VPSDE()), data, steps=1, progress=False, **options)


REFUSED: dict[str, tuple[Callable[[], object], type[ScoreSDEError], str]] = {
    # places
    "a folder None": (
        lambda: images_from_folder(None),
        DTypeError,
        "path must be a string or a pathlib.Path, got None",
    ),
    "a folder ''": (lambda: images_from_folder(""), DomainError, "path is empty; '.' is the present folder"),
    "a file 3.5": (
        lambda: arrays_from_file(3.5),
        DTypeError,
        "path must be a string or a pathlib.Path, got 3.5 of type",
    ),
    "a file ''": (lambda: arrays_from_file(""), DomainError, "path is empty"),
    "a split None": (lambda: digits(None), ConfigError, "unknown split None; choices: test, train"),
    "a table of lists": (
        lambda: tabular(["wine"]),
        ConfigError,
        "did you mean 'wine'? choices: breast_cancer, iris, wine",
    ),
    "a patch True": (lambda: photographs(True), DTypeError, "patch must be an integer, got True of type bool"),
    # what is learned from
    "training with NaN": (
        lambda: train(HOLE),
        DomainError,
        "data has 1 non-finite values of 12, the first at index (2, 1); drop or repair these samples",
    ),
    "training on nothing": (lambda: train(DATA[:0]), ShapeError, "data is empty: training needs at least one sample"),
    "moments of NaN": (
        lambda: Moments.of(HOLE),
        DomainError,
        "data has 1 non-finite values of 12, the first at index (2,",
    ),
    "moments of nothing": (lambda: Moments.of(DATA[:0]), ShapeError, "data is empty: moments need at least one sample"),
    "standardising one": (
        lambda: Affine.standardise(DATA[:1]),
        ShapeError,
        "at least two samples of shape (C, *), got",
    ),
    # transforms that do not fit the data
    "two channels for three": (
        lambda: train(DATA, transform=Affine((0.0, 0.0), (1.0, 1.0))),
        ShapeError,
        "the transform serves 2 channels, got data of shape (4, 3)",
    ),
    "a logit of what is outside": (
        lambda: train(2 * DATA, transform=Logit()),
        DomainError,
        "data must lie in [0, 1], the range of Logit(epsilon=1e-06, low=0.0, high=1.0); 6 of 12 values do not, the fir",
    ),
    "levels between levels": (
        lambda: train(DATA, transform=Dequantise(3, 0.0, 1.0)),
        DomainError,
        "data must lie on the 3 levels of Dequantise(levels=3, low=0.0, high=1.0); 10 of 12 values do not, the first i",
    ),
    "a part that does not fit": (
        lambda: train(DATA, transform=Compose((Affine(), Logit(1e-6, 0.0, 0.5)))),
        DomainError,
        "data must lie in [0, 0.5]",
    ),
    "a transform that is a number": (
        lambda: ScoreModel(Net(), VPSDE(), transform=3),
        DTypeError,
        "transform must be one of scoresde.transforms, e.g. Affine(), got 3",
    ),
    "a transform's class": (
        lambda: ScoreModel(Net(), VPSDE(), transform=Affine),
        DTypeError,
        "transform must be one of scoresde.transforms, e.g. Affine(), got <class",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_refused(fault: str) -> None:
    call, kind, words = REFUSED[fault]
    with pytest.raises(kind, match=re.escape(words)):
        call()


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (HOLE, {}),
        (DATA, {"transform": Affine((0.0, 0.0), (1.0, 1.0))}),
        (2 * DATA, {"transform": Logit()}),
        (DATA, {"cond": {"label": torch.zeros(3)}}),
    ],
)
def test_refused_data_leave_the_model_as_it_was(data: Tensor, options: dict[str, object], tmp_path: Path) -> None:
    net = Net()
    model, before = ScoreModel(net, VPSDE()), data.clone()
    model.eval()
    with pytest.raises(ScoreSDEError):
        fit(model, data, steps=1, progress=False, folder=tmp_path / "run", **options)
    assert (model.moments, model.transform, model.training, net.calls) == (None, None, False, [])
    assert float(net.weight.detach()) == 0.5
    assert torch.equal(data, before) or bool(data.isnan().any())
    assert not (tmp_path / "run").exists()


def test_samples_that_the_transform_cannot_give_back_are_refused_before_any_call() -> None:
    net = Net()
    model = ScoreModel(net, VPSDE(), transform=Affine((0.0, 1.0), (1.0, 2.0)))
    for solver in ("ddim", "probability_flow"):
        with pytest.raises(ShapeError, match=r"the transform serves 2 channels, got data of shape \(0, 3\)"):
            sample(model, (4, 3), solver=solver, seed=0)
    assert net.calls == []
    assert sample(model, (4, 2), seed=0).shape == (4, 2)


# ---------------------------------------------------------------------------------------------------------------------
# What reading leaves behind


def tree(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(f.relative_to(folder)): (f.read_bytes(), f.stat().st_mtime_ns, f.stat().st_mode) for f in files}


def fill(folder: Path) -> None:
    for name in ("a/0.png", "a/1.png", "b/2.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 6, 3), 7 * len(name), np.uint8)).save(folder / name)
    (folder / "b/3.png").write_bytes((folder / "b/2.png").read_bytes()[:50])


def test_a_folder_and_pillows_limits_are_as_they_were(tmp_path: Path) -> None:
    fill(tmp_path)
    before, limits = tree(tmp_path), (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    with pytest.raises(DataError, match=r"image 3 of 4, .*b.3\.png, .*; repair or remove it, or pass on_bad_image="):
        images_from_folder(tmp_path)
    kept = images_from_folder(tmp_path, on_bad_image="skip")
    assert [p.name for p in kept.paths] == ["0.png", "1.png", "2.png"]
    assert tree(tmp_path) == before
    assert limits == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


@pytest.mark.parametrize("cut", [0, 10, 100, -1])
def test_a_damaged_array_is_left_as_it_was(tmp_path: Path, cut: int) -> None:
    for save, name in ((np.save, "a.npy"), (np.savez_compressed, "a.npz")):
        save(tmp_path / name, np.arange(12.0).reshape(4, 3))
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:cut])
        before = tree(tmp_path)
        with pytest.raises(
            DataError, match=rf"{name} is damaged or no \.npy or \.npz file \(\w+\); write it with numpy"
        ):
            arrays_from_file(tmp_path / name)
        assert tree(tmp_path) == before


def test_arrays_do_not_share_memory_with_the_file_or_among_calls(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 3), np.float32))
    first = arrays_from_file(tmp_path / "a.npy")
    first += 1
    assert float(arrays_from_file(tmp_path / "a.npy").abs().max()) == 0


def test_a_transform_never_writes_to_the_data() -> None:
    for transform in (Affine(0.5, 2.0), Logit(), Dequantise(12, 0.0, 1.0), Compose((Affine(), Logit()))):
        x = torch.round(11 * DATA) / 11
        before = x.clone()
        y = transform.forward(x, stream(0))
        kept = y.clone()
        transform.inverse(y)
        transform.log_abs_det(x, stream(0))
        assert torch.equal(x, before)
        assert torch.equal(y, kept)
