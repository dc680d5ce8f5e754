r"""A model under a linear SDE: one affine readout of a network, with maps in the place of numbers.

The network computes F(c_in x, c_noise) at the state x = M x_0 + L z, and what F means is a pair of maps (p, q):
F* = p x_0 + q z (``diffusions.linear_targets``). Every prediction is P = a x + b F. c_in makes every part of a
coordinate of variance 1 for data of variance sigma_data^2, and c_noise is the SDE's mean log-SNR.

*Dropping out.* Under a ``GroupedSDE`` some of whose groups rest at t, the network is given the others alone where they
fill a leading box of the event (``GroupedSDE.kept``), and says nothing of the rest, for which the data count as 0.

*Hybrid score matching.* Under a ``MatrixSDE`` whose last parts start as noise, the network's first parts are known to
be 0 and set to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self, cast

import torch
from torch import Tensor

from scoresde.diffusions.blocks import Block, Blocks
from scoresde.diffusions.gaussian import Moments
from scoresde.diffusions.grouped import GroupedSDE
from scoresde.diffusions.linear import LinearPoint, LinearSDE, Maps
from scoresde.diffusions.linear_targets import hybrid_target, target_maps, view_maps
from scoresde.diffusions.matrix import MatrixSDE
from scoresde.diffusions.point import Point
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.kinds import ConfigError, DTypeError, show
from scoresde.errors.names import check_choice
from scoresde.errors.values import check_flag
from scoresde.models.parameterization import Parameterization, Predicts
from scoresde.models.prediction import Condition, Prepared, Readout, select
from scoresde.models.score_model import C_NOISE_LIMIT, ConditionOn, ScoreModel
from scoresde.transforms.base import Transform
from scoresde.transforms.orthogonal import Orthogonal

__all__ = ["LinearModel", "LinearPredicts", "LinearReadout"]

LinearPredicts = Literal["noise", "data", "v"]


@dataclass(frozen=True, eq=False)
class LinearReadout:
    """What a call of the network needs at points on a linear SDE, in float64 on the CPU.

    Args:
        point: where, times of shape (n,) or (n, B).
        pair: the maps (p, q) of the network's output.
        c_in: map of the network's input.
        c_noise: what the network is told of the time, of t's shape.
    """

    point: LinearPoint
    pair: Maps
    c_in: Tensor
    c_noise: Tensor

    def maps(self, kind: str) -> Maps:
        """Return (a, b) of the view ``kind``, (*t, G, K, K); DomainError where it has no finite value."""
        name = f"the {kind} prediction"
        return view_maps(self.pair, target_maps(kind, self.point), self.point, name)

    def read(self, kind: str, x: Tensor, output: Tensor) -> Tensor:
        """Return the view a x + b F of states x (B, *)."""
        blocks = self.point.owner.blocks
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        a, b = (
            blocks.apply(maps.to(wide), part.to(wide)) for maps, part in zip(self.maps(kind), (x, output), strict=True)
        )
        return (a + b).to(x.dtype)


class LinearModel(ScoreModel):
    """A network under a linear SDE, with its readout.

    Args:
        net: ``net(x, c_noise, **cond)`` -> a tensor of x's shape.
        sde: a ``GroupedSDE`` or a ``MatrixSDE``.
        predicts: "noise" or "data", or with groups "v"; a ``Parameterization`` is read by its name alone.
        condition_on: "log_snr", the SDE's mean log-SNR clamped to [-40, 40], "time", or a function of t.
        sigma_data: the data's standard deviation in the scale of the network's input; None for 1.
        moments: the data's moments, for priors.
        transform: from data to the model's coordinates, e.g. ``transforms.Cosine()`` for a blurring diffusion.
        drop: whether groups at rest are left out of what the network is given.
        basis: ``transforms.Cosine()`` or ``transforms.Haar(levels)``, which turns what the network sees and gives,
            images say, into the state's coordinates; None where it sees the state as it is.

    Raises:
        DTypeError: a net, an SDE or moments that are none. ConfigError: an unknown prediction or conditioning.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        sde: LinearSDE,
        *,
        predicts: LinearPredicts | Parameterization = "noise",
        condition_on: ConditionOn | Callable[[Tensor], Tensor] = "log_snr",
        sigma_data: float | None = None,
        moments: Moments | None = None,
        transform: Transform | None = None,
        drop: bool = True,
        basis: Transform | None = None,
    ) -> None:
        drop = check_flag(drop, "drop")
        if basis is not None and not isinstance(basis, Orthogonal):
            raise DTypeError(f"basis must be transforms.Cosine() or Haar(levels), got {show(basis)}", parameter="basis")
        kinds = ("noise", "data", "v") if isinstance(sde, GroupedSDE) else ("noise", "data")
        if not isinstance(predicts, Parameterization):
            check_choice("prediction under a linear SDE", predicts, kinds, parameter="predicts")
        if isinstance(sde, MatrixSDE) and sde.hidden and 2 * sde.hidden != sde.blocks.parts:
            raise ConfigError(
                f"the noise of {sde.hidden} of {sde.blocks.parts} parts that start as noise does not say the data; an "
                "SDE with such parts needs as many with data as without"
            )
        super().__init__(
            net,
            cast(GaussianSDE, sde),
            predicts=cast(Predicts, predicts),
            condition_on=condition_on,
            sigma_data=sigma_data,
            moments=moments,
            transform=transform,
        )
        self.drop, self.basis = drop, basis

    @staticmethod
    def check_own_sde(sde: object) -> GaussianSDE:
        """Return a linear SDE; DTypeError for any other."""
        if not isinstance(sde, LinearSDE):
            raise DTypeError(
                f"sde must be a GroupedSDE or a MatrixSDE, got {show(sde)}; a GaussianSDE takes a ScoreModel"
            )
        return cast(GaussianSDE, sde)

    @property
    def kind(self) -> str:
        """What the network predicts, a kind of ``diffusions.targets``."""
        return self.parameterization.name.removeprefix("literal ")

    @property
    def linear(self) -> LinearSDE:
        """The SDE."""
        return cast(LinearSDE, self.sde)

    def _check_start(self) -> None:
        """Find the view of the data at t_max; DomainError where there is none."""
        self.read_at(self.linear.at(self.linear.t_max)).maps("data")

    def with_sde(self, sde: GaussianSDE) -> Self:
        """Return a model that shares this network; ConfigError for another SDE than its own."""
        if sde is not self.sde:
            raise ConfigError(
                "a network under a linear SDE knows its noise alone: no other SDE has the same ratios of its maps; "
                "train a LinearModel under that one"
            )
        return self._share()

    def read_at(self, point: LinearPoint) -> LinearReadout:
        """Return what a call of the network at points of its SDE needs."""
        sde, mean, roots = point.owner, point.mean, point.root
        hidden = sde.hidden if isinstance(sde, MatrixSDE) else 0
        hybrid = hidden and self.kind == "noise"
        pair = hybrid_target(hidden, point) if hybrid else target_maps(self.kind, point)
        given = self.parameterization.sigma_data
        d = torch.full((sde.blocks.parts,), given or 0.0, dtype=torch.float64, device="cpu")
        d[sde.blocks.parts - hidden :] = 0.0
        variance = mean.square() @ d.square() + roots.square().sum(-1)
        variance = torch.ones_like(variance) if given is None else variance
        if self.condition_on == "log_snr":
            c_noise = sde.log_snr(point.t).clamp(-C_NOISE_LIMIT, C_NOISE_LIMIT)
        else:
            c_noise = point.t if isinstance(self.condition_on, str) else self.condition_on(point.t)
        return LinearReadout(point, pair, torch.diag_embed(variance.rsqrt()), c_noise)

    def readout(self, point: Point) -> Readout:
        """Raise ConfigError: no numbers read this network."""
        raise ConfigError(
            f"this needs a diffusion of one alpha and sigma, and {type(self).__name__} has maps in their place: it "
            "samples by tables, trains, and has a bound (linear_elbo)"
        )

    def prepare(self, point: Point | LinearPoint, x: Tensor, cond: Condition = None) -> LinearPrepared:  # type: ignore[override]
        """Make everything ready for one call at each of n points of the SDE."""
        if not isinstance(point, LinearPoint):
            self.readout(point)
        return LinearPrepared(self, cast(LinearPoint, point), x, cond)

    def call(
        self, x: Tensor, c_noise: Tensor, boxes: Sequence[tuple[int, ...]], fill: Tensor, cond: Condition
    ) -> Tensor:
        """Return F for scaled states x (B, *): the network's output in each sample's box, ``fill`` outside of it."""
        event = tuple(x.shape[1:])
        sizes = dict.fromkeys(boxes)
        if len(sizes) == 1:
            return self._call_box(x, c_noise, next(iter(sizes)), event, fill, cond)
        out = torch.empty_like(x)
        for box in sizes:
            rows = torch.tensor([i for i, own in enumerate(boxes) if own == box], dtype=torch.long, device=x.device)
            part = self._call_box(x[rows], c_noise[rows], box, event, fill[rows], select(cond, rows))
            out = out.index_copy(0, rows, part)
        return out

    def _call_box(
        self, x: Tensor, c_noise: Tensor, box: tuple[int, ...], event: tuple[int, ...], fill: Tensor, cond: Condition
    ) -> Tensor:
        sde = self.linear
        if box in ((), event):
            out = self._ask(x, c_noise, event, event, cond)
            hidden = sde.hidden if isinstance(sde, MatrixSDE) else 0
            if not hidden:
                return out
            # The clean values of the parts without data are 0: the first of what is predicted, or the last of the data.
            first, last = out.chunk(2, dim=1)
            zero = torch.zeros_like(first)
            return torch.cat([zero, last] if self.kind == "noise" else [first, zero], 1)
        inner = (slice(None), *(slice(0, n) for n in box))
        out = fill.clone()
        out[inner] = self._ask(x[inner].contiguous(), c_noise, event, box, cond)
        return out

    def _ask(self, x: Tensor, c_noise: Tensor, event: tuple[int, ...], box: tuple[int, ...], cond: Condition) -> Tensor:
        """Return the network's output for a box of the state, in the state's coordinates."""
        basis = None if self.basis is None else self.basis.within(event, box)
        seen = x if basis is None else basis.inverse(x)
        out = self.outputs(seen if self.dtype is None else seen.to(self.dtype), c_noise, cond)[0].to(x.dtype)
        return out if basis is None else basis.forward(out)

    def boxes(self, t: Tensor) -> list[tuple[int, ...]]:
        """Return the box of an event that the network is given at each of the times (n,); () for all of it."""
        sde = self.linear
        drops = isinstance(sde, GroupedSDE) and self.drop
        return [cast(GroupedSDE, sde).kept(time) if drops else () for time in t.tolist()]


class LinearPrepared(Prepared):
    """A LinearModel at n points."""

    def __init__(self, model: LinearModel, point: LinearPoint, x: Tensor, cond: Condition) -> None:
        blocks = point.owner.blocks
        blocks.check(x.shape[1:])
        reading = model.read_at(point)
        super().__init__(cast(Readout, reading), x, learned=False)
        self.model, self.cond, self.linear, self.blocks = model, cond, reading, blocks
        self.c_in = [Block(blocks, maps) for maps in reading.c_in]
        told = model.c_noise_for(reading.c_noise, x)
        self.c_noise = (told[:, None].expand(-1, len(x)) if told.ndim == 1 else told).unbind(0)
        self.boxes = [model.boxes(times.reshape(-1)) for times in point.t]
        self.fill = _find_fill(reading, blocks, self.boxes)
        self._blocks: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {}

    def weights(self, kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the maps a and b of the view ``kind`` at n points, as weights."""
        if kind not in self._blocks:
            found = tuple(tuple(Block(self.blocks, part) for part in maps) for maps in self.linear.maps(kind))
            self._blocks[kind] = cast(tuple[tuple[float, ...], tuple[float, ...]], found)
        return self._blocks[kind]

    def outputs(self, i: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return F at point i."""
        scaled = self.c_in[i].times(x)
        fill = scaled if self.fill is None else self.fill[i].times(x)
        boxes = self.boxes[i]
        return self.model.call(scaled, self.c_noise[i], boxes, fill, self.cond), None

    def reading(self, i: int) -> Readout:
        """Return the readout of point i."""
        own = self.linear
        pair = (own.pair[0][i], own.pair[1][i])
        return cast(Readout, LinearReadout(own.point[i], pair, own.c_in[i], own.c_noise[i]))


def _find_fill(
    reading: LinearReadout, blocks: Blocks, boxes: Sequence[Sequence[tuple[int, ...]]]
) -> list[Block] | None:
    """Return the maps of x that give the F under which the data are 0; None where no group is left out anywhere."""
    if all(box in ((), blocks.event) for row in boxes for box in row):
        return None
    a, b = reading.maps("data")
    return [Block(blocks, maps) for maps in -a / b]
