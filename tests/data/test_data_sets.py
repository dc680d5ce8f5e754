"""Photographs, tables and series against their sources and exact moments."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.datasets import load_breast_cancer, load_sample_images, load_wine
from torch import Tensor

from scoresde.data import photographs, tabular, time_series
from scoresde.errors import ConfigError, DomainError, DTypeError, ScoreSDEError
from scoresde.transforms import Dequantise

LEVELS = Dequantise(256)


# ---------------------------------------------------------------------------------------------------------------------
# Photographs and tables


def places(patch: Tensor, picture: np.ndarray) -> list[tuple[int, int]]:
    """Find the rows and columns at which a patch (3, p, p) of bytes stands in a picture."""
    side = patch.shape[-1]
    found = np.ones((picture.shape[0] - side + 1, picture.shape[1] - side + 1), dtype=bool)
    for row, column in ((0, 0), (side - 1, side - 1), (0, side - 1), (side // 2, 0)):
        part = picture[row : row + found.shape[0], column : column + found.shape[1]]
        found &= (part == patch[:, row, column].numpy()).all(-1)
    block = patch.permute(1, 2, 0).numpy()
    return [(int(r), int(c)) for r, c in np.argwhere(found) if (picture[r : r + side, c : c + side] == block).all()]


@pytest.mark.parametrize(("split", "columns"), [("train", (0, 512)), ("test", (512, 640))])
def test_patches_are_cut_from_the_splits_own_columns(split: str, columns: tuple[int, int]) -> None:
    data = photographs(12, 40, split, seed=3)  # type: ignore[arg-type]
    pictures = load_sample_images().images
    assert data.images.shape == (40, 3, 12, 12)
    assert data.levels == 256
    assert torch.equal(LEVELS.inverse(data.images), data.images)
    pixels = ((data.images + 1) * 127.5).round().to(torch.uint8)
    for patch, label in zip(pixels, data.labels.tolist(), strict=True):
        found = places(patch, pictures[label])
        assert found
        assert any(columns[0] <= column and column + 12 <= columns[1] for _, column in found)


def test_patches_are_named_by_the_seed_and_uniform_over_the_photographs() -> None:
    assert torch.equal(photographs(8, 10, seed=5).images, photographs(8, 10, seed=5).images)
    assert not torch.equal(photographs(8, 10, seed=5).images, photographs(8, 10, seed=6).images)
    assert photographs(8, 0).images.shape == (0, 3, 8, 8)
    assert photographs(128, 2, "test").images.shape == (2, 3, 128, 128)
    labels = photographs(1, 4000, seed=1).labels
    assert scipy.stats.binomtest(int(labels.sum()), 4000).pvalue > 1e-6
    # single pixels: their mean is that of the region, to five standard errors
    one = photographs(1, 20_000, "test", seed=2)
    region = np.stack(load_sample_images().images)[:, :, 512:].reshape(-1, 3) / 127.5 - 1
    gap = one.images.mean((0, 2, 3)).double().numpy() - region.mean(0)
    assert np.all(np.abs(gap) < 5 * region.std(0) / math.sqrt(20_000))


@pytest.mark.parametrize(("name", "load"), [("wine", load_wine), ("breast_cancer", load_breast_cancer)])
def test_tables_are_scikit_learns_and_split_once(name: str, load: object) -> None:
    assert callable(load)
    bunch = load()
    train, test = tabular(name), tabular(name, "test")
    both = torch.cat([train.values, test.values])
    assert both.dtype == torch.float32
    assert sorted(both.tolist()) == sorted(torch.as_tensor(bunch.data).float().tolist())
    assert train.names == tuple(bunch.feature_names)
    assert train.classes == tuple(bunch.target_names)
    counts = np.bincount(bunch.target)
    assert np.all(np.abs(test.labels.bincount().numpy() - counts / 5) <= 1)
    row = int(torch.as_tensor(bunch.target).argsort(stable=True)[0])
    assert torch.equal(test.values[0], torch.as_tensor(bunch.data[row]).float())


@pytest.mark.parametrize(
    ("act", "kind", "message"),
    [
        (lambda: photographs(0), DomainError, r"patch must be in \[1, 128\], got 0"),
        (lambda: photographs(129), DomainError, r"patch must be in \[1, 128\], got 129"),
        (lambda: photographs(8, -1), DomainError, "count must be at least 0, got -1"),
        (lambda: photographs(8, 2, "val"), ConfigError, "unknown split 'val'; choices: test, train"),
        (lambda: photographs(8, 2, seed=-1), DomainError, "seed must lie in"),
        (lambda: tabular("wines"), ConfigError, "unknown table 'wines'; did you mean 'wine'"),
        (lambda: tabular("wine", "tran"), ConfigError, "unknown split 'tran'; did you mean 'train'"),
        (lambda: time_series(-1), DomainError, "n must be at least 0, got -1"),
        (lambda: time_series(2, length=0), DomainError, "length must be at least 1, got 0"),
        (lambda: time_series(2, channels=1.0), DTypeError, "channels must be an integer, got 1.0"),
        (lambda: time_series(2, noise=1.0), DomainError, r"noise must lie in \[0, 1\)"),
    ],
)
def test_bad_arguments(act: object, kind: type[ScoreSDEError], message: str) -> None:
    assert callable(act)
    with pytest.raises(kind, match=message):
        act()


def test_data_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    for act in (lambda: photographs(8, 1), tabular):
        with pytest.raises(ConfigError, match=r'pip install "\.\[data\]"'):
            act()


# ---------------------------------------------------------------------------------------------------------------------
# Series


def test_a_series_has_its_exact_covariance() -> None:
    length, noise = 12, 0.3
    d = (torch.arange(length)[:, None] - torch.arange(length)) / length
    d = d.double()
    wave = torch.where(d == 0, 1.0, (torch.sin(8 * math.pi * d) - torch.sin(2 * math.pi * d)) / (6 * math.pi * d))
    exact = (1 - noise**2) * (16 / 25 * wave + 9 / 25 * (1 - 2 * d.abs())) + noise**2 * torch.eye(length)
    assert torch.allclose(exact.diagonal(), torch.ones(length, dtype=torch.float64))

    def worst(stage: int, size: int) -> float:
        x = time_series(size, length=length, channels=2, seed=stage, noise=noise).double()
        z = [x.mean(0).flatten() / x.std(0).flatten()]
        pairs = torch.einsum("ncl,ncm->nclm", x, x) - exact
        between = torch.einsum("nl,nm->nlm", x[:, 0], x[:, 1])
        z += [(part.mean(0) / part.std(0)).flatten() for part in (pairs, between)]
        scores = torch.cat(z).abs() * math.sqrt(size)
        return float(2 * scipy.stats.norm.sf(float(scores.max()))) * len(scores)

    assert worst(0, 20_000) > 1e-3 or worst(1, 160_000) > 1e-5


def test_a_noiseless_series_is_a_sinusoid_with_one_jump() -> None:
    x = time_series(50, length=200, channels=3, seed=4, noise=0.0).double()
    assert torch.equal(time_series(50, length=200, channels=3, seed=4, noise=0.0).double(), x)
    assert time_series(0, length=5).shape == (0, 1, 5)
    steps = x.diff(dim=-1).abs()  # a wave alone moves by less than 0.8 sqrt(2) 2 pi 4/200 = 0.143
    jumps = steps > 1.2 - 0.15
    assert bool((jumps.sum(-1) <= 1).all())
    assert int((jumps.sum(-1) == 1).sum()) > 140
    # the channels jump together
    assert torch.equal(jumps[:, 0], jumps[:, 1])
    assert torch.equal(jumps[:, 0], jumps[:, 2])
    # without the jump, each channel obeys x[l + 1] + x[l - 1] = 2 cos(w) x[l] with one w of the series
    middle, rest = x[..., 1:-1], x[..., 2:] + x[..., :-2]
    smooth = ~(jumps[..., 1:] | jumps[..., :-1])
    for series in range(50):
        before = smooth[series, 0] & (torch.arange(198) < (int(jumps[series, 0].float().argmax()) or 198) - 1)
        if int(before.sum()) > 60:
            level = torch.stack([middle[series, 0][before], torch.ones(int(before.sum()), dtype=torch.float64)], 1)
            fit = torch.linalg.lstsq(level, rest[series, 0][before][:, None]).solution
            assert torch.allclose(level @ fit, rest[series, 0][before][:, None], atol=1e-4)
            assert 1.0 <= math.acos(min(1.0, float(fit[0]) / 2)) * 200 / (2 * math.pi) <= 4.05
