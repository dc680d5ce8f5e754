r"""``calibrate``: the solver and the grid that a model wants, for every number of evaluations at once.

*The model's own grid.* In the clock u = sigma/(alpha + sigma) the flow of x/(alpha + sigma) has the slope F = z - x_0.
A multistep method of order q errs in a step h by a multiple of h^{q+1} |F^{(q)}(u)|, which the rest of the flow carries
to the end times its gain g(u) = |dx(0)| / |dx(u)|. Of all grids with n steps the sum of these is least where every step
adds as much, that is with a number of steps in du proportional to

    rho(u) = (g(u) |F^{(q)}(u)|)^{1/(q+1)}.

A pilot of 80 steps measures it: F^{(q)} by divided differences of the network's predictions, g by a second path from a
start state a thousandth away, both averaged over start states. For Gaussian data of variance c and q = 1 it is
d arctan(sigma/(alpha sqrt(c)))/du, a grid of equal angles, which is DDIM's best: there each step multiplies the state
by the cosine of its angle. Where a network has nothing more to say F does not bend, and the grid takes few steps.

*What runs on it.* That law holds for small steps. So a few solvers on this grid (q = 3), and a few fixed tables, are
run at nine numbers of evaluations from 3 to 30 and compared with the model's adaptive flow; the best by rms times
median is written down, and serves the numbers around it.
"""

from __future__ import annotations

import itertools
import math
from collections import deque

import torch
from torch import Tensor
from tqdm.auto import tqdm

from scoresde.errors.values import check_flag
from scoresde.models.checks import check_model
from scoresde.models.prediction import Condition, Predictor, in_mode, select
from scoresde.noise import normal, stream
from scoresde.ops import chunks, flat
from scoresde.sampling.calibration import Calibration, Rung
from scoresde.sampling.part import Step
from scoresde.sampling.sample import sample
from scoresde.sampling.tuning.choose import check_options, rank
from scoresde.sampling.tuning.pairs import Conditions, draw_starts, make_pairs
from scoresde.solvers import grids
from scoresde.solvers.build import build_table
from scoresde.solvers.candidates import list_few
from scoresde.solvers.published import flow_abm

__all__ = ["COST", "RUNGS", "calibrate", "measure_density", "place"]

RUNGS = (3, 4, 5, 6, 8, 10, 14, 20, 30)
PILOT, PATHS = 80, 16  # steps of the pilot, start states
ORDER, NEARBY = 3, 1e-3  # q, and how far the second path starts away, in units of the state
STAGES = ((8, 3),)  # start states after which candidates are dropped, and how many are kept
COST = 30_000  # evaluations of samples, about, at 32 start states


def calibrate(
    model: Predictor,
    *,
    samples: int = 32,
    event: tuple[int, ...] | None = None,
    cond: Conditions | None = None,
    tolerance: float = 1e-4,
    chunk_size: int = 256,
    seed: int = 0,
    keep: bool = True,
    progress: bool = False,
) -> Calibration:
    """Find the solver and the grid that suit a model at each number of evaluations, and keep them with it.

    Afterwards ``sample(model, 64, steps=8)`` uses them, and so does the checkpoint's model; ``fit`` calibrates at its
    end where training was long enough. See the module's docstring.

    Args:
        model: any model.
        samples: start states from which tables are run.
        event: the shape of one sample, where the model knows no moments.
        cond: number of samples -> their conditions.
        tolerance: of the flow that the tables are measured against.
        chunk_size: largest batch given to the network at once.
        seed: of the start states.
        keep: keep it as ``model.calibration``.
        progress: show a bar.

    Raises:
        DTypeError, ConfigError: no model, no shape. DomainError: options out of range. SolverError: the flow failed.
    """
    known = check_options(model, RUNGS[0], samples, tolerance, chunk_size, seed, cond)
    check_flag(keep, "keep")
    check_flag(progress, "progress")
    rungs: list[Rung] = []
    with in_mode(known, training=False):
        start, told = draw_starts(known, PATHS, seed, "pilot", event=event, cond=cond)
        u, density = measure_density(known, start, told, chunk_size)
        levels, shares = place(u, density)
        spent = 2 * PILOT * PATHS
        pairs, used = make_pairs(
            known, samples, seed, "calibrate", event=event, cond=cond, tolerance=tolerance, size=chunk_size
        )
        spent += used
        few = list_few(grids.curve(levels, shares))
        for steps in tqdm(RUNGS, desc="calibrating", unit="rung", disable=not progress, leave=False):
            rows, _, used = rank(known, pairs, steps, few, by="both", noise=False, size=chunk_size, stages=STAGES)
            spent += used
            if rows[0].errors is not None and math.isfinite(rows[0].errors.product):
                rungs.append(Rung.of(steps, rows[0].candidate, rows[0].errors.rms, rows[0].errors.median))
    found = Calibration(tuple(rungs), levels, shares, spent)
    if keep:
        check_model(model).calibration = found.to_json()
    return found


def measure_density(
    model: Predictor, start: Tensor, cond: Condition, size: int, order: int = ORDER
) -> tuple[Tensor, Tensor]:
    """Return levels u, falling, and the density of steps there, up to a factor, both (K,), by a pilot.

    Args:
        model: in its own coordinates.
        start: states at its SDE's own start, (B, *).
        cond: their conditions.
        size: largest batch given to the network at once.
        order: q.
    """
    found = [
        _fly(model, start[part], select(cond, part), order, k)
        for k, part in enumerate(chunks(len(start), max(1, size // 2)))
    ]
    errors = torch.cat([each for _, each in found], 1)
    return found[0][0], errors.mean(1) ** (1 / (order + 1))


def place(u: Tensor, density: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the levels, from above all of u to 0, and the share of steps above each; the ends' density goes on."""
    levels = torch.cat([u.new_ones(1), u, u.new_zeros(1)])
    # Nowhere none at all: a grid needs rising shares.
    values = density.clamp_min(1e-3 * float(density.mean()))
    values = torch.cat([values[:1], values, values[-1:]])
    parts = -0.5 * (values[1:] + values[:-1]) * levels.diff()
    shares = torch.cat([parts.new_zeros(1), parts.cumsum(0) / parts.sum()])
    return tuple(levels.tolist()), tuple(shares.tolist())


def _fly(model: Predictor, start: Tensor, cond: Condition, order: int, key: int) -> tuple[Tensor, Tensor]:
    """Return the middles of order + 1 levels each, (K,), and g |F^{(q)}| there of each sample, (K, B)."""
    table = build_table(model.sde, flow_abm(grid=grids.log_snr(centre=3.0, width=4.5)), steps=PILOT)
    nudge = normal(tuple(start.shape), stream(0, "nudge", key, device=start.device)).to(start)
    column = (-1, *(1,) * (start.ndim - 1))
    nudge = nudge * (NEARBY * (flat(start).norm(dim=1) / flat(nudge).norm(dim=1).clamp_min(1e-30)).reshape(column))
    both = torch.cat([start, start + nudge])
    told = None if cond is None else {name: torch.cat([value, value]) for name, value in cond.items()}
    levels: list[float] = []
    slopes: deque[Tensor] = deque(maxlen=order + 1)
    bends: list[Tensor] = []
    apart: list[Tensor] = []

    def see(step: Step) -> None:
        point, count = step.prediction.readout.point, len(start)
        scale = float(point.alpha + point.sigma)
        levels.append(float(point.sigma) / scale)
        slopes.append(flat(step.prediction.view("flow")[:count].double()))
        x = flat(step.prediction.x.double()) / scale
        apart.append((x[count:] - x[:count]).norm(dim=1))
        if len(slopes) > order:
            bends.append(_divide(list(slopes), levels[-order - 1 :]))

    out = flat(sample(model, x_init=both, solver=table, cond=told, on_step=see).double())
    gains = (out[len(start) :] - out[: len(start)]).norm(dim=1) / torch.stack(apart).clamp_min(1e-30)
    spans = torch.tensor(levels, dtype=torch.float64, device="cpu").unfold(0, order + 1, 1)
    return spans.mean(1), torch.stack(bends).cpu() * gains.unfold(0, order + 1, 1).mean(2).cpu()


def _divide(values: list[Tensor], at: list[float]) -> Tensor:
    """Return the root mean square over coordinates, (B,), of the divided difference of all values (B, D)."""
    span = 1
    while len(values) > 1:
        values = [(b - a) / (at[k + span] - at[k]) for k, (a, b) in enumerate(itertools.pairwise(values))]
        span += 1
    return values[0].square().mean(1).sqrt()
