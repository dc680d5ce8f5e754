"""Transforms that travel: pickled, copied, written by torch.save, they are equal and map to the same bits."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

from scoresde import Affine, Compose, Dequantise, Logit
from scoresde.noise import stream

DATA = torch.linspace(-1, 1, 5).reshape(5, 1)
TRANSFORMS = [
    Affine(0.5, 2.0),
    Affine((0.5,), (2.0,)),
    Dequantise(5),
    Logit(1e-3, -1.0, 1.0),
    Compose((Dequantise(5), Logit(1e-3, *Dequantise(5).range), Affine(0.0, 3.0))),
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
def test_a_transform_is_the_same_afterwards(transform: object) -> None:
    file = io.BytesIO()
    torch.save(transform, file)
    file.seek(0)
    ways = pickle.loads(pickle.dumps(transform)), copy.deepcopy(transform), torch.load(file, weights_only=False)
    for other in ways:
        assert other == transform
        y = transform.forward(DATA, stream(0, "draw"))
        assert torch.equal(other.forward(DATA, stream(0, "draw")), y)
        assert torch.equal(other.inverse(y), transform.inverse(y))
