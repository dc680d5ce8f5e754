r"""Linear multistep methods, with or without a corrector, with exact integrating factors.

An interval from t_i down to t_{i+1} is a linear part, exact, and the integral of the prediction against a measure
(``solvers/forms.py``). P is replaced by the polynomial through some of its values in a chosen variable, and the
integral becomes weights of those values (``solvers/rules.py``):

    predict   x~_{i+1} = a_i x_i + w_0 P_i + w_1 P_{i-1} + ...                   + b_i z_i      (Adams-Bashforth)
    correct   x_{i+1}  = a_i x_i + c_0 P~_{i+1} + c_1 P_i + c_2 P_{i-1} + ...    + b_i z_i      (Adams-Moulton)

P~_{i+1} is the prediction at the predicted state. It serves as P_{i+1} of the next step too, so that a corrector costs
no evaluation: row i + 1 makes this call, moves the anchor to the corrected x_{i+1} with the same draw z_i, and predicts
x~_{i+2} from there. The last state is not corrected. A predictor of order p with a corrector that reads c predictions,
the new one among them, is of order min(p + 1, c).

eta may change from interval to interval. Every member of the reverse family has the same marginals, so that eta held
constant on each interval, at its value where the interval starts, adds no error to them.

A step into sigma = 0 is of first order in the data and noise predictions, where higher weights diverge. A step out of
alpha = 0 is too; it is not corrected, and leaves no history where the variable is infinite. The noise prediction has
no such step.

Source: Lu et al. 2022, "DPM-Solver++"; Zhang and Chen 2023, "Fast sampling of diffusion models with exponential
integrator"; Zhao et al. 2023, "UniPC"; Xue et al. 2023, "SA-Solver".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.errors import ConfigError, DomainError, check_integer, check_number, unknown
from scoresde.grids import Grid, log_snr
from scoresde.readout import Point
from scoresde.sde import GaussianSDE
from scoresde.solvers.base import Solver
from scoresde.solvers.forms import FORMS, Form
from scoresde.solvers.rules import COEFFICIENTS, Coefficients, Integral
from scoresde.solvers.variables import VARIABLES, Variable
from scoresde.tableau import Increment, Knot, Order, Row, Tableau

__all__ = ["Eta", "multistep"]

Eta = float | Callable[[float], float]
LARGEST = 10.0
# Uniform in log_snr, the error of three data predictions rises with an evaluation between 8 and 11 on the exact
# mixtures of ``benchmarks/quality.py``, up to twofold. With most steps where the modes part and then sharpen it falls.
GRID = log_snr(centre=3.0, width=4.5)


def multistep(
    *,
    prediction: str = "data",
    variable: str = "log_snr",
    order: int = 2,
    corrector: int = 0,
    eta: Eta = 0.0,
    coefficients: str = "exact",
    lower_order_final: bool = False,
    first_alone: bool = False,
    grid: Grid | None = None,
    name: str | None = None,
    paper: str = "Lu et al. 2022",
) -> Solver:
    """Return the linear multistep method of these settings; the module's docstring has the formulas.

    Args:
        prediction: what is extrapolated: "data", "noise" or "flow" (the rectified path's velocity, eta = 0 only).
        variable: in which the polynomial is: "log_snr", "nu", "rectified" or "t". The logarithm of nu is -log_snr/2 and
            a polynomial in one is a polynomial in the other, so that it needs no name of its own.
        order: number of predictions that a step uses, 1 to 4; the first steps use what there is.
        corrector: number of predictions that the correction of a step uses, the one at the new point among them: 0 for
            no corrector, else up to 5. It costs no evaluation.
        eta: the reverse family's index, >= 0, or a function t -> eta, read where an interval starts.
        coefficients: "exact", or a publication's rounding: "midpoint" (DPM-Solver++(2M)), "dpmpp_3m", "dpmpp_3m_sde",
            "bh1" and "bh2" (UniPC), "constant" (iPNDM); ``solvers/rules.py`` has the formulas.
        lower_order_final: let a step with k steps to go, itself among them, use at most k predictions (and its
            corrector k + 1), as some publications do.
        first_alone: let the first prediction serve its own step alone. Where alpha is near 0 a network that predicts
            the noise with error e predicts the data and the flow with error e sigma/alpha, which later steps would
            extrapolate.
        grid: native time grid; ``grids.log_snr(centre=3, width=4.5)`` by default, on which every setting of the
            library's has a smaller error in few steps than on the papers' grid, uniform in log_snr.
        name: name of the table.
        paper: where the setting was published.

    Raises:
        ConfigError: unknown names or settings that do not go together. DomainError: order, corrector or eta out of
            range; from the table, a noise prediction out of alpha = 0.
    """
    if prediction not in FORMS:
        raise unknown("prediction of a multistep method", prediction, FORMS)
    if variable not in VARIABLES:
        raise unknown("variable", variable, VARIABLES)
    if coefficients not in COEFFICIENTS:
        raise unknown("coefficients", coefficients, COEFFICIENTS)
    check_integer(order, "order", 1, 4)
    check_integer(corrector, "corrector", 0, 5)
    rule = COEFFICIENTS[coefficients]
    if rule.order not in (None, order) or (rule.in_log_snr and variable != "log_snr"):
        needed = "" if rule.order is None else f"order={rule.order} and "
        got = f"order={order} and variable={variable!r}"
        raise ConfigError(f"coefficients={coefficients!r} need {needed}variable='log_snr', got {got}")
    if corrector and not rule.corrects:
        raise ConfigError(f"coefficients={coefficients!r} have no corrector; take 'exact', 'bh1' or 'bh2'")
    random = callable(eta) or check_number(eta, "eta", 0.0) > 0
    if prediction == "flow" and random:
        raise ConfigError("the flow prediction has no stochastic form; use prediction='data' with eta > 0")
    plan = _Plan(
        name or _title(prediction, variable, order, corrector, eta, coefficients),
        prediction,
        VARIABLES[variable],
        rule,
        order,
        corrector,
        eta,
        lower_order_final,
        first_alone,
        _declared(rule, order, corrector, random),
    )
    # Only the flow's polynomial stays bounded into sigma = 0, in a variable that is finite there.
    closes = prediction == "flow" and variable != "log_snr"
    return Solver(name or "multistep", plan.build, grid or GRID, 1, plan.declared, paper, closes)


def _title(prediction: str, variable: str, order: int, corrector: int, eta: Eta, coefficients: str) -> str:
    index = "eta(t)" if callable(eta) else f"{eta:g}"
    parts = [prediction, variable, f"order {order}", f"eta = {index}"]
    parts += [f"corrector {corrector}"] if corrector else []
    parts += [coefficients] if coefficients != "exact" else []
    return f"multistep ({', '.join(parts)})"


def _declared(rule: Coefficients, order: int, corrector: int, random: bool) -> Order:
    """Return the declared orders."""
    reached = min(order + 1, corrector) if corrector else order
    if random:
        return Order(strong=1.0, weak=min(float(reached), 2.0))
    return Order(deterministic=min(float(reached), rule.limit))


@dataclass(frozen=True)
class _Plan:
    """The settings of one method, checked; ``build`` makes its tables."""

    name: str
    prediction: str
    clock: Variable
    rule: Coefficients
    order: int
    corrector: int
    eta: Eta
    lower_order_final: bool
    first_alone: bool
    declared: Order

    @property
    def form(self) -> Form:
        """The exact solution that the prediction stands in."""
        return FORMS[self.prediction]

    def build(self, sde: GaussianSDE, times: Tensor) -> Tableau:
        """Return the table on decreasing times."""
        points = sde.at(times)
        knots, lam = Knot.of(points), 0.5 * points.log_snr
        late, early = points[:-1], points[1:]
        if self.prediction == "noise" and len(knots) > 1 and knots[0].alpha == 0:
            raise DomainError(
                f"at t = {knots[0].t:g} alpha is 0 and the noise prediction of {self.name!r} says nothing of the data "
                "there; start below it with times=, or take a data or flow prediction"
            )
        eta = self._eta(times[:-1])
        on_x, on_noise = self.form.linear(late, early, lam[1:] - lam[:-1], eta)
        predict, correct = self._counts(knots, self.clock.of_lambda(sde, lam[:1]))
        if len(predict) > 1 and knots[-1].sigma == 0:
            predict[-1] = min(predict[-1], _reach(self.clock.of_lambda(sde, lam[-3:])))
        steps = (sde, early, lam, eta)
        predicted = self._weights(*steps, predict, 0)
        for i, weight in zip((0, -1), self._ends(late, early), strict=True):
            if weight is not None:
                predicted[i] = [weight]
        rows = _rows(
            knots,
            (on_x.tolist(), on_noise.tolist()),
            (predicted, self._weights(*steps, correct, 1)),
            self.form.power(eta).tolist(),
        )
        prior_std = float(sde.prior_std(times[0]))
        return Tableau(self.name, self.prediction, rows, knots[0], knots[-1], prior_std, order=self.declared)

    def _eta(self, times: Tensor) -> Tensor:
        """Return eta on each interval."""
        if not callable(self.eta):
            return torch.full_like(times, self.eta)
        values = [check_number(self.eta(t), f"eta at t = {t:g}", 0.0) for t in times.tolist()]
        return torch.tensor(values, dtype=torch.float64)

    def _ends(self, late: Point, early: Point) -> tuple[float | None, float | None]:
        """Return the weights of P in a first step out of alpha = 0 and in a last one into sigma = 0."""
        if self.form.closing is None or len(late.t) == 0:
            return None, None
        weights = self.form.closing(late, early)
        opens, closes = bool(late.alpha[0] == 0), bool(early.sigma[-1] == 0)
        return (float(weights[0]) if opens else None), (float(weights[-1]) if closes else None)

    def _counts(self, knots: Sequence[Knot], first: Tensor) -> tuple[list[int], list[int]]:
        """Return how many predictions each interval's predictor and corrector use; 0 where there is none of it."""
        n, infinite = len(knots) - 1, self.form.closing is not None
        # A first prediction where the variable is infinite serves its own step alone.
        skip = int(self.first_alone or not bool(torch.isfinite(first).all()) or (infinite and knots[0].alpha == 0))
        predict, correct = [], []
        for i in range(n):
            left = n - i if self.lower_order_final else n + self.order
            opens, closes = i < skip, infinite and i == n - 1 and knots[-1].sigma == 0
            predict.append(max(1, min(self.order, i + 1 - skip, left)))
            correct.append(0 if opens or i == n - 1 else min(self.corrector, i + 2 - skip, left + 1))
            if closes or (opens and infinite):
                predict[-1] = 0
        return predict, correct

    def _weights(
        self, sde: GaussianSDE, early: Point, lam: Tensor, eta: Tensor, counts: list[int], lead: int
    ) -> list[list[float]]:
        """Return each interval's weights of ``counts`` predictions, the newest ``lead`` knots after its start."""
        weights: list[list[float]] = [[] for _ in counts]
        for used in sorted({*counts} - {0}):
            chosen = [i for i, count in enumerate(counts) if count == used]
            index = torch.tensor(chosen)
            start, end = lam[index], lam[index + 1]
            history = torch.stack([lam[index + lead - k] for k in range(used)], 1)
            values, measure = self.form.measure(early[index], start, end, eta[index])
            of_lambda = self.clock.of_lambda
            step = Integral(
                of_lambda(sde, history), of_lambda(sde, values), measure, start, end, self.form.edge(early, eta)[index]
            )
            for i, found in zip(chosen, self.rule.weights(step).tolist(), strict=True):
                weights[i] = found
        return weights


def _reach(last: Tensor) -> int:
    """Return how many predictions a step into sigma = 0 may use, from the variable at the last three knots.

    With k of them the weights grow as ratio^(k - 1), the ratio of the step's length to that of the one before. On a
    grid of many steps the one into sigma = 0 is by far the longest, and would multiply a network's error by thousands.
    """
    before, length = last.diff().abs().tolist()
    return next((k for k in (4, 3, 2) if (length / before) ** (k - 1) <= LARGEST), 1)


def _rows(
    knots: Sequence[Knot],
    linear: tuple[Sequence[float], Sequence[float]],
    integrals: tuple[Sequence[list[float]], Sequence[list[float]]],
    powers: Sequence[float],
) -> tuple[Row, ...]:
    """Return the rows of predicted and, where there are weights for it, corrected steps."""
    rows: list[Row] = []
    (on_x, on_noise), (predicted, corrected) = linear, integrals
    # What a step starts from, as weights of [anchor, predictions newest first] and of the newest earlier draw.
    base, base_noise = [1.0], 0.0
    for i in range(len(on_x)):
        state = _added([on_x[i] * w for w in base], [0.0, *predicted[i]])
        drawn, again = on_noise[i], on_x[i] * base_noise
        rows.append(
            Row(
                at=knots[i],
                state=tuple(state),
                anchor=tuple(base) if corrected[i] else None,
                noise=(drawn, again) if again else (drawn,) if drawn else (),
                anchor_noise=(0.0, base_noise) if corrected[i] and base_noise else (),
                increment=Increment(knots[i].t, knots[i + 1].t, powers[i]) if drawn else None,
            )
        )
        base, base_noise = ([on_x[i], *corrected[i]], drawn) if corrected[i] else ([1.0], 0.0)
    return tuple(rows)


def _added(one: list[float], two: list[float]) -> list[float]:
    """Add weights of which one may have more."""
    size = max(len(one), len(two))
    one, two = (w + [0.0] * (size - len(w)) for w in (one, two))
    return [a + b for a, b in zip(one, two, strict=True)]
