"""The shared checks and their messages; broadcasting; derivatives in time."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scoresde import errors
from scoresde.errors import check_floating, check_integer, check_number, check_samples, unknown
from scoresde.noise import check_seed, normal, stream
from scoresde.ops import expand, time_derivative, working_dtype

F64 = torch.float64


def test_every_error_is_of_its_builtin_kind() -> None:
    kinds = {
        errors.ShapeError: ValueError,
        errors.DomainError: ValueError,
        errors.ConfigError: ValueError,
        errors.DTypeError: TypeError,
        errors.SolverError: RuntimeError,
        errors.CheckpointError: RuntimeError,
        errors.DataError: RuntimeError,
        errors.ProcessError: RuntimeError,
    }
    for kind, builtin in kinds.items():
        assert issubclass(kind, errors.ScoreSDEError)
        assert issubclass(kind, builtin)
    state = torch.ones(2)
    assert errors.SolverError("stopped", partial=state).partial is state
    assert errors.SolverError("stopped").partial is None


FIELDS = ("parameter", "got", "allowed", "cure")


@pytest.mark.parametrize("kind", [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")])
def test_errors_travel_between_processes(kind: type[errors.ScoreSDEError]) -> None:
    if kind is errors.SolverError:
        error: errors.ScoreSDEError = errors.SolverError("stopped", partial=torch.ones(2))
    else:
        # What cannot be pickled is kept as a text.
        error = kind("n is odd", parameter="n", got=lambda: 3, allowed=("2", "4"), cure="double it")
        assert str(error) == "n is odd; double it"
        assert isinstance(error.got, str)
    for other in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert type(other) is kind
        assert str(other) == str(error)
        assert [getattr(other, name) for name in FIELDS] == [getattr(error, name) for name in FIELDS]
        if kind is errors.SolverError:
            assert torch.equal(other.partial, torch.ones(2))


def test_another_cure_takes_the_place_of_the_error_s_own() -> None:
    error = errors.DataError("the sizes differ; all of them", parameter="size", got=3, cure="pass size=")
    other = error.with_cure("--size 32 scales them")
    assert (str(other), other.cure) == ("the sizes differ; all of them; --size 32 scales them", "--size 32 scales them")
    assert (type(other), other.parameter, other.got) == (errors.DataError, "size", 3)
    assert str(error) == "the sizes differ; all of them; pass size="
    assert str(errors.DataError("empty").with_cure("fill it")) == "empty; fill it"


@pytest.mark.parametrize(
    ("call", "fields"),
    [
        (lambda: check_integer(0, "n", 1), ("n", 0, "at least 1", None)),
        (lambda: check_integer(6, "n", 1, 5), ("n", 6, "in [1, 5]", None)),
        (lambda: check_integer("3", "n"), ("n", "3", "an integer", None)),
        (lambda: check_number(1, "c", 0, 1, open_high=True), ("c", 1.0, "in [0, 1)", None)),
        (lambda: check_number([1], "c"), ("c", "[1]", "a number", None)),
        (lambda: check_floating(3.0, "y"), ("y", "float", "a torch.Tensor", "use torch.as_tensor(y)")),
        (
            lambda: check_floating(torch.ones(2, dtype=torch.int64), "y"),
            ("y", "torch.int64", "a real floating dtype", "convert it with y.float()"),
        ),
        (
            lambda: check_samples(torch.tensor([1.0, math.inf])),
            ("x", math.inf, "finite values", "drop or repair these samples"),
        ),
        (lambda: errors.check_path(3), ("path", 3, "a string or a pathlib.Path", None)),
        (lambda: errors.check_path(""), ("path", "", None, "'.' is the present folder")),
        (lambda: check_seed(-1), ("seed", -1, "in [0, 2**64)", None)),
        (lambda: raise_(unknown("solver", "zzz", ["b", "a"])), ("solver", "zzz", ("a", "b"), "choices: a, b")),
        (
            lambda: raise_(unknown("way", "rase", ["raise"], parameter="on_bad_image")),
            ("on_bad_image", "rase", ("raise",), "did you mean 'raise'? choices: raise"),
        ),
    ],
)
def test_errors_carry_their_parts(call: Callable[[], object], fields: tuple[object, ...]) -> None:
    with pytest.raises(errors.ScoreSDEError) as caught:
        call()
    assert tuple(getattr(caught.value, name) for name in FIELDS) == fields
    if fields[3] is not None:
        assert str(caught.value).endswith(f"; {fields[3]}")


def raise_(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (3.0, errors.DTypeError, r"y must be a torch\.Tensor, got float; use torch\.as_tensor\(y\)"),
        (torch.ones(2, dtype=torch.int64), errors.DTypeError, r"got torch\.int64; convert it with y\.float\(\)"),
        (torch.ones(2, dtype=torch.bool), errors.DTypeError, r"got torch\.bool; convert it with y\.float\(\)"),
        (torch.ones(2, dtype=torch.cfloat), errors.DTypeError, "take its real and imaginary parts as channels"),
        (torch.tensor(1.0), errors.ShapeError, r"y must have shape \(B, \*\), got a 0-d tensor; .* with y\[None\]"),
    ],
)
def test_check_floating(x: object, error: type[Exception], message: str) -> None:
    for check in (check_floating, check_samples):
        with pytest.raises(error, match=message):
            check(x, "y")


@pytest.mark.parametrize(
    ("x", "kind", "words"),
    [
        ([[1.0, 2.0], [3.0]], errors.DTypeError, r"several sizes, \(1,\), \(2,\): pad or cut them to one"),
        ([np.zeros(2), np.zeros(3)], errors.DTypeError, r"several sizes, \(2,\), \(3,\): pad or cut them to one"),
        ([torch.zeros(2), torch.zeros(2)], errors.DTypeError, r"got list; use torch.stack\(y\)"),
        (([1.0, 2.0], [3.0, 4.0]), errors.DTypeError, r"got tuple; use torch.as_tensor\(y\)"),
        ({}, errors.DTypeError, r"got dict; use torch.as_tensor\(y\)"),
        (
            torch.zeros(3, 2).to_sparse(),
            errors.ShapeError,
            r"laid out as torch.sparse_coo; make it dense: y.to_dense\(\)",
        ),
    ],
)
def test_the_cure_for_what_is_no_tensor_works(x: object, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        check_samples(x, "y")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    with pytest.raises(errors.ShapeError, match=r"nested, .*: torch.nested.to_padded_tensor\(y, 0.0\)"):
        check_samples(nested, "y")
    assert check_samples(torch.nested.to_padded_tensor(nested, 0.0), "y").shape == (2, 3)


@given(st.integers(1, 20), st.data())
def test_check_samples_counts_and_places_bad_values(size: int, data: st.DataObject) -> None:
    bad = data.draw(st.sets(st.tuples(st.integers(0, size - 1), st.integers(0, 2)), min_size=1))
    x = torch.zeros(size, 3)
    for k, place in enumerate(bad):
        x[place] = (math.nan, math.inf, -math.inf)[k % 3]
    message = f"x has {len(bad)} non-finite values of {3 * size}, the first at index {min(bad)}; drop or repair"
    with pytest.raises(errors.DomainError) as caught:
        check_samples(x)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_sound_samples_pass_untouched(dtype: torch.dtype) -> None:
    for x in (torch.ones(2, 3, dtype=dtype), torch.ones(0, 3, dtype=dtype), torch.ones(2, dtype=dtype)):
        assert check_samples(x) is x
        assert check_floating(x) is x


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1.0, "n"), errors.DTypeError, r"n must be an integer, got 1\.0 of type float"),
        ((True, "n"), errors.DTypeError, "n must be an integer, got True of type bool"),
        (("3", "n"), errors.DTypeError, "n must be an integer, got '3' of type str"),
        ((None, "n"), errors.DTypeError, "n must be an integer, got None of type NoneType"),
        ((np.float64(2.0), "n"), errors.DTypeError, "n must be an integer, got"),
        ((np.bool_(True), "n"), errors.DTypeError, "n must be an integer, got"),
        ((np.array([3]), "n"), errors.DTypeError, "n must be an integer, got"),
        ((torch.tensor(2.0), "n"), errors.DTypeError, "n must be an integer, got"),
        ((torch.tensor([2]), "n"), errors.DTypeError, "n must be an integer, got"),
        ((torch.tensor(True), "n"), errors.DTypeError, "n must be an integer, got"),
        ((-1, "n"), errors.DomainError, "n must be at least 0, got -1"),
        ((0, "n", 1), errors.DomainError, "n must be at least 1, got 0"),
        ((6, "n", 1, 5), errors.DomainError, r"n must be in \[1, 5\], got 6"),
    ],
)
def test_check_integer(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_integer(*arguments)


@pytest.mark.parametrize("make", [int, np.int64, np.uint8, np.array, torch.tensor, lambda n: torch.tensor(n).int()])
def test_whole_numbers_of_any_make(make: Callable[[int], object]) -> None:
    found = check_integer(make(3), "n", 1, 5)
    assert found == 3
    assert type(found) is int
    with pytest.raises(errors.DomainError, match=r"n must be in \[4, 5\], got 3"):
        check_integer(make(3), "n", 4, 5)


@given(st.integers(-5, 5), st.integers(-5, 5), st.integers(-5, 5))
def test_check_integer_returns_what_is_inside(value: int, low: int, high: int) -> None:
    if low <= value <= high:
        assert check_integer(value, "n", low, high) == value
    else:
        with pytest.raises(errors.DomainError):
            check_integer(value, "n", low, high)


@pytest.mark.parametrize(
    ("value", "bounds", "options", "message"),
    [
        (-0.1, (0.0,), {}, r"c must lie in \[0, inf\), got -0\.1"),
        (0.0, (0.0,), {"open_low": True}, r"c must lie in \(0, inf\), got 0\.0"),
        (2, (0.0, 1.0), {}, r"c must lie in \[0, 1\], got 2"),
        (1.0, (0.0, 1.0), {"open_high": True}, r"c must lie in \[0, 1\), got 1\.0"),
        (3.0, (None, 1.0), {}, r"c must lie in \(-inf, 1\], got 3\.0"),
        (math.nan, (), {}, r"c must lie in \(-inf, inf\), got nan"),
        (math.inf, (0.0,), {}, r"c must lie in \[0, inf\), got inf"),
    ],
)
def test_check_number_intervals(value: float, bounds: tuple, options: dict, message: str) -> None:
    with pytest.raises(errors.DomainError, match=message):
        check_number(value, "c", *bounds, **options)


def test_check_number_types_and_ends() -> None:
    for bad in (True, "1", None, torch.ones(1), 1j, np.ones(1), torch.tensor(True), np.bool_(True)):
        with pytest.raises(errors.DTypeError, match="c must be a number, got"):
            check_number(bad, "c")
    assert check_number(1, "c", 1.0, 1.0) == 1.0
    assert isinstance(check_number(1, "c"), float)
    for made in (np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5), Fraction(1, 2)):
        assert check_number(made, "c") == 0.5
        assert type(check_number(made, "c")) is float
    with pytest.raises(errors.DomainError, match="c must lie"):
        check_number(10**400, "c")


def test_unknown_names_the_nearest_and_every_choice() -> None:
    error = unknown("solver", "dimm", ["heun", "ddim", "ancestral"])
    assert isinstance(error, errors.ConfigError)
    assert str(error) == "unknown solver 'dimm'; did you mean 'ddim'? choices: ancestral, ddim, heun"
    assert str(unknown("solver", "zzz", ["heun", "ddim"])) == "unknown solver 'zzz'; choices: ddim, heun"
    assert "unknown solver 3;" in str(unknown("solver", 3, ["heun"]))


# ---------------------------------------------------------------------------------------------------------------------
# Operations


@pytest.mark.parametrize("event", [(), (2,), (3, 4), (2, 3, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_expand_multiplies_sample_by_sample(event: tuple[int, ...], dtype: torch.dtype) -> None:
    x, c = normal((4, *event), stream(0)).to(dtype), torch.tensor([1.0, 2.0, -0.5, 0.0], dtype=F64)
    got = expand(c, x) * x
    assert got.dtype == dtype
    assert got.shape == x.shape
    for k in range(4):
        assert torch.equal(got[k], x[k] * float(c[k]))
        assert torch.equal(expand(c[k], x) * x, x * float(c[k]))


@pytest.mark.parametrize("shape", [(1,), (3,), (4, 1), (4, 2), (2, 4)])
def test_expand_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(errors.ShapeError) as caught:
        expand(torch.ones(shape), torch.ones(4, 2))
    assert str(caught.value) == f"t must have shape () or (4,) for x of shape (4, 2), got {shape}"


@pytest.mark.parametrize(
    ("function", "derivative"),
    [
        (torch.sin, torch.cos),
        (lambda t: t**3 - 2 * t, lambda t: 3 * t**2 - 2),
        (torch.ones_like, torch.zeros_like),
        (lambda t: torch.where(t > 0.5, t.square(), t), lambda t: torch.where(t > 0.5, 2 * t, torch.ones_like(t))),
    ],
)
def test_time_derivative(function: Callable[[Tensor], Tensor], derivative: Callable[[Tensor], Tensor]) -> None:
    t = torch.tensor([0.1, 0.7, 2.0], dtype=F64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(time_derivative(function, t), derivative(t), rtol=1e-14, atol=0)
        with torch.inference_mode():
            torch.testing.assert_close(time_derivative(function, t), derivative(t), rtol=1e-14, atol=0)
    assert not time_derivative(function, t).requires_grad
    one = torch.tensor(0.3, dtype=F64)
    torch.testing.assert_close(time_derivative(function, one), derivative(one), rtol=1e-14, atol=0)


def test_time_derivative_is_differentiable() -> None:
    t = torch.tensor([0.1, 0.7], dtype=F64, requires_grad=True)
    weight = torch.tensor(3.0, dtype=F64, requires_grad=True)
    out = time_derivative(lambda s: weight * s**3, t)
    by_t, by_weight = torch.autograd.grad(out.sum(), (t, weight))
    torch.testing.assert_close(by_t, 18 * t.detach(), rtol=1e-14, atol=0)
    assert float(by_weight) == pytest.approx(float(3 * t.detach().square().sum()), rel=1e-14)


def test_schedules_are_evaluated_in_float64() -> None:
    assert working_dtype(torch.device("cpu")) == torch.float64
    assert working_dtype(torch.device("cuda")) == torch.float64
    assert working_dtype(torch.device("mps")) == torch.float32
