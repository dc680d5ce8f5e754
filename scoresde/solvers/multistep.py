r"""Linear multistep methods, with or without a corrector, with exact integrating factors.

An interval from t_i down to t_{i+1} is a linear part, exact, and the integral of the prediction against a measure
(``solvers/forms.py``). P is replaced by the polynomial through some of its values in a chosen variable, and the
integral becomes weights of those values (``solvers/quadrature.py``):

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

Source: Lu et al. 2022, "DPM-Solver++", arXiv:2211.01095; Zhang and Chen 2023, "Fast sampling of diffusion models with
exponential integrator", arXiv:2204.13902; Zhao et al. 2023, "UniPC", arXiv:2302.04867; Xue et al. 2023, "SA-Solver",
arXiv:2309.05019.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.diffusions.point import Point
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.kinds import ConfigError, DomainError
from scoresde.errors.names import check_choice
from scoresde.errors.values import check_integer, check_number
from scoresde.solvers.clocks import VARIABLES, VariableName
from scoresde.solvers.forms import FORMS, Form, FormName
from scoresde.solvers.grids import Grid, log_snr
from scoresde.solvers.quadrature import COEFFICIENTS, CoefficientsName, Integral
from scoresde.solvers.rows import Increment, Knot, Order, Row
from scoresde.solvers.solver import Method, Solver
from scoresde.solvers.tableau import Tableau

Eta = float | Callable[[float], float]
LARGEST = 10.0
# Uniform in log_snr, the error of three data predictions rises with an evaluation between 8 and 11 on the exact
# mixtures of ``benchmarks/quality.py``, up to twofold. With most steps where the modes part and then sharpen it falls.
GRID = log_snr(centre=3.0, width=4.5)


def multistep(
    *,
    prediction: FormName = "data",
    variable: VariableName = "log_snr",
    order: int = 2,
    corrector: int = 0,
    eta: Eta = 0.0,
    coefficients: CoefficientsName = "exact",
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
            "bh1" and "bh2" (UniPC), "constant" (iPNDM); ``solvers/quadrature.py`` has the formulas.
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
    check_choice("prediction of a multistep method", prediction, FORMS)
    check_choice("variable", variable, VARIABLES)
    check_choice("coefficients", coefficients, COEFFICIENTS)
    order = check_integer(order, "order", 1, 4)
    corrector = check_integer(corrector, "corrector", 0, 5)
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
    flags = lower_order_final, first_alone
    build = Multistep("" if name is None else name, prediction, variable, order, corrector, eta, coefficients, *flags)
    # Only the flow's polynomial stays bounded into sigma = 0, in a variable that is finite there.
    closes = prediction == "flow" and variable != "log_snr"
    return Solver(
        "multistep" if name is None else name, build, GRID if grid is None else grid, 1, build.declared, paper, closes
    )


@dataclass(frozen=True)
class Multistep(Method):
    """The settings of one method, checked by ``multistep``, which can also say the rows of legs of a path."""

    name: str
    prediction: FormName
    variable: VariableName
    order: int
    corrector: int
    eta: Eta
    coefficients: CoefficientsName
    lower_order_final: bool
    first_alone: bool

    def __str__(self) -> str:
        index = "eta(t)" if callable(self.eta) else f"{self.eta:g}"
        parts = [self.prediction, self.variable, f"order {self.order}", f"eta = {index}"]
        parts += [f"corrector {self.corrector}"] if self.corrector else []
        parts += [self.coefficients] if self.coefficients != "exact" else []
        return ", ".join(parts)

    @property
    def declared(self) -> Order:
        """The orders that a corrector, noise and rounded coefficients leave."""
        reached = float(min(self.order + 1, self.corrector) if self.corrector else self.order)
        if callable(self.eta) or self.eta > 0:
            return Order(strong=1.0, weak=min(reached, 2.0))
        return Order(deterministic=min(reached, COEFFICIENTS[self.coefficients].limit))

    @property
    def title(self) -> str:
        """The name of its tables."""
        return self.name or f"multistep ({self})"

    @property
    def form(self) -> Form:
        """The exact solution that the prediction stands in."""
        return FORMS[self.prediction]

    def choose_prediction(self, sde: GaussianSDE) -> FormName:
        """Return the prediction of its tables."""
        return self.prediction

    def __call__(self, sde: GaussianSDE, times: Tensor) -> Tableau:
        """Return the table on decreasing times."""
        points = sde.at(times)
        late, early = points[:-1], points[1:]
        rows = itertools.chain.from_iterable(self.write_legs(sde, late, early, [0][: len(late.t)]))
        return Tableau.between(sde, points, rows, name=self.title, prediction=self.prediction, order=self.declared)

    def write_legs(self, sde: GaussianSDE, late: Point, early: Point, cuts: Sequence[int]) -> list[list[Row]]:
        """Return the rows of the steps from ``late`` to ``early``, with a list for each leg that starts at ``cuts``.

        A leg starts with no history. DomainError where one starts at alpha = 0 and the prediction is of the noise.
        """
        if self.prediction == "noise" and bool((late.alpha == 0).any()):
            raise DomainError(
                f"at t = {float(late.t[late.alpha == 0][0]):g} alpha is 0 and the noise prediction of {self.title!r} "
                "says nothing of the data there; start below it with times=, or take a data or flow prediction"
            )
        lam = torch.stack([0.5 * late.log_snr, 0.5 * early.log_snr])
        eta = self._read_eta(late.t)
        on_x, on_noise = self.form.linear(late, early, lam[1] - lam[0], eta)
        bounds = list(itertools.pairwise([*cuts, len(late.t)]))
        clock = VARIABLES[self.variable].of_lambda(sde, lam)
        counts = self._count(late, early, clock, bounds)
        predicted, corrected = self._weigh(sde, early, lam, clock, eta, counts)
        if self.form.closing is not None and 0 in counts[0]:
            for i, weight in enumerate(self.form.closing(late, early).tolist()):
                predicted[i] = predicted[i] if counts[0][i] else [weight]
        linear = on_x.tolist(), on_noise.tolist()
        rows = _write_rows((late, early), linear, (predicted, corrected), self.form.power(eta).tolist())
        return [rows[start:end] for start, end in bounds]

    def _read_eta(self, times: Tensor) -> Tensor:
        if not callable(self.eta):
            return torch.full_like(times, self.eta)
        values = [check_number(self.eta(t), f"eta at t = {t:g}", 0.0) for t in times.tolist()]
        return torch.tensor(values, dtype=torch.float64, device="cpu")

    def _count(
        self, late: Point, early: Point, clock: Tensor, bounds: Sequence[tuple[int, int]]
    ) -> tuple[list[int], list[int]]:
        """Return how many predictions each interval's predictor and corrector use; 0 where there is none of it."""
        infinite = self.form.closing is not None
        predict, correct = [], []
        for start, end in bounds:
            # A first prediction where the variable is infinite serves its own step alone.
            from_noise = bool(late.alpha[start] == 0)
            unseen = (from_noise and infinite) or not bool(torch.isfinite(clock[0, start]))
            skip = int(self.first_alone or unseen)
            into_data = bool(early.sigma[end - 1] == 0)
            into_noise = bool(early.alpha[end - 1] == 0)
            for i in range(end - start):
                left = end - start - i if self.lower_order_final else end - start + self.order
                last = start + i == end - 1
                at_end = infinite and ((i == 0 and from_noise) or (last and (into_data or into_noise)))
                predict.append(0 if at_end else max(1, min(self.order, i + 1 - skip, left)))
                correct.append(0 if i < skip or last else min(self.corrector, i + 2 - skip, left + 1))
            if into_data and predict[-1] > 1:
                predict[-1] = min(
                    predict[-1], _limit_reach(torch.cat([clock[0, end - 2 : end], clock[1, end - 1 : end]]))
                )
        return predict, correct

    def _weigh(
        self,
        sde: GaussianSDE,
        early: Point,
        lam: Tensor,
        clock: Tensor,
        eta: Tensor,
        counts: tuple[list[int], list[int]],
    ) -> tuple[list[list[float]], list[list[float]]]:
        """Return each interval's weights of its predictor's and its corrector's predictions, newest first."""
        used = torch.tensor([i for i, count in enumerate(counts[0]) if count], dtype=torch.long, device="cpu")
        place = {int(i): k for k, i in enumerate(used)}
        start, end = lam[:, used]
        values, measure = self.form.measure(early[used], start, end, eta[used])
        values, edge = VARIABLES[self.variable].of_lambda(sde, values), self.form.edge(early, eta)[used]
        found: list[list[list[float]]] = []
        for lead, which in enumerate(counts):
            weights: list[list[float]] = [[] for _ in which]
            for count in sorted({*which} - {0}):
                index = torch.tensor([i for i, c in enumerate(which) if c == count], dtype=torch.int64, device="cpu")
                # The corrector's newest prediction is made where the interval ends.
                nodes = [clock[1, index]] * lead + [clock[0, index - k] for k in range(count - lead)]
                at = torch.tensor([place[int(i)] for i in index], dtype=torch.int64, device="cpu")
                step = Integral(torch.stack(nodes, 1), values[at], measure[at], start[at], end[at], edge[at])
                for i, row in zip(index.tolist(), COEFFICIENTS[self.coefficients].weights(step).tolist(), strict=True):
                    weights[i] = row
            found.append(weights)
        return found[0], found[1]


def _limit_reach(last: Tensor) -> int:
    """Return how many predictions a step into sigma = 0 may use, from the variable at the last three knots.

    With k of them the weights grow as ratio^(k - 1), the ratio of the step's length to that of the one before. On a
    grid of many steps the one into sigma = 0 is by far the longest, and would multiply a network's error by thousands.
    """
    before, length = last.diff().abs().tolist()
    return next((k for k in (4, 3, 2) if (length / before) ** (k - 1) <= LARGEST), 1)


def _write_rows(
    ends: tuple[Point, Point],
    linear: tuple[Sequence[float], Sequence[float]],
    integrals: tuple[Sequence[list[float]], Sequence[list[float]]],
    powers: Sequence[float],
) -> list[Row]:
    """Return the rows of predicted and, where there are weights for it, corrected steps."""
    rows: list[Row] = []
    knots, until = Knot.of(ends[0]), ends[1].t.tolist()
    (on_x, on_noise), (predicted, corrected) = linear, integrals
    # A first step's anchor (1, 0) is that of a stage, (1,), in value; its two weights say that a new step begins.
    # What a step starts from, as weights of [anchor, predictions newest first] and of the newest earlier draw.
    base, base_noise = [1.0], 0.0
    for i in range(len(on_x)):
        parts = itertools.zip_longest([on_x[i] * w for w in base], [0.0, *predicted[i]], fillvalue=0.0)
        drawn, again = on_noise[i], on_x[i] * base_noise
        rows.append(
            Row(
                at=knots[i],
                state=tuple(map(sum, parts)),
                anchor=tuple(base if len(base) > 1 else [1.0, 0.0]) if corrected[i] else None,
                noise=(drawn, again) if again else (drawn,) if drawn else (),
                anchor_noise=(0.0, base_noise) if corrected[i] and base_noise else (),
                increment=Increment(knots[i].t, until[i], powers[i]) if drawn else None,
            )
        )
        base, base_noise = ([on_x[i], *corrected[i]], drawn) if corrected[i] else ([1.0], 0.0)
    return rows
