"""Ways to sample as a text: a solver with its number of steps, its kernels and, for a comparison, its own samples.

What ``sample(solver=...)`` takes is what the command line takes: "dpmpp_2m:20", "pc:100", "ddpm:1000", "table.json".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from scoresde.chains.ddpm import DDPM
from scoresde.chains.smld import SMLD
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.kinds import ConfigError, printable
from scoresde.errors.names import unknown
from scoresde.errors.values import check_integer
from scoresde.models.prediction import Predictor
from scoresde.models.scored_sde import ScoredSDE
from scoresde.sampling.calibration import Calibration
from scoresde.sampling.kernels import Kernel, Langevin
from scoresde.solvers.adaptive import ProbabilityFlow
from scoresde.solvers.ancestral import reverse_diffusion
from scoresde.solvers.grids import MOST_STEPS
from scoresde.solvers.named import SOLVERS, by_name
from scoresde.solvers.solver import Solver
from scoresde.solvers.tableau import Tableau

__all__ = ["COMPOSED", "TUNED", "USUAL", "Sampler", "find_default", "parse_sampler", "read_solver", "read_table"]


TUNED, USUAL = "tuned", "default"


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


def _build_chain(kind: type[DDPM] | type[SMLD], which: str, home: str) -> Callable[[GaussianSDE, int], Sampler]:
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


def _build_pc(sde: GaussianSDE, steps: int) -> Sampler:
    return Sampler("pc", reverse_diffusion(), steps, kernels=(Langevin(),))


# Samplers that are more than a solver, with their usual number of steps.
COMPOSED: dict[str, tuple[Callable[[GaussianSDE, int], Sampler], int]] = {
    "ddpm": (_build_chain(DDPM, "that preserves variance", "VPSDE"), 1000),
    "smld": (_build_chain(SMLD, "that keeps the data's scale", "VESDE"), 1000),
    "pc": (_build_pc, 100),
}


def parse_sampler(
    text: str,
    sde: GaussianSDE,
    *,
    steps: int | None = None,
    samples: int | None = None,
    model: Predictor | None = None,
) -> Sampler:
    """Read "name", "name:steps" or a .json file with a saved table, each also with "@samples": "ddpm:1000@100".

    The name is one of ``solvers.SOLVERS``; "ddpm" or "smld", chains of ``steps`` indices, for SDEs that preserve
    variance and for those with alpha = 1; "pc", reverse diffusion with one Langevin step before each: two evaluations a
    step; "tuned", a table that ``tune`` made for the model, "tuned:8" of 8 evaluations; or "default", what the model's
    calibration says for 20 evaluations, "default:8" for 8, or what is usual without one.

    Args:
        text: what to read.
        sde: the SDE to sample under.
        steps: number of steps where the text names none.
        samples: number of samples where the text names none.
        model: what knows its tuned tables and its calibration.

    Raises:
        ConfigError: an unknown name (with the nearest), a tuned table that the model lacks (with those it has), steps
            or samples that are no number, steps beside a text that fixes them or for an adaptive solver, a file that
            holds no table, or a chain that the SDE cannot carry.
        DomainError: steps or samples < 1.
    """
    head, at, own = text.strip().rpartition("@")
    if not at or _is_table(own):
        head, at, own = text.strip(), "", ""
    if at and not own.isdecimal():
        raise ConfigError(f"sampler {text!r}: after the @ stands a number of samples, e.g. {head}@100", got=text)
    name, colon, count = head.partition(":")
    samples = check_integer(_read_count(own), f"samples of {name}", 1) if at else samples
    steps = None if steps is None else check_integer(steps, "steps", 1, MOST_STEPS)
    if steps is not None and (colon or _is_table(head)):
        raise ConfigError(
            f"sampler {text!r} names its steps already", parameter="steps", got=steps, cure=f"leave out steps={steps}"
        )
    if _is_table(head):
        table = read_table(Path(head))
        return Sampler(printable(table.name), table, samples=samples)
    _check_name("sampler", name)
    if colon and not count.isdecimal():
        raise ConfigError(f"sampler {text!r}: after the colon stands a number of steps, e.g. {name}:20", got=text)
    steps = check_integer(_read_count(count), f"steps of {name}", 1, MOST_STEPS) if colon else steps
    if name == TUNED:
        return Sampler(name, _find_table({} if model is None else model.tables, steps), samples=samples)
    if name == USUAL:
        return Sampler(name, find_default(model).table(sde, steps), samples=samples)
    if name in COMPOSED:
        build, usual = COMPOSED[name]
        return replace(build(sde, steps or usual), samples=samples)
    solver = by_name(name)
    if steps is not None and isinstance(solver, ProbabilityFlow):
        raise ConfigError(
            f"sampler {text!r}: the adaptive probability flow chooses its own steps", cure=f"write {name!r}"
        )
    return Sampler(name, solver, steps, samples=samples)


def _read_count(digits: str) -> int:
    """Return a number of at most 15 digits, and a larger one cut to them: more than anything takes."""
    return int(digits[:15])


def _find_table(tables: Mapping[int, str], steps: int | None) -> Tableau:
    """Return the tuned table of so many evaluations, or the only one."""
    if not tables:
        raise ConfigError("the model has no tuned tables; make one with tune(model, steps) or scoresde tune")
    have = ", ".join(map(str, sorted(tables)))
    if steps is None and len(tables) > 1:
        raise ConfigError(f"the model has tuned tables of {have} evaluations; name one, e.g. steps={min(tables)}")
    if steps is not None and steps not in tables:
        raise ConfigError(f"no tuned table of {steps} evaluations; the model has {have}; tune(model, {steps}) makes it")
    return Tableau.from_json(tables[min(tables) if steps is None else steps])


def read_solver(
    solver: object, model: Predictor | ScoredSDE, steps: int | None, kernels: Sequence[Kernel]
) -> tuple[object, int | None, Sequence[Kernel]]:
    """Return the solver, the number of steps and the kernels that a text of ``sample(solver=...)`` stands for.

    None is the model's calibration, or what is usual without one. Anything else than a text is returned as it is, and
    so are the steps beside a solver's plain name, for the plan.

    Raises:
        ConfigError: what ``parse_sampler`` refuses, or a number of samples.
    """
    if solver is None:
        return find_default(model), steps, kernels
    if not isinstance(solver, str):
        return solver, steps, kernels
    sde = model.sde
    if solver in SOLVERS:
        return by_name(solver), steps, kernels
    name = solver.partition(":")[0]
    if not _is_table(solver):
        _check_name("solver", name.partition("@")[0])
        if not isinstance(sde, GaussianSDE):
            return by_name(name), steps, kernels
    known = model if isinstance(model, Predictor) else None
    made = parse_sampler(solver, cast(GaussianSDE, sde), steps=steps, model=known)
    if made.samples is not None:
        raise ConfigError(f"solver={solver!r}: the number behind the @ is for comparisons; here shape= says it")
    return made.solver, made.steps, (*made.kernels, *kernels)


def find_default(model: Predictor | ScoredSDE | None) -> Calibration:
    """Return the calibration of a model, or an empty one, which says what is usual."""
    text = model.calibration if isinstance(model, Predictor) else None
    return Calibration() if text is None else Calibration.from_json(text)


def read_table(path: Path) -> Tableau:
    """Return the table of a JSON file.

    Raises:
        ConfigError: no such file, or no table in it.
    """
    try:
        return Tableau.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the table {path} cannot be read: {error.strerror}", cure="name a .json file") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def _is_table(text: str) -> bool:
    return text.lower().endswith(".json")


def _check_name(kind: str, name: str) -> None:
    if name not in SOLVERS and name not in COMPOSED and name not in (TUNED, USUAL):
        raise unknown(kind, name, [*SOLVERS, *COMPOSED, TUNED, USUAL])
