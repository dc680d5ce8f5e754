r"""What others fit tables with, beside which ``learn`` is measured: Adam, a soft objective, dynamic programming.

*Adam* (Kingma and Ba 2015) descends on the same robust objective, on all start states at once.

*The soft objective* (LD3, Tong et al. 2024, arXiv:2405.15506) asks only that some start state near the given one leads
to where the flow leads from it: the nearest of those within a distance ``radius`` a coordinate is found by the same
descent, and projected back.

*Dynamic programming* (GITS, Chen et al. 2024, arXiv:2405.11326) moves the knots alone and runs no table. Along paths of
a fine table, at levels u_0 > ... > u_K, a step from u_i to u_j by the slope at u_i, as DDIM makes it, misses the path
by

    c_ij = mean_b |x_j - x_i - (u_j - u_i) F_i|        (x over alpha + sigma, F = z - x_0);

of all ways from u_0 to u_K in n steps the one with the least sum of c_ij is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from tqdm.auto import tqdm

from scoresde.diffusions.sde import GaussianSDE
from scoresde.models.prediction import Predictor
from scoresde.ops import flat, recording
from scoresde.sampling.part import Step
from scoresde.sampling.sample import sample
from scoresde.sampling.tuning.learn import FLOOR, run
from scoresde.sampling.tuning.pairs import Pairs
from scoresde.solvers import grids
from scoresde.solvers.build import build_table
from scoresde.solvers.grids import Grid
from scoresde.solvers.published import flow_abm
from scoresde.solvers.tuned import Layout, Part

__all__ = ["choose_path", "descend", "find_levels", "place_at", "pull_back"]

RATE = 2e-2  # Adam's, falling along a cosine
FINE = 80  # levels of the paths that dynamic programming looks at


def descend(
    model: Predictor,
    layout: Layout,
    values: Tensor,
    train: Pairs,
    *,
    iterations: int,
    parts: Iterable[Part],
    size: int,
    seen: Callable[[Tensor], None],
    radius: float = 0.0,
    progress: bool = False,
) -> int:
    """Take Adam's steps from ``values`` (P,), and show ``seen`` the values after each; return the evaluations.

    Args:
        model: the model.
        layout: what the values mean.
        values: the start, (P,).
        train: what is fitted.
        iterations: as many.
        parts: which values may move.
        size: largest batch given to the network at once.
        seen: called with the values after every step.
        radius: how far, a coordinate, a start state may move for the soft objective.
        progress: show a bar of the iterations.
    """
    free, used = layout.places(parts), 0
    moved, nearby = (
        torch.zeros(len(free), dtype=values.dtype, requires_grad=True, device="cpu"),
        torch.zeros_like(train.start),
    )
    nearby.requires_grad_(radius > 0)
    groups = [{"params": [moved], "lr": RATE}]
    if radius > 0:
        groups.append({"params": [nearby], "lr": radius})
    optimizer = torch.optim.Adam(groups)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in tqdm(range(iterations), desc="tuning", unit="step", disable=not progress, leave=False):
        optimizer.zero_grad()
        each, done = [], 0
        for part in train.parts(size):
            here = slice(done, done + len(part))
            with recording():
                numbers = values.index_add(0, free, moved).expand(len(part), -1)
                out = run(model, layout, numbers, Pairs(part.start + nearby[here], part.end, part.cond))
                errors = flat(out.double() - part.end.double()).square().mean(1).sqrt()
                # The scale of the last step's errors; of the first step, of its own.
                scale = max(2 * float(errors.detach().median()), FLOOR)
                loss = torch.log1p((errors / scale).square()).sum() / len(train)
            wanted = [moved, nearby] if radius > 0 else [moved]
            for one, slope in zip(wanted, torch.autograd.grad(loss, wanted), strict=True):
                one.grad = slope if one.grad is None else one.grad + slope
            each.append(errors.detach())
            done += len(part)
        used += 3 * layout.count * len(train)
        if not bool(torch.isfinite(torch.cat(each)).all()):
            return used
        optimizer.step()
        falling.step()
        with torch.no_grad():
            nearby.copy_(pull_back(nearby, radius))
            seen(values.index_add(0, free, moved.detach()))
    return used


def pull_back(moves: Tensor, radius: float) -> Tensor:
    """Return moves (B, *) whose root mean square a coordinate is at most ``radius``, those beyond it shortened."""
    far = flat(moves).square().mean(1).sqrt().reshape(-1, *(1,) * (moves.ndim - 1))
    return moves * (radius / far.clamp_min(1e-30)).clamp_max(1.0)


def find_levels(model: Predictor, train: Pairs, steps: int) -> tuple[Tensor, int]:
    """Return the log_snr of the starts of n steps, the last of which goes to clean data, and the evaluations."""
    table = build_table(model.sde, flow_abm(grid=grids.log_snr(centre=3.0, width=4.5)), steps=FINE)
    levels: list[float] = []
    states: list[Tensor] = []
    slopes: list[Tensor] = []

    def see(step: Step) -> None:
        point = step.prediction.readout.point
        scale = float(point.alpha + point.sigma)
        levels.append(float(point.sigma) / scale)
        states.append(flat(step.prediction.x.double()) / scale)
        slopes.append(flat(step.prediction.view("flow").double()))

    scale = float(table.start.point().r)
    with torch.no_grad():
        out = sample(model, x_init=scale * train.start, solver=table, final="sample", cond=train.cond, on_step=see)
    u = torch.tensor([*levels, 0.0], dtype=torch.float64, device="cpu")
    states.append(flat(out.double()))
    costs = torch.full((FINE + 1, FINE + 1), math.inf, dtype=torch.float64, device="cpu")
    for i in range(FINE):
        for j in range(i + 1, FINE + 1):
            costs[i, j] = (states[j] - states[i] - (u[j] - u[i]) * slopes[i]).square().mean(1).sqrt().mean()
    begins = choose_path(costs, steps)[:-1]
    # Where alpha is 0 the level is 1, and log_snr minus infinity.
    found = [2 * math.log((1 - levels[k]) / levels[k]) if levels[k] < 1 else -math.inf for k in begins]
    return torch.tensor(found, dtype=torch.float64, device="cpu"), FINE * len(train)


def choose_path(costs: Tensor, steps: int) -> list[int]:
    """Return the way from the first place to the last in so many steps whose costs (i, j) add up to the least."""
    # least[j]: of all ways from 0 to j in as many steps; came[k][j]: where the last step of it began.
    least, came = costs[0], []
    for _ in range(steps - 1):
        least, began = (least[:, None] + costs).min(0)
        came.append(began)
    way = [len(costs) - 1]
    for began in reversed(came):
        way.append(int(began[way[-1]]))
    return [0, *reversed(way)]


def place_at(log_snr: Tensor) -> Grid:
    """Return the grid whose steps begin at these levels, the first at the SDE's own top."""
    return Grid("levels", _choose_levels, len(log_snr), tuple(log_snr.tolist()))


def _choose_levels(sde: GaussianSDE, fractions: Tensor, *log_snr: float) -> Tensor:
    inside = sde.time(torch.tensor(log_snr[1:], dtype=torch.float64, device="cpu"))
    times = torch.cat([inside.new_tensor([sde.t_max]), inside, inside.new_tensor([sde.t_min])])
    return times[: len(fractions)]
