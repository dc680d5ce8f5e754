"""Transforms one after the other, and from JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from torch import Generator, Tensor

from scoresde.errors.kinds import DTypeError, show
from scoresde.errors.names import unknown
from scoresde.errors.tensors import check_floating
from scoresde.ops import working_dtype
from scoresde.transforms.affine import Affine
from scoresde.transforms.base import Transform, read_options
from scoresde.transforms.orthogonal import Cosine, Haar, ZeroVelocity
from scoresde.transforms.pixels import Dequantise, Logit
from scoresde.transforms.relative import RelativePlaces

__all__ = ["TRANSFORMS", "Compose", "event_after", "transform_from_dict"]


@dataclass(frozen=True)
class Compose:
    """The parts one after the other: y = f_k(... f_2(f_1(x))); the inverse runs backwards.

    Args:
        parts: transforms in the order in which data pass them; none for the identity.

    Raises:
        DTypeError: a part that is no transform.
    """

    parts: tuple[Transform, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.parts, tuple):
            raise DTypeError(f"parts must be a tuple of transforms, got {type(self.parts).__name__}; Compose((a, b))")
        for k, part in enumerate(self.parts):
            if isinstance(part, type) or not isinstance(part, Transform):
                raise DTypeError(f"parts[{k}] must be a transform, got {show(part)}; it needs the methods of Transform")

    @property
    def random(self) -> bool:
        """Whether any part draws."""
        return any(part.random for part in self.parts)

    def forward(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Apply the parts in order to data (B, *)."""
        for part in self.parts:
            x = part.forward(x, generator)
        return x

    def inverse(self, y: Tensor) -> Tensor:
        """Undo the parts in the opposite order."""
        for part in reversed(self.parts):
            y = part.inverse(y)
        return y

    def log_abs_det(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Return the sum of the parts' values, each where the data arrive there, (B,), in nats."""
        total = check_floating(x, "data").new_zeros(x.shape[0], dtype=working_dtype(x.device))
        for k, part in enumerate(self.parts):
            total = total + part.log_abs_det(x, generator)
            if k + 1 < len(self.parts):
                x = part.forward(x, generator)
        return total

    def to_dict(self) -> dict[str, object]:
        return {"kind": "Compose", "parts": [part.to_dict() for part in self.parts]}

    @classmethod
    def from_dict(cls, config: Mapping[str, object]) -> Compose:
        parts = read_options(config, cls)["parts"]
        if not isinstance(parts, tuple):
            raise DTypeError(f"the parts of Compose must be a list of descriptions, got {show(parts)}")
        return cls(tuple(transform_from_dict(part) for part in parts))


Kind = (
    type[Affine]
    | type[Cosine]
    | type[Dequantise]
    | type[Haar]
    | type[Logit]
    | type[RelativePlaces]
    | type[ZeroVelocity]
)


def event_after(transform: Transform | None, event: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of one sample in the model's coordinates, for data of shape ``event``."""
    if isinstance(transform, Compose):
        for part in transform.parts:
            event = event_after(part, event)
    return transform.event(event) if isinstance(transform, RelativePlaces) else tuple(event)


TRANSFORMS: Final[Mapping[str, Kind | type[Compose]]] = {
    "Affine": Affine,
    "Dequantise": Dequantise,
    "Logit": Logit,
    "Cosine": Cosine,
    "Haar": Haar,
    "ZeroVelocity": ZeroVelocity,
    "RelativePlaces": RelativePlaces,
    "Compose": Compose,
}


def transform_from_dict(config: Mapping[str, object]) -> Transform:
    """Rebuild a transform of this package from ``to_dict``'s description, also after it went through JSON.

    Raises:
        ConfigError: an unknown kind or key, with the nearest, or a missing key.
        DTypeError, DomainError, ShapeError: values that the transform refuses.
    """
    if not isinstance(config, Mapping):
        raise DTypeError(f"a transform's description must be a dict, got {type(config).__name__}; use to_dict()")
    kind = config.get("kind")
    if not isinstance(kind, str) or kind not in TRANSFORMS:
        raise unknown("transform", kind, TRANSFORMS)
    return TRANSFORMS[kind].from_dict(config)
