"""Ways to sample by name: a solver with its number of steps, its kernels and, for a comparison, its own samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from scoresde.chains.ddpm import DDPM
from scoresde.chains.smld import SMLD
from scoresde.diffusions.sde import SDE, GaussianSDE
from scoresde.errors import ConfigError, check_integer, unknown
from scoresde.sampling.kernels import Kernel, Langevin
from scoresde.solvers.adaptive import ProbabilityFlow
from scoresde.solvers.ancestral import reverse_diffusion
from scoresde.solvers.named import SOLVERS, by_name
from scoresde.solvers.solver import Solver
from scoresde.solvers.tableau import Tableau

__all__ = ["Sampler", "parse_sampler", "read_solver"]


@dataclass(frozen=True)
class Sampler:
    """A way to draw samples, with the name under which it is shown.

    Args:
        name: the name; rows of one name are one sampler at several costs.
        solver: what ``sample`` takes.
        steps: number of intervals, where the solver takes one.
        kernels: correctors.
        samples: number of samples, where it differs from the comparison's.
    """

    name: str
    solver: Solver | Tableau | ProbabilityFlow
    steps: int | None = None
    kernels: tuple[Kernel, ...] = ()
    samples: int | None = None


def _chain(kind: type[DDPM] | type[SMLD], which: str, home: str) -> Callable[[GaussianSDE, int], Sampler]:
    """Return how a kind of chain samples: by its ancestral table, at the SDE's own knots."""
    name = kind.__name__.lower()

    def build(sde: GaussianSDE, steps: int) -> Sampler:
        try:
            chain = kind.from_sde(sde, steps)
        except ConfigError as error:
            raise ConfigError(
                f"sampler {name!r} is a discrete chain {which}, and {type(sde).__name__} does not; "
                f"use ancestral:{steps}, the same step in continuous time, or a model of {home}"
            ) from error
        return Sampler(name, chain.ancestral())

    return build


def _pc(sde: GaussianSDE, steps: int) -> Sampler:
    return Sampler("pc", reverse_diffusion(), steps, kernels=(Langevin(),))


# Samplers that are more than a solver, with their usual number of steps.
COMPOSED: dict[str, tuple[Callable[[GaussianSDE, int], Sampler], int]] = {
    "ddpm": (_chain(DDPM, "that preserves variance", "VPSDE"), 1000),
    "smld": (_chain(SMLD, "that keeps the data's scale", "VESDE"), 1000),
    "pc": (_pc, 100),
}


def parse_sampler(text: str, sde: GaussianSDE, *, samples: int | None = None) -> Sampler:
    """Read "name", "name:steps" or either with "@samples" behind it, e.g. "ddpm:1000@100".

    The name is one of ``solvers.SOLVERS``; "ddpm" or "smld", chains of ``steps`` indices, for SDEs that preserve
    variance and for those with alpha = 1; or "pc", reverse diffusion with one Langevin step before each: two
    evaluations a step.

    Args:
        text: what to read.
        sde: the SDE to sample under.
        samples: number of samples where the text names none.

    Raises:
        ConfigError: an unknown name (with the nearest), steps or samples that are no number, steps for an adaptive
            solver, or a chain that the SDE cannot carry.
        DomainError: steps or samples < 1.
    """
    solver_text, at, own = text.strip().partition("@")
    name, colon, count = solver_text.partition(":")
    if name not in SOLVERS and name not in COMPOSED:
        raise unknown("sampler", name, [*SOLVERS, *COMPOSED])
    if colon and not count.isdecimal():
        raise ConfigError(f"sampler {text!r}: after the colon stands a number of steps, e.g. {name}:20")
    if at and not own.isdecimal():
        raise ConfigError(f"sampler {text!r}: after the @ stands a number of samples, e.g. {solver_text}@100")
    steps = check_integer(int(count), f"steps of {name}", 1) if colon else None
    if at:
        samples = check_integer(int(own), f"samples of {name}", 1)
    if name in COMPOSED:
        build, usual = COMPOSED[name]
        made = build(sde, steps or usual)
    else:
        solver = by_name(name)
        if steps is not None and isinstance(solver, ProbabilityFlow):
            raise ConfigError(f"sampler {text!r}: the adaptive probability flow chooses its own steps; write {name!r}")
        made = Sampler(name, solver, steps)
    return replace(made, samples=samples)


def read_solver(
    solver: object, sde: SDE, steps: int | None, kernels: Sequence[Kernel]
) -> tuple[object, int | None, Sequence[Kernel]]:
    """Return the solver, the number of steps and the kernels that a name of ``sample(solver=...)`` stands for.

    Anything else than a name is returned as it is.

    Raises:
        ConfigError: an unknown name, steps in the name and beside it, or a number of samples.
    """
    if not isinstance(solver, str):
        return solver, steps, kernels
    name, colon, _ = solver.partition(":")
    if name not in SOLVERS and name not in COMPOSED:
        raise unknown("solver", name, [*SOLVERS, *COMPOSED])
    if "@" in solver:
        raise ConfigError(f"solver={solver!r}: the number behind the @ is for comparisons; here shape= says it")
    if colon and steps is not None:
        raise ConfigError(f"solver={solver!r} names its steps already; leave out steps={steps}")
    if name in COMPOSED and isinstance(sde, GaussianSDE):
        count = "" if steps is None else f":{check_integer(steps, 'steps', 1)}"
        made = parse_sampler(solver + count, sde)
    elif colon and isinstance(sde, GaussianSDE):
        made = parse_sampler(solver, sde)
    else:
        return by_name(name), steps, kernels
    return made.solver, made.steps, (*made.kernels, *kernels)
