"""Data transforms: maps between the user's data and the coordinates in which a model is trained.

A model carries its transform: ``fit`` applies ``forward`` to the data, ``sample`` applies ``inverse`` to its result,
and the checkpoint stores it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.errors import DomainError, DTypeError, ShapeError, check_floating, check_samples

__all__ = ["Affine"]


@dataclass(frozen=True)
class Affine:
    """y = (x - shift)/scale with x = shift + scale y; one number, or one for each leading coordinate of an event.

    Args:
        shift: in the data's unit; a float, or a tuple with one float for each channel.
        scale: in the data's unit, positive; as ``shift``.

    Raises:
        DomainError: a scale that is not positive and finite.
    """

    shift: float | tuple[float, ...] = 0.0
    scale: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("shift", "scale"):
            values = torch.tensor(getattr(self, name), dtype=torch.float64)
            if not bool(torch.isfinite(values).all()) or (name == "scale" and bool((values <= 0).any())):
                raise DomainError(f"{name} must be finite{' and positive' if name == 'scale' else ''}, got {values}")

    @classmethod
    def standardise(cls, x: Tensor) -> Affine:
        """Measure mean and standard deviation of each leading coordinate (channel) of data (N, *) in float64."""
        check_samples(x, "data")
        if x.ndim < 2 or x.shape[0] < 2:
            raise ShapeError(f"standardisation needs at least two samples of shape (C, *), got {tuple(x.shape)}")
        flat = x.detach().to("cpu", torch.float64).transpose(0, 1).reshape(x.shape[1], -1)
        std = flat.std(1)
        return cls(tuple(flat.mean(1).tolist()), tuple(torch.where(std > 0, std, torch.ones_like(std)).tolist()))

    def _numbers(self, value: float | tuple[float, ...], x: Tensor) -> Tensor:
        numbers = torch.tensor(value, dtype=torch.float64)
        if numbers.ndim and (x.ndim < 2 or x.shape[1] != len(numbers)):
            raise ShapeError(f"the transform serves {len(numbers)} channels, got data of shape {tuple(x.shape)}")
        return numbers.to(x).reshape(-1, *(1,) * (x.ndim - 2)) if numbers.ndim else numbers.to(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map data (B, *) to the model's coordinates; DTypeError for integers, which would round the numbers."""
        check_floating(x, "data")
        return (x - self._numbers(self.shift, x)) / self._numbers(self.scale, x)

    def inverse(self, y: Tensor) -> Tensor:
        """Map the model's coordinates (B, *) to data."""
        return self._numbers(self.shift, y) + self._numbers(self.scale, y) * y

    def to_dict(self) -> dict[str, object]:
        """Return a JSON-able description."""
        return {"kind": "Affine", "shift": self.shift, "scale": self.scale}

    @classmethod
    def from_dict(cls, config: dict[str, object]) -> Affine:
        """Rebuild from ``to_dict``'s description."""

        def numbers(value: object) -> float | tuple[float, ...]:
            if isinstance(value, (list, tuple)):
                return tuple(float(v) for v in value)
            if isinstance(value, (int, float)):
                return float(value)
            raise DTypeError(f"a transform holds numbers, got {value!r}")

        return cls(numbers(config["shift"]), numbers(config["scale"]))
