r"""Where batches come from: a source gives the raw batch of each step. The one of arrays is here.

Arrays and data sets of items are read in an order drawn from (seed, epoch), so that any step's batch is reached without
those before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from scoresde.models.prediction import Condition
from scoresde.noise import permutation, stream
from scoresde.ops import Rows, move, parts
from scoresde.sampling.processes import World

__all__ = ["ALONE", "AtWill", "Order", "RowSource", "Source", "describe_values", "digest", "spread_over"]

DIGITS = 16  # of a digest that are kept
ALONE = World()


class Source(Protocol):
    """The raw data of a training, batch by batch."""

    cond_names: tuple[str, ...]
    event: tuple[int, ...] | None  # of the raw data; None where it is not known yet

    def read(self, step: int) -> tuple[Tensor, Condition]:
        """Return the data (B, *) and the conditions of a step, where the source has them."""
        ...

    def samples(self) -> Iterator[Tensor]:
        """Yield the samples, or as many as moments are measured from, in parts (n, *)."""
        ...

    def describe(self) -> dict[str, object]:
        """Return by name what tells these data from others, JSON-able."""
        ...

    def spread(self, n: int) -> dict[str, Tensor]:
        """Return the conditions of n samples from all over the data."""
        ...

    def state(self) -> dict[str, int]:
        """Return where the next batch is, for a source that is read in order; JSON-able."""
        ...

    def restore(self, state: Mapping[str, int]) -> None:
        """Go on from there."""
        ...

    def close(self) -> None:
        """Stop the workers, if there are any."""
        ...


class Order:
    """The indices of the samples of each step: epoch after epoch, each in an order drawn from (seed, epoch).

    Of several processes each has its share of every step, so that together they have the step of one.
    """

    def __init__(self, count: int, size: int, seed: int, world: World) -> None:
        self.count, self.size, self.seed, self.share = count, size, seed, world.share(size)
        self._order: tuple[int, Tensor] = (-1, torch.empty(0, dtype=torch.float32, device="cpu"))

    def __call__(self, step: int) -> list[tuple[int, Tensor]]:
        """Return the epochs that a step reaches into, each with its indices, on the CPU."""
        first, last, found = step * self.size + self.share.start, step * self.size + self.share.stop, []
        while first < last:
            epoch, place = divmod(first, self.count)
            if self._order[0] != epoch:
                self._order = epoch, permutation(self.count, stream(self.seed, "epoch", epoch))
            found.append((epoch, self._order[1][place : place + last - first]))
            first += len(found[-1][1])
        return found


class AtWill:
    """A source of which any step can be read at once: it has no place to keep."""

    def state(self) -> dict[str, int]:
        return {}

    def restore(self, state: Mapping[str, int]) -> None:
        pass

    def close(self) -> None:
        pass


class RowSource(AtWill):
    """Batches of arrays.

    Args:
        data: (N, *); only the rows of a batch are read.
        cond: conditions, each (N, *), or None.
        size: samples of a batch; one may reach over the end of an epoch.
        seed: of the order.
        world: whose share of each batch is read.
    """

    def __init__(self, data: Tensor | Rows, cond: Condition, *, size: int, seed: int, world: World = ALONE) -> None:
        self.data, self.cond, self.size = data, cond, size
        self.cond_names = tuple(cond or ())
        self.event: tuple[int, ...] | None = tuple(data.shape[1:])
        self.order = Order(len(data), size, seed, world)

    def read(self, step: int) -> tuple[Tensor, Condition]:
        found = [index for _, index in self.order(step)]
        index = found[0] if len(found) == 1 else torch.cat(found)

        def take(source: Tensor | Rows) -> Tensor:
            return source[move(index, source.device)]

        return take(self.data), None if self.cond is None else {k: take(v) for k, v in self.cond.items()}

    def samples(self) -> Iterator[Tensor]:
        return parts(self.data)

    def describe(self) -> dict[str, object]:
        cond = {name: describe_values(value) for name, value in sorted((self.cond or {}).items())}
        return {"data": describe_values(self.data), "cond": cond, "batch_size": self.size}

    def spread(self, n: int) -> dict[str, Tensor]:
        index = spread_over(len(self.data), n)
        return {key: value[move(index, value.device)] for key, value in (self.cond or {}).items()}


def spread_over(count: int, n: int) -> Tensor:
    """Return n indices spread evenly over 0 ... count - 1."""
    return torch.linspace(0, count - 1, n, dtype=torch.float64, device="cpu").round().long()


def digest(x: Tensor | Rows) -> str:
    """Return the SHA-256 of the samples' values, as they are read, by which changed data are known."""
    found = hashlib.sha256()
    for part in parts(x):
        whole = part.detach().cpu().contiguous()
        # NumPy has no bfloat16.
        found.update((whole.float() if whole.dtype == torch.bfloat16 else whole).numpy().data)
    return found.hexdigest()


def describe_values(x: Tensor | Rows) -> str:
    """Return number, shape, type and digest of samples."""
    event = " x ".join(map(str, x.shape[1:])) or "numbers"
    return f"{len(x)} of {event}, {str(x.dtype).removeprefix('torch.')}, sha256 {digest(x)[:DIGITS]}"
