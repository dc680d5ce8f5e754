r"""Score matching without the score of the data: Hyvarinen's implicit loss and its sliced estimate.

For samples x of a density p and a score s, integration by parts takes the unknown grad log p out of Fisher's
divergence,

    1/2 E|s - grad log p|^2 = E[1/2 |s|^2 + div s] + 1/2 E|grad log p|^2,

if p s vanishes at infinity. The last term does not depend on s. With x = alpha x_0 + sigma z drawn at a time t, p is
p_t and the denoising loss is the same once more, up to another constant:

    E[1/2 |s|^2 + div s] = 1/2 E|s + z/sigma|^2 - D/(2 sigma^2).

The divergence costs a gradient for each of the D coordinates. For random v with E[v v^T] = 1, E[v^T (ds/dx) v] = div s,
which costs one for each v (the sliced loss).

All are sums over the coordinates of an event, in units of 1/x^2.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from scoresde.diffusions.sde import ScoreFunction
from scoresde.errors.kinds import ConfigError, DTypeError, ShapeError, show
from scoresde.errors.tensors import check_floating
from scoresde.errors.values import check_callable, check_flag, check_integer, check_number
from scoresde.models.prediction import Condition
from scoresde.models.score_model import ScoreModel
from scoresde.noise import integers
from scoresde.ops import divergence, jacobian_products

__all__ = ["implicit_score_matching", "sliced_score_matching"]


def implicit_score_matching(
    model: ScoreModel | ScoreFunction, x: Tensor, t: Tensor | float, *, cond: Condition = None
) -> Tensor:
    """Return 1/2 |s|^2 + div s at samples of p_t, (B,), with the exact divergence: for events of few coordinates.

    Args:
        model: a ScoreModel, or a callable (x, t) -> score; their parameters receive the gradient.
        x: samples of p_t, (B, *), in the model's coordinates.
        t: their times, of shape () or (B,).
        cond: conditions of the batch.

    Raises:
        DTypeError, ShapeError, DomainError: x or t of a wrong type, shape or range, a score of another shape than x.

    Source: Hyvarinen 2005, "Estimation of non-normalized statistical models by score matching".
    """
    score, trace = divergence(partial(_ask_score, model, t=t, cond=cond), _widen(x))
    return 0.5 * _sum_squares(score) + trace


def sliced_score_matching(
    model: ScoreModel | ScoreFunction,
    x: Tensor,
    t: Tensor | float,
    *,
    projections: int = 1,
    generator: torch.Generator | None = None,
    probes: Tensor | None = None,
    reduced: bool = True,
    cond: Condition = None,
) -> Tensor:
    """Return the mean over probes v of v^T (ds/dx) v + 1/2 |s|^2 at samples of p_t, (B,).

    Its expectation over the probes, whose coordinates are +1 or -1 with equal chance, is ``implicit_score_matching``.

    Args:
        model: a ScoreModel, or a callable (x, t) -> score; their parameters receive the gradient.
        x: samples of p_t, (B, *), in the model's coordinates.
        t: their times, of shape () or (B,).
        projections: number of probes for each sample, at least 1; each costs a gradient of the network.
        generator: where the probes are drawn from.
        probes: the probes themselves, (K, B, *), instead of drawn ones.
        reduced: False puts 1/2 (v^T s)^2 in the place of 1/2 |s|^2: the source's first form, of larger variance.
        cond: conditions of the batch.

    Raises:
        DTypeError, ShapeError, DomainError: x, t or probes of a wrong type, shape or range, no projection, a score of
            another shape than x. ConfigError: neither or both of generator and probes.

    Source: Song, Garg, Shi and Ermon 2019, "Sliced score matching: a scalable approach to density and
    score estimation", arXiv:1905.07088.
    """
    x = _widen(x)
    projections, reduced = check_integer(projections, "projections", 1), check_flag(reduced, "reduced")
    if probes is None:
        if not isinstance(generator, torch.Generator):
            raise ConfigError(f"generator must be a torch.Generator, got {show(generator)}; or give probes=, (K, B, *)")
        probes = (2 * integers(2, (projections, *x.shape), generator) - 1).to(x)
    elif generator is not None or projections != 1:
        raise ConfigError("probes are given: leave out generator= and projections=")
    elif check_floating(probes, "probes", empty=True).shape[1:] != x.shape or len(probes) == 0:
        raise ShapeError(f"probes must have shape (K, {', '.join(map(str, x.shape))}), got {tuple(probes.shape)}")
    score, products = jacobian_products(partial(_ask_score, model, t=t, cond=cond), x, probes.to(x))
    if reduced:
        squares = _sum_squares(score)
    else:
        along = probes.to(x) * score
        squares = along.reshape(*along.shape[:2], math.prod(x.shape[1:])).sum(2).square().mean(0)
    return 0.5 * squares + torch.stack(products).mean(0)


def _ask_score(model: ScoreModel | ScoreFunction, x: Tensor, *, t: Tensor | float, cond: Condition) -> Tensor:
    time = t if isinstance(t, Tensor) else torch.tensor(check_number(t, "t"), dtype=torch.float64, device="cpu")
    check_callable(model, "model", "(x, t) -> score, or a ScoreModel", optional=False)
    if cond is None:
        out = model(x, time)
    elif isinstance(model, ScoreModel):
        out = model(x, time, cond)
    else:
        raise ConfigError("cond goes with a ScoreModel; bind it to a function of your own: lambda x, t: score(x, t, c)")
    score = out if isinstance(out, Tensor) else getattr(out, "score", None)
    if not isinstance(score, Tensor):
        raise DTypeError(f"the model must return a tensor, or what has a score, got {show(out)}")
    if score.shape != x.shape:
        raise ShapeError(f"the score must have the shape {tuple(x.shape)} of x, got {tuple(score.shape)}")
    return score


def _widen(x: object) -> Tensor:
    x = check_floating(x)
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _sum_squares(score: Tensor) -> Tensor:
    return score.reshape(len(score), math.prod(score.shape[1:])).square().sum(1)
