r"""Clouds of points without their mean place.

Where a cloud stands says nothing, and no density on R^n is the same everywhere: a model of clouds lives on the places
with mean 0, of n (N - 1) dimensions (Kohler et al. 2020, arXiv:2006.02425; Hoogeboom et al. 2022, arXiv:2203.17003).
With Helmert's matrix H, whose N - 1 rows are orthonormal and perpendicular to (1, ..., 1),

    y_k = sum_i H_ki x_i = (x_1 + ... + x_k - k x_{k+1})/sqrt(k (k + 1)),        k = 1 ... N - 1,

are coordinates of that subspace, and lengths and volumes in them are those of the subspace: H H^T = 1,
H^T H = 1 - 1/N. White noise of y is white noise of x less its mean, so that a diffusion of y is the projected one, and
what knows y alone (tables, losses, bounds, likelihoods) is right without knowing of it: log |det| = 0, and a density is
one of n (N - 1) dimensions.

A rotation turns each y_k; a permutation P of the points turns y by the orthogonal H P H^T, which white noise does not
notice. So a network that is equivariant in x gives laws that are invariant under both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoresde.errors.kinds import ShapeError
from scoresde.errors.tensors import check_floating
from scoresde.errors.values import keep_integer
from scoresde.ops import drop_mean, restore_points, working_dtype
from scoresde.transforms.base import read_options

__all__ = ["RelativePlaces"]


@dataclass(frozen=True)
class RelativePlaces:
    """y = (H x, features) of a cloud of points; back, the cloud whose mean place is 0.

    A cloud is (N, coordinates + features), places first, and y a vector of coordinates (N - 1) + features N; N may
    differ from call to call. ``nn.EGNN(relative=True)`` takes y. Another network f of clouds is taken along by
    ``lambda y, c: transform.forward(f(transform.inverse(y), c))``.

    Args:
        coordinates: n of a place.
        features: values of a point that are no places, such as a type's code; they are kept as they are.

    Raises:
        DTypeError, DomainError: sizes that are no positive integers (``features`` may be 0).
    """

    coordinates: int = 3
    features: int = 0

    def __post_init__(self) -> None:
        keep_integer(self, "coordinates", 1)
        keep_integer(self, "features", 0)

    @property
    def random(self) -> bool:
        """False: nothing is drawn."""
        return False

    def event(self, event: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of y for a cloud of shape ``event``; ShapeError where that is none."""
        each = self.coordinates + self.features
        if len(event) != 2 or event[1] != each or event[0] < 1:
            raise ShapeError(
                f"{self} takes clouds (B, N, {each}) of one point or more, {self.coordinates} coordinates and "
                f"{self.features} features of each, got samples of shape {tuple(event)}"
            )
        return (each * event[0] - self.coordinates,)

    def forward(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Map clouds (B, N, coordinates + features) to y, (B, coordinates (N - 1) + features N)."""
        self.event(check_floating(x, "data").shape[1:])
        return drop_mean(x.to(torch.promote_types(x.dtype, torch.float32)), self.coordinates).to(x.dtype)

    def inverse(self, y: Tensor) -> Tensor:
        """Map y to the clouds of mean place 0; ShapeError where y has the length of none."""
        wide = check_floating(y, "y").to(torch.promote_types(y.dtype, torch.float32))
        return restore_points(wide, self.coordinates, self.features).to(y.dtype)

    def log_abs_det(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Return 0, (B,): volumes are those of the clouds whose mean place is 0."""
        self.event(check_floating(x, "data").shape[1:])
        return x.new_zeros(len(x), dtype=working_dtype(x.device))

    def to_dict(self) -> dict[str, object]:
        return {"kind": "RelativePlaces", "coordinates": self.coordinates, "features": self.features}

    @classmethod
    def from_dict(cls, config: Mapping[str, object]) -> RelativePlaces:
        return cls(**read_options(config, cls))
