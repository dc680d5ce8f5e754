r"""Sampling: from a model, a solver and a source of noise to samples.

``steps = n`` means n intervals. Under ``final="denoise"``, the default, the last of them is the jump from the grid's
last time to clean data, x <- the data prediction, so that a method with one evaluation a step makes n calls. A solver
that steps into sigma = 0 as well as elsewhere (``Solver.closes``) ends its last interval there instead.
``final="sample"`` ends at t_min, ``final="mean"`` there without the last noise. With ``times=`` the entries are the
interval ends, and ``final="denoise"`` adds one call at the last entry unless its sigma is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from tqdm import tqdm

from scoresde.diffusions.gaussian import Gaussian
from scoresde.diffusions.sde import SDE, GaussianSDE
from scoresde.errors import (
    ConfigError,
    DTypeError,
    ShapeError,
    SolverError,
    check_device,
    check_floating,
    check_integer,
    check_samples,
    unknown,
)
from scoresde.models.prediction import Condition
from scoresde.models.score_model import ScoreModel, check_condition, in_mode
from scoresde.noise import GeneratorNoise, NoiseSource, SampleNoise, TapeNoise, check_seed, fresh_seed
from scoresde.sampling.bridge.paths import TorchSDE
from scoresde.sampling.executor import Step
from scoresde.sampling.flow import ScoredSDE
from scoresde.sampling.kernels import Kernel
from scoresde.sampling.plan import FlowRun, PathRun, TableRun, run_without_table
from scoresde.solvers.adaptive import FlowSolver
from scoresde.solvers.build import build_table
from scoresde.solvers.grids import Grid
from scoresde.solvers.named import DEFAULT, by_name
from scoresde.solvers.solver import Solver
from scoresde.solvers.tableau import Tableau

__all__ = ["SampleResult", "sample"]


@dataclass(frozen=True, eq=False)
class SampleResult:
    """Samples and how they came about.

    Args:
        x: samples (B, *), in the data's units.
        nfe: evaluations of the model for each sample, (B,).
        times: start time, the times of the steps and the end time; for an adaptive solver, start and end.
        trajectory: the states at ``times``, (len(times), B, *), in the model's coordinates; None unless asked for.
        status: (B,), 0 where a sample is finished and 1 where it was frozen at its last finite state.
        accepted: accepted steps of each sample, (B,).
        rejected: rejected steps of each sample, (B,).
        seed: the seed that was used; None with ``seeds``, ``generator`` or ``noise``.
    """

    x: Tensor
    nfe: Tensor
    times: tuple[float, ...]
    trajectory: Tensor | None
    status: Tensor
    accepted: Tensor
    rejected: Tensor
    seed: int | None


def sample(
    model: ScoreModel | Callable[..., Tensor],
    shape: Sequence[int] | None = None,
    *,
    sde: SDE | None = None,
    solver: str | Solver | Tableau | FlowSolver | TorchSDE = DEFAULT,
    steps: int | None = None,
    times: Tensor | Grid | None = None,
    final: str = "denoise",
    kernels: Sequence[Kernel] = (),
    cond: Condition = None,
    x_init: Tensor | None = None,
    prior: Gaussian | None = None,
    seed: int | None = None,
    seeds: Sequence[int] | None = None,
    first_sample: int = 0,
    generator: torch.Generator | None = None,
    noise: Sequence[Tensor] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    chunk_size: int | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_nonfinite: str = "raise",
    trajectory: bool = False,
    differentiable: bool = False,
    progress: bool = False,
    full_output: bool = False,
) -> Tensor | SampleResult:
    """Draw samples.

    Args:
        model: a ScoreModel, or a callable (x, t) -> score together with ``sde``.
        shape: (B, *) of the result; may be left out with ``x_init``.
        sde: the SDE to sample under; by default the model's. Another one carries the model over at equal log-SNR.
        solver: a published name, a Solver, a built Tableau, a ProbabilityFlow, or one of ``scoresde.bridge``; by
            default ``flow_abm``. An SDE without alpha and sigma needs one of the last two kinds.
        steps: number of intervals (20 by default, or the grid's own).
        times: interval ends as a decreasing tensor, or a Grid.
        final: "denoise", "sample" or "mean"; see the module's docstring.
        kernels: Markov kernels applied in order before each step, e.g. ``[Langevin(snr=0.16)]``.
        cond: tensors passed to the network, split along the batch.
        x_init: start state at the table's first time, in the model's coordinates; not written to.
        prior: law of the start state; by default from the data's moments if the model knows them.
        seed: every sample k has a stream of its own keyed (seed, k); None draws a seed and reports it.
        seeds: one seed for each sample instead.
        first_sample: number of the first sample: ``first_sample=k`` with B = 1 redraws sample k alone.
        generator: an ordinary torch generator instead of a seed.
        noise: recorded tensors used in order (the start state first, unless x_init is given).
        device: by default the model's, or x_init's.
        dtype: type of the result, by default x_init's or float32. Half types are carried in float32 and cast.
        chunk_size: largest batch given to the network at once.
        on_step: called with a ``Step`` after each row.
        on_nonfinite: "raise" checks once after the loop and replays to find the step; "freeze" checks every step.
        trajectory: keep the state after every row.
        differentiable: keep the graph from x_init, conditions and parameters to the result.
        progress: show a bar: of the rows of a table, or of the chunks where the solver is none.
        full_output: return a SampleResult instead of the tensor.

    Raises:
        ShapeError, DTypeError, DomainError, ConfigError: bad input, before any call of the network.
        SolverError: non-finite states (with step, time and share; ``partial`` holds the state), or a failed flow.
    """
    model = _as_model(model, sde)
    if isinstance(solver, str):
        solver = by_name(solver)
    if on_nonfinite not in ("raise", "freeze"):
        raise unknown("on_nonfinite", on_nonfinite, ("raise", "freeze"))
    shape, dtype, device = _layout(model, shape, x_init, dtype, device)
    if model.transform is not None:  # asked of no samples, so that a misfit shows before any call
        model.transform.inverse(torch.empty((0, *shape[1:]), dtype=dtype))
    cond = check_condition(cond, shape[0])
    used_seed = _check_sources(seed, seeds, generator, noise, shape[0], device)
    _check_parts(kernels, on_step, prior, shape)
    check_integer(first_sample, "first_sample", 0, 2**63 - 1)
    if chunk_size is not None:
        check_integer(chunk_size, "chunk_size", 1)
    runner: FlowRun | PathRun | TableRun
    if isinstance(solver, (FlowSolver, TorchSDE)):
        asked = {
            "kernels": bool(kernels),
            "on_step": on_step is not None,
            "on_nonfinite='freeze'": on_nonfinite == "freeze",
            "trajectory": trajectory,
            "differentiable": differentiable,
        }
        runner = run_without_table(solver, model.sde, steps, times, final, asked)
    else:
        runner = TableRun(
            build_table(model.sde, solver, steps=steps, times=times, final=final),
            kernels,
            on_step,
            on_nonfinite,
            trajectory,
            differentiable,
            progress,
        )
    if isinstance(model, ScoredSDE) and prior is None and x_init is None:
        prior = model.sde.prior(runner.times[0])
    if noise is not None:
        _check_tape(noise, shape, runner.draws + (x_init is None))
    if model.moments is not None and x_init is None and model.moments.mean.shape not in ((), shape[1:]):
        raise ShapeError(
            f"shape must be (B, *) with the event {tuple(model.moments.mean.shape)} of the model's data, got {shape}"
        )
    if shape[0] == 0:
        empty = torch.empty(shape, dtype=dtype, device=device)
        none = torch.zeros(0, dtype=torch.long)
        result = SampleResult(empty, none, runner.times, None, none, none, none, used_seed)
        return result if full_output else result.x
    size = chunk_size or shape[0]
    parts = []
    shared = None if generator is None else GeneratorNoise(generator)
    # A table shows its own bar, row by row; what chooses its own steps can only count the samples that are done.
    rowless = progress and not isinstance(runner, TableRun)
    bar = tqdm(total=shape[0], desc="sampling", unit="sample", disable=not rowless, leave=False)
    with bar, in_mode(model, training=False), torch.set_grad_enabled(differentiable):
        for low in range(0, shape[0], size):
            high = min(low + size, shape[0])
            source: NoiseSource
            if shared is not None:
                source = shared
            elif noise is not None:
                source = TapeNoise([z[low:high] for z in noise], first_draw=0 if x_init is None else 1)
            else:
                part = None if seeds is None else list(seeds)[low:high]
                source = SampleNoise(used_seed or 0, first_sample + low, part)
            x = _start(model, runner.start, prior, x_init, source, (high - low, *shape[1:]), low, dtype, device)
            here = None if cond is None else {k: v[low:high].to(device) for k, v in cond.items()}
            try:
                parts.append(runner(model, x, source, here))
                bar.update(high - low)
            except torch.OutOfMemoryError as error:
                raise SolverError(f"out of memory with {high - low} samples; pass a smaller chunk_size=") from error
    x = torch.cat([p.x for p in parts])
    if model.transform is not None:
        x = model.transform.inverse(x)
    result = SampleResult(
        x.to(dtype),
        torch.cat([p.nfe for p in parts]),
        runner.times,
        torch.cat([p.trajectory for p in parts if p.trajectory is not None], 1) if trajectory else None,
        torch.cat([p.status for p in parts]),
        torch.cat([p.accepted for p in parts]),
        torch.cat([p.rejected for p in parts]),
        used_seed,
    )
    return result if full_output else result.x


def _as_model(model: object, sde: SDE | None) -> ScoreModel | ScoredSDE:
    """Return the model under the SDE to sample with."""
    plain = isinstance(sde, SDE) and not isinstance(sde, GaussianSDE)
    if isinstance(model, ScoreModel):
        if plain:
            raise ConfigError(
                f"{type(sde).__name__} has no alpha and sigma that would carry a ScoreModel over to it; pass its own "
                "score as a function (x, t) -> score"
            )
        return model if sde is None or sde is model.sde else model.with_sde(cast(GaussianSDE, sde))
    if not callable(model):
        raise DTypeError(f"model must be a ScoreModel or a callable (x, t) -> score, got {type(model).__name__}")
    if sde is None:
        raise ConfigError("a bare score function needs sde=, e.g. sample(score, (64, 2), sde=VPSDE())")
    return ScoredSDE(model, sde) if plain else ScoreModel.from_callable(model, cast(GaussianSDE, sde))


def _layout(
    model: ScoreModel | ScoredSDE,
    shape: Sequence[int] | None,
    x_init: Tensor | None,
    dtype: object,
    device: torch.device | str | None,
) -> tuple[tuple[int, ...], torch.dtype, torch.device]:
    """Return shape, type and device of the result."""
    if x_init is not None:
        check_floating(x_init, "x_init")
        if shape is not None and tuple(shape) != tuple(x_init.shape):
            raise ShapeError(f"shape {tuple(shape)} and x_init of shape {tuple(x_init.shape)} differ; leave out shape")
        shape, dtype = tuple(x_init.shape), dtype or x_init.dtype
        device = x_init.device if device is None else device
    if shape is None or isinstance(shape, int) or len(shape) == 0:
        raise ShapeError("shape must be (B, *), e.g. sample(model, (64, 2)); or pass x_init")
    for k, n in enumerate(shape):
        check_integer(n, f"shape[{k}]", 0)
    dtype = torch.float32 if dtype is None else dtype
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise DTypeError(f"dtype must be a real floating type of torch, e.g. torch.float32, got {dtype!r}")
    try:
        place = torch.empty(0, device=device or model.device or "cpu").device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(f"device must name one that torch can use, got {device!r}: {error}") from error
    check_device(place, "device" if x_init is None else "x_init", model.device or place, "the model")
    if x_init is not None:
        check_samples(x_init, "x_init")
    return tuple(shape), dtype, place


def _check_sources(
    seed: int | None,
    seeds: Sequence[int] | None,
    generator: torch.Generator | None,
    noise: Sequence[Tensor] | None,
    batch: int,
    device: torch.device,
) -> int | None:
    """Return the seed to use; exactly one source of randomness may be named."""
    named = [
        n for n, v in (("seed", seed), ("seeds", seeds), ("generator", generator), ("noise", noise)) if v is not None
    ]
    if len(named) > 1:
        raise ConfigError(f"give one source of randomness, got {' and '.join(named)}")
    if seeds is not None:
        if not isinstance(seeds, Sequence):
            raise DTypeError(f"seeds must be a list of integers, one for each sample, got {seeds!r}; one is seed=")
        if len(seeds) != batch:
            raise ShapeError(f"seeds must name one seed for each of the {batch} samples, got {len(seeds)}")
        for k, one in enumerate(seeds):
            check_seed(one, f"seeds[{k}]")
    if generator is not None:
        try:
            place = generator.device
        except AttributeError as error:
            raise DTypeError(f"generator must be a torch.Generator, got {generator!r}; a number is seed=") from error
        if place.type != device.type:
            raise ConfigError(f"generator is on {place}, the samples on {device}; make it on that device")
    if named and named != ["seed"]:
        return None
    return fresh_seed() if seed is None else check_seed(seed)


def _check_parts(kernels: object, on_step: object, prior: Gaussian | None, shape: tuple[int, ...]) -> None:
    """Check what the loop calls, and the law of the start state."""
    if not isinstance(kernels, Sequence) or not all(callable(kernel) for kernel in kernels):
        raise DTypeError(f"kernels must be a list of kernels, e.g. [Langevin(snr=0.16)], got {kernels!r}")
    if not (on_step is None or callable(on_step)):
        raise DTypeError(f"on_step must be a function of a Step, got {on_step!r}")
    if prior is None:
        return
    if not isinstance(prior, Gaussian):
        raise DTypeError(f"prior must be a Gaussian, got {type(prior).__name__}; e.g. sde.prior(), Moments.at(...)")
    if prior.mean.shape not in ((), shape[1:]):
        raise ShapeError(f"prior must have the event {shape[1:]} of the samples, got {tuple(prior.mean.shape)}")


def _check_tape(noise: object, shape: tuple[int, ...], needed: int) -> None:
    """Check recorded noise before it is used."""
    if not isinstance(noise, (Sequence, Tensor)):
        raise DTypeError(f"noise must be a list of tensors, one for each draw, got {type(noise).__name__}")
    if len(noise) < needed:
        raise ShapeError(f"noise holds {len(noise)} tensors, the sampler asks for {needed}; record one per draw")
    for k, z in enumerate(noise[:needed]):
        if not isinstance(z, Tensor) or z.shape != shape:
            got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise ShapeError(f"noise[{k}] has shape {got}, needed is {shape}")
        check_samples(z, f"noise[{k}]")


def _start(
    model: ScoreModel | ScoredSDE,
    table: Tableau | None,
    prior: Gaussian | None,
    x_init: Tensor | None,
    source: NoiseSource,
    shape: tuple[int, ...],
    low: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Return the start state, in at least float32; draw 0 of the source serves it."""
    dtype = torch.promote_types(dtype, torch.float32)
    if x_init is not None:
        if isinstance(source, SampleNoise):
            source.rewind(1)
        return x_init[low : low + shape[0]].to(device=device, dtype=dtype).clone(memory_format=torch.contiguous_format)
    z = torch.empty(shape, dtype=dtype, device=device)
    source.fill(z)
    if prior is not None:
        return prior.from_noise(z)
    assert table is not None  # a score under an SDE without alpha and sigma starts from a prior
    if model.moments is not None:
        return model.moments.at(table.start.alpha, table.start.sigma).from_noise(z)
    return z.mul_(table.prior_std)
