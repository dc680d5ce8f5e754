"""Comparison of samplers: one model, many samplers discrete and continuous, one table.

Each sampler draws from the same model; each metric measures its samples against held-out data. A metric's *floor* is
what two independent sets of real data of these sizes measure: no sampler can be told from the data below it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from scoresde.errors.kinds import ConfigError, DTypeError, show
from scoresde.errors.values import check_callable, check_flag, check_integer, check_mapping, check_sequence, check_sizes
from scoresde.metrics.floors import Comparison, Floor
from scoresde.models.checks import check_model
from scoresde.models.prediction import Condition, Predictor
from scoresde.sampling.sample import SampleResult, sample
from scoresde.sampling.samplers import Sampler
from scoresde.sampling.stability import measure_table

__all__ = ["DEFAULT_SAMPLERS", "compare", "format_table"]

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


def compare(
    model: Predictor,
    samplers: Sequence[Sampler],
    metrics: Mapping[str, Metric],
    *,
    samples: int = 1000,
    event: Sequence[int] | None = None,
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
        event: the shape of one sample; by default that of the model's moments.
        floors: name to the metric's floor, if known; or a function of the number of samples, where that differs.
        cond: number of samples to their conditions, for conditional models.
        seed: all samplers start from the same noise: sample k has the stream (seed, k) in each.
        chunk_size: largest batch given to the network at once.
        progress: show a bar.
        on_row: called with each row and its samples as soon as they are there.

    Raises what ``sample`` raises.
    """
    model = check_model(model)
    samples = check_integer(samples, "samples", 1)
    samplers, metrics = check_sequence(samplers, "samplers", "Sampler"), check_mapping(metrics, "metrics", "functions")
    for k, one in enumerate(samplers):
        if not isinstance(one, Sampler):
            raise DTypeError(f"samplers[{k}] must be a Sampler, got {show(one)}", cure="Sampler(name, solver, steps)")
    for name, metric in metrics.items():
        check_callable(metric, f"metrics[{name!r}]", "of samples")
    check_callable(cond, "cond", "of a number of samples")
    check_callable(on_row, "on_row", "of a row and its samples")
    check_flag(progress, "progress")
    if not callable(floors) and floors is not None:
        check_mapping(floors, "floors", "Floor")
    rows: list[Comparison] = []
    drawn: list[Tensor] = []
    shape = _event(model) if event is None else check_sizes(event, "event", 1)
    bar = tqdm(samplers, desc="comparing", unit="sampler", disable=not progress, leave=False)
    for one in bar:
        bar.set_postfix_str(one.name)
        count = one.samples or samples
        start = time.perf_counter()
        result = sample(
            model,
            (count, *shape),
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
        amplification, excess = measure_table(model.sde, one.solver, one.steps, model.moments)
        known = floors(count) if callable(floors) else floors or {}
        row = Comparison(
            sampler=one.name,
            nfe=float(result.nfe.double().mean()),
            seconds=took,
            samples=count,
            distances={name: metric(result.x) for name, metric in metrics.items()},
            floors={name: known[name].mean for name in metrics if name in known},
            floor_stds={name: known[name].std for name in metrics if name in known},
            amplification=amplification,
            excess=excess,
        )
        rows.append(row)
        drawn.append(result.x)
        if on_row is not None:
            on_row(row, result.x)
    return rows, drawn


def _event(model: Predictor) -> torch.Size:
    """Return the shape of one sample, which the model's moments know."""
    if model.moments is None:
        raise ConfigError("the model knows no data moments, so no event shape; pass event=, e.g. event=(1, 8, 8)")
    return model.moments.mean.shape


def format_table(rows: Sequence[Comparison]) -> str:
    """Return the rows as text in columns: sampler, evaluations, samples, seconds, two facts of its table, distances.

    The facts are the change of the table's output for each unit of error in the data prediction ("error x"), and the
    variance that it makes of Gaussian data, in units of theirs ("variance x"). Below is one line of floors, mean and
    standard deviation, for each number of samples: that many real samples.
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
    lines = [f"{'sampler':<{width}} {'NFE':>7} {'samples':>8} {'seconds':>8} {'error x':>8} {'variance x':>10}{head}"]
    for row, texts in cells:
        known = f"{_write(row.amplification):>8} {_write(row.excess):>10}"
        lines.append(
            f"{row.sampler:<{width}} {row.nfe:>7.4g} {row.samples:>8} {row.seconds:>8.2f} {known}{measured(texts)}"
        )
    for row, texts in floors:
        lines.append(f"{'floor':<{width}} {'':>7} {row.samples:>8} {'':>28}{measured(texts)}")
    return "\n".join(lines)


def _write(known: float | None) -> str:
    return "-" if known is None else f"{known:.3g}"


def _with_spread(row: Comparison, name: str) -> str:
    """Write a floor as mean ± standard deviation."""
    std = row.floor_stds.get(name)
    return f"{row.floors[name]:.4g}" if std is None else f"{row.floors[name]:.3g} ± {std:.2g}"
