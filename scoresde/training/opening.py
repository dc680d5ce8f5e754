"""From whatever data may be to a source of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from scoresde.errors.kinds import ConfigError, ShapeError
from scoresde.models.prediction import check_condition
from scoresde.ops import Rows, accept_arrays, accept_rows
from scoresde.sampling.processes import World
from scoresde.training.datasets import Batched, Items, ItemSource, Made, StreamSource
from scoresde.training.items import Pair, Reader, Unpack
from scoresde.training.sources import ALONE, RowSource, Source

__all__ = ["USUAL_BATCH", "open_source", "read_all"]

USUAL_BATCH = 128


def open_source(
    data: object,
    cond: Mapping[str, object] | None,
    net: Callable[..., object],
    *,
    batch_size: int | None,
    seed: int,
    unpack: Unpack | None,
    workers: int,
    world: World = ALONE,
) -> Source:
    """Return the source of anything that data may be.

    Raises:
        DTypeError, ShapeError, DomainError, ConfigError: what cannot be read, and options that do not serve such data.
    """
    size = USUAL_BATCH if batch_size is None else batch_size
    if size < world.size:
        raise ConfigError(f"batch_size must be at least {world.size}, a sample for each process, got {size}")
    if isinstance(data, TensorDataset) and unpack is None and not workers:
        data, told = Reader(net, unpack, "an item")(tuple(data.tensors))
        cond, unpack = {**told, **(cond or {})} or None, None
    if isinstance(data, Tensor | np.ndarray | Rows | list | tuple | str | Mapping) or not isinstance(
        data, Items | Iterable
    ):
        if unpack is not None or workers:
            raise ConfigError("unpack= and workers= are for data sets and loaders; leave them out for arrays")
        return _open_rows(data, cond, size, seed, world)
    if cond is not None:
        raise ConfigError("cond= is for arrays; a data set or a loader gives the conditions with its items (unpack=)")
    if world.size > 1 and not isinstance(data, Items):
        raise ConfigError(
            "a loader or an iterable of batches cannot be shared out among processes; give the data set of its items"
        )
    if isinstance(data, DataLoader) or not isinstance(data, Items | IterableDataset):
        return _open_stream(data, net, batch_size, seed, unpack, workers)
    if isinstance(data, IterableDataset):
        if workers:
            raise ConfigError(
                "workers= cannot part an IterableDataset, each would read all of it; give a DataLoader of your own"
            )
        reader = Reader(net, unpack, "an item")
        return StreamSource(Batched(data, reader, size), Made(net), seed=seed)
    if len(data) == 0:
        raise ShapeError("data is empty: training needs at least one sample")
    return ItemSource(data, Reader(net, unpack, "an item"), size=size, seed=seed, workers=workers, world=world)


def _open_rows(data: object, cond: Mapping[str, object] | None, size: int, seed: int, world: World) -> RowSource:
    rows = accept_rows(data, "data")
    if len(rows) == 0:
        raise ShapeError("data is empty: training needs at least one sample")
    known = check_condition(accept_arrays(cond, "cond", only_read=True), len(rows), each=True)
    return RowSource(rows, known, size=size, seed=seed, world=world)


def _open_stream(
    data: Iterable[object],
    net: Callable[..., object],
    batch_size: int | None,
    seed: int,
    unpack: Unpack | None,
    workers: int,
) -> StreamSource:
    if batch_size is not None or workers:
        raise ConfigError("batch_size= and workers= are for arrays and data sets; a loader has its own, leave them out")
    if isinstance(data, DataLoader) and data.persistent_workers:
        raise ConfigError(
            "persistent workers go on drawing where they were, so that a resumed run draws otherwise; make the "
            "DataLoader without persistent_workers="
        )
    if isinstance(data, DataLoader) and data.generator is not None:
        raise ConfigError(
            "the DataLoader has a generator of its own, whose state no checkpoint keeps; make it without generator=, "
            "and fit's seed orders it"
        )
    return StreamSource(data, Reader(net, unpack, "a batch"), seed=seed)


def read_all(data: object, net: Callable[..., object], unpack: Unpack | None) -> Pair:
    """Return a data set of items, or one epoch of a loader, as one batch in memory: for data that are held out."""
    source = open_source(data, None, net, batch_size=None, seed=0, unpack=unpack, workers=0)
    if isinstance(source, RowSource):
        return source.data[:], dict(source.cond or {})
    if isinstance(source, ItemSource):
        return source.take(len(source.items))
    assert isinstance(source, StreamSource)
    found = list(source.one_pass())
    return (
        torch.cat([x for x, _ in found]),
        {name: torch.cat([told[name] for _, told in found]) for name in found[0][1]},
    )
