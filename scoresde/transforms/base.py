"""What every transform is, and the checks that they share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from scoresde.errors.kinds import ConfigError, DomainError, DTypeError, show
from scoresde.errors.names import unknown
from scoresde.errors.tensors import check_values
from scoresde.errors.values import LARGEST_NUMBER, check_number, keep_number
from scoresde.transforms.augment import RandomCrop, RandomFlip

__all__ = [
    "Transform",
    "check_holds",
    "check_inside",
    "check_interval",
    "check_transform",
    "forward_parts",
    "keep_interval",
    "read_options",
]


@runtime_checkable
class Transform(Protocol):
    """A map from data (B, *) to the model's coordinates, of the same dtype and device, and back.

    They keep the shape, but for ``RelativePlaces`` and a ``Latent``, which holds an autoencoder.
    """

    @property
    def random(self) -> bool:
        """Whether ``forward`` draws noise; training then draws it anew for every batch."""
        ...

    def forward(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Map data (B, *) to the model's coordinates; a transform that draws noise takes it from ``generator``."""
        ...

    def inverse(self, y: Tensor) -> Tensor:
        """Map the model's coordinates (B, *) to data; never random."""
        ...

    def log_abs_det(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Return log |det d forward/dx| at data x, (B,), in nats.

        Where a part before it draws noise, the value depends on the draw: a generator in the state that ``forward``'s
        had gives the value of the same draw, e.g. ``noise.stream(seed, "data")`` for both.
        """
        ...

    def to_dict(self) -> dict[str, object]:
        """Return a JSON-able description, which ``transform_from_dict`` reads."""
        ...


def check_transform(transform: object) -> Transform | None:
    """Return ``transform`` if it is None or a transform; DTypeError otherwise."""
    if transform is None or (isinstance(transform, Transform) and not isinstance(transform, type)):
        return transform
    if isinstance(transform, RandomFlip | RandomCrop):
        raise DTypeError(f"{transform} is not inverted: it is no transform of the model; pass it to fit as augment=")
    raise DTypeError(f"transform must be one of scoresde.transforms, e.g. Affine(), got {show(transform)}")


def forward_parts(transform: Transform | None, x: Iterable[Tensor], generator: Generator) -> Iterator[Tensor]:
    """Yield data that come in parts in the model's coordinates; DomainError says in which part a bad value is."""
    low = 0
    for part in x:
        try:
            y = part if transform is None else transform.forward(part, generator)
        except DomainError as error:
            if low == 0:
                raise
            raise DomainError(f"in data[{low}:{low + len(part)}], {error}") from error
        yield y
        low += len(part)


def read_options(config: Mapping[str, object], kind: type[Any]) -> dict[str, Any]:
    """Return the fields of the dataclass ``kind`` from its description; the constructor checks their values.

    Raises:
        DTypeError: no mapping. ConfigError: an unknown key, with the nearest, a missing one, or another kind.
    """
    if not isinstance(config, Mapping):
        raise DTypeError(f"a transform's description must be a dict, got {type(config).__name__}; use to_dict()")
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
    if options.pop("kind", None) != kind.__name__:
        raise ConfigError(
            f"got the description of {config.get('kind')!r} for {kind.__name__}; read it with transform_from_dict"
        )
    names = [field.name for field in fields(kind)]
    for key in options:
        if key not in names:
            raise unknown(f"option of {kind.__name__}", key, names)
    for name in names:
        if name not in options:
            raise ConfigError(f"the description of {kind.__name__} lacks {name!r}; make one with to_dict()")
    return options


def check_interval(low: float, high: float) -> tuple[float, float]:
    """Return the ends of an interval, checked."""
    low = check_number(low, "low")
    high = check_number(high, "high")
    if low >= high:
        raise DomainError(f"low must be below high, got low={low:g} and high={high:g}")
    if high - low < 1 / LARGEST_NUMBER:
        raise DomainError(
            f"high must lie at least {1 / LARGEST_NUMBER:g} above low, got {show(low)} and {high!r}",
            parameter="high",
            got=high,
            cure="give the data another unit",
        )
    return low, high


def keep_interval(owner: object) -> None:
    """Check ``low`` and ``high`` of a frozen dataclass as ``check_interval`` does; keep them as Python's numbers."""
    keep_number(owner, "low")
    keep_number(owner, "high")
    check_interval(getattr(owner, "low"), getattr(owner, "high"))  # noqa: B009 any dataclass with both


class _Interval(Protocol):
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def check_holds(interval: _Interval, dtype: torch.dtype) -> None:
    """Raise DTypeError for data of a type that has no numbers between the ends of a transform's interval."""
    known, width = torch.finfo(dtype), interval.high - interval.low
    if width < known.tiny or max(abs(interval.low), abs(interval.high)) > known.max:
        raise DTypeError(
            f"data of {dtype} have no numbers in [{interval.low:g}, {interval.high:g}], the range of {interval}",
            parameter="x",
            got=dtype,
            cure="use x.double(), or give the data another unit",
        )


def check_inside(good: Tensor, x: Tensor, where: str) -> None:
    """Raise DomainError for data at the first place where ``good`` is not."""
    check_values(x, "data")
    count = int((~good).sum())
    if count:
        first = tuple(int(i) for i in (~good).nonzero()[0])
        raise DomainError(
            f"data must lie {where}; {count} of {x.numel()} values do not, the first is {x[first].item():g} at index "
            f"{first}; give the transform the data's own range"
        )
