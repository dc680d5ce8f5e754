r"""The loss of held-out data, at noise and times that are always the same.

Two models, or two moments of one training, are compared without the noise of the draw: sample k of the data always
meets the same noise at the same times. With M samples and r repeats the times are one low-discrepancy set of r M
numbers, dealt out in a random order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from scoresde.errors import ShapeError, check_integer, check_samples, pick
from scoresde.models.checks import check_score_model
from scoresde.models.prediction import check_condition, in_mode, select
from scoresde.models.score_model import ScoreModel
from scoresde.noise import check_seed, normal, permutation, stream
from scoresde.ops import Array, accept_arrays, chunks
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
        standard_error: of the mean, from the spread over the samples (times are stratified, so it errs upwards).
        log_snr: middles of ten bins of log(alpha^2/sigma^2).
        loss_by_log_snr: mean loss in each bin, None where it is empty.
    """

    mean: float
    standard_error: float
    log_snr: tuple[float, ...]
    loss_by_log_snr: tuple[float | None, ...]


def held_out_loss(
    model: ScoreModel,
    data: Array,
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
    """
    model = check_score_model(model)
    x = check_samples(accept_arrays(data, "data"), "data").detach()
    count = check_integer(repeats, "repeats", 1) * len(x)
    if count == 0:
        raise ShapeError("data is empty: a loss needs at least one sample")
    check_integer(chunk_size, "chunk_size", 1)
    check_seed(seed)
    known = check_condition(accept_arrays(cond, "cond"), len(x))
    weight, times = choose_loss(model, weight, times)
    draw = pick("time sampler", times, TIMES)
    weight = correct_weight(pick("weight", weight, WEIGHTS), draw)
    device = x.device if model.device is None else model.device
    x = x.to(device=device, dtype=torch.promote_types(x.dtype, torch.float32))
    if model.transform is not None:
        x = model.transform.forward(x, stream(seed, "held out", "transform", device=device))
    x = x.to(torch.promote_types(torch.float32, model.dtype or x.dtype))
    t = draw(count, model.sde, stream(seed, "held out", "times"))[permutation(count, stream(seed, "held out", "order"))]
    bins = LossBins(model.sde, device)
    numbers = bins.find(model.sde.log_snr(t)).to(device).reshape(-1, len(x))
    losses = []
    with in_mode(model, training=False), torch.no_grad():
        for k, (times_k, numbers_k) in enumerate(zip(t.reshape(-1, len(x)), numbers, strict=True)):
            z = normal(x.shape, stream(seed, "held out", "noise", k, device=device), dtype=x.dtype)
            for part in chunks(len(x), chunk_size):
                here = select(known, part, device)
                found = denoising_score_matching(
                    model, x[part], weight=weight, t=times_k[part], noise=z[part], cond=here
                )
                bins.add(numbers_k[part], found)
                losses.append(found)
    all_losses = torch.cat(losses).double().cpu()
    spread = float(all_losses.std(correction=0)) / max(1, count - 1) ** 0.5
    return HeldOutLoss(float(all_losses.mean()), spread, tuple(bins.centres), tuple(bins.take_means()))
