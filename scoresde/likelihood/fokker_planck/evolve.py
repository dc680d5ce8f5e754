"""The density of an SDE from one time to another: what is asked, how time is cut into steps, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from scoresde.diffusions.sde import SDE, ReverseSDE
from scoresde.errors.kinds import ConfigError, DomainError, DTypeError, ShapeError, SolverError, show
from scoresde.errors.tensors import check_samples
from scoresde.errors.values import check_integer, check_number
from scoresde.likelihood.fokker_planck.densities import Densities
from scoresde.likelihood.fokker_planck.scheme import Array, Scheme, points

__all__ = ["evolve_density"]

Box = Sequence[tuple[float, float, int]]

BORDER = 1e-4  # density at the border over the highest one, above which the box is too small
CELLS = 6.0  # effective number of cells, below which the grid is too coarse: a Gaussian of std 1.7 h
MOST_STEPS, MOST_CELLS = 100_000, 10_000_000


def evolve_density(
    sde: SDE,
    start: Callable[[Tensor], Tensor] | Tensor,
    box: Box,
    times: Tensor,
    *,
    steps: int | None = None,
    tolerance: float = 1e-3,
    walls: bool = False,
) -> Densities:
    """Solve the Fokker-Planck equation of ``sde`` from a density at the first of the times.

    Args:
        sde: any SDE, whose states are (B, 1) or (B, 2); ``sde.reverse(model)`` or ``sde.reverse(model, eta=0.0)`` for
            the reverse SDE or the probability flow.
        start: the density at times[0]: a function of points (N, D) -> (N,), or its values at the cells' centres.
        box: (low, high, number of cells) for each axis, at least 8 and in all at most 10 000 000 cells.
        times: at least two times at which densities are kept: increasing for a forward SDE, decreasing for a reverse
            one, either for a probability flow.
        steps: equal time steps between two of the times; None chooses them by ``tolerance``.
        tolerance: largest sum |p_2 - p_1| over the cells of a step, in units of probability. Extrapolation makes a
            step's own error smaller; what all steps leave together was 0.04 to 1.3 times the tolerance in the runs
            measured (VP forwards, backwards and its flow, a double well; tolerances of 1e-2 to 1e-4).
        walls: the box's border reflects the states; otherwise a density that reaches it is refused.

    Raises:
        DTypeError, ShapeError, DomainError: an SDE, a start, a box or times that do not fit; a start that is no density
            on the grid; a box that is too small or cells that are too wide, at any of the times; a drift or a diffusion
            that is not finite. ConfigError: times that run in the wrong direction. SolverError: too many steps.

    Source: Scharfetter and Gummel 1969, "Large-signal analysis of a silicon Read diode oscillator"; Chang and Cooper
    1970, "A practical difference scheme for Fokker-Planck equations"; Zalesak 1979, "Fully multidimensional
    flux-corrected transport algorithms for fluids".
    """
    if not isinstance(sde, SDE):
        raise DTypeError(f"sde must be an SDE, e.g. VPSDE() or VPSDE().reverse(model), got {show(sde)}")
    centres, edges = _grid(box)
    knots = _check_times(sde, times)
    tolerance = check_number(tolerance, "tolerance", 0.0, open_low=True)
    if steps is not None:
        steps = check_integer(steps, "steps", 1)
    scheme = Scheme(sde, centres, edges, 1.0 if knots[1] > knots[0] else -1.0)
    p = _start(start, scheme)
    kept, taken, tau = [p], 0, abs(knots[-1] - knots[0]) / 100
    _check_fit(p, scheme, knots[0], walls)
    with torch.no_grad():
        for t, end in pairwise(knots):
            p, count, tau = _cross(scheme, p, t, end, tau, steps, tolerance)
            _check_fit(p, scheme, end, walls)
            kept.append(p)
            taken += count
    values = torch.from_numpy(np.stack(kept))
    return Densities(
        tuple(map(torch.from_numpy, centres)), torch.tensor(knots, dtype=torch.float64, device="cpu"), values, taken
    )


def _cross(
    scheme: Scheme, p: Array, t: float, end: float, tau: float, steps: int | None, tolerance: float
) -> tuple[Array, int, float]:
    """Carry the densities from t to end; return them, the number of steps and the last step that was tried."""
    if steps is not None:
        tau = abs(end - t) / steps
        for k in range(steps):
            p, _ = scheme.step(p, t + scheme.sign * k * tau, tau)
        return p, steps, tau
    count = 0
    while t != end:
        if count == MOST_STEPS:
            raise SolverError(f"{MOST_STEPS} time steps reached only t = {t:g}; raise tolerance", partial=None)
        remaining = abs(end - t)
        last = remaining <= 1.01 * tau
        size = remaining if last else tau
        after, error = scheme.step(p, t, size)
        # The estimate is of order two.
        factor = min(3.0, max(0.2, 0.9 * math.sqrt(tolerance / max(error, 1e-300))))
        if error <= tolerance:
            p, t, count = after, end if last else t + scheme.sign * size, count + 1
            tau = max(tau, size * factor) if last else size * factor
        else:
            tau = size * factor
            if not math.isfinite(error) or t + scheme.sign * tau == t:
                raise SolverError(f"the density is lost at t = {t:g}: the step came down to {tau:g}")
    return p, count, tau


def _grid(box: object) -> tuple[list[Array], list[Array]]:
    """Return centres and edges along each axis."""
    if not isinstance(box, Sequence) or not all(isinstance(side, Sequence) and len(side) == 3 for side in box):
        raise DTypeError(f"box must be [(low, high, cells)] for each axis, e.g. [(-4.0, 4.0, 400)], got {show(box)}")
    if len(box) not in (1, 2):
        raise ShapeError(f"box must have one or two axes, got {len(box)}; grids in more dimensions are too large")
    counts = [check_integer(cells, f"box[{k}][2]", 8) for k, (_, _, cells) in enumerate(box)]
    if math.prod(counts) > MOST_CELLS:
        raise DomainError(f"box must have at most {MOST_CELLS} cells in all, got {' x '.join(map(str, counts))}")
    centres, edges = [], []
    for k, ((low, high, _), cells) in enumerate(zip(box, counts, strict=True)):
        start = check_number(low, f"box[{k}][0]")
        stop = check_number(high, f"box[{k}][1]", start, open_low=True)
        edge = np.linspace(start, stop, cells + 1)
        edges.append(edge)
        centres.append(0.5 * (edge[1:] + edge[:-1]))
    return centres, edges


def _check_times(sde: SDE, times: object) -> list[float]:
    """Return the times as numbers, in an order in which the equation is well posed."""
    if not isinstance(times, Tensor) or times.ndim != 1 or len(times) < 2:
        raise ShapeError(f"times must be a tensor of at least two times, (T,), got {show(times)}")
    knots: list[float] = sde.check_time(times).tolist()
    steps = np.diff(knots)
    if not ((steps > 0).all() or (steps < 0).all()):
        raise DomainError(f"times must increase or decrease strictly, got {knots}")
    backwards = isinstance(sde, ReverseSDE)
    if (steps[0] < 0) != backwards and not (isinstance(sde, ReverseSDE) and sde.eta == 0):
        way, cure = ("decrease", "") if backwards else ("increase", "; for a reverse SDE pass sde.reverse(model)")
        raise ConfigError(f"times must {way} for {type(sde).__name__}, or diffusion would run backwards{cure}")
    return knots


def _start(start: object, scheme: Scheme) -> Array:
    """Return the first densities, of mass 1."""
    shape = tuple(map(len, scheme.centres))
    if callable(start) and not isinstance(start, type):
        values = start(points(scheme.centres))
        if not isinstance(values, Tensor) or values.shape != (math.prod(shape),):
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ShapeError(f"start must return one density for each point, ({math.prod(shape)},), got {got}")
        values = values.detach().reshape(shape)
    elif isinstance(start, Tensor):
        values = start
    else:
        raise DTypeError(f"start must be a tensor or a function x -> density, got {type(start).__name__}")
    if values.shape != shape:
        raise ShapeError(f"start must have the shape {shape} of the grid, got {tuple(values.shape)}")
    p: Array = check_samples(values, "start").detach().to("cpu", torch.float64).numpy()
    mass = float(p.sum()) * scheme.volume
    if (p < 0).any() or abs(mass - 1) > 0.01:
        raise DomainError(
            f"start must be a density: not negative, of integral 1 over the box; its least value is "
            f"{float(p.min()):g}, its integral {mass:g}; use a larger box, more cells, or divide by the integral"
        )
    return p / mass


def _check_fit(p: Array, scheme: Scheme, t: float, walls: bool) -> None:
    """Refuse a density that the box cuts off or that the cells do not resolve."""
    top = float(p.max())
    for k in range(p.ndim):
        lines = np.moveaxis(p, k, 0)
        border = max(float(lines[0].max()), float(lines[-1].max())) / top
        if border > BORDER and not walls:
            raise DomainError(
                f"box[{k}] is too small at t = {t:g}: the density at its border is {border:.1g} of the highest one; "
                "widen it, or pass walls=True if the border reflects the states"
            )
        shares = lines.reshape(len(lines), -1).sum(1) * scheme.volume
        cells = 1 / float(np.square(shares).sum())
        if cells < CELLS:
            raise DomainError(
                f"box[{k}] is too coarse at t = {t:g}: the density fills {cells:.2g} cells, at least {CELLS:g} are "
                "needed; use more cells, or stop at a later time"
            )
