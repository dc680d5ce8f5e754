"""Cosine and Haar: the textbook transforms, their inverses, and what keeps lengths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from torch.nn import functional

from scoresde import ConfigError, Cosine, DomainError, Haar, ShapeError, ZeroVelocity
from scoresde.noise import normal, stream
from scoresde.transforms import TRANSFORMS, transform_from_dict


def test_cosine_is_scipy_s() -> None:
    for shape in ((2, 3, 5), (2, 3, 8, 4), (2, 1, 4, 3, 2)):
        x = normal(shape, stream(0), dtype=torch.float64)
        y = Cosine().forward(x)
        axes = tuple(range(2, x.ndim))
        np.testing.assert_allclose(y.numpy(), dctn(x.numpy(), axes=axes, norm="ortho"), atol=1e-13)
        torch.testing.assert_close(Cosine().inverse(y), x)
        assert float(Cosine().log_abs_det(x).abs().max()) == 0.0


def test_haar_halves_means_and_keeps_lengths() -> None:
    x = normal((2, 3, 8, 16), stream(1), dtype=torch.float64)
    for levels in (1, 2, 3):
        haar = Haar(levels)
        y = haar.forward(x)
        torch.testing.assert_close(haar.inverse(y), x)
        torch.testing.assert_close(y.square().sum(), x.square().sum())
        factor = 2**levels
        coarse = y[:, :, : 8 // factor, : 16 // factor]
        torch.testing.assert_close(coarse, functional.avg_pool2d(x, factor) * factor)
        one = haar.within((3, 8, 16), (3, 8 // factor, 16 // factor))
        assert torch.equal(one.inverse(coarse), coarse)
    inner = Haar(3).within((3, 8, 16), (3, 4, 8))
    half = Haar(3).forward(x)[:, :, :4, :8]
    torch.testing.assert_close(inner.inverse(half), functional.avg_pool2d(x, 2) * 2)
    a, b = torch.tensor([[[3.0, 1.0]]]), 2**0.5
    torch.testing.assert_close(Haar(1).forward(a), torch.tensor([[[4 / b, 2 / b]]]))


def test_json_and_types() -> None:
    for transform in (Cosine(), Haar(2), ZeroVelocity()):
        assert transform_from_dict(transform.to_dict()) == transform
        assert type(transform).__name__ in TRANSFORMS
    for dtype in (torch.float32, torch.bfloat16):
        x = normal((2, 1, 4), stream(2)).to(dtype)
        for one in (Cosine(), Haar(2)):
            y = one.forward(x)
            assert y.dtype == dtype
            torch.testing.assert_close(one.inverse(y), x, rtol=2e-2, atol=2e-2)


def test_velocities_begin_at_zero() -> None:
    x = normal((2, 3, 4), stream(3))
    y = ZeroVelocity().forward(x)
    assert y.shape == (2, 6, 4)
    assert torch.equal(ZeroVelocity().inverse(y), x)
    assert float(y[:, 3:].abs().max()) == 0.0
    with pytest.raises(ConfigError, match="no density"):
        ZeroVelocity().log_abs_det(x)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ShapeError, match="multiples of 4"):
        Haar(2).forward(torch.zeros(1, 1, 6))
    with pytest.raises(ShapeError, match="at least one axis after the channels"):
        Cosine().forward(torch.zeros(2, 3))
    with pytest.raises(DomainError, match="levels"):
        Haar(0)
    with pytest.raises(ConfigError, match="stands for no image"):
        Cosine().within((1, 4, 4), (1, 2, 2))
    with pytest.raises(ShapeError, match="position and velocity"):
        ZeroVelocity().inverse(torch.zeros(1, 3))
