"""What the ends of the flow leave out: the truncation at t_min, and the prior's mismatch at t_max."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.diffusions.gaussian import Gaussian
from scoresde.diffusions.point import Point
from scoresde.likelihood.decoders import event_sum
from scoresde.likelihood.probes import Probes
from scoresde.likelihood.traced import TracedModel
from scoresde.models.prediction import Condition, Predictor, select
from scoresde.noise import SampleNoise, stream
from scoresde.ops import flat, recording

__all__ = ["measure_mismatch", "measure_truncation"]

DRAWS = 32  # and their mirror images
# Gauss and Legendre's rule on [0, 1].
NODES = (0.06943184420297371, 0.33000947820757187, 0.6699905217924281, 0.9305681557970263)
WEIGHTS = (0.17392742256872692, 0.32607257743127307, 0.32607257743127307, 0.17392742256872692)


def measure_truncation(model: Predictor, probes: Probes, point: Point, x: Tensor, cond: Condition) -> Tensor:
    """Return log p_0 - log p_nu at x/alpha to first order, -(|eps|^2 - sigma tr d eps/dx)/2, (B,), float64 on the CPU.

    Args:
        model: the model.
        probes: of the trace.
        point: a single point, sigma > 0.
        x: states (B, *) there.
        cond: conditions of the batch, with the signs.
    """
    traced = TracedModel(model, x.shape[1:], probes, "noise")
    state = torch.cat([flat(x), x.new_zeros(len(x), probes.draws)], 1)
    out, _ = traced.prepare(point[None], state, cond).outputs(0, state)
    size = out.shape[1] - probes.draws
    trace = out[:, size:].mean(1) / float(point.alpha)
    return (-0.5 * (out[:, :size].square().sum(1) - float(point.sigma) * trace)).to("cpu", torch.float64)


def measure_mismatch(model: Predictor, prior: Gaussian, point: Point, x: Tensor, cond: Condition, seed: int) -> Tensor:
    """Return an estimate of log p - log prior at states x (B, *) of a single point, (B,), float64 on the CPU.

    With m the prior's mean, R(x) = int_0^1 (score - prior's score)(m + s (x - m)) . (x - m) ds is the mismatch less its
    value at m, which is -log E[exp R] under the prior: estimated by ``DRAWS`` draws and their mirror images, the same
    for every sample without conditions.
    """
    if len(x) == 0:
        return torch.zeros(0, dtype=torch.float64, device="cpu")
    along = _integrate(model, prior, point, x, cond)
    rows = torch.arange(1 if cond is None else len(x), device="cpu")
    z = x.new_empty(1, DRAWS, *x.shape[1:])
    SampleNoise(stream(seed, "likelihood", "prior").initial_seed()).fill(z)
    draws = torch.cat([z[0], -z[0]])
    shift = []
    for row in rows:
        here = select(cond, row.repeat(len(draws)))
        values = _integrate(model, prior, point, prior.from_noise(draws).to(x), here)
        shift.append(torch.logsumexp(values, 0) - math.log(len(draws)))
    return along - torch.stack(shift)


def _integrate(model: Predictor, prior: Gaussian, point: Point, x: Tensor, cond: Condition) -> Tensor:
    """Return R(x), (B,)."""
    mean = prior.mean.to(x)
    total = torch.zeros(len(x), dtype=torch.float64, device="cpu")
    for node, weight in zip(NODES, WEIGHTS, strict=True):
        at = mean + node * (x - mean)
        with recording():
            place = at.detach().requires_grad_(True)
            (own,) = torch.autograd.grad(prior.log_prob(place).sum(), place)
        difference = model.at(at, point, cond).score - own
        total += weight * event_sum(difference * (x - mean)).to("cpu", torch.float64)
    return total
