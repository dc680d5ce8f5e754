r"""Data transforms: maps between the user's data and the coordinates in which a model is trained.

A model carries its transform: ``fit`` applies ``forward`` to the data, ``sample`` applies ``inverse`` to its result,
and the checkpoint stores it. With y = forward(x), the density of the data follows from the model's:

    log p(x) = log p_model(y) + log_abs_det(x),        log_abs_det(x) = log |det dy/dx| in nats.

| transform | y | log abs det |
|---|---|---|
| ``Affine`` | (x - shift)/scale | -sum_i log scale_i |
| ``Logit`` | log u - log(1 - u), u = epsilon + (1 - 2 epsilon) (x - low)/(high - low) | sum_i log u'/(u_i (1 - u_i)) |
| ``Dequantise`` | x + width (U - 1/2), U uniform on [0, 1) | 0 |
| ``Cosine``, ``Haar`` | frequencies, and scales: an orthogonal basis | 0 |
| ``ZeroVelocity`` | (x, 0), for ``MatrixSDE.langevin()`` | none |
| ``RelativePlaces`` | the places of points relative to their mean, by an isometry | 0 |
| ``Compose`` | one after the other | the sum of its parts' |

``RandomFlip`` and ``RandomCrop`` are augmentations: only training sees them (``fit(augment=...)``).

Data on a lattice have no density: a model of them can be made infinitely good without learning anything. ``Dequantise``
spreads each value over its bin (Uria, Murray, Larochelle 2013, arXiv:1306.0186); the density then bounds the
probability of x, log P(x) >= E_U log p(x + width (U - 1/2)) + D log width for D coordinates (Theis, van den Oord,
Bethge 2016, arXiv:1511.01844).
"""

from __future__ import annotations

from scoresde.transforms.affine import Affine
from scoresde.transforms.augment import RandomCrop, RandomFlip
from scoresde.transforms.base import Transform
from scoresde.transforms.compose import TRANSFORMS, Compose, transform_from_dict
from scoresde.transforms.orthogonal import Cosine, Haar, ZeroVelocity
from scoresde.transforms.pixels import Dequantise, Logit
from scoresde.transforms.relative import RelativePlaces

__all__ = [
    "TRANSFORMS",
    "Affine",
    "Compose",
    "Cosine",
    "Dequantise",
    "Haar",
    "Logit",
    "RandomCrop",
    "RandomFlip",
    "RelativePlaces",
    "Transform",
    "ZeroVelocity",
    "transform_from_dict",
]
