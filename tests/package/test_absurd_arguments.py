"""Absurd arguments of every public function: one line of an error of ours, or a result; never a raw error or a hang."""

from __future__ import annotations

import importlib
import inspect
import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from foreign import small_unet
from PIL import Image
from surface import GAUSSIAN, MODEL, SURFACE, TABLE, X
from surface_rest import REST, fresh, trained
from torch import Tensor

import scoresde
from scoresde import (
    ConfigError,
    DomainError,
    DTypeError,
    Langevin,
    ScoreSDEError,
    ShapeError,
    grids,
    plots,
    sample,
    solvers,
)
from scoresde.errors import check_integer
from scoresde.solvers.candidates import list_candidates

WALK = {**SURFACE, **REST}

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


# Every public callable has an entry in the walk, or a reason here.
REASONS = {
    "a base that is subclassed, or a protocol that others fulfil": (
        *(
            "SDE",
            "GaussianSDE",
            "LinearSDE",
            "guidance.Method",
            "guidance.Operator",
            "likelihood.Decoder",
            "metrics.Classifier",
        ),
        *("transforms.Transform", "data.ToyDensity"),
    ),
    "a result or a record, which the package's own functions make": (
        *("Bound", "Classification", "Densities", "LatentBound", "LogLikelihood", "Particles", "PosteriorSamples"),
        *("Prediction", "SampleResult", "Step", "TrainResult", "CombinedModel", "data.FileTable", "data.FolderImages"),
        *(
            "data.LabelledImages",
            "data.Molecules",
            "data.Table",
            "losses.HeldOutLoss",
            "metrics.Comparison",
            "metrics.Floor",
        ),
        *("metrics.TwoSampleTest", "solvers.Entry", "training.Record"),
    ),
    "what builders put together: the table that comes of it is checked": (
        *("Solver", "Tableau", "grids.Grid", "solvers.AdditiveNoise", "solvers.Butcher"),
    ),
    "a type for annotations": (
        *("losses.TimeSampler", "losses.TimesName", "losses.Weight", "losses.WeightName", "solvers.SolverName"),
        "training.Objective",
    ),
    "takes no argument": ("solvers.list",),
    "starts a job of several processes; tests/sampling has its own": ("processes",),
}


def public(prefix: str, module: ModuleType) -> Iterator[tuple[str, object]]:
    """Yield every public name of a module and of the rooms in it, with what it stands for."""
    for name in module.__all__:
        one = getattr(module, name)
        if isinstance(one, ModuleType):
            yield from public(f"{name}.", one)
        else:
            yield f"{prefix}{name}", one


def test_the_walk_leaves_no_public_callable_out() -> None:
    walked = {id(function) for function, _ in WALK.values()}
    left: dict[int, str] = {}
    for name, one in public("", scoresde):
        if callable(one) and id(one) not in walked and not (isinstance(one, type) and issubclass(one, Exception)):
            # What has two paths is looked for once.
            left.setdefault(id(one), name)
    assert sorted(left.values()) == sorted(name for names in REASONS.values() for name in names)
    assert len(WALK) > 300


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the readers of the walk read."""
    folder = tmp_path_factory.mktemp("walk")
    np.save(folder / "x.npy", np.zeros((6, 2), np.float32))
    np.save(folder / "labels.npy", np.arange(6))
    (folder / "x.csv").write_text("a,b\n1,2\n3,4\n")
    (folder / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    (folder / "pictures").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(folder / "pictures" / f"{name}.png")
    MODEL.save(folder / "c")
    scoresde.fit(fresh(), **{**trained(), "steps": 4}, folder=folder / "run", sigma_rel=0.05)
    small_unet().save_pretrained(folder / "unet" / "unet")
    diffusers.DDPMScheduler().save_pretrained(folder / "unet" / "scheduler")
    scoresde.write_shards(folder / "shards", 2, lambda rows: torch.zeros(rows.stop - rows.start, 2))
    return folder


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, files: Path) -> None:
    """Let the search for a table try few candidates, in the folder of the files."""
    monkeypatch.chdir(files)
    few = [*list_candidates(noise=False)][:2]
    monkeypatch.setattr(importlib.import_module("scoresde.sampling.tuning.choose"), "list_candidates", lambda **_: few)
    tuned = importlib.import_module("scoresde.sampling.tuning.calibrate")
    monkeypatch.setattr(tuned, "RUNGS", (3,))
    monkeypatch.setattr(tuned, "list_few", lambda grid: few)


@pytest.mark.filterwarnings("ignore::scoresde.TrainingWarning", "ignore::UserWarning", "ignore::RuntimeWarning")
@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", WALK)
def test_absurd_arguments_are_refused_or_do_no_harm(name: str) -> None:
    function, given = WALK[name]

    def right() -> dict[str, Any]:
        return dict(given() if callable(given) else given)

    function(**right())
    for parameter in parameters(function):
        for what, value in ABSURD.items():
            try:
                with bounded():
                    function(**{**right(), parameter: value})
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
        (
            lambda: scoresde.sample_posterior(
                GAUSSIAN, torch.eye(2), X[0], noise_std=1.0, n=1, method=scoresde.posterior
            ),
            DTypeError,
            "method must be a name or one of scoresde.guidance",
        ),
        (
            lambda: plots.training([{"step": 1, "loss": 0.5, "log_snr": [1], "loss_by_log_snr": [1, 2]}]),
            ConfigError,
            r"log\[0\] has 1 levels of log_snr and 2 losses",
        ),
        (lambda: plots.training([{"step": 1, "loss": "a"}]), DTypeError, r"log\[0\]\['loss'\] must be a number"),
        (lambda: scoresde.select(GAUSSIAN, 3, tolerance=2.5), DomainError, r"tolerance must lie in \(0, 1\]"),
        (lambda: scoresde.tune(GAUSSIAN, 3, parts=[]), ConfigError, "parts must name at least one of knots"),
        (lambda: scoresde.VPSDE().at(torch.ones(2, dtype=torch.complex64)), DTypeError, "t must be real"),
        (
            lambda: scoresde.DDPM.linear(100).marginal(X, 2**63),
            DomainError,
            r"index must lie in \[0, 100\), got 9223372036854775808",
        ),
        (lambda: TABLE.law(start=(0.0, -1.0)), DomainError, r"start\[1\] must lie in \[0, inf\)"),
        (lambda: scoresde.guidance.Blur.gaussian(1e6), DomainError, "std must lie in"),
        (lambda: scoresde.fit(fresh(), X, steps=1, calibrate=[]), DTypeError, "calibrate must be True or False"),
        (lambda: scoresde.fit(fresh(), X, steps=1, on_log=int), DTypeError, "on_log must be a function or None"),
        (lambda: plots.animation([X, X], "a.gif", hold=1e300), DomainError, r"hold must lie in \[0, 600\]"),
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
