"""One file of a checkpoint, read with suspicion: what it is and how long it is come before what it holds.

A file is opened only if it is a regular one of the stated size (a link to a device, or a pipe, would block), stays
open, so that a writer may remove its name meanwhile, and is compared with its digest in constant memory. Of tensors the
names, types and shapes are known before any value is read: safetensors begins with the length of its header (8 bytes,
little end first) and the header, JSON of ``{name: {"dtype", "shape", "data_offsets"}}``.

Tensors may lie in several files, as the processes of a sharded training write them: what the files hold under one name
are the rows of one tensor, in the order of the files, and nothing else says so. Any rows can be read by themselves.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from scoresde.errors.kinds import CheckpointError
from scoresde.models.sharded import is_sharded, own_rows, shard_like

__all__ = ["TYPES", "Described", "StoredFile", "StoredTensors", "parse_json", "read_json_file"]

Described = tuple[tuple[int, ...], torch.dtype]
LONGEST_JSON = 1 << 26  # bytes
DEEPEST = 40  # lists and objects inside each other
MOST_DIMS = 64  # of a tensor, which torch has as well
ANOTHER_COPY = "take another copy of the checkpoint"
TYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
}


class StoredFile:
    """A regular file, open for reading as long as this lives.

    Args:
        path: where it is.
        size: its length in bytes, where it is known.
        digest: its SHA-256, where it is known; ``verify`` compares it.

    Raises:
        FileNotFoundError: nothing is there. CheckpointError: no regular file, one of another size, or unreadable.
    """

    def __init__(self, path: Path, size: int | None = None, digest: str | None = None) -> None:
        self.path, self._digest = path, digest
        try:
            _check_kind(path, path.stat(), size)
            # Between the look and the opening it may have become a pipe.
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
            weakref.finalize(self, os.close, handle)
            self._handle, found = handle, os.fstat(handle)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise CheckpointError(f"could not read {path}: {error.strerror or error}") from error
        _check_kind(path, found, size)
        self.size = found.st_size

    def read(self, length: int = -1) -> bytes:
        """Return the file, or its first bytes."""
        try:
            with open(self._handle, "rb", closefd=False) as stream:
                stream.seek(0)
                return stream.read(length)
        except OSError as error:
            raise CheckpointError(f"could not read {self.path}: {error.strerror or error}") from error

    def read_at(self, start: int, length: int) -> bytearray:
        """Return ``length`` bytes from a place on; CheckpointError where they are not there."""
        data = bytearray(length)
        try:
            with open(self._handle, "rb", closefd=False, buffering=0) as stream:
                stream.seek(start)
                view, done = memoryview(data), 0
                while done < length and (got := stream.readinto(view[done:])):
                    done += got
        except OSError as error:
            raise CheckpointError(f"could not read {self.path}: {error.strerror or error}") from error
        if done < length:
            raise CheckpointError(f"{self.path} has become shorter; {ANOTHER_COPY}")
        return data

    def check_length(self) -> None:
        """Raise CheckpointError where the file is longer than any document."""
        if self.size > LONGEST_JSON:
            raise CheckpointError(f"{self.path} has {self.size} bytes, more than the {LONGEST_JSON} of any document")

    def verify(self) -> None:
        """Raise CheckpointError where the file's SHA-256 is another one than is known; once."""
        if self._digest is None:
            return
        try:
            with open(self._handle, "rb", closefd=False) as stream:
                stream.seek(0)
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(f"could not read {self.path}: {error.strerror or error}") from error
        if found != self._digest:
            raise CheckpointError(f"{self.path} has changed: its SHA-256 is not the manifest's; take another copy")
        self._digest = None


@dataclass(frozen=True)
class _Piece:
    """Rows of a tensor in one file, from a byte on; of a 0-d tensor its value."""

    file: StoredFile
    start: int
    shape: tuple[int, ...]


class StoredTensors:
    """Tensors in safetensors files: their shapes and types (``described``), and on demand their values.

    Args:
        files: one, or those of several processes in the order of their ranks.

    Raises:
        CheckpointError: one is none, or they do not fit together.
    """

    def __init__(self, *files: StoredFile) -> None:
        self.files, self.file = files, files[0]
        self.described: dict[str, Described] = {}
        self._pieces: dict[str, list[_Piece]] = {}
        for file in files:
            self._read_header(file)

    @property
    def elements(self) -> int:
        """The number of values in all tensors together."""
        return sum(math.prod(shape) for shape, _ in self.described.values())

    def load(self, like: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the tensors by name, on the CPU.

        Args:
            like: of those that are sharded there, this process's rows are read and what is returned is sharded alike.
        """
        split = {name: x for name, x in (like or {}).items() if is_sharded(x)}
        if not split and len(self.files) == 1:
            self.file.verify()
            try:
                return safetensors.torch.load(self.file.read())
            except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
                raise _damaged(self.file, str(error)) from error
        made = {}
        for name, (shape, _) in self.described.items():
            x = split.get(name)
            if x is None or tuple(x.shape) != shape:
                made[name] = self._read_rows(name, slice(0, shape[0] if shape else 1))
            else:
                made[name] = shard_like(x, self._read_rows(name, own_rows(x)))
        return made

    def _read_rows(self, name: str, rows: slice) -> Tensor:
        """Return some rows of a tensor, from whatever files hold them."""
        shape, dtype = self.described[name]
        width = math.prod(shape[1:]) * dtype.itemsize
        data, first = bytearray(), 0
        for piece in self._pieces[name]:
            count = piece.shape[0] if piece.shape else 1
            low, high = max(rows.start, first), min(rows.stop, first + count)
            if low < high:
                piece.file.verify()
                data += piece.file.read_at(piece.start + (low - first) * width, (high - low) * width)
            first += count
        wanted = (rows.stop - rows.start, *shape[1:]) if shape else ()
        if not data:
            return torch.empty(wanted, dtype=dtype, device="cpu")
        return torch.frombuffer(data, dtype=torch.uint8).view(dtype).view(wanted)

    def _read_header(self, file: StoredFile) -> None:
        """Keep where a file has what."""
        length = int.from_bytes(file.read(8), "little")
        # Checked by the file's own length, so that no header is read that cannot be one.
        if file.size < 8 or length > min(file.size - 8, LONGEST_JSON):
            raise _damaged(file, f"its header has {length} bytes of {file.size}")
        end = 0
        spans = []
        header = parse_json(file.read(8 + length)[8:], file.path)
        for name, entry in header.items():
            if name != "__metadata__":
                spans.append(self._read_entry(file, 8 + length, name, entry))
        for begin, behind in sorted(spans):
            if begin != end:
                raise _damaged(
                    file, f"its tensors leave or share the bytes from {min(begin, end)} to {max(begin, end)}"
                )
            end = behind
        if end != file.size - 8 - length:
            raise _damaged(file, f"its tensors have {end} bytes, {file.size - 8 - length} are there")

    def _read_entry(self, file: StoredFile, origin: int, name: str, entry: object) -> tuple[int, int]:
        """Keep the type and the shape of a tensor, and return where its values begin and end."""
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise _damaged(file, f"{name} has no dtype, shape and data_offsets")
        kind, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(kind, str) or kind not in TYPES:
            raise _damaged(file, f"{name} has the unknown dtype {kind!r}")
        for what, value in (("shape", shape), ("data_offsets", span)):
            sound = isinstance(value, list) and len(value) <= MOST_DIMS
            if not sound or not all(type(n) is int and 0 <= n < 2**63 for n in value):
                raise _damaged(file, f"{name} has the {what} {str(value)[:60]}")
        if len(span) != 2 or span[1] - span[0] != math.prod(shape) * TYPES[kind].itemsize:
            raise _damaged(file, f"{name} of shape {shape} has the data_offsets {span}")
        before, here = self.described.get(name), tuple(shape)
        if before is None:
            self.described[name] = here, TYPES[kind]
        elif not shape or not before[0] or (before[0][1:], before[1]) != (here[1:], TYPES[kind]):
            raise _damaged(file, f"{name} of shape {shape} and dtype {kind} has no rows of {before[0]}, {before[1]}")
        else:
            self.described[name] = (before[0][0] + here[0], *here[1:]), TYPES[kind]
        self._pieces.setdefault(name, []).append(_Piece(file, origin + span[0], here))
        return span[0], span[1]


def _damaged(file: StoredFile, why: str) -> CheckpointError:
    return CheckpointError(f"{file.path} is no safetensors file: {why}; {ANOTHER_COPY}")


def read_json_file(path: Path) -> bytes:
    """Return the bytes of a file of JSON; raises as ``StoredFile``, and CheckpointError for one that is too long."""
    file = StoredFile(path)
    file.check_length()
    return file.read()


def parse_json(data: bytes, path: Path, *, infinite: bool = False) -> dict[str, Any]:
    """Return the JSON object that ``data`` is; CheckpointError for anything else.

    Doubled keys are refused, and so are NaN and Infinity, which other libraries write (``infinite``).
    """
    constant = float if infinite else _refuse_constant
    try:
        value = json.loads(data, parse_constant=constant, object_pairs_hook=_keep_pairs)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged, it is no JSON: {error}; {ANOTHER_COPY}") from error
    level: list[object] = [value]
    for _ in range(DEEPEST):
        level = [part for one in level if isinstance(one, dict | list) for part in _list_parts(one)]
    if level or not isinstance(value, dict):
        what = f"nested more than {DEEPEST} times" if level else f"no object but {str(value)[:40]!r}"
        raise CheckpointError(f"{path} is damaged, it is {what}; {ANOTHER_COPY}")
    return value


def _list_parts(value: dict[str, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is no number of JSON")


def _keep_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _check_kind(path: Path, found: os.stat_result, size: int | None) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"{path} is no regular file; {ANOTHER_COPY}")
    if size is not None and found.st_size != size:
        raise CheckpointError(f"{path} has {found.st_size} bytes, the manifest says {size}; {ANOTHER_COPY}")
