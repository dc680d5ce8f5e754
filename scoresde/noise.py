"""Every random number of the package.

A sampler asks a ``NoiseSource`` to fill tensors with standard normal numbers, draw after draw: draw 0 is the start
state, the draws after it are the steps'. Three sources serve it:

* ``SampleNoise``: sample k of a call has a stream of its own, keyed (seed, k). Samples share a block of about 4096
  numbers, which is always read from its beginning. Each block of each draw starts the generator SFC64 (Doty-Humphrey
  2010) anew, from a state of 256 bits that is the hash (BLAKE2b) of (seed, draw, block): any of them is reached at
  once, so a sample is the same whatever the batch size, the chunking or the number of processes.
* ``GeneratorNoise``: the ordinary stream of a ``torch.Generator``.
* ``TapeNoise``: recorded tensors, in order.

The global generators of torch, numpy and random are never used and never touched. Normal numbers are drawn in float32
and cast, so that a float64 run sees the same noise as a float32 run.
"""

from __future__ import annotations

import hashlib
import random
import secrets
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from scoresde.errors import ConfigError, DomainError, DTypeError, ShapeError, check_integer, check_samples

__all__ = [
    "GeneratorNoise",
    "NoiseSource",
    "SampleNoise",
    "TapeNoise",
    "check_seed",
    "check_tape",
    "draw_noise",
    "fresh_seed",
    "integers",
    "normal",
    "on_cpu",
    "permutation",
    "stream",
    "undisturbed",
    "uniform",
]

BLOCK = 4096


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
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise DTypeError(f"{name} must be an integer or None, got {seed!r} of type {type(seed).__name__}")
    if not 0 <= seed < 2**64:
        allowed = "in [0, 2**64)"
        raise DomainError(f"{name} must lie {allowed}, got {seed}", parameter=name, got=seed, allowed=allowed)
    return seed


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put Python's and NumPy's global generators back at the end: around packages that draw when they are imported."""
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002 only read, to be put back
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)  # noqa: NPY002


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


def normal(shape: Sequence[int], generator: torch.Generator, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw standard normal numbers in float32 on the generator's device and cast them to ``dtype``."""
    return torch.randn(tuple(shape), generator=generator, device=generator.device, dtype=torch.float32).to(dtype)


def uniform(shape: Sequence[int], generator: torch.Generator, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw numbers uniform on [0, 1) of type ``dtype`` on the generator's device."""
    return torch.rand(tuple(shape), generator=generator, device=generator.device, dtype=dtype)


def integers(high: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw integers uniform on 0 ... high - 1 on the generator's device."""
    return torch.randint(high, tuple(shape), generator=generator, device=generator.device)


def permutation(n: int, generator: torch.Generator) -> Tensor:
    """Draw a random order of 0 ... n - 1 on the generator's device."""
    return torch.randperm(n, generator=generator, device=generator.device)


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


class SampleNoise(_Counted):
    """A stream for each sample, keyed (seed, sample), whatever batch the sample is in.

    Args:
        seed: seed of the call, in [0, 2**64).
        first_sample: number of the batch's first sample; ``first_sample=k`` redraws sample k alone.
        seeds: instead of both, one seed for each sample of the batch; sample k is then sample 0 of ``seeds[k]``.

    Raises:
        DTypeError, DomainError: a seed is not an integer in [0, 2**64).

    The numbers are made on the CPU and copied, so that they are the same on every device.
    """

    def __init__(self, seed: int = 0, first_sample: int = 0, seeds: Sequence[int] | None = None) -> None:
        self.seed = check_seed(seed)
        self.seeds = None if seeds is None else [check_seed(s, f"seeds[{k}]") for k, s in enumerate(seeds)]
        self.first_sample = first_sample
        self.draw = 0
        self._bits = np.random.SFC64(0)
        self._generator = np.random.Generator(self._bits)
        self._state = self._bits.state

    def rewind(self, draw: int = 0) -> None:
        """Go back so that the next draw is number ``draw``."""
        self.draw = draw

    def _block(self, seed: int, block: int, out: np.ndarray) -> None:
        """Fill the vector ``out`` with the first numbers of a block of the current draw."""
        key = struct.pack("<3Q", seed, self.draw, block)
        state = self._state
        state["state"]["state"] = np.frombuffer(hashlib.blake2b(key, digest_size=32).digest(), dtype="<u8")
        state["has_uint32"] = 0
        self._bits.state = state
        self._generator.standard_normal(out=out, dtype=np.float32)

    def fill(self, out: Tensor) -> None:
        """Fill ``out`` of shape (B, *) with the next draw, sample by sample."""
        batch = out.shape[0]
        size = out[0].numel() if batch else 0
        direct = out.device.type == "cpu" and out.dtype == torch.float32 and out.is_contiguous()
        # Only a CPU float32 tensor can be written in place; others get a copy.
        numbers = out.detach().numpy().reshape(batch, size) if direct else np.empty((batch, size), dtype=np.float32)
        if self.seeds is not None:
            if len(self.seeds) != batch:
                raise ShapeError(f"seeds must name one seed for each of the {batch} samples, got {len(self.seeds)}")
            for k, seed in enumerate(self.seeds):
                self._block(seed, 0, numbers[k])
        else:
            per_block = max(1, BLOCK // max(1, size))
            done = 0
            while done < batch:
                block, offset = divmod(self.first_sample + done, per_block)
                take = min(per_block - offset, batch - done)
                whole = np.empty((offset + take) * size, dtype=np.float32) if offset else None
                part = numbers[done : done + take].reshape(-1)
                self._block(self.seed, block, part if whole is None else whole)
                if whole is not None:
                    part[:] = whole[offset * size :]
                done += take
        if not direct:
            out.copy_(torch.from_numpy(numbers).reshape(out.shape))
        self.draw += 1


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
            f"generator must be a torch.Generator on the CPU, got {generator!r}; "
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
    if not isinstance(noise, (Sequence, Tensor)):
        raise DTypeError(f"noise must be a list of tensors, one for each draw, got {type(noise).__name__}")
    if len(noise) < needed:
        raise ShapeError(f"noise holds {len(noise)} tensors, {needed} are needed; record one for each draw")
    for k, z in enumerate(noise[:needed]):
        if check_samples(z, f"noise[{k}]").shape != tuple(shape):
            raise ShapeError(f"noise[{k}] has shape {tuple(z.shape)}, needed is {tuple(shape)}")


def check_generator(generator: object, device: torch.device, what: str = "the samples") -> None:
    """Raise DTypeError or ConfigError unless ``generator`` is one on ``device``, where ``what`` is."""
    place = getattr(generator, "device", None)
    if not isinstance(place, torch.device):
        raise DTypeError(f"generator must be a torch.Generator, got {generator!r}; a number is seed=")
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
        check_integer(self.first_sample, "first_sample", 0, 2**63 - 1)
        if self.seeds is not None:
            if not isinstance(self.seeds, Sequence):
                raise DTypeError(
                    f"seeds must be a list of integers, one for each sample, got {self.seeds!r}; one is seed="
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
            check_seed(self.seed)
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
