r"""A network of point clouds that turns with them: distances and relative vectors alone meet the weights.

A cloud is N points with a place x_i in R^n and features f_i. Under a rotation or reflection Q, a translation t and a
permutation p the places of the output turn as vectors, its features do not change, and nothing depends on t but the
part linear in the mean place:

    F(x Q^T + t) = F(x) Q^T + c_2(e) t,    F_{p(i)}(x_p) = F_i(x).

With h_i = A f_i + a, the conditioning vector e(c_noise, conditions), r_ij = x_i - x_j and n(h, e) the adaptive norm of
``nn.mlp``, a layer is

    m_ij = silu(M silu(U n(h_i) + V n(h_j) + W d(r_ij^2))),    d_k(s) = log(1 + 16^k s), k = 0, 1, 2,
    x_i <- x_i + mean_j r_ij/sqrt(1 + r_ij^2) (w . m_ij),      h_i <- h_i + B silu(K n(h_i) + L mean_j m_ij),

after Satorras et al. 2021 (arXiv:2102.09844); the root, which is smooth where two points coincide, bounds a step (as
the norm in Hoogeboom et al. 2022, arXiv:2203.17003). The output has, for places, with the mean place x',

    c_1(e) (x_i - x') + c_2(e) x' + (x_i after the layers - x_i before),

and c_3(e) f_i + C n(h_i) + d for features. B, w, C, d and all c start at 0.

``centred=True`` leaves out c_2 and the mean of the rest: the output depends on no translation and its places have mean
0, for clouds whose mean place is 0 or says nothing. Noise of a ``ScoreModel`` has a mean place that is not 0; a centred
network does not see it, and should predict data (``predicts="data"``). ``relative=True`` is the exact way: x and the
output are in the coordinates of ``transforms.RelativePlaces``, in which no mean place exists, neither of noise.

``masked=True`` is for clouds of different sizes in one batch: with the condition "mask" (B, N), 0 where a row is no
point, means go over the points that there are, what the other rows hold is not seen, and their output is 0, which is
right where data are predicted and the rows are 0 in the data, and the mean place of the others is 0, too.

``learned_variance=True`` adds, as second half along dimension 1, numbers that do not turn: C' n(h_i) + d' for each
point, one for its n coordinates and one for each feature; ``relative`` takes the mean over points for all places, so
that no direction and no point is told from another. The messages take memory N^2 ``width``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from scoresde.errors.kinds import ConfigError, DTypeError, ShapeError
from scoresde.errors.values import check_flag, check_integer
from scoresde.nn.conditions import ConditionalNetwork, Conditioning, Counts
from scoresde.nn.embeddings import initialise
from scoresde.noise import check_seed
from scoresde.ops import drop_mean, restore_points

__all__ = ["EGNN"]

SCALES = (1.0, 16.0, 256.0)


class _Layer(nn.Module):
    """One layer: (places (B, N, n), features (B, N, width)) -> the same."""

    def __init__(self, width: int, *, last: bool) -> None:
        super().__init__()
        self.last = last  # whether nobody asks for the features afterwards
        self.own = nn.Linear(width, width)
        self.other = nn.Linear(width, width, bias=False)
        self.distance = nn.Linear(len(SCALES), width, bias=False)
        self.message = nn.Linear(width, width)
        self.move = nn.Linear(width, 1, bias=False)
        if not last:
            self.keep = nn.Linear(width, width)
            self.take = nn.Linear(width, width, bias=False)
            self.second = nn.Linear(width, width)

    def forward(
        self, places: Tensor, h: Tensor, scale: Tensor, shift: Tensor, share: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        n = _norm(h, scale, shift)
        between = places[:, :, None] - places[:, None]  # (B, N, N, n)
        # In at least float32: 256 times the square of a distance of 16 is no number of float16.
        wide = torch.promote_types(torch.float32, places.dtype)
        square = between.to(wide).square().sum(3, keepdim=True)
        distances = torch.cat([torch.log1p(s * square) for s in SCALES], 3).to(n.dtype)
        seen = self.own(n)[:, :, None] + self.other(n)[:, None] + self.distance(distances)
        message = functional.silu(self.message(functional.silu(seen)))  # (B, N, N, width)
        step = between * (1 + square).rsqrt().to(places.dtype) * self.move(message)
        if not self.last:
            h = h + self.second(functional.silu(self.keep(n) + self.take(_mean(message, share))))
        return places + _mean(step, share), h


def _mean(values: Tensor, share: Tensor | None) -> Tensor:
    """Return the mean of (B, ..., N, k) over the points; ``share`` (B, N, 1) is what each counts for, None for 1/N."""
    if share is None:
        return values.mean(-2)
    return (values * share.reshape(len(share), *(1,) * (values.ndim - 3), -1, 1)).sum(-2)


def _flat(cloud: Tensor, n: int) -> Tensor:
    """Return clouds in the layout of ``drop_mean``, of numbers that are the same for all places."""
    return torch.cat([cloud[:, 1:, :n].flatten(1), cloud[..., n:].flatten(1)], 1)


def _norm(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift, functional.layer_norm(h, h.shape[-1:]), 1 + scale)


class EGNN(ConditionalNetwork):
    """An equivariant network of point clouds: net(x, c_noise, label=None, **conditions) -> a tensor of x's shape.

    Args:
        coordinates: n of x, which has shape (B, N, n + features): places first; N may differ from call to call.
        features: values of a point that do not turn, such as a charge or a type's code.
        width: length of the hidden vectors.
        depth: number of layers.
        classes: number of class labels, or name -> number; None for a network without.
        context_features: length of a vector of conditions, or name -> length; they are to be invariant themselves.
        centred: leave translations out of the output altogether.
        relative: x and the output are (B, n (N - 1) + features N), as ``RelativePlaces`` makes them of clouds.
        masked: take the condition "mask", floats (B, N), 0 where a row of x is no point; without one all are points.
        learned_variance: give twice the channels, for ``ScoreModel(variance="learned")``.
        seed: of the first values of the weights; the global generator is not used.

    Raises:
        DTypeError, DomainError: a size that is not a positive integer (``features`` may be 0). ConfigError: a
            condition of another kind that is named "mask", beside ``masked``.
    """

    ARGS = (
        *("coordinates", "features", "width", "depth", "classes", "context_features"),
        *("centred", "relative", "masked", "learned_variance", "seed"),
    )

    def __init__(
        self,
        coordinates: int = 3,
        *,
        features: int = 0,
        width: int = 64,
        depth: int = 4,
        classes: Counts = None,
        context_features: Counts = None,
        centred: bool = False,
        relative: bool = False,
        masked: bool = False,
        learned_variance: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.coordinates = check_integer(coordinates, "coordinates", 1)
        self.features = check_integer(features, "features", 0)
        self.width = check_integer(width, "width", 1)
        self.depth = check_integer(depth, "depth", 1)
        self.centred = check_flag(centred, "centred")
        self.relative, self.masked = check_flag(relative, "relative"), check_flag(masked, "masked")
        self.learned_variance = check_flag(learned_variance, "learned_variance")
        self.read_conditions(classes, context_features, None)
        if self.masked:
            if "mask" in self.kinds:
                raise ConfigError('masked=True takes a condition "mask"; give the other one another name')
            self.kinds["mask"] = "masked", 1
        self.seed = check_seed(seed)
        with torch.device("meta"):
            self.conditioning = Conditioning(self.width, self.kinds)
            told = self.features > 0
            self.reads = told or self.learned_variance  # whether somebody asks for the last h
            self.modulation = nn.Linear(self.width, 2 * self.width * (self.depth + self.reads))
            self.input = nn.Linear(max(1, self.features), self.width)
            layers = [_Layer(self.width, last=not self.reads and i == self.depth - 1) for i in range(self.depth)]
            self.layers = nn.ModuleList(layers)
            self.output = nn.Linear(self.width, self.features) if self.features else nn.Identity()
            if self.learned_variance:
                self.spread = nn.Linear(self.width, 1 + self.features)
            self.moves = not (self.centred or self.relative)  # whether the mean place is seen
            self.skip = nn.Linear(self.width, 1 + told + self.moves)  # c_1, c_3, c_2
        ends: list[nn.Module] = [layer.move for layer in layers]
        ends += [layer.second for layer in layers if not layer.last]
        ends += [self.spread] if self.learned_variance else []
        initialise(self, self.seed, zero=(*ends, self.output, self.skip))

    def check_conditions(self, x_shape: torch.Size, cond: Mapping[str, Tensor | None]) -> None:
        """Raise as a ``ConditionalNetwork`` does, and where the mask is not one of N floating numbers a sample."""
        mask = cond.get("mask") if self.masked else None
        super().check_conditions(x_shape, cond if mask is None else {k: v for k, v in cond.items() if k != "mask"})
        if mask is None:
            return
        each = self.coordinates + self.features
        if len(x_shape) != (2 if self.relative else 3):
            raise ShapeError(f"a mask is for clouds; x has shape {tuple(x_shape)}, see EGNN.forward for what it takes")
        wanted = (x_shape[0], (x_shape[1] + self.coordinates) // each if self.relative else x_shape[1])
        if not mask.is_floating_point():
            raise DTypeError(f"mask must be a floating tensor, got {mask.dtype}; convert it with mask.float()")
        if mask.shape != wanted:
            raise ShapeError(f"mask must have shape {wanted} for x of shape {tuple(x_shape)}, got {tuple(mask.shape)}")

    def null_conditions(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the null of each condition; a mask stays, since it says what the sample is."""
        null = super().null_conditions(cond)
        return {**null, "mask": cond["mask"]} if self.masked and "mask" in cond else null

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, **cond: Tensor | None) -> Tensor:
        """Return the network's output, of x's shape (B, N, coordinates + features), N at least 1; see the options.

        The rest and errors are as in ``MLP.forward``.
        """
        n, told = self.coordinates, cond if label is None else {"label": label, **cond}
        cloud = restore_points(x, n, self.features) if self.relative else x
        self._check_cloud(cloud)
        self.check_call(x, c_noise, told)
        vector: Tensor = self.conditioning(c_noise, told)
        terms = self.modulation(vector)[:, None].chunk(2 * (self.depth + self.reads), dim=2)
        linear = self.skip(vector)[:, None].unbind(2)  # each (B, 1)
        cloud, share = cloud.to(vector.dtype), None
        mask = told.get("mask")
        if mask is not None:
            there = (mask != 0)[..., None]  # (B, N, 1); a null of NaN leaves nothing out
            cloud = torch.where(there, cloud, 0.0)
            share = there.to(cloud) / there.sum(1, keepdim=True).clamp_min(1)
        places, features = torch.split(cloud, [n, self.features], 2)
        middle = _mean(places, share)[:, None]
        start = places - middle
        h = self.input(features if self.features else torch.ones_like(places[..., :1]))
        moved = start
        for i, layer in enumerate(self.layers):
            moved, h = layer(moved, h, terms[2 * i], terms[2 * i + 1], share)
        out = moved - start
        out = out + linear[-1][..., None] * middle if self.moves else out - _mean(out, share)[:, None]
        parts = [torch.addcmul(out, linear[0][..., None], start)]
        seen = _norm(h, *terms[-2:]) if self.reads else h
        if self.features:
            parts.append(torch.addcmul(self.output(seen), linear[1][..., None], features))
        answer = [torch.cat(parts, 2)]
        if self.learned_variance:
            one, others = self.spread(seen).split([1, self.features], 2)
            if self.relative:
                one = _mean(one, share)[:, None].expand_as(one)
            answer.append(torch.cat([one.expand(-1, -1, n), others], 2))
        if mask is not None:
            answer = [torch.where(there, part, 0.0) for part in answer]
        if self.relative:
            answer = [drop_mean(answer[0], n), *(_flat(part, n) for part in answer[1:])]
        return torch.cat(answer, 1).to(x.dtype)

    def _check_cloud(self, cloud: Tensor) -> None:
        n, length = self.coordinates, self.coordinates + self.features
        if cloud.ndim != 3 or cloud.shape[2] != length or not cloud.shape[1]:
            raise ShapeError(
                f"x must have shape (B, N, {length}), {n} coordinates and {self.features} features of each of one "
                f"or more points, got {tuple(cloud.shape)}; build EGNN(coordinates, features=...) for it, or transpose"
            )
