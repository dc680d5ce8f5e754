r"""Guidance by a gradient: a classifier, an energy, any log factor of the state or of the data prediction.

*At the state.* With g(x_t, t) = log p(y | x_t) Bayes' rule gives grad log p(x_t | y) = score + grad g: for the exact
classifier of noisy states the tilted model *is* the posterior's (Dhariwal and Nichol 2021, arXiv:2105.05233). A scale s
stands for p(x_t) p(y | x_t)^s.

*At the data prediction.* A factor exp(g(x_0)) on the data, an energy -g or a classifier of clean data, has the exact
log factor log E[exp g(x_0) | x_t]; taken at the mean, g(D(x_t)), it is an approximation (Chung et al. 2023,
arXiv:2209.14687), which is good where x_t leaves little doubt. Its gradient passes through the network.

In both cases noise = noise(x_t) - s sigma grad g, finite wherever sigma > 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from scoresde.diffusions.point import Point
from scoresde.errors.kinds import ConfigError, ShapeError
from scoresde.errors.names import check_choice
from scoresde.errors.values import check_callable, check_number, check_sequence
from scoresde.models.mapped import ChangedModel, PreparedChange
from scoresde.models.prediction import Condition, Prediction, Predictor, Prepared
from scoresde.ops import recording

__all__ = ["TiltedModel", "tilted"]

Factor = Callable[..., Tensor]
At = Literal["state", "data"]


def tilted(
    model: Predictor, log_factor: Factor, scale: float = 1.0, *, at: At = "state", names: tuple[str, ...] = ()
) -> TiltedModel:
    """Return a model whose density is multiplied by exp(scale log_factor).

    A classifier of noisy states: ``tilted(model, lambda x, t, label: classifier(x, t).log_softmax(1)[rows, label],
    names=("label",))``; an energy of clean data: ``tilted(model, lambda x0: -energy(x0), at="data")``.

    Args:
        model: any model.
        log_factor: at="state": a function (x, t, **conditions) -> (B,) in nats, of the states of the model's SDE, in
            the model's coordinates, and times (B,) in float64; at="data": a function (x0, **conditions) -> (B,), of
            the data prediction in the user's units.
        scale: s.
        at: "state" or "data".
        names: the conditions that the function takes; the model inside is told the others.

    Raises:
        DTypeError: no model, no function. DomainError: a scale that is not finite. ConfigError: another ``at``; when
            asked, a condition that is missing. ShapeError: when asked, not one number a sample.
    """
    return TiltedModel(model, log_factor, scale, at, names)


class TiltedModel(ChangedModel):
    """A model whose density is multiplied by the exponential of a function; see ``tilted``.

    Args:
        model: any model.
        log_factor: log of the factor, (B,) in nats.
        scale: s.
        at: "state" or "data".
        names: the conditions that the function takes.
    """

    def __init__(self, model: Predictor, log_factor: Factor, scale: float, at: At, names: tuple[str, ...]) -> None:
        super().__init__(model, "noise")
        check_callable(log_factor, "log_factor", "of the state or of the data", optional=False)
        check_choice("place of a factor", at, get_args(At))
        self.log_factor, self.scale, self.at_what, self.names = (
            log_factor,
            check_number(scale, "scale"),
            at,
            check_sequence(names, "names", "names"),
        )

    def prepare(self, point: Point, x: Tensor, cond: Condition = None) -> Prepared:
        """Prepare the model inside at these points of its own SDE; see ``Predictor.prepare``."""
        held = dict(cond or {})
        missing = [name for name in self.names if name not in held]
        if missing:
            raise ConfigError(f"log_factor takes {missing[0]!r}: pass cond={{{missing[0]!r}: values}}")
        told = {name: held.pop(name) for name in self.names}
        return _PreparedTilt(self, point, x, held or None, told)

    def __repr__(self) -> str:
        return f"TiltedModel({self.model!r}, scale={self.scale:g}, at={self.at_what!r}{self._describe_sde()})"


class _PreparedTilt(PreparedChange):
    def __init__(self, tilt: TiltedModel, point: Point, x: Tensor, cond: Condition, told: Mapping[str, Tensor]) -> None:
        super().__init__(tilt, point, x, cond)
        self.tilt, self.told = tilt, told
        self.shift = self.spread(-tilt.scale * self.home.sigma)
        self.times = self.home.t.expand(point.t.shape)

    def outputs(self, i: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the noise prediction less s sigma grad g, and the inner model's v."""
        keep = torch.is_grad_enabled()
        with recording():
            state = self.state(i, x)
            state = state if keep and state.requires_grad else state.detach().requires_grad_(True)
            if self.tilt.at_what == "state":
                value = self.tilt.log_factor(state, self.times[i].to(x.device).expand(len(x)), **self.told)
                output, fraction = None, None
            else:
                output, fraction = self.inner.outputs(i, state)
                data = Prediction(state, output, self.inner.reading(i)).data
                transform = self.tilt.transform
                value = self.tilt.log_factor(data if transform is None else transform.inverse(data), **self.told)
            _check_values(value, len(x))
            (gradient,) = torch.autograd.grad(value.sum(), state, create_graph=keep)
        if output is None:
            output, fraction = self.inner.outputs(i, state if keep else state.detach())
        noise = Prediction(state, output, self.inner.reading(i)).noise
        made = noise + self.shift[i] * gradient.to(noise)
        return (made if keep else made.detach()), None if fraction is None or keep else fraction.detach()


def _check_values(value: object, count: int) -> None:
    if not isinstance(value, Tensor) or value.shape != (count,):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ShapeError(f"log_factor must return one number a sample, ({count},), got {got}")
