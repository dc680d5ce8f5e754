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
network does not see it, and should predict data (``predicts="data"``). The messages take memory N^2 ``width``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from scoresde.errors import ShapeError, check_flag, check_integer
from scoresde.nn.conditions import ConditionalNetwork, Conditioning, Counts
from scoresde.nn.embeddings import initialise
from scoresde.noise import check_seed

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

    def forward(self, places: Tensor, h: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
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
            h = h + self.second(functional.silu(self.keep(n) + self.take(message.mean(2))))
        return places + step.mean(2), h


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
        seed: of the first values of the weights; the global generator is not used.

    Raises:
        DTypeError, DomainError: a size that is not a positive integer (``features`` may be 0).
    """

    ARGS = ("coordinates", "features", "width", "depth", "classes", "context_features", "centred", "seed")

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
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.coordinates = check_integer(coordinates, "coordinates", 1)
        self.features = check_integer(features, "features", 0)
        self.width = check_integer(width, "width", 1)
        self.depth = check_integer(depth, "depth", 1)
        self.centred = check_flag(centred, "centred")
        self.read_conditions(classes, context_features, None)
        self.seed = check_seed(seed)
        with torch.device("meta"):
            self.conditioning = Conditioning(self.width, self.kinds)
            told = self.features > 0
            self.modulation = nn.Linear(self.width, 2 * self.width * (self.depth + told))
            self.input = nn.Linear(max(1, self.features), self.width)
            layers = [_Layer(self.width, last=not told and i == self.depth - 1) for i in range(self.depth)]
            self.layers = nn.ModuleList(layers)
            self.output = nn.Linear(self.width, self.features) if self.features else nn.Identity()
            self.skip = nn.Linear(self.width, 1 + told + (not self.centred))  # c_1, c_3, c_2
        ends: list[nn.Module] = [layer.move for layer in layers]
        ends += [layer.second for layer in layers if not layer.last]
        initialise(self, self.seed, zero=(*ends, self.output, self.skip))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, **cond: Tensor | None) -> Tensor:
        """Return the network's output, of x's shape (B, N, coordinates + features), N at least 1.

        The rest and errors are as in ``MLP.forward``.
        """
        n, length = self.coordinates, self.coordinates + self.features
        if x.ndim != 3 or x.shape[2] != length or not x.shape[1]:
            raise ShapeError(
                f"x must have shape (B, N, {length}), {n} coordinates and {self.features} features of each of one "
                f"or more points, got {tuple(x.shape)}; build EGNN(coordinates, features=...) for it, or transpose x"
            )
        told = cond if label is None else {"label": label, **cond}
        self.check_call(x, c_noise, told)
        vector: Tensor = self.conditioning(c_noise, told)
        terms = self.modulation(vector)[:, None].chunk(2 * (self.depth + (self.features > 0)), dim=2)
        linear = self.skip(vector)[:, None].unbind(2)  # each (B, 1)
        places, features = torch.split(x.to(vector.dtype), [n, self.features], 2)
        middle = places.mean(1, keepdim=True)
        start = places - middle
        h = self.input(features if self.features else torch.ones_like(places[..., :1]))
        moved = start
        for i, layer in enumerate(self.layers):
            moved, h = layer(moved, h, terms[2 * i], terms[2 * i + 1])
        out = moved - start
        out = out - out.mean(1, keepdim=True) if self.centred else out + linear[-1][..., None] * middle
        parts = [torch.addcmul(out, linear[0][..., None], start)]
        if self.features:
            parts.append(torch.addcmul(self.output(_norm(h, *terms[-2:])), linear[1][..., None], features))
        return torch.cat(parts, 2).to(x.dtype)
