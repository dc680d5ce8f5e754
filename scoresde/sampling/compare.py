"""Comparison of samplers: one model, many samplers discrete and continuous, one table.

Each sampler draws from the same model; each metric measures its samples against held-out data. A metric's *floor* is
what two independent sets of real data of these sizes measure: no sampler can be told from the data below it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from scoresde.chains.ddpm import DDPM
from scoresde.chains.smld import SMLD
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors import ConfigError, check_integer, unknown
from scoresde.metrics.floors import Comparison, Floor
from scoresde.models.prediction import Condition
from scoresde.models.score_model import ScoreModel
from scoresde.sampling.kernels import Kernel, Langevin
from scoresde.sampling.sample import SampleResult, sample
from scoresde.solvers.adaptive import ProbabilityFlow
from scoresde.solvers.ancestral import reverse_diffusion
from scoresde.solvers.named import SOLVERS, by_name
from scoresde.solvers.solver import Solver
from scoresde.solvers.tableau import Tableau

__all__ = ["DEFAULT_SAMPLERS", "Sampler", "compare", "format_table", "parse_sampler"]

Metric = Callable[[Tensor], float]
Floors = Mapping[str, Floor]
DEFAULT_SAMPLERS = (
    "ddpm:1000",
    "euler_maruyama:200",
    "pc:100",
    "probability_flow",
    "dpmpp_2m:10",
    "dpmpp_2m:20",
    "flow_abm:10",
)


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


def compare(
    model: ScoreModel,
    samplers: Sequence[Sampler],
    metrics: Mapping[str, Metric],
    *,
    samples: int = 1000,
    floors: Floors | Callable[[int], Floors] | None = None,
    cond: Callable[[int], Condition] | None = None,
    seed: int = 0,
    chunk_size: int | None = None,
    progress: bool = True,
    on_row: Callable[[Comparison, Tensor], None] | None = None,
) -> tuple[list[Comparison], list[Tensor]]:
    """Draw from every sampler and measure: one row and one set of samples each.

    Args:
        model: the model.
        samplers: what to compare, in the order of the table.
        metrics: name to a function of samples (n, *) in the data's units.
        samples: how many each sampler draws, unless it says so itself.
        floors: name to the metric's floor, if known; or a function of the number of samples, where that differs.
        cond: number of samples to their conditions, for conditional models.
        seed: all samplers start from the same noise: sample k has the stream (seed, k) in each.
        chunk_size: largest batch given to the network at once.
        progress: show a bar.
        on_row: called with each row and its samples as soon as they are there.

    Raises what ``sample`` raises.
    """
    check_integer(samples, "samples", 1)
    rows: list[Comparison] = []
    drawn: list[Tensor] = []
    event = _event(model)
    bar = tqdm(samplers, desc="comparing", unit="sampler", disable=not progress, leave=False)
    for one in bar:
        bar.set_postfix_str(one.name)
        count = one.samples or samples
        start = time.perf_counter()
        result = sample(
            model,
            (count, *event),
            solver=one.solver,
            steps=one.steps,
            kernels=one.kernels,
            cond=None if cond is None else cond(count),
            seed=seed,
            chunk_size=chunk_size,
            progress=progress,
            full_output=True,
        )
        assert isinstance(result, SampleResult)
        took = time.perf_counter() - start
        known = floors(count) if callable(floors) else floors or {}
        row = Comparison(
            sampler=one.name,
            nfe=float(result.nfe.double().mean()),
            seconds=took,
            samples=count,
            distances={name: metric(result.x) for name, metric in metrics.items()},
            floors={name: known[name].mean for name in metrics if name in known},
            floor_stds={name: known[name].std for name in metrics if name in known},
        )
        rows.append(row)
        drawn.append(result.x)
        if on_row is not None:
            on_row(row, result.x)
    return rows, drawn


def _event(model: ScoreModel) -> torch.Size:
    """Return the shape of one sample, which the model's moments know."""
    if model.moments is None:
        raise ConfigError("the model knows no data moments, so no event shape; train it with fit, or set model.moments")
    return model.moments.mean.shape


def format_table(rows: Sequence[Comparison]) -> str:
    """Return the rows as text in columns: sampler, evaluations, samples, seconds, each distance; then the floors.

    There is one line of floors, mean and standard deviation, for each number of samples: that many real samples.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.distances))
    width = max([14, *(len(row.sampler) for row in rows)])
    cells = [(row, {name: f"{value:.4g}" for name, value in row.distances.items()}) for row in rows]
    sized = {row.samples: row for row in rows if row.floors}
    floors = [(row, {name: _with_spread(row, name) for name in row.floors}) for _, row in sorted(sized.items())]
    columns = [max(len(name), *(len(texts.get(name, "")) for _, texts in cells + floors)) for name in names]

    def measured(texts: Mapping[str, str]) -> str:
        return "".join(f"  {texts.get(name, '-'):>{w}}" for name, w in zip(names, columns, strict=True))

    head = measured({name: name for name in names})
    lines = [f"{'sampler':<{width}} {'NFE':>7} {'samples':>8} {'seconds':>8}{head}"]
    for row, texts in cells:
        lines.append(f"{row.sampler:<{width}} {row.nfe:>7.4g} {row.samples:>8} {row.seconds:>8.2f}{measured(texts)}")
    for row, texts in floors:
        lines.append(f"{'floor':<{width}} {'':>7} {row.samples:>8} {'':>8}{measured(texts)}")
    return "\n".join(lines)


def _with_spread(row: Comparison, name: str) -> str:
    """Write a floor as mean ± standard deviation."""
    std = row.floor_stds.get(name)
    return f"{row.floors[name]:.4g}" if std is None else f"{row.floors[name]:.3g} ± {std:.2g}"
