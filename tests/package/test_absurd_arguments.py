"""Absurd arguments of every public function: one line of an error of ours, or a result; never a raw error or a hang."""

from __future__ import annotations

import inspect
import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from surface import GAUSSIAN, MODEL, SURFACE, TABLE, X, find
from torch import Tensor

import scoresde
from scoresde import ConfigError, DomainError, DTypeError, Langevin, ScoreSDEError, ShapeError, grids, sample, solvers
from scoresde.errors import check_integer

ABSURD: dict[str, object] = {
    "an object": object(),
    "-1": -1,
    "2.5": 2.5,
    "a text": "nonsense\x1b[2J",
    "bytes": b"x",
    "a list": [],
    "a dict": {},
    "a set": {1},
    "nested lists": [[1], [2, 3]],
    "10**400": 10**400,
    "-10**5000": -(10**5000),
    "2**63": 2**63,
    "NaN": math.nan,
    "words": np.array(["a"]),
    "an array": np.ones((6, 2), np.float32),
    "no tensor": torch.tensor([]),
    "a sparse tensor": torch.ones(6, 2).to_sparse(),
    "a tensor without memory": torch.empty(6, 2, device="meta"),
    "a tensor of 8 bits": torch.zeros(6, 2, dtype=torch.float8_e4m3fn),
    "complex numbers": torch.ones(6, 2, dtype=torch.complex64),
    "a type": int,
}


@contextmanager
def bounded(seconds: int = 60) -> Iterator[None]:
    """Turn a hang into a failure, where the platform can."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError

    if hasattr(signal, "SIGALRM"):
        before = signal.signal(signal.SIGALRM, stop)
        signal.alarm(seconds)
    try:
        yield
    finally:
        if hasattr(signal, "SIGALRM"):
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)


def parameters(function: Callable[..., object]) -> list[str]:
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [name for name, one in inspect.signature(function).parameters.items() if one.kind not in kinds]


def rests(name: str) -> bool:
    """Whether a public name needs no entry: rooms, errors, results, bases, and what trains or takes long."""
    one = find(name)
    return not callable(one) or (isinstance(one, type) and (issubclass(one, Exception) or name in NO_ARGUMENTS))


NO_ARGUMENTS = {
    *(
        "SDE",
        "GaussianSDE",
        "LinearSDE",
        "ReverseSDE",
        "DDPM",
        "SMLD",
        "Moments",
        "Gaussian",
        "Prediction",
        "Step",
        "Bound",
    ),
    *("LogLikelihood", "Classification", "Densities", "Particles", "PosteriorSamples", "SampleResult", "Solver"),
    *("Tableau", "CombinedModel", "MappedModel", "SBIPosterior", "EMA", "TrainResult"),
}
# Training has tests of its own; tuning runs for long with what is right; two need an optional package or a file.
NOT_HERE = {"fit", "select", "tune", "calibrate", "held_out_loss", "from_diffusers", "to_diffusers"}
NOT_HERE |= {"denoising_score_matching", "linear_score_matching", "implicit_score_matching", "sliced_score_matching"}
# Of processes and files; a record that ``latent_elbo`` returns.
NOT_HERE |= {"processes", "read_shards", "write_shards", "LatentBound"}


def test_the_walk_leaves_no_function_out() -> None:
    names = {name for name in scoresde.__all__ if not rests(name) and name not in NOT_HERE}
    assert names <= set(SURFACE)
    assert len(SURFACE) > 120


@pytest.mark.parametrize("name", SURFACE)
def test_absurd_arguments_are_refused_or_do_no_harm(name: str) -> None:
    function, right = SURFACE[name]
    function(**right)
    for parameter in parameters(function):
        for what, value in ABSURD.items():
            try:
                with bounded():
                    function(**{**right, parameter: value})
            except ScoreSDEError as error:
                said = str(error)
                assert "\n" not in said, (parameter, what)
                assert "\x1b" not in said, (parameter, what)
                assert len(said) < 1500, (parameter, what)
            except Exception as error:
                raise AssertionError(f"{name}({parameter}={what}) raised {type(error).__name__}: {error}") from error


@pytest.mark.parametrize("name", ["sample", "log_likelihood", "GaussianModel", "solvers.restart"])
def test_a_missing_argument_is_pythons_own_error(name: str) -> None:
    with pytest.raises(TypeError, match=r"missing .* required"):
        SURFACE[name][0]()


def observe(index: int, x: Tensor) -> None:
    pass


@pytest.mark.parametrize(
    ("use", "kind", "words"),
    [
        (lambda: solvers.heun(grid=np.ones(3)), DTypeError, r"grid must be a Grid, e.g. grids.karras\(\), got array"),
        (lambda: solvers.dpmpp_2m(grid=[1.0, 0.5]), DTypeError, "grid must be a Grid"),
        (lambda: sample(GAUSSIAN, 3, times=[0.9, 0.1]), DTypeError, "times must be a floating tensor or a Grid, got"),
        (lambda: sample(GAUSSIAN, 3, on_step=3), DTypeError, "on_step must be a function of a Step, got 3"),
        (lambda: sample(GAUSSIAN, 3, solver=[]), DTypeError, "solver must be a name"),
        (lambda: sample(GAUSSIAN, 3, final=[]), ConfigError, r"unknown final \[\]; choices"),
        (lambda: sample(GAUSSIAN, 3, progress=np.ones(3)), DTypeError, "progress must be True or False"),
        (lambda: sample(GAUSSIAN, 3, steps=10**400), DomainError, "steps must be .* got an integer of 1329 bits"),
        (lambda: sample(GAUSSIAN, 3, steps=2**40), DomainError, "steps must be at most 1000000, got 1099511627776"),
        (lambda: sample(GAUSSIAN, (2**20, 2**20)), DomainError, "holds more than 2147483647 values"),
        (lambda: sample(GAUSSIAN, 3, dtype=torch.float8_e4m3fn), DTypeError, "dtype must be a real floating type"),
        (lambda: sample(MODEL, 3, sde=3), DTypeError, "sde"),
        (lambda: scoresde.DDPM.from_sde(3, 9), DTypeError, "sde must be a GaussianSDE, e.g. VPSDE(), got 3"),
        (lambda: Langevin(steps=10**400), DomainError, "steps must be at most 2147483647, got an integer of 1329 bits"),
        (lambda: sample(GAUSSIAN, 3, chunk_size=2**63), DomainError, "chunk_size must be at most 2147483647"),
        (
            lambda: scoresde.metrics.two_sample_test(X, X, permutations=2**63),
            DomainError,
            "permutations must be at most 1000000",
        ),
        (lambda: scoresde.Moments.of(X.to_sparse()), ShapeError, "laid out as torch.sparse_coo; make it dense"),
        (lambda: scoresde.Moments.of(X.to("meta")), ConfigError, "data is on the meta device, which holds no values"),
        (lambda: scoresde.Moments.of(X.to(torch.float8_e5m2)), DTypeError, r"at least 16 bits.*data.float\(\)"),
        (lambda: scoresde.langevin(torch.neg, X, 0.1, 2, on_step=3), DTypeError, "on_step must be a function"),
        (lambda: grids.knots([3, {}]), DTypeError, "times must be a tensor, or numbers in sequences of one length"),
        (lambda: scoresde.build_table(3, "heun"), DTypeError, "sde must be a GaussianSDE"),
        (lambda: scoresde.Stepper(TABLE, predicts=[]), ConfigError, "unknown prediction"),
    ],
)
def test_what_is_said(use: Callable[[], object], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words.replace("VPSDE()", r"VPSDE\(\)")):
        use()


def test_a_flag_of_numpys_or_0_and_1_serves() -> None:
    for flag in (np.True_, 1, True):
        result: Any = sample(GAUSSIAN, 3, steps=2, seed=0, full_output=flag)
        assert torch.equal(result.x, sample(GAUSSIAN, 3, steps=2, seed=0, full_output=np.False_))


@pytest.mark.parametrize(
    ("value", "maximum", "said"),
    [
        (2**31, None, "n must be at most 2147483647, got 2147483648"),
        (-1, None, "n must be at least 0, got -1"),
        (10**5000, None, "n must be at most 2147483647, got an integer of 16610 bits"),
        (7, 5, r"n must be in \[0, 5\], got 7"),
    ],
    ids=["large", "negative", "huge", "stated"],
)
def test_a_size_has_a_stated_largest_value(value: int, maximum: int | None, said: str) -> None:
    with pytest.raises(DomainError, match=said):
        check_integer(value, "n") if maximum is None else check_integer(value, "n", 0, maximum)
    assert check_integer(2**31 - 1, "n") == 2**31 - 1
