"""Arrays and tensors from files, without pickles: NumPy's, torch's and safetensors'."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from scoresde.errors.kinds import ConfigError, DataError, ScoreSDEError
from scoresde.errors.names import unknown
from scoresde.errors.tensors import check_samples
from scoresde.errors.values import check_flag, check_path, check_text
from scoresde.ops import share_memory

__all__ = ["arrays_from_file", "words_from_file"]

# The types that are read, and what they become; the first of them are torch's own.
NUMBERS: Final = {
    **{name: name for name in ("float32", "float64", "float16", "uint8", "int8", "int16", "int32", "int64", "bool")},
    "uint16": "int32",
    "uint32": "int64",
}


def arrays_from_file(
    path: str | os.PathLike[str], key: str | None = None, *, mapped: bool = False, missing: bool = False
) -> Tensor:
    """Return an array (N, *) of a file as a tensor on the CPU.

    The file's ending, in any case, says what it is: .pt or .pth, what ``torch.save`` wrote, a tensor or a dict of
    tensors; .safetensors; any other is taken for NumPy's, .npy or .npz. The array's own type is kept (uint16 and uint32
    become int32 and int64): convert integers with ``.float()``, labels stay as they are. Nothing but numbers is read,
    so that no file can run code.

    Args:
        path: the file.
        key: name of the array in a file that names its arrays; may be left out where it holds one.
        mapped: leave the numbers of an .npy file in the file, from where they are read as they are used; such a tensor
            cannot be written to: trying ends the process. Files of other kinds, and of a type or byte order that must
            be converted, are read as usual.
        missing: NaN stands for a value that is missing, and is kept.

    Raises:
        DataError: a file that is missing, unreadable, cut or of another kind; Python objects, strings, dates, complex
            numbers, or numbers that torch has no type for; no samples.
        ConfigError: an unknown key (with the nearest), no key for a file of several arrays (the error's ``allowed``
            names them), a key for a file of one array without a name.
        DTypeError: no path. DomainError: an empty path; non-finite values, with their count and the first place.
    """
    file, key = check_path(path), None if key is None else check_text(key, "key")
    mapped, missing = check_flag(mapped, "mapped"), check_flag(missing, "missing")
    read = READERS.get(file.suffix.lower(), _read_numpy)
    with _explain_failures(file):
        found = _map_numpy(file, key) if mapped and file.suffix.lower() == ".npy" else read(file, key)
    x, name = found
    if x.is_floating_point():
        check_samples(x.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf) if missing else x, name)
    return x


def words_from_file(path: str | os.PathLike[str], key: str | None = None) -> NDArray[np.str_] | None:
    """Return an array of words of an .npy or .npz file; None where it holds no words, or the file is another.

    Raises:
        DataError, ConfigError, DTypeError, DomainError: as ``arrays_from_file``.
    """
    file, key = check_path(path), None if key is None else check_text(key, "key")
    if file.suffix.lower() in READERS:
        return None
    with _explain_failures(file), file.open("rb") as opened:
        loaded = np.load(opened, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            _name_single(file, key)
            array = loaded
        else:
            array = np.asarray(loaded[_choose(file, loaded.files, key)[0]])
    return array.astype(np.str_) if array.dtype.kind in "US" else None


def _map_numpy(file: Path, key: str | None) -> tuple[Tensor, str]:
    file.open("rb").close()  # an OSError that says what is wrong, where it cannot be opened
    return _from_numpy(np.load(file, mmap_mode="r", allow_pickle=False), _name_single(file, key))


def _read_numpy(file: Path, key: str | None) -> tuple[Tensor, str]:
    with file.open("rb") as opened:
        loaded = np.load(opened, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return _from_numpy(loaded, _name_single(file, key))
        chosen, name = _choose(file, loaded.files, key)
        return _from_numpy(np.asarray(loaded[chosen]), name)


def _read_torch(file: Path, key: str | None) -> tuple[Tensor, str]:
    with file.open("rb") as opened:
        loaded = torch.load(opened, map_location="cpu", weights_only=True)
    if isinstance(loaded, Tensor):
        return _check(loaded, _name_single(file, key))
    tensors: dict[str, Tensor] = {}
    if isinstance(loaded, Mapping):
        tensors = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    chosen, name = _choose(file, list(tensors), key)
    return _check(tensors[chosen], name)


def _read_safetensors(file: Path, key: str | None) -> tuple[Tensor, str]:
    file.open("rb").close()  # an OSError that says what is wrong, where it cannot be opened
    with safe_open(file, framework="pt", device="cpu") as opened:
        chosen, name = _choose(file, list(opened.keys()), key)
        return _check(opened.get_tensor(chosen), name)


READERS: Final[Mapping[str, Callable[[Path, str | None], tuple[Tensor, str]]]] = {
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".safetensors": _read_safetensors,
}
CURES: Final[Mapping[str, str]] = {
    ".pt": "torch.save(tensor, path)",
    ".pth": "torch.save(tensor, path)",
    ".safetensors": "safetensors.torch.save_file({'x': tensor}, path)",
}


@contextmanager
def _explain_failures(file: Path) -> Iterator[None]:
    """Turn what a reader raises for a file that it cannot read into a DataError that names the file."""
    try:
        yield
    except ScoreSDEError:
        raise
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {error.strerror or error}", cure="check the path and its permissions"
        ) from error
    except Exception as error:  # zipfile, zlib, tokenize, struct and the unpickler let their own errors through
        if any(words in str(error) for words in ("Object arrays", "Python objects")):
            raise DataError(
                f"{file} holds Python objects: they are stored as a pickle, which may run any code: refused",
                cure="save numbers: numpy.save(path, numpy.stack(list).astype(numpy.float32))",
            ) from error
        ending = file.suffix.lower()
        kind = f"no {ending} file of tensors alone" if ending in READERS else "no .npy or .npz file"
        raise DataError(
            f"{file} is damaged or {kind} ({type(error).__name__})",
            cure=f"write it with {CURES.get(ending, 'numpy.save or savez')}",
        ) from error


def _name_single(file: Path, key: str | None) -> str:
    """Return what to call the array of a file that holds one without a name."""
    if key is not None:
        raise ConfigError(
            f"key={key!r} names an array of an .npz file, {file} holds a single one: leave it out",
            parameter="key",
            got=key,
        )
    return str(file)


def _choose(file: Path, names: Sequence[str], key: str | None) -> tuple[str, str]:
    """Return the name of the array to read, and what to call it."""
    if not names:
        cure = CURES.get(file.suffix.lower(), "numpy.savez(path, x=array)")
        raise DataError(f"{file} holds no arrays", cure=f"write it with {cure}")
    if key is not None and key not in names:
        raise unknown(f"array in {file}", key, names, parameter="key")
    if key is None and len(names) != 1:
        raise ConfigError(
            f"{file} holds {len(names)} arrays",
            parameter="key",
            allowed=tuple(names),
            cure=f"choose one with key=: {', '.join(map(repr, names))}",
        )
    chosen = names[0] if key is None else key
    return chosen, f"{file}[{chosen!r}]"


def _from_numpy(array: NDArray[Any], name: str) -> tuple[Tensor, str]:
    """Return an array as a tensor of its own type, and its name."""
    kind = array.dtype.newbyteorder("=").name
    if kind not in NUMBERS:
        raise _refuse_type(name, array.dtype)
    own = np.ascontiguousarray(array, dtype=NUMBERS[kind]).reshape(array.shape)
    return _check(share_memory(own), name, clone=False)


def _check(x: Tensor, name: str, *, clone: bool = True) -> tuple[Tensor, str]:
    """Return a tensor without a gradient, and with memory of its own, if it holds samples, and its name."""
    kind = str(x.dtype).removeprefix("torch.")
    if kind not in {*NUMBERS, "bfloat16"} or x.layout != torch.strided or x.is_meta:
        raise _refuse_type(name, kind if x.layout == torch.strided else x.layout)
    if x.ndim == 0 or x.numel() == 0:
        raise DataError(f"{name} has shape {tuple(x.shape)} and holds no samples", cure="save an array of shape (N, *)")
    own = x.detach().to(getattr(torch, NUMBERS.get(kind, kind)))
    if clone and not (own.is_contiguous() and own.untyped_storage().nbytes() == own.nbytes):
        own = own.clone(memory_format=torch.contiguous_format)
    return own, name


def _refuse_type(name: str, got: object) -> DataError:
    """Build the error for numbers that are no data."""
    return DataError(
        f"{name} has dtype {got}, for which torch has no tensor", got=str(got), cure=f"save one of {', '.join(NUMBERS)}"
    )
