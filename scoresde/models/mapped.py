r"""A model made from a model: guidance, clipping, thresholding, posteriors.

``map_prediction(model, change)`` asks ``model``, gives what it says to ``change`` and takes the answer as the new
prediction. It is asked through ``prepare`` like any other model, so that every table and the probability flow run on
it. ``change`` sees what ``model(x, t)`` returns, at a state x and a time t of the model's own SDE, also where a solver
works in other coordinates: there the state is first scaled to equal log-SNR, and the answer F = p x_0 + q z keeps its
meaning, with (p, q) of the model's own point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Self

from torch import Tensor

from scoresde.diffusions.named import check_sde
from scoresde.diffusions.point import Point
from scoresde.diffusions.sde import GaussianSDE
from scoresde.diffusions.targets import TARGETS, Kind, target, unknown_kind
from scoresde.errors.kinds import ShapeError, SolverError
from scoresde.errors.names import is_name
from scoresde.errors.values import check_callable
from scoresde.models import checkpoint
from scoresde.models.checks import check_model
from scoresde.models.prediction import Condition, Prediction, Predictor, Prepared, Readout, check_output, count_writes

__all__ = ["ChangedModel", "MappedModel", "PreparedChange", "map_prediction"]

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


class ChangedModel(Predictor):
    """A model that predicts what is made of another's prediction; it keeps all else of that model.

    What changes a prediction is written for states and times of the SDE of ``model``, under whatever SDE it is used.

    Args:
        model: the model that is asked.
        predicts: the kind of the new prediction.
    """

    def __init__(self, model: Predictor, predicts: Kind) -> None:
        inner = check_model(model)
        super().__init__(inner.sde, moments=inner.moments, transform=inner.transform, variance=inner.variance)
        self.model, self.predicts, self.groups = inner, predicts, inner.groups
        self.training = inner.training

    def with_sde(self, sde: GaussianSDE) -> Self:
        """Return the same change of the same model under another SDE.

        The model inside stays under its own, and what changes its prediction sees states and times of that one.
        """
        other = self._share()
        other.sde = check_sde(sde)
        return other

    def find_home(self, point: Point) -> Point:
        """Return the points of the SDE of ``model`` at equal log-SNR."""
        return self.model.sde.match(point)

    def _describe_sde(self) -> str:
        return "" if self.sde is self.model.sde else f", under {self.sde!r}"

    def null_condition(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what the model inside takes for no conditions."""
        return self.model.null_condition(cond)


class PreparedChange(Prepared):
    """A changed model at n points: the state is scaled to the model's own SDE, and its prediction changed there.

    Args:
        changed: the model.
        point: the points.
        x: a state like those to come.
        cond: what the model inside is told.
    """

    def __init__(self, changed: ChangedModel, point: Point, x: Tensor, cond: Condition) -> None:
        self.home = changed.find_home(point)
        self.inner = changed.model.prepare(self.home, x, cond)
        scalars = self.inner.readout.c_in, self.inner.readout.c_noise
        super().__init__(Readout(point, target(changed.predicts, self.home), *scalars), x, learned=self.inner.learned)
        # At equal log-SNR the states of two SDEs differ by the factor r_home/r.
        self.scale = [None] * len(point.t) if self.home is point else self._factors(self.home.r / point.r)

    def state(self, i: int, x: Tensor) -> Tensor:
        """Return the state of the model's own SDE at point i."""
        scale = self.scale[i]
        return x if scale is None else x * scale

    def spread(self, values: Tensor) -> Sequence[float | Tensor]:
        """Return one number for each point, or a column where every sample has points of its own."""
        shape = self.readout.point.t.shape
        return self._column(values) if len(shape) == 2 else values.expand(shape).tolist()


class MappedModel(ChangedModel):
    """A model that predicts what a function makes of another's prediction; see ``map_prediction``.

    Args:
        model: the model that is asked.
        change: Prediction -> the new prediction, of x's shape.
        predicts: its kind.
    """

    def __init__(self, model: Predictor, change: Change, predicts: Kind = "data") -> None:
        check_callable(change, "change", "Prediction -> tensor", optional=False)
        if not is_name(predicts, TARGETS):
            raise unknown_kind("prediction", predicts, TARGETS)
        super().__init__(model, predicts)
        self.change = change

    def prepare(self, point: Point, x: Tensor, cond: Condition = None) -> Prepared:
        """Prepare the model inside at these points of its own SDE; see ``Predictor.prepare``."""
        return _PreparedMap(self, point, x, cond)

    def save(self, folder: str | PathLike[str]) -> None:
        """Write the model inside and its ``Clamp`` or ``DynamicThreshold``, atomically; ``MappedModel.load`` reads it.

        Raises:
            CheckpointError: the folder holds other files or cannot be written. ConfigError: another change, which is a
                function, or a model inside that JSON cannot hold, of your own network, SDE or autoencoder, say.
        """
        from scoresde.models.saving_parts import take_apart_whole

        checkpoint.write(folder, *take_apart_whole(self))

    @staticmethod
    def load(folder: str | PathLike[str]) -> MappedModel:
        """Read what ``save`` wrote; CheckpointError where it is damaged, or another kind of model."""
        from scoresde.models.saving_parts import load_whole

        return load_whole(folder, MappedModel)

    def __repr__(self) -> str:
        name = getattr(self.change, "__name__", type(self.change).__name__)
        return f"MappedModel({self.model!r}, {name}, predicts={self.predicts!r}{self._describe_sde()})"


class _PreparedMap(PreparedChange):
    def __init__(self, mapped: MappedModel, point: Point, x: Tensor, cond: Condition) -> None:
        super().__init__(mapped, point, x, cond)
        self.change = mapped.change

    def outputs(self, i: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the changed prediction at point i, and the inner model's v where the variance is learned."""
        x = self.state(i, x)
        output, fraction = self.inner.outputs(i, x)
        version = count_writes(x)
        made = check_output(self.change(Prediction(x, output, self.inner.reading(i), fraction)), x, "change")
        if made.shape != x.shape:
            raise ShapeError(f"change must return x's shape {tuple(x.shape)}, got {tuple(made.shape)}")
        if count_writes(x) != version:
            raise SolverError("change wrote to the prediction's state; clone p.x first")
        return made, fraction
