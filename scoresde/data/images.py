"""Images that come with scikit-learn: handwritten digits, and patches of two photographs. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from scoresde.errors.kinds import ConfigError
from scoresde.errors.names import check_choice
from scoresde.errors.values import check_integer
from scoresde.noise import integers, stream, undisturbed

__all__ = ["LabelledImages", "check_split", "digits", "from_bytes", "needing", "photographs", "split_by_label"]

Split = Literal["train", "test"]


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelledImages:
    """Images with their class labels.

    Args:
        images: float32 (N, C, H, W) in [-1, 1].
        labels: int64 (N,).
        levels: number of distinct pixel values; they lie at -1 + 2 k / (levels - 1), k = 0..levels-1, which is the
            lattice of ``Dequantise(levels)``.
    """

    images: Tensor
    labels: Tensor
    levels: int


def digits(split: Split = "train") -> LabelledImages:
    """Return the handwritten digits that come with scikit-learn: 1437 training or 360 test images of 8x8 pixels.

    A pixel v in 0..16 becomes v/8 - 1 in [-1, 1]: 17 levels. The split is fixed and draws no random number: images are
    ordered by label (within a label as they come) and every fifth of them is a test image, so that each class has its
    share to within one image.

    Args:
        split: "train" or "test".

    Raises:
        ConfigError: another split, or scikit-learn is missing.

    Source: Alpaydin, Kaynak (1998), Optical Recognition of Handwritten Digits, UCI; 1797 images.
    """
    check_split(split)
    with needing("digits", "scikit-learn"):
        from sklearn.datasets import load_digits
    pixels, targets = load_digits(return_X_y=True)
    labels = torch.as_tensor(targets, dtype=torch.int64, device="cpu")
    images = torch.as_tensor(pixels, dtype=torch.float32, device="cpu").reshape(-1, 1, 8, 8) / 8.0 - 1.0
    chosen = split_by_label(labels, split)
    return LabelledImages(images=images[chosen], labels=labels[chosen], levels=17)


def photographs(patch: int = 16, count: int = 10_000, split: Split = "train", *, seed: int = 0) -> LabelledImages:
    """Return square RGB patches at random places of the two photographs that come with scikit-learn.

    The photographs, a temple (label 0) and a flower (label 1), have 427 x 640 pixels. Training patches lie in the left
    four fifths, columns 0..511, test patches in the right fifth, columns 512..639: no pixel is in both. The photograph,
    the row and the column are uniform; patches may overlap, so ``count`` of them are not independent images. A pixel
    v in 0..255 becomes v/127.5 - 1: 256 levels.

    Args:
        patch: side of a patch in pixels, 1 to 128.
        count: number of patches, at least 0.
        split: "train" or "test".
        seed: names the places; the splits have streams of their own.

    Raises:
        DTypeError, DomainError: patch, count or seed out of range.
        ConfigError: another split, or scikit-learn or Pillow is missing.
    """
    check_split(split)
    side = check_integer(patch, "patch", 1, 128)
    total = check_integer(count, "count", 0)
    generator = stream(seed, "data", "photographs", split)
    with needing("photographs", "scikit-learn and Pillow"):
        from sklearn.datasets import load_sample_images

        pictures = load_sample_images().images
    first, last = (0, 512) if split == "train" else (512, 640)
    pixels = torch.stack([torch.from_numpy(one[:, first:last].copy()).permute(2, 0, 1) for one in pictures])
    labels = integers(len(pixels), (total,), generator)
    rows = integers(pixels.shape[2] - side + 1, (total,), generator)
    columns = integers(pixels.shape[3] - side + 1, (total,), generator)
    images = torch.empty(total, 3, side, side, dtype=torch.float32, device="cpu")
    for out, k, row, column in zip(images, labels.tolist(), rows.tolist(), columns.tolist(), strict=True):
        out.copy_(from_bytes(pixels[k, :, row : row + side, column : column + side]))
    return LabelledImages(images=images, labels=labels, levels=256)


def from_bytes(pixels: Tensor) -> Tensor:
    """Return bytes v as float32 v/127.5 - 1, rounded once, so that ``Dequantise(256)`` gives back the same bits."""
    return (-1.0 + 2.0 / 255.0 * torch.arange(256, dtype=torch.float64, device="cpu")).to(torch.float32)[
        pixels.to(torch.int64)
    ]


def check_split(split: object) -> None:
    """Raise ConfigError unless ``split`` is "train" or "test"."""
    check_choice("split", split, ("train", "test"))


@contextmanager
def needing(what: str, packages: str) -> Iterator[None]:
    """Import what data need, with global generators left alone; ConfigError where a package is not installed."""
    try:
        with undisturbed():
            yield
    except ImportError as error:
        raise ConfigError(f'{what} need {packages}; in the repository run pip install ".[data]"') from error


def split_by_label(labels: Tensor, split: Split) -> Tensor:
    """Return which samples (N,) belong to a split: in the order of the labels, every fifth is a test sample.

    The only sample of a class is for training: a class that no training sees has no samples to learn from.
    """
    test = torch.zeros(labels.shape[0], dtype=torch.bool, device="cpu")
    test[labels.argsort(stable=True)[::5]] = True
    if labels.numel():
        test &= torch.bincount(labels)[labels] > 1
    return test if split == "test" else ~test
