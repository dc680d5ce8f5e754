"""A judge of digits: a small classifier trained on the real training digits looks at samples.

It gives the share of images of whose class it is at least 0.9 sure, and its hidden layer as features for the Frechet
distance. scikit-learn trains it; its own random state is fixed, so that figures can be compared between runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from scoresde.data.images import LabelledImages, digits
from scoresde.errors.tensors import check_floating
from scoresde.metrics.frechet import frechet_distance
from scoresde.noise import undisturbed
from scoresde.ops import Array, accept_arrays

if TYPE_CHECKING:
    from sklearn.neural_network import MLPClassifier

__all__ = ["DigitJudge"]


@dataclass(frozen=True, eq=False)
class DigitJudge:
    """A classifier of 8 x 8 digits and the real test digits to compare with.

    Args:
        classifier: trained on the real training digits.
        test: the real test digits.
        sure: the probability from which the classifier counts as sure.
    """

    classifier: MLPClassifier
    test: LabelledImages
    sure: float = 0.9

    @classmethod
    def train(cls) -> DigitJudge:
        """Train on the real training digits (a few seconds)."""
        train = digits("train")
        with undisturbed():
            from sklearn.neural_network import MLPClassifier

        classifier = MLPClassifier(hidden_layer_sizes=(128,), alpha=1e-2, max_iter=400, random_state=0)
        classifier.fit(_flatten(train.images), train.labels.numpy())
        return cls(classifier, digits("test"))

    def share(self, images: Array) -> float:
        """Return the share of images (N, 1, 8, 8) in [-1, 1] of whose class the classifier is sure."""
        return float((self.classifier.predict_proba(_flatten(images)).max(1) >= self.sure).mean())

    def accuracy(self, images: Array, labels: Array) -> float:
        """Return the share of images that are taken for their labels."""
        return float((self.classifier.predict(_flatten(images)) == np.asarray(labels)).mean())

    def features(self, images: Array) -> Tensor:
        """Return the hidden layer, (N, 128), after its rectifier."""
        hidden = _flatten(images) @ self.classifier.coefs_[0] + self.classifier.intercepts_[0]
        return torch.from_numpy(np.maximum(hidden, 0.0))

    def frechet(self, images: Array) -> float:
        """Return the squared Frechet distance in the hidden layer to the real test digits."""
        return frechet_distance(self.features(images), self.features(self.test.images))


def _flatten(images: Array) -> np.ndarray:
    return (
        check_floating(accept_arrays(images), "images")
        .detach()
        .to("cpu", torch.float64)
        .reshape(len(images), -1)
        .numpy()
    )
