"""Training takes NumPy arrays as it takes tensors, and never writes to them."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch

from scoresde import VPSDE, ConfigError, DomainError, DTypeError, ScoreModel, ShapeError, fit
from scoresde.nn import MLP
from scoresde.noise import integers, normal, stream
from scoresde.ops import accept_arrays
from scoresde.training.losses import held_out_loss

DATA = normal((50, 2), stream(0, "arrays")).numpy()
LABELS = integers(3, (50,), stream(1, "arrays")).numpy()
OPTIONS = {"steps": 4, "batch_size": 8, "label_dropout": 0.2, "progress": False}


def small() -> ScoreModel:
    return ScoreModel(MLP(2, width=8, depth=1, classes=3), VPSDE())


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": np.copy,
    "read-only": read_only,
    "column by column": np.asfortranarray,
    "backwards": lambda array: np.ascontiguousarray(array[::-1])[::-1],
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "a field of records": lambda array: np.rec.fromarrays([array, np.ones(array.shape, "i1")])["f0"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fit_takes_arrays_of_any_layout(layout: str) -> None:
    x, labels = LAYOUTS[layout](DATA), LAYOUTS[layout](LABELS)
    tensors = [torch.tensor(np.ascontiguousarray(part)) for part in (DATA, LABELS)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = fit(
            small(), x, cond={"label": labels}, held_out=x[:10], held_out_cond={"label": labels[:10]}, **OPTIONS
        )
    expected = fit(
        small(),
        tensors[0],
        cond={"label": tensors[1]},
        held_out=tensors[0][:10],
        held_out_cond={"label": tensors[1][:10]},
        **OPTIONS,
    )
    assert torch.equal(result.losses, expected.losses)
    assert result.log[-1]["held_out_loss"] == expected.log[-1]["held_out_loss"]
    assert np.array_equal(x, DATA)
    assert np.array_equal(labels, LABELS)


def test_held_out_losses_take_arrays() -> None:
    found = held_out_loss(small(), read_only(DATA), cond={"label": read_only(LABELS)}, chunk_size=7)
    assert found == held_out_loss(small(), torch.tensor(DATA), cond={"label": torch.tensor(LABELS)}, chunk_size=7)


def test_float64_and_half_arrays_train_in_the_networks_type() -> None:
    for dtype in (np.float64, np.float16):
        model = small()
        assert torch.isfinite(fit(model, DATA.astype(dtype), steps=3, progress=False).losses).all()
        assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_an_array_shares_its_memory_where_a_tensor_can() -> None:
    array = DATA.copy()
    tensor = accept_arrays(array)
    assert isinstance(tensor, torch.Tensor)
    assert tensor.data_ptr() == array.ctypes.data
    locked = read_only(DATA)
    assert accept_arrays(locked).data_ptr() != locked.ctypes.data
    assert accept_arrays(np.float32(2.0)) == 2.0
    assert accept_arrays(None) is None
    kept = torch.ones(2)
    assert accept_arrays({"a": kept})["a"] is kept


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"data": DATA.tolist()}, DTypeError, r"data must be a torch.Tensor, got list; use torch.as_tensor\(data\)"),
        ({"data": LABELS}, DTypeError, "data must have a real floating dtype, got torch.int64"),
        ({"data": DATA.astype(str)}, DTypeError, "data must be an array of numbers, got dtype <U32; convert it with"),
        ({"data": DATA.astype(object)}, DTypeError, "data must be an array of numbers, got dtype object"),
        ({"data": np.full((3, 2), np.nan)}, DomainError, "data has 6 non-finite values of 6"),
        ({"data": np.zeros((0, 2))}, ShapeError, "data is empty"),
        ({"cond": {"label": LABELS[:3]}}, ShapeError, r"cond\['label'\] must have a first dimension of 50"),
        ({"cond": {"label": LABELS.tolist()}}, ConfigError, "cond must be a dict of tensors"),
        ({"cond": {"label": LABELS.astype(str)}}, DTypeError, r"cond\['label'\] must be an array of numbers"),
        ({"cond": LABELS}, ConfigError, "cond must be a dict of tensors"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(
    options: dict[str, object], kind: type[Exception], message: str
) -> None:
    given = {"data": DATA, "steps": 2, "progress": False, **options}
    with pytest.raises(kind, match=message):
        fit(small(), given.pop("data"), **given)
