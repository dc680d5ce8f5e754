r"""Paths of any SDE through torchsde: step by step on a grid of ours, with noise of ours.

On an interval of length h the driving path enters through its increment W and its time integral U,

    W = sqrt(h) z_0,        U = int (w_s - w_start) ds = h W/2 + sqrt(h^3/12) z_1,

with independent standard normal z_0, z_1 of the state's shape; "srk" needs both. The z are the draws of a noise source,
so that seeds, tapes and generators mean what they mean everywhere, and a sample is the same in any batch. torchsde's
time increases: where t decreases, as for a reverse SDE, its time is -t and the drift changes sign. States are
flattened to (B, D) for torchsde and restored.

Where the noise does not depend on the state, "milstein" makes the same numbers as "euler". Where g_i depends on x_i
alone the strong orders are 1/2 ("euler"), 1 ("milstein") and 3/2 ("srk"); where it depends on other coordinates too,
all three have that of "euler", since the iterated integrals of two Wiener processes are not drawn.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scoresde.diffusions.fields import drift_of, noise_of
from scoresde.diffusions.sde import SDE, GaussianSDE, ReverseSDE
from scoresde.errors.kinds import ConfigError, DomainError, SolverError
from scoresde.errors.names import check_choice
from scoresde.errors.tensors import check_samples
from scoresde.errors.values import check_instance, check_integer, check_sequence, keep_number
from scoresde.models.prediction import Condition, Predictor
from scoresde.models.scored_sde import RUNS_AWAY, ScoredSDE, runs_away
from scoresde.noise import NoiseSource, SampleNoise, check_seed, fresh_seed
from scoresde.sampling.part import Part, Start, Watch, check_final, denoised
from scoresde.sampling.plan import Planner
from scoresde.solvers.grids import Grid, check_one_way, check_times, choose_grid, uniform

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["DRAWS", "PathPlan", "TorchSDE", "check_start", "simulate", "walk"]

DRAWS = {"euler": 1, "milstein": 1, "srk": 2}
"""Methods and the draws that each takes in a step."""


def _torchsde() -> ModuleType:
    try:
        import torchsde
    except ImportError as error:
        raise ConfigError('this needs torchsde; in the repository run pip install ".[torchsde]"') from error
    module: ModuleType = torchsde
    return module


@dataclass(frozen=True)
class TorchSDE(Planner):
    """Sample by integrating the reverse SDE with a scheme of torchsde.

    Args:
        method: "euler" (Euler-Maruyama, order 1), "milstein" (the same unless the noise depends on the state, and then
            of strong order 1 where Euler's is 1/2), "srk" (Rossler 2010, SRID2: strong order 1.5, three evaluations a
            step).
        dt: longest step in t, on a grid uniform in t; otherwise ``steps=`` or ``times=`` of ``sample`` say the steps.
        eta: of the reverse family: 1 the reverse SDE, 0 the probability flow.
        adjoint: with ``differentiable=True``, gradients by the adjoint SDE, solved again over each step (Li et al.
            2020, "Scalable gradients for stochastic differential equations"), and not through the network's graphs:
            memory for a state each step; the gradient carries an error of its own that vanishes with the step.

    Raises:
        ConfigError: unknown method, torchsde is missing. DomainError: dt not positive or eta negative; in ``sample``, a
            start where alpha is 0.
    """

    method: str = "euler"
    dt: float | None = None
    eta: float = 1.0
    adjoint: bool = False

    differentiable = True

    def __post_init__(self) -> None:
        _check_method(self.method)
        if self.dt is not None:
            keep_number(self, "dt", 0.0, open_low=True)
        keep_number(self, "eta", 0.0)
        _torchsde()

    def grid(self, sde: SDE, steps: int | None) -> Tensor:
        """Return the decreasing grid uniform in t, of ``steps`` intervals or of intervals of at most dt."""
        if self.dt is not None:
            if steps is not None:
                raise ConfigError("give steps= or TorchSDE(dt=), not both")
            steps = math.ceil((sde.t_max - sde.t_min) / self.dt - 1e-9)
        if steps is None:
            raise ConfigError("a grid needs steps= or TorchSDE(dt=)")
        times = torch.linspace(sde.t_max, sde.t_min, steps + 1, dtype=torch.float64, device="cpu")
        times[0] = sde.t_max
        return times

    def plan(self, sde: SDE, steps: int | None, times: Tensor | Grid | None, final: str, watch: Watch) -> PathPlan:
        """Plan a path; see ``sample``.

        Raises:
            ConfigError: a watch that only a table has, a path down to t = 0. DomainError: a start where alpha is 0.
        """
        refused = watch.beyond(trajectory=True, differentiable=True)
        if refused:
            raise ConfigError(f"TorchSDE takes no {', '.join(refused)}; solver='euler_maruyama' does")
        knots = _knots(self, sde, steps, times, final)
        check_final(sde, final)
        check_start(sde, knots)
        if float(check_times(sde, knots)[-1]) == 0:
            raise ConfigError("a path must end at t > 0; final='denoise' goes to clean data")
        return PathPlan(self, sde, knots, final, watch.trajectory)


def simulate(
    sde: SDE,
    x0: Tensor,
    times: Tensor,
    *,
    method: str = "srk",
    substeps: int = 1,
    seed: int | None = None,
    noise: NoiseSource | None = None,
    adjoint: Sequence[Tensor] | None = None,
) -> Tensor:
    """Simulate any SDE from x0 and return the states at ``times``, (len(times), B, *); the first is x0.

    Gradients flow to x0 and to whatever the SDE holds, as the caller's grad mode says.

    Args:
        sde: any SDE; a ``ReverseSDE`` runs down in time.
        x0: the state (B, *) at the first time.
        times: increasing, for a ReverseSDE decreasing, times in [t_min, t_max].
        method: "euler", "milstein" or "srk"; see ``TorchSDE``.
        substeps: equal steps between two times.
        seed: sample k has a stream of its own keyed (seed, k); None draws a seed.
        noise: a source of noise instead of a seed, e.g. ``GeneratorNoise(generator)``.
        adjoint: parameters that get their gradients from the adjoint SDE; see ``TorchSDE``.

    Raises:
        ConfigError: unknown method, torchsde is missing, seed and noise both given. DTypeError, ShapeError,
            DomainError: bad states or times, a reverse run from alpha = 0. SolverError: a state is not finite.
    """
    _check_method(method)
    check_samples(x0, "x0")
    ends = check_times(sde, times, rising=not isinstance(sde, ReverseSDE))
    if isinstance(sde, ReverseSDE):
        check_start(sde.forward, ends)
    substeps = check_integer(substeps, "substeps", 1)
    if seed is not None and noise is not None:
        raise ConfigError("give one source of randomness, got seed and noise")
    if noise is None:
        noise = SampleNoise(fresh_seed() if seed is None else check_seed(seed))
        noise.rewind(1)
    fractions = torch.arange(1, substeps + 1, dtype=torch.float64, device="cpu") / substeps
    fine = torch.cat([ends[:1], (ends[:-1, None] + ends.diff()[:, None] * fractions).reshape(-1)])
    fine[substeps::substeps] = ends[1:]
    if adjoint is not None:
        adjoint = [
            check_instance(one, Tensor, f"adjoint[{k}]", "a tensor")
            for k, one in enumerate(check_sequence(adjoint, "adjoint", "parameters"))
        ]
    walked = walk(sde, x0, fine, noise, method=method, adjoint=adjoint)
    return torch.stack([x0, *(x for x, _ in itertools.islice(walked, substeps - 1, None, substeps))])


def check_start(sde: SDE, times: Tensor) -> None:
    """Raise DomainError if the reverse of ``sde`` along these decreasing times starts where alpha is 0."""
    if isinstance(sde, GaussianSDE) and len(times) > 1 and float(sde.alpha(times[0])) == 0:
        raise DomainError(
            f"alpha is 0 at t = {float(times[0]):g}, where the reverse drift and the diffusion are infinite: "
            "start below it with times=, or give the SDE a smaller t_max"
        )


def walk(
    sde: SDE,
    x: Tensor,
    times: Tensor,
    noise: NoiseSource | None,
    *,
    method: str,
    adjoint: Sequence[Tensor] | None = None,
    silent_end: bool = False,
) -> Iterator[tuple[Tensor, int]]:
    """Yield the state (B, *) at each time after the first, and the drift's evaluations so far.

    Args:
        sde: drift and diffusion in forward time.
        x: the state at ``times[0]``.
        times: monotone, float64.
        noise: ``DRAWS[method]`` draws a step; None for no noise.
        method: a key of ``DRAWS``.
        adjoint: None for gradients through the steps, else the parameters of the adjoint SDE.
        silent_end: take the last step without noise and without a draw.

    Raises:
        SolverError: a state is not finite; ``partial`` holds the one before.
    """
    torchsde = _torchsde()
    sign = 1.0 if len(times) < 2 or bool(times[1] > times[0]) else -1.0
    equation = _Equation(sde, x.shape, sign)
    y = x.reshape(x.shape[0], math.prod(x.shape[1:]))
    for i, (early, late) in enumerate(itertools.pairwise((sign * times).tolist())):
        source = None if silent_end and i == len(times) - 2 else noise
        path = _increment(y, late - early, DRAWS[method], source, x.shape)
        # The step reaches past the interval and is cut to it, so that no second, tiny one comes of rounding.
        arguments = {"bm": path, "method": method, "dt": 2 * (late - early)}
        ends = torch.tensor([early, late], dtype=torch.float64, device="cpu")
        before = y
        if adjoint is None:
            y = torchsde.sdeint(equation, y, ends, **arguments)[-1]
        else:
            y = torchsde.sdeint_adjoint(equation, y, ends, adjoint_params=tuple(adjoint), **arguments)[-1]
        if y.requires_grad and method == "milstein" and not equation.is_learned(before, early):
            y = y.detach()  # torchsde differentiates g by its state, and leaves the graph
        bad = ~torch.isfinite(y).all(1)
        if bool(bad.any()):
            raise SolverError(
                f"step {i} of torchsde's {method} at t = {sign * early:g} gave non-finite values in "
                f"{float(bad.double().mean()):.1%} of the samples; "
                f"{_cure(sde, before.reshape(x.shape), sign * early, sign)}",
                partial=before.reshape(x.shape),
            )
        yield y.reshape(x.shape), equation.calls


def _cure(sde: SDE, x: Tensor, t: float, sign: float) -> str:
    """Return what helps where some of the states x (B, *) were lost in a step from t."""
    if not runs_away(sde, x, t, sign):
        return "take smaller steps"
    return RUNS_AWAY if isinstance(sde, ReverseSDE) else "the drift itself carries states away; check its sign"


class _Equation:
    """torchsde's protocol for states (B, D), in the increasing time s = sign t; remembers a step's evaluations.

    torchsde's "srk" asks for the drift at a stage again for every later stage.
    """

    noise_type = "diagonal"
    sde_type = "ito"

    def __init__(self, sde: SDE, shape: torch.Size, sign: float) -> None:
        self.sde, self.shape, self.sign = sde, shape, sign
        self.calls = 0
        self.known: list[tuple[float, bool, Tensor, Tensor]] = []

    def f(self, s: Tensor, y: Tensor) -> Tensor:
        """Return the drift in s."""
        time, graph = float(s), torch.is_grad_enabled()
        for at, had_graph, state, value in self.known:
            # With a graph, equal values of another origin are not the same state.
            if at == time and had_graph == graph and (state is y or (not graph and torch.equal(state, y))):
                return value
        self.calls += 1
        value = self.sign * drift_of(self.sde, y.reshape(self.shape), self.sign * time).reshape(y.shape)
        self.known = [*self.known[-2:], (time, graph, y, value)]
        return value

    def is_learned(self, y: Tensor, s: float) -> bool:
        """Return whether a gradient is wanted of the state, or of what drift or diffusion hold."""
        s_now = torch.tensor(s, dtype=torch.float64, device="cpu")
        return any(part.requires_grad for part in (y, self.f(s_now, y), self.g(s_now, y)))

    def g(self, s: Tensor, y: Tensor) -> Tensor:
        """Return the diffusion, of y's shape."""
        return noise_of(self.sde, y.reshape(self.shape), self.sign * float(s)).reshape(y.shape)


class _Increment:
    """One interval of the driving path, in torchsde's protocol: W and U of the whole interval."""

    levy_area_approximation = "space-time"

    def __init__(self, w: Tensor, u: Tensor) -> None:
        self.w, self.u = w, u
        self.shape, self.dtype, self.device = w.shape, w.dtype, w.device

    def __call__(
        self, ta: Tensor, tb: Tensor, return_U: bool = False, return_A: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        return (self.w, self.u) if return_U else self.w


def _increment(y: Tensor, h: float, draws: int, noise: NoiseSource | None, shape: torch.Size) -> _Increment:
    """Draw the path over an interval of length h; without a source it is zero."""
    z = torch.zeros(2, *shape, dtype=y.dtype, device=y.device)
    if noise is not None:
        for part in z[:draws]:
            noise.fill(part)
    z = z.reshape(2, *y.shape)
    w = math.sqrt(h) * z[0]
    return _Increment(w, h / 2 * w + math.sqrt(h**3 / 12) * z[1])


def _check_method(method: str) -> None:
    check_choice("method", method, DRAWS)


@dataclass(frozen=True, eq=False)
class PathPlan:
    """Walk along the reverse SDE by a scheme of torchsde, chunk by chunk."""

    solver: TorchSDE
    sde: SDE
    knots: Tensor
    final: str
    trajectory: bool

    table = None
    has_bar = False

    @property
    def draws(self) -> int:
        """How many draws one run takes after its start state."""
        noisy = len(self.knots) - 1 - (self.final == "mean" and len(self.knots) > 1)
        return DRAWS[self.solver.method] * noisy if self.solver.eta > 0 else 0

    @property
    def times(self) -> tuple[float, ...]:
        """Start, the ends of the steps, and the time of clean data where the run goes there."""
        return (*self.knots.tolist(), *([0.0] if self.final == "denoise" else []))

    @property
    def start(self) -> Start | None:
        """Where the path starts."""
        return Start.at(self.sde, float(self.knots[0]))

    def __call__(self, model: Predictor | ScoredSDE, x: Tensor, noise: NoiseSource, cond: Condition) -> Part:
        """Walk along the reverse SDE."""
        reverse = self.sde.reverse(lambda x, t: model(x, t, cond), self.solver.eta)
        inputs = (*model.parameters(), *(() if cond is None else cond.values()))
        adjoint = [p for p in inputs if p.requires_grad] if self.solver.adjoint else None
        source, silent = (noise, self.final == "mean") if self.solver.eta > 0 else (None, False)
        states, calls = [x], 0
        method = self.solver.method
        for state, so_far in walk(reverse, x, self.knots, source, method=method, adjoint=adjoint, silent_end=silent):
            states, calls = [*states, state] if self.trajectory else [state], so_far
        if self.final == "denoise":
            states, calls = [*states, denoised(model, states[-1], float(self.knots[-1]), cond)], calls + 1
        counts = torch.full((x.shape[0],), calls, dtype=torch.long, device="cpu")
        steps = torch.full_like(counts, len(self.times) - 1)
        kept = torch.stack(states) if self.trajectory else None
        return Part(states[-1], counts, kept, torch.zeros_like(counts), steps, torch.zeros_like(counts))


def _knots(solver: TorchSDE, sde: SDE, steps: int | None, times: Tensor | Grid | None, final: str) -> Tensor:
    """Return the ends of the steps of a path; with ``steps`` the last one is the jump to clean data."""
    if times is not None and solver.dt is not None:
        raise ConfigError("give times= or TorchSDE(dt=), not both")
    check_one_way(steps, times)
    if isinstance(times, Tensor):
        return check_times(sde, times)
    if solver.dt is not None:
        return solver.grid(sde, steps)
    grid, count = choose_grid(uniform(), steps, times)
    count -= final == "denoise"
    if isinstance(sde, GaussianSDE):
        return grid(sde, count)
    if times is not None:
        raise ConfigError(f"{type(sde).__name__} has no alpha and sigma for a Grid; pass a tensor of times")
    return solver.grid(sde, count)
