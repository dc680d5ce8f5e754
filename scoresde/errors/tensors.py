"""Checks of tensors: their type, shape and values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from scoresde.errors.kinds import ConfigError, DomainError, DTypeError, ShapeError, SolverError
from scoresde.errors.values import misfit

__all__ = [
    "PART",
    "check_dense",
    "check_device",
    "check_finite",
    "check_floating",
    "check_numbers",
    "check_outcome",
    "check_samples",
    "check_values",
]

PART = 1 << 17  # values that are looked at together, where data may be large: 1 MiB in float64, which is given back


def check_floating(x: object, name: str = "x", *, empty: bool = False) -> Tensor:
    """Return ``x`` if it is a real floating tensor of shape (B, *), else raise DTypeError or ShapeError.

    There may be no samples; a sample has at least one number, unless ``empty``.
    """
    if not isinstance(x, Tensor):
        raise DTypeError(
            f"{name} must be a torch.Tensor, got {type(x).__name__}",
            parameter=name,
            got=type(x).__name__,
            allowed="a torch.Tensor",
            cure=_tell_how(x, name),
        )
    check_dense(x, name)
    if not x.dtype.is_floating_point:
        cure = "take its real and imaginary parts as channels" if x.is_complex() else f"convert it with {name}.float()"
        raise DTypeError(
            f"{name} must have a real floating dtype, got {x.dtype}",
            parameter=name,
            got=x.dtype,
            allowed="a real floating dtype",
            cure=cure,
        )
    if x.ndim == 0:
        raise ShapeError(
            f"{name} must have shape (B, *), got a 0-d tensor",
            parameter=name,
            got=tuple(x.shape),
            allowed="shape (B, *)",
            cure=f"add a batch dimension with {name}[None]",
        )
    if not empty and 0 in x.shape[1:]:
        raise ShapeError(
            f"{name} has samples of shape {tuple(x.shape[1:])}, which hold no number",
            parameter=name,
            got=tuple(x.shape),
            allowed="samples of at least one number",
        )
    return x


def _tell_how(x: object, name: str) -> str:
    """Say how a value becomes a tensor."""
    if not isinstance(x, list | tuple):
        return f"use torch.as_tensor({name})"
    sizes = sorted({str(tuple(_size(part))) for part in x})
    if len(sizes) > 1:
        return f"its samples have several sizes, {', '.join(sizes[:3])}: pad or cut them to one, and stack them"
    return f"use torch.stack({name})" if x and isinstance(x[0], Tensor) else f"use torch.as_tensor({name})"


def _size(x: object) -> tuple[int, ...]:
    """Return the sizes of nested lists and of what is in them, by their first parts."""
    if isinstance(x, list | tuple):
        return (len(x), *(_size(x[0]) if x else ()))
    return tuple(x.shape) if isinstance(x, Tensor | np.ndarray) else ()


def check_samples(x: object, name: str = "x", *, empty: bool = False) -> Tensor:
    """Return ``x`` if it is a finite real floating tensor of shape (B, *); count and place bad values if not."""
    tensor = check_floating(x, name, empty=empty)
    check_values(tensor, name)
    # The two extremes tell it without a copy of the data: a NaN is both.
    if tensor.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(tensor.detach()))).all()):
        for _ in check_finite(torch.split(tensor, max(1, PART * len(tensor) // tensor.numel())), name):
            pass
    return tensor


def check_finite(parts: Iterable[Tensor], name: str) -> Iterator[Tensor]:
    """Pass on samples that come in parts (n, *), and count and place bad values: DomainError behind the last part."""
    count = total = low = 0
    first: tuple[int, ...] = ()
    got = math.nan
    for part in parts:
        good = torch.isfinite(part)
        if not bool(good.all()):
            if not count:
                place = tuple(int(i) for i in (~good).nonzero()[0])
                first, got = (place[0] + low, *place[1:]), float(part[place])
            count += int((~good).sum())
        total, low = total + part.numel(), low + len(part)
        yield part
    if count:
        raise DomainError(
            f"{name} has {count} non-finite values of {total}, the first at index {first}",
            parameter=name,
            got=got,
            allowed="finite values",
            cure="drop or repair these samples",
        )


def check_outcome(values: Tensor, what: str, at: Tensor | None = None) -> Tensor:
    """Return values (B, *) to which a network's predictions have led; SolverError, with the share, if any is no number.

    Args:
        values: one or more for each sample.
        what: names them, for the message.
        at: the times of the predictions, (B,); the message names the first that failed.
    """
    if not bool(torch.isfinite(values).all()):
        bad = (~torch.isfinite(values)).reshape(len(values), -1).any(1)
        place = "" if at is None else f" at t = {float(at.reshape(-1)[int(bad.nonzero()[0])]):g}"
        raise SolverError(
            f"{what}{place} is not finite in {float(bad.double().mean()):.1%} of the samples, since the network's "
            "prediction is not, or is too large"
        )
    return values


def check_device(device: torch.device, name: str, other: torch.device, other_name: str) -> None:
    """Raise ConfigError, naming both, unless ``name`` and ``other_name`` are on one device."""
    if device != other:
        raise ConfigError(
            f"{name} is on {device}, {other_name} on {other}",
            parameter=name,
            got=str(device),
            allowed=str(other),
            cure="move one of them with .to()",
        )


def check_numbers(value: object, name: str) -> Tensor:
    """Return a tensor, an array, a number or nested sequences of real numbers as a dense float64 tensor on the CPU.

    Raises DTypeError for anything else. The numbers may be infinite or NaN.
    """
    try:
        found = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise misfit(name, value, "a tensor, or numbers in sequences of one length") from error
    check_dense(found, name)
    check_values(found, name)
    if found.is_complex():
        raise DTypeError(f"{name} must be real, got {found.dtype}; take real and imaginary parts as channels")
    return found.detach().to("cpu", torch.float64)


def check_values(x: Tensor, name: str) -> None:
    """Raise ConfigError for a tensor on the meta device."""
    if x.device.type == "meta":
        raise ConfigError(f"{name} is on the meta device, which holds no values", parameter=name, got="meta")


def check_dense(x: Tensor, name: str) -> None:
    """Raise for a tensor without values that one could compute with: nested, sparse, or of 8 bits."""
    if x.is_nested or x.layout != torch.strided:
        what = "nested, whose samples have sizes of their own" if x.is_nested else f"laid out as {x.layout}"
        how = f"torch.nested.to_padded_tensor({name}, 0.0)" if x.is_nested else f"{name}.to_dense()"
        raise ShapeError(f"{name} is {what}", parameter=name, allowed="a dense tensor", cure=f"make it dense: {how}")
    if x.dtype.is_floating_point and x.dtype.itemsize < 2:
        raise DTypeError(
            f"{name} must have a type of at least 16 bits, got {x.dtype}",
            parameter=name,
            got=x.dtype,
            cure=f"convert it with {name}.float()",
        )
