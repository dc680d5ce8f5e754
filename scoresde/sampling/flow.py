r"""The probability flow as an ordinary differential equation dy/du = slope(y, u), in the coordinates that suit it.

For a Gaussian diffusion, y = x/(alpha + sigma) and u = sigma/(alpha + sigma): the coordinates of the rectified path, in
which the flow of every Gaussian diffusion is the same equation, finite at both ends,

    dy/du = noise(y, u) - data(y, u).

For any other SDE there are no such coordinates: y = x, u = t and dx/dt = f(x, t) - g(t)^2/2 score(x, t) (Song et al.
2021, "Score-based generative modeling through stochastic differential equations", eq. 13).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scoresde.diffusions.gaussian import Moments
from scoresde.diffusions.point import Point
from scoresde.diffusions.sde import SDE, ReverseSDE
from scoresde.errors import DomainError, DTypeError, check_floating
from scoresde.models.prediction import Condition
from scoresde.models.score_model import ScoreModel
from scoresde.transforms.base import Transform

__all__ = ["Field", "ScoredSDE", "flow_field"]

Stage = Callable[[int, Tensor], Tensor]


class ScoredSDE(nn.Module):
    """A score function under any SDE, also one without alpha and sigma.

    Args:
        function: (x, t, **cond) -> score of x's shape; t has shape (B,), in float32 or in x's wider type.
        sde: any SDE.
    """

    moments: Moments | None = None
    transform: Transform | None = None

    def __init__(self, function: Callable[..., Tensor], sde: SDE) -> None:
        """Keep both; nothing is called."""
        super().__init__()
        self.function = function
        self.sde = sde

    def forward(self, x: Tensor, t: Tensor | float, cond: Condition = None) -> Tensor:
        """Return the score at x (B, *) and t of shape () or (B,)."""
        time = self.sde.check_time(t, check_floating(x))
        time = time.to(x.device, torch.promote_types(torch.float32, x.dtype)).expand(x.shape[0])
        out: object = self.function(x, time) if cond is None else self.function(x, time, **cond)
        if not isinstance(out, Tensor):
            raise DTypeError(f"the score function must return a tensor of x's shape, got {type(out).__name__}")
        return out.to(x)

    @property
    def device(self) -> torch.device | None:
        """The device of the function's parameters; None where it has none."""
        return next((p.device for p in self.parameters()), None)


@dataclass(frozen=True, eq=False)
class Field:
    """The right-hand side of the flow between two times, and how a state enters and leaves its coordinates.

    Args:
        stages: (u of shape (S, n), rows (n,)) -> function (i, y) giving the slope of y (n, *) at u[i]. ``u`` is in
            float64 on the CPU, ``rows`` says which samples of the batch these are.
        start: u at the start.
        end: u at the end.
        scales: x/y at the start and at the end.
        time: u -> t, for messages.
        name: of u.
    """

    stages: Callable[[Tensor, Tensor], Stage]
    start: float
    end: float
    scales: tuple[float, float]
    time: Callable[[float], float]
    name: str

    def slope(self, y: Tensor, u: Tensor) -> Tensor:
        """Return the slope of a whole batch y (B, *) at one u, in float64 on the CPU."""
        return self.stages(u.expand(1, y.shape[0]), torch.arange(y.shape[0]))(0, y)


def flow_field(
    model: ScoreModel | ScoredSDE, like: Tensor, start: Point | float, end: Point | float, cond: Condition = None
) -> Field:
    """Return the probability flow of a model.

    Args:
        model: the model, or a score under any SDE.
        like: a state (B, *); its type, device and number of dimensions are used.
        start: a time of the model's SDE, or for a ScoreModel a single point of any Gaussian SDE.
        end: the same.
        cond: conditions of the batch.

    Raises:
        DomainError: a point where only a time has a meaning, or sigma = 0 at an end.
    """
    if isinstance(model, ScoredSDE):
        return _plain_field(model, start, end, cond)
    ends = [p if isinstance(p, Point) else model.sde.at(p) for p in (start, end)]
    scales = [float(p.alpha + p.sigma) for p in ends]
    u = [float(p.sigma) / scale for p, scale in zip(ends, scales, strict=True)]
    if min(u) <= 0:
        raise DomainError("the probability flow must start and end where sigma > 0; stop at t_min")
    ones = (1,) * (like.ndim - 1)

    def stages(u: Tensor, rows: Tensor) -> Stage:
        flat = u.reshape(-1)
        readout = model.readout(Point(flat, 1 - flat, flat, 2 * (torch.log1p(-flat) - flat.log())))
        shaped = (*u.shape, *ones)
        numbers = (*readout.weights("flow"), readout.c_in)
        on_y, on_output, c_in = (c.expand(flat.shape).to(like).reshape(shaped) for c in numbers)
        c_noise = model.c_noise_for(readout.c_noise, like).reshape(u.shape)
        here = _rows_of(cond, rows)
        dtype = model.dtype or like.dtype

        def stage(i: int, y: Tensor) -> Tensor:
            output = model.raw((c_in[i] * y).to(dtype), c_noise[i], here)
            return (on_y[i] * y).addcmul_(on_output[i], output.to(y))

        return stage

    def time(u: float) -> float:
        at = torch.tensor(u, dtype=torch.float64)
        return float(model.sde.time(2 * (torch.log1p(-at) - at.log())))

    return Field(stages, u[0], u[1], (scales[0], scales[1]), time, "sigma/(alpha + sigma)")


def _plain_field(model: ScoredSDE, start: Point | float, end: Point | float, cond: Condition) -> Field:
    """Return the flow in x and t."""
    if isinstance(start, Point) or isinstance(end, Point):
        raise DomainError("an SDE without alpha and sigma has times, not points; pass start and end as times")

    def stages(u: Tensor, rows: Tensor) -> Stage:
        here = _rows_of(cond, rows)
        flow = ReverseSDE(model.sde, lambda x, t: model(x, t, here), 0.0, t_min=model.sde.t_min, t_max=model.sde.t_max)
        return lambda i, y: flow.drift(y, u[i])

    return Field(stages, float(start), float(end), (1.0, 1.0), lambda u: u, "t")


def _rows_of(cond: Condition, rows: Tensor) -> Condition:
    """Return the conditions of some samples; the mapping itself where these are all."""
    if cond is None or all(len(v) == len(rows) for v in cond.values()):
        return cond
    return {k: v[rows.to(v.device)] for k, v in cond.items()}
