r"""The action of a path: how likely an SDE makes it; and the path of least action between two points.

For dx = f(x, t) dt + g(t) dw take the states x_0, ..., x_N of a path at times t_0, ..., t_N, with h_i the steps in
time, d_i = x_(i+1) - x_i, and m_i, s_i the middle of a step in state and time. Steps by Euler and by the implicit
midpoint rule make of independent normal numbers a path whose density, given x_0, is

    p(x_1, ..., x_N | x_0) = exp(-S) prod_i (2 pi g_i^2 h_i)^(-D/2),

    Ito            S = sum_i |d_i - f(x_i, t_i) h_i|^2/(2 g_i^2 h_i),                            g_i = g(t_i)
    Stratonovich   S = sum_i |d_i - f(m_i, s_i) h_i|^2/(2 g_i^2 h_i) + (h_i/2) div f(m_i, s_i),  g_i = g(s_i)

since the Jacobian of a step is 1 for the first and det(1 - h/2 grad f) = exp(-h/2 div f) + O(h^2) for the second. Along
paths of the SDE d d^T is g^2 h in the mean, so that f(m) d exceeds f(x) d by g^2 h/2 div f: the two agree as h -> 0,
and are two ways to write one law (Onsager and Machlup 1953, "Fluctuations and irreversible processes"; Graham 1977,
"Path integral formulation of general diffusion processes"). The difference of the actions under two drifts is minus the
log of Girsanov's ratio.

A smooth path is none of the SDE's own: there d^2 is of order h^2, and the limits differ,

    Ito            S = int |x' - f|^2/(2 g^2) dt
    Stratonovich   S = int |x' - f|^2/(2 g^2) dt + 1/2 int div f dt.

The second is what compares thin tubes around smooth paths: P(|X - x| < r at all times) is exp(-S) times a number that
is the same for all of them, as r -> 0 (Durr and Bach 1978, "The Onsager-Machlup function as Lagrangian for the most
probable path of a diffusion process"). The first is its limit for weak noise, g -> 0 (Freidlin and Wentzell), whose
paths between the wells of a potential are called instantons.

*Least action.* Newton's method on the states between the ends. A state meets its neighbours alone, so that the Hessian
is block tridiagonal and 3 D products with it tell all of it. Where it is not positive definite, a multiple of that of
f = 0 is added; where the action would rise, the step is halved.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from scoresde.diffusions.fields import drift_of
from scoresde.diffusions.sde import SDE, ReverseSDE
from scoresde.errors.kinds import DomainError, DTypeError, ShapeError, SolverError, show
from scoresde.errors.names import check_choice
from scoresde.errors.tensors import check_device, check_floating, check_samples
from scoresde.ops import divergence, recording, working_dtype
from scoresde.solvers.grids import check_times

__all__ = ["most_probable_path", "onsager_machlup"]

Rule = Literal["ito", "stratonovich"]
RULES = ("ito", "stratonovich")
MOST_COORDINATES = 256  # of an event: a Hessian of 2 D rows is held
MOST_STEPS = 200
HALVINGS = 40
STILL = 1e-9  # of the path's own scale: a Newton step that ends the search


def onsager_machlup(sde: SDE, path: Tensor, times: Tensor, *, rule: Rule = "ito") -> Tensor:
    """Return the Onsager-Machlup action S of paths, (B,), in nats and float64; the module's docstring has both forms.

    The log density of a path's states after the first is -S - D/2 sum_i log(2 pi g_i^2 h_i). The drift is asked for all
    states of all paths at once, with t of shape (N B,). Gradients flow to the path and to what the SDE holds, as the
    caller's grad mode says.

    Args:
        sde: any SDE; a ``ReverseSDE`` runs down in time.
        path: states (N + 1, B, *), as ``bridge.simulate`` returns them.
        times: of the states, (N + 1,), increasing, for a ReverseSDE decreasing, in [t_min, t_max].
        rule: "ito", f at the start of a step, or "stratonovich", f at its middle, which takes a gradient for each
            coordinate of an event more.

    Raises:
        ConfigError: an unknown rule. DTypeError, ShapeError, DomainError: a path or times that are none, or do not
            fit each other; a diffusion that is 0 or not finite, as a probability flow's; a drift of another shape.
    """
    knots = _check_times(sde, times)
    check_choice("rule", rule, RULES)
    if check_floating(path, "path", empty=True).ndim < 2 or len(path) != len(knots):
        raise ShapeError(
            f"path must have shape ({len(knots)}, B, *), a state for each of the times, got {tuple(path.shape)}"
        )
    check_samples(path, "path", empty=True)
    return _action(sde, path.to(torch.promote_types(path.dtype, torch.float32)), knots, rule)


def most_probable_path(
    sde: SDE,
    start: Tensor,
    end: Tensor,
    times: Tensor,
    *,
    rule: Rule = "stratonovich",
    guess: Tensor | None = None,
) -> Tensor:
    """Return the path of least action from ``start`` to ``end``, (N + 1, B, *), in at least float32.

    Args:
        sde: any SDE whose drift is three times differentiable; a ``ReverseSDE`` runs down in time.
        start: states (B, *) at the first time.
        end: states (B, *) at the last time.
        times: of the states, (N + 1,), N >= 2, increasing, for a ReverseSDE decreasing, in [t_min, t_max].
        rule: whose action: "stratonovich" is that of thin tubes, right to order h^2; "ito" is that of weak noise, the
            same without div f, right to order h.
        guess: a path (N + 1, B, *) to begin from; by default the straight line. There may be several minima, one for
            each way around an obstacle, and the nearest is found.

    Raises:
        ConfigError: an unknown rule. DTypeError, ShapeError, DomainError: ends, times or a guess that do not fit; more
            than 256 coordinates; what ``onsager_machlup`` refuses. SolverError: no minimum found.
    """
    knots = _check_times(sde, times)
    check_choice("rule", rule, RULES)
    if len(knots) < 3:
        raise ShapeError(f"times must be at least three, with a state between the ends, got {len(knots)}")
    for name, x in (("start", start), ("end", end)):
        if check_samples(x, name).shape != start.shape:
            raise ShapeError(f"end must have the shape {tuple(start.shape)} of start, got {tuple(end.shape)}")
        check_device(x.device, name, start.device, "start")
    size = math.prod(start.shape[1:])
    if size > MOST_COORDINATES:
        raise ShapeError(f"an event must have at most {MOST_COORDINATES} coordinates here, got {size}")
    work = working_dtype(start.device)
    first, last = start.detach().to(work), end.detach().to(work)
    if guess is None:
        share = ((knots - knots[0]) / (knots[-1] - knots[0])).to(first).reshape(-1, *(1,) * first.ndim)
        path = torch.lerp(first, last, share)
    elif check_samples(guess, "guess").shape != (len(knots), *first.shape):
        raise ShapeError(f"guess must have shape {(len(knots), *first.shape)}, got {tuple(guess.shape)}")
    else:
        path = torch.cat([first[None], guess[1:-1].detach().to(first), last[None]])
    if path.numel():
        path = _descend(sde, path, knots, rule)
    return path.to(torch.promote_types(start.dtype, torch.float32))


def _check_times(sde: object, times: Tensor) -> Tensor:
    if not isinstance(sde, SDE):
        raise DTypeError(f"sde must be an SDE, e.g. VPSDE() or VPSDE().reverse(model), got {show(sde)}")
    knots = check_times(sde, times, rising=not isinstance(sde, ReverseSDE))
    if len(knots) < 2:
        raise ShapeError(f"times must be at least two, got {len(knots)}")
    return knots


def _action(sde: SDE, path: Tensor, knots: Tensor, rule: Rule) -> Tensor:
    """Return the action of paths (N + 1, B, *), (B,), summed in float64."""
    early, late, step = path[:-1], path[1:], knots.diff()
    x, at = (early, knots[:-1]) if rule == "ito" else ((early + late) / 2, knots[:-1] + step / 2)
    spread = 2 * _diffusion(sde, at).square() * step.abs()
    every, times = x.reshape(-1, *x.shape[2:]), at.repeat_interleave(x.shape[1])

    def drift(states: Tensor) -> Tensor:
        return drift_of(sde, states, times)

    work = working_dtype(path.device)
    step, spread = (c.to(path.device, work)[:, None] for c in (step, spread))
    field = drift(every)
    flat = (len(step), path.shape[1], math.prod(path.shape[2:]))
    missed = (late.to(work) - early.to(work)).reshape(flat) - field.to(work).reshape(flat) * step[..., None]
    total = (missed.square().sum(2) / spread).sum(0)
    if rule == "ito":
        return total
    # A divergence keeps a graph wherever it may; here only where the drift itself has one.
    with torch.set_grad_enabled(field.requires_grad):
        _, spreading = divergence(drift, every)
    return total + (spreading.to(work).reshape(flat[:2]) * step / 2).sum(0)


def _diffusion(sde: SDE, at: Tensor) -> Tensor:
    """Return g at times (N,)."""
    g = sde.diffusion(at).to("cpu", torch.float64)
    if g.shape not in ((), at.shape):
        raise ShapeError(f"an action needs a diffusion that is one number at each time, got shape {tuple(g.shape)}")
    g = g.expand(at.shape)
    good = torch.isfinite(g) & (g != 0)
    if not bool(good.all()):
        k = int((~good).nonzero()[0])
        raise DomainError(
            f"the diffusion is {float(g[k]):g} at t = {float(at[k]):g}, where a path has no action; keep the times "
            "away from there, and for a reverse SDE take eta > 0"
        )
    return g


def _descend(sde: SDE, path: Tensor, knots: Tensor, rule: Rule) -> Tensor:
    """Return the paths (N + 1, B, *) of least action between their ends, by Newton's method on the states between."""
    batch, size = path.shape[1], math.prod(path.shape[2:])
    scale = 1 + float(path.abs().max())
    free = _free_hessian(sde, knots, size)
    damping = np.zeros(batch)
    still = np.zeros(batch, dtype=bool)
    inner = path[1:-1]

    def measure(inner: Tensor) -> Tensor:
        return _action(sde, torch.cat([path[:1], inner, path[-1:]]), knots, rule)

    for _ in range(MOST_STEPS):
        with recording():
            point = inner.detach().requires_grad_(True)
            action = measure(point)
            (slope,) = torch.autograd.grad(action.sum(), point, create_graph=True)
            hessian = _bands(slope, point, size)
        gradient = slope.detach().transpose(0, 1).reshape(batch, -1).cpu().double().numpy()
        moves = np.stack([_solve(hessian[k], free, gradient[k], damping, k) for k in range(batch)])
        move = torch.from_numpy(moves).reshape(batch, *inner.shape[:1], *inner.shape[2:]).transpose(0, 1).to(inner)
        share, falls = _line_search(measure, inner, move, action.detach())
        still |= falls & (damping == 0) & (np.abs(moves).max(1) <= STILL * scale)
        inner = inner + share * move
        damping = np.where(damping < 1e-3, 0.0, damping / 4)
        if still.all():
            return torch.cat([path[:1], inner, path[-1:]])
    raise SolverError(
        f"no path of least action was found in {MOST_STEPS} steps for {int((~still).sum())} of {batch}; take more "
        "times, or pass a guess= that is nearer",
        partial=torch.cat([path[:1], inner, path[-1:]]),
    )


def _line_search(
    measure: Callable[[Tensor], Tensor], inner: Tensor, move: Tensor, before: Tensor
) -> tuple[Tensor, np.ndarray]:
    """Return the share of each path's step at which its action does not rise, and where that is the whole step."""
    share = torch.ones_like(before)
    whole = torch.ones_like(before, dtype=torch.bool)
    for _ in range(HALVINGS):
        column = share.to(move).reshape(1, -1, *(1,) * (move.ndim - 2))
        with torch.no_grad():
            # What rounding leaves of a sum is no rise.
            rises = ~(measure(inner + column * move) <= before + 1e-13 * (1 + before.abs()))
        if not bool(rises.any()):
            break
        share, whole = torch.where(rises, share / 2, share), whole & ~rises
    return column, whole.cpu().numpy()


def _bands(slope: Tensor, point: Tensor, size: int) -> np.ndarray:
    """Return the Hessian of each path by its lower diagonals, (B, 2 D, n D), from 3 D products with it.

    The states whose number has the same remainder by three have no neighbour in common.
    """
    count, batch = point.shape[:2]
    bands = np.zeros((batch, 2 * size, count, size))
    for k in range(min(3, count)):
        for d in range(size):
            probe = torch.zeros(count, batch, size, dtype=point.dtype, device=point.device)
            probe[k::3, :, d] = 1
            (product,) = torch.autograd.grad(slope, point, probe.reshape(point.shape), retain_graph=True)
            column = product.reshape(count, batch, size).transpose(0, 1).cpu().double().numpy()
            bands[:, : size - d, k::3, d] = column[:, k::3, d:].transpose(0, 2, 1)
            below = column[:, k + 1 :: 3]
            places = np.arange(k, count, 3)[: below.shape[1]]
            bands[:, size - d : 2 * size - d, places, d] = below.transpose(0, 2, 1)
    return bands.reshape(batch, 2 * size, count * size)


def _free_hessian(sde: SDE, knots: Tensor, size: int) -> np.ndarray:
    """Return the Hessian of the action of f = 0 by its lower diagonals, (2 D, n D)."""
    step = knots.diff()
    weight = (1 / (_diffusion(sde, knots[:-1] + step / 2).square() * step.abs())).detach().numpy()
    bands = np.zeros((2 * size, len(weight) - 1, size))
    bands[0] = (weight[:-1] + weight[1:])[:, None]
    bands[size, :-1] = -weight[1:-1, None]
    return bands.reshape(2 * size, -1)


def _solve(hessian: np.ndarray, free: np.ndarray, gradient: np.ndarray, damping: np.ndarray, k: int) -> np.ndarray:
    """Return Newton's step for path k; its damping grows until the Hessian is positive definite."""
    from scipy.linalg import LinAlgError, solveh_banded

    while True:
        try:
            step: np.ndarray = solveh_banded(hessian + damping[k] * free, -gradient, lower=True)
            return step
        except LinAlgError:
            damping[k] = max(4 * damping[k], 0.1)
        except ValueError as error:  # scipy's word for what is not finite
            raise SolverError(
                "the action of a path is not finite; pass a guess= that stays where the drift is"
            ) from error
