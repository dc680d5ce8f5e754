"""What one item of somebody's data set, or one batch of somebody's loader, says of data and conditions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.errors.kinds import ConfigError, DTypeError, ShapeError, show
from scoresde.models.networks import condition_names
from scoresde.ops import accept_arrays

__all__ = ["Pair", "Reader", "Unpack", "join"]

Pair = tuple[Tensor, dict[str, Tensor]]
Unpack = Callable[[Any], Any]
OWN = "unpack=, a function of {what} that returns x or (x, {{'name': condition}})"


class Reader:
    """Reads x and its conditions from an item or from a batch.

    An item is x, or (x, y), or a mapping. y is the network's only condition, or its "label", and left out where the
    network takes none. Of a mapping the entries that the network takes are conditions, and one other entry is x.

    Args:
        net: the network, whose conditions are known where it says them.
        unpack: turns an item into x or (x, conditions) instead.
        what: "an item" or "a batch", for messages.
    """

    def __init__(self, net: Callable[..., object], unpack: Unpack | None, what: str) -> None:
        self.names, self.unpack, self.what = condition_names(net), unpack, what

    @property
    def cure(self) -> str:
        """How to say what an item holds."""
        return f"pass {OWN.format(what=self.what)}"

    def __call__(self, item: object) -> Pair:
        """Return x and the conditions.

        Raises:
            ConfigError: an item of which it is not known what is x and what is a condition.
            DTypeError: values that are no numbers.
        """
        if self.unpack is not None:
            item = self.unpack(item)
            if isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], Mapping | None):
                return to_tensor(item[0], "x"), to_conditions(item[1] or {})
            return to_tensor(item, "x"), {}
        if isinstance(item, Mapping):
            return self._read_mapping(item)
        if isinstance(item, tuple | list) and item and not isinstance(item[0], int | float):
            return self._read_sequence(item)
        return to_tensor(item, "x"), {}

    def _read_mapping(self, item: Mapping[str, Any]) -> Pair:
        cond = {name: value for name, value in item.items() if name in (self.names or ())}
        rest = [name for name in item if name not in cond]
        if len(rest) != 1:
            known = "says no conditions" if self.names is None else f"takes {', '.join(sorted(self.names)) or 'none'}"
            raise ConfigError(
                f"{self.what} of the data has the entries {', '.join(map(repr, item))}, and the network {known}: which "
                f"one is x is not known; {self.cure}"
            )
        return to_tensor(item[rest[0]], rest[0]), to_conditions(cond)

    def _read_sequence(self, item: Sequence[Any]) -> Pair:
        x = to_tensor(item[0], "x")
        if len(item) == 1:
            return x, {}
        if len(item) == 2 and isinstance(item[1], Mapping):
            return x, to_conditions(item[1])
        if len(item) == 2 and self.names is not None:
            if not self.names:
                return x, {}
            if "label" in self.names or len(self.names) == 1:
                name = "label" if "label" in self.names else next(iter(self.names))
                return x, to_conditions({name: item[1]})
        raise ConfigError(
            f"{self.what} of the data has {len(item)} parts, and what the network is told of them is not known; "
            f"{self.cure}"
        )


def to_conditions(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return conditions as tensors, floating ones in float32."""
    made = {name: to_tensor(value, name) for name, value in values.items()}
    return {name: value.float() if value.dtype == torch.float64 else value for name, value in made.items()}


def to_tensor(value: object, name: str) -> Tensor:
    """Return numbers as a tensor; of a picture its bytes, (C, H, W)."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray | np.generic):
        made = accept_arrays(np.asarray(value), name)
        assert isinstance(made, Tensor)
        return made
    pictures = sys.modules.get("PIL.Image")
    if pictures is not None and isinstance(value, pictures.Image):
        if value.mode in ("F", "I") or value.mode.startswith("I;16"):  # numbers, not bytes
            return torch.from_numpy(np.array(value, dtype=np.float32))[None]
        # Palettes and bits as what they show.
        shown = value if value.mode in ("L", "RGB", "RGBA") else value.convert("RGB")
        pixels = torch.from_numpy(np.array(shown, dtype=np.uint8))  # a copy: (H, W) or (H, W, C)
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DTypeError(f"{name} of the data is a list of parts of several lengths: {error}") from error
    if array.dtype.kind not in "biuf":
        raise DTypeError(
            f"{name} of the data must be numbers or a picture, got {show(value)} of type {type(value).__name__}"
        )
    return torch.from_numpy(array.astype(np.float32) if array.dtype == np.float64 else array)


def join(pairs: Sequence[Pair], where: Sequence[int] | None = None) -> Pair:
    """Return items as one batch.

    Raises:
        ShapeError: items of several shapes, with the first two; ``where`` has the items' indices.
        ConfigError: conditions that not every item has.
    """
    first, cond = pairs[0]
    for k, (x, told) in enumerate(pairs):
        at, start = (k, 0) if where is None else (where[k], where[0])
        if x.shape != first.shape:
            raise ShapeError(
                f"items of the data must have one shape, got {tuple(first.shape)} at {start} and {tuple(x.shape)} at "
                f"{at}; bring them to one size in the data set, or with unpack="
            )
        for name in told.keys() & cond.keys():
            if told[name].shape != cond[name].shape:
                raise ShapeError(
                    f"{name} of the data must have one shape, got {tuple(cond[name].shape)} at {start} and "
                    f"{tuple(told[name].shape)} at {at}"
                )
        if told.keys() != cond.keys():
            raise ConfigError(f"item {at} of the data has the conditions {sorted(told)}, item {start} {sorted(cond)}")
    return (
        torch.stack([x for x, _ in pairs]),
        {name: torch.stack([told[name] for _, told in pairs]) for name in cond},
    )
