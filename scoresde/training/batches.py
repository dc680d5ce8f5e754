"""The order of the data: batch k of step k, from (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from scoresde.errors import ConfigError, ShapeError, check_number
from scoresde.models.prediction import Condition
from scoresde.noise import permutation, stream
from scoresde.ops import move
from scoresde.transforms.base import Transform

__all__ = ["Batches", "check_labels"]


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


def check_labels(cond: object, samples: int, label_dropout: float) -> Condition:
    """Return ``cond`` if each of its tensors has one entry for each sample."""
    share = check_number(label_dropout, "label_dropout", 0.0, 1.0)
    if cond is None:
        if share:
            raise ConfigError('label_dropout needs cond={"label": labels}')
        return None
    if not isinstance(cond, Mapping) or not all(isinstance(v, Tensor) for v in cond.values()):
        raise ConfigError('cond must be a dict of tensors, e.g. {"label": labels}')
    for key, value in cond.items():
        if value.ndim == 0 or value.shape[0] != samples:
            raise ShapeError(
                f"cond[{key!r}] must have one entry for each of the {samples} samples, got shape {tuple(value.shape)}"
            )
    if share and "label" not in cond:
        raise ConfigError(f"label_dropout acts on cond['label']; cond holds {', '.join(cond) or 'nothing'}")
    return cond
