r"""The loss of held-out data, at noise and times that are always the same.

Two models, or two moments of one training, are compared without the noise of the draw: sample k of the data always
meets the same noise at the same times. With M samples and r repeats the times are one low-discrepancy set of r M
numbers, dealt out in a random order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from scoresde.errors.kinds import ShapeError
from scoresde.errors.names import pick
from scoresde.errors.tensors import PART, check_outcome
from scoresde.errors.values import check_integer
from scoresde.models.checks import check_score_model
from scoresde.models.prediction import check_condition, in_mode, select
from scoresde.models.score_model import ScoreModel
from scoresde.noise import check_seed, normal, permutation, stream
from scoresde.ops import Array, Rows, accept_arrays, accept_rows, chunks
from scoresde.training.losses.bins import LossBins
from scoresde.training.losses.defaults import choose_loss
from scoresde.training.losses.denoising import denoising_score_matching
from scoresde.training.losses.times import TIMES, TimeSampler, TimesName, correct_weight
from scoresde.training.losses.weights import WEIGHTS, Weight, WeightName

__all__ = ["HeldOutLoss", "held_out_loss"]


@dataclass(frozen=True)
class HeldOutLoss:
    """What ``held_out_loss`` found.

    Args:
        mean: mean weighted loss per coordinate.
        standard_error: of the mean, from the spread over the samples (times are stratified, so it errs upwards); NaN
            for a single one.
        log_snr: middles of ten bins of log(alpha^2/sigma^2).
        loss_by_log_snr: mean loss in each bin, None where it is empty.
    """

    mean: float
    standard_error: float
    log_snr: tuple[float, ...]
    loss_by_log_snr: tuple[float | None, ...]


def held_out_loss(
    model: ScoreModel,
    data: Array | Rows,
    *,
    weight: WeightName | Weight | None = None,
    times: TimesName | TimeSampler | None = None,
    cond: Mapping[str, Array] | None = None,
    repeats: int = 1,
    seed: int = 0,
    chunk_size: int = 512,
) -> HeldOutLoss:
    """Return the denoising loss of held-out data at fixed noise and times; the network is put into evaluation mode.

    Args:
        model: the model, e.g. ``fit(...).model`` with the averaged weights.
        data: a tensor or a NumPy array (M, *), M >= 1, in the user's units: the model's transform is applied.
        weight: a key of ``WEIGHTS``, or a function (point, sde) -> w; None for that with which ``fit`` trains such a
            model. Name one to compare models of different predictions.
        times: a key of ``TIMES``, a ``TimeLaw`` or a function; None for those with which ``fit`` trains.
        cond: conditions, each (M, *).
        repeats: draws of noise and time for each sample.
        seed: names the noise and the times; the same seed gives the same, whatever the chunks.
        chunk_size: largest batch given to the network at once.

    Raises:
        ShapeError, DTypeError, DomainError, ConfigError: bad data or options, as ``denoising_score_matching``.
        SolverError: a loss that is not finite.
    """
    model = check_score_model(model)
    rows = accept_rows(data, "data")
    size = len(rows)
    count = check_integer(repeats, "repeats", 1) * size
    if count == 0:
        raise ShapeError("data is empty: a loss needs at least one sample")
    chunk_size = check_integer(chunk_size, "chunk_size", 1)
    check_seed(seed)
    known = check_condition(accept_arrays(cond, "cond", only_read=True), size, each=True)
    weight, times = choose_loss(model, weight, times)
    draw = pick("time sampler", times, TIMES)
    weight = correct_weight(pick("weight", weight, WEIGHTS), draw)
    device = rows.device if model.device is None else model.device
    dtype = torch.promote_types(torch.float32, model.dtype or rows.dtype)
    transform = model.transform
    t = draw(count, model.sde, stream(seed, "held out", "times"))[permutation(count, stream(seed, "held out", "order"))]
    times_of = t.reshape(-1, size)
    bins = LossBins(model.sde, device)
    numbers = bins.find(model.sde.log_snr(t)).to(device).reshape(-1, size)
    # One block is in memory at a time. On the CPU a multiple of 16 gives the noise of a single draw.
    block = 16 * max(1, PART // (2 * max(1, math.prod(rows.shape[1:]))))
    losses = []
    with in_mode(model, training=False), torch.no_grad():
        shift = stream(seed, "held out", "transform", device=device)
        noises = [stream(seed, "held out", "noise", k, device=device) for k in range(repeats)]
        for places in chunks(size, block):
            x = rows[places].to(device)
            if transform is not None:
                x = transform.forward(x, shift)
            x = x.to(dtype)
            for k, generator in enumerate(noises):
                z = normal(x.shape, generator, dtype=dtype)
                for part in chunks(len(x), chunk_size):
                    here = slice(places.start + part.start, places.start + part.stop)
                    found = denoising_score_matching(
                        model,
                        x[part],
                        weight=weight,
                        t=times_of[k][here],
                        noise=z[part],
                        cond=select(known, here, device),
                    )
                    check_outcome(found, "the held-out loss", times_of[k][here])
                    bins.add(numbers[k][here], found)
                    losses.append(found)
    all_losses = torch.cat(losses).double().cpu()
    # One loss has no spread to tell an error by.
    spread = float(all_losses.std(correction=0)) / (count - 1) ** 0.5 if count > 1 else math.nan
    return HeldOutLoss(float(all_losses.mean()), spread, tuple(bins.centres), tuple(bins.take_means()))
