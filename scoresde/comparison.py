"""Comparison of samplers: one model, many samplers discrete and continuous, one table.

Each sampler draws from the same model; each metric measures its samples against held-out data. A metric's *floor* is what
two independent sets of real data of these sizes measure: no sampler can be told from the data below it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from scoresde.chains import DDPM
from scoresde.errors import ConfigError, check_integer, unknown
from scoresde.kernels import Kernel, Langevin
from scoresde.metrics import Comparison, Floor
from scoresde.model import Condition, ScoreModel
from scoresde.sampling import SampleResult, sample
from scoresde.sde import GaussianSDE
from scoresde.solvers import SOLVERS, ProbabilityFlow, Solver, by_name, reverse_diffusion
from scoresde.tableau import Tableau

__all__ = ["DEFAULT_SAMPLERS", "Sampler", "compare", "format_table", "parse_sampler"]

Metric = Callable[[Tensor], float]
DEFAULT_SAMPLERS = ("ddpm:1000", "euler_maruyama:200", "pc:100", "probability_flow", "dpmpp_2m:10", "dpmpp_2m:20")


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


def _ddpm(sde: GaussianSDE, steps: int) -> Sampler:
    return Sampler("ddpm", DDPM.from_sde(sde, steps).ancestral())


def _pc(sde: GaussianSDE, steps: int) -> Sampler:
    return Sampler("pc", reverse_diffusion(), steps, kernels=(Langevin(),))


# Samplers that are more than a solver, with their usual number of steps.
COMPOSED: dict[str, tuple[Callable[[GaussianSDE, int], Sampler], int]] = {"ddpm": (_ddpm, 1000), "pc": (_pc, 100)}


def parse_sampler(text: str, sde: GaussianSDE, *, samples: int | None = None) -> Sampler:
    """Read "name" or "name:steps": a name of ``solvers.SOLVERS``, "ddpm" (a chain of ``steps`` indices) or "pc".

    "pc" is reverse diffusion with one Langevin step before each, two evaluations a step.

    Raises:
        ConfigError: an unknown name (with the nearest), steps that are no number, or steps for an adaptive solver.
        DomainError: steps < 1.
    """
    name, colon, count = text.strip().partition(":")
    if name not in SOLVERS and name not in COMPOSED:
        raise unknown("sampler", name, [*SOLVERS, *COMPOSED])
    if colon and not count.isdecimal():
        raise ConfigError(f"sampler {text!r}: after the colon stands a number of steps, e.g. {name}:20")
    steps = check_integer(int(count), f"steps of {name}", 1) if colon else None
    if name in COMPOSED:
        build, usual = COMPOSED[name]
        made = build(sde, steps or usual)
    else:
        solver = by_name(name)
        if steps is not None and isinstance(solver, ProbabilityFlow):
            raise ConfigError(f"sampler {text!r}: the adaptive probability flow chooses its own steps; write {name!r}")
        made = Sampler(name, solver, steps)
    return Sampler(made.name, made.solver, made.steps, made.kernels, samples)


def compare(
    model: ScoreModel,
    samplers: Sequence[Sampler],
    metrics: Mapping[str, Metric],
    *,
    samples: int = 1000,
    floors: Mapping[str, Floor] | None = None,
    cond: Callable[[int], Condition] | None = None,
    seed: int = 0,
    chunk_size: int | None = None,
    progress: bool = True,
) -> tuple[list[Comparison], list[Tensor]]:
    """Draw from every sampler and measure: one row and one set of samples each.

    Args:
        model: the model.
        samplers: what to compare, in the order of the table.
        metrics: name to a function of samples (n, *) in the data's units.
        samples: how many each sampler draws, unless it says so itself.
        floors: name to the metric's floor, if known.
        cond: number of samples to their conditions, for conditional models.
        seed: all samplers start from the same noise: sample k has the stream (seed, k) in each.
        chunk_size: largest batch given to the network at once.
        progress: show a bar.

    Raises what ``sample`` raises.
    """
    check_integer(samples, "samples", 1)
    rows: list[Comparison] = []
    drawn: list[Tensor] = []
    event = _event(model)
    bar = tqdm(samplers, desc="comparing", disable=not progress, leave=False)
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
            full_output=True,
        )
        assert isinstance(result, SampleResult)
        took = time.perf_counter() - start
        known = floors or {}
        rows.append(
            Comparison(
                sampler=one.name,
                nfe=float(result.nfe.double().mean()),
                seconds=took,
                samples=count,
                distances={name: metric(result.x) for name, metric in metrics.items()},
                floors={name: known[name].mean for name in metrics if name in known},
                floor_stds={name: known[name].std for name in metrics if name in known},
            )
        )
        drawn.append(result.x)
    return rows, drawn


def _event(model: ScoreModel) -> torch.Size:
    """Return the shape of one sample, which the model's moments know."""
    if model.moments is None:
        raise ConfigError("the model knows no data moments, so no event shape; train it with fit, or set model.moments")
    return model.moments.mean.shape


def format_table(rows: Sequence[Comparison]) -> str:
    """Return the rows as text in columns: sampler, evaluations, samples, seconds, each distance; then the floors."""
    names = list(rows[0].distances) if rows else []
    width = max([14, *(len(row.sampler) for row in rows)])
    widths = [max(10, len(name)) for name in names]
    head = f"{'sampler':<{width}} {'NFE':>7} {'samples':>8} {'seconds':>8}"
    lines = [head + "".join(f"  {name:>{w}}" for name, w in zip(names, widths, strict=True))]
    for row in rows:
        cells = "".join(f"  {row.distances[name]:>{w}.4g}" for name, w in zip(names, widths, strict=True))
        lines.append(f"{row.sampler:<{width}} {row.nfe:>7.4g} {row.samples:>8} {row.seconds:>8.2f}{cells}")
    if rows and rows[0].floors:
        known = [f"{rows[0].floors[name]:.4g}" if name in rows[0].floors else "-" for name in names]
        cells = "".join(f"  {cell:>{w}}" for cell, w in zip(known, widths, strict=True))
        lines.append(f"{'floor':<{width}} {'':>7} {'':>8} {'':>8}{cells}")
    return "\n".join(lines)
