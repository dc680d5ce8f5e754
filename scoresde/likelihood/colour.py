r"""Groups of coordinates learned from a model, for the probes of its divergence.

The variance of a probed trace is 2 x the sum of W_ij = E[sym(M)_ij^2] over the pairs inside a group (``probes``), M the
integral of the flow's Jacobian along a trajectory. M is computed in full for a few data, at the middles of even
intervals of the rectified clock u = sigma/(alpha + sigma), in which dy/du = F(y, u):

    M = sum_k (u_{k+1} - u_k) dF/dy(y_k, u_k).

The groups are found greedily, the coordinate with the most weight first, each to the group in which it adds least, and
then improved by moving single coordinates as long as one move lowers the sum. (The problem is that of a minimum
k-partition, which is NP-hard.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from tqdm.auto import tqdm

from scoresde.diffusions.point import Point
from scoresde.errors.kinds import ConfigError
from scoresde.errors.tensors import check_outcome, check_samples
from scoresde.errors.values import check_flag, check_integer
from scoresde.likelihood.probes import check_groups
from scoresde.models.checks import check_data_event, check_model
from scoresde.models.prediction import Condition, Predictor, Prepared, check_condition, in_mode
from scoresde.noise import stream
from scoresde.ops import flat, recording, working_dtype
from scoresde.sampling.flow import solve
from scoresde.solvers.adaptive import ProbabilityFlow
from scoresde.transforms.compose import event_after

__all__ = ["colour", "measure_coupling", "partition"]

MOST = 2048  # coordinates


def colour(
    model: Predictor, x: Tensor, k: int, *, intervals: int = 24, cond: Condition = None, progress: bool = False
) -> Tensor:
    """Return k groups of coordinates for ``log_likelihood(groups=)``, learned from trajectories of data.

    Args:
        model: the model.
        x: a few data (B, *), in the data's units; not those that are judged.
        k: number of groups.
        intervals: of the clock, at whose middles the Jacobians are taken, D gradients each.
        cond: conditions, each (B, *).
        progress: show a bar.

    Returns:
        The group of each coordinate, from 0, of the event's shape. A ``ScoreModel`` keeps it: ``model.groups[k] =``.

    Raises:
        ConfigError: no data, more than 2048 coordinates. ShapeError, DTypeError, DomainError: bad data or k.
    """
    known, data = check_model(model), check_samples(x, "x").detach()
    check_data_event(known, data.shape, "x")
    known.check_device(data.device, "x")
    event = event_after(known.transform, data.shape[1:])
    size = math.prod(event)
    k = check_integer(k, "k", 1, max(1, size))
    intervals = check_integer(intervals, "intervals", 1)
    check_flag(progress, "progress")
    cond = check_condition(cond, len(data), data.device)
    if len(data) == 0 or size > MOST:
        raise ConfigError(
            f"colours are learned from at least one sample of at most {MOST} coordinates, got {len(data)} of {size}; "
            "without groups= a lattice is taken"
        )
    weights = measure_coupling(known, data, intervals=intervals, cond=cond, progress=progress)
    return check_groups(partition(weights, k), (size,)).reshape(event)


def measure_coupling(
    model: Predictor, x: Tensor, *, intervals: int = 24, cond: Condition = None, progress: bool = False
) -> Tensor:
    """Return W, the mean over data x (B, *) of the squares of sym(M), (D, D), in float64 on the CPU.

    The variance of an estimate of log p with groups is 2 x the sum of W_ij over the pairs i != j inside a group.
    """
    with in_mode(model, training=False):
        return _measure(model, x, intervals, cond, progress)


def _measure(model: Predictor, x: Tensor, intervals: int, cond: Condition, progress: bool) -> Tensor:
    y = x if model.transform is None else model.transform.forward(x, stream(0, "colour", device=x.device))
    y = y.to(working_dtype(y.device))
    low, high = (model.sde.at(t) for t in (model.sde.t_min, model.sde.t_max))
    ends = [float(p.sigma / (p.alpha + p.sigma)) for p in (low, high)]
    clock = torch.linspace(ends[0], ends[1], 2 * intervals + 1, dtype=torch.float64, device="cpu")[1::2]
    step = (ends[1] - ends[0]) / intervals
    state, at = float(low.alpha) * y, low
    size = math.prod(y.shape[1:])
    total = torch.zeros(len(x), size, size, dtype=torch.float64, device="cpu")
    solver = ProbabilityFlow(rtol=1e-4, atol=1e-4)
    for u in tqdm(clock, desc="colours", disable=not progress, leave=False):
        point = Point(u, 1 - u, u, -2 * torch.logit(u))
        state, at = solve(solver, model, state, at, point, cond).x, point
        prepared = model.prepare(point[None], state, cond)
        _, (on_output,) = prepared.weights("flow")
        jacobian = check_outcome(_jacobian(prepared, state), "the network's Jacobian", u.expand(len(state)))
        total += step * on_output * jacobian.to("cpu", torch.float64)
    return (0.5 * (total + total.transpose(1, 2))).square().mean(0)


def _jacobian(prepared: Prepared, x: Tensor) -> Tensor:
    """Return the Jacobians (B, D, D) of the network's output at states x (B, *) of the prepared point."""
    with recording():
        point = x.detach().requires_grad_(True)
        output = flat(prepared.raw(0, point))
        rows = [
            torch.autograd.grad(output[:, i].sum(), point, retain_graph=True, materialize_grads=True)[0]
            for i in range(output.shape[1])
        ]
    return torch.stack([flat(row) for row in rows], 1)


def partition(weights: Tensor, k: int) -> Tensor:
    """Return the group of each of D coordinates, (D,), for weights (D, D): little weight inside the groups."""
    size = len(weights)
    weights = weights.clone().fill_diagonal_(0.0)
    groups = torch.full((size,), -1, dtype=torch.int64, device="cpu")
    inside = torch.zeros(size, k, dtype=weights.dtype, device="cpu")  # of each coordinate with each group
    for i in weights.sum(1).argsort(descending=True, stable=True).tolist():
        groups[i] = int(inside[i].argmin())
        inside[:, groups[i]] += weights[:, i]
    rows = torch.arange(size, device="cpu")
    for _ in range(20 * size):
        gain = inside[rows, groups] - inside.min(1).values
        i = int(gain.argmax())
        if gain[i] <= 1e-12 * float(weights.sum()):
            break
        inside[:, groups[i]] -= weights[:, i]
        groups[i] = int(inside[i].argmin())
        inside[:, groups[i]] += weights[:, i]
    return groups
