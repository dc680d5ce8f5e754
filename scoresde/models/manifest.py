"""The manifest of a checkpoint: which files hold its parts, with their sizes and digests, under a digest of its own.

    {"format": ..., "version": 1, "files": {part: {"file", "bytes", "sha256"}}, "sha256": ...}

A part that several processes wrote has a list of such entries, in the order of the ranks; its manifest has version 2.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scoresde.errors.kinds import CheckpointError
from scoresde.models.stored import parse_json, read_json_file

__all__ = ["MANIFEST", "OURS", "Entry", "list_entries", "read_manifest", "sign", "sign_manifest", "to_json"]

MANIFEST = "manifest.json"
FORMAT, VERSION = "scoresde checkpoint", 2
OURS = re.compile(r"[a-z_]+-[0-9a-f]{16}\.(json|safetensors)|\.[^/]+\.tmp")
DIGEST = re.compile("[0-9a-f]{64}")
Entry = dict[str, Any]


def to_json(value: Mapping[str, object]) -> bytes:
    """Return a document's bytes."""
    return (json.dumps(dict(value), indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def sign(body: Mapping[str, object]) -> bytes:
    """Return a manifest's bytes, with the digest of what it says."""
    return to_json({**body, "sha256": hashlib.sha256(to_json(body)).hexdigest()})


def sign_manifest(entries: Mapping[str, object]) -> bytes:
    """Return the manifest of the parts of these names; a list of entries is of several processes."""
    version = max([1, *(VERSION for found in entries.values() if isinstance(found, list))])
    return sign({"format": FORMAT, "version": version, "files": dict(entries)})


def list_entries(where: Path) -> list[Entry]:
    """Return the entries of all files of a checkpoint's folder; raises as ``read_manifest``."""
    return [entry for found in read_manifest(where / MANIFEST)[1].values() for entry in found]


def read_manifest(file: Path) -> tuple[bytes, dict[str, list[Entry]]]:
    """Return a manifest's bytes and for each part its entries; CheckpointError where it is damaged.

    FileNotFoundError where there is none.
    """
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
    try:
        signed = isinstance(files, dict) and data == sign_manifest(files)
    except ValueError:  # a number that JSON reads as infinite
        signed = False
    if not isinstance(files, dict) or not signed:
        raise damaged
    entries: dict[str, list[Entry]] = {}
    for name, entry in files.items():
        shared = isinstance(entry, list)
        entries[name] = found = entry if shared else [entry]
        if not found or not all(_is_entry(name, one, tensors=shared) for one in found):
            raise CheckpointError(f"{file} is damaged in files.{name}; take another copy of the checkpoint")
    return data, entries


def _is_entry(name: str, entry: object, *, tensors: bool = False) -> bool:
    """Say whether a manifest's entry is what ``write`` makes for a part of this name."""
    if not isinstance(entry, dict) or set(entry) != {"file", "bytes", "sha256"} or type(entry["bytes"]) is not int:
        return False
    digest = entry["sha256"]
    if entry["bytes"] < 0 or not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        return False
    known = [f"{name}-{digest[:16]}.{ending}" for ending in ("safetensors", "json")[: 1 if tensors else 2]]
    return entry["file"] in known and OURS.fullmatch(entry["file"]) is not None
