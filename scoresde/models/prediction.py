r"""What a model says at a point, and the one place where it is asked.

A network's output F at x becomes every view of the prediction as P = a x + b F, with (a, b) from ``targets.view``. A
``Predictor`` is asked through ``prepare``: for points that are known beforehand all of these numbers are computed
before a loop starts. Whatever changes a prediction (guidance, clipping, a posterior) is a predictor whose ``prepare``
wraps another's, so that every table, the probability flow and every likelihood sees it.
"""

from __future__ import annotations

import copy
import html
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from scoresde.diffusions.gaussian import Moments
from scoresde.diffusions.point import Pair, Point
from scoresde.diffusions.sde import GaussianSDE
from scoresde.diffusions.targets import target, view
from scoresde.errors.kinds import ConfigError, DTypeError, ShapeError
from scoresde.errors.tensors import check_device, check_floating
from scoresde.models.modes import enter_mode, leave_mode
from scoresde.ops import accept_arrays, combine
from scoresde.transforms.base import Transform

__all__ = [
    "Condition",
    "Prediction",
    "Predictor",
    "Prepared",
    "Readout",
    "check_condition",
    "check_output",
    "count_writes",
    "describe_data",
    "in_mode",
    "select",
]

Condition = Mapping[str, Tensor] | None


@dataclass(frozen=True, eq=False)
class Readout:
    """Everything that a call of the network needs, in float64 on the CPU, each of t's shape.

    Args:
        point: where.
        pair: the target (p, q) of the network's output.
        c_in: factor of the network's input.
        c_noise: what the network is told of the time.
    """

    point: Point
    pair: Pair
    c_in: Tensor
    c_noise: Tensor

    def weights(self, kind: str) -> Pair:
        """Return (a, b) such that the view ``kind`` is a x + b F; DomainError where it has no finite value."""
        return view(self.pair, target(kind, self.point), self.point, f"the {kind} prediction")

    def read(self, kind: str, x: Tensor, output: Tensor) -> Tensor:
        """Return the view ``kind`` at states x (B, *), of which the network gave F."""
        a, b = self.weights(kind)
        return combine((a, x), (b, output))


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says at (x, t); each view has x's shape.

    Args:
        x: the state (B, *).
        output: the network's output F, of x's shape.
        readout: how to read it.
        variance_fraction: v of a learned variance, of x's shape, 0 for the small one and 1 for the large one; it may
            lie outside. None where the model learns none.
    """

    x: Tensor
    output: Tensor
    readout: Readout
    variance_fraction: Tensor | None = None

    def view(self, kind: str) -> Tensor:
        """Return the view ``kind`` (a key of ``targets.TARGETS``); DomainError where it is not finite."""
        return self.readout.read(kind, self.x, self.output)

    def __repr__(self) -> str:
        t = sorted(set(self.readout.point.t.reshape(-1).tolist()))
        at = ", at t = " + " to ".join(f"{time:g}" for time in dict.fromkeys((t[0], t[-1]))) if t else ""
        return f"Prediction(data, noise, score, v and velocity, each {tuple(self.x.shape)}{at})"

    @property
    def data(self) -> Tensor:
        """The posterior mean of x_0."""
        return self.view("data")

    @property
    def noise(self) -> Tensor:
        """The posterior mean of the noise z."""
        return self.view("noise")

    @property
    def score(self) -> Tensor:
        """The gradient of the log density of x_t, -noise/sigma."""
        return self.view("score")

    @property
    def v(self) -> Tensor:
        """(alpha noise - sigma data)/r."""
        return self.view("v")

    @property
    def velocity(self) -> Tensor:
        """The probability-flow velocity dx/dt = alpha' data + sigma' noise."""
        return self.view("velocity")


class Prepared(ABC):
    """A predictor made ready at n points that are known beforehand.

    Args:
        readout: how F is read, with fields of shape (n,), or (n, B) where every sample has points of its own.
        x: a state (B, *) of the loop; only its shape, type and device are used.
        learned: whether F comes with v of a learned variance.
    """

    def __init__(self, readout: Readout, x: Tensor, *, learned: bool) -> None:
        self.readout, self.learned = readout, learned
        self._like = x[:0]
        self._weights: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {}

    @abstractmethod
    def outputs(self, i: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return F at point i, of x's shape (B, *), and v where the variance is learned."""

    def energies(self, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the energies (B,) and the scores (B, *) at point i; ConfigError where there is no energy."""
        raise ConfigError("MALA compares energies, and this model has none; use an EnergyModel, or Langevin()")

    def raw(self, i: int, x: Tensor) -> Tensor:
        """Return F at point i."""
        return self.outputs(i, x)[0]

    def weights(self, kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the numbers a and b of the view ``kind`` at n points (n,); computed once."""
        if kind not in self._weights:
            a, b = self.readout.weights(kind)
            self._weights[kind] = tuple(a.tolist()), tuple(b.tolist())
        return self._weights[kind]

    def columns(self, kind: str) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return a and b of the view ``kind`` at points of each sample's own, n times of shape (B, 1, ...)."""
        a, b = self.readout.weights(kind)
        return self._column(a), self._column(b)

    def reading(self, i: int) -> Readout:
        """Return the readout of point i."""
        shape = self.readout.point.t.shape
        p, q = (c.expand(shape)[i] for c in self.readout.pair)
        c_in, c_noise = (c.expand(shape)[i] for c in (self.readout.c_in, self.readout.c_noise))
        return Readout(self.readout.point[i], (p, q), c_in, c_noise)

    def predict(self, i: int, x: Tensor) -> Prediction:
        """Return the prediction at point i."""
        output, fraction = self.outputs(i, x)
        return Prediction(x, output, self.reading(i), fraction)

    def _factors(self, values: Tensor) -> Sequence[float | Tensor | None]:
        """Return what a state is multiplied by at each point: a number, a column (B, 1, ...), or None for 1."""
        shape = self.readout.point.t.shape
        if len(shape) == 2:
            return self._column(values)
        # 1e-15 is rounding of alpha^2 + sigma^2 = 1; a factor that close to 1 costs a pass over x and changes nothing.
        return [None if abs(c - 1) < 1e-15 else c for c in values.expand(shape).tolist()]

    def _column(self, values: Tensor) -> Sequence[Tensor]:
        """Give numbers (n, B) the type, the device and the dimensions of the state."""
        shape = self.readout.point.t.shape
        return values.expand(shape).to(self._like).reshape(*shape, *(1,) * (self._like.ndim - 1)).unbind(0)


class Predictor(nn.Module, ABC):
    """What samplers, flows and likelihoods ask. Write ``prepare`` and ``with_sde``; all else is derived.

    Args:
        sde: the diffusion that it lives on.
        moments: the data's moments, for priors.
        transform: from data to the model's coordinates.
        variance: "fixed", or "learned" where every output comes with v.

    ``groups`` holds, by their number, the groups of coordinates that ``likelihood.colour`` found, and ``tables``, by
    their evaluations, the tables that ``tune`` fitted, as JSON; ``calibration`` is what ``calibrate`` found, likewise.
    """

    def __init__(
        self, sde: GaussianSDE, *, moments: Moments | None, transform: Transform | None, variance: str = "fixed"
    ) -> None:
        super().__init__()
        self.sde, self.moments, self.transform, self.variance = sde, moments, transform, variance
        self.groups: dict[int, Tensor] = {}
        self.tables: dict[int, str] = {}
        self.calibration: str | None = None

    @abstractmethod
    def prepare(self, point: Point, x: Tensor, cond: Condition = None) -> Prepared:
        """Make everything ready for one call at each of n points, in a loop without schedule arithmetic.

        Args:
            point: points of any SDE, fields of shape (n,), or (n, B) for points of each sample's own.
            x: a state (B, *) of the loop; only its shape, type and device are used.
            cond: conditions of the batch.
        """

    @abstractmethod
    def with_sde(self, sde: GaussianSDE) -> Self:
        """Return the same predictor under another SDE: equal log-SNR means an equal call."""

    def _share(self) -> Self:
        """Return another wrapper around the same parts, which can be changed without changing this one."""
        other = copy.copy(self)
        # A shallow copy of a module shares the tables of its parts, buffers and hooks.
        vars(other).update({name: value.copy() for name, value in vars(self).items() if isinstance(value, dict)})
        # Tools that change how a module is called bind a forward of their own to this one (accelerate does).
        vars(other).pop("forward", None)
        return other

    def in_its_own_coordinates(self) -> Self:
        """Return the same model without its transform: its samples stay in its coordinates."""
        bare = self._share()
        bare.transform = None
        return bare

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{self.sde._repr_html_()}"

    def __setattr__(self, name: str, value: object) -> None:
        """Set a part; a transform may be a module (``Latent``) in the place of one that is none, and the reverse."""
        if name == "transform":
            self._modules.pop(name, None)
        super().__setattr__(name, value)  # type: ignore[arg-type]

    def _weights(self) -> Iterator[nn.Parameter]:
        """Yield the parameters but for those of a transform, which has a type of its own."""
        return (p for name, p in self.named_parameters() if not name.startswith("transform."))

    @property
    def device(self) -> torch.device | None:
        """The device of the parameters; None where there are none."""
        return next((p.device for p in self._weights()), None)

    @property
    def dtype(self) -> torch.dtype | None:
        """The type of the floating parameters; None where there are none and x's serves, in at least float32."""
        return next((p.dtype for p in self._weights() if p.is_floating_point()), None)

    def null_condition(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what this model takes for no conditions, for each of ``cond``; ConfigError where it does not say."""
        raise ConfigError(
            f"{type(self).__name__} does not say what it takes for no condition; pass negative= with the values that "
            'stand for none, e.g. negative={"label": 1000}'
        )

    def check_device(self, device: torch.device, name: str = "x") -> None:
        """Raise ConfigError where ``name`` is on another device than the network."""
        check_device(device, name, self.device or device, "the model")

    def forward(self, x: Tensor, t: Tensor | float, cond: Condition = None, **stray: object) -> Prediction:
        """Return the prediction at x of shape (B, *) and t of shape () or (B,); ``cond={"label": y}`` conditions it.

        Raises:
            DTypeError, ShapeError, DomainError, ConfigError: x is no floating (B, *), t is not in the SDE's interval or
                of another shape, ``cond`` is of another batch or not taken by the network, a condition is passed by
                itself and not in ``cond``, x, ``cond`` and the network are on different devices, or the network returns
                something else than x's shape.
        """
        if stray:
            pairs = ", ".join(f'"{key}": {key}' for key in stray)
            raise DTypeError(f"conditions go in one dict: pass cond={{{pairs}}}, got {', '.join(stray)}= by itself")
        check_floating(x)
        self.check_device(x.device)
        cond = check_condition(cond, x.shape[0], x.device)
        return self.at(x, self.sde.at(self.sde.check_time(t, x)), cond)

    def at(self, x: Tensor, point: Point, cond: Condition = None) -> Prediction:
        """Return the prediction at a point of any SDE, fields of shape () or (B,); x is that SDE's state."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        prepared = self.prepare(point.of_each(len(x)), wide, cond)
        # No samples need no call.
        output, fraction = prepared.outputs(0, wide) if len(x) else (x, x if prepared.learned else None)
        return Prediction(x, output, prepared.reading(0), fraction)


def describe_data(moments: Moments | None, transform: Transform | None) -> list[str]:
    """Return what is known of a model's data, in a few words each."""
    event = [] if moments is None or not moments.mean.ndim else [f"event {tuple(moments.mean.shape)}"]
    return event if transform is None else [*event, repr(transform)]


def count_writes(x: Tensor) -> int | None:
    """Return how often x was written to; None where nobody counts: for inference tensors and in a traced graph."""
    return None if torch.compiler.is_compiling() or x.is_inference() else x._version


def check_output(out: object, x: Tensor, who: str) -> Tensor:
    """Return what was made of x if it is a real floating tensor where x is; DTypeError, naming ``who``, otherwise."""
    if not isinstance(out, Tensor):
        raise DTypeError(f"{who} must return a tensor of x's shape, got {type(out).__name__}")
    if not out.is_floating_point() or out.device != x.device:
        raise DTypeError(
            f"{who} must return a real floating tensor on {x.device}, as its input, got {out.dtype} on {out.device}"
        )
    return out


def check_condition(cond: object, batch: int, device: torch.device | None = None, *, each: bool = False) -> Condition:
    """Return ``cond`` if it is None or a mapping of tensors whose first dimension is the batch.

    One condition for many samples, a number or a tensor (1, *), stands for all of them.

    Args:
        cond: what was given.
        batch: number of samples.
        device: of the samples.
        each: whether each sample needs a condition of its own, as data do.

    Raises:
        ConfigError: no mapping of tensors, or of tensors elsewhere than on ``device``. ShapeError: another batch size.
    """
    if cond is None:
        return None
    if not isinstance(cond, Mapping):
        raise ConfigError('cond must be a dict of tensors, e.g. {"label": labels}')
    known: dict[str, Tensor] = {}
    for key, given in cond.items():
        value = given if each else _read_condition(given, key, device)
        if not isinstance(value, Tensor):
            raise ConfigError('cond must be a dict of tensors, e.g. {"label": labels}')
        if not each and (value.ndim == 0 or value.shape[0] == 1):
            value = value.expand(batch, *value.shape[1:])
        if value.ndim == 0 or value.shape[0] != batch:
            one = "" if each else " (or 1, for all)"
            raise ShapeError(
                f"cond[{key!r}] must have a first dimension of {batch}{one}, got shape {tuple(value.shape)}"
            )
        check_device(value.device, f"cond[{key!r}]", device or value.device, "x")
        known[key] = value
    return known


def _read_condition(value: object, name: str, device: torch.device | None) -> object:
    """Return a number as a tensor without dimensions, an array as a tensor, anything else as it is."""
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        dtype = torch.int64 if isinstance(value, int | np.integer) else torch.float32
        return torch.tensor(value, dtype=dtype, device=device)
    return accept_arrays(value, f"cond[{name!r}]", only_read=True)


def select(cond: Condition, rows: slice | Tensor, device: torch.device | None = None) -> Condition:
    """Return the conditions of some samples of the batch, moved to ``device`` where one is named."""
    if cond is None:
        return None
    parts = {k: v[rows.to(v.device) if isinstance(rows, Tensor) else rows] for k, v in cond.items()}
    return parts if device is None else {k: v.to(device) for k, v in parts.items()}


@contextmanager
def in_mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a module into training or evaluation mode; restore every part's own mode, also after an exception.

    Threads that want the same mode share it, and the last one restores; ``models.modes`` says more.

    Raises:
        ConfigError: another thread uses a part of the module in the other mode.
    """
    parts = enter_mode(module, training=training)
    try:
        yield
    finally:
        leave_mode(parts, training=training)
