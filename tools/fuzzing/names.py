"""What the lines of a case may use: the package's public names, and files that are altered on purpose.

``from fuzzing.names import *`` is the first line of every reproduction.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
from collections.abc import Sequence
from math import inf, nan
from pathlib import Path

import any_file
import numpy as np
import torch

import scoresde
from scoresde import *  # noqa: F403
from scoresde import VPSDE, ScoreModel, build_table
from scoresde.cli import main
from scoresde.cli.files import open_data
from scoresde.data.arrays import arrays_from_file
from scoresde.data.labels import labels_from_file
from scoresde.models.manifest import MANIFEST
from scoresde.nn import MLP
from scoresde.noise import normal, stream
from scoresde.solvers.solver import Solver
from scoresde.training.losses import ChainLoss
from scoresde.training.trainer import Trainer

__all__ = [
    *scoresde.__all__,
    "MLP",
    "ChainLoss",
    "Trainer",
    "alter",
    "any_file",
    "arrays_from_file",
    "cut",
    "data_like",
    "flip",
    "inf",
    "labels_from_file",
    "nan",
    "net",
    "np",
    "open_data",
    "put",
    "run",
    "saved",
    "table_with",
    "torch",
]

F64 = torch.float64


def data_like(shape: Sequence[int], scale: float = 1.0, shift: float = 0.0, dtype: torch.dtype = F64) -> torch.Tensor:
    """Return normal numbers of a shape, times ``scale`` and moved by ``shift``, within what the type holds."""
    values = scale * normal(tuple(shape), stream(1, "fuzz"), dtype=F64) + shift
    return values.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)


def net(size: int = 2, **options: object) -> torch.nn.Module:
    """Return a small network for vectors of a size."""
    return MLP(size, **{"width": 4, "depth": 1, **options})


def saved(folder: str) -> None:
    """Save a small model in a new folder."""
    model = ScoreModel(net(), VPSDE(), transform=scoresde.Affine((1.0, 2.0), 3.0))
    model.moments = scoresde.Moments.of(data_like((16, 2)))
    model.save(folder)


def _sign(body: dict[str, object]) -> bytes:
    def write(value: object) -> bytes:
        return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()

    return write({**body, "sha256": hashlib.sha256(write(body)).hexdigest()})


def alter(folder: str, part: str, path: Sequence[object], value: object) -> None:
    """Put a value into a document of a checkpoint at a path of keys and places, and sign the manifest anew."""
    where = Path(folder)
    manifest = json.loads((where / MANIFEST).read_bytes())
    entry = manifest["files"][part]
    document = json.loads((where / entry["file"]).read_bytes())
    table_at(document, path, value)
    data = json.dumps(document).encode()
    digest = hashlib.sha256(data).hexdigest()
    name = f"{part}-{digest[:16]}.json"
    (where / name).write_bytes(data)
    entry |= {"file": name, "bytes": len(data), "sha256": digest}
    manifest.pop("sha256")
    (where / MANIFEST).write_bytes(_sign(manifest))


def table_at(document: object, path: Sequence[object], value: object) -> None:
    """Put a value into nested lists and mappings; a path that leads nowhere changes nothing."""
    for key in path[:-1]:
        try:
            document = document[key]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            return
    with contextlib.suppress(KeyError, IndexError, TypeError):
        document[path[-1]] = value  # type: ignore[index]


def _file(folder: str, number: int) -> Path:
    files = sorted(file for file in Path(folder).rglob("*") if file.is_file())
    return files[number % len(files)]


def cut(folder: str, number: int, share: float) -> None:
    """Cut a file of a folder, by its number, to a share of its bytes."""
    file = _file(folder, number)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])


def flip(folder: str, number: int, place: float, mask: int) -> None:
    """Change the bits of one byte of a file of a folder, at a share of its length."""
    file = _file(folder, number)
    data = bytearray(file.read_bytes())
    data[min(len(data) - 1, int(place * len(data)))] ^= mask
    file.write_bytes(bytes(data))


def put(name: str, content: bytes) -> str:
    """Write a file here and return its name."""
    Path(name).write_bytes(content)
    return name


def table_with(solver: Solver, path: Sequence[object], value: object) -> str:
    """Return the JSON text of a table of three steps with a value put in at a path; infinities are written out."""
    document = json.loads(build_table(VPSDE(), solver, steps=3).to_json())
    table_at(document, path, value)
    return json.dumps(document)


def run(*words: str) -> None:
    """Run the command line, silently; ValueError unless it ends well, or in one line that says what was wrong."""
    out, err, state = io.StringIO(), io.StringIO(), random.getstate()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([*words])
        finally:
            random.setstate(state)  # tyro draws from it
    said = [line for line in err.getvalue().splitlines() if line.startswith("scoresde: error: ")]
    if code not in (0, 2) or (code == 2 and len(said) != 1) or "Traceback" in err.getvalue():
        raise ValueError(f"exit code {code}: {err.getvalue()[-500:]!r}")
