r"""A deterministic table as numbers that can be moved: knots, the levels of the calls, and the weights of the history.

Whatever form a table is written in, its states are combinations of the start state and of the data predictions,
x_i = A_i x_0 + sum_j B_ij D_j. For a point mass all D_j are equal, so that the state has the scale of a point,

    sigma_i = A_i sigma_0,      alpha_i = A_i alpha_0 + sum_j B_ij,

its *knot*: the path of x_i that is exact for a point mass. In units of r_i = sqrt(alpha_i^2 + sigma_i^2), so that only
the log-SNR l_i of a knot counts, a step reads

    x_{i+1} = (sigma_{i+1}/sigma_i) x_i + S_i sum_{j <= i} w_ij D_j,   S_i = alpha_{i+1} - alpha_i sigma_{i+1}/sigma_i,

with sum_j w_ij = 1, and S = 1 at the last step, which ends at sigma = 0. What is free is

* the knots, u_i = sigma/(alpha + sigma), from u_0 by gaps that are the softmax of n numbers, the last of them to 0;
* the level of call i, l_i plus a shift;
* w_ij for j < i; w_ii is the rest.

Whatever these numbers are, a point mass is met exactly, and so is the linear part of a Gaussian's flow as far as the
published table met it at zero shifts. The same table serves every Gaussian SDE: equal log-SNR is an equal call.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from scoresde.diffusions.point import Point
from scoresde.diffusions.sde import GaussianSDE
from scoresde.diffusions.targets import target, view
from scoresde.errors.kinds import ConfigError
from scoresde.solvers.rows import CLEAN, Knot, Row
from scoresde.solvers.tableau import Tableau

__all__ = ["PARTS", "Coefficients", "Layout", "Part"]

Part = Literal["knots", "levels", "weights"]
PARTS: tuple[Part, ...] = get_args(Part)

NARROW = 1e-9  # a gap between knots, in u, that counts as none


@dataclass(frozen=True, eq=False)
class Coefficients:
    """The numbers of n steps in units of r, each (n, B), or (n, n, B): those of every sample.

    Args:
        log_snr: levels of the calls.
        decay: weights of the state.
        weights: (i, j) -> weight of prediction j in step i, 0 for j > i.
    """

    log_snr: Tensor
    decay: Tensor
    weights: Tensor


@dataclass(frozen=True, eq=False)
class Layout:
    """How a vector of numbers (P,) stands for a table of n calls.

    Args:
        start: log_snr of the start state, -inf where alpha is 0.
        count: n.
        values: the numbers of the table that it was made from: n logits of gaps, n shifts, n (n - 1)/2 weights.
        end: the highest log_snr of a call.
    """

    start: float
    count: int
    values: Tensor
    end: float = math.inf

    @classmethod
    def of(cls, table: Tableau, sde: GaussianSDE) -> Layout:
        """Return the layout of a table under an SDE, whose own end no call passes.

        Raises:
            ConfigError: a stochastic table, one that does not end in clean data, or one with a call that is not at its
                state's knot or with steps that lead nowhere, as stages have.
        """
        name = repr(table.name)
        if table.stochastic or table.end.sigma != 0 or table.lift != (1.0, 0.0):
            raise ConfigError(f"{name} cannot be tuned: it must be deterministic and end in clean data")
        states, n = _unroll(table), table.nfe
        start = table.start
        alpha = states[:, 0] * start.alpha + states[:, 1:].sum(1)
        sigma = states[:, 0] * start.sigma
        calls = np.array([(row.at.alpha, row.at.sigma) for row in table.rows])
        off = np.abs(np.stack([alpha, sigma], 1)[:-1] - calls).max(1) / np.hypot(*calls.T)
        u = sigma / (alpha + sigma)
        gaps = -np.diff(u)
        if off.max() > 1e-6 or gaps.min() < NARROW or abs(alpha[-1] - 1) > 1e-6:
            raise ConfigError(f"{name} cannot be tuned: its calls are not at ever lower noise levels of its own path")
        steps = states[1:] - states[:-1] * (sigma[1:] / sigma[:-1])[:, None]
        shares = steps[:, 1:] / (alpha[1:] - alpha[:-1] * sigma[1:] / sigma[:-1])[:, None]
        below = np.tril_indices(n, -1)
        # The last gap ends at 0.
        logits = np.log(gaps) - np.log(gaps).mean()
        values = np.concatenate([logits, np.zeros(n), shares[below]])
        return cls(start.log_snr, n, torch.from_numpy(values), float(_ends(sde)[1]))

    def places(self, parts: Iterable[Part]) -> Tensor:
        """Return the places in ``values`` of the knots' gaps, the levels' shifts or the weights."""
        n = self.count
        spans = {"knots": (0, n), "levels": (n, 2 * n), "weights": (2 * n, len(self.values))}
        return torch.cat([torch.arange(*spans[part], device="cpu") for part in parts])

    def coefficients(self, values: Tensor) -> Coefficients:
        """Return the numbers of the steps for values (B, P), differentiably."""
        n = self.count
        logits, shifts, free = values.T.split_with_sizes([n, n, n * (n - 1) // 2])
        first = 1 / (1 + math.exp(0.5 * self.start)) if self.start < 1400 else 0.0
        gaps = first * torch.softmax(logits, 0)
        # Sums of the gaps that are left, so that the smallest levels keep their digits.
        u = gaps.flip(0).cumsum(0).flip(0)
        rest = torch.cat([torch.zeros_like(u[:1]), gaps[:-1].cumsum(0)]) + (1 - first)
        log_snr = 2 * (rest.log() - u.log())
        size = torch.hypot(rest, u)
        alpha, sigma = rest / size, u / size
        # The step to clean data forgets the state.
        after = torch.cat([sigma[1:], torch.zeros_like(sigma[:1])])
        reached = torch.cat([alpha[1:], torch.ones_like(alpha[:1])])
        decay = after / sigma
        gain = reached - alpha * decay
        older = torch.zeros(n, n, values.shape[0], dtype=values.dtype, device="cpu")
        i, j = torch.tril_indices(n, n, -1, device="cpu")
        older = older.index_put((i, j), free)
        newest = torch.diag_embed((1 - older.sum(1)).T).permute(1, 2, 0)
        return Coefficients((log_snr + shifts).clamp(self.start, self.end), decay, gain[:, None] * (older + newest))

    def table(self, sde: GaussianSDE, values: Tensor, name: str) -> Tableau:
        """Return the table of these values (P,) under an SDE, from its own start."""
        top, end = _ends(sde).tolist()
        numbers = replace(self, start=top, end=end).coefficients(values[None].to(torch.float64))
        log_snr = numbers.log_snr[:, 0]
        points = _points(sde, log_snr)
        knots = Knot.of(points)
        # A state is scaled to the level of its call, since that is what the call takes it for.
        scale = [*points.r.tolist(), 1.0]
        decay, weights = numbers.decay[:, 0].tolist(), numbers.weights[:, :, 0].tolist()
        rows = []
        for i, knot in enumerate(knots):
            by = scale[i + 1]
            rows.append(Row(knot, (by / scale[i] * decay[i], *(by * w for w in weights[i][i::-1]))))
        begin = sde.at(torch.tensor([sde.t_max], dtype=torch.float64, device="cpu"))
        lift = (scale[0] / float(begin.r), 0.0)
        std = float(sde.prior_std(begin.t[0]))
        return Tableau(name, "data", tuple(rows), Knot.of(begin)[0], CLEAN, std, (1.0, 0.0) if lift[0] == 1 else lift)


def _ends(sde: GaussianSDE) -> Tensor:
    """Return log_snr at t_max and at t_min, (2,)."""
    return sde.log_snr(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64, device="cpu"))


def _points(sde: GaussianSDE, log_snr: Tensor) -> Point:
    """Return the points of an SDE at levels (n,), none beyond its ends."""
    top, end = _ends(sde).tolist()
    inside = log_snr.clamp(top if math.isfinite(top) else -700.0, end)
    times = torch.where(log_snr <= top, sde.t_max, torch.where(log_snr >= end, sde.t_min, sde.time(inside)))
    return sde.at(times)


def _unroll(table: Tableau) -> np.ndarray:
    """Return the states that calls see, and the last one, as weights of [start state, D_0, ...], (n + 1, n + 1)."""
    n, points = table.nfe, table.points
    a, b = view(target("data", points), target(table.prediction, points), points, f"the table {table.name!r}")
    x = np.zeros(n + 1)
    x[0] = 1.0
    anchor, states = x, [x]
    past: list[np.ndarray] = []
    for i, row in enumerate(table.rows):
        prediction = float(a[i]) * x
        prediction[i + 1] += float(b[i])
        past = [prediction, *past]
        x, anchor = (
            w[0] * anchor + sum(c * p for c, p in zip(w[1:], past, strict=False))
            for w in (row.state, row.state if row.anchor is None else row.anchor)
        )
        states.append(x)
    return np.stack(states)
