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

Of a training that is sharded over processes each writes the rows that it holds (``share``), files of the same kind.
When all are on disk, one process writes the manifest, whose entry of such a part is a list in the order of the ranks
(format version 2). Until then the checkpoint before stands.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor

from scoresde.errors.kinds import CheckpointError, ConfigError, ScoreSDEError, show
from scoresde.errors.tensors import check_values
from scoresde.errors.values import check_path
from scoresde.models.documents import check_document, check_fields, check_kind
from scoresde.models.lock import IN_RUN, LOCK, locked
from scoresde.models.manifest import MANIFEST, OURS, Entry, list_entries, read_manifest, sign_manifest, to_json
from scoresde.models.sharded import is_sharded, local_rows
from scoresde.models.stored import TYPES, StoredFile, StoredTensors, parse_json

__all__ = ["Contents", "amend", "check_target", "find", "is_whole", "read", "share", "write"]

PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin"}

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
        files: for each part, the name of its file, of a shared one that of the first process.
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

    def tensors(self, part: str, like: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the tensors of a part by name; CheckpointError where there is no such part.

        Args:
            part: its name.
            like: of those that are sharded there, this process's rows are read, and sharded alike.
        """
        return self.stored(part).load(like)


def write(
    folder: str | os.PathLike[str],
    documents: Documents,
    tensors: Tensors,
    shares: Mapping[str, Sequence[Entry]] | None = None,
) -> None:
    """Write a checkpoint, in one atomic change if one stands there already.

    Args:
        folder: made where it does not exist; else empty or a checkpoint.
        documents: JSON-able parts by name.
        tensors: parts of tensors by name.
        shares: of parts that several processes have written (``share``), their files in the order of the ranks.

    Raises:
        CheckpointError: the folder holds other files, is in use by another writer, or could not be written; what stood
            there stands unchanged. ConfigError: parts that ``read`` would refuse.
    """
    where = check_path(folder, "folder")
    with _looking(where):
        check_target(where)
    parts = {name: _pack(f"{name}-%s.json", _encode(name, value)) for name, value in documents.items()}
    for name, group in tensors.items():
        parts[name] = _pack_tensors(name, group)
    try:
        _make_folder(where)
        with locked(where) as abandoned:
            check_target(where)
            _replace(where, parts, shares or {}, everything=abandoned)
    except OSError as error:
        raise _no_room(where, error, sum(len(written) for written, _ in parts.values())) from error


def amend(folder: str | os.PathLike[str], documents: Documents) -> None:
    """Put documents into a checkpoint in one atomic change; its other parts stay as they are.

    Raises:
        CheckpointError: as ``write``, or no checkpoint stands there.
    """
    where = check_path(folder, "folder")
    with locked(where):
        read(where)
        _, entries = read_manifest(where / MANIFEST)
        kept = {name: found for name, found in entries.items() if name not in documents}
        parts = {name: _pack(f"{name}-%s.json", _encode(name, value)) for name, value in documents.items()}
        try:
            _replace(where, parts, kept, everything=False)
        except OSError as error:
            raise _no_room(where, error, sum(len(written) for written, _ in parts.values())) from error


@contextmanager
def share(folder: str | os.PathLike[str], tensors: Tensors, *, first: bool) -> Iterator[dict[str, Entry]]:
    """Write what this process holds of sharded parts, and yield the files' entries for the manifest.

    The manifest is written by one process when all have come so far. What is never named by one is removed by the next
    save.

    Args:
        folder: of the checkpoint, one that all processes see.
        tensors: parts by name; of what is not sharded, the first process's counts.
        first: whether this is that process.

    Raises:
        CheckpointError: the folder could not be written; nothing of this process stays then.
    """
    where, needed = Path(folder), 0
    made: list[str] = []
    entries: dict[str, Entry] = {}
    try:
        _make_folder(where)
        named = _find_named(where) or set()
        for name, group in tensors.items():
            mine = {key: x for key, x in group.items() if first or (is_sharded(x) and len(local_rows(x)))}
            written, entry = _pack_tensors(name, mine)
            needed, entries[name] = needed + len(written), entry
            if entry["file"] not in named:
                made.append(entry["file"])
                _put(where / entry["file"], written)
        _sync(where)
    except OSError as error:
        _remove(where, made)
        raise _no_room(where, error, needed) from error
    yield entries


def _pack(pattern: str, written: bytes) -> tuple[bytes, Entry]:
    digest = hashlib.sha256(written).hexdigest()
    return written, {"file": pattern % digest[:16], "bytes": len(written), "sha256": digest}


def _encode(name: str, document: Mapping[str, object]) -> bytes:
    """Return a document as JSON; raises where it is none, or not what ``read`` takes under this name."""
    cure = "a checkpoint cannot hold that: change it, or save the network's weights alone"
    try:
        data = to_json(document)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"what is to be saved as {name!r} is no JSON: {error}", cure=cure) from error
    try:
        check_fields(name, json.loads(data))
    except ScoreSDEError as error:
        raise ConfigError(str(error.with_cure(cure)), parameter=error.parameter) from error
    return data


def _pack_tensors(part: str, group: Mapping[str, Tensor]) -> tuple[bytes, Entry]:
    """Return tensors as safetensors; ConfigError for one that such a file, or the CPU, cannot hold."""
    copies = {}
    for key, value in group.items():
        given: object = value
        if not isinstance(given, Tensor):
            raise ConfigError(f"{part}.{key} is no tensor but {show(given)}, which a checkpoint cannot hold")
        rows = local_rows(given)
        check_values(rows, f"{part}.{key}")
        if rows.layout != torch.strided or rows.is_quantized or rows.dtype not in TYPES.values():
            what = rows.dtype if rows.layout == torch.strided else rows.layout
            raise ConfigError(f"{part}.{key} is of {what}, which a checkpoint cannot hold; make it dense and floating")
        # Copies: safetensors refuses tensors that share memory, as tied weights do.
        copies[key] = rows.detach().to("cpu", copy=True).contiguous()
    return _pack(f"{part}-%s.safetensors", safetensors.torch.save(copies))


@contextmanager
def _looking(where: Path) -> Iterator[None]:
    """Raise CheckpointError where the system does not tell what a path is: no permission, or no such name."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"could not look at {show(str(where))}: {error.strerror or error}") from error


def _no_room(where: Path, error: OSError, needed: int) -> CheckpointError:
    return CheckpointError(
        f"could not write {error.filename or where}: {error.strerror or error}; {needed} bytes are needed and "
        f"{_free(where)} are free; make room or choose another folder (a checkpoint that stood there is unchanged)"
    )


def _replace(
    where: Path, parts: Mapping[str, tuple[bytes, Entry]], there: Mapping[str, Sequence[Entry]], *, everything: bool
) -> None:
    """Put files and their manifest into a folder, and remove the files of the manifest before.

    Args:
        where: the folder, whose lock is held.
        parts: by name, what is written and its entry.
        there: entries of parts whose files are in the folder.
        everything: remove all files that the manifest does not name: a writer died here.
    """
    entries: dict[str, object] = {name: entry for name, (_, entry) in parts.items()}
    entries |= {name: list(found) if len(found) > 1 else found[0] for name, found in there.items()}
    manifest = sign_manifest(entries)
    data = {str(entry["file"]): written for written, entry in parts.values()}
    names = data.keys() | {str(entry["file"]) for found in there.values() for entry in found}
    for entry in (entry for found in there.values() for entry in found):
        file = where / entry["file"]
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            raise CheckpointError(f"{file}, which another process wrote, is not there; all need one folder")
    # A process that is not the one with the lock may have died, now or in the save before.
    everything = everything or any(len(found) > 1 for found in there.values()) or _is_shared(where)
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
    _remove(where, (found if everything or old is None else found & old) - names)


def _make_folder(where: Path) -> None:
    """Make a folder and those above it; their names last, as those of its files do."""
    missing = [folder for folder in (where, *where.parents) if not folder.exists()]
    where.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        _sync(folder.parent)


def _find_named(where: Path) -> set[str] | None:
    """Return the files that the standing manifest names, none where there is no manifest; None where it is damaged."""
    try:
        return {str(entry["file"]) for entry in list_entries(where)}
    except FileNotFoundError:
        return set()
    except CheckpointError:
        return None


def _is_shared(where: Path) -> bool:
    """Return whether the standing manifest is of several processes."""
    try:
        return any(len(found) > 1 for found in read_manifest(where / MANIFEST)[1].values())
    except (CheckpointError, FileNotFoundError):
        return False


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
    with _looking(where):
        return inside if (inside / MANIFEST).is_file() and not (where / MANIFEST).is_file() else where


def is_whole(folder: Path) -> bool:
    """Return whether a manifest is there, and every file that it names; nothing else is verified."""
    try:
        return all((folder / str(entry["file"])).is_file() for entry in list_entries(folder))
    except (CheckpointError, FileNotFoundError):
        return False


def read(folder: str | os.PathLike[str], *, at_once: bool = True) -> Contents:
    """Read and verify a checkpoint.

    Args:
        folder: of the checkpoint.
        at_once: verify all files; else those with tensors when they are first read, for a process that needs a part.

    Raises:
        CheckpointError: no checkpoint, a pickle, a newer format, or a file that is missing, cut or changed.
    """
    where = check_path(folder, "folder")
    with _looking(where):
        _check_folder(where)
    documents: dict[str, dict[str, Any]] = {}
    parts: dict[str, StoredTensors] = {}
    files: dict[str, str] = {}
    for name, found in _open_all(where).items():
        files[name] = found[0].path.name
        check_kind(name, found[0].path)
        if found[0].path.suffix == ".json":
            found[0].check_length()
            found[0].verify()
            documents[name] = parse_json(found[0].read(), found[0].path)
            check_document(name, documents[name], found[0].path)
            continue
        # The headers first: they refuse in no time what would take long to digest.
        parts[name] = StoredTensors(*found)
        for file in found if at_once else []:
            file.verify()
    return Contents(where, documents, parts, files)


def _check_folder(where: Path) -> None:
    """Raise CheckpointError unless a folder has a manifest, with what is there instead."""
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


def _open_all(where: Path) -> dict[str, list[StoredFile]]:
    """Open every file that the manifest names; anew where a writer has put another manifest in its place."""
    data = before = b""
    while True:
        try:
            data, entries = read_manifest(where / MANIFEST)
            return {
                name: [StoredFile(where / entry["file"], entry["bytes"], entry["sha256"]) for entry in found]
                for name, found in entries.items()
            }
        except FileNotFoundError as error:
            if data == before:
                raise CheckpointError(f"{error.filename} is missing; take another copy of the checkpoint") from error
            before = data


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
