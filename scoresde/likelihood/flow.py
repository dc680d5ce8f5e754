r"""The log likelihood along the probability flow.

    log p_0(x) = log p_T(x_T) + int_0^T div f(x_t, t) dt,        dx_t = f dt, the probability flow from data to noise

(Chen et al. 2018, arXiv:1806.07366; Song et al. 2021, arXiv:2011.13456, eq. 39). ``traced`` makes the integral one more
coordinate of the state, ``probes`` estimates the divergence or takes it exactly, ``starts`` leads from data to the
state at t_min. The probes are fixed along a trajectory, so that the estimate is that of one matrix for each datum.

What is not exact is told apart:

* *probes*: ``standard_error``, from independent draws of the signs.
* *solver*: for the adaptive flow the sum over its steps of |d log p + score . dx|, (dx, d log p) the local errors of
  its embedded solution: what they change the result by, to first order. For a table of order p the difference to half
  the steps, divided by 2^p - 1.
* *prior mismatch*: log p_T - log prior at x_T. Its gradient is the difference of two scores; its values along the line
  from the prior's mean are their integral, and E[exp] under the prior, which is 1, fixes the constant.
* *truncation*: what the data's density differs by from that of the state at t_min, to first order (``starts``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from scoresde.diffusions.gaussian import Gaussian
from scoresde.errors.kinds import ConfigError, DomainError, show
from scoresde.errors.names import check_choice
from scoresde.errors.tensors import check_floating, check_samples
from scoresde.errors.values import check_flag, check_integer, check_number, check_sequence, check_sizes
from scoresde.likelihood.bound import choose_prior
from scoresde.likelihood.carry import Carrier, choose_carrier
from scoresde.likelihood.decoders import Decoder
from scoresde.likelihood.ends import measure_mismatch, measure_truncation
from scoresde.likelihood.figures import Figures
from scoresde.likelihood.probes import Probes, check_groups, lattice
from scoresde.likelihood.starts import Dequantisation, Start, choose_start
from scoresde.likelihood.traced import SIGNS
from scoresde.models.checks import check_data_event, check_density, check_model
from scoresde.models.prediction import Condition, Predictor, check_condition, in_mode, select
from scoresde.noise import SampleNoise, check_seed, stream
from scoresde.ops import chunks, working_dtype
from scoresde.solvers.adaptive import FlowSolver
from scoresde.solvers.grids import Grid
from scoresde.solvers.solver import Solver
from scoresde.transforms.base import Transform
from scoresde.transforms.compose import event_after

__all__ = ["LogLikelihood", "bits_per_dim", "log_likelihood"]

EXACT_UP_TO = 64  # coordinates whose trace is taken exactly unless probes are asked for
PROBES, DRAWS = 8, 4  # beyond: groups, and draws of the signs
TWO_SIDED = 1.959963984540054  # of the normal law at 0.975


@dataclass(frozen=True, eq=False, repr=False)
class LogLikelihood(Figures):
    """log p of each sample, with what is not exact about it; in nats, (B,), float64 on the CPU unless noted.

    Args:
        each: the estimates of the draws of signs, (B, draws): log density of the data, in their units, or log
            probability of their levels.
        solver_error: estimate of the solver's error, not signed; NaN where none was made.
        prior_mismatch: estimate of log p_T - log prior at the latent, which ``values`` lack.
        truncation: estimate of log p_0 - log p at t_min, to first order, which ``values`` lack; 0 with a decoder.
        nfe: evaluations of the network, each with its products, integers.
        latent: the states at t_max, (B, *), in the model's coordinates; those of the first draw.
        exact: whether the divergence was.
        discrete: whether these are logs of probabilities, not of densities.
    """

    each: Tensor
    solver_error: Tensor
    prior_mismatch: Tensor
    truncation: Tensor
    nfe: Tensor
    latent: Tensor
    exact: bool
    discrete: bool

    @property
    def values(self) -> Tensor:
        """The estimates, means over the draws."""
        return self.each.mean(1)

    @property
    def standard_error(self) -> Tensor:
        """Of ``values``, from the spread of the draws: 0 for the exact divergence, NaN for one draw.

        Widened as Student's law asks for few draws: two of them hold the truth in 95 of 100 cases.
        """
        draws = self.each.shape[1]
        if self.exact or draws < 2:
            return torch.full(self.each.shape[:1], 0.0 if self.exact else math.nan, dtype=torch.float64, device="cpu")
        from scipy.special import stdtrit

        wider = float(stdtrit(draws - 1, 0.975)) / TWO_SIDED
        return self.each.detach().std(1) * (wider / math.sqrt(draws))

    @property
    def corrected(self) -> Tensor:
        """The values with the estimated prior mismatch and truncation added, (B,)."""
        return self.values + self.prior_mismatch + self.truncation

    @property
    def total(self) -> float:
        """The mean of the values."""
        return float(self.values.detach().mean())

    @property
    def total_error(self) -> float:
        """Standard error of ``total`` as the mean over all data: from the spread of the samples; NaN for one."""
        values = self.values.detach()
        return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan

    def _figures(self) -> dict[str, str]:
        if len(self.each) == 0:
            return {"of": "no samples"}
        return {
            "mean": f"{self.total:.6g} +- {self.total_error:.2g} nats",
            "each": f"+- {float(self.standard_error.mean()):.2g} by probes",
            "solver": f"{float(self.solver_error.mean()):.2g}",
            "prior": f"{float(self.prior_mismatch.abs().mean()):.2g}",
            "truncation": f"{float(self.truncation.abs().mean()):.2g}",
            "evaluations": f"{float(self.nfe.double().mean()):.4g}",
            "samples": str(len(self.each)),
        }


def bits_per_dim(
    log_p: Tensor | float,
    event_shape: Sequence[int],
    levels: int | None = None,
    range: tuple[float, float] = (-1.0, 1.0),
) -> Tensor | float:
    """Return bits per dimension, -log2 P(levels)/D.

    Without ``levels``, log_p is the log of a probability already. With them it is the log of a *density* of data that
    take ``levels`` values evenly spaced over ``range``, in the unit of ``range``: the probability of a bin of width w =
    (high - low)/(levels - 1) is density x w in each coordinate, so that the result is -(log_p/D + log w)/log 2. Nothing
    else is added.

    Args:
        log_p: nats, any shape.
        event_shape: of one sample.
        levels: number of values that a coordinate takes, at least 2.
        range: the lowest and the highest of them.
    """
    size = math.prod(check_sizes(event_shape, "event_shape"))
    nats = log_p if isinstance(log_p, Tensor) else check_number(log_p, "log_p")
    if isinstance(nats, Tensor):
        nats = check_floating(nats[None], "log_p", empty=True)[0]
    if size == 0:
        raise DomainError(f"event_shape {tuple(event_shape)} has no coordinates")
    offset = 0.0
    if levels is not None:
        levels = check_integer(levels, "levels", 2)
        ends = check_sequence(range, "range", "two numbers")
        if len(ends) != 2 or not check_number(ends[0], "range[0]") < check_number(ends[1], "range[1]"):
            raise DomainError(f"range must be (low, high) with low < high, got {show(range)}")
        low, high = ends
        offset = math.log((high - low) / (levels - 1))
    return -(nats / size + offset) / math.log(2)


def log_likelihood(
    model: Predictor,
    x: Tensor,
    *,
    divergence: str | None = None,
    probes: int | None = None,
    groups: Tensor | None = None,
    draws: int | None = None,
    solver: str | Solver | FlowSolver | None = None,
    steps: int | None = None,
    times: Tensor | Grid | None = None,
    decoder: Decoder | Dequantisation | None = None,
    importance: int = 1,
    prior: Gaussian | None = None,
    cond: Condition = None,
    seed: int = 0,
    first_sample: int = 0,
    chunk_size: int = 256,
    differentiable: bool = False,
    progress: bool = False,
) -> LogLikelihood:
    """Return log p(x) of the model's probability flow, in nats, with its errors apart.

    Args:
        model: any model: trained, exact, or made of others.
        x: data (B, *), in the data's units: the model's transform is applied.
        divergence: "exact", a product for each coordinate; or "probes". By default exact up to 64 coordinates.
        probes: number of groups of coordinates, 1 (Hutchinson) to D (exact); 8 by default.
        groups: the group of each coordinate, of the event's shape, e.g. from ``likelihood.colour``; by default those
            that the model has of this number, else a lattice.
        draws: independent draws of the probes' signs, 4 by default; more than one give a standard error.
        solver: a ``ProbabilityFlow`` (1e-5 by default) or another ``FlowSolver``, or a deterministic fixed solver or
            its name.
        steps: number of intervals of a fixed solver.
        times: interval ends, decreasing, or a Grid; for an adaptive flow the latent's time and the data's, which may be
            0 for a model whose flow is finite there.
        decoder: how data become the state at t_min: None for the density there; ``GaussianDecoder()``,
            ``LevelsDecoder(levels, low, high)`` or ``Dequantisation(levels, low, high)`` give lower bounds, the last
            two of the levels' log probability.
        importance: draws of a decoder's state; log mean exp of more than one is a tighter bound.
        prior: law of the latent; by default the one that sampling starts from.
        cond: conditions, each (B, *).
        seed: names the signs and the draws: those of sample k are its own, whatever the batch.
        first_sample: number of the first sample.
        chunk_size: largest batch given to the network at once.
        differentiable: keep the graph of ``values`` to x, to the network's parameters and to ``cond``. A fixed solver
            holds its states and computes what is between them again; ``bridge.TorchDiffEq(adjoint=True)`` holds not
            even these. The errors of solver and prior are not estimated then.
        progress: show a bar.

    Raises:
        ShapeError, DTypeError, DomainError, ConfigError: bad input, a stochastic solver, options that do not go
            together, before any call of the network. SolverError: a flow that failed.
    """
    known = check_model(model)
    check_density(known)
    data = check_samples(x, "x")
    known.check_device(data.device, "x")
    check_data_event(known, data.shape, "x")
    cond = check_condition(cond, len(data), data.device)
    event = event_after(known.transform, data.shape[1:])
    chosen = _choose_probes(known, event, divergence, probes, groups, draws)
    start = choose_start(decoder)
    if not isinstance(times, Tensor) and data.numel():
        leads_to = start.choose_time(known.sde, known.transform, data.detach())
        known = known if leads_to == known.sde.t_min else known.with_sde(known.sde.starting_at(leads_to))
    check_flag(differentiable, "differentiable")
    check_flag(progress, "progress")
    carrier, coarse, factor = choose_carrier(known, solver, steps, times, differentiable)
    check_seed(seed)
    importance = check_integer(importance, "importance", 1)
    first_sample = check_integer(first_sample, "first_sample", 0, 2**63 - 1)
    chunk_size = check_integer(chunk_size, "chunk_size", 1)
    if importance > 1 and not start.draws:
        raise ConfigError("importance= averages over a decoder's draws, and there is no decoder; pass decoder=")
    wide = data if differentiable else data.detach()
    y = wide.to(torch.promote_types(data.dtype, torch.float32))
    y, log_abs_det = _transform(known.transform, y, seed, first_sample)
    start.check(y.detach(), known.transform)
    if carrier.low.sigma == 0 and start.draws:
        raise ConfigError("a decoder starts from a noisy state; end times= above 0")
    law = choose_prior(known, carrier.high, float(known.sde.prior_std(float(carrier.high.t))), prior)
    task = _Task(known, chosen, carrier, coarse, factor, start, importance, law, seed, first_sample, differentiable)
    parts = []
    bar = tqdm(total=len(y), desc="log likelihood", unit="sample", disable=not progress, leave=False)
    with in_mode(known, training=False), torch.set_grad_enabled(differentiable), bar:
        # No samples are one part of none.
        for rows in chunks(len(y), chunk_size) if len(y) else [slice(0, 0)]:
            parts.append(task(y[rows], rows.start, select(cond, rows)))
            bar.update(rows.stop - rows.start)
    return _join(parts, log_abs_det, start.discrete)


@dataclass(frozen=True, eq=False)
class _Task:
    """What is done with each part of the data."""

    model: Predictor
    probes: Probes
    carrier: Carrier
    coarse: Carrier | None
    factor: float
    start: Start
    importance: int
    law: Gaussian
    seed: int
    first_sample: int
    differentiable: bool

    def __call__(self, y: Tensor, first: int, cond: Condition) -> LogLikelihood:
        """Return the result for some data y (B, *), in the model's coordinates; sample ``first`` is the first."""
        number = self.first_sample + first
        source = SampleNoise(stream(self.seed, "likelihood", "start").initial_seed(), number)
        z, weighted, errors = torch.empty_like(y), [], []
        nfe = torch.zeros(len(y), dtype=torch.long, device="cpu")
        latent = y
        for k in range(self.importance):
            source.fill(z)
            x, worth = self.start.begin(self.model, y, self.carrier.low, z, cond)
            signs = self.probes.signs(x.detach(), self.seed, number, k)
            told = {**(cond or {}), SIGNS: signs}
            wide = x.to(working_dtype(x.device))
            value, reached, calls, error = self._carry(self.carrier, wide, told)
            if self.coarse is not None:
                rough, _, more, _ = self._carry(self.coarse, wide, told)
                error, calls = self.factor * (rough - value).mean(1).abs(), calls + more
            weighted.append(value.to("cpu", torch.float64) + worth[:, None])
            errors.append(torch.full_like(worth, math.nan) if error is None else error.to("cpu", torch.float64))
            nfe += calls + self.start.calls
            latent = reached if k == 0 else latent
        each = torch.logsumexp(torch.stack(weighted), 0) - math.log(self.importance)  # (B, draws)
        nothing = torch.zeros(len(y), dtype=torch.float64, device="cpu")
        truncation = mismatch = nothing if not self.differentiable else torch.full_like(nothing, math.nan)
        if not self.differentiable:
            mismatch = measure_mismatch(self.model, self.law, self.carrier.high, latent, cond, self.seed)
            if not self.start.draws and float(self.carrier.low.sigma) > 0:
                truncation = measure_truncation(self.model, self.probes, self.carrier.low, wide, told)
        return LogLikelihood(
            each=each,
            solver_error=torch.stack(errors).mean(0),
            prior_mismatch=mismatch,
            truncation=truncation,
            nfe=nfe,
            latent=latent.to(y),
            exact=self.probes.groups is None,
            discrete=False,
        )

    def _carry(self, carrier: Carrier, x: Tensor, cond: Condition) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return log p (B, draws) of states x, the latents, the evaluations and the error, where the solver has one."""
        result = carrier.carry(self.model, x, self.probes, cond)
        return self.law.log_prob(result.x)[:, None] + result.gain, result.x, result.nfe, result.error


def _transform(transform: Transform | None, x: Tensor, seed: int, first_sample: int) -> tuple[Tensor, Tensor]:
    """Return data (B, *) in the model's coordinates and log |det|, (B,), in float64 on the CPU.

    What a transform draws for a sample comes from a stream of the sample's own.
    """
    if transform is None or not len(x):
        return x, torch.zeros(len(x), dtype=torch.float64, device="cpu")
    found = []
    for rows in chunks(len(x), 1 if transform.random else len(x)):
        first = stream(seed, "likelihood", "transform", first_sample + rows.start, device=x.device)
        again = stream(seed, "likelihood", "transform", first_sample + rows.start, device=x.device)
        found.append((transform.forward(x[rows], first), transform.log_abs_det(x[rows], again)))
    y, log_abs_det = (torch.cat(parts) for parts in zip(*found, strict=True))
    return y, log_abs_det.to("cpu", torch.float64)


def _choose_probes(
    model: Predictor,
    event: Sequence[int],
    divergence: str | None,
    probes: int | None,
    groups: Tensor | None,
    draws: int | None,
) -> Probes:
    """Return the probes of these options.

    Raises:
        ConfigError: options that do not go together. DTypeError, ShapeError, DomainError: bad numbers or groups.
    """
    size = math.prod(event)
    asked = [name for name, value in (("probes", probes), ("groups", groups), ("draws", draws)) if value is not None]
    if divergence is not None:
        check_choice("divergence", divergence, ("exact", "probes"))
    if divergence == "exact" and asked:
        raise ConfigError(f"the exact divergence has no {', '.join(asked)}; leave out divergence= or pass 'probes'")
    if divergence is None:
        divergence = "exact" if not asked and size <= EXACT_UP_TO else "probes"
    if divergence == "exact":
        return Probes(None)
    if probes is not None and groups is not None:
        raise ConfigError("groups= says how many probes there are; leave out probes=")
    count = PROBES if probes is None else check_integer(probes, "probes", 1, max(1, size))
    groups = model.groups.get(count) if groups is None else groups
    chosen = lattice(tuple(event), count) if groups is None else check_groups(groups, event)
    if int(chosen.max()) + 1 == size:
        return Probes(None)
    return Probes(chosen, DRAWS if draws is None else check_integer(draws, "draws", 1))


def _join(parts: Sequence[LogLikelihood], log_abs_det: Tensor, discrete: bool) -> LogLikelihood:
    """Return the parts as one result, in the data's units."""

    def gather(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    return LogLikelihood(
        each=gather("each") + (0.0 if discrete else log_abs_det[:, None]),
        solver_error=gather("solver_error"),
        prior_mismatch=gather("prior_mismatch"),
        truncation=gather("truncation"),
        nfe=gather("nfe"),
        latent=gather("latent"),
        exact=parts[0].exact,
        discrete=discrete,
    )
