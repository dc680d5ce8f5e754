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
exact: ``affine_map`` and ``law``.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch

from scoresde.diffusions.point import Point
from scoresde.diffusions.targets import TARGETS, target, view
from scoresde.errors import ConfigError, DomainError, DTypeError, check_number, unknown
from scoresde.solvers.rows import CLEAN, Increment, Knot, Order, Row, Weights

__all__ = ["Tableau"]

SHOWN = 10


@dataclass(frozen=True)
class Tableau:
    """A sampler on a grid, as data.

    Args:
        name: what it is, for people.
        prediction: which prediction the weights multiply: a kind of ``readout.TARGETS`` that needs no rates.
        rows: one for each call of the model.
        start: where the start state lives.
        end: where the last state lives.
        prior_std: standard deviation of the zero-mean start state, where the data's moments are unknown.
        lift: (scale, weight): the first call sees scale * x + weight * z (churn at the top).
        order: declared orders.

    Raises:
        ConfigError, DTypeError, DomainError: weights that name predictions or draws which do not exist, or are no
            finite numbers.
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
        """Check that every weight is finite and multiplies something that exists."""
        if self.prediction not in TARGETS or self.prediction == "velocity":
            raise unknown("prediction of a table", self.prediction, [k for k in TARGETS if k != "velocity"])
        if not all(map(math.isfinite, (*self.lift, self.prior_std))):
            raise DomainError(f"lift and prior_std must be finite, got {self.lift} and {self.prior_std}")
        held, drawn = 0, int(self.lift[1] != 0.0)
        for i, row in enumerate(self.rows):
            held = 1 if row.restart else held + 1
            draws = row.draws
            drawn += draws
            past = drawn + (not draws)
            anchor = row.anchor or ()
            # A sum is finite only where every term is: one look at a sound row, which nearly every row is.
            try:
                total = sum((row.at.t, row.at.alpha, row.at.sigma, *row.state, *anchor, *row.noise, *row.anchor_noise))
            except TypeError as error:
                raise DTypeError(f"row {i} of {self.name!r} holds something that is no number: {row}") from error
            longest = max(len(row.state), len(anchor)) - 1, max(len(row.noise), len(row.anchor_noise))
            if not row.state or not math.isfinite(total) or longest[0] > held or longest[1] > past:
                self._check_row(i, row, held, past)
            if row.anchor_noise and row.anchor is None:
                raise ConfigError(f"row {i} of {self.name!r} gives noise to an anchor that follows the state")
        if self.spread:
            for i, row in enumerate(self.rows):
                self._check_spread(i, row)

    def _check_row(self, i: int, row: Row, held: int, past: int) -> None:
        """Check a row against the predictions and the draws that there are."""
        if not row.state:
            raise ConfigError(f"row {i} of {self.name!r} has no weights of the state; (1.0,) leaves it as it is")
        if not all(map(math.isfinite, (row.at.t, row.at.alpha, row.at.sigma))):
            raise DomainError(f"row {i} of {self.name!r} is called at {row.at}, which is not finite")
        for name, weights, limit in (
            ("state", row.state, held + 1),
            ("anchor", row.anchor or (), held + 1),
            ("noise", row.noise, past),
            ("anchor_noise", row.anchor_noise, past),
        ):
            if not all(map(math.isfinite, weights)):
                raise DomainError(
                    f"row {i} of {self.name!r} (t = {row.at.t:g}) has {name} weights {weights}, not all finite: "
                    "the method has no such step here; move the grid's ends or take another solver"
                )
            if len(weights) > limit:
                raise ConfigError(f"row {i} of {self.name!r} weighs {len(weights)} {name} terms, but {limit} exist")

    def _check_spread(self, i: int, row: Row) -> None:
        """Check a row's spread, and that no row names a draw again whose weight is the model's to choose."""
        low_high = row.spread or (1.0, 1.0)
        sound = all(math.isfinite(w) and w > 0 for w in low_high) and row.noise[:1] == low_high[:1]
        if row.spread is not None and (not sound or row.anchor is not None):
            raise ConfigError(
                f"row {i} of {self.name!r} has the spread {row.spread}, the noise weights {row.noise} and the anchor "
                f"{row.anchor}; a spread is (small, large), both positive and finite, noise[0] is small, and the new "
                "state is the anchor"
            )
        for again in (row.noise[1:], row.anchor_noise[1:]):
            if any(again):
                earlier = [before for before in self.rows[:i] if before.draws][::-1]
                if any(w and before.spread is not None for w, before in zip(again, earlier, strict=False)):
                    raise ConfigError(f"row {i} of {self.name!r} uses a draw again that an earlier row has spread")

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
    def points(self) -> Point:
        """The rows' calls as one Point with fields of shape (nfe,)."""
        knots = [row.at for row in self.rows]
        t, alpha, sigma, log_snr = (
            torch.tensor([getattr(k, name) for k in knots], dtype=torch.float64)
            for name in ("t", "alpha", "sigma", "log_snr")
        )
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
        return replace(self, rows=tuple(_at_fraction(row, v) for row in self.rows))

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
        draws = sum(row.draws for row in self.rows) + (self.lift[1] != 0.0)
        unit = np.eye(2 + draws)
        x = self.lift[0] * unit[1]
        z: list[np.ndarray] = []
        if self.lift[1] != 0.0:
            x = x + self.lift[1] * unit[2]
            z.append(unit[2])
        y, past = x, list[np.ndarray]()
        for row in self.rows:
            past = [self._gaussian_prediction(row.at, x, unit[0], mean, variance), *([] if row.restart else past)]
            if row.draws:
                z.insert(0, unit[2 + len(z)])
            terms, noises = [y, *past], z if row.draws else [np.zeros_like(x), *z]
            x, y = (
                sum((w * v for w, v in zip(weights, terms, strict=False)), np.zeros_like(x))
                + sum((w * v for w, v in zip(noise, noises, strict=False)), np.zeros_like(x))
                for weights, noise in (
                    (row.state, row.noise),
                    (row.state, row.noise) if row.anchor is None else (row.anchor, row.anchor_noise),
                )
            )
        return np.asarray(x)

    def _gaussian_prediction(
        self, at: Knot, x: np.ndarray, one: np.ndarray, mean: float, variance: float
    ) -> np.ndarray:
        """Return the exact prediction for data N(mean, variance) of the state with weights ``x``."""
        total = at.alpha**2 * variance + at.sigma**2
        centred = x - at.alpha * mean * one
        data = mean * one + at.alpha * variance / total * centred
        noise = at.sigma / total * centred
        p, q = target(self.prediction, at.point())
        return float(p) * data + float(q) * noise

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
        m, v = (begin.alpha * mean, begin.alpha**2 * variance + begin.sigma**2) if start is None else start
        return float(weights[0] + weights[1] * m), float(weights[1] ** 2 * v + (weights[2:] ** 2).sum())

    def to_json(self) -> str:
        """Return the table as JSON text; ``from_json`` gives back an equal table, to the last bit."""
        return json.dumps({"format": 1, **asdict(self)}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Tableau:
        """Read a table written by ``to_json``.

        Raises:
            ConfigError: text that is no such table, or of a newer format.
        """
        try:
            got = json.loads(text)
            if got.pop("format") != 1:
                raise ConfigError("this table was written by a newer version; upgrade scoresde")
            if not isinstance(got["name"], str):
                raise TypeError(f"its name is {got['name']!r}")
            scale, weight = got.pop("lift")
            rows = tuple(_row(entry) for entry in got.pop("rows"))
            return cls(
                rows=rows,
                start=Knot(**got.pop("start")),
                end=Knot(**got.pop("end")),
                lift=(scale, weight),
                order=Order(**got.pop("order")),
                **got,
            )
        except (ConfigError, DomainError):
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ConfigError(f"this is no saved table: {error}; make one with Tableau.to_json()") from error

    def __repr__(self) -> str:
        """Say in one line what the table is."""
        kind = "stochastic" if self.stochastic else "deterministic"
        span = f"t = {self.start.t:g} to {self.end.t:g}"
        return f"<Tableau {self.name}: {self.nfe} evaluations, {span}, {kind}, in the {self.prediction} prediction>"

    def __str__(self) -> str:
        """Print the rows: time, log_snr and the weights; the middle of a long table is left out."""
        lines = [repr(self), f"{'t':>12} {'log_snr':>10}  weights of [anchor, predictions newest first] + noise"]
        for i, row in enumerate(self.rows):
            if len(self.rows) > 2 * SHOWN and SHOWN <= i < len(self.rows) - SHOWN:
                if i == SHOWN:
                    lines.append(f"{'...':>12}  {len(self.rows) - 2 * SHOWN} more rows")
                continue
            parts = [f"x <- [{_join(row.state)}]"]
            if row.spread is not None:
                parts.append(f"+ [{row.spread[0]:.6g} to {row.spread[1]:.6g}] z")
            elif any(row.noise):
                parts.append(f"+ [{_join(row.noise)}] z")
            if row.anchor is not None:
                parts.append(f"; y <- [{_join(row.anchor)}]")
            if any(row.anchor_noise):
                parts.append(f"+ [{_join(row.anchor_noise)}] z")
            lines.append(f"{row.at.t:>12.6g} {row.at.log_snr:>10.4g}  {' '.join(parts)}")
        return "\n".join(lines)


def _at_fraction(row: Row, v: float) -> Row:
    """Return a row whose learned variance stands at v; exactly small at 0 and large at 1."""
    if row.spread is None:
        return row
    small, large = row.spread
    return replace(row, noise=(small ** (1 - v) * large**v, *row.noise[1:]), spread=None)


def _join(weights: Weights) -> str:
    return ", ".join(f"{w:.6g}" for w in weights)


def _row(entry: dict[str, object]) -> Row:
    """Rebuild a row from JSON, whose lists were tuples."""
    got = dict(entry)
    at, increment = got.pop("at"), got.pop("increment")
    if not isinstance(at, dict) or not (increment is None or isinstance(increment, dict)):
        raise TypeError("a row's point is not an object")
    tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in got.items()}
    part = None
    if increment is not None:
        part = Increment(**{**increment, "shape": tuple(increment.get("shape", (1.0,)))})
    return Row(at=Knot(**at), increment=part, **tuples)  # type: ignore[arg-type]
