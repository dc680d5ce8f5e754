r"""Points on a diffusion, and the affine readout between everything that a network may predict there.

At a point (alpha, sigma) of a Gaussian diffusion, x = alpha x_0 + sigma z. Whatever a network predicts is a fixed
combination F = p x_0 + q z of the clean data and the noise; the pair (p, q) is its *target*. Two equations in two
unknowns,

    [x]   [alpha sigma] [x_0]
    [F] = [  p     q  ] [ z ],          Delta = alpha q - sigma p,

give every other combination P = p' x_0 + q' z as P = a x + b F with

    a = (p' q - q' p) / Delta,          b = (alpha q' - sigma p') / Delta,

and, where the two rows are parallel, a = 0 and b their ratio (finite also where Delta = 0). The preconditioning scalars
of the literature are the special case P = x_0: c_skip = q / Delta, c_out = -sigma / Delta.

| kind | p | q | is |
|---|---|---|---|
| data | 1 | 0 | x_0 |
| noise | 0 | 1 | z |
| v | -sigma/r | alpha/r | the angular velocity, r = sqrt(alpha^2 + sigma^2) |
| score | 0 | -1/sigma | the gradient of the log density |
| flow | -1 | 1 | the velocity of x/(alpha + sigma) in the clock sigma/(alpha + sigma) |
| velocity | alpha' | sigma' | the probability-flow velocity dx/dt |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch

from scoresde.diffusions.point import Pair, Point
from scoresde.errors.kinds import ConfigError, DomainError, show
from scoresde.errors.names import is_name, unknown

__all__ = ["TARGETS", "Kind", "target", "unknown_kind", "view"]

Kind = Literal["data", "noise", "v", "score", "flow", "velocity"]

# What papers and other libraries call the kinds.
ELSEWHERE = {
    "epsilon": "noise",
    "eps": "noise",
    "pred_noise": "noise",
    "x0": "data",
    "x_0": "data",
    "x_start": "data",
    "pred_x0": "data",
    "sample": "data",
    "denoised": "data",
    "v_prediction": "v",
    "v-prediction": "v",
    "flow": "velocity",
    "flow_matching": "velocity",
    "flow_prediction": "velocity",
    "karras": "edm",
}


def _data(p: Point) -> Pair:
    return torch.ones_like(p.alpha), torch.zeros_like(p.alpha)


def _noise(p: Point) -> Pair:
    return torch.zeros_like(p.alpha), torch.ones_like(p.alpha)


def _v(p: Point) -> Pair:
    r = p.r
    return -p.sigma / r, p.alpha / r


def _score(p: Point) -> Pair:
    return torch.zeros_like(p.alpha), -1.0 / p.sigma


def _flow(p: Point) -> Pair:
    return -torch.ones_like(p.alpha), torch.ones_like(p.alpha)


def _velocity(p: Point) -> Pair:
    return p.rates


# Functions with names, so that whatever holds one can be pickled.
TARGETS: dict[str, Callable[[Point], Pair]] = {
    "data": _data,
    "noise": _noise,
    "v": _v,
    "score": _score,
    "flow": _flow,
    "velocity": _velocity,
}


def target(kind: str, point: Point) -> Pair:
    """Return the pair (p, q) of ``kind`` at ``point``; ConfigError for an unknown kind."""
    if not is_name(kind, TARGETS):
        raise unknown_kind("prediction", kind, TARGETS)
    return TARGETS[kind](point)


def unknown_kind(what: str, got: object, choices: Iterable[str]) -> ConfigError:
    """Build the error for an unknown kind: the word used here for what others call ``got``, and every choice.

    Args:
        what: what the name is of.
        got: the name.
        choices: the names that there are.
    """
    names, word = sorted(choices), ELSEWHERE.get(show(got).strip("'").lower())
    if word not in names:
        return unknown(what, got, names)
    return ConfigError(f"unknown {what} {show(got)}; it is called {word!r} here; choices: {', '.join(names)}")


def view(known: Pair, wanted: Pair, point: Point, name: str = "this view") -> Pair:
    """Return (a, b) such that P = a x + b F, for F of target ``known`` and P of target ``wanted``.

    Raises DomainError where the view has no finite limit, naming the first such time.
    """
    (p, q), (p_wanted, q_wanted) = known, wanted
    delta = point.alpha * q - point.sigma * p
    cross = p_wanted * q - q_wanted * p
    a, b = cross / delta, (point.alpha * q_wanted - point.sigma * p_wanted) / delta
    # A traced graph holds no values to look at; where a view is not finite it then gives what is not.
    traced, parallel = torch.compiler.is_compiling(), cross == 0
    if traced or parallel.any():
        by_q = q.abs() > p.abs()
        ratio = torch.where(by_q, q_wanted, p_wanted) / torch.where(by_q, q, p)
        a, b = torch.where(parallel, 0.0, a), torch.where(parallel, ratio, b)
    if not traced and not (finite := torch.isfinite(a + b)).all():
        bad = ~finite
        first = int(bad.reshape(-1).nonzero()[0])
        t, alpha, sigma = (float(c.expand(bad.shape).reshape(-1)[first]) for c in (point.t, point.alpha, point.sigma))
        raise DomainError(
            f"{name} has no finite value at t = {t:g}, where alpha = {alpha:g} and sigma = {sigma:g}; "
            "stay inside (t_min, t_max) or train another prediction (data, v and velocity are finite at both ends)"
        )
    return a, b
