"""The plain sources of random numbers: their streams and laws, and nothing global touched."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import sklearn.datasets
import sklearn.ensemble
import sklearn.neural_network
import torch
from scipy import stats

from scoresde import ShapeError, data, metrics
from scoresde.metrics.digits import DigitJudge
from scoresde.noise import (
    GeneratorNoise,
    SampleNoise,
    TapeNoise,
    fresh_seed,
    integers,
    normal,
    permutation,
    stream,
    undisturbed,
    uniform,
)


def test_generator_noise_is_the_plain_stream() -> None:
    source, plain = GeneratorNoise(stream(4)), stream(4)
    first, second = torch.empty(5, 3), torch.empty(5, 3)
    start = source.mark()
    source.fill(first)
    source.fill(second)
    assert torch.equal(first, normal((5, 3), plain))
    assert torch.equal(second, normal((5, 3), plain))
    wide = torch.empty(5, 3, dtype=torch.float64)
    source.restore(start)
    source.fill(wide)
    assert torch.equal(wide, first.double())


def test_tape_noise_plays_in_order() -> None:
    tape = [torch.full((2, 1), float(k)) for k in range(3)]
    source, out = TapeNoise(tape), torch.empty(2, 1, dtype=torch.float64)
    for k in range(3):
        source.fill(out)
        assert torch.equal(out, tape[k].double())
    with pytest.raises(ShapeError, match="noise holds 3 tensors, the sampler asks for more; record one per draw"):
        source.fill(out)
    source.rewind(1)
    source.fill(out)
    assert float(out[0]) == 1.0
    with pytest.raises(ShapeError, match=r"noise\[2\] has shape \(2, 1\), needed is \(3, 1\)"):
        source.fill(torch.empty(3, 1))
    steps_only = TapeNoise(tape, first_draw=1)
    steps_only.rewind(0)
    steps_only.fill(out)
    assert float(out[0]) == 0.0


def test_streams_differ_by_every_part_of_their_key() -> None:
    keys = [(), (0,), (1,), ("0",), ("a",), ("b",), ("a", "b"), ("ab",), ("b", "a"), (1, 2), (12,), (2, 1)]
    numbers = [normal((4,), stream(seed, *key)) for seed in (0, 1) for key in keys]
    assert len({tuple(n.tolist()) for n in numbers}) == 2 * len(keys)
    assert torch.equal(normal((4,), stream(3, "train", 2)), normal((4,), stream(3, "train", 2)))
    assert 0 <= fresh_seed() < 2**32
    assert len({fresh_seed() for _ in range(20)}) > 10


def test_neighbouring_streams_are_uncorrelated() -> None:
    def p_value(base: int, count: int) -> float:
        a, b = (normal((count,), stream(base, k)).double() for k in (0, 1))
        z = float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt()) * math.sqrt(count)
        return 2 * stats.norm.sf(abs(z))

    assert p_value(0, 100_000) > 1e-3 or p_value(1, 800_000) > 1e-5


def test_plain_functions_follow_their_laws() -> None:
    def p_values(seed: int, count: int) -> list[float]:
        counts = np.bincount(integers(6, (count,), stream(seed, "dice")).numpy(), minlength=6)
        first = np.bincount([int(permutation(5, stream(seed, k))[0]) for k in range(count // 100)], minlength=5)
        return [
            stats.kstest(normal((count,), stream(seed, "normal"), dtype=torch.float64).numpy(), "norm").pvalue,
            stats.kstest(uniform((count,), stream(seed, "uniform"), dtype=torch.float64).numpy(), "uniform").pvalue,
            stats.chisquare(counts).pvalue,
            stats.chisquare(first).pvalue,
        ]

    assert min(p_values(0, 50_000)) > 1e-3 / 4 or min(p_values(1, 400_000)) > 1e-5 / 4
    wide, narrow = (normal((9,), stream(1), dtype=dtype) for dtype in (torch.float64, torch.float32))
    assert torch.equal(wide, narrow.double())
    assert sorted(permutation(30, stream(2)).tolist()) == list(range(30))
    assert uniform((3, 2), stream(2)).shape == (3, 2)


def test_global_generators_are_left_alone() -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    SampleNoise(1).fill(torch.empty(10, 3))
    GeneratorNoise(stream(1)).fill(torch.empty(3))
    uniform((3,), stream(1))
    integers(3, (3,), stream(1))
    permutation(3, stream(1))
    fresh_seed()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]


def test_global_generators_are_put_back_around_what_moves_them() -> None:
    before = random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    with undisturbed():
        random.random()
        np.random.rand()  # noqa: NPY002

    @undisturbed()
    def fail() -> None:
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == before  # noqa: NPY002


FIRST_USE = """
import random
import numpy, torch
from scoresde.data import digits
from scoresde.metrics.digits import DigitJudge
def states():
    return random.getstate(), numpy.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()
before = states()
digits()
import sys
assert "sklearn" in sys.modules
assert states() == before
"""


def test_the_first_use_of_scikit_learn_moves_no_global_generator() -> None:
    """Its import does, through a package that draws a number: hence a process of its own."""
    subprocess.run([sys.executable, "-c", FIRST_USE], check=True)


class Drawing(ModuleType):
    """A module whose import draws, as far as the one who imports from it can tell."""

    def __init__(self, real: ModuleType) -> None:
        super().__init__(real.__name__)
        self.__dict__["real"] = real

    def __getattr__(self, name: str) -> object:
        if not name.startswith("__"):  # what the import system itself asks for
            random.random()
        return getattr(self.__dict__["real"], name)


@pytest.mark.parametrize(
    ("module", "call"),
    [
        (sklearn.datasets, data.digits),
        (sklearn.datasets, lambda: data.photographs(4, 2)),
        (sklearn.datasets, data.tabular),
        (sklearn.ensemble, lambda: metrics.classifier_two_sample_test(torch.eye(20), -torch.eye(20))),
        (sklearn.neural_network, DigitJudge.train),
    ],
)
def test_wherever_scikit_learn_is_imported_the_global_generators_stay(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, call: Callable[[], object]
) -> None:
    monkeypatch.setattr(sklearn.neural_network.MLPClassifier, "fit", lambda *_: None)  # takes seconds
    monkeypatch.setitem(sys.modules, module.__name__, Drawing(module))
    before = random.getstate()
    call()
    assert random.getstate() == before
