"""The batch of each step: the source's data, augmented and transformed, on the network's device, with its conditions.

What a step draws (an augmentation, a transform's noise, which conditions are dropped) comes from (seed, step).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NoReturn

import torch
from torch import Tensor
from tqdm.auto import tqdm

from scoresde.diffusions.gaussian import Moments
from scoresde.errors.kinds import ConfigError, DTypeError, ShapeError, show
from scoresde.errors.tensors import check_finite
from scoresde.models.prediction import Condition
from scoresde.noise import stream
from scoresde.ops import move
from scoresde.sampling.processes import World
from scoresde.training.sources import ALONE, Source
from scoresde.transforms.augment import Augmentation
from scoresde.transforms.base import Transform, forward_parts

__all__ = ["Batches"]

BAR_AFTER = 2.0  # seconds


class Batches:
    """Batch k of the data, on the network's device.

    Args:
        source: the raw data, (B, *) of a step.
        dropout: name -> share of a condition that becomes its null (``nn.drop_conditions``).
        seed: what is dropped, augmented and drawn by a transform comes from (seed, step).
        device: where the batches go.
        dtype: of the batches.
        transform: from the data's units to the model's, or None; one that draws noise draws it anew for every batch.
        augment: what only training sees, (x, generator) -> x in the data's units, or None.
        world: of whose share the batches are; what a batch draws is another for each process.

    Raises:
        ConfigError: conditions to drop that are not there.
    """

    def __init__(
        self,
        source: Source,
        *,
        dropout: Mapping[str, float],
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        transform: Transform | None = None,
        augment: Augmentation | None = None,
        world: World = ALONE,
    ) -> None:
        self.source, self.dropout, self.seed, self.device, self.dtype = source, dict(dropout), seed, device, dtype
        self.transform, self.augment = transform, augment
        self.who: tuple[int, ...] = () if world.size == 1 else (world.rank,)
        for name in dropout:
            if name not in source.cond_names:
                held = ", ".join(source.cond_names) or "nothing"
                raise ConfigError(f"dropout of {name!r} needs cond={{{name!r}: values}}; cond holds {held}")

    def __call__(self, step: int) -> tuple[Tensor, Condition]:
        """Return the data and the conditions of a batch, on the network's device."""
        x, cond = self.source.read(step)
        device, transform = self.device, self.transform
        if self.augment is not None:
            x = self._augmented(x, stream(self.seed, "augment", step, *self.who, device=x.device))
        if transform is not None and not transform.random:
            x = transform.forward(_floating(x))
        x = move(x.to(self.dtype), device)
        if transform is not None and transform.random:
            x = transform.forward(x, stream(self.seed, "transform", step, *self.who, device=device))
        if cond is None:
            return x, None
        cond = {key: move(value, device) for key, value in cond.items()}
        if not self.dropout:
            return x, cond
        from scoresde.nn.conditions import drop_conditions  # networks are loaded by who uses them

        draws = {name: stream(self.seed, "dropout", name, step, *self.who, device=device) for name in self.dropout}
        return x, drop_conditions(cond, self.dropout, draws)

    def _augmented(self, x: Tensor, generator: torch.Generator) -> Tensor:
        assert self.augment is not None
        found: object = self.augment(x, generator)
        if not isinstance(found, Tensor) or not found.ndim or len(found) != len(x):
            raise ShapeError(f"augment must return a tensor of {len(x)} samples, got {show(found)}")
        return found

    def spread_conditions(self, n: int) -> dict[str, Tensor]:
        """Return the conditions of n samples from all over the data, on the network's device."""
        return {key: move(value, self.device) for key, value in self.source.spread(n).items()}

    @property
    def event(self) -> tuple[int, ...] | None:
        """The shape of a sample as the model sees it; None of data that can be read once."""
        if self.source.event is None:
            return None
        with tqdm(disable=True) as bar:
            return tuple(next(self._seen(bar)).shape[1:])

    def measure(self, *, progress: bool = False) -> Moments:
        """Return the moments of the data as the model sees them, in one pass; a slow one shows a bar.

        Raises:
            DomainError, ShapeError, DTypeError: data that are not finite, of several shapes, or not the transform's.
        """
        bar = tqdm(desc="moments", unit="sample", unit_scale=True, delay=BAR_AFTER, disable=not progress, leave=False)
        seen = self._seen(bar)
        first = next(seen)

        def whole() -> Iterator[Tensor]:
            yield first
            yield from seen

        with bar:
            return Moments.of_parts(whole(), first.shape[1:])

    def seen(self) -> Iterator[Tensor]:
        """Yield the data as the model sees them, in parts (n, *), in one pass."""
        with tqdm(disable=True) as bar:
            yield from self._seen(bar)

    def _seen(self, bar: tqdm[NoReturn]) -> Iterator[Tensor]:
        draw: torch.Generator | None = None

        def changed() -> Iterator[Tensor]:
            nonlocal draw
            for part in self.source.samples():
                draw = stream(self.seed, "augment", device=part.device) if draw is None else draw
                bar.update(len(part))
                yield _floating(part if self.augment is None else self._augmented(part, draw))

        raw = changed()
        first = next(raw)

        def all_of_them() -> Iterator[Tensor]:
            yield first
            yield from raw

        noise = stream(self.seed, "transform", device=first.device)
        seen = forward_parts(self.transform, all_of_them(), noise)
        return check_finite((part.to(self.dtype) for part in seen), "data")


def _floating(x: Tensor) -> Tensor:
    """Return bytes as float32, and floating numbers in at least float32."""
    if x.is_floating_point():
        return x.to(torch.promote_types(x.dtype, torch.float32))
    if x.dtype == torch.uint8:
        return x.float()
    raise DTypeError(f"data must have a real floating dtype or be bytes, got {x.dtype}; convert them with .float()")
