r"""Encoding and decoding: the probability flow from data to noise and back.

The probability flow is an ordinary differential equation, so that each state at t_min belongs to exactly one state at
t_max. ``encode`` follows it upwards, from data to a latent, ``decode`` downwards; with the exact flow decode(encode(x))
is x, and x ~ p_{t_min} means that the latent has the law of x_{t_max}, nearly the prior.

    x (data) --transform--> y = x_{t_min} --flow--> z = x_{t_max}            z --flow--> y --inverse--> x

Data are taken as the state at t_min itself, as Song et al. 2021 do ("Score-based generative modeling through stochastic
differential equations", appendix D): at t = 0 noise-free data have no score and no latent.

Both directions use the same interval ends, and a fixed solver is run backwards by building its table on the reversed
times. The two tables are inverse to each other up to the solver's order of accuracy, not to rounding: an adaptive flow
inverts to its tolerance, which is why it is the default.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypedDict, Unpack, overload

import torch
from torch import Generator, Tensor

from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.kinds import ConfigError, DomainError, DTypeError, show
from scoresde.errors.names import explain_keywords
from scoresde.errors.tensors import check_samples
from scoresde.errors.values import check_flag, check_integer
from scoresde.models.checks import check_data_event, check_event, check_model
from scoresde.models.prediction import Condition, Predictor, check_condition, in_mode, select
from scoresde.noise import TapeNoise
from scoresde.ops import chunks
from scoresde.sampling.flow import FlowPlan
from scoresde.sampling.part import Part
from scoresde.sampling.sample import SampleResult, sample
from scoresde.solvers.adaptive import FlowSolver, ProbabilityFlow
from scoresde.solvers.grids import Grid, check_one_way, check_times, choose_grid
from scoresde.solvers.named import by_name
from scoresde.solvers.solver import Solver
from scoresde.solvers.tableau import Tableau

__all__ = ["FLOW", "build_upwards", "choose_span", "decode", "encode", "interval_ends"]

FLOW = ProbabilityFlow(rtol=1e-5, atol=1e-5)
NO_NOISE = TapeNoise(())
WORDS = {
    **dict.fromkeys(("num_steps", "num_inference_steps", "n_steps"), "steps"),
    **dict.fromkeys(("label", "labels", "y", "class_labels"), 'cond={"label": labels}'),
    **dict.fromkeys(("sampler", "scheduler", "method"), "solver"),
    "batch_size": "chunk_size",
}
"""Words of other libraries, and what to use here."""


class DecodeOptions(TypedDict, total=False):
    """The keyword arguments of ``decode`` but ``full_output``, for type checkers."""

    sde: GaussianSDE | None
    solver: str | Solver | FlowSolver
    steps: int | None
    times: Tensor | Grid | None
    cond: Condition
    chunk_size: int | None


class EncodeOptions(DecodeOptions, total=False):
    """The keyword arguments of ``encode`` but ``full_output``, for type checkers."""

    generator: Generator | None


@overload
def encode(
    model: Predictor, x: Tensor, *, full_output: Literal[False] = False, **options: Unpack[EncodeOptions]
) -> Tensor: ...


@overload
def encode(
    model: Predictor, x: Tensor, *, full_output: Literal[True], **options: Unpack[EncodeOptions]
) -> SampleResult: ...


@overload
def encode(
    model: Predictor, x: Tensor, *, full_output: bool, **options: Unpack[EncodeOptions]
) -> Tensor | SampleResult: ...


@explain_keywords(**WORDS)
def encode(
    model: Predictor,
    x: Tensor,
    *,
    sde: GaussianSDE | None = None,
    solver: str | Solver | FlowSolver = FLOW,
    steps: int | None = None,
    times: Tensor | Grid | None = None,
    cond: Condition = None,
    generator: Generator | None = None,
    chunk_size: int | None = None,
    full_output: bool = False,
) -> Tensor | SampleResult:
    """Carry data to their latents along the probability flow.

    Args:
        model: the model.
        x: data (B, *), in the data's units; not written to.
        sde: the SDE whose flow is followed; by default the model's. Another one carries the model over at equal
            log-SNR.
        solver: a ProbabilityFlow with tolerances of your choice (1e-5 each by default) or another ``FlowSolver``, as
            those of ``scoresde.bridge``; or a deterministic fixed solver.
        steps: number of intervals of a fixed solver (20 by default, or the grid's own).
        times: interval ends, *decreasing* as for ``sample`` and ``decode``, or a Grid; for the adaptive flow its first
            and last entry are the latent's time and the data's.
        cond: tensors passed to the network, split along the batch.
        generator: for a transform that draws noise (``Dequantise``).
        chunk_size: largest batch given to the network at once.
        full_output: return a SampleResult, whose ``x`` is the latent, instead of the tensor.

    Returns:
        The latent (B, *) at the first time, t_max by default, in the model's coordinates and x's type.

    Raises:
        ShapeError, DTypeError, DomainError, ConfigError: bad input, a stochastic solver or one that has no step
            upwards, before any call of the network. SolverError: a failed flow, or non-finite states.
    """
    known = check_model(model)
    check_data_event(known, check_samples(x).shape, "x")
    model, solver = _checked(known, sde, solver)
    check_flag(full_output, "full_output")
    cond = check_condition(cond, x.shape[0])
    # Nothing is differentiated here.
    y = x.detach() if model.transform is None else model.transform.forward(x.detach(), generator)
    bare = model.with_sde(model.sde)
    bare.transform = None
    if isinstance(solver, FlowSolver):
        result = _upwards(solver, bare, y, choose_span(model.sde, steps, times), cond, chunk_size)
    else:
        ends, _ = interval_ends(model.sde, solver, steps, times)
        result = _sampled(bare, y, build_upwards(model.sde, solver, ends), None, cond, chunk_size)
    return result if full_output else result.x


@overload
def decode(
    model: Predictor, z: Tensor, *, full_output: Literal[False] = False, **options: Unpack[DecodeOptions]
) -> Tensor: ...


@overload
def decode(
    model: Predictor, z: Tensor, *, full_output: Literal[True], **options: Unpack[DecodeOptions]
) -> SampleResult: ...


@overload
def decode(
    model: Predictor, z: Tensor, *, full_output: bool, **options: Unpack[DecodeOptions]
) -> Tensor | SampleResult: ...


@explain_keywords(**WORDS)
def decode(
    model: Predictor,
    z: Tensor,
    *,
    sde: GaussianSDE | None = None,
    solver: str | Solver | FlowSolver = FLOW,
    steps: int | None = None,
    times: Tensor | Grid | None = None,
    cond: Condition = None,
    chunk_size: int | None = None,
    full_output: bool = False,
) -> Tensor | SampleResult:
    """Carry latents to data along the probability flow: the inverse of ``encode`` with the same options and errors.

    It is ``sample`` from the start state z, latents (B, *) at the first time in the model's coordinates, with
    ``final="sample"`` and a deterministic solver; z is not written to. Returns the data (B, *), in the data's units and
    z's type, or with ``full_output`` a SampleResult.
    """
    known = check_model(model)
    check_event(known.moments, check_samples(z, "z").shape, "z")
    model, solver = _checked(known, sde, solver)
    check_flag(full_output, "full_output")
    if isinstance(solver, FlowSolver):
        result = _sampled(model, z, solver, choose_span(model.sde, steps, times), cond, chunk_size)
    else:
        _, table = interval_ends(model.sde, solver, steps, times)
        result = _sampled(model, z, table, None, cond, chunk_size)
    return result if full_output else result.x


def _checked(known: Predictor, sde: GaussianSDE | None, solver: object) -> tuple[Predictor, Solver | FlowSolver]:
    """Return the model under the SDE to use and the solver itself."""
    if isinstance(solver, str):
        solver = by_name(solver)
    if isinstance(solver, Tableau):
        raise ConfigError(
            "a built Tableau runs one way only; pass its solver with times=, or decode with sample(x_init=)"
        )
    if not isinstance(solver, (Solver, FlowSolver)):
        raise DTypeError(f"solver must be a name, a Solver or a solver of the probability flow, got {show(solver)}")
    return (known if sde is None or sde is known.sde else known.with_sde(sde)), solver


def choose_span(sde: GaussianSDE, steps: int | None, times: object, *, clean: bool = False) -> Tensor:
    """Return the latent's time and the data's for the adaptive flow.

    Args:
        sde: the diffusion.
        steps: refused, as is a grid.
        times: interval ends, decreasing, of which the first and the last count; None for t_max and t_min.
        clean: whether the last may be 0.
    """
    if steps is not None or isinstance(times, Grid):
        raise ConfigError(
            "the adaptive probability flow chooses its own steps; leave out steps= and grids, name start and end with "
            "times=, or take a fixed solver, e.g. solver='heun'"
        )
    if times is None:
        return torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64, device="cpu")
    ends = check_times(sde, times)
    return (ends if clean else _noisy(ends))[[0, -1]]


def interval_ends(
    sde: GaussianSDE, solver: Solver, steps: int | None, times: Tensor | Grid | None
) -> tuple[Tensor, Tableau]:
    """Return the interval ends and the table of a fixed solver on them; ConfigError where it draws noise."""
    check_one_way(steps, times)
    if isinstance(times, Tensor):
        ends = check_times(sde, times)
    else:
        grid, count = choose_grid(solver.grid, steps, times)
        ends = grid(sde, count)
    table = solver.build(sde, _noisy(ends))
    if table.stochastic:
        raise ConfigError(
            f"a latent and its data belong together only without noise, and {table.name!r} draws some; use a "
            "deterministic solver, e.g. 'heun', or eta=0"
        )
    return ends, table


def build_upwards(sde: GaussianSDE, solver: Solver, ends: Tensor) -> Tableau:
    """Return the table of a fixed solver from the last of its interval ends to the first; DomainError where none is."""
    try:
        return solver.build(sde, ends.flip(0))
    except DomainError as error:
        raise DomainError(
            f"{solver.name!r} cannot run upwards on these times, use the adaptive flow or solver='heun': {error}"
        ) from error


def _noisy(ends: Tensor) -> Tensor:
    """Return the interval ends unless the last one is t = 0."""
    if float(ends[-1]) == 0:
        raise ConfigError(
            "times must end above 0: noise-free data have no score and no latent; end at the SDE's t_min, where "
            "the data are taken to be"
        )
    return ends


def _sampled(
    model: Predictor,
    x: Tensor,
    solver: Tableau | FlowSolver,
    times: Tensor | None,
    cond: Condition,
    chunk_size: int | None,
) -> SampleResult:
    """Run ``sample`` from a given state; nothing is drawn, so the seed has no meaning and is not reported."""
    result = sample(
        model,
        x_init=x,
        solver=solver,
        times=times,
        final="sample",
        cond=cond,
        seed=0,
        chunk_size=chunk_size,
        full_output=True,
    )
    assert isinstance(result, SampleResult)
    return replace(result, seed=None)


def _upwards(
    solver: FlowSolver, model: Predictor, y: Tensor, span: Tensor, cond: Condition, chunk_size: int | None
) -> SampleResult:
    """Follow the flow from the last time to the first, chunk by chunk."""
    size = max(1, y.shape[0]) if chunk_size is None else check_integer(chunk_size, "chunk_size", 1)
    first, last = span.tolist()
    upwards = FlowPlan(solver, model.sde, (last, first), "sample")
    parts = [Part.empty(y.shape, y.dtype, y.device)]
    with in_mode(model, training=False), torch.no_grad():
        for rows in chunks(y.shape[0], size):
            parts.append(upwards(model, y[rows], NO_NOISE, select(cond, rows, y.device)))
    whole = Part.joined(parts)
    return SampleResult(whole.x, whole.nfe, upwards.times, None, whole.status, whole.accepted, whole.rejected, None)
