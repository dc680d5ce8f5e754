"""Modes under which code that would make Python wait for a device fails."""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class NoSync(TorchDispatchMode):
    """Refuse what waits for a device: reading a number, or a result whose shape depends on the data."""

    FORBIDDEN = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "unique")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        if name in self.FORBIDDEN or (
            name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        ):
            raise AssertionError(f"aten.{name} waits for the device")
        return func(*args, **(kwargs or {}))


class NoReading(TorchFunctionMode):
    """Refuse ``tolist`` and ``numpy``, which no dispatcher sees."""

    def __torch_function__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        if getattr(func, "__name__", "") in ("tolist", "numpy", "item"):
            raise AssertionError(f"{func} reads values")
        return func(*args, **(kwargs or {}))
