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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from scoresde.diffusions.gaussian import Moments
from scoresde.diffusions.named import sde_from_dict, sde_to_dict
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors import CheckpointError, ConfigError, unknown

__all__ = ["MANIFEST", "Contents", "check_target", "read", "write"]

MANIFEST = "manifest.json"
FORMAT, VERSION = "scoresde checkpoint", 1
PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin"}
OURS = re.compile(r"[a-z_]+-[0-9a-f]{16}\.(json|safetensors)|\.[^/]+\.tmp")

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
        data = _verified(file, entry)
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


def _verified(file: Path, entry: dict[str, object]) -> bytes:
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


# ---------------------------------------------------------------------------------------------------------------------
# What a model is made of


def network_to_dict(net: object) -> dict[str, object]:
    """Return a network's class name, with its config where it is one of ``scoresde.nn``'s."""
    from scoresde.nn import NETWORKS

    for name, known in NETWORKS.items():
        if type(net) is known:
            return {"kind": name, "config": dict(net.config)}
    return {"kind": type(net).__name__, "config": None}


def load_network(contents: Contents, part: str, net: Callable[..., Tensor] | None) -> Callable[..., Tensor]:
    """Return the checkpoint's network, or ``net`` if given, with the weights of ``part``.

    Raises:
        CheckpointError: the network is not built in and none is given, or the weights do not fit.
    """
    from scoresde.nn import NETWORKS

    config, weights = contents.document("model")["network"], contents.tensors(part)
    kind, file = config["kind"], contents.folder / contents.files[part]
    if net is None:
        if config["config"] is None:
            raise CheckpointError(
                f"{contents.folder} holds the weights of your own network {kind}, which JSON cannot rebuild; "
                f"build it and pass it: ScoreModel.load(folder, net={kind}(...))"
            )
        if kind not in NETWORKS:
            raise CheckpointError(f"{contents.folder}: {unknown('network', kind, NETWORKS)}; update scoresde")
        made: nn.Module = NETWORKS[kind](**config["config"])
        types = {t.dtype for t in weights.values() if t.dtype.is_floating_point}
        net = made.to(types.pop()) if len(types) == 1 else made
    if isinstance(net, nn.Module):
        load_weights(net, weights, file)
    elif weights:
        raise CheckpointError(f"{file} holds {len(weights)} tensors; net must be a torch.nn.Module, got {net!r}")
    return net


def load_weights(net: nn.Module, weights: Mapping[str, Tensor], file: Path) -> None:
    """Copy weights into a network, all or none.

    Raises:
        CheckpointError: keys that are missing or unexpected, or a tensor of another shape or type, all listed.
    """
    own = net.state_dict()
    wrong = [f"missing {key}" for key in own if key not in weights]
    wrong += [f"unexpected {key}" for key in weights if key not in own]
    for key, mine in own.items():
        theirs = weights.get(key, mine)
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            wrong.append(
                f"mismatched {key}: {tuple(theirs.shape)} {theirs.dtype} in the file, "
                f"{tuple(mine.shape)} {mine.dtype} in the network"
            )
    if wrong:
        more = f", and {len(wrong) - 12} more" if len(wrong) > 12 else ""
        raise CheckpointError(
            f"{file} does not fit the network {type(net).__name__}: {'; '.join(wrong[:12])}{more}; "
            "build the network with the options it was saved with"
        )
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(weights[key])


def sde_to_document(sde: GaussianSDE) -> dict[str, object]:
    """Return a built-in SDE's description, or the class name of your own."""
    try:
        return sde_to_dict(sde)
    except ConfigError:
        return {"kind": None, "class": type(sde).__name__}


def load_sdes(contents: Contents, given: GaussianSDE | None) -> tuple[GaussianSDE, GaussianSDE | None]:
    """Return the SDE of the training and, where it is another one, the SDE in use; ``given`` stands for your own.

    Raises:
        CheckpointError: one is your own and none is given, or another one than the checkpoint's is given.
    """
    model = contents.document("model")
    trained, current = model["trained_sde"], model["sde"]
    own = [d["class"] for d in (trained, current) if d is not None and d["kind"] is None]
    if own and given is None:
        raise CheckpointError(
            f"{contents.folder} was made with your own SDE {own[0]}, which JSON cannot rebuild; "
            f"pass it: ScoreModel.load(folder, sde={own[0]}(...))"
        )
    if not own and given is not None and sde_to_document(given) != trained:
        raise CheckpointError(
            f"{contents.folder} was made with {sde_from_dict(trained)}, got sde={given}; "
            "leave sde out, and use the model's with_sde to sample under another"
        )

    def build(document: dict[str, Any]) -> GaussianSDE:
        return given if given is not None and document["kind"] is None else sde_from_dict(document)

    return build(trained), None if current is None else build(current)


def moments_to_tensors(moments: Moments) -> dict[str, Tensor]:
    """Return the tensors of ``moments`` by name."""
    tensors = {"mean": moments.mean, "variance": moments.variance}
    return tensors if moments.basis is None else {**tensors, "basis": moments.basis}


def moments_from_tensors(tensors: Mapping[str, Tensor]) -> Moments:
    """Rebuild what ``moments_to_tensors`` took apart."""
    return Moments(tensors["mean"], tensors["variance"], tensors.get("basis"))
