r"""Tables whose weights are linear maps, and the exact law that they make of Gaussian data.

Under a linear SDE a row's weights are maps (``diffusions.blocks.Block``) where they are not numbers that serve all
coordinates; everything else about a table is as in ``solvers.tableau``, and the same executor runs it.

With data N(m, C) the state x = M x_0 + L z is Gaussian, and the exact prediction of p x_0 + q z is affine in it,

    E[p x_0 + q z | x] = p m + S (x - M m),       S = (p C M^T + q L^T) (M C M^T + Sigma)^{-1},

so that every state is an affine map of the start state and the draws: ``law`` follows them row by row in full matrices.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Never, cast

import torch
from torch import Tensor

from scoresde.diffusions.blocks import Block
from scoresde.diffusions.gaussian import Moments
from scoresde.diffusions.linear import LinearPoint, LinearSDE
from scoresde.diffusions.linear_targets import target_maps, view_maps
from scoresde.diffusions.point import Point
from scoresde.errors.kinds import ConfigError
from scoresde.solvers.rows import Knot, Row, Weights
from scoresde.solvers.tableau import Tableau

__all__ = ["BlockTableau", "as_weights", "knots_of"]


def as_weights(*weights: float | Block) -> Weights:
    """Return weights, numbers and maps, as a row holds them."""
    return cast(Weights, tuple(weights))


def knots_of(sde: LinearSDE, times: Tensor) -> list[Knot]:
    """Return the times as knots, with alpha and sigma of the SDE's mean log-SNR."""
    return Knot.of(sde.clock.at(times))


@dataclass(frozen=True, repr=False)
class BlockTableau(Tableau):
    """A table under a linear SDE, whose weights are numbers or maps.

    Args:
        sde: the linear SDE.
    """

    sde: LinearSDE = field(kw_only=True)

    def __post_init__(self) -> None:
        """Accept the rows of this room's builders."""

    __hash__ = Tableau.__hash__

    @functools.cached_property
    def points(self) -> Point:
        """The rows' calls as points of the linear SDE, times of shape (nfe,)."""
        times = torch.tensor([row.at.t for row in self.rows], dtype=torch.float64, device="cpu")
        return cast(Point, self.sde.at(times))

    def denoised(self) -> Tableau:
        """Append the jump from the last time to clean data: x <- the data prediction, at one more call."""
        if self.end.t == 0:
            return self
        here = self.sde.at(torch.tensor([self.end.t], dtype=torch.float64, device="cpu"))
        known, wanted = (target_maps(kind, here) for kind in (self.prediction, "data"))
        a, b = (
            Block(self.sde.blocks, maps[0])
            for maps in view_maps(known, wanted, here, f"the last step of {self.name!r}")
        )
        return replace(self, rows=(*self.rows, Row(self.end, as_weights(a, b))), end=Knot(0.0, 1.0, 0.0))

    def block_law(self, moments: Moments, start: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return the exact mean (D,) and covariance (D, D) of the output for Gaussian data and exact predictions.

        Args:
            moments: of the data, with their event.
            start: mean (D,) and covariance (D, D) of the start state; by default those of x at the table's start.
        """
        event = tuple(moments.mean.shape)
        blocks, size = self.sde.blocks, moments.mean.numel()
        full = moments.covariance
        full = torch.diag(full.expand(event).reshape(-1)) if moments.basis is None else full
        centre = moments.mean.reshape(-1)
        if start is None:
            first = self.sde.at(torch.tensor(self.start.t, dtype=torch.float64, device="cpu"))
            mean = blocks.dense(first.mean, event)
            start = mean @ centre, mean @ full @ mean.T + blocks.dense(first.covariance, event)
        slopes, offsets = _read_gaussian(cast(LinearPoint, self.points), self.prediction, centre, full, event)
        one = torch.eye(size, dtype=torch.float64, device="cpu")

        def add(weights: Sequence[float | Block], terms: Sequence[Tensor]) -> Tensor:
            total = torch.zeros(size, 1 + size * (1 + drawn), dtype=torch.float64, device="cpu")
            for weight, term in zip(weights, terms, strict=False):
                if isinstance(weight, Block):
                    total = total + blocks.dense(weight.maps, event) @ term
                elif weight:
                    total = total + weight * term
            return total

        scale, weight = cast(tuple[float | Block, float | Block], self.lift)
        drawn = sum(row.draws for row in self.rows) + (isinstance(weight, Block) or weight != 0.0)
        # Columns: the constant, the start state, the draws.
        columns = torch.zeros(1 + drawn, size, 1 + size * (1 + drawn), dtype=torch.float64, device="cpu")
        for k in range(1 + drawn):
            columns[k, :, 1 + k * size : 1 + (k + 1) * size] = one
        begin, draws = columns[0], list(columns[1:])
        z: list[Tensor] = []
        if isinstance(weight, Block) or weight != 0.0:
            z = [draws.pop(0)]
        x = y = add([scale], [begin]) + add([weight], z)
        past: list[Tensor] = []
        for row, slope, offset in zip(self.rows, slopes, offsets, strict=True):
            predicted = slope @ x
            predicted[:, 0] += offset
            past = [predicted, *past]
            if row.draws:
                z.insert(0, draws.pop(0))
            terms, noises = [y, *past], z if row.draws else [torch.zeros_like(x), *z]
            x = add(row.state, terms) + add(row.noise, noises)
            y = x if row.anchor is None else add(row.anchor, terms) + add(row.anchor_noise, noises)
        from_start, from_draws = x[:, 1 : 1 + size], x[:, 1 + size :]
        return x[:, 0] + from_start @ start[0], from_start @ start[1] @ from_start.T + from_draws @ from_draws.T

    def to_json(self) -> Never:
        """Raise ConfigError: the weights are maps of an SDE, from which the table is made again."""
        raise ConfigError(
            f"{self.name!r} has maps for weights, which JSON does not hold; make it again from its solver"
        )


def _read_gaussian(
    points: LinearPoint, prediction: str, centre: Tensor, full: Tensor, event: tuple[int, ...]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the matrices and offsets of the exact predictions, slope x + offset, at n points."""
    blocks = points.owner.blocks
    mean, roots, p, q = (
        blocks.dense(maps, event) for maps in (points.mean, points.root, *target_maps(prediction, points))
    )
    total = mean @ full @ mean.mT + roots @ roots.mT
    slopes = torch.linalg.solve(total, (p @ full @ mean.mT + q @ roots.mT).mT).mT
    return list(slopes), list(p @ centre - (slopes @ (mean @ centre)[..., None])[..., 0])
