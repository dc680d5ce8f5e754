"""Checkpoints: a folder of safetensors and JSON under one manifest.

    manifest.json                      format, version, and for each part its file, size in bytes and SHA-256
    model-<digest>.json                a document
    weights-<digest>.safetensors       tensors

Every file is named by its content, so a save never writes over a file that the standing manifest names. It writes and
syncs the new files, then puts the new manifest in the old one's place in one rename: that is the moment at which the
checkpoint changes, and a process killed at any other leaves the old checkpoint or the new one, whole. Files that the
manifest before named are removed afterwards. A save holds the lock of ``models.lock``: of two writers one works.

Reading looks at what every part is, its size and its digest before any of them is used, and at the manifest by a digest
of its own; ``models.documents`` has what each may say. A reader beside a writer opens all files of one manifest, and
reads it again where one is gone. Pickles are refused, whatever they hold: loading one runs code from the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
from torch import Tensor

from scoresde.errors import CheckpointError, check_path
from scoresde.models.documents import check_document
from scoresde.models.lock import IN_RUN, LOCK, locked
from scoresde.models.stored import StoredFile, StoredTensors, parse_json, read_json_file

__all__ = ["MANIFEST", "Contents", "check_target", "find", "is_whole", "read", "write"]

MANIFEST = "manifest.json"
FORMAT, VERSION = "scoresde checkpoint", 1
PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin"}
OURS = re.compile(r"[a-z_]+-[0-9a-f]{16}\.(json|safetensors)|\.[^/]+\.tmp")
DIGEST = re.compile("[0-9a-f]{64}")

Part = TypeVar("Part")
Documents = Mapping[str, Mapping[str, object]]
Tensors = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Contents:
    """What a checkpoint holds, verified; tensors are on the CPU.

    Args:
        folder: where it was read.
        documents: the JSON parts by name.
        parts: the safetensors parts by name, of which names, types and shapes are read and no values yet.
        files: for each part, the name of its file.
    """

    folder: Path
    documents: dict[str, dict[str, Any]]
    parts: dict[str, StoredTensors]
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

    def stored(self, part: str) -> StoredTensors:
        """Return the types and shapes of a part's tensors; CheckpointError where there is no such part."""
        if part not in self.parts:
            raise self.lacks(part)
        return self.parts[part]

    def tensors(self, part: str) -> dict[str, Tensor]:
        """Return the tensors of a part by name; CheckpointError where there is no such part."""
        return self.stored(part).load()


def write(folder: str | os.PathLike[str], documents: Documents, tensors: Tensors) -> None:
    """Write a checkpoint, in one atomic change if one stands there already.

    Args:
        folder: made where it does not exist; else empty or a checkpoint.
        documents: JSON-able parts by name.
        tensors: parts of tensors by name.

    Raises:
        CheckpointError: the folder holds other files, is in use by another writer, or could not be written; what stood
            there stands unchanged.
    """
    where = check_path(folder, "folder")
    check_target(where)
    parts = {name: (f"{name}-%s.json", _json(dict(value))) for name, value in documents.items()}
    for name, group in tensors.items():
        # Copies: safetensors refuses tensors that share memory, as tied weights do.
        copies = {key: t.detach().to("cpu", copy=True).contiguous() for key, t in group.items()}
        parts[name] = (f"{name}-%s.safetensors", safetensors.torch.save(copies))
    files: dict[str, object] = {}
    data: dict[str, bytes] = {}
    for name, (pattern, written) in parts.items():
        digest = hashlib.sha256(written).hexdigest()
        data[pattern % digest[:16]] = written
        files[name] = {"file": pattern % digest[:16], "bytes": len(written), "sha256": digest}
    manifest = _manifest({"format": FORMAT, "version": VERSION, "files": files})
    try:
        _make_folder(where)
        with locked(where) as abandoned:
            check_target(where)
            _replace(where, data, manifest, everything=abandoned)
    except OSError as error:
        needed = len(manifest) + sum(map(len, data.values()))
        raise CheckpointError(
            f"could not write {error.filename or where}: {error.strerror or error}; {needed} bytes are needed and "
            f"{_free(where)} are free; make room or choose another folder (a checkpoint that stood there is unchanged)"
        ) from error


def _replace(where: Path, data: Mapping[str, bytes], manifest: bytes, *, everything: bool) -> None:
    """Put files and their manifest into a folder, and remove the files of the manifest before.

    Args:
        where: the folder, whose lock is held.
        data: by the names of the files.
        manifest: what is written last.
        everything: remove all files that the manifest does not name: a writer died here.
    """
    old = _find_named(where)
    new = [name for name in data if old is None or name not in old]
    try:
        for name, written in data.items():
            _put(where / name, written)
        # The names of the new files must be on disk before a manifest speaks of them.
        _sync(where)
        _put(where / MANIFEST, manifest)
    except BaseException:
        if old is not None and _find_named(where) == old:
            _remove(where, new)
        raise
    _sync(where)
    # The new checkpoint stands; what cannot be removed now is removed after a save that finds the lock abandoned.
    found = {file.name for file in where.iterdir() if OURS.fullmatch(file.name)}
    _remove(where, (found if everything or old is None else found & old) - data.keys())


def _make_folder(where: Path) -> None:
    """Make a folder and those above it; their names last, as those of its files do."""
    missing = [folder for folder in (where, *where.parents) if not folder.exists()]
    where.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        _sync(folder.parent)


def _find_named(where: Path) -> set[str] | None:
    """Return the files that the standing manifest names, none where there is no manifest; None where it is damaged."""
    try:
        return {str(entry["file"]) for entry in _read_manifest(where / MANIFEST)[1].values()}
    except FileNotFoundError:
        return set()
    except CheckpointError:
        return None


def _remove(where: Path, names: Iterable[str]) -> None:
    for name in names:
        with contextlib.suppress(OSError):
            (where / name).unlink()


def check_target(folder: Path) -> None:
    """Raise CheckpointError where ``folder`` is a file, or holds other files than a checkpoint's."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; a checkpoint is a folder: choose another name")
    known = {MANIFEST, LOCK}
    foreign = sorted(f.name for f in folder.iterdir() if f.name not in known and not OURS.fullmatch(f.name))
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
        return all((folder / str(entry["file"])).is_file() for entry in _read_manifest(folder / MANIFEST)[1].values())
    except (CheckpointError, FileNotFoundError):
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
    parts: dict[str, StoredTensors] = {}
    files: dict[str, str] = {}
    for name, (entry, file) in _open_all(where).items():
        files[name] = file.path.name
        if file.path.suffix == ".json":
            file.check_length()
            file.check_digest(entry["sha256"])
            documents[name] = parse_json(file.read(), file.path)
            check_document(name, documents[name], file.path)
        else:
            # The header first: it refuses in no time what would take long to digest.
            parts[name] = StoredTensors(file)
            file.check_digest(entry["sha256"])
    return Contents(where, documents, parts, files)


def _open_all(where: Path) -> dict[str, tuple[dict[str, Any], StoredFile]]:
    """Open every file that the manifest names; anew where a writer has put another manifest in its place."""
    data = before = b""
    while True:
        try:
            data, entries = _read_manifest(where / MANIFEST)
            return {name: (entry, StoredFile(where / entry["file"], entry["bytes"])) for name, entry in entries.items()}
        except FileNotFoundError as error:
            if data == before:
                raise CheckpointError(f"{error.filename} is missing; take another copy of the checkpoint") from error
            before = data


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _manifest(body: dict[str, object]) -> bytes:
    return _json({**body, "sha256": hashlib.sha256(_json(body)).hexdigest()})


def _read_manifest(file: Path) -> tuple[bytes, dict[str, dict[str, Any]]]:
    """Return a manifest's bytes and its entries; CheckpointError where it is damaged."""
    data = read_json_file(file)
    body = parse_json(data, file)
    damaged = CheckpointError(f"{file} is damaged; take another copy of the checkpoint")
    if body.pop("sha256", None) is None:
        raise damaged
    version, files = body.get("version"), body.get("files")
    if body.get("format") == FORMAT and type(version) is int and version > VERSION:
        raise CheckpointError(
            f"{file} has format version {version}, this scoresde reads up to {VERSION}; update scoresde"
        )
    # Equality of the bytes, not only of the values: no flipped bit goes unseen.
    if body.get("format") != FORMAT or version != VERSION or not isinstance(files, dict) or data != _manifest(body):
        raise damaged
    for name, entry in files.items():
        if not _is_entry(name, entry):
            raise CheckpointError(f"{file} is damaged in files.{name}; take another copy of the checkpoint")
    return data, files


def _is_entry(name: str, entry: object) -> bool:
    """Say whether a manifest's entry is what ``write`` makes for a part of this name."""
    if not isinstance(entry, dict) or set(entry) != {"file", "bytes", "sha256"} or type(entry["bytes"]) is not int:
        return False
    digest = entry["sha256"]
    if entry["bytes"] < 0 or not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        return False
    known = entry["file"] in (f"{name}-{digest[:16]}.json", f"{name}-{digest[:16]}.safetensors")
    return known and OURS.fullmatch(entry["file"]) is not None


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
