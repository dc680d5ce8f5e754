r"""Langevin dynamics towards any density whose score is known.

Overdamped Langevin dynamics dx = score dt + sqrt(2) dw has the density as its stationary law. One step of size e,

    x <- x + e score(x) + sqrt(2 e) z,

is its Euler-Maruyama step and is biased (the unadjusted Langevin algorithm): for a Gaussian of variance V the states
keep to their mean, shrink by 1 - e/V a step, and their stationary variance is

    V / (1 - e/(2 V)),          e < 2 V.

With fixed e this is a table of n equal rows, run by ``sample``. Where the energy -log density + constant is known too,
a Metropolis test after each step takes the bias away (``kernels.take_tested_steps``). A model with times runs down its
noise levels (``solvers.annealed_langevin``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scoresde.diffusions.levels import VESDE
from scoresde.diffusions.sde import check_score
from scoresde.errors.kinds import ConfigError, DTypeError, ShapeError, SolverError, show
from scoresde.errors.tensors import check_samples
from scoresde.errors.values import check_callable, check_flag, check_integer, check_number
from scoresde.models.checks import unwrap_model
from scoresde.models.prediction import Condition, Predictor
from scoresde.models.score_model import ScoreModel
from scoresde.noise import NoiseSource, Randomness, check_tape
from scoresde.ops import recording
from scoresde.sampling.kernels import take_tested_steps
from scoresde.sampling.sample import SampleResult, sample
from scoresde.solvers.langevin import annealed_langevin
from scoresde.solvers.rows import Knot, Row
from scoresde.solvers.solver import Solver
from scoresde.solvers.tableau import Tableau

__all__ = ["langevin"]

Observer = Callable[[int, Tensor], None]


def langevin(
    score: Predictor | Callable[[Tensor], Tensor] | None,
    x: Tensor,
    step: float,
    n: int,
    *,
    energy: Callable[[Tensor], Tensor] | None = None,
    times: Tensor | None = None,
    cond: Condition = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    noise: Sequence[Tensor] | None = None,
    on_step: Observer | None = None,
    full_output: bool = False,
) -> Tensor | SampleResult:
    """Return the states (B, *) after n Langevin steps from x.

    Args:
        score: x (B, *) -> the gradient of the log density, of x's shape. With ``energy`` it may be None, for minus the
            energy's gradient. With ``times`` a ScoreModel.
        x: where to start, (B, *); not written to.
        step: the step e in units of x^2. With ``times`` in units of sigma^2, in (0, 2).
        n: number of steps; with ``times``, of steps at each of them.
        energy: x -> minus the log density up to a constant, (B,), in nats. Each step is then accepted or rejected for
            each sample, and the density is kept whatever the step. ``EnergyModel.energy`` at a fixed time serves.
        times: decreasing times of the model's SDE, the noise levels to go through; x is a state at the first of them.
            For accepted and rejected steps there use ``sample`` with ``solvers.corrector_only`` and ``kernels.MALA``.
        cond: conditions of the model; only with ``times``.
        seed: sample k has a stream of its own keyed (seed, k); None draws a seed and reports it.
        generator: an ordinary torch generator instead of a seed.
        noise: recorded tensors of x's shape instead: one a step, two with ``energy``.
        on_step: called with the number of the step and the states after it, which are read-only and may be reused.
        full_output: return a SampleResult, whose ``accepted`` and ``rejected`` count steps with ``energy``.

    Raises:
        DTypeError, ShapeError, DomainError: x, step, n or noise of a wrong type, shape or range. ConfigError: options
            that do not go together. SolverError: states that are not finite; too large a step diverges.

    Source: Roberts and Tweedie 1996, "Exponential convergence of Langevin distributions and their discrete
    approximations"; Song and Ermon 2019, "Generative modeling by estimating gradients of the data distribution".
    """
    start, known = check_samples(x), unwrap_model(score)
    step = check_number(step, "step", 0.0, open_low=True)
    n = check_integer(n, "n", 1)
    check_callable(on_step, "on_step", "(index, x)")
    check_callable(energy, "energy", "x -> (B,)")
    check_flag(full_output, "full_output")
    if isinstance(known, Predictor) != (times is not None):
        raise ConfigError(
            "a ScoreModel and times= go together: give the times of its noise levels, or the score of one density as a "
            "function of x, e.g. lambda x: model(x, t).score"
        )
    if callable(known) and not isinstance(known, Predictor):
        check_score(known)
    if energy is not None:
        if times is not None or cond is not None:
            raise ConfigError("energy is that of one density; for levels use sample with kernels=[MALA()]")
        randomness = Randomness(batch=len(start), device=start.device, seed=seed, generator=generator, noise=noise)
        if noise is not None:
            check_tape(noise, 2 * n, start.shape)
        source = randomness.part(slice(0, len(start)), 1)
        result = _adjusted(score, energy, start, step, n, source, randomness.seed, on_step)
        return result if full_output else result.x
    solver: Solver | Tableau
    model: Predictor
    if isinstance(known, Predictor):
        model, solver = known, annealed_langevin(repeats=n, step=step)
    elif callable(score) and cond is None:
        model, solver = ScoreModel.from_callable(lambda x, t: score(x), VESDE()), _table(step, n)
    else:
        raise DTypeError(f"score must be a function of x, and cond= goes with a ScoreModel; got {show(score)}")
    try:
        return sample(
            model,
            x_init=start,
            solver=solver,
            times=times,
            cond=cond,
            seed=seed,
            generator=generator,
            noise=noise,
            final="sample",
            on_step=None if on_step is None else lambda seen: on_step(seen.index, seen.x),
            full_output=full_output,
        )
    except SolverError as error:
        raise SolverError(
            f"the states of some samples are not finite with step = {step:g}: lower it, or test each with energy=",
            partial=error.partial,
        ) from error


def _table(step: float, n: int) -> Tableau:
    """Return n equal Langevin steps at one point; a literal score does not see which."""
    knot = Knot.of(VESDE().at(torch.tensor([0.5], dtype=torch.float64, device="cpu")))[0]
    row = Row(knot, (1.0, step), noise=(math.sqrt(2 * step),))
    return Tableau(f"langevin ({n} steps of {step:g})", "score", (row,) * n, knot, knot, 1.0)


def _adjusted(
    score: Callable[[Tensor], Tensor] | None,
    energy: Callable[[Tensor], Tensor],
    x: Tensor,
    step: float,
    n: int,
    source: NoiseSource,
    seed: int | None,
    on_step: Observer | None,
) -> SampleResult:
    """Run accepted and rejected steps, in at least float32."""

    def evaluate(y: Tensor) -> tuple[Tensor, Tensor]:
        with recording():
            point = y.detach().requires_grad_(score is None)
            value = energy(point)
            given: object = value
            if not isinstance(given, Tensor) or value.shape != (len(y),):
                got = tuple(value.shape) if isinstance(given, Tensor) else type(given).__name__
                raise ShapeError(f"energy must return one number a sample, ({len(y)},), got {got}")
            slope = -torch.autograd.grad(value.sum(), point)[0] if score is None else score(point).detach()
        if slope.shape != y.shape:
            raise ShapeError(f"the score must have the shape {tuple(y.shape)} of x, got {tuple(slope.shape)}")
        return value.detach().to(y), slope.to(y)

    wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    with torch.no_grad():
        end, accepted = take_tested_steps(evaluate, wide, step, n, source, on_step)
    count = accepted.cpu()
    return SampleResult(
        end.to(x.dtype), torch.full_like(count, n + 1), (), None, torch.zeros_like(count), count, n - count, seed
    )
