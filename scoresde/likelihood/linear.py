r"""The bound in continuous time under a linear SDE.

    -log p(x) <= KL(N(M x, Sigma)_{t_max} || prior) + 1/2 int E[(s - s*)^T Q (s - s*)] dt + E[-log p(x | x_{t_min})],

s being the model's score, s* = -Sigma^{-1}(x_t - M x) that of x_t | x and Q = G G^T. The decoder is N(data prediction,
M^{-1} Sigma M^{-T}) at t_min, GaussianDecoder's with a map. The integral is taken evenly in the mean log-SNR, whose
rate is d log_snr/dt = -tr(Sigma^{-1} Q)/D.

Under scalar curves this is ``continuous_elbo`` and depends on their ends alone. Here it depends on the path of the maps
between the ends, unless the model is exact: then it is -log p under every linear SDE, up to what the ends cut off.

Source: Song, Durkan et al. 2021, arXiv:2101.09258, theorem 1; Sahoo et al. 2024, "Diffusion models with learned
adaptive noise", arXiv:2312.13236 (rates per dimension).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.diffusions.blocks import invert
from scoresde.diffusions.gaussian import Gaussian
from scoresde.diffusions.linear import LinearPoint
from scoresde.diffusions.matrix import MatrixSDE
from scoresde.errors.kinds import ConfigError, DTypeError
from scoresde.errors.tensors import check_outcome
from scoresde.errors.values import check_integer
from scoresde.likelihood.bound import Bound, Task, assemble_bound
from scoresde.models.linear_model import LinearModel
from scoresde.models.prediction import Condition, in_mode
from scoresde.training.losses.linear import check_linear_model, measure_linear

__all__ = ["linear_elbo"]


def linear_elbo(
    model: LinearModel,
    x0: Tensor,
    *,
    prior: Gaussian | None = None,
    samples: int = 16,
    cond: Condition = None,
    seed: int = 0,
    chunk_size: int = 512,
) -> Bound:
    """Return the continuous-time bound on -log p(x_0) under the model's linear SDE, in nats; nothing is differentiated.

    Args:
        model: a LinearModel all of whose parts hold data. The network is put into evaluation mode.
        x0: data (B, *), in the data's units: the model's transform is applied.
        prior: law of x_{t_max}, in the model's coordinates; by default the one that sampling starts from.
        samples: draws of noise and time for each sample, one in each of so many equal parts of the integral.
        cond: conditions, each (B, *).
        seed: names the noise and the times: the same seed gives the same, whatever ``chunk_size``.
        chunk_size: largest batch given to the network at once.

    Raises:
        DTypeError, ShapeError, DomainError, ConfigError: a model, data, prior or option of the wrong type, shape or
            range, before any call of the network. SolverError: a prediction that is not finite.
    """
    known = check_linear_model(model)
    sde = known.linear
    if isinstance(sde, MatrixSDE) and sde.hidden:
        raise ConfigError("the bound is on the law of all parts, and some of them hold no data under this SDE")
    task = Task(
        known,
        x0,
        decoder=None,
        cond=cond,
        repeats=check_integer(samples, "samples", 1),
        seed=seed,
        generator=None,
        noise=None,
        chunk_size=chunk_size,
    )
    if not (prior is None or isinstance(prior, Gaussian)):
        raise DTypeError(f"prior must be a Gaussian, got {type(prior).__name__}; e.g. sde.prior(), Moments.at(...)")
    sde.blocks.check(task.y.shape[1:], "x0")
    start, end = sde.at(sde.t_max), sde.at(sde.t_min)
    law = sde.prior(sde.t_max, known.moments) if prior is None else prior
    with in_mode(known, training=False), torch.no_grad():
        top = _measure_prior(law, task.y, start)
        if len(top) == 0:
            return assemble_bound(
                task, top, top, torch.full((samples + 1,), torch.nan, dtype=torch.float64, device="cpu")
            )
        reconstruction = _reconstruct(known, task, end)
        high, low = (float(sde.log_snr(t)) for t in (sde.t_min, sde.t_max))
        t = sde.time(high + (low - high) * task.places()).clamp(sde.t_min, sde.t_max)
        values = torch.zeros_like(t)
        for draws, part, y, z, told in task.drawn(samples):
            at = t[draws, part]
            point = sde.at(at.reshape(-1))
            loss = measure_linear(known, y, z, point, "likelihood", told)
            check_outcome(loss, "the loss", at.reshape(-1))
            rate = _rate(point)
            values[draws, part] = (loss.to("cpu", torch.float64) / rate).reshape(at.shape)
    values *= (high - low) * task.size / samples
    terms = torch.cat([reconstruction.mean()[None], values.mean(1)])
    return assemble_bound(task, top, reconstruction + values.sum(0), terms)


def _rate(point: LinearPoint) -> Tensor:
    """Return -d log_snr/dt = tr(Sigma^{-1} Q)/D at points (n,)."""
    sde = point.owner
    product = invert(point.covariance) @ sde.coefficients(point.t)[1]
    trace = torch.diagonal(product, dim1=-2, dim2=-1).sum(-1)
    return trace @ sde.blocks.shares() / sde.blocks.parts


def _measure_prior(prior: Gaussian, y: Tensor, point: LinearPoint) -> Tensor:
    """Return KL(N(M y, Sigma) || prior) for data y (B, *), (B,), float64 on the CPU."""
    blocks, event = point.owner.blocks, tuple(y.shape[1:])
    size, wide = math.prod(event), y.to("cpu", torch.float64)
    mean = blocks.apply(point.mean, wide)
    log_root = torch.diagonal(point.root, dim1=-2, dim2=-1).log().sum(-1)
    entropy = 0.5 * size * (1 + math.log(2 * math.pi)) + size / blocks.parts * float(log_root @ blocks.shares())
    # The cross entropy is quadratic: that at the mean, and half the trace of the precision times Sigma.
    if prior.basis is None and blocks.parts == 1:
        own = blocks.spread(point.covariance)
        trace = float((own / prior.variance.to(own)).expand(event).sum())
    else:
        unit = torch.eye(size, dtype=torch.float64, device="cpu").reshape(size, *event)
        roots = (blocks.dense(point.root, event) @ unit.reshape(size, size)).T.reshape(size, *event)
        centre = prior.mean.to(wide).expand(event)
        trace = float(2 * (prior.log_prob(centre[None]) - prior.log_prob(centre + roots)).sum())
    return -prior.log_prob(mean) + 0.5 * trace - entropy


def _reconstruct(model: LinearModel, task: Task, point: LinearPoint) -> Tensor:
    """Return minus the decoder's log density of the data, (B,), with one draw of the state at ``point``."""
    blocks = point.owner.blocks
    inward = invert(point.root) @ point.mean
    log_det = torch.linalg.slogdet(inward)[1] @ blocks.shares() * task.size / blocks.parts
    values = torch.zeros(len(task.y), dtype=torch.float64, device="cpu")
    for _, part, y, z, told in task.drawn(1):
        x = blocks.apply(point.mean.to(y), y) + blocks.apply(point.root.to(y), z)
        error = (y - model.at(x, point, told).data).to("cpu", torch.float64)  # type: ignore[arg-type]
        square = blocks.apply(inward, error).reshape(len(y), -1).square().sum(1)
        nats = 0.5 * square + 0.5 * task.size * math.log(2 * math.pi) - log_det
        values[part] = check_outcome(nats, "the reconstruction", point.t.expand(len(y)))
    return values
