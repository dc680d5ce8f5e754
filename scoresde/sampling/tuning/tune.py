"""``tune``: a table whose numbers are fitted to a model, from the best fixed ones, and kept only where it is better."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from scoresde.diffusions.sde import SDE, GaussianSDE
from scoresde.errors.kinds import ConfigError, show
from scoresde.errors.names import check_choice
from scoresde.errors.values import check_flag, check_integer, check_number, check_sequence
from scoresde.models.checks import check_differentiable, check_model
from scoresde.models.prediction import Predictor, in_mode
from scoresde.sampling.calibration import Calibration
from scoresde.sampling.part import Watch
from scoresde.sampling.plan import Plan, Planner, plan
from scoresde.sampling.tuning.choose import check_options, check_steps, rank
from scoresde.sampling.tuning.learn import improve, measure
from scoresde.sampling.tuning.others import descend, find_levels, place_at
from scoresde.sampling.tuning.pairs import Conditions, Errors, Pairs, make_pairs
from scoresde.solvers.build import build_table
from scoresde.solvers.candidates import list_starts
from scoresde.solvers.named import SolverName, by_name
from scoresde.solvers.solver import Solver
from scoresde.solvers.tableau import Tableau
from scoresde.solvers.tuned import PARTS, Layout, Part

__all__ = ["Tuned", "tune"]

Method = Literal["gauss_newton", "adam", "dynamic"]

FEW = 3  # iterations after which one of several starts goes on


@dataclass(frozen=True, eq=False)
class Tuned(Planner):
    """What ``tune`` found; pass it as ``solver=``, or keep ``tuned.table``.

    Args:
        table: the tuned table, under the model's SDE; the start's own where nothing better was found.
        start: the name of the fixed table that it began from.
        before: the start's distances to the model's flow, from start states that the fit did not see.
        after: the tuned table's.
        evaluations: of the model, each sample's counted, those that chose the start and the flow's included.
        layout: what the numbers mean.
        values: the numbers; None where the start stays.
    """

    table: Tableau
    start: str
    before: Errors
    after: Errors
    evaluations: int
    layout: Layout
    values: Tensor | None

    def under(self, sde: GaussianSDE) -> Tableau:
        """Return the same table under another SDE: equal log-SNR is an equal call."""
        values = self.layout.values if self.values is None else self.values
        return self.layout.table(sde, values, self.table.name)

    def plan(self, sde: SDE, steps: int | None, times: object, final: str, watch: Watch) -> Plan:
        """Return the plan of the table under an SDE; ConfigError for another number of steps."""
        check_steps(steps, times, [self.table.nfe], "tuned")
        if not isinstance(sde, GaussianSDE):
            raise ConfigError(f"a tuned table is for Gaussian SDEs, got {sde}")
        return plan(self.under(sde), sde, None, None, final, watch)

    def __str__(self) -> str:
        return (
            f"{self.table.nfe} evaluations, from {self.start}: rms {self.before.rms:.3g} to {self.after.rms:.3g}, "
            f"median {self.before.median:.3g} to {self.after.median:.3g}, {self.evaluations} evaluations of samples"
        )

    def __repr__(self) -> str:
        return f"<Tuned {self}>"


@dataclass(eq=False)
class _Best:
    """The best values so far on the start states that the fit does not see."""

    model: Predictor
    layout: Layout
    held: Pairs
    size: int
    before: Errors
    errors: Errors
    values: Tensor | None = None
    last: Tensor | None = None
    used: int = 0
    method: Method = "gauss_newton"
    radius: float = 0.0
    progress: bool = False

    @classmethod
    def at(
        cls, model: Predictor, table: Tableau, held: Pairs, size: int, method: Method, radius: float, progress: bool
    ) -> _Best:
        """Begin from a table."""
        errors = Errors.of(held.measure(held.run(model, table, size)))
        layout = Layout.of(table, model.sde)
        return cls(model, layout, held, size, errors, errors, method=method, radius=radius, progress=progress)

    def see(self, values: Tensor) -> None:
        """Keep values whose errors are both at most the start's and whose product is the least so far."""
        errors = Errors.of(measure(self.model, self.layout, values, self.held, self.size))
        self.used += self.layout.count * len(self.held)
        self.last = values
        if errors.below(self.before) and errors.product < self.errors.product:
            self.values, self.errors = values, errors

    def go_on(self, train: Pairs, iterations: int, parts: Iterable[Part], seed: int) -> None:
        """Take steps from the last values."""
        start = self.layout.values if self.last is None else self.last
        move = (
            functools.partial(improve, seed=seed)
            if self.method == "gauss_newton"
            else functools.partial(descend, radius=self.radius)
        )
        self.used += move(
            self.model,
            self.layout,
            start,
            train,
            iterations=iterations,
            parts=parts,
            size=self.size,
            seen=self.see,
            progress=self.progress,
        )


def tune(
    model: Predictor,
    steps: int,
    *,
    start: SolverName | Solver | Tableau | None = None,
    parts: Iterable[Part] = PARTS,
    samples: int | None = None,
    held_out: int | None = None,
    starts: int = 3,
    iterations: int = 12,
    method: Method = "gauss_newton",
    radius: float = 0.0,
    event: tuple[int, ...] | None = None,
    cond: Conditions | None = None,
    tolerance: float = 1e-4,
    chunk_size: int = 256,
    seed: int = 0,
    keep: bool = True,
    progress: bool = False,
) -> Tuned:
    """Return a table of ``steps`` evaluations fitted to this model: ``sample(model, 64, solver=tune(model, 8))``.

    Its knots, the levels of its calls and the weights of its history are fitted to where the model's own flow leads, by
    robust Gauss-Newton (``sampling/tuning/learn.py``), from the best of a few fixed tables, of which the model's
    calibration names one where there is one. What is returned is never
    worse than its start on ``held_out`` start states that the fit does not see, neither in rms nor in the median.

    Args:
        model: any model: trained, exact, guided, a posterior.
        steps: evaluations of the model for a sample.
        start: a deterministic solver or table to begin from; by default the best of all.
        parts: what is fitted, of "knots", "levels" and "weights".
        samples: start states of the fit; by default as many as give 16 coordinates for each of the n (n + 3)/2 numbers,
            from 64 to 512.
        held_out: start states that judge; as many as ``samples`` by default.
        starts: how many of the best tables are tried for a few iterations.
        iterations: of the fit.
        method: "gauss_newton"; or what others use (``sampling/tuning/others.py``): "adam", of which an iteration costs
            less than half as much and brings far less, or "dynamic", a dynamic programme that chooses the start's knots
            alone, without a fit.
        radius: with "adam", how far a start state may move, a coordinate: LD3's soft objective.
        event: the shape of one sample, where the model knows no moments.
        cond: number of samples -> their conditions.
        tolerance: of the flow.
        chunk_size: largest batch given to the network at once.
        seed: of the start states and of the sketches.
        keep: keep the table with the model, for ``sample(model, solver="tuned", steps=steps)``; ``save`` writes it.
        progress: show a bar.

    Raises:
        DTypeError, ConfigError: no model, no shape, an unknown part, a start that cannot be tuned. DomainError: options
            out of range. SolverError: the flow failed.
    """
    known = check_options(model, steps, 1 if samples is None else samples, tolerance, chunk_size, seed, cond)
    check_differentiable(known)
    steps = int(steps)
    count = _count(known, steps, event) if samples is None else int(samples)
    judged = count if held_out is None else check_integer(held_out, "held_out", 1)
    for name, value in (("starts", starts), ("iterations", iterations)):
        check_integer(value, name, 1)
    check_flag(keep, "keep")
    check_flag(progress, "progress")
    chosen = check_sequence(parts, "parts", "names")
    if not chosen:
        raise ConfigError(f"parts must name at least one of {', '.join(PARTS)}, got none")
    for part in chosen:
        check_choice("part", part, PARTS)
    check_choice("method", method, get_args(Method))
    if check_number(radius, "radius", 0.0) and method != "adam":
        raise ConfigError(f"radius= is of the soft objective, which method='adam' descends on, not {show(method)}")
    first = None
    if start is not None:
        first = start if isinstance(start, Tableau) else build_table(known.sde, start, steps=steps)
        Layout.of(first, known.sde)
    with torch.inference_mode(False), in_mode(known, training=False):
        (train, spent), (held, more) = (
            make_pairs(known, of, seed, name, event=event, cond=cond, tolerance=tolerance, size=chunk_size)
            for name, of in (("tune", count), ("held out", judged))
        )
        spent += more
        tables = [first] if first is not None else []
        names = [first.name] if first is not None else []
        solvers = [by_name(start) if isinstance(start, str) else start]
        if first is None:
            candidates = list_starts()
            if known.calibration is not None:
                candidates += (Calibration.from_json(known.calibration).candidate(steps),)
            rows, _, used = rank(
                known, train, steps, candidates, by="both", noise=False, size=chunk_size, progress=progress
            )
            spent += used
            tables, names = [row.table for row in rows[:starts]], [str(row.candidate) for row in rows[:starts]]
            solvers = [row.candidate.solver for row in rows[:starts]]
        tries = [_Best.at(known, table, held, chunk_size, method, radius, progress) for table in tables]
        if method == "dynamic":
            levels, used = find_levels(known, train, steps)
            spent += used
            for one, solver in zip(tries, solvers, strict=True):
                one.layout = Layout.of(_place(known.sde, solver, levels), known.sde)
                one.see(one.layout.values)
        else:
            for one in tries:
                one.go_on(train, min(FEW, iterations) if len(tries) > 1 else iterations, chosen, seed)
        best = min(range(len(tries)), key=lambda k: tries[k].errors.product)
        if len(tries) > 1 and iterations > FEW and method != "dynamic":
            tries[best].go_on(train, iterations - FEW, chosen, seed + 1)
    found, table = tries[best], tables[best]
    spent += sum(one.used for one in tries) + steps * len(held) * len(tries)
    if found.values is not None:
        table = found.layout.table(known.sde, found.values, f"tuned ({names[best]})")
    else:
        table = replace(table, name=f"tuned ({names[best]})")
    if keep:
        check_model(model).tables[steps] = table.to_json()
    return Tuned(table, names[best], found.before, found.errors, spent, found.layout, found.values)


def _place(sde: GaussianSDE, solver: object, levels: Tensor) -> Tableau:
    """Return a solver's table whose steps begin at these log_snr."""
    if not isinstance(solver, Solver):
        raise ConfigError(f"method='dynamic' places the steps of a solver; start={show(solver)} is none")
    return build_table(sde, solver, steps=len(levels), times=place_at(levels))


def _count(model: Predictor, steps: int, event: tuple[int, ...] | None) -> int:
    """Return how many start states a fit takes."""
    shape = event or (() if model.moments is None else tuple(model.moments.mean.shape))
    return min(512, max(64, math.ceil(8 * steps * (steps + 3) / max(1, math.prod(shape)))))
