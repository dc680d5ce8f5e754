"""Samples of one process or of many in a folder, none of which holds them all.

    index.json                                        which rows are in which file, with its bytes and SHA-256
    samples-00000-of-00002-<digest>.npy               the rows of process 0 of 2
    samples-00001-of-00002-<digest>.npy               those after them

A process writes its rows to a file of its own as they are drawn, so that none needs more memory than a chunk, and no
two machines write to one file, which network file systems do not promise to keep whole. A file is named by its
content: a second job never writes over what the standing index names. When all have done, rank 0 puts the new index in
the old one's place, in one rename, and removes the files that it does not name. A job that dies before leaves what was
there.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from scoresde.errors.kinds import ConfigError, DataError, DTypeError, ShapeError
from scoresde.errors.names import check_choice
from scoresde.errors.values import check_callable, check_instance, check_integer, check_mapping, check_path
from scoresde.sampling.processes import World

__all__ = ["INDEX", "SAMPLES", "read_shards", "write_shards"]

INDEX, SAMPLES = "index.json", "samples"
FORMAT, VERSION = "scoresde samples", 1
OURS = re.compile(r"\w+-\d{5,}-of-\d{5,}-[0-9a-f]{16}\.npy|\.\w+-\d{5,}-of-\d{5,}\.npy\.part")

Draw = Callable[[slice], Tensor | Mapping[str, Tensor]]


def write_shards(
    folder: str | os.PathLike[str],
    n: int,
    draw: Draw,
    *,
    world: World | None = None,
    chunk_size: int = 512,
    about: Mapping[str, object] | None = None,
) -> None:
    """Draw n samples, each process its share, and write them into a folder; every process of the job calls it.

        def draw(rows: slice) -> Tensor:
            return sample(model, rows.stop - rows.start, seed=0, first_sample=rows.start)

        with processes() as world:
            write_shards("samples", 50_000, draw, world=world)

    Args:
        folder: made where it does not exist; what ``write_shards`` left there before is replaced at the end.
        n: number of samples of all processes together.
        draw: given rows of 0 ... n - 1, returns them, (rows, *), or several such tensors by name (letters, digits, _).
        world: this process's place; by default it is alone.
        chunk_size: largest number of rows asked of ``draw`` at once.
        about: what the index is to say of them, JSON-able.

    Raises:
        ConfigError: the folder is a file or holds other files, or an array's name. DTypeError, ShapeError, DomainError:
            what is drawn, or options that are none.
        ProcessError: another process has died; the folder's index is as it was.
    """
    where, here = check_path(folder, "folder"), World() if world is None else world
    count, size = check_integer(n, "n", 0), check_integer(chunk_size, "chunk_size", 1)
    check_callable(draw, "draw", "of a slice of rows -> these rows", optional=False)
    check_instance(here, World, "world", "that of `with processes() as world:`")
    told = {} if about is None else dict(check_mapping(about, "about", "what JSON can hold"))
    try:
        json.dumps(told, allow_nan=False)  # before the work, not after it
    except (TypeError, ValueError, RecursionError) as error:
        raise DTypeError(f"about must be what JSON can hold, finite and not too deep: {error}") from error
    _make_folder(where)
    rows = here.share(count)
    shard = _Shard(where, rows, f"{here.rank:05d}-of-{here.size:05d}")
    try:
        for start in range(rows.start, rows.stop, size):
            shard.add(draw(slice(start, min(start + size, rows.stop))))
        records = shard.close()
    finally:
        shard.drop()
    sent = torch.frombuffer(bytearray(json.dumps(records).encode()), dtype=torch.uint8)
    known = [json.loads(bytes(part.tolist())) for part in here.gather(sent)]
    if here.is_main:
        _write_index(where, count, _join(known), told)
    here.barrier()


def read_shards(
    folder: str | os.PathLike[str], name: str = SAMPLES, *, start: int = 0, stop: int | None = None
) -> Tensor:
    """Return rows start ... stop - 1 of what ``write_shards`` wrote, (rows, *), on the CPU; by default all of them.

    Only the rows that are asked for are read.

    Raises:
        DataError: no index, so that the job has not ended, or a file that is missing or cut.
        ConfigError: no such array (with the nearest). DTypeError, DomainError: rows that are not there.
    """
    where = check_path(folder, "folder")
    index = _read_index(where)
    arrays: dict[str, Any] = index["arrays"]
    check_choice(f"array of {where}", name, arrays, parameter="name")
    last = check_integer(index["n"] if stop is None else stop, "stop", 0, index["n"])
    first = check_integer(start, "start", 0, last)
    array = arrays[name]
    out = np.empty((last - first, *array["event"]), dtype=np.dtype(array["dtype"]))
    for shard in array["shards"]:
        low, high = max(first, shard["first"]), min(last, shard["first"] + shard["rows"])
        if low < high:
            rows = slice(low - shard["first"], high - shard["first"])
            out[low - first : high - first] = _open(where / shard["file"], shard, array)[rows]
    return torch.from_numpy(out)


@dataclass
class _Array:
    """A file of rows that grows: its header is written with the first of them."""

    path: Path
    dtype: str
    event: tuple[int, ...]
    stream: BinaryIO
    digest: Any = field(default_factory=hashlib.sha256)
    length: int = 0
    rows: int = 0

    def put(self, data: bytes) -> None:
        self.stream.write(data)
        self.digest.update(data)
        self.length += len(data)


class _Shard:
    """The files of one process."""

    def __init__(self, folder: Path, rows: slice, tail: str) -> None:
        self.folder, self.rows, self.tail = folder, rows, tail
        self.arrays: dict[str, _Array] = {}

    def add(self, drawn: Tensor | Mapping[str, Tensor]) -> None:
        """Write the next rows of every array."""
        named = drawn if isinstance(drawn, Mapping) else {SAMPLES: drawn}
        if self.arrays and named.keys() != self.arrays.keys():
            raise ConfigError(f"draw returned {', '.join(named)}, before {', '.join(self.arrays)}")
        for name, x in named.items():
            if not isinstance(x, Tensor):
                raise DTypeError(f"draw must return a tensor, or tensors by name, got {type(x).__name__} for {name!r}")
            # NumPy has no bfloat16.
            values = (x.float() if x.dtype == torch.bfloat16 else x).detach().cpu().contiguous().numpy()
            array = self.arrays.get(name) or self._begin(name, values)
            if (values.dtype.str, values.shape[1:]) != (array.dtype, array.event):
                raise ShapeError(f"draw returned {name!r} of {values.dtype} {values.shape}, before other rows")
            array.put(values.tobytes())
            array.rows += len(values)

    def _begin(self, name: str, values: np.ndarray[Any, Any]) -> _Array:
        if not re.fullmatch(r"\w+", name, re.ASCII) or values.ndim == 0:
            raise ConfigError(f"draw must return tensors (rows, *) by names of letters, digits and _, got {name!r}")
        path = self.folder / f".{name}-{self.tail}.npy.part"
        array = _Array(path, values.dtype.str, values.shape[1:], path.open("wb"))
        self.arrays[name] = array
        shape = (self.rows.stop - self.rows.start, *array.event)
        head = {"descr": array.dtype, "fortran_order": False, "shape": shape}
        memory = io.BytesIO()
        np.lib.format.write_array_header_1_0(memory, head)
        array.put(memory.getvalue())
        return array

    def close(self) -> dict[str, dict[str, object]]:
        """Give the files their names, and return what the index says of them."""
        records: dict[str, dict[str, object]] = {}
        for name, array in self.arrays.items():
            if array.rows != self.rows.stop - self.rows.start:
                raise ShapeError(
                    f"draw returned {array.rows} rows of {name!r} for {self.rows.stop - self.rows.start}; return one "
                    "for each that is asked for"
                )
            array.stream.flush()
            os.fsync(array.stream.fileno())
            array.stream.close()
            digest = array.digest.hexdigest()
            file = f"{name}-{self.tail}-{digest[:16]}.npy"
            array.path.replace(self.folder / file)
            shard: dict[str, object] = {"first": self.rows.start, "rows": array.rows, "file": file}
            shard |= {"bytes": array.length, "sha256": digest}
            records[name] = {"dtype": array.dtype, "event": list(array.event), "shards": [shard]}
        return records

    def drop(self) -> None:
        """Remove what has no name yet."""
        for array in self.arrays.values():
            array.stream.close()
            array.path.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    """Make the folder; ConfigError where it is a file or holds other files than ours."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file", parameter="folder", got=str(folder), cure="name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(file.name for file in folder.iterdir())
    foreign = [name for name in names if name not in (INDEX, f".{INDEX}.tmp") and not OURS.fullmatch(name)]
    if foreign:
        raise ConfigError(
            f"{folder} holds {foreign[0]!r}, which is no file of samples",
            parameter="folder",
            got=str(folder),
            cure="name an empty or a new folder",
        )


def _join(known: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the arrays of all processes; those of a process without rows are nowhere."""
    arrays: dict[str, dict[str, Any]] = {}
    there = [records for records in known if records]
    for records in there:
        for name, record in records.items():
            array = arrays.setdefault(name, {**record, "shards": []})
            if (array["dtype"], array["event"]) != (record["dtype"], record["event"]):
                raise ShapeError(f"the processes drew {name!r} of several types or shapes: {array} and {record}")
            array["shards"].extend(record["shards"])
    if any(records.keys() != arrays.keys() for records in there):
        raise ConfigError(f"the processes drew different arrays, {', '.join(arrays)} together; draw the same in all")
    return arrays


def _write_index(folder: Path, n: int, arrays: Mapping[str, Mapping[str, Any]], about: Mapping[str, object]) -> None:
    """Put the index in place, and remove the files that it does not name."""
    body = {"format": FORMAT, "version": VERSION, "n": n, "arrays": arrays, "about": about}
    temporary = folder / f".{INDEX}.tmp"
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(body, indent=1, allow_nan=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(folder / INDEX)
    kept = {shard["file"] for array in arrays.values() for shard in array["shards"]}
    for file in folder.iterdir():
        if OURS.fullmatch(file.name) and file.name not in kept:
            file.unlink(missing_ok=True)


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    if not path.is_file():
        raise DataError(f"{folder} has no {INDEX}, which is written last: what draws its samples has not ended")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}; draw the samples again") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise DataError(f"{path} is no index of samples; name a folder that write_shards wrote")
    if index["version"] > VERSION:
        raise DataError(f"{path} has version {index['version']}, this scoresde reads up to {VERSION}; update scoresde")
    return index


def _open(path: Path, shard: Mapping[str, Any], array: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """Return the rows of a file, mapped."""
    there = path.stat().st_size if path.is_file() else None
    if there != shard["bytes"]:
        what = "is missing" if there is None else f"has {there} bytes, its index says {shard['bytes']}"
        raise DataError(f"{path} {what}; draw the samples again")
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    if (mapped.dtype.str, list(mapped.shape[1:])) != (array["dtype"], array["event"]):
        raise DataError(f"{path} holds {mapped.dtype} {mapped.shape}, its index says otherwise; draw the samples again")
    rows: np.ndarray[Any, Any] = mapped
    return rows
