"""Arrays from NumPy's files, without pickles."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray
from torch import Tensor

from scoresde.errors import ConfigError, DataError, ScoreSDEError, check_path, check_samples, unknown

__all__ = ["arrays_from_file"]

# The types that are read, and what they become; the first of them are torch's own.
NUMBERS: Final = {
    **{name: name for name in ("float32", "float64", "float16", "uint8", "int8", "int16", "int32", "int64", "bool")},
    "uint16": "int32",
    "uint32": "int64",
}


def arrays_from_file(path: str | os.PathLike[str], key: str | None = None) -> Tensor:
    """Return an array (N, *) of an .npy or .npz file as a tensor on the CPU.

    The array's own type is kept (uint16 and uint32 become int32 and int64): convert integers with ``.float()``, labels
    stay as they are. Files are never unpickled.

    Args:
        path: a file that ``numpy.save``, ``numpy.savez`` or ``numpy.savez_compressed`` wrote.
        key: name of the array in an .npz file; may be left out where the file holds one array.

    Raises:
        DataError: a file that is missing, unreadable, cut or no NumPy file; Python objects, strings, dates, complex
            numbers, or numbers that torch has no type for; no samples.
        ConfigError: an unknown key (with the nearest), no key for a file of several arrays, a key for an .npy file.
        DTypeError: no path. DomainError: an empty path; non-finite values, with their count and the first place.
    """
    file = check_path(path)
    with _reading(file), file.open("rb") as opened:
        loaded = np.load(opened, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            if key is not None:
                raise ConfigError(
                    f"key={key!r} names an array of an .npz file, {file} holds a single one: leave it out"
                )
            return _tensor(loaded, str(file))
        chosen = _choose(file, loaded, key)
        return _tensor(np.asarray(loaded[chosen]), f"{file}[{chosen!r}]")


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn what NumPy raises for a file that it cannot read into a DataError that names the file."""
    try:
        yield
    except ScoreSDEError:
        raise
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {error.strerror or error}; check the path and its permissions"
        ) from error
    except Exception as error:  # zipfile, zlib, tokenize and struct let their own errors through
        if "Object arrays" in str(error):
            raise DataError(
                f"{file} holds Python objects: they are stored as a pickle, which may run any code: refused; "
                "save numbers: numpy.save(path, numpy.stack(list).astype(numpy.float32))"
            ) from error
        raise DataError(
            f"{file} is damaged or no .npy or .npz file ({type(error).__name__}); write it with numpy.save or savez"
        ) from error


def _choose(file: Path, archive: NpzFile, key: str | None) -> str:
    """Return the name of the array to read."""
    names = list(archive.files)
    if key is not None and key not in names:
        raise unknown(f"array in {file}", key, names)
    if key is None and len(names) != 1:
        if not names:
            raise DataError(f"{file} holds no arrays; write it with numpy.savez(path, x=array)")
        raise ConfigError(f"{file} holds {len(names)} arrays; choose one with key=: {', '.join(map(repr, names))}")
    return names[0] if key is None else key


def _tensor(array: NDArray[Any], name: str) -> Tensor:
    """Return an array as a tensor of its own type, checked."""
    kind = array.dtype.newbyteorder("=")
    if kind.name not in NUMBERS:
        raise DataError(
            f"{name} has dtype {array.dtype}, for which torch has no tensor; save one of {', '.join(NUMBERS)}"
        )
    if array.ndim == 0 or array.size == 0:
        raise DataError(f"{name} has shape {array.shape} and holds no samples; save an array of shape (N, *)")
    tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=NUMBERS[kind.name]))
    return check_samples(tensor, name) if tensor.is_floating_point() else tensor
