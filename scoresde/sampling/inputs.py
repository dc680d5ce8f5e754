"""What ``sample`` is given, checked: the model, the layout of the result, and what the loop is to call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from scoresde.diffusions.gaussian import Gaussian
from scoresde.diffusions.sde import SDE, GaussianSDE, check_score
from scoresde.errors.kinds import ConfigError, DomainError, DTypeError, ShapeError, read_integer, show
from scoresde.errors.tensors import check_device, check_floating, check_samples
from scoresde.errors.values import LARGEST_SIZE, check_callable, check_dtype, check_integer, check_sizes
from scoresde.models.checks import unwrap_model
from scoresde.models.prediction import Predictor
from scoresde.models.score_model import ScoreModel
from scoresde.models.scored_sde import ScoredSDE
from scoresde.ops import check_readable

__all__ = ["as_model", "check_calls", "check_prior", "layout"]


def as_model(model: object, sde: SDE | None) -> Predictor | ScoredSDE:
    """Return the model, out of the wrappers of other tools, under the SDE to sample with."""
    model = unwrap_model(model)
    plain = isinstance(sde, SDE) and not isinstance(sde, GaussianSDE)
    if isinstance(model, ScoredSDE):
        if sde is not None and sde is not model.sde:
            raise ConfigError(f"the score of a {type(model).__name__} is that of its own SDE; leave sde= out")
        return model
    if isinstance(model, Predictor):
        if plain:
            raise ConfigError(
                f"{type(sde).__name__} has no alpha and sigma that would carry a ScoreModel over to it; pass its own "
                "score as a function (x, t) -> score"
            )
        return model if sde is None or sde is model.sde else model.with_sde(cast(GaussianSDE, sde))
    score = check_score(model)
    if sde is None:
        raise ConfigError("a bare score function needs sde=, e.g. sample(score, (64, 2), sde=VPSDE())")
    return ScoredSDE(score, sde) if plain else ScoreModel.from_callable(score, cast(GaussianSDE, sde))


def layout(
    model: Predictor | ScoredSDE,
    shape: Sequence[int] | int | None,
    x_init: Tensor | None,
    dtype: object,
    device: torch.device | str | None,
) -> tuple[tuple[int, ...], torch.dtype, torch.device]:
    """Return shape, type and device of the result."""
    check_readable(x_init if isinstance(x_init, Tensor) else None)
    if (count := read_integer(shape)) is not None:
        number = check_integer(count, "shape", 0)
        if model.moments is None:
            raise ShapeError(
                f"shape must be ({number}, *): the model knows no moments, so no event; e.g. ({number}, 2)"
            )
        shape = (number, *model.moments.mean.shape)
    shape = cast(Sequence[int] | None, shape)
    shape = None if shape is None else check_sizes(shape, "shape")
    if x_init is not None:
        check_floating(x_init, "x_init")
        if shape is not None and tuple(shape) != tuple(x_init.shape):
            raise ShapeError(f"shape {tuple(shape)} and x_init of shape {tuple(x_init.shape)} differ; leave out shape")
        shape, dtype = tuple(x_init.shape), dtype or x_init.dtype
        device = x_init.device if device is None else device
    sizes = () if shape is None else tuple(shape)
    if not sizes:
        raise ShapeError("shape must be (B, *), e.g. sample(model, (64, 2)); or pass x_init")
    if 0 in sizes[1:]:
        raise ShapeError(f"shape {show(sizes)} has samples that hold no number; give each at least one")
    if math.prod(sizes) > LARGEST_SIZE:
        raise DomainError(f"shape {show(sizes)} holds more than {LARGEST_SIZE} values; sample in parts: first_sample=")
    shape = sizes
    dtype = torch.float32 if dtype is None else dtype
    dtype = check_dtype(dtype)
    try:
        place = torch.empty(0, dtype=torch.float32, device=device or model.device or "cpu").device
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"device must name one that torch can use, got {show(device)}: {show(str(error))}") from error
    check_device(place, "device" if x_init is None else "x_init", model.device or place, "the model")
    if x_init is not None:
        check_samples(x_init, "x_init")
    if model.transform is not None:  # asked of no samples, so that a misfit shows before any call
        model.transform.inverse(torch.empty((0, *shape[1:]), dtype=dtype, device="cpu"))
    return tuple(shape), dtype, place


def check_calls(kernels: object, on_step: object) -> None:
    """Check what the loop calls."""
    if not isinstance(kernels, Sequence) or not all(callable(kernel) for kernel in kernels):
        raise DTypeError(f"kernels must be a list of kernels, e.g. [Langevin(snr=0.16)], got {show(kernels)}")
    check_callable(on_step, "on_step", "of a Step")


def check_prior(prior: object, shape: tuple[int, ...]) -> None:
    """Check the law of the start state."""
    if prior is None:
        return
    if not isinstance(prior, Gaussian):
        raise DTypeError(f"prior must be a Gaussian, got {type(prior).__name__}; e.g. sde.prior(), Moments.at(...)")
    if prior.mean.shape not in ((), shape[1:]):
        raise ShapeError(f"prior must have the event {shape[1:]} of the samples, got {tuple(prior.mean.shape)}")
