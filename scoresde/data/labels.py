"""Labels as they are: the classes are the distinct values in the data, integers or words, and keep their names."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from scoresde.data.arrays import arrays_from_file, words_from_file
from scoresde.errors.kinds import DataError

__all__ = ["labels_from_file", "number_classes"]


def number_classes(values: Sequence[int | str]) -> tuple[Tensor, tuple[str, ...]]:
    """Return the place (N,) of each label among the distinct ones, and their names: numbers by size, words by letters.

    ``[3, 1, 3]`` gives 1, 0, 1 and the classes "1" and "3": no class is without data.
    """
    classes = sorted(set(values))
    places = {value: place for place, value in enumerate(classes)}
    return torch.tensor([places[value] for value in values], dtype=torch.int64, device="cpu"), tuple(map(str, classes))


def labels_from_file(path: str | os.PathLike[str], key: str | None = None) -> tuple[Tensor, tuple[str, ...]]:
    """Return the labels (N,) of an array of integers, booleans or words in a file, and what their classes are called.

    The classes are the distinct values, whatever they are: labels 1, 2, 3 make three classes named "1", "2" and "3",
    and each label becomes the place of its class.

    Args:
        path: an .npy, .npz, .pt, .pth or .safetensors file.
        key: name of the array in a file that names its arrays.

    Raises:
        DataError, ConfigError, DTypeError, DomainError: as ``arrays_from_file``; labels that are fractions, or of more
            than one dimension.
    """
    words = words_from_file(path, key)
    if words is not None:
        if words.ndim != 1:
            raise DataError(f"{path} holds labels of shape {words.shape}", cure="one word for each sample")
        return number_classes([str(word) for word in words.tolist()])
    found = arrays_from_file(path, key)
    if found.ndim != 1 or found.is_floating_point():
        raise DataError(
            f"{path} holds labels of type {str(found.dtype).removeprefix('torch.')} and shape {tuple(found.shape)}",
            cure="labels are one integer or one word for each sample",
        )
    return number_classes(np.asarray(found.to(torch.int64)).tolist())
