r"""Sources of somebody else's data: data sets of items, and loaders or iterables of batches.

Items are read in an order drawn from (seed, epoch); what an item draws as it is read (from the global generators of
torch, NumPy and Python) comes from (seed, epoch, index): neither depends on the number of workers. A loader or an
iterable of batches has an order of its own; what it draws for its n-th batch of an epoch comes from (seed, epoch, n),
and to reach a step it is read up to there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from scoresde.errors.kinds import ConfigError, DataError, ShapeError
from scoresde.models.prediction import Condition
from scoresde.noise import seeded, stream
from scoresde.sampling.processes import World
from scoresde.training.items import Pair, Reader, join
from scoresde.training.sources import ALONE, AtWill, Order, describe_values, spread_over

__all__ = ["Batched", "ItemSource", "Items", "Made", "StreamSource"]

SPREAD = 16  # items of a data set that stand for it in its digest
MEASURED = 65_536  # samples of a loader of unknown length from which moments are measured


@runtime_checkable
class Items(Protocol):
    """Items by number, as a ``torch.utils.data.Dataset`` has them, or a data set of Hugging Face."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> object: ...


class _Drawn(Dataset[Pair]):
    """Items, each read under global generators in a state of its own, which the reading process then has back."""

    def __init__(self, items: Items, read: Reader, seed: int) -> None:
        self.items, self.read, self.seed = items, read, seed

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Pair]:
        made = []
        with seeded(self.seed, "item") as begin:
            for epoch, index in keys:
                begin(epoch, index)
                made.append(self.read(self.items[index]))
        return made

    def __getitem__(self, key: tuple[int, int]) -> Pair:
        return self.__getitems__([key])[0]


class _Keys:
    """The keys (epoch, index) of the batches from a step on, without an end."""

    def __init__(self, order: Order, step: int) -> None:
        self.order, self.step = order, step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.step
        while True:
            yield [(epoch, int(i)) for epoch, index in self.order(step) for i in index]
            step += 1


class ItemSource(AtWill):
    """Batches of a data set of items.

    Args:
        items: N of them.
        read: gives x and the conditions of one.
        size: samples of a batch.
        seed: of the order and of what items draw.
        workers: processes that read ahead; 0 to read in this one.
        world: whose share of each batch is read.
    """

    def __init__(
        self, items: Items, read: Reader, *, size: int, seed: int, workers: int = 0, world: World = ALONE
    ) -> None:
        self.items, self.size, self.workers = items, size, workers
        self.order, self.drawn = Order(len(items), size, seed, world), _Drawn(items, read, seed)
        x, cond = self.drawn[(-1, 0)]
        self.cond_names = tuple(cond)
        self.event: tuple[int, ...] | None = tuple(x.shape)
        self._next: tuple[int, Iterator[Pair]] | None = None

    def read(self, step: int) -> tuple[Tensor, Condition]:
        if self._next is None or self._next[0] != step:
            self.close()
            self._next = step, self._load(_Keys(self.order, step))
        x, cond = next(self._next[1])
        self._next = step + 1, self._next[1]
        return x, cond or None

    def _load(self, keys: Iterable[list[tuple[int, int]]]) -> Iterator[Pair]:
        # What the loader itself draws, of which nothing here depends, comes from a generator of its own.
        own = stream(0, "loader")
        loader = DataLoader(
            self.drawn,
            batch_sampler=keys,
            num_workers=self.workers,
            collate_fn=join,
            generator=own,
        )
        # The loader draws a seed of its own on the default device, which may hold no values.
        with torch.device("cpu"):
            return iter(loader)

    def samples(self) -> Iterator[Tensor]:
        n = len(self.items)
        size = max(1, min(n, 256))
        keys = ([(-1, i) for i in range(low, min(n, low + size))] for low in range(0, n, size))
        return (x for x, _ in self._load(keys))

    def describe(self) -> dict[str, object]:
        x, cond = self.take(SPREAD)
        named = type(self.items).__name__
        described = {name: describe_values(value) for name, value in sorted(cond.items())}
        return {
            "data": f"{named}, {len(self.items)} like {describe_values(x)}",
            "cond": described,
            "batch_size": self.size,
        }

    def spread(self, n: int) -> dict[str, Tensor]:
        return self.take(n)[1] if self.cond_names else {}

    def take(self, n: int) -> Pair:
        """Return n items from all over the data as one batch."""
        index = [int(i) for i in spread_over(len(self.items), n)]
        return join(self.drawn.__getitems__([(-1, i) for i in index]), index)

    def close(self) -> None:
        self._next = None


class StreamSource:
    """Batches as a loader or an iterable gives them, epoch after epoch.

    Args:
        batches: gives an iterator over the batches of an epoch each time it is asked; one that is its own iterator can
            be read once.
        read: gives x and the conditions of a batch.
        seed: of what the batches draw from the global generators.
    """

    def __init__(self, batches: Iterable[Any], read: Reader, *, seed: int) -> None:
        self.batches, self.read_batch, self.seed = batches, read, seed
        self.once = isinstance(batches, Iterator)
        self.epoch = self.place = 0
        self._open: Iterator[object] | None = None
        self._seen: Condition = None
        self.cond_names: tuple[str, ...] = ()
        self.event: tuple[int, ...] | None = None
        self._first: Pair | None = None  # by which these data are told from others
        if not self.once:
            found = next(self.one_pass(), None)
            if found is None:
                raise ShapeError("data is empty: training needs at least one batch")
            self._first = found
            self._note(found[1])
            self.event = tuple(found[0].shape[1:])

    def _note(self, cond: Mapping[str, Tensor]) -> None:
        self.cond_names, self._seen = tuple(cond), dict(cond) or None

    def _begin(self) -> Iterator[object]:
        told = getattr(self.batches, "set_epoch", None) or getattr(
            getattr(self.batches, "sampler", None), "set_epoch", None
        )
        if told is not None:
            told(self.epoch)
        with seeded(self.seed, "batch", self.epoch, 0):
            return iter(self.batches)

    def _advance(self, epoch: int, place: int, source: Iterator[object]) -> object:
        with seeded(self.seed, "batch", epoch, place):
            return next(source)

    def read(self, step: int) -> tuple[Tensor, Condition]:
        opened = self._open is None
        if self._open is None:
            self._open = self._begin()
            for place in range(self.place):
                self._advance(self.epoch, place, self._open)
        try:
            batch = self._advance(self.epoch, self.place, self._open)
        except StopIteration:
            if self.once or (opened and self.place == 0):
                raise DataError(
                    f"the data ended before step {step}: an iterator is read once; give a loader, or a list of batches "
                    "inside an object with __iter__, which begins anew for every epoch"
                ) from None
            self.epoch, self.place, self._open = self.epoch + 1, 0, None
            return self.read(step)
        self.place += 1
        x, cond = self.read_batch(batch)
        check_batch_of(x, cond)
        self._note(cond)
        return x, cond or None

    def one_pass(self) -> Iterator[Pair]:
        """Yield the batches of epoch 0, without moving from the place."""
        if self.once:
            raise ConfigError(
                "data is an iterator, which is read once: its moments cannot be measured; give moments=Moments.of(some "
                "of the data, as the model sees them), or a loader"
            )
        source, place = self._begin(), 0
        while True:
            try:
                batch = self._advance(0, place, source)
            except StopIteration:
                return
            x, cond = self.read_batch(batch)
            check_batch_of(x, cond)
            yield x, cond
            place += 1

    def samples(self) -> Iterator[Tensor]:
        seen, whole = 0, isinstance(self.batches, Sized)
        for x, _ in self.one_pass():
            yield x
            seen += len(x)
            if not whole and seen >= MEASURED:
                return

    def describe(self) -> dict[str, object]:
        length = f"{len(self.batches)} batches" if isinstance(self.batches, Sized) else "batches"
        summary, told = "", {}
        if self._first is not None:
            summary = f", the first {describe_values(self._first[0])}"
            told = {name: describe_values(value) for name, value in sorted(self._first[1].items())}
        return {"data": f"{type(self.batches).__name__} of {length}{summary}", "cond": told, "batch_size": None}

    def spread(self, n: int) -> dict[str, Tensor]:
        return {key: value[torch.arange(n, device="cpu") % len(value)] for key, value in (self._seen or {}).items()}

    def state(self) -> dict[str, int]:
        return {"epoch": self.epoch, "place": self.place}

    def restore(self, state: Mapping[str, int]) -> None:
        # Data of another kind, changed on purpose, have no place: they begin.
        self.epoch, self.place, self._open = int(state.get("epoch", 0)), int(state.get("place", 0)), None

    def close(self) -> None:
        self._open = None


def check_batch_of(x: Tensor, cond: Mapping[str, Tensor]) -> None:
    """Raise ShapeError for a batch without samples, or whose conditions are of another number."""
    if x.ndim == 0 or not len(x):
        raise ShapeError(f"a batch of the data must have shape (B, *) with B >= 1, got {tuple(x.shape)}")
    for name, value in cond.items():
        if value.ndim == 0 or len(value) != len(x):
            raise ShapeError(
                f"cond[{name!r}] of a batch must have a first dimension of {len(x)}, got shape {tuple(value.shape)}"
            )


class Batched:
    """The items of an iterable data set in batches, the last of an epoch as small as it is."""

    def __init__(self, items: Iterable[Any], read: Reader, size: int) -> None:
        self.items, self.read, self.size = items, read, size

    def set_epoch(self, epoch: int) -> None:
        """Tell the data set, if it wants to know."""
        told = getattr(self.items, "set_epoch", None)
        if told is not None:
            told(epoch)

    def __iter__(self) -> Iterator[Pair]:
        held: list[Pair] = []
        for item in self.items:
            held.append(self.read(item))
            if len(held) == self.size:
                yield join(held)
                held = []
        if held:
            yield join(held)


class Made(Reader):
    """Batches that are read already."""

    def __init__(self, net: Callable[..., object]) -> None:
        super().__init__(net, None, "a batch")

    def __call__(self, item: object) -> Pair:
        made: Pair = item  # type: ignore[assignment]
        return made
