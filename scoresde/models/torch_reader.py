"""Reads a file of torch.save in a process of its own, and writes the tensors in it as safetensors.

    python torch_reader.py FILE OUT PART BYTES

torch's reader of weights alone makes tensors, containers and numbers, and refuses whatever would call anything else.
What a damaged or hostile file may still do, crash or fill the memory, it does to this process. It prints one line of
JSON: {"tensors", "bytes", "left_out"}, or {"error", "kind"}. It imports nothing of the package.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping

import safetensors.torch
import torch
from torch import Tensor

__all__ = ["MOST", "flatten", "read"]

MOST = 100_000  # values in a file: containers that hold one another make any number of a few bytes


def flatten(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Yield what nested containers hold, under names with dots between their parts."""
    if isinstance(value, Mapping):
        parts = list(value.items())
    elif isinstance(value, list | tuple):
        parts = list(enumerate(value))
    else:
        parts = []
    if not parts:
        # A container of nothing is counted as well: those that hold it twice, and are held twice, are without end.
        yield name, value
    for key, part in parts:
        yield from flatten(part, f"{name}.{key}" if name else str(key))


def read(file: str, part: str, limit: int) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of a file by name, and the names of what is none.

    Args:
        file: the file.
        part: only what is under this name, which is left out of theirs; "" for all.
        limit: bytes that the tensors may have.

    Raises:
        ValueError: too many or too large, two of one name, nothing there, or a tensor that is not dense. Whatever
            ``torch.load`` raises.
    """
    tensors: dict[str, Tensor] = {}
    left_out: list[str] = []
    roots: dict[str, None] = {}
    size = 0
    for count, (name, value) in enumerate(flatten(torch.load(file, map_location="cpu", weights_only=True))):
        if count >= MOST:
            raise ValueError(f"holds more than {MOST} values")
        if isinstance(value, Mapping | list | tuple):
            continue
        roots[name.partition(".")[0]] = None
        if part and not name.startswith(f"{part}."):
            continue
        short = name.removeprefix(f"{part}.") if part else name or "tensor"
        if not isinstance(value, Tensor):
            left_out.append(short)
            continue
        if value.layout != torch.strided or value.is_quantized or value.is_nested or value.is_meta:
            raise ValueError(f"holds {name}, which is no dense tensor with values; make it one where it was saved")
        if short == "__metadata__" or value.dtype in (torch.complex128, torch.complex32):
            raise ValueError(f"holds {name} of {value.dtype}, which safetensors cannot hold")
        if short in tensors:
            raise ValueError(f"holds two tensors named {short}")
        size += value.numel() * value.element_size()
        if size > limit:
            raise ValueError(f"holds more than {limit / 2**30:.3g} GiB of tensors; --limit allows more")
        tensors[short] = value
    if not tensors:
        under = f" under {part!r}; it holds {', '.join(list(roots)[:12])}" if part else ""
        raise ValueError(f"holds no tensors{under}")
    return tensors, left_out


def _complain(error: Exception, kind: str = "") -> None:
    print(json.dumps({"error": " ".join(str(error).split()), "kind": kind or type(error).__name__}))


def _main(file: str, out: str, part: str, limit: str) -> None:
    try:
        tensors, left_out = read(file, part, int(limit))
    except RecursionError:
        _complain(ValueError("holds containers within one another without end"))
        return
    except Exception as error:
        _complain(error)
        return
    try:
        # Copies: safetensors refuses tensors that share memory, as tied weights do.
        copies = {name: one.detach().clone(memory_format=torch.contiguous_format) for name, one in tensors.items()}
        safetensors.torch.save_file(copies, out)
    except Exception as error:
        _complain(error, kind="writing")
        return
    size = sum(one.numel() * one.element_size() for one in copies.values())
    print(json.dumps({"tensors": len(copies), "bytes": size, "left_out": left_out}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
