"""The data and their order: batch k of step k, from (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from scoresde.diffusions.gaussian import Moments
from scoresde.errors import ConfigError, ShapeError, check_finite
from scoresde.models.prediction import Condition, check_condition
from scoresde.noise import permutation, stream
from scoresde.ops import Array, Rows, accept_arrays, accept_rows, move
from scoresde.transforms.base import Transform, forward_parts

__all__ = ["Batches", "prepare_data"]


class Batches:
    """Batch k of shuffled data, on the network's device.

    Args:
        data: (N, *), in the data's units; only the rows of a batch are read and transformed.
        cond: conditions, each (N, *), or None.
        size: samples of a batch; one may reach over the end of an epoch.
        dropout: name -> share of a condition that becomes its null (``nn.drop_conditions``).
        seed: the order of an epoch comes from (seed, epoch), what is dropped and a transform's noise from (seed, step).
        device: where the batches go.
        transform: from the data's units to the model's, or None; one that draws noise draws it anew for every batch.
        dtype: of the batches; by default the data's.
    """

    def __init__(
        self,
        data: Tensor | Rows,
        cond: Condition,
        *,
        size: int,
        dropout: Mapping[str, float],
        seed: int,
        device: torch.device,
        transform: Transform | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.data, self.cond, self.size, self.dropout = data, cond, size, dropout
        self.seed, self.device, self.transform = seed, device, transform
        self.dtype = data.dtype if dtype is None else dtype
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def index(self, step: int) -> Tensor:
        """Return the indices (B,) of a batch, on the CPU."""
        first, n, parts = step * self.size, len(self.data), []
        while first < (step + 1) * self.size:
            epoch, place = divmod(first, n)
            if self._order[0] != epoch:
                self._order = epoch, permutation(n, stream(self.seed, "epoch", epoch))
            parts.append(self._order[1][place : place + (step + 1) * self.size - first])
            first += len(parts[-1])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __call__(self, step: int) -> tuple[Tensor, Condition]:
        """Return the data and the conditions of a batch, on the network's device."""
        index, device = self.index(step), self.device

        def take(source: Tensor | Rows) -> Tensor:
            return source[move(index, source.device)]

        x, transform = take(self.data), self.transform
        if transform is not None and not transform.random:
            x = transform.forward(x)
        x = move(x.to(self.dtype), device)
        if transform is not None and transform.random:
            x = transform.forward(x, stream(self.seed, "transform", step, device=device))
        if self.cond is None:
            return x, None
        cond = {key: move(take(value), device) for key, value in self.cond.items()}
        if not self.dropout:
            return x, cond
        from scoresde.nn.conditions import drop_conditions  # networks are loaded by who uses them

        draws = {name: stream(self.seed, "dropout", name, step, device=device) for name in self.dropout}
        return x, drop_conditions(cond, self.dropout, draws)

    def spread_conditions(self, n: int) -> dict[str, Tensor]:
        """Return the conditions of n samples spread evenly over the data, on the network's device."""
        index = torch.linspace(0, len(self.data) - 1, n, dtype=torch.float64).round().long()
        return {key: move(value[move(index, value.device)], self.device) for key, value in (self.cond or {}).items()}


def prepare_data(
    data: Array | Rows,
    cond: Mapping[str, Array] | None,
    transform: Transform | None,
    *,
    batch_size: int,
    dropout: Mapping[str, float],
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Batches, Moments]:
    """Check data and conditions, and return batches in the network's type, and the moments of the transformed data.

    Raises:
        DTypeError, ShapeError, DomainError, ConfigError: no finite samples, conditions of another number, conditions
            to drop that are not there, a transform of another event.
    """
    rows = accept_rows(data, "data")
    if len(rows) == 0:
        raise ShapeError("data is empty: training needs at least one sample")
    known = check_condition(accept_arrays(cond, "cond", only_read=True), len(rows), each=True)
    for name in dropout:
        if name not in (known or {}):
            held = "nothing" if known is None else ", ".join(known)
            raise ConfigError(f"dropout of {name!r} needs cond={{{name!r}: values}}; cond holds {held}")
    batches = Batches(
        rows,
        known,
        size=batch_size,
        dropout=dropout,
        seed=seed,
        device=device,
        transform=transform,
        dtype=dtype,
    )
    seen = forward_parts(transform, rows, stream(seed, "transform", device=rows.device))
    return batches, Moments.of_parts(check_finite((part.to(dtype) for part in seen), "data"), rows.shape[1:])
