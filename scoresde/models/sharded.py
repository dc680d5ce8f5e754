"""Tensors of which every process holds some rows, as ``fully_shard`` makes a network's parameters.

Of n rows and p processes each has c = ceil(n/p), the last ones what is left, perhaps none: rank r has the rows from
min(n, r c) up to min(n, (r + 1) c).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["is_sharded", "local_rows", "own_rows", "plain_class", "shard_like", "sharding", "whole"]


def is_sharded(x: Tensor) -> bool:
    """Return whether a tensor is a ``DTensor``, of which this process holds a part."""
    # By its name: to import its module takes seconds, which nobody else should wait.
    return type(x).__name__ == "DTensor"


def local_rows(x: Tensor) -> Tensor:
    """Return the rows of a tensor that this process holds, in its memory: all, but for a sharded one."""
    if not is_sharded(x):
        return x
    part: Any = x.detach()
    rows: Tensor = part.to_local()
    return rows


def own_rows(x: Tensor) -> slice:
    """Return which rows of a sharded tensor are this process's."""
    mesh = sharding(x)[0]
    each = -(-len(x) // mesh.size())
    start = min(len(x), mesh.get_local_rank() * each)
    return slice(start, min(len(x), start + each))


def sharding(x: Tensor) -> tuple[Any, Any]:
    """Return the mesh of the processes that share a tensor, and how it is divided among them."""
    part: Any = x
    return part.device_mesh, part.placements


def shard_like(x: Tensor, rows: Tensor) -> Tensor:
    """Return a tensor sharded as x of which ``rows`` are this process's; ``rows`` themselves where x is whole."""
    if not is_sharded(x):
        return rows
    from torch.distributed.tensor import DTensor

    mesh, placements = sharding(x)
    stride = torch.empty(x.shape, dtype=x.dtype, device="meta").stride()
    rows = rows.to(x.device)
    made: Tensor = DTensor.from_local(rows, mesh, placements, run_check=False, shape=x.shape, stride=stride)
    return made


def whole(x: Tensor) -> Tensor:
    """Return all of a tensor; of a sharded one a copy, for which every process must call this."""
    if not is_sharded(x):
        return x
    part: Any = x.detach()
    rows: Tensor = part.full_tensor()
    return rows


def plain_class(net: object) -> type:
    """Return the class of a network, which ``fully_shard`` has made a base of another one."""
    own = type(net)
    return own.__mro__[2] if own.__mro__[1].__name__ == "FSDPModule" else own
