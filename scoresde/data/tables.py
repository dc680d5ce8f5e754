"""Tables of measurements that come with scikit-learn. Nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.data.images import Split, check_split, needing, split_by_label
from scoresde.errors.names import check_choice

__all__ = ["TABLES", "Table", "tabular"]

TABLES = ("breast_cancer", "iris", "wine")


@dataclass(frozen=True, eq=False, kw_only=True)
class Table:
    """Rows of measurements with their class labels.

    Args:
        values: float32 (N, D), in the units of the measurements; ``Affine.standardise(values)`` makes them comparable.
        names: the D columns.
        labels: int64 (N,).
        classes: what the labels mean.
    """

    values: Tensor
    names: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]


def tabular(name: str = "wine", split: Split = "train") -> Table:
    """Return a table of scikit-learn's: "wine" (178 x 13), "breast_cancer" (569 x 30) or "iris" (150 x 4).

    The split is fixed and draws no random number: rows are ordered by label (within a label as they come) and every
    fifth of them is a test row.

    Args:
        name: one of ``TABLES``.
        split: "train" or "test".

    Raises:
        ConfigError: another name or split, or scikit-learn is missing.

    Source: Aeberhard, Forina (1992), wine; Wolberg, Mangasarian, Street (1995), breast cancer; Fisher (1936), iris.
    """
    check_split(split)
    check_choice("table", name, TABLES)
    with needing("tables", "scikit-learn"):
        from sklearn.datasets import load_breast_cancer, load_iris, load_wine
    bunch = {"breast_cancer": load_breast_cancer, "iris": load_iris, "wine": load_wine}[name]()
    labels = torch.as_tensor(bunch.target, dtype=torch.int64, device="cpu")
    chosen = split_by_label(labels, split)
    return Table(
        values=torch.as_tensor(bunch.data, dtype=torch.float32, device="cpu")[chosen],
        names=tuple(str(one) for one in bunch.feature_names),
        labels=labels[chosen],
        classes=tuple(str(one) for one in bunch.target_names),
    )
