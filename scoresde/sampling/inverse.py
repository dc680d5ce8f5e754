r"""Samples given a measurement: one call for every method, those that are a model and those that are samplers.

Let y = H z + N(0, s^2) in the model's coordinates, D the data prediction and nu = sigma/alpha.

*Split Gibbs* (Xu and Chi 2024, arXiv:2403.17042; Wu et al. 2024, arXiv:2405.18782) draws in turn

    u | z ~ N(y; H u, s^2) N(u; z, rho^2)      a Gaussian where H is linear, drawn exactly;
    z | u ~ p(z) N(u; z, rho^2)                the reverse SDE from the state alpha u at the level nu = rho,

while rho falls. For a fixed rho the law of u tends to the posterior under the data's law blurred by rho.

*DAPS* (Zhang et al. 2024, arXiv:2407.01521) draws, level by level, z from N(y; H z, s^2) N(z; z0, r^2), z0 where the
probability flow leads from the state and r^2 = nu^2/(1 + nu^2), and renoises it to the next level. (As published
r = nu, which is too wide where nu exceeds the spread of the data.) Its bias falls with the number of levels, so that
two calls a level are the default.

*Replacement* (Song et al. 2021, arXiv:2011.13456, appendix I.2) overwrites, before every step, what was seen of the
state by the measurement at that noise level; *RePaint* (Lugmayr et al. 2022, arXiv:2201.09865) goes back up and down
again after every few steps. Neither tends to the posterior.

*Twisted sequential Monte Carlo* is in ``sampling.twisted``.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from scoresde.errors.kinds import ConfigError, DTypeError, show
from scoresde.errors.names import unknown
from scoresde.errors.tensors import check_samples
from scoresde.errors.values import check_flag, check_instance, check_integer, keep_integer, keep_number
from scoresde.models.checks import check_model
from scoresde.models.guidance.methods import METHODS, Method, solve
from scoresde.models.guidance.operators import Operator
from scoresde.models.guidance.posteriors import PosteriorModel, posterior
from scoresde.models.prediction import Predictor, Prepared
from scoresde.noise import NoiseSource, check_seed
from scoresde.ops import flat
from scoresde.sampling.particles import expand_condition, levels
from scoresde.sampling.problem import ITERATIONS, TOLERANCE, PosteriorSampler, PosteriorSamples, Problem
from scoresde.sampling.sample import SampleResult, sample
from scoresde.sampling.twisted import TwistedSMC
from scoresde.solvers.named import DEFAULT
from scoresde.solvers.solver import Solver

__all__ = ["DAPS", "SAMPLERS", "Replacement", "SplitGibbs", "sample_posterior"]


@dataclass(frozen=True)
class SplitGibbs(PosteriorSampler):
    """Split Gibbs sampling.

    Args:
        inner: calls of the network for one draw given u; the number of rounds is steps over this.
        first: rho of the first round, in the unit of the model's coordinates.
        last: rho of the last; rho falls geometrically over the first two thirds of the rounds.
        solver: of the reverse SDE; it must draw noise.
        langevin: steps of Langevin dynamics where H is not linear.
    """

    inner: int = 10
    first: float = 3.0
    last: float = 0.05
    solver: str = "dpmpp_2m_sde"
    langevin: int = 100

    def __post_init__(self) -> None:
        keep_integer(self, "inner", 2)
        keep_number(self, "last", 0.0, open_low=True)
        keep_number(self, "first", self.last)
        keep_integer(self, "langevin", 1)

    def __call__(self, problem: Problem) -> PosteriorSamples:
        """Draw in turn."""
        model, rounds = problem.model, max(1, problem.steps // self.inner)
        sde, nfe = model.sde, 0
        z = torch.zeros((problem.n, *problem.measured.event), dtype=torch.float32, device=model.device or "cpu")
        if model.moments is not None:
            z = z + model.moments.mean.to(z)
        falling = max(1, round(2 * rounds / 3))
        rhos = [self.last * (self.first / self.last) ** max(0.0, 1 - k / max(1, falling - 1)) for k in range(rounds)]
        for k in tqdm(range(rounds), desc="gibbs", unit="round", disable=not problem.progress, leave=False):
            u = problem.draw_gaussian(z, rhos[k], f"gibbs {k}", self.langevin)
            t = float(sde.time(torch.tensor(-2 * math.log(rhos[k]), dtype=torch.float64, device="cpu")))
            times = levels(sde, self.inner - 1, start=t).t
            out = sample(
                model.in_its_own_coordinates(),
                x_init=float(sde.alpha(torch.tensor(t, dtype=torch.float64, device="cpu"))) * u,
                solver=self.solver,
                times=times,
                cond=problem.cond,
                seed=problem.fresh_seed("gibbs", k),
                full_output=True,
            )
            z, nfe = out.x, nfe + int(out.nfe[0])
        return PosteriorSamples(problem.to_data(u), nfe)


@dataclass(frozen=True)
class DAPS(PosteriorSampler):
    """Decoupled annealing.

    Args:
        inner: calls of the network for the flow from each level; the number of levels is steps over this.
        solver: of the flow.
        langevin: steps of Langevin dynamics where H is not linear.
    """

    inner: int = 2
    solver: str = "flow_abm"
    langevin: int = 100

    def __post_init__(self) -> None:
        keep_integer(self, "inner", 2)
        keep_integer(self, "langevin", 1)

    def __call__(self, problem: Problem) -> PosteriorSamples:
        """Go down the levels."""
        model, rounds, nfe = problem.model, max(1, problem.steps // self.inner), 0
        sde, point = model.sde, levels(model.sde, max(1, problem.steps // self.inner))
        like = torch.zeros((problem.n, *problem.measured.event), dtype=torch.float32, device=model.device or "cpu")
        first = model.moments.at(float(point.alpha[0]), float(point.sigma[0])) if model.moments is not None else None
        noise = problem.normal(like, "daps", "start")
        x = float(point.sigma[0]) * noise if first is None else first.from_noise(noise)
        z, bare = x, model.in_its_own_coordinates()
        for k in tqdm(range(rounds), desc="daps", unit="level", disable=not problem.progress, leave=False):
            times = levels(sde, self.inner - 1, start=float(point.t[k])).t
            out = sample(
                bare,
                x_init=x,
                solver=self.solver,
                times=times,
                cond=problem.cond,
                full_output=True,
            )
            nfe += int(out.nfe[0])
            rho = float(torch.sigmoid(-point.log_snr[k]).sqrt())
            z = problem.draw_gaussian(out.x, rho, f"daps {k}", self.langevin)
            alpha, sigma = float(point.alpha[k + 1]), float(point.sigma[k + 1])
            x = alpha * z + sigma * problem.normal(z, "daps", k)
        return PosteriorSamples(problem.to_data(z), nfe)


@dataclass(frozen=True)
class Replacement(PosteriorSampler):
    """Replacement of what was seen, for linear operators; RePaint with ``repeats`` above 1.

    Args:
        repeats: how often each stretch of steps is gone down.
        stretch: steps of a stretch.
        solver: of the steps.
    """

    repeats: int = 1
    stretch: int = 10
    solver: str = "ancestral"

    def __post_init__(self) -> None:
        keep_integer(self, "repeats", 1)
        keep_integer(self, "stretch", 1)

    def __call__(self, problem: Problem) -> PosteriorSamples:
        """Go down, stretch by stretch."""
        if not problem.measured.operator.linear:
            raise ConfigError(f"Replacement needs a linear operator; use one of {', '.join(_nonlinear())}")
        model, sde, nfe = problem.model, problem.model.sde, 0
        point = levels(sde, max(1, problem.steps // self.repeats))
        like = torch.zeros((problem.n, *problem.measured.event), dtype=torch.float32, device=model.device or "cpu")
        kernel = _Replace(problem)
        x = float(point.sigma[0]) * problem.normal(like, "start")
        cuts = [*range(0, len(point.t) - 1, self.stretch), len(point.t) - 1]
        bare = model.in_its_own_coordinates()
        for leg, (low, high) in enumerate(itertools.pairwise(cuts)):
            for again in range(self.repeats):
                last = high == cuts[-1] and again == self.repeats - 1
                out = sample(
                    bare,
                    x_init=x,
                    solver=self.solver,
                    times=point.t[low : high + 1],
                    final="denoise" if last else "sample",
                    kernels=[kernel],
                    cond=problem.cond,
                    seed=problem.fresh_seed("replace", leg, again),
                    full_output=True,
                )
                x, nfe = out.x, nfe + int(out.nfe[0])
                if again < self.repeats - 1:
                    mean, std = sde.transition(x, point.t[high], point.t[low])
                    x = mean + std.to(mean) * problem.normal(x, "back", leg, again)
        return PosteriorSamples(problem.to_data(x), nfe)


@dataclass(frozen=True, eq=False)
class _Replace:
    """The kernel that puts the measurement, at the state's noise level, where it was seen."""

    problem: Problem
    calls: int = field(default=0, init=False)
    draws: int = field(default=1, init=False)

    def __call__(self, x: Tensor, index: int, model: Prepared, noise: NoiseSource) -> Tensor:
        """Return the state with what was seen replaced."""
        point, measured = model.readout.point[index], self.problem.measured
        alpha, sigma = float(point.alpha), float(point.sigma)
        z = torch.empty_like(x)
        noise.fill(z)
        _, values, right = measured.decompose(x)
        seen = right[values > 1e-9 * values.max()]
        # The least data with this measurement, in the model's coordinates.
        nothing = torch.zeros_like(x[:1], dtype=torch.float64)
        line = measured.at(nothing, keep=False)
        u = solve(lambda u: line.forward(line.back(u)).detach(), self.problem.y - line.value, ITERATIONS, TOLERANCE)
        least = line.back(u).to(x)
        wanted = flat(alpha * least + sigma * z)
        return x + ((wanted - flat(x)) @ seen.T @ seen).reshape(x.shape)


SAMPLERS: dict[str, PosteriorSampler] = {
    "gibbs": SplitGibbs(),
    "daps": DAPS(),
    "replacement": Replacement(),
    "repaint": Replacement(repeats=5),
    "smc": TwistedSMC(),
}


def _nonlinear() -> list[str]:
    return [*(name for name, method in METHODS.items() if method.nonlinear), "gibbs", "daps"]


def sample_posterior(
    model: Predictor,
    operator: Operator | Tensor | Callable[[Tensor], Tensor],
    y: Tensor,
    n: int,
    *,
    noise_std: float,
    method: str | Method | PosteriorSampler = "mmps",
    steps: int = 50,
    solver: str | Solver | None = None,
    cond: Mapping[str, float | Sequence[float]] | None = None,
    event: tuple[int, ...] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> PosteriorSamples:
    """Return samples of the data given a measurement, y = A(x) + N(0, noise_std^2).

    Args:
        model: the prior.
        operator: A; see ``posterior``.
        y: the measurement, in the data's units.
        n: number of samples.
        noise_std: in the unit of y.
        method: a method of ``posterior``; "gibbs", "daps", "replacement", "repaint" or "smc"; or one of these with
            options, e.g. ``SplitGibbs(inner=20)``.
        steps: calls of the network for each sample, about; products with the network, which a method asks beside
            them, come on top.
        solver: of a method that is a model; the default solver by default.
        cond: conditions, one value for all samples.
        event: the shape of one sample, where the model knows no moments.
        seed: of everything random.
        progress: show a bar.

    Raises:
        DTypeError, ShapeError, DomainError, ConfigError: as ``posterior``; an unknown method; a solver for a method
            that has its own.
    """
    known = check_model(model)
    count, budget = check_integer(n, "n", 1), check_integer(steps, "steps", 1)
    check_seed(seed)
    check_flag(progress, "progress")
    chosen = SAMPLERS.get(method, method) if isinstance(method, str) else method
    told = expand_condition(cond, count, known.device or torch.device("cpu"))
    if isinstance(chosen, (str, Method)):
        if isinstance(chosen, str) and chosen not in METHODS:
            raise unknown("posterior method", chosen, [*METHODS, *SAMPLERS])
        inside = posterior(known, operator, y, noise_std=noise_std, method=chosen, event=event)  # type: ignore[arg-type]
        out: SampleResult = sample(
            inside,
            (count, *inside.event),
            solver=DEFAULT if solver is None else solver,
            steps=budget,
            cond=told,
            seed=seed,
            progress=progress,
            full_output=True,
        )
        return PosteriorSamples(out.x, int(out.nfe[0]))
    asked: object = chosen
    if not callable(asked) or isinstance(asked, type) or not _takes_one(asked):
        raise DTypeError(
            f"method must be a name or one of scoresde.guidance, SplitGibbs(), DAPS(), ..., got {show(chosen)}",
            parameter="method",
        )
    if solver is not None:
        raise ConfigError(f"{type(chosen).__name__} has a solver of its own; pass it there, or leave solver= out")
    check_instance(y, Tensor, "y", "the measurement")
    # The operator is checked as for any method that takes all of them.
    checked = posterior(known, operator, y, noise_std=noise_std, method="mmps", event=event)
    problem = Problem(known, checked.measured, _flat_measurement(checked), count, budget, told, seed, progress)
    return chosen(problem)


def _takes_one(function: Callable[..., object]) -> bool:
    """Say whether a function can be called with a problem alone."""
    try:
        inspect.signature(function).bind(None)
    except (TypeError, ValueError):
        return False
    return True


def _flat_measurement(model: PosteriorModel) -> Tensor:
    assert model.y is not None
    return check_samples(model.y.reshape(1, -1), "y")[0].double()
