r"""A model made from a model: guidance, clipping, thresholding, posteriors.

``map_prediction(model, change)`` asks ``model``, gives what it says to ``change`` and takes the answer as the new
prediction. It is asked through ``prepare`` like any other model, so that every table and the probability flow run on
it. ``change`` sees what ``model(x, t)`` returns, at a state x and a time t of the model's own SDE, also where a solver
works in other coordinates: there the state is first scaled to equal log-SNR, and the answer F = p x_0 + q z keeps its
meaning, with (p, q) of the model's own point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike

from torch import Tensor

from scoresde.diffusions.point import Point
from scoresde.diffusions.sde import GaussianSDE
from scoresde.diffusions.targets import TARGETS, Kind, target, unknown_kind
from scoresde.errors import ConfigError, DTypeError, ShapeError, SolverError
from scoresde.models.checks import check_model
from scoresde.models.prediction import Condition, Prediction, Predictor, Prepared, Readout, check_output, count_writes

__all__ = ["MappedModel", "map_prediction"]

Change = Callable[[Prediction], Tensor]


def map_prediction(model: Predictor, change: Change, predicts: Kind = "data") -> MappedModel:
    """Return a model that predicts what ``change`` makes of another's prediction.

    ``map_prediction(model, lambda p: p.data.clamp(-1, 1))`` clips; a classifier's gradient g is added to the score by
    ``map_prediction(model, lambda p: p.score + g(p.x, p.readout.point.t), "score")``.

    Args:
        model: any model; one made by this function, too.
        change: Prediction -> a tensor of x's shape (B, *), the new prediction of the kind ``predicts``. It must not
            write to the prediction's tensors.
        predicts: "data", "noise", "v", "score", "flow" or "velocity".

    Returns:
        A model with the data's moments, the transform, the SDE, the conditions and the device of ``model``. Its network
        is ``model``'s own, shared.

    Raises:
        DTypeError: a model or a change that is none. ConfigError: an unknown kind.
    """
    return MappedModel(model, change, predicts)


class MappedModel(Predictor):
    """A model that predicts what a function makes of another's prediction; see ``map_prediction``.

    Args:
        model: the model that is asked.
        change: Prediction -> the new prediction, of x's shape.
        predicts: its kind.
    """

    def __init__(self, model: Predictor, change: Change, predicts: Kind = "data") -> None:
        inner = check_model(model)
        if not callable(change):
            raise DTypeError(f"change must be a function Prediction -> tensor, got {change!r}")
        if predicts not in TARGETS:
            raise unknown_kind("prediction", predicts, TARGETS)
        super().__init__(inner.sde, moments=inner.moments, transform=inner.transform, variance=inner.variance)
        self.model, self.change, self.predicts, self.groups = inner, change, predicts, inner.groups
        self.training = inner.training

    def prepare(self, point: Point, x: Tensor, cond: Condition = None) -> Prepared:
        """Prepare the model inside at these points of its own SDE; see ``Predictor.prepare``."""
        return _PreparedMap(self, point, x, cond)

    def with_sde(self, sde: GaussianSDE) -> MappedModel:
        """Return the same change of the same model under another SDE."""
        other = self._share()
        other.model = self.model.with_sde(sde)
        other.sde = other.model.sde
        return other

    def save(self, folder: str | PathLike[str], *, ema: Mapping[str, Tensor] | None = None) -> None:
        """Raise ConfigError: a file cannot hold a function."""
        raise ConfigError(
            "a MappedModel holds a function, which a file cannot; save the model that it wraps, "
            "mapped.model.save(folder), and map it again when it is loaded"
        )

    def __repr__(self) -> str:
        name = getattr(self.change, "__name__", type(self.change).__name__)
        return f"MappedModel({self.model!r}, {name}, predicts={self.predicts!r})"


class _PreparedMap(Prepared):
    """A mapped model at n points: the state is scaled to the model's own SDE, and its prediction changed there."""

    def __init__(self, mapped: MappedModel, point: Point, x: Tensor, cond: Condition) -> None:
        home = mapped.sde.match(point)
        self.inner = mapped.model.prepare(home, x, cond)
        scalars = self.inner.readout.c_in, self.inner.readout.c_noise
        readout = Readout(point, target(mapped.predicts, home), *scalars)
        super().__init__(readout, x, learned=self.inner.learned)
        self.change = mapped.change
        # At equal log-SNR the states of two SDEs differ by the factor r_home/r.
        self.scale = [None] * len(point.t) if home is point else self._factors(home.r / point.r)

    def outputs(self, i: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the changed prediction at point i, and the inner model's v where the variance is learned."""
        scale = self.scale[i]
        x = x if scale is None else x * scale
        output, fraction = self.inner.outputs(i, x)
        version = count_writes(x)
        made = check_output(self.change(Prediction(x, output, self.inner.reading(i), fraction)), x, "change")
        if made.shape != x.shape:
            raise ShapeError(f"change must return x's shape {tuple(x.shape)}, got {tuple(made.shape)}")
        if count_writes(x) != version:
            raise SolverError("change wrote to the prediction's state; clone p.x first")
        return made, fraction
