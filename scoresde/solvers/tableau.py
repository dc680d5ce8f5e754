r"""A sampler as a table of numbers.

For a Gaussian diffusion and a fixed grid, a sampler is linear in the states, in the predictions made so far and in the
noise, with coefficients that do not depend on the data. A ``Tableau`` is those numbers; one executor runs them all.

Executing a row: the model sees the current state x at ``row.at`` and its prediction P_0 joins the earlier ones
P_1, P_2, ... (newest first); a draw z_0 joins the earlier draws where the row gives the newest a weight; then

    x      <- state[0] y + state[1] P_0 + state[2] P_1 + ...   + noise[0] z_0 + noise[1] z_1 + ...
    y      <- the same with the weights ``anchor`` and ``anchor_noise``, or the new x where ``anchor`` is None.

y is the *anchor*: the state that a step starts from. A one-stage method has y = x throughout; stages keep y still while
x moves; a corrector moves y by itself.

*Learned variance.* Where a row has a ``spread`` (small, large), the network says for each coordinate by its v where
between the two the weight of the fresh draw lies,

    noise[0] z_0   is replaced by   small^(1 - v) large^v z_0,     noise[0] = small,

the one coefficient that depends on the data. At a constant v the row is an ordinary one: ``at_fraction``.

With Gaussian data N(m, c) the prediction is affine in x, so the law of the output is a recursion on the rows and is
exact: ``affine_map`` and ``law``, whose recursion is in ``solvers/law.py``.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch

from scoresde.diffusions.point import Point
from scoresde.diffusions.sde import GaussianSDE
from scoresde.diffusions.targets import TARGETS, target, view
from scoresde.errors.kinds import ConfigError, DomainError, ShapeError, printable
from scoresde.errors.names import check_choice
from scoresde.errors.tensors import check_numbers
from scoresde.errors.values import check_number
from scoresde.solvers.documents import parse, read_fields
from scoresde.solvers.law import fix_variance, map_errors, map_rows
from scoresde.solvers.rows import CLEAN, Knot, Order, Row
from scoresde.solvers.schema import check_head, check_rows
from scoresde.solvers.text import write_html, write_lines

__all__ = ["Tableau"]


@dataclass(frozen=True)
class Tableau:
    """A sampler on a grid, as data.

    Args:
        name: what it is, for people.
        prediction: which prediction the weights multiply: a kind of ``diffusions.targets.TARGETS`` that needs no rates.
        rows: one for each call of the model.
        start: where the start state lives.
        end: where the last state lives.
        prior_std: standard deviation of the zero-mean start state, where the data's moments are unknown.
        lift: (scale, weight) of what happens to the start state x before the first call, which sees scale * x +
            weight * z: a jump upwards in noise, as churn makes at the top; (1, 0) for none.
        order: declared orders.

    Raises:
        ConfigError: a field that is not what ``solvers/schema.py`` says, as a weight of a prediction that does not
            exist; the error names the field. DomainError: a weight that is not finite: the method has no such step.
    """

    name: str
    prediction: str
    rows: tuple[Row, ...]
    start: Knot
    end: Knot
    prior_std: float
    lift: tuple[float, float] = (1.0, 0.0)
    order: Order = field(default_factory=Order)

    def __post_init__(self) -> None:
        kinds = [kind for kind in TARGETS if kind != "velocity"]
        check_choice("prediction of a table", self.prediction, kinds, parameter="prediction")
        check_head(
            self.name, start=self.start, end=self.end, prior_std=self.prior_std, lift=self.lift, order=self.order
        )
        check_rows(self.rows, self.name, drawn=int(self.lift[1] != 0.0))

    @classmethod
    def between(
        cls,
        sde: GaussianSDE,
        points: Point,
        rows: Iterable[Row],
        *,
        name: str,
        prediction: str,
        lift: tuple[float, float] = (1.0, 0.0),
        order: Order | None = None,
    ) -> Tableau:
        """Return the table of these rows on a path from the first to the last of ``points``, (n,).

        The start state is the SDE's prior at the first one; the other arguments are the table's.
        """
        start, end = Knot.of(points[:1])[0], Knot.of(points[-1:])[0]
        std = float(sde.prior_std(points.t[0]))
        return cls(name, prediction, tuple(rows), start, end, std, lift, order or Order())

    @property
    def nfe(self) -> int:
        """Number of evaluations of the model."""
        return len(self.rows)

    @property
    def memory(self) -> int:
        """Number of earlier predictions that any row uses."""
        return max((len(w) - 2 for row in self.rows for w in (row.state, row.anchor or ())), default=0)

    @property
    def stochastic(self) -> bool:
        """Whether any noise enters after the start state."""
        return self.lift[1] != 0.0 or any(row.draws for row in self.rows)

    @property
    def spread(self) -> bool:
        """Whether any row's noise is the model's to choose, by a learned variance."""
        return any(row.spread is not None for row in self.rows)

    @property
    def times(self) -> tuple[float, ...]:
        """Start time, the times of the calls and the end time, without repeats."""
        every = [self.start.t, *(row.at.t for row in self.rows), self.end.t]
        return tuple(t for i, t in enumerate(every) if i == 0 or t != every[i - 1])

    def __hash__(self) -> int:
        """Hash what tells tables apart at a glance, so that a long table is a cheap key."""
        return hash((self.name, self.prediction, len(self.rows), self.start, self.end))

    @functools.cached_property
    def _numbers(self) -> np.ndarray:
        return np.array([[k.t, k.alpha, k.sigma, k.log_snr] for k in (row.at for row in self.rows)]).reshape(-1, 4)

    @property
    def points(self) -> Point:
        """The rows' calls as one Point with fields of shape (nfe,)."""
        # What is kept is no tensor: one that is made under a transform of torch.func does not outlive it.
        t, alpha, sigma, log_snr = torch.from_numpy(self._numbers.T.copy())
        return Point(t, alpha, sigma, log_snr)

    def denoised(self) -> Tableau:
        """Append the jump from the last time to clean data: x <- the data prediction, at one more call."""
        if self.end.sigma == 0:
            return self
        here = self.end.point()
        a, b = view(target(self.prediction, here), target("data", here), here, f"the last step of {self.name!r}")
        last = Row(self.end, (float(a), float(b)))
        return replace(self, rows=(*self.rows, last), end=CLEAN)

    def without_last_noise(self) -> Tableau:
        """Drop what was drawn in the last step from the last row: the mean of the last step."""
        if not self.rows:
            return self
        last, own = self.rows[-1], 1
        for row in self.rows[-2::-1]:
            if row.anchor != (1.0,):
                break
            own += row.draws  # a stage of the same step
        noise = (*(0.0 for _ in last.noise[:own]), *last.noise[own:])
        mean = replace(last, noise=noise if any(noise) else (), increment=None, spread=None)
        return replace(self, rows=(*self.rows[:-1], mean))

    def at_fraction(self, fraction: float) -> Tableau:
        """Return the table whose learned variances stand at v = ``fraction`` everywhere: 0 is small, 1 is large.

        Raises DTypeError, DomainError where the fraction is no finite number.
        """
        v = check_number(fraction, "fraction")
        return replace(self, rows=tuple(fix_variance(row, v) for row in self.rows))

    def affine_map(self, mean: float = 0.0, variance: float = 1.0) -> np.ndarray:
        """Return the output's weights on [1, start state, draw 1, draw 2, ...] for exact predictions of Gaussian data.

        Shape (2 + draws,) for data N(mean, variance). The first draw is the lift's, where it has a weight.

        Raises ConfigError where a row has a spread: its noise depends on the network; ``at_fraction`` gives tables
        that have a law.
        """
        if self.spread:
            raise ConfigError(
                f"the noise of {self.name!r} depends on the network; take its table.at_fraction(v), e.g. v = 0 for "
                "the small and 1 for the large variance"
            )
        mean, variance = check_number(mean, "mean"), check_number(variance, "variance", 0.0)
        return map_rows(self.rows, self.points, self.prediction, self.lift, mean, variance)

    def law(
        self, mean: float = 0.0, variance: float = 1.0, start: tuple[float, float] | None = None
    ) -> tuple[float, float]:
        """Return the exact mean and variance of the output for scalar data N(mean, variance) and exact predictions.

        Args:
            mean: the data's mean.
            variance: the data's variance.
            start: mean and variance of the start state; by default those of x at the start of the exact process.
        """
        weights = self.affine_map(mean, variance)
        begin = self.start
        if start is None:
            m, v = begin.alpha * mean, begin.alpha**2 * variance + begin.sigma**2
        else:
            given = check_numbers(start, "start")
            if given.shape != (2,):
                raise ShapeError(f"start must be a mean and a variance, got shape {tuple(given.shape)}")
            m, v = check_number(given[0], "start[0]"), check_number(given[1], "start[1]", 0.0)
        return float(weights[0] + weights[1] * m), float(weights[1] ** 2 * v + (weights[2:] ** 2).sum())

    def error_weights(self, prediction: str = "data", variance: float = 1.0) -> np.ndarray:
        """Return what the output changes by for each unit of error in each call's prediction, (nfe,).

        The exact predictions for scalar data N(m, variance), whatever m, are off by e_i in call i; the output is then
        off by the sum of w_i e_i, exactly: a later call sees the state that the error has changed.

        Args:
            prediction: which prediction is off, a kind of ``diffusions.targets.TARGETS`` that needs no rates.
            variance: the data's.

        Raises:
            ConfigError: an unknown prediction. DomainError: one that has no finite view at a call, as one of the noise
            where alpha = 0.
        """
        variance = check_number(variance, "variance", 0.0, open_low=True)
        return map_errors(self.rows, self.points, self.prediction, prediction, variance)

    def amplification(self, prediction: str = "data", variance: float = 1.0) -> float:
        """Return what the output changes by for each unit of a constant error in the model's predictions.

        The magnitude of the sum of ``error_weights``. With data of standard deviation s, the exact probability flow
        down to nu = sigma/alpha makes asinh(s/nu) of an error in the data prediction, and the exact reverse SDE
        log(1 + (s/nu)^2); a table that makes many times more multiplies the error of some call by 1/sigma.
        """
        return abs(float(self.error_weights(prediction, variance).sum()))

    def to_json(self) -> str:
        """Return the table as JSON text; ``from_json`` gives back an equal table, to the last bit."""
        return json.dumps({"format": 1, **asdict(self)}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Tableau:
        """Read a table written by ``to_json``.

        Raises:
            ConfigError: text that is no such table, or of a newer format; it names the field, e.g. "rows[3].state[1]".
        """
        try:
            return cls(**read_fields(parse(text)))
        except DomainError as error:
            raise ConfigError(str(error), parameter=error.parameter, got=error.got, allowed=error.allowed) from error

    def __repr__(self) -> str:
        """Say in one line what the table is."""
        kind = "stochastic" if self.stochastic else "deterministic"
        span = f"t = {self.start.t:g} to {self.end.t:g}"
        cost = f"{self.nfe} evaluations, {span}, {kind}"
        return f"<Tableau {printable(self.name)}: {cost}, in the {self.prediction} prediction>"

    def __str__(self) -> str:
        """Print the rows: time, log_snr and the weights; the middle of a long table is left out."""
        return "\n".join([repr(self), *write_lines(self.rows)])

    def _repr_html_(self) -> str:
        """Show the same in a notebook."""
        return write_html(repr(self).strip("<>"), self.rows)
