"""Data far from 0 keep their precision until they are centred, and come back in a type that holds them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from scoresde import VPSDE, Affine, Compose, Dequantise, ScoreModel, TrainingWarning, fit, log_likelihood, sample
from scoresde.nn import MLP
from scoresde.noise import normal, stream

F64 = torch.float64
FAR = 1.7e9 + 20 * normal((800, 2), stream(3), dtype=F64)


def test_fit_on_float64_sees_every_value() -> None:
    transform = Affine.standardise(FAR)
    model = ScoreModel(MLP(2, width=16, depth=1), VPSDE())
    done = fit(model, FAR, steps=60, transform=transform, progress=False)
    moments = done.model.moments
    assert moments is not None
    torch.testing.assert_close(moments.mean, torch.zeros(2, dtype=F64), rtol=0, atol=1e-3)
    torch.testing.assert_close(moments.variance, torch.ones(2, dtype=F64), rtol=0.2, atol=0)
    x = sample(done.model, 400, seed=0)
    assert x.dtype == F64
    assert len(x.unique()) == 800
    assert float((x - 1.7e9).abs().max()) < 1e5
    assert sample(done.model, 4, seed=0, dtype=torch.float32).dtype == torch.float32
    assert bool(torch.isfinite(log_likelihood(done.model, FAR[:4]).values).all())
    assert sample(done.model, 4, seed=0, full_output=True).x.dtype == F64


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_transform_centres_in_float64_and_back(dtype: torch.dtype) -> None:
    x = FAR.to(dtype)
    transform = Affine.standardise(FAR)
    assert transform.far
    y = transform.forward(x)
    assert y.dtype == dtype
    exact = (x.double() - FAR.mean(0)) / FAR.std(0)
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-6)
    back = transform.inverse(y)
    assert back.dtype == F64
    torch.testing.assert_close(back, x.double(), rtol=0, atol=1e-4)
    half = transform.inverse(y.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("transform", [Affine(3.0, 2.0), Affine.from_range(0, 255), Affine((1e3, 0.0), (1.0, 1.0))])
def test_data_that_float32_holds_stay_in_it(transform: Affine) -> None:
    y = normal((5, 2), stream(0))
    assert not transform.far
    assert transform.inverse(y).dtype == transform.forward(y).dtype == torch.float32


def test_squares_that_overflow() -> None:
    x = normal((50, 3), stream(1), dtype=F64) * torch.tensor([1e300, 1.0, 1e-3], dtype=F64)
    y = Affine.standardise(x).forward(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(3, dtype=F64), rtol=0, atol=1e-9)
    torch.testing.assert_close(y.std(0), torch.ones(3, dtype=F64), rtol=1e-9, atol=0)


def test_whole_numbers_and_arrays() -> None:
    x = np.arange(1_700_000_000, 1_700_000_800, dtype=np.int64).reshape(-1, 2).astype(np.float64)
    transform = Affine.standardise(x)
    assert len(transform.forward(torch.from_numpy(x))[:, 0].unique()) == 400


def test_a_composed_transform_goes_on_in_float64() -> None:
    transform = Compose((Affine(1e9, 1.0), Affine(0.5, 2.0)))
    assert transform.inverse(torch.zeros(2, 3)).dtype == F64
    levels = Compose((Dequantise(4), Affine(0.5, 2.0)))
    assert levels.forward(torch.full((2, 3), -1.0), stream(0)).dtype == torch.float32


def test_without_a_transform_the_scale_is_warned_of() -> None:
    with pytest.warns(TrainingWarning, match=r"mean 1\.7e\+09 .*: fit\(\.\.\., transform=Affine.standardise\(data\)\)"):
        fit(ScoreModel(MLP(2, width=8, depth=1), VPSDE()), FAR, steps=1, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(
            ScoreModel(MLP(2, width=8, depth=1), VPSDE()),
            FAR - 1.7e9,
            steps=1,
            progress=False,
            transform=Affine(0.0, 20.0),
        )
