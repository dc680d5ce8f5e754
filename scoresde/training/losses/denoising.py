r"""Denoising score matching, with every weight defined once, in data space.

For x = alpha x_0 + sigma z a network whose output F has the target F* = p x_0 + q z (``readout``) implies the data
prediction x0_hat = c_skip x + c_out F, with c_out = -sigma/Delta and Delta = alpha q - sigma p. Since the same x stands
on both sides, x0_hat - x_0 = c_out (F - F*), and the loss of one sample at one time is, per coordinate of an event of
dimension D,

    L = w |x0_hat - x_0|^2 / D = w c_out^2 |F - F*|^2 / D,

the same number for every parameterisation. The weight w(t) belongs to the data prediction (``losses.weights``); the
factor w c_out^2 on the network's own error, and p, q, alpha c_in and sigma c_in, are formed in float64 and cast last.
In terms of other errors: |x0_hat - x_0| = (sigma/alpha) |noise error| = (sigma^2/alpha) |score error|.

The likelihood weight makes nats: with t uniform on [t_min, t_max], (t_max - t_min) D E[L] is the integral over t of
g^2/2 E|score(x_t, t) - grad log p(x_t | x_0)|^2, the only term of the bound on -log p(x_0) that depends on the network.

Times are drawn in float64 on the CPU (``losses.times``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.diffusions.curves import unchecked
from scoresde.diffusions.point import Point
from scoresde.errors.kinds import DomainError, ShapeError
from scoresde.errors.names import pick
from scoresde.errors.tensors import check_device, check_floating
from scoresde.models.checks import check_score_model
from scoresde.models.prediction import Condition, check_condition
from scoresde.models.score_model import ScoreModel
from scoresde.noise import draw_noise, on_cpu
from scoresde.ops import expand, move
from scoresde.training.losses.defaults import choose_loss
from scoresde.training.losses.times import TIMES, TimeSampler, TimesName, correct_weight
from scoresde.training.losses.weights import WEIGHTS, Weight, WeightName

__all__ = [
    "Multipliers",
    "Scalars",
    "check_batch",
    "check_scalars",
    "denoising_score_matching",
    "measure_errors",
    "measure_losses",
    "read_scalars",
]

# Where alpha or sigma is 0 the limit of a product 0 * inf is taken this close to it; squares stay normal numbers.
LIMIT = 1e-140


class Multipliers(NamedTuple):
    """The numbers of the loss at times t (*) that meet data: of x_0 and z in the network's input and target, of L.

    Args:
        input_x0: alpha c_in.
        input_z: sigma c_in.
        target_x0: p.
        target_z: q.
        loss: w c_out^2, of the squared error of the network's output.
    """

    input_x0: Tensor
    input_z: Tensor
    target_x0: Tensor
    target_z: Tensor
    loss: Tensor


class Scalars(NamedTuple):
    """All that the loss needs to know of times t (*), each in float64 on the CPU and of t's shape."""

    multipliers: Multipliers
    c_noise: Tensor
    log_snr: Tensor


def read_scalars(model: ScoreModel, point: Point, weight: Weight) -> Scalars:
    """Return the scalars of the loss at points (*) of any SDE or chain."""
    alpha, sigma = point.alpha.clamp_min(LIMIT), point.sigma.clamp_min(LIMIT)
    point = replace(point, alpha=alpha, sigma=sigma)
    how = model.readout(point)
    p, q = how.pair
    # p and q have opposite signs, or one is 0, in every parameterisation: nothing cancels here.
    c_out = sigma / (alpha * q - sigma * p)
    factor = unchecked(lambda: weight(point, model.sde)) * c_out.square()
    numbers = (c.expand(point.t.shape) for c in (how.c_in * alpha, how.c_in * sigma, p, q, factor))
    return Scalars(Multipliers(*numbers), how.c_noise.expand(point.t.shape), point.log_snr.expand(point.t.shape))


def check_scalars(scalars: Scalars, t: Tensor) -> None:
    """Raise DomainError at the first time whose scalars are not finite in float32."""
    bad = ~torch.isfinite(torch.stack([*scalars.multipliers, scalars.c_noise]).float()).all(0)
    if bool(bad.any()):
        raise DomainError(
            f"the weighted loss is not finite at t = {float(t[bad][0]):g}; raise t_min, lower t_max, or take another "
            "weight or prediction"
        )


def measure_errors(
    model: ScoreModel,
    x0: Tensor,
    z: Tensor,
    multipliers: Multipliers,
    c_noise: Tensor,
    cond: Condition = None,
    autocast: torch.dtype | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return F - F* (B, *), with the graph to the network's parameters, and v where the model learns a variance.

    Args:
        model: the model.
        x0: data (B, *), in at least float32.
        z: noise of x0's shape, type and device.
        multipliers: at B times, in x0's type and on its device.
        c_noise: as the network takes it (``model.c_noise_for``).
        cond: conditions of the batch.
        autocast: the type in which the network computes under autocast; None for its own.
    """
    on_x0, on_z, p, q, _ = multipliers
    x = (expand(on_x0, x0) * x0).addcmul_(expand(on_z, z), z)
    x = x.to(model.dtype or x.dtype)
    if autocast is None:
        out, fraction = model.outputs(x, c_noise, cond)
    else:
        with torch.autocast(x0.device.type, autocast):
            out, fraction = model.outputs(x, c_noise, cond)
    return out.to(x0.dtype) - (expand(p, x0) * x0).addcmul_(expand(q, z), z), fraction


def measure_losses(
    model: ScoreModel,
    x0: Tensor,
    z: Tensor,
    multipliers: Multipliers,
    c_noise: Tensor,
    cond: Condition = None,
    autocast: torch.dtype | None = None,
) -> Tensor:
    """Return the losses (B,), the weighted squared errors; arguments as ``measure_errors``."""
    error, _ = measure_errors(model, x0, z, multipliers, c_noise, cond, autocast)
    return error.square().reshape(len(x0), -1).mean(1) * multipliers.loss


def denoising_score_matching(
    model: ScoreModel,
    x0: Tensor,
    *,
    weight: WeightName | Weight | None = None,
    times: TimesName | TimeSampler | None = None,
    generator: torch.Generator | None = None,
    cond: Condition = None,
    t: Tensor | float | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Return the weighted denoising loss of each sample, averaged over the coordinates of its event.

    With x = alpha x_0 + sigma z it is w(t) |x0_hat(x, t) - x_0|^2 / D; see the module's docstring. Its mean over a
    batch is what to minimise: ``denoising_score_matching(model, x, generator=generator).mean().backward()``. Nothing
    here waits for a device; x0 itself is not searched for NaN.

    Args:
        model: the model; its parameters receive the gradient.
        x0: data (B, *) in the model's coordinates (its transform is not applied). Half types compute in float32.
        weight: a key of ``WEIGHTS``, or a function (point, sde) -> w, the weight of the data prediction's error; None
            for what suits the model's prediction (``losses.defaults``), so that models of different predictions are
            compared under a weight and times that are named.
        times: a key of ``TIMES``, a ``TimeLaw``, or a function (n, sde, generator) -> t (n,) in [t_min, t_max]; None
            for what suits.
        generator: on the CPU, whatever x0's device: the times are drawn from it, then the noise, or for another
            device the seed of a generator there. May be left out where both ``t`` and ``noise`` are given.
        cond: tensors passed to the network, each with first dimension B.
        t: times of shape () or (B,) instead of drawn ones.
        noise: standard normal numbers of x0's shape instead of drawn ones.

    Returns:
        Losses (B,) in float32 or x0's wider type; nats per coordinate and unit of t under weight="likelihood".

    Raises:
        DTypeError, ShapeError, DomainError: x0, t or noise of a wrong type, shape or range; a loss that is not finite
            at a given t. ConfigError: an unknown weight or time sampler, no generator, or one on another device than
            the CPU, a model on another device than x0, a cond that is no dict of tensors.

    Source: Vincent 2011, "A connection between score matching and denoising autoencoders"; Ho et al. 2020,
    arXiv:2006.11239.
    """
    cond = check_batch(model, x0, noise, cond)
    weight, times = choose_loss(model, weight, times)
    weigh, draw = pick("weight", weight, WEIGHTS), pick("time sampler", times, TIMES)
    batch, device = x0.shape[0], x0.device
    dtype = torch.promote_types(x0.dtype, torch.float32)
    if batch == 0:
        return x0.new_zeros((0,), dtype=dtype)
    if t is None or noise is None:
        generator = on_cpu(generator)
    if t is None:
        assert generator is not None
        time = draw(batch, model.sde, generator)
        scalars = read_scalars(model, model.sde.at(time), correct_weight(weigh, draw))
    else:
        time = model.sde.check_time(t, x0).expand(batch)
        scalars = read_scalars(model, model.sde.at(time), weigh)
        check_scalars(scalars, time)
    if noise is None:
        assert generator is not None
        noise = draw_noise(x0, generator)
    numbers = torch.stack(scalars.multipliers).to(dtype)
    c_noise = move(model.c_noise_for(scalars.c_noise, numbers), device)
    x0 = x0.to(dtype)
    return measure_losses(model, x0, noise.to(x0), Multipliers(*move(numbers, device).unbind(0)), c_noise, cond)


def check_batch(model: object, x0: object, noise: Tensor | None, cond: Condition) -> Condition:
    """Check what the loss of a batch is made of, and return the condition."""
    known, data = check_score_model(model), check_floating(x0, "x0")
    cond = check_condition(cond, data.shape[0], each=True)
    if noise is not None and check_floating(noise, "noise").shape != data.shape:
        raise ShapeError(f"noise must have the shape {tuple(data.shape)} of x0, got {tuple(noise.shape)}")
    known.check_device(data.device, "x0")
    if noise is not None:
        check_device(noise.device, "noise", data.device, "x0")
    return cond
