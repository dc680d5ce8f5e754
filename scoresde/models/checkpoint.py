"""Checkpoints: a folder of safetensors and JSON under one manifest.

    manifest.json                      format, version, and for each part its file, size in bytes and SHA-256
    model-<digest>.json                a document
    weights-<digest>.safetensors       tensors

Every file is named by its content, so a save never writes over a file that the standing manifest names. It writes and
syncs the new files, then puts the new manifest in the old one's place in one rename: that is the moment at which the
checkpoint changes, and a process killed at any other leaves the old checkpoint or the new one, whole. Files that no
manifest names any more are removed afterwards.

Reading checks the size and the digest of every part before any of them is used, and the manifest by a digest of its
own. Pickles are refused, whatever they hold: loading one runs code from the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from scoresde.errors import CheckpointError, check_path

__all__ = ["MANIFEST", "Contents", "check_target", "find", "is_whole", "read", "write"]

MANIFEST = "manifest.json"
IN_RUN = "checkpoint"  # the name of the checkpoint in a run's folder
FORMAT, VERSION = "scoresde checkpoint", 1
PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin"}
OURS = re.compile(r"[a-z_]+-[0-9a-f]{16}\.(json|safetensors)|\.[^/]+\.tmp")

Part = TypeVar("Part")
Documents = Mapping[str, Mapping[str, object]]
Tensors = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Contents:
    """What a checkpoint holds, verified; tensors are on the CPU.

    Args:
        folder: where it was read.
        documents: the JSON parts by name.
        parts: the safetensors parts by name, not parsed yet.
        files: for each part, the name of its file.
    """

    folder: Path
    documents: dict[str, dict[str, Any]]
    parts: dict[str, bytes]
    files: dict[str, str]

    def under(self, prefix: str) -> Contents:
        """Return the parts whose names begin with a prefix, without it."""

        def pick(held: Mapping[str, Part]) -> dict[str, Part]:
            return {name.removeprefix(prefix): part for name, part in held.items() if name.startswith(prefix)}

        return Contents(self.folder, pick(self.documents), pick(self.parts), pick(self.files))

    def lacks(self, name: str) -> CheckpointError:
        """Build the error for a part that is not there."""
        return CheckpointError(f"{self.folder} holds no {name!r}; it holds {', '.join(sorted(self.files))}")

    def document(self, name: str) -> dict[str, Any]:
        """Return a JSON part; CheckpointError where there is no such part."""
        if name not in self.documents:
            raise self.lacks(name)
        return self.documents[name]

    def tensors(self, part: str) -> dict[str, Tensor]:
        """Return the tensors of a part by name; CheckpointError where there is no such part."""
        if part not in self.parts:
            raise self.lacks(part)
        try:
            return safetensors.torch.load(self.parts[part])
        except SafetensorError as error:
            raise CheckpointError(f"{self.folder / self.files[part]} is no safetensors file: {error}") from error


def write(folder: str | os.PathLike[str], documents: Documents, tensors: Tensors) -> None:
    """Write a checkpoint, in one atomic change if one stands there already.

    Args:
        folder: made where it does not exist; else empty or a checkpoint.
        documents: JSON-able parts by name.
        tensors: parts of tensors by name.

    Raises:
        CheckpointError: the folder holds other files, or could not be written; what stood there stands unchanged.
    """
    where = Path(folder)
    check_target(where)
    parts = {name: (f"{name}-%s.json", _json(dict(value))) for name, value in documents.items()}
    for name, group in tensors.items():
        # Copies: safetensors refuses tensors that share memory, as tied weights do.
        copies = {key: t.detach().to("cpu", copy=True).contiguous() for key, t in group.items()}
        parts[name] = (f"{name}-%s.safetensors", safetensors.torch.save(copies))
    files: dict[str, object] = {}
    names: set[str] = set()
    for name, (pattern, data) in parts.items():
        digest = hashlib.sha256(data).hexdigest()
        names.add(pattern % digest[:16])
        files[name] = {"file": pattern % digest[:16], "bytes": len(data), "sha256": digest}
    body = {"format": FORMAT, "version": VERSION, "files": files}
    manifest = _manifest(body)
    needed = len(manifest) + sum(len(data) for _, data in parts.values())
    try:
        where.mkdir(parents=True, exist_ok=True)
        for name, (_, data) in parts.items():
            _put(where / _file(files[name]), data)
        # The names of the new files must be on disk before a manifest speaks of them.
        _sync(where)
        _put(where / MANIFEST, manifest)
        _sync(where)
    except OSError as error:
        raise CheckpointError(
            f"could not write {error.filename or where}: {error.strerror or error}; {needed} bytes are needed and "
            f"{_free(where)} are free; make room or choose another folder (a checkpoint that stood there is unchanged)"
        ) from error
    # The new checkpoint stands; what cannot be removed now is removed by the next save.
    with contextlib.suppress(OSError):
        for file in where.iterdir():
            if OURS.fullmatch(file.name) and file.name not in names:
                file.unlink()


def check_target(folder: Path) -> None:
    """Raise CheckpointError where ``folder`` is a file, or holds other files than a checkpoint's."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; a checkpoint is a folder: choose another name")
    foreign = sorted(f.name for f in folder.iterdir() if f.name != MANIFEST and not OURS.fullmatch(f.name))
    if foreign:
        raise CheckpointError(f"{folder} is not empty: it holds {foreign[0]!r}; choose an empty or a new folder")


def find(folder: str | os.PathLike[str]) -> Path:
    """Return the folder of a checkpoint: ``folder`` itself, or the one that a run keeps inside it."""
    where = check_path(folder, "folder")
    inside = where / IN_RUN
    return inside if (inside / MANIFEST).is_file() and not (where / MANIFEST).is_file() else where


def is_whole(folder: Path) -> bool:
    """Return whether a manifest is there, and every file that it names; nothing else is verified."""
    try:
        return all((folder / _file(entry)).is_file() for entry in _read_manifest(folder / MANIFEST).values())
    except CheckpointError:
        return False


def read(folder: str | os.PathLike[str]) -> Contents:
    """Read and verify a checkpoint.

    Raises:
        CheckpointError: no checkpoint, a pickle, a newer format, or a file that is missing, cut or changed.
    """
    where = Path(folder)
    if where.suffix in PICKLES and not where.is_dir():
        raise CheckpointError(
            f"{where} is a pickle, and loading one runs whatever code it holds: refused. "
            "Load its state dict in a process that you trust, put it into the network and use ScoreModel.save"
        )
    if not where.is_dir():
        raise CheckpointError(f"{where} is no folder; a checkpoint is the folder that was given to save")
    if not (where / MANIFEST).is_file():
        pickles = sorted(f.name for f in where.iterdir() if f.suffix in PICKLES)
        hint = f"; {pickles[0]} is a pickle, which is never loaded" if pickles else ""
        raise CheckpointError(f"{where} holds no {MANIFEST}: it is no checkpoint, or its first save never ended{hint}")
    documents: dict[str, dict[str, Any]] = {}
    parts: dict[str, bytes] = {}
    files: dict[str, str] = {}
    for name, entry in _read_manifest(where / MANIFEST).items():
        file = where / _file(entry)
        data = _read_verified(file, entry)
        files[name] = file.name
        if file.suffix == ".json":
            documents[name] = json.loads(data)
        else:
            parts[name] = data
    return Contents(where, documents, parts, files)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _manifest(body: dict[str, object]) -> bytes:
    return _json({**body, "sha256": hashlib.sha256(_json(body)).hexdigest()})


def _read_manifest(file: Path) -> dict[str, dict[str, object]]:
    data = _bytes(file)
    damaged = CheckpointError(f"{file} is damaged; take another copy of the checkpoint")
    try:
        body = json.loads(data)
    except ValueError as error:
        raise damaged from error
    if not isinstance(body, dict) or body.pop("sha256", None) is None:
        raise damaged
    version = body.get("version")
    if body.get("format") == FORMAT and isinstance(version, int) and version > VERSION:
        raise CheckpointError(
            f"{file} has format version {version}, this scoresde reads up to {VERSION}; update scoresde"
        )
    # Equality of the bytes, not only of the values: no flipped bit goes unseen.
    if data != _manifest(body) or body.get("format") != FORMAT or version != VERSION:
        raise damaged
    files: dict[str, dict[str, object]] = body["files"]
    if any(not OURS.fullmatch(_file(entry)) for entry in files.values()):
        raise damaged
    return files


def _file(entry: object) -> str:
    """Return the file name of a manifest's entry."""
    assert isinstance(entry, dict)
    return str(entry["file"])


def _read_verified(file: Path, entry: dict[str, object]) -> bytes:
    data = _bytes(file)
    if len(data) != entry["bytes"]:
        raise CheckpointError(
            f"{file} has {len(data)} bytes, the manifest says {entry['bytes']}; take another copy of the checkpoint"
        )
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise CheckpointError(f"{file} has changed: its SHA-256 is not the manifest's; take another copy")
    return data


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing; take another copy of the checkpoint") from error
    except OSError as error:
        raise CheckpointError(f"could not read {file}: {error.strerror or error}") from error


def _put(file: Path, data: bytes) -> None:
    """Write a file, on disk when this returns, in one atomic change."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync(folder: Path) -> None:
    """Make the names in a folder last; Windows keeps them without being asked."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _free(folder: Path) -> int:
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
