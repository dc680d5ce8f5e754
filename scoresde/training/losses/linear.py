r"""Denoising score matching under a linear SDE.

For x = M x_0 + L z a network whose output F has the target F* = p x_0 + q z errs by e = F - F*, and its score by b e.
The loss of one sample at one time is, per coordinate of an event of dimension D,

    simple          |e|^2 / D
    likelihood      (b e)^T Q (b e) / (2 D),    Q = G G^T.

With t uniform, (t_max - t_min) D times the mean of the second is the only term of the bound on -log p(x_0) that
depends on the network (``likelihood.linear``). Coordinates that are left out of the state at t (``GroupedSDE.kept``)
count as 0: the network says nothing of them.

*Hybrid score matching* (Dockhorn et al. 2022, arXiv:2112.07068): x_t given the position x_0 alone, the velocity at
t = 0 integrated out, is what a ``MatrixSDE`` with noisy parts gives in any case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from scoresde.diffusions.linear import LinearPoint
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.kinds import DTypeError, show
from scoresde.errors.names import check_choice, pick
from scoresde.models.linear_model import LinearModel
from scoresde.models.prediction import Condition
from scoresde.models.score_model import ScoreModel
from scoresde.noise import draw_noise, on_cpu
from scoresde.training.losses.denoising import check_batch
from scoresde.training.losses.times import TIMES, TimeSampler, TimesName

__all__ = ["LinearLoss", "LinearWeight", "linear_score_matching"]

LinearWeight = Literal["simple", "likelihood"]
WEIGHTS = ("simple", "likelihood")


def check_linear_model(model: object) -> LinearModel:
    """Return the model if it lives on a linear SDE; DTypeError otherwise."""
    if not isinstance(model, LinearModel):
        raise DTypeError(f"model must be a LinearModel, got {show(model)}; a ScoreModel takes denoising_score_matching")
    return model


def measure_linear(
    model: LinearModel, x0: Tensor, z: Tensor, point: LinearPoint, weight: str, cond: Condition = None
) -> Tensor:
    """Return the losses (B,) of data x0 (B, *), in at least float32, with noise z at points (B,) of the SDE."""
    blocks, reading = point.owner.blocks, model.read_at(point)

    def act(maps: Tensor, x: Tensor) -> Tensor:
        return blocks.apply(maps.to(x), x)

    (p, q), boxes = reading.pair, model.boxes(point.t)
    scaled = act(reading.c_in @ point.mean, x0) + act(reading.c_in @ point.root, z)
    target = act(p, x0) + act(q, z)
    c_noise = model.c_noise_for(reading.c_noise, x0)
    # Outside of its box a sample's output is what makes its error 0.
    error = model.call(scaled, c_noise, boxes, target, cond) - target
    size = error[0].numel()
    if weight == "simple":
        return error.square().reshape(len(x0), -1).sum(1) / size
    wrong = act(reading.maps("score")[1], error)
    noise = point.owner.coefficients(point.t)[1]
    return 0.5 * (wrong * act(noise, wrong)).reshape(len(x0), -1).sum(1) / size


def linear_score_matching(
    model: LinearModel,
    x0: Tensor,
    *,
    weight: LinearWeight = "simple",
    times: TimesName | TimeSampler = "low_discrepancy",
    generator: torch.Generator | None = None,
    cond: Condition = None,
    t: Tensor | float | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Return the weighted denoising loss of each sample, averaged over the coordinates; the module has the formulas.

    Args:
        model: a LinearModel.
        x0: data (B, *) in the model's coordinates.
        weight: "simple" or "likelihood".
        times: a key of ``losses.TIMES`` or a function (n, sde, generator) -> t (n,); not "importance".
        generator: on the CPU: the times are drawn from it, then the noise.
        cond: tensors passed to the network, each with first dimension B.
        t: times of shape () or (B,) instead of drawn ones.
        noise: standard normal numbers of x0's shape instead of drawn ones.

    Returns:
        Losses (B,), in nats per coordinate and unit of t under weight="likelihood".

    Raises:
        DTypeError, ShapeError, DomainError, ConfigError: a model, data, times or noise of another kind, shape or range.
    """
    check_choice("weight under a linear SDE", weight, WEIGHTS, parameter="weight")
    known = check_linear_model(model)
    cond = check_batch(known, x0, noise, cond)
    known.linear.blocks.check(x0.shape[1:], "x0")
    draw = _pick_times(times)
    x0 = x0.to(torch.promote_types(x0.dtype, torch.float32))
    if len(x0) == 0:
        return x0.new_zeros((0,))
    source = on_cpu(generator) if t is None or noise is None else None
    if t is None:
        assert source is not None
        time = draw(len(x0), cast(GaussianSDE, known.linear), source)
    else:
        time = known.linear.check_time(t, x0).expand(len(x0))
    if noise is None:
        assert source is not None
        noise = draw_noise(x0, source)
    return measure_linear(known, x0, noise.to(x0), known.linear.at(time), weight, cond)


def _pick_times(times: TimesName | TimeSampler) -> TimeSampler:
    return pick("time sampler under a linear SDE", times, {name: TIMES[name] for name in TIMES if name != "importance"})


@dataclass(frozen=True)
class LinearLoss:
    """The objective of ``fit`` for a LinearModel: ``linear_score_matching`` with these options.

    Args:
        weight: "simple" or "likelihood".
        times: a key of ``losses.TIMES``, or a function.
    """

    weight: LinearWeight = "simple"
    times: TimesName | TimeSampler = "low_discrepancy"

    def __post_init__(self) -> None:
        check_choice("weight under a linear SDE", self.weight, WEIGHTS, parameter="weight")
        _pick_times(self.times)

    def __call__(self, model: ScoreModel, x0: Tensor, generator: torch.Generator, cond: Condition = None) -> Tensor:
        """Return the losses (B,) of a batch."""
        known = check_linear_model(model)
        return linear_score_matching(known, x0, weight=self.weight, times=self.times, generator=generator, cond=cond)


def choose_linear(
    model: ScoreModel,
    objective: Any,  # noqa: ANN401 whatever was given
    weight: Any,  # noqa: ANN401
    times: Any,  # noqa: ANN401
) -> tuple[Any, Any, Any]:
    """Return objective, weight and times of a training: under a linear SDE its own loss is the objective."""
    if not isinstance(model, LinearModel) or objective is not None:
        return objective, weight, times
    options = {name: value for name, value in (("weight", weight), ("times", times)) if value is not None}
    return LinearLoss(**options), None, None
