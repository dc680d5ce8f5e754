"""Every random number of the package.

A sampler asks a ``NoiseSource`` to fill tensors with standard normal numbers, draw after draw: draw 0 is the start
state, the draws after it are the steps'. Three sources serve it:

* ``SampleNoise``: sample k of a call has numbers of its own, keyed (seed, draw, k). Any of them is reached at once, so
  a sample is the same whatever the batch size, the chunking, the number of processes or the device. With M SplitMix64's
  bijection of 64 bits and g its step (Steele, Lea and Flood 2014),

      start = M(M(seed + g) + (draw + 1) g),    word n of the draw = M(start + (n + 1) g)    (mod 2**64).

  A word is two integers w of 32 bits, the lower half first; sample k of ``size`` numbers has the integers k size ...
  (k + 1) size - 1. Its numbers are sqrt(2) erfinv(w (1 - 2**-24) / 2**31): normal by inversion, at most 5.42.
* ``GeneratorNoise``: the ordinary stream of a ``torch.Generator``.
* ``TapeNoise``: recorded tensors, in order.

The global generators of torch, numpy and random are never used here, and left as they were. Normal numbers are drawn in
float32 and cast, so that a float64 run sees the same noise as a float32 run.
"""

from __future__ import annotations

import hashlib
import math
import random
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from scoresde.errors.kinds import ConfigError, DomainError, DTypeError, ShapeError, read_integer, show
from scoresde.errors.tensors import check_floating, check_samples
from scoresde.errors.values import keep_integer

__all__ = [
    "GeneratorNoise",
    "NoiseSource",
    "SampleNoise",
    "TapeNoise",
    "check_generator",
    "check_seed",
    "check_tape",
    "draw_noise",
    "fresh_seed",
    "integers",
    "normal",
    "on_cpu",
    "permutation",
    "seeded",
    "seeded_torch",
    "stream",
    "undisturbed",
    "uniform",
]

# SplitMix64: the step from word to word; the shifts of its bijection, each with the factor that follows it.
STEP = 0x9E3779B97F4A7C15
MIXING = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
# Numbers made at a time: on the CPU what its caches hold, on a GPU enough to be worth the launches.
PIECE = {"cpu": 2**16, "cuda": 2**20}
# Integers of 32 bits to (-1, 1): at most 1 - 2**-24, the last float32 below 1.
SCALE = (1 - 2.0**-24) / 2**31
ROOT_2 = torch.tensor(math.sqrt(2), dtype=torch.float32, device="cpu")


class NoiseSource(Protocol):
    """What a sampler needs of randomness: fill the next draw, and start again for a replay."""

    def fill(self, out: Tensor) -> None:
        """Fill ``out`` of shape (B, *) with the next draw of standard normal numbers."""

    def mark(self) -> object:
        """Return the place in the stream, for ``restore``."""

    def restore(self, mark: object) -> None:
        """Go back to a marked place."""


def check_seed(seed: object, name: str = "seed") -> int:
    """Return ``seed`` if it is an integer in [0, 2**64), else raise DTypeError or DomainError."""
    number = read_integer(seed)
    if number is None:
        raise DTypeError(f"{name} must be an integer or None, got {show(seed)} of type {type(seed).__name__}")
    if not 0 <= number < 2**64:
        allowed = "in [0, 2**64)"
        raise DomainError(f"{name} must lie {allowed}, got {show(number)}", parameter=name, got=number, allowed=allowed)
    return number


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put Python's and NumPy's global generators back at the end: around packages that draw when they are imported."""
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002 only read, to be put back
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)  # noqa: NPY002


@contextmanager
def seeded(seed: int, *key: int | str) -> Iterator[Callable[..., None]]:
    """Set the global generators of torch, NumPy and Python from ``(seed, *key)``; put them back at the end.

    Around somebody's code that draws from them, so that what it draws is named by a seed. It yields a function that
    sets them anew, from ``(seed, *key)`` and a further key.
    """

    def begin(*further: int | str) -> None:
        number = stream(seed, *key, *further).initial_seed()
        torch.default_generator.manual_seed(number)
        random.seed(number)
        np.random.seed(number % 2**32)  # noqa: NPY002

    state = torch.default_generator.get_state()
    with undisturbed():
        try:
            begin()
            yield begin
        finally:
            torch.default_generator.set_state(state)


@contextmanager
def seeded_torch(device: torch.device, seed: int, *key: int | str) -> Iterator[None]:
    """Set torch's global generator, and the device's, from ``(seed, *key)``; put them back at the end.

    Around a network of somebody's own, whose dropout draws from them.
    """
    number = stream(seed, *key).initial_seed()
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(number)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def fresh_seed() -> int:
    """Draw a seed from the operating system, small enough to be typed again."""
    return secrets.randbits(32)


def stream(seed: int, *key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator for ``(seed, *key)``; other keys give independent streams.

    The seed and the key are hashed (BLAKE2b), so neighbouring seeds or keys share nothing.
    """
    digest = hashlib.blake2b(repr((check_seed(seed), *key)).encode(), digest_size=8).digest()
    generator = torch.Generator(device=device)
    generator.manual_seed(int.from_bytes(digest, "little") >> 1)
    return generator


def _place(generator: object) -> torch.device:
    """Return the device of a generator; DTypeError for what is none."""
    place = getattr(generator, "device", None)
    if isinstance(generator, Tensor) or not isinstance(place, torch.device):
        raise DTypeError(f"generator must be a torch.Generator, got {show(generator)}; a number is seed=")
    return place


def normal(shape: Sequence[int], generator: torch.Generator, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw standard normal numbers in float32 on the generator's device and cast them to ``dtype``."""
    device = _place(generator)
    return torch.randn(tuple(shape), generator=generator, device=device, dtype=torch.float32).to(dtype)


def uniform(shape: Sequence[int], generator: torch.Generator, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw numbers uniform on [0, 1) of type ``dtype`` on the generator's device."""
    return torch.rand(tuple(shape), generator=generator, device=_place(generator), dtype=dtype)


def integers(high: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw integers uniform on 0 ... high - 1 on the generator's device."""
    return torch.randint(high, tuple(shape), generator=generator, device=_place(generator))


def permutation(n: int, generator: torch.Generator) -> Tensor:
    """Draw a random order of 0 ... n - 1 on the generator's device."""
    return torch.randperm(n, generator=generator, device=_place(generator))


class _Counted:
    """A source whose place is the number of its next draw."""

    draw: int

    def mark(self) -> int:
        """Return the number of the next draw."""
        return self.draw

    def restore(self, mark: object) -> None:
        """Go back to a marked draw."""
        assert isinstance(mark, int)
        self.draw = mark


def _signed(word: int) -> int:
    """Return the integer in [-2**63, 2**63) that equals ``word`` modulo 2**64."""
    return (word + 2**63) % 2**64 - 2**63


def _mix(x: Tensor) -> Tensor:
    """Apply SplitMix64's bijection to words in place, and return them."""
    for places, factor in MIXING:
        x ^= (x >> places) & (2 ** (64 - places) - 1)  # int64 shifts its sign in
        if factor > 1:
            x *= _signed(factor)
    return x


def _mix_on_cpu(x: Tensor) -> Tensor:
    """Do the same with NumPy, which takes half the time that torch takes on the CPU."""
    words = x.numpy().view(np.uint64)
    shifted = np.empty_like(words)
    for places, factor in MIXING:
        np.right_shift(words, places, out=shifted)
        words ^= shifted
        if factor > 1:
            words *= factor
    return x


@cache
def _steps(device: torch.device) -> Tensor:
    """Return the step's multiples 1, 2, ... for the words of one piece."""
    return torch.arange(1, PIECE[device.type] // 2 + 2, device=device) * _signed(STEP)


def _integers(starts: Tensor, first: int, count: int) -> Tensor:
    """Return the int32 number ``first`` and those after it of streams that start here: (streams, count)."""
    word, odd = divmod(first, 2)
    starts, steps = starts[:, None] + _signed(word * STEP), _steps(starts.device)[: (odd + count + 1) // 2]
    # NumPy adds faster too.
    words = _mix(starts + steps) if starts.is_cuda else _mix_on_cpu(torch.from_numpy(starts.numpy() + steps.numpy()))
    return words.view(torch.int32)[:, odd : odd + count]


def _normal(starts: Tensor, first: int, count: int) -> Tensor:
    """Return the normal numbers of these integers, divided by sqrt(2)."""
    return _integers(starts, first, count).to(torch.float32).mul_(SCALE).erfinv_()


class SampleNoise(_Counted):
    """A stream for each sample, keyed (seed, sample), whatever batch the sample is in.

    Args:
        seed: seed of the call, in [0, 2**64).
        first_sample: number of the batch's first sample; ``first_sample=k`` redraws sample k alone.
        seeds: instead of both, one seed for each sample of the batch; sample k is then sample 0 of ``seeds[k]``.

    Raises:
        DTypeError, DomainError: a seed is not an integer in [0, 2**64).

    For a CUDA tensor the numbers are made on its device, from the same integers, for any other on the CPU. Small draws
    are made several at a time: as many as there have been, as long as they have ``PIECE`` numbers together.
    """

    def __init__(self, seed: int = 0, first_sample: int = 0, seeds: Sequence[int] | None = None) -> None:
        self.seed = check_seed(seed)
        self.seeds = None if seeds is None else [check_seed(s, f"seeds[{k}]") for k, s in enumerate(seeds)]
        self.first_sample = first_sample
        self.draw = 0
        named = np.array([self.seed] if self.seeds is None else self.seeds, dtype=np.uint64).view(np.int64)
        self._seeds = _mix_on_cpu(torch.from_numpy(named) + _signed(STEP))  # (streams,)
        self._ahead: tuple[Tensor, ...] = ()  # draws from number _first_ahead on, divided by sqrt(2)
        self._first_ahead = 0

    def rewind(self, draw: int = 0) -> None:
        """Go back so that the next draw is number ``draw``."""
        self.draw = draw

    def fill(self, out: Tensor) -> None:
        """Fill ``out`` of shape (B, *) with the next draw, sample by sample."""
        if self.seeds is not None and len(self.seeds) != len(out):
            raise ShapeError(f"seeds must name one seed for each of the {len(out)} samples, got {len(self.seeds)}")
        device = out.device if out.is_cuda else ROOT_2.device
        if out.device != device or not out.is_contiguous() or out.requires_grad:
            whole = torch.empty(out.shape, dtype=torch.float32, device=device)
            self.fill(whole)
            out.detach().copy_(whole)
            return
        if out.numel():
            place = self.draw - self._first_ahead
            made = self._ahead[place] if 0 <= place < len(self._ahead) else None
            if made is None or made.shape != out.shape or made.device != device:
                made = self._make(out)
            if made is not None:
                torch.mul(made, ROOT_2, out=out)
        self.draw += 1

    def _starts(self, draws: int, device: torch.device) -> Tensor:
        """Return where the streams of the next ``draws`` draws start, (draws, streams)."""
        # Waiting for the copy is needed where the CPU reads it, and not wanted where a GPU does.
        self._seeds = self._seeds.to(device, non_blocking=device.type == "cuda")
        numbers = torch.arange(self.draw + 1, self.draw + draws + 1, device=device)[:, None]
        return (_mix if device.type == "cuda" else _mix_on_cpu)(self._seeds + numbers * _signed(STEP))

    def _make(self, out: Tensor) -> Tensor | None:
        """Fill ``out`` with a large draw; make a small one and the ones after it, and return it divided by sqrt(2)."""
        piece, length = PIECE[out.device.type], out.numel() // len(self._seeds)
        first = 0 if self.seeds is not None else self.first_sample * (length // len(out))
        if out.numel() <= piece:
            starts = self._starts(max(1, min(self.draw, piece // out.numel())), out.device)
            made = _normal(starts.view(-1), first, length).view(-1, *out.shape)
            self._ahead, self._first_ahead = made.unbind(), self.draw
            return made[0]
        (starts,) = self._starts(1, out.device)
        numbers, rows = out.view(-1, length), max(1, piece // length)
        for i in range(0, len(starts), rows):
            for j in range(0, length, piece):
                part = numbers[i : i + rows, j : j + piece]
                torch.mul(_normal(starts[i : i + rows], first + j, part.shape[1]), ROOT_2, out=part)
        return None


class GeneratorNoise:
    """The ordinary stream of a ``torch.Generator``; it cannot be split over batches."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def mark(self) -> Tensor:
        return self.generator.get_state()

    def restore(self, mark: object) -> None:
        assert isinstance(mark, Tensor)
        self.generator.set_state(mark)

    def fill(self, out: Tensor) -> None:
        """Fill ``out`` with the next numbers of the stream."""
        if out.dtype == torch.float32:
            out.normal_(generator=self.generator)
        else:
            out.copy_(normal(out.shape, self.generator))


class TapeNoise(_Counted):
    """Recorded noise: a list of tensors, used in order.

    Raises:
        ShapeError: a tensor of the tape has another shape than the state, or the tape ends too early.
    """

    def __init__(self, tape: Sequence[Tensor], first_draw: int = 0) -> None:
        """Keep the tape; ``first_draw`` is the number of the draw that its first tensor serves."""
        self.tape = list(tape)
        self.first_draw = first_draw
        self.draw = first_draw

    def rewind(self, draw: int = 0) -> None:
        """Go back so that the next draw is number ``draw``."""
        self.draw = max(draw, self.first_draw)

    def fill(self, out: Tensor) -> None:
        """Copy the next tensor of the tape."""
        position = self.draw - self.first_draw
        if position >= len(self.tape):
            raise ShapeError(f"noise holds {len(self.tape)} tensors, the sampler asks for more; record one per draw")
        drawn = self.tape[position]
        if drawn.shape != out.shape:
            raise ShapeError(f"noise[{position}] has shape {tuple(drawn.shape)}, needed is {tuple(out.shape)}")
        out.copy_(drawn)
        self.draw += 1


def draw_noise(x0: Tensor, generator: torch.Generator) -> Tensor:
    """Draw noise of x0's shape on its device; on another than the CPU by a generator seeded from ``generator``."""
    source = generator
    if x0.device.type != "cpu":
        source = stream(int(integers(2**62, (), generator)), "noise", device=x0.device)
    return normal(x0.shape, source)


def on_cpu(generator: object) -> torch.Generator:
    """Return ``generator`` if it is one on the CPU, else raise ConfigError."""
    if not isinstance(generator, torch.Generator):
        raise ConfigError(
            f"generator must be a torch.Generator on the CPU, got {show(generator)}; "
            "make one with torch.Generator().manual_seed(0), and use it for every step"
        )
    if generator.device.type != "cpu":
        raise ConfigError(
            f"generator must be on the CPU, got {generator.device}: times are drawn there; the noise is made on x0's "
            "device by a generator seeded from it"
        )
    return generator


def check_tape(noise: object, needed: int, shape: Sequence[int]) -> None:
    """Raise DTypeError or ShapeError unless ``noise`` is ``needed`` finite tensors of this shape, or more."""
    if not isinstance(noise, (Sequence, Tensor)) or (isinstance(noise, Tensor) and noise.ndim == 0):
        raise DTypeError(f"noise must be a list of tensors, one for each draw, got {type(noise).__name__}")
    if isinstance(noise, Tensor):
        check_floating(noise, "noise")
    if len(noise) < needed:
        raise ShapeError(f"noise holds {len(noise)} tensors, {needed} are needed; record one for each draw")
    for k, z in enumerate(noise[:needed]):
        if check_samples(z, f"noise[{k}]").shape != tuple(shape):
            raise ShapeError(f"noise[{k}] has shape {tuple(z.shape)}, needed is {tuple(shape)}")


def check_generator(generator: object, device: torch.device, what: str = "the samples") -> None:
    """Raise DTypeError or ConfigError unless ``generator`` is one on ``device``, where ``what`` is."""
    place = _place(generator)
    if place.type != device.type:
        raise ConfigError(f"generator is on {place}, {what} on {device}; make it on that device")


@dataclass(frozen=True, eq=False, kw_only=True)
class Randomness:
    """Where the noise of one call comes from: one of four sources, and from it a source for each part of the batch.

    Args:
        batch: number of samples.
        device: where they are.
        seed: sample k has a stream of its own keyed (seed, k); where no source is named, a fresh one.
        seeds: one seed for each sample instead.
        first_sample: number of the first sample.
        generator: an ordinary torch generator instead.
        noise: recorded tensors instead, one for each draw.

    Raises:
        ConfigError: two sources, a generator elsewhere. DTypeError, ShapeError, DomainError: a source that is none.
    """

    batch: int
    device: torch.device
    seed: int | None = None
    seeds: Sequence[int] | None = None
    first_sample: int = 0
    generator: torch.Generator | None = None
    noise: Sequence[Tensor] | None = None

    def __post_init__(self) -> None:
        """Check the source, and draw a seed where none is named."""
        sources = {"seed": self.seed, "seeds": self.seeds, "generator": self.generator, "noise": self.noise}
        given = [name for name, source in sources.items() if source is not None]
        if len(given) > 1:
            raise ConfigError(f"give one source of randomness, got {' and '.join(given)}")
        keep_integer(self, "first_sample", 0, 2**63 - 1)
        if self.seeds is not None:
            if not isinstance(self.seeds, Sequence):
                raise DTypeError(
                    f"seeds must be a list of integers, one for each sample, got {show(self.seeds)}; one is seed="
                )
            if len(self.seeds) != self.batch:
                raise ShapeError(
                    f"seeds must name one seed for each of the {self.batch} samples, got {len(self.seeds)}"
                )
            for k, one in enumerate(self.seeds):
                check_seed(one, f"seeds[{k}]")
        if self.generator is not None:
            check_generator(self.generator, self.device)
        if self.seed is not None:
            object.__setattr__(self, "seed", check_seed(self.seed))
        elif not given:
            object.__setattr__(self, "seed", fresh_seed())

    def part(self, rows: slice, first_draw: int = 0) -> NoiseSource:
        """Return the source of some samples of the batch, whose first draw has the number ``first_draw``."""
        if self.generator is not None:
            return GeneratorNoise(self.generator)
        if self.noise is not None:
            return TapeNoise([z[rows] for z in self.noise], first_draw)
        own = None if self.seeds is None else list(self.seeds)[rows]
        source = SampleNoise(self.seed or 0, self.first_sample + rows.start, own)
        source.rewind(first_draw)
        return source
