"""One file of a checkpoint, read with suspicion: what it is and how long it is come before what it holds.

A file is opened only if it is a regular one of the stated size (a link to a device, or a pipe, would block), stays
open, so that a writer may remove its name meanwhile, and is compared with its digest in constant memory. Of tensors the
names, types and shapes are known before any value is read: safetensors begins with the length of its header (8 bytes,
little end first) and the header, JSON of ``{name: {"dtype", "shape", "data_offsets"}}``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import weakref
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from scoresde.errors import CheckpointError

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

    Raises:
        FileNotFoundError: nothing is there. CheckpointError: no regular file, one of another size, or unreadable.
    """

    def __init__(self, path: Path, size: int | None = None) -> None:
        self.path = path
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

    def check_length(self) -> None:
        """Raise CheckpointError where the file is longer than any document."""
        if self.size > LONGEST_JSON:
            raise CheckpointError(f"{self.path} has {self.size} bytes, more than the {LONGEST_JSON} of any document")

    def check_digest(self, digest: str) -> None:
        """Raise CheckpointError where the file's SHA-256 is another one."""
        try:
            with open(self._handle, "rb", closefd=False) as stream:
                stream.seek(0)
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(f"could not read {self.path}: {error.strerror or error}") from error
        if found != digest:
            raise CheckpointError(f"{self.path} has changed: its SHA-256 is not the manifest's; take another copy")


class StoredTensors:
    """Tensors in a safetensors file: their shapes and types (``described``), and on demand their values.

    Args:
        file: the file, verified.

    Raises:
        CheckpointError: it is none.
    """

    def __init__(self, file: StoredFile) -> None:
        self.file = file
        self.described: dict[str, Described] = {}
        length = int.from_bytes(file.read(8), "little")
        # Checked by the file's own length, so that no header is read that cannot be one.
        if file.size < 8 or length > min(file.size - 8, LONGEST_JSON):
            raise self._damaged(f"its header has {length} bytes of {file.size}")
        end = 0
        spans = []
        header = parse_json(file.read(8 + length)[8:], file.path)
        for name, entry in header.items():
            if name != "__metadata__":
                spans.append(self._read_entry(name, entry))
        for begin, behind in sorted(spans):
            if begin != end:
                raise self._damaged(f"its tensors leave or share the bytes from {min(begin, end)} to {max(begin, end)}")
            end = behind
        if end != file.size - 8 - length:
            raise self._damaged(f"its tensors have {end} bytes, {file.size - 8 - length} are there")

    @property
    def elements(self) -> int:
        """The number of values in all tensors together."""
        return sum(math.prod(shape) for shape, _ in self.described.values())

    def load(self) -> dict[str, Tensor]:
        """Return the tensors by name, on the CPU."""
        try:
            return safetensors.torch.load(self.file.read())
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise self._damaged(str(error)) from error

    def _read_entry(self, name: str, entry: object) -> tuple[int, int]:
        """Keep the type and the shape of a tensor, and return where its values begin and end."""
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise self._damaged(f"{name} has no dtype, shape and data_offsets")
        kind, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(kind, str) or kind not in TYPES:
            raise self._damaged(f"{name} has the unknown dtype {kind!r}")
        for what, value in (("shape", shape), ("data_offsets", span)):
            sound = isinstance(value, list) and len(value) <= MOST_DIMS
            if not sound or not all(type(n) is int and 0 <= n < 2**63 for n in value):
                raise self._damaged(f"{name} has the {what} {str(value)[:60]}")
        if len(span) != 2 or span[1] - span[0] != math.prod(shape) * TYPES[kind].itemsize:
            raise self._damaged(f"{name} of shape {shape} has the data_offsets {span}")
        self.described[name] = tuple(shape), TYPES[kind]
        return span[0], span[1]

    def _damaged(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.file.path} is no safetensors file: {why}; {ANOTHER_COPY}")


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
