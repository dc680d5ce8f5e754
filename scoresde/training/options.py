"""The options of ``fit``, read and checked before anything is changed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from scoresde.diffusions.gaussian import Moments
from scoresde.errors.kinds import ConfigError, DTypeError, ShapeError, TrainingWarning, show
from scoresde.errors.values import check_integer, check_number
from scoresde.models.prediction import check_condition
from scoresde.models.score_model import ScoreModel
from scoresde.ops import Array, Rows, accept_arrays, accept_rows
from scoresde.training.batches import Batches
from scoresde.training.datasets import Items
from scoresde.training.items import Unpack
from scoresde.training.losses.times import TimeLaw
from scoresde.training.opening import read_all
from scoresde.training.sources import Source

__all__ = [
    "Data",
    "check_functions",
    "check_moments",
    "check_patience",
    "is_own",
    "read_dropout",
    "read_held_out",
    "warn_of_scale",
]

Data = Array | Rows | Items | Iterable[Any]
SCALES = 0.1, 10.0  # least standard deviation, largest root of the mean square, of data without a transform


def is_own(one: object) -> bool:
    """Return whether a weight or times are a function, which has no name of its own."""
    return callable(one) and not isinstance(one, TimeLaw)


def check_functions(**given: object) -> None:
    """Raise DTypeError for what can be called but is no function."""
    for name, one in given.items():
        if one is not None and (isinstance(one, type) or not callable(one)):
            raise DTypeError(f"{name} must be a function or None, got {show(one)}")


def check_moments(moments: object, batches: Batches) -> Moments:
    """Return moments that were given, of the samples that the model sees."""
    if not isinstance(moments, Moments):
        raise DTypeError(f"moments must be scoresde.Moments, as Moments.of(data) makes, got {show(moments)}")
    event = batches.event
    if event is not None and moments.mean.ndim and tuple(moments.mean.shape) != event:
        raise ShapeError(f"moments are of samples of shape {tuple(moments.mean.shape)}, the model sees {event}")
    return moments


def check_patience(patience: int | None, held_out: object) -> int | None:
    """Return the number of looks, which need something to look at."""
    if patience is None:
        return None
    if held_out is None:
        raise ConfigError("patience= counts held-out losses; pass held_out= data, or leave it out")
    return check_integer(patience, "patience", 1)


def read_held_out(
    data: Data,
    cond: Mapping[str, Array] | None,
    model: ScoreModel,
    unpack: Unpack | None,
    source: Source,
    *,
    any_size: bool,
) -> tuple[Array | Rows, Mapping[str, Array] | None]:
    """Return held-out data and their conditions in memory, held to the training's.

    ``any_size`` is for data that an augmentation cuts, of which the model sees other sizes.
    """
    if not isinstance(data, Tensor | np.ndarray | Rows | list):
        if cond is not None:
            raise ConfigError("held_out_cond= is for arrays; a data set gives the conditions with its items (unpack=)")
        data, cond = read_all(data, model.net, unpack)
    rows = accept_rows(data, "held_out")
    if len(rows) == 0:
        raise ShapeError("held_out is empty: a loss needs at least one sample")
    known = check_condition(accept_arrays(cond, "held_out_cond", only_read=True), len(rows), each=True)
    event = tuple(rows.shape[1:])
    fits = source.event is None or source.event == event or (any_size and len(source.event) == len(event))
    if not fits:
        raise ShapeError(f"held_out has samples of shape {event}, data of shape {source.event}")
    if set(known or {}) != set(source.cond_names):
        raise ConfigError(
            f"held_out_cond must have the conditions {sorted(source.cond_names)} of the data, got {sorted(known or {})}"
        )
    return rows, cond


def read_dropout(label_dropout: float, cond_dropout: Mapping[str, float] | None) -> dict[str, float]:
    """Return the shares, name by name, of what is dropped at all."""
    if cond_dropout is not None and not isinstance(cond_dropout, Mapping):
        raise DTypeError(f"cond_dropout must be a dict, e.g. {{'label': 0.1}}, got {show(cond_dropout)}")
    label_dropout = check_number(label_dropout, "label_dropout", 0.0, 1.0)
    named = {"label_dropout": ("label", label_dropout)}
    named |= {f"cond_dropout[{name!r}]": (name, share) for name, share in (cond_dropout or {}).items()}
    if label_dropout and "label" in (cond_dropout or {}):
        raise ConfigError("label_dropout= and cond_dropout={'label': ...} say the same thing; leave one out")
    shares = {name: check_number(share, option, 0.0, 1.0) for option, (name, share) in named.items()}
    return {name: share for name, share in shares.items() if share}


def warn_of_scale(moments: Moments) -> None:
    """Warn of data far from unit scale, which no transform brings there."""
    mean, std = moments.describe_values()
    if math.hypot(mean, std) > SCALES[1] or 0.0 < std < SCALES[0]:
        pixels = ", or Affine.from_range(0, 255) for pixels from 0 to 255" if len(moments.mean.shape) == 3 else ""
        warnings.warn(
            f"the data have mean {mean:.3g} and standard deviation {std:.3g}, and networks learn at about unit scale: "
            f"fit(..., transform=Affine.standardise(data)) of scoresde.transforms{pixels}",
            TrainingWarning,
            stacklevel=4,
        )
