"""Noise: the same numbers under any split, independent streams, normality, and nothing global touched."""

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
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from scoresde import DomainError, DTypeError, ShapeError, data, metrics
from scoresde.metrics.digits import DigitJudge
from scoresde.noise import (
    BLOCK,
    GeneratorNoise,
    SampleNoise,
    TapeNoise,
    check_seed,
    fresh_seed,
    integers,
    normal,
    permutation,
    stream,
    undisturbed,
    uniform,
)


def draws(count: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, **options: object) -> list[Tensor]:
    source = SampleNoise(**options)
    made = [torch.full(shape, torch.nan, dtype=dtype) for _ in range(count)]
    for out in made:
        source.fill(out)
    return made


# ---------------------------------------------------------------------------------------------------------------------
# SampleNoise


@settings(max_examples=60)
@given(
    st.integers(0, 2**64 - 1),
    st.integers(1, 40),
    st.sampled_from([(), (1,), (2,), (3, 5), (1500,), (BLOCK,), (BLOCK + 1,), (3, 40, 40)]),
    st.data(),
)
def test_a_sample_is_the_same_under_any_split(
    seed: int, batch: int, event: tuple[int, ...], data: st.DataObject
) -> None:
    whole = draws(3, (batch, *event), seed=seed)
    cut = data.draw(st.integers(0, batch))
    parts = (draws(3, (cut, *event), seed=seed), draws(3, (batch - cut, *event), seed=seed, first_sample=cut))
    for k in range(3):
        assert torch.equal(torch.cat([part[k] for part in parts]), whole[k])
    k = data.draw(st.integers(0, batch - 1))
    alone = draws(3, (1, *event), seed=seed, first_sample=k)
    assert all(torch.equal(a[0], w[k]) for a, w in zip(alone, whole, strict=True))


@pytest.mark.parametrize("event", [(), (2,), (5000,)])
def test_a_list_of_seeds_is_many_single_calls(event: tuple[int, ...]) -> None:
    seeds = [7, 0, 2**64 - 1, 7]
    together = draws(2, (4, *event), seeds=seeds)
    for k, seed in enumerate(seeds):
        alone = draws(2, (1, *event), seed=seed)
        assert all(torch.equal(t[k], a[0]) for t, a in zip(together, alone, strict=True))
    assert torch.equal(together[0][0], together[0][3])
    assert not torch.equal(together[0][0], together[0][1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types_get_the_same_float32_numbers(dtype: torch.dtype) -> None:
    for got, expected in zip(draws(2, (6, 3), dtype, seed=5), draws(2, (6, 3), seed=5), strict=True):
        assert torch.equal(got, expected.to(dtype))


def test_any_layout_gets_the_same_numbers() -> None:
    (expected,) = draws(1, (6, 3, 4, 5), seed=5)
    strided = torch.empty(6, 3, 4, 5).to(memory_format=torch.channels_last)
    SampleNoise(5).fill(strided)
    assert torch.equal(strided, expected)
    part = torch.zeros(8, 4, 4, 5)
    SampleNoise(5).fill(part[1:7, :3])
    assert torch.equal(part[1:7, :3], expected)
    assert float(part[[0, 7]].abs().max()) == 0.0


def test_rewinding_replays_any_draw() -> None:
    source, outs = SampleNoise(3), draws(5, (4, 2), seed=3)
    for k in (4, 0, 2):
        source.rewind(k)
        got = torch.empty(4, 2)
        source.fill(got)
        assert torch.equal(got, outs[k])
    source.rewind()
    assert source.draw == 0
    source.fill(torch.empty(0, 2))
    assert source.draw == 1


@pytest.mark.parametrize("event", [(2,), (64,)])
def test_draws_samples_blocks_and_seeds_are_uncorrelated(event: tuple[int, ...]) -> None:
    """Correlations of n pairs are normal with variance 1/n; the worst of 9 stays below the level 1e-3 / 9."""

    def p_values(base: int, batch: int) -> list[float]:
        first, second = draws(2, (batch, *event), seed=base)
        (neighbour,) = draws(1, (batch, *event), seed=base + 1)
        (far,) = draws(1, (batch, *event), seed=base, first_sample=batch)
        (flipped,) = draws(1, (batch, *event), seed=base + 2**63)
        pairs = [(first, other) for other in (second, neighbour, far, flipped)]
        block = BLOCK // event[0]
        pairs += [(first[1:], first[:-1]), (first[..., 1:], first[..., :-1]), (first[block:], first[:-block])]
        pairs += [(first.square() - 1, second.square() - 1), (first.square() - 1, neighbour.square() - 1)]
        found = []
        for a, b in pairs:
            a, b = (c.double().reshape(-1) for c in (a, b))
            z = float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt()) * math.sqrt(len(a))
            found.append(2 * stats.norm.sf(abs(z)))
        return found

    count = 40_000 // event[0] * 2
    assert min(p_values(11, count)) > 1e-3 / 9 or min(p_values(12345, 8 * count)) > 1e-5 / 9


def test_no_stream_is_another_one_shifted() -> None:
    """A counter that steps into its neighbour's numbers repeats them; chance repeats 1 float32 in some thousands."""
    streams = [draw.reshape(-1) for draw in draws(3, (4000, 1), seed=9)]
    streams += [draw.reshape(-1) for draw in draws(2, (4000, 1), seed=9, first_sample=BLOCK)]
    streams += [draw.reshape(-1) for draw in draws(2, (4000, 1), seed=10)]
    assert all(len(one.unique()) > 3950 for one in streams)
    assert len(torch.cat(streams).unique()) > 0.99 * sum(map(len, streams))


def test_draws_are_normal() -> None:
    def p_value(seed: int, count: int) -> float:
        numbers = torch.cat(draws(4, (count, 3), seed=seed)).reshape(-1)
        return float(stats.kstest(numbers.double().numpy(), "norm").pvalue)

    assert p_value(0, 20_000) > 1e-3 or p_value(1, 160_000) > 1e-5


def test_bad_seeds_and_batches() -> None:
    for bad, error, message in (
        (-1, DomainError, r"seed must lie in \[0, 2\*\*64\), got -1"),
        (2**64, DomainError, r"seed must lie in \[0, 2\*\*64\), got 18446744073709551616"),
        (1.0, DTypeError, r"seed must be an integer or None, got 1\.0 of type float"),
        (True, DTypeError, "seed must be an integer or None, got True of type bool"),
        ("1", DTypeError, "seed must be an integer or None, got '1' of type str"),
    ):
        with pytest.raises(error, match=message):
            SampleNoise(bad)
        with pytest.raises(error, match=message):
            stream(bad)
    assert check_seed(2**64 - 1) == 2**64 - 1
    with pytest.raises(DomainError, match=r"seeds\[1\] must lie in \[0, 2\*\*64\), got -5"):
        SampleNoise(seeds=[0, -5])
    for count in (1, 4):
        with pytest.raises(ShapeError, match=f"seeds must name one seed for each of the {count} samples, got 2"):
            SampleNoise(seeds=[1, 2]).fill(torch.empty(count, 2))


# ---------------------------------------------------------------------------------------------------------------------
# The other sources and the plain functions


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
    draws(2, (10, 3), seed=1)
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
