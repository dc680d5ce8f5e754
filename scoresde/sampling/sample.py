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
from typing import Literal, TypedDict, Unpack, overload

import torch
from torch import Tensor
from tqdm.auto import tqdm

from scoresde.diffusions.gaussian import Gaussian, Moments
from scoresde.diffusions.sde import SDE
from scoresde.errors.kinds import SolverError
from scoresde.errors.names import explain_keywords
from scoresde.errors.values import check_flag, check_integer
from scoresde.models.checks import check_event
from scoresde.models.prediction import Condition, Predictor, check_condition, in_mode, select
from scoresde.models.scored_sde import ScoredSDE
from scoresde.models.sde_model import Ends
from scoresde.noise import NoiseSource, Randomness, check_tape
from scoresde.ops import chunks
from scoresde.sampling import flow, table_run  # noqa: F401 they register their plans
from scoresde.sampling.inputs import as_model, check_calls, check_prior, layout
from scoresde.sampling.kernels import Kernel
from scoresde.sampling.part import Ending, Observer, Part, Start, Watch
from scoresde.sampling.plan import Planner, plan
from scoresde.sampling.samplers import read_solver
from scoresde.sampling.stability import warn_unstable
from scoresde.solvers.adaptive import FlowSolver
from scoresde.solvers.grids import Grid
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
        accepted: accepted steps of each sample, (B,); under ``Picard`` the calls one after another.
        rejected: rejected steps of each sample, (B,); under ``Picard`` the predictions beyond one for each row.
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

    def __repr__(self) -> str:
        """Say in one line what was drawn and at what cost."""
        cost = f"{float(self.nfe.double().mean()):g} evaluations each" if len(self.nfe) else "no evaluations"
        seed = "" if self.seed is None else f", seed {self.seed}"
        frozen = f", {int(self.status.sum())} frozen" if bool(self.status.any()) else ""
        return f"<SampleResult {tuple(self.x.shape)} {self.x.dtype}, {cost}{seed}{frozen}>"

    def _repr_html_(self) -> str:
        """Show the figures as a table, for notebooks."""
        means = {"x": self.x, "evaluations": self.nfe, "accepted steps": self.accepted, "rejected steps": self.rejected}
        figures = {f"mean of {name}": f"{float(values.double().mean()):.6g}" for name, values in means.items()}
        figures = {"shape": str(tuple(self.x.shape)), **figures, "frozen": str(int(self.status.sum()))}
        cells = (f"<tr><th>{name}</th><td>{text}</td></tr>" for name, text in (*figures.items(), ("seed", self.seed)))
        return f"<table>{''.join(cells)}</table>"


class SampleOptions(TypedDict, total=False):
    """The keyword arguments of ``sample`` but ``full_output``, for type checkers; ``sample`` says what they are."""

    sde: SDE | None
    solver: str | Solver | Tableau | FlowSolver | Planner | None
    steps: int | None
    times: Tensor | Grid | None
    final: Ending
    kernels: Sequence[Kernel]
    cond: Condition
    x_init: Tensor | None
    prior: Gaussian | None
    seed: int | None
    seeds: Sequence[int] | None
    first_sample: int
    generator: torch.Generator | None
    noise: Sequence[Tensor] | None
    device: torch.device | str | None
    dtype: torch.dtype | None
    chunk_size: int | None
    on_step: Observer | None
    on_nonfinite: Literal["raise", "freeze"]
    trajectory: bool
    differentiable: bool
    progress: bool


@overload
def sample(
    model: Predictor | Callable[..., Tensor],
    shape: Sequence[int] | int | None = None,
    *,
    full_output: Literal[False] = False,
    **options: Unpack[SampleOptions],
) -> Tensor: ...


@overload
def sample(
    model: Predictor | Callable[..., Tensor],
    shape: Sequence[int] | int | None = None,
    *,
    full_output: Literal[True],
    **options: Unpack[SampleOptions],
) -> SampleResult: ...


@overload
def sample(
    model: Predictor | Callable[..., Tensor],
    shape: Sequence[int] | int | None = None,
    *,
    full_output: bool,
    **options: Unpack[SampleOptions],
) -> Tensor | SampleResult: ...


@explain_keywords(
    **dict.fromkeys(("num_steps", "num_inference_steps", "n_steps", "nfe"), "steps"),
    **dict.fromkeys(("n", "num_samples", "n_samples", "batch"), "shape"),
    **dict.fromkeys(("sampler", "scheduler", "method"), "solver"),
    **dict.fromkeys(("timesteps", "grid", "sigmas", "schedule"), "times"),
    **dict.fromkeys(("label", "labels", "y", "class_labels"), 'cond={"label": labels}'),
    **dict.fromkeys(("z", "latents", "x_T", "init"), "x_init"),
    **dict.fromkeys(("batch_size", "max_batch_size"), "chunk_size"),
    **dict.fromkeys(("callback", "callbacks"), "on_step"),
    **dict.fromkeys(("corrector", "correctors"), "kernels"),
    **dict.fromkeys(("return_dict", "full_result"), "full_output"),
)
def sample(
    model: Predictor | Callable[..., Tensor],
    shape: Sequence[int] | int | None = None,
    *,
    sde: SDE | None = None,
    solver: str | Solver | Tableau | FlowSolver | Planner | None = None,
    steps: int | None = None,
    times: Tensor | Grid | None = None,
    final: Ending = "denoise",
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
    on_step: Observer | None = None,
    on_nonfinite: Literal["raise", "freeze"] = "raise",
    trajectory: bool = False,
    differentiable: bool = False,
    progress: bool = False,
    full_output: bool = False,
) -> Tensor | SampleResult:
    """Draw samples.

    Args:
        model: a ScoreModel, or a callable (x, t) -> score together with ``sde``.
        shape: (B, *) of the result, or B alone where the model knows its data's moments; may be left out with
            ``x_init``.
        sde: the SDE to sample under; by default the model's. Another one carries the model over at equal log-SNR.
        solver: a name as on the command line ("dpmpp_2m", "dpmpp_2m:20", "pc:100", "ddpm:1000", or a .json file with a
            saved table), a Solver, a built Tableau, a Picard around one of these two, a ProbabilityFlow, or one of
            ``scoresde.bridge``; by default what the model's calibration says (``calibrate``), or without one, for 3 to
            5 evaluations ``dpmpp_2m`` to log_snr = 4, up to 10 Adams-Bashforth-Moulton of order 2 on the rectified
            path, and beyond ``flow_abm``; ``flow_abm`` also where ``final`` or ``times`` is given. An SDE without alpha
            and sigma needs one of the last two kinds.
        steps: number of intervals (20 by default, or the grid's own).
        times: interval ends as a decreasing tensor, or a Grid.
        final: "denoise", "sample" or "mean"; see the module's docstring.
        kernels: Markov kernels applied in order before each step, e.g. ``[Langevin(snr=0.16)]``.
        cond: tensors passed to the network, split along the batch.
        x_init: start state at the table's first time, in the model's coordinates; not written to.
        prior: law of the start state; by default from the data's moments if the model knows them. With
            ``prior=model.sde.prior()`` a network that can draws events of another size than its data's.
        seed: every sample k has a stream of its own keyed (seed, k); None draws a seed and reports it.
        seeds: one seed for each sample instead.
        first_sample: number of the first sample: ``first_sample=k`` with B = 1 redraws sample k alone.
        generator: an ordinary torch generator instead of a seed.
        noise: recorded tensors used in order (the start state first, unless x_init is given).
        device: by default the model's, or x_init's.
        dtype: type of the result, by default x_init's or float32, or float64 where the model's transform leads to data
            that float32 does not hold. Half types are carried in float32 and cast.
        chunk_size: largest batch given to the network at once; under ``Picard`` in each row of its window.
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
    check_calls(kernels, on_step)
    check_flag(full_output, "full_output")
    model = as_model(model, sde)
    method, steps, kernels = read_solver(solver, model, steps, kernels)
    wide = dtype is None
    shape, dtype, device = layout(model, shape, x_init, dtype, device)
    cond = check_condition(cond, shape[0])
    randomness = Randomness(
        batch=shape[0],
        device=device,
        seed=seed,
        seeds=seeds,
        first_sample=first_sample,
        generator=generator,
        noise=noise,
    )
    check_prior(prior, shape)
    size = max(1, shape[0]) if chunk_size is None else check_integer(chunk_size, "chunk_size", 1)
    watch = Watch(
        kernels=kernels,
        on_step=on_step,
        on_nonfinite=on_nonfinite,
        trajectory=trajectory,
        differentiable=differentiable,
        progress=progress,
    )
    run = plan(method, model.sde, steps, times, final, watch)
    if run.table is not None and run.start is not None and not kernels:
        warn_unstable(run.table, method, model.sde, model.moments, final)
    first_draw = int(x_init is not None)
    if noise is not None:
        check_tape(noise, run.draws + 1 - first_draw, shape)
    if x_init is None:
        # A law of one's own may be of images of another size, where the network takes them.
        check_event(model.moments if prior is None else None, shape, "shape")
        if prior is None and isinstance(model, ScoredSDE):
            prior = model.prior(run.times[0])
        elif prior is None and run.start is None:
            prior = model.sde.prior(run.times[0], model.moments)
    begin = _Begin(x_init, prior, run.start, model.moments)
    parts = [Part.empty(shape, dtype, device)]
    bar = tqdm(total=shape[0], desc="sampling", unit="sample", disable=not progress or run.has_bar, leave=False)
    with bar, in_mode(model, training=False), torch.set_grad_enabled(differentiable):
        for rows in chunks(shape[0], size):
            source = randomness.part(rows, first_draw)
            x = begin(torch.empty((rows.stop - rows.start, *shape[1:]), dtype=dtype, device=device), rows, source)
            try:
                parts.append(run(model, x, source, select(cond, rows, device)))
            except torch.OutOfMemoryError as error:
                raise SolverError(f"out of memory with {len(x)} samples; pass a smaller chunk_size=") from error
            bar.update(len(x))
    whole = Part.joined(parts)
    x = whole.x if model.transform is None else model.transform.inverse(whole.x)
    # A transform goes to float64 where float32 does not hold the data.
    x = x if wide and x.dtype == torch.float64 else x.to(dtype)
    if not full_output:
        return x
    counts = whole.status, whole.accepted, whole.rejected
    return SampleResult(x, whole.nfe, run.times, whole.trajectory, *counts, randomness.seed)


@dataclass(frozen=True, eq=False)
class _Begin:
    """The start states, given or drawn from the prior; draw 0 of a source serves the latter."""

    x_init: Tensor | None
    prior: Gaussian | Ends | None
    start: Start | None
    moments: Moments | None

    def __call__(self, like: Tensor, rows: slice, source: NoiseSource) -> Tensor:
        """Return the start states of some samples, of the shape of ``like`` and in at least float32."""
        wide = torch.promote_types(like.dtype, torch.float32)
        if self.x_init is not None:
            part = self.x_init[rows].to(device=like.device, dtype=wide)
            return part.clone(memory_format=torch.contiguous_format)
        z = like.to(wide)
        source.fill(z)
        if self.prior is not None:
            return self.prior.from_noise(z)
        assert self.start is not None  # a score under an SDE without alpha and sigma starts from a prior
        return self.start.state(z, self.moments)
