"""SampleNoise: the integers to the bit, normal numbers by inversion, the same under any split, independent streams."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from torch import Tensor

from scoresde import DomainError, DTypeError, ShapeError
from scoresde.noise import PIECE, STEP, SampleNoise, _integers, _mix, _mix_on_cpu, check_seed, stream

LARGEST = PIECE["cpu"]


def draws(count: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, **options: object) -> list[Tensor]:
    source = SampleNoise(**options)
    made = [torch.full(shape, torch.nan, dtype=dtype) for _ in range(count)]
    for out in made:
        source.fill(out)
    return made


EVENTS = [(), (1,), (2,), (3, 5), (1500,), (3, 40, 40), (LARGEST + 1,)]


@settings(max_examples=60)
@given(st.integers(0, 2**64 - 1), st.sampled_from(EVENTS), st.data())
def test_a_sample_is_the_same_under_any_split(seed: int, event: tuple[int, ...], data: st.DataObject) -> None:
    """Batches of fewer and of more numbers than are made at a time, and samples of more; odd and even numbers."""
    batch = data.draw(st.integers(1, 40 if math.prod(event) < LARGEST else 3))
    whole = draws(3, (batch, *event), seed=seed)
    cut = data.draw(st.integers(0, batch))
    parts = (draws(3, (cut, *event), seed=seed), draws(3, (batch - cut, *event), seed=seed, first_sample=cut))
    for k in range(3):
        assert torch.equal(torch.cat([part[k] for part in parts]), whole[k])
    k = data.draw(st.integers(0, batch - 1))
    alone = draws(3, (1, *event), seed=seed, first_sample=k)
    assert all(torch.equal(a[0], w[k]) for a, w in zip(alone, whole, strict=True))


@pytest.mark.parametrize("event", [(), (2,), (5000,), (LARGEST + 1,)])
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


@given(st.lists(st.tuples(st.integers(0, 70), st.sampled_from([(3, 2), (3, 5), (4, 2), (5000, 2), (40000, 2)]))))
def test_any_draw_of_any_shape_is_reached_at_once(wanted: list[tuple[int, tuple[int, ...]]]) -> None:
    """What was made ahead serves only the draw and the shape that it was made for."""
    source = SampleNoise(3, first_sample=7)
    for draw, shape in wanted:
        fresh = SampleNoise(3, first_sample=7)
        source.rewind(draw)
        fresh.rewind(draw)
        for _ in range(2):
            got, expected = torch.empty(shape), torch.empty(shape)
            source.fill(got)
            fresh.rewind(source.draw - 1)
            fresh.fill(expected)
            assert torch.equal(got, expected)


def test_rewinding_replays_any_draw() -> None:
    source, outs = SampleNoise(3), draws(20, (4, 2), seed=3)
    for k in (19, 4, 0, 2):
        source.rewind(k)
        got = torch.empty(4, 2)
        source.fill(got)
        assert torch.equal(got, outs[k])
    source.rewind()
    assert source.draw == 0
    source.fill(torch.empty(0, 2))
    source.fill(torch.empty(2, 0))
    assert source.draw == 2


@pytest.mark.parametrize("event", [(2,), (64,)])
def test_draws_samples_and_seeds_are_uncorrelated(event: tuple[int, ...]) -> None:
    """Correlations of n pairs are normal with variance 1/n; the worst of 12 stays below the level 1e-3 / 12."""

    def p_values(base: int, batch: int) -> list[float]:
        first, second = draws(2, (batch, *event), seed=base)
        (neighbour,) = draws(1, (batch, *event), seed=base + 1)
        (far,) = draws(1, (batch, *event), seed=base, first_sample=batch)
        (flipped,) = draws(1, (batch, *event), seed=base + 2**63)
        (stepped,) = draws(1, (batch, *event), seed=base + STEP)
        (listed,) = draws(1, (batch, *event), seeds=range(base, base + batch))
        away = 4096 // event[0]
        pairs = [(first, other) for other in (second, neighbour, far, flipped, stepped, listed)]
        pairs += [(listed[1:], listed[:-1])]
        pairs += [(first[1:], first[:-1]), (first[..., 1:], first[..., :-1]), (first[away:], first[:-away])]
        pairs += [(first.square() - 1, second.square() - 1), (first.square() - 1, neighbour.square() - 1)]
        found = []
        for a, b in pairs:
            a, b = (c.double().reshape(-1) for c in (a, b))
            z = float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt()) * math.sqrt(len(a))
            found.append(2 * stats.norm.sf(abs(z)))
        return found

    count = 40_000 // event[0] * 2
    assert min(p_values(11, count)) > 1e-3 / 12 or min(p_values(12345, 8 * count)) > 1e-5 / 12


def test_no_stream_is_another_one_shifted() -> None:
    """A counter that steps into its neighbour's numbers repeats them; chance repeats 1 float32 in some thousands."""
    streams = [draw.reshape(-1) for draw in draws(3, (4000, 1), seed=9)]
    streams += [draw.reshape(-1) for draw in draws(2, (4000, 1), seed=9, first_sample=5000)]
    streams += [draw.reshape(-1) for draw in draws(2, (4000, 1), seed=10)]
    assert all(len(one.unique()) > 3950 for one in streams)
    assert len(torch.cat(streams).unique()) > 0.99 * sum(map(len, streams))


@pytest.mark.parametrize("seeds", [False, True])
def test_draws_are_normal(seeds: bool) -> None:
    """By Kolmogorov and Smirnov, by the first four moments, and by how many lie beyond 4 and 5; also over seeds."""

    def p_values(seed: int, count: int) -> list[float]:
        options = {"seeds": range(seed, seed + count)} if seeds else {"seed": seed}
        numbers = torch.cat(draws(4, (count, 3), **options)).reshape(-1).double().numpy()
        n = numbers.size
        moments = [np.mean(numbers**k) - m for k, m in ((1, 0), (2, 1), (3, 0), (4, 3))]
        found = [2 * stats.norm.sf(abs(m) * math.sqrt(n / v)) for m, v in zip(moments, (1, 2, 15, 96), strict=True)]
        found += [stats.binomtest(int((abs(numbers) > c).sum()), n, 2 * stats.norm.sf(c)).pvalue for c in (4, 5)]
        return [*found, stats.kstest(numbers[:200_000], "norm").pvalue]

    assert min(p_values(0, 200_000)) > 1e-3 / 7 or min(p_values(10**9, 1_600_000)) > 1e-5 / 7


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
# The integers and the transform


def splitmix(state: int, number: int) -> int:
    """Output ``number`` of SplitMix64 seeded with ``state``, in Python's integers."""
    z = (state + (number + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def halves(seed: int, draw: int, first: int, count: int) -> list[int]:
    """The 32-bit integers of a draw, as they are documented."""
    start = splitmix(splitmix(seed, 0), draw)
    words = [splitmix(start, (first + k) // 2) for k in range(count)]
    parts = [word >> 32 * ((first + k) % 2) & (2**32 - 1) for k, word in enumerate(words)]
    return [part - 2**32 if part >= 2**31 else part for part in parts]


def drawn(seed: int, draw: int, first: int, count: int, device: str = "cpu") -> Tensor:
    source = SampleNoise(seed)
    source.rewind(draw)
    return _integers(source._starts(1, torch.device(device))[0], first, count)[0]


CASES = [(0, 0, 0, 4), (7, 3, 1, 5), (2**64 - 1, 10**6, 2**40 + 1, 2), (2**63, 1, (2**63 - 1) * 3072, 3)]


@pytest.mark.parametrize(("seed", "draw", "first", "count"), CASES)
def test_the_integers_are_those_of_splitmix64(seed: int, draw: int, first: int, count: int) -> None:
    assert splitmix(0, 0) == 0xE220A8397B1DCDAF  # its published first output
    assert drawn(seed, draw, first, count).tolist() == halves(seed, draw, first, count)


def test_the_integers_stay_the_same() -> None:
    assert drawn(0, 0, 0, 4).tolist() == [956087953, 595752380, -1249760172, -124115610]
    assert drawn(12345, 6, 789, 4).tolist() == [-253356838, 722888130, -297286585, 934875096]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_torch_and_numpy_mix_alike(words: list[int]) -> None:
    x = torch.tensor(words)
    assert torch.equal(_mix(x.clone()), _mix_on_cpu(x.clone()))


def test_the_normal_numbers_invert_their_distribution() -> None:
    """The same integers in float64: the numbers agree to the last places of float32."""
    source, out = SampleNoise(5), torch.empty(20_000, 3)
    source.fill(out)
    w = drawn(5, 0, 0, 60_000).numpy().astype(np.float32)
    exact = math.sqrt(2) * special.erfinv((w * np.float32((1 - 2.0**-24) / 2**31)).astype(np.float64))
    np.testing.assert_allclose(out.reshape(-1).numpy(), exact, rtol=1e-6)


def test_the_largest_integers_give_finite_numbers() -> None:
    ends = torch.tensor([-(2**31), 2**31 - 1, 0, -1], dtype=torch.int32).to(torch.float32) * ((1 - 2.0**-24) / 2**31)
    z = math.sqrt(2) * ends.erfinv()
    np.testing.assert_allclose(z[:2].numpy(), [-stats.norm.isf(2.0**-25), stats.norm.isf(2.0**-25)], rtol=1e-3)
    assert float(z[1]) < 5.42
    assert float(z[2:].abs().max()) < 1e-9


# ---------------------------------------------------------------------------------------------------------------------
# On a GPU

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@on_a_gpu
def test_a_gpu_makes_the_same_integers() -> None:
    for seed, draw, first, count in CASES:
        assert drawn(seed, draw, first, count, "cuda").tolist() == halves(seed, draw, first, count)


@on_a_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_gpu_makes_the_same_noise(dtype: torch.dtype) -> None:
    for shape in ((3,), (4096, 2), (5, 3, 7), (64, 3, 32, 32), (3, PIECE["cuda"] + 1)):
        for options in ({"seed": 9, "first_sample": 5}, {"seeds": range(shape[0])}):
            ours, theirs = SampleNoise(**options), SampleNoise(**options)
            for _ in range(5):
                here, there = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype, device="cuda")
                ours.fill(here)
                theirs.fill(there)
                # The last place of a float32 can decide how it is rounded to a narrower type.
                torch.testing.assert_close(there.cpu(), here, rtol=max(2e-6, 2 * torch.finfo(dtype).eps), atol=1e-7)


@on_a_gpu
def test_drawing_does_not_wait_for_the_gpu() -> None:
    """While the GPU sleeps for a second or more, forty draws are asked for, and it sleeps on."""
    out = torch.empty(64, 3, 32, 32, device="cuda")
    SampleNoise(0).fill(out)  # loads the kernels
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.synchronize()
    torch.cuda._sleep(4 * 10**9)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for source in (SampleNoise(1), SampleNoise(seeds=range(64))):
            for _ in range(20):
                source.fill(out)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert not torch.cuda.current_stream().query()
    torch.cuda.synchronize()
