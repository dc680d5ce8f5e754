"""The data and their order: batch k of step k, from (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from scoresde.diffusions.gaussian import Moments
from scoresde.errors import ConfigError, ShapeError, check_number, check_samples
from scoresde.models.prediction import Condition, check_condition
from scoresde.noise import permutation, stream
from scoresde.ops import Array, accept_arrays, move
from scoresde.transforms.base import Transform

__all__ = ["Batches", "prepare_data"]


class Batches:
    """Batch k of shuffled data, on the network's device.

    Args:
        data: (N, *).
        cond: conditions, each (N, *), or None.
        size: samples of a batch; one may reach over the end of an epoch.
        label_dropout: share of ``cond["label"]`` that becomes -1.
        seed: the order of an epoch comes from (seed, epoch), dropped labels and a transform's noise from (seed, step).
        device: where the batches go.
        transform: a random one, drawn anew for every batch; None where the data are transformed already.
    """

    def __init__(
        self,
        data: Tensor,
        cond: Condition,
        *,
        size: int,
        label_dropout: float,
        seed: int,
        device: torch.device,
        transform: Transform | None = None,
    ) -> None:
        self.data, self.cond, self.size, self.label_dropout = data, cond, size, label_dropout
        self.seed, self.device, self.transform = seed, device, transform
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

        def take(source: Tensor) -> Tensor:
            return move(source[move(index, source.device)], device)

        x = take(self.data)
        if self.transform is not None:
            x = self.transform.forward(x, stream(self.seed, "transform", step, device=device))
        if self.cond is None:
            return x, None
        cond = {key: take(value) for key, value in self.cond.items()}
        if self.label_dropout:
            from scoresde.nn.embeddings import drop_labels

            generator = stream(self.seed, "labels", step, device=device)
            cond["label"] = drop_labels(cond["label"], self.label_dropout, generator)
        return x, cond


def prepare_data(
    data: Array,
    cond: Mapping[str, Array] | None,
    transform: Transform | None,
    *,
    batch_size: int,
    label_dropout: float,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Batches, Moments]:
    """Check data and conditions, transform the data into the network's type, and return batches and moments.

    Raises:
        DTypeError, ShapeError, DomainError, ConfigError: no finite samples, conditions of another number, labels to
            drop that are not there, a transform of another event.
    """
    x = check_samples(accept_arrays(data, "data"), "data").detach()
    if x.shape[0] == 0:
        raise ShapeError("data is empty: training needs at least one sample")
    known = check_condition(accept_arrays(cond, "cond"), len(x))
    share = check_number(label_dropout, "label_dropout", 0.0, 1.0)
    if share and known is None:
        raise ConfigError('label_dropout needs cond={"label": labels}')
    if share and known is not None and "label" not in known:
        raise ConfigError(f"label_dropout acts on cond['label']; cond holds {', '.join(known) or 'nothing'}")
    raw = x.to(torch.promote_types(x.dtype, torch.float32))
    x = raw if transform is None else transform.forward(raw, stream(seed, "transform", device=x.device))
    x = x.to(dtype)
    redrawn = transform if transform is not None and transform.random else None
    batches = Batches(
        x if redrawn is None else raw.to(dtype),
        known,
        size=batch_size,
        label_dropout=share,
        seed=seed,
        device=device,
        transform=redrawn,
    )
    return batches, Moments.of(x)
