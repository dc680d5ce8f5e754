"""Data transforms: there and back, what is measured, JSON, faults."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scoresde import Affine, DomainError, DTypeError, ShapeError
from scoresde.noise import normal, stream

F64 = torch.float64
shifts = st.floats(-1e3, 1e3)
scales = st.floats(1e-3, 1e3)


@given(
    st.one_of(shifts, st.tuples(shifts, shifts, shifts)),
    st.one_of(scales, st.tuples(scales, scales, scales)),
    st.sampled_from([(3,), (3, 4), (3, 4, 5), (3, 2, 2, 2)]),
)
def test_forward_is_affine_for_each_channel_and_inverts(
    shift: float | tuple[float, ...], scale: float | tuple[float, ...], event: tuple[int, ...]
) -> None:
    transform, x = Affine(shift, scale), normal((5, *event), stream(0), dtype=F64)
    y = transform.forward(x)
    for c in range(3):
        b, k = (v[c] if isinstance(v, tuple) else v for v in (shift, scale))
        torch.testing.assert_close(y[:, c], (x[:, c] - b) / k, rtol=1e-14, atol=1e-14)
        # What the shift is larger than the data, is lost of the data.
        torch.testing.assert_close(transform.inverse(y)[:, c], x[:, c], rtol=1e-14, atol=1e-15 * (1 + abs(b)))
    again = json.loads(json.dumps(transform.to_dict()))
    assert Affine.from_dict(again) == transform
    assert Affine.from_dict(transform.to_dict()) == transform


def test_one_number_serves_any_shape() -> None:
    transform = Affine(7.5, 7.5)
    pixels = torch.tensor([0.0, 15.0])
    assert transform.forward(pixels).tolist() == [-1.0, 1.0]
    assert transform.inverse(torch.tensor([[[-1.0, 1.0]]])).tolist() == [[[0.0, 15.0]]]
    assert Affine().forward(pixels).tolist() == pixels.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types_are_kept(dtype: torch.dtype) -> None:
    transform, x = Affine((1.0, -2.0), (0.5, 4.0)), normal((6, 2, 3), stream(1), dtype=F64).to(dtype)
    y = transform.forward(x)
    assert y.dtype == dtype
    expected = transform.forward(x.to(F64))
    torch.testing.assert_close(
        y.to(F64), expected, rtol=0, atol=4 * torch.finfo(dtype).eps * float(expected.abs().max())
    )
    assert transform.inverse(y).dtype == dtype


@pytest.mark.parametrize("event", [(3,), (3, 4, 4)])
def test_standardised_data_have_mean_zero_and_deviation_one(event: tuple[int, ...]) -> None:
    width = torch.tensor([1e-3, 1.0, 50.0]).reshape(3, *(1,) * (len(event) - 1))
    x = normal((200, *event), stream(2)) * width + 10
    transform = Affine.standardise(x)
    y = transform.forward(x.to(F64)).transpose(0, 1).reshape(3, -1)
    torch.testing.assert_close(y.mean(1), torch.zeros(3, dtype=F64), rtol=0, atol=1e-10)
    torch.testing.assert_close(y.std(1), torch.ones(3, dtype=F64), rtol=1e-10, atol=0)


def test_a_constant_channel_keeps_its_scale() -> None:
    x = torch.cat([torch.full((9, 1), 4.0), normal((9, 1), stream(3))], 1)
    transform = Affine.standardise(x)
    assert isinstance(transform.scale, tuple)
    assert (transform.shift[0], transform.scale[0]) == (4.0, 1.0)
    assert bool((transform.forward(x)[:, 0] == 0).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.0}, "scale must lie in "),
        ({"scale": (1.0, -1.0)}, "scale must lie in "),
        ({"scale": math.inf}, "scale must lie in "),
        ({"shift": math.nan}, "shift must lie in "),
    ],
)
def test_impossible_numbers(options: dict, message: str) -> None:
    with pytest.raises(DomainError, match=message):
        Affine(**options)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(4, 3), ShapeError, r"the transform serves 2 channels, got data of shape \(4, 3\)"),
        (torch.zeros(2), ShapeError, r"the transform serves 2 channels, got data of shape \(2,\)"),
        (torch.zeros(4, 2, dtype=torch.uint8), DTypeError, r"data must have a real floating dtype, got torch\.uint8"),
        ([1.0], DTypeError, "data must be a torch.Tensor, got list"),
    ],
)
def test_data_that_do_not_fit(x: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Affine((0.0, 1.0), 2.0).forward(x)


def test_data_that_cannot_be_standardised() -> None:
    for x in (torch.zeros(1, 3), torch.zeros(5)):
        with pytest.raises(ShapeError, match=r"standardisation needs at least two samples of shape \(C, \*\), got"):
            Affine.standardise(x)
    with pytest.raises(DomainError, match=r"data has 1 non-finite values of 4, the first at index \(0, 1\)"):
        Affine.standardise(torch.tensor([[0.0, math.nan], [1.0, 2.0]]))
    with pytest.raises(DTypeError, match="scale must be a number or a tuple of numbers, got 'big'"):
        Affine.from_dict({"kind": "Affine", "shift": 0.0, "scale": "big"})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_affine_computes_half_types_in_float32(dtype: torch.dtype) -> None:
    """A scale that the type itself does not hold, and a shift of many times the scale."""
    x = torch.tensor([[1000.0, -3.0], [1008.0, 2.0]]).to(dtype)
    for transform in (Affine(1001.3, 7.7), Affine(0.0, 3e-6), Affine(0.0, 3e7)):
        exact = ((x.double() - transform.shift) / transform.scale).to(dtype)
        assert torch.equal(transform.forward(x), exact)
        back = transform.inverse(exact)
        assert back.dtype == dtype
        assert not bool(back.isnan().any())
