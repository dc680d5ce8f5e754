r"""Weights of simulated paths: a bound for each path, and tighter ones from several.

A path x_0, x_1, ..., x_N goes from data to noise by the forward transitions q(x_i | x_{i-1}) = N(a_i x_{i-1}, b_i^2).
A sampler whose steps are Markov and Gaussian, p(x_{i-1} | x_i) = N(mu_i(x_i), S_i^2), gives it another density.
The log of their ratio is the discrete Onsager-Machlup action, a difference of squares of driving noises:

    log w = log p(x_N) + sum_i log p(x_{i-1} | x_i) - log q(x_i | x_{i-1})
          = log p(x_N) + sum_i [|x_i - a_i x_{i-1}|^2/(2 b_i^2) - |x_{i-1} - mu_i|^2/(2 S_i^2) + D log(b_i/S_i)]

(Sohl-Dickstein et al. 2015, "Deep unsupervised learning using nonequilibrium thermodynamics"). With paths drawn from
q( . | x_0), E w = p(x_0) exactly, the sampler's own density. Hence

    -log p(x_0) <= E[-log mean of k weights] <= E[-log mean of j weights] <= E[-log w],      k >= j >= 1

(Burda et al. 2016, "Importance weighted autoencoders"). With the ancestral table of a chain the last is its
variational bound.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scoresde.chains.base import Chain
from scoresde.diffusions.gaussian import Gaussian
from scoresde.diffusions.point import Point
from scoresde.diffusions.sde import transition_weights
from scoresde.errors.kinds import ConfigError, DTypeError, ShapeError
from scoresde.errors.tensors import check_floating, check_outcome, check_samples
from scoresde.errors.values import check_integer
from scoresde.likelihood.bound import choose_prior, choose_std
from scoresde.likelihood.decoders import Decoder, check_decoder, event_sum, gaussian_nats
from scoresde.models.checks import check_event, check_model_and_data
from scoresde.models.prediction import Condition, check_condition, in_mode, select
from scoresde.models.score_model import ScoreModel
from scoresde.noise import SampleNoise, TapeNoise, check_seed, check_tape, stream
from scoresde.ops import chunks, working_dtype
from scoresde.solvers.rows import Row
from scoresde.solvers.tableau import Tableau

__all__ = ["forward_path", "path_log_weight"]


def forward_path(
    table: Tableau | Chain, x0: Tensor, *, seed: int = 0, first_sample: int = 0, noise: Sequence[Tensor] | None = None
) -> Tensor:
    """Return a path of the forward process through a sampler's points, from data to noise.

    Args:
        table: a table of one-stage steps, or a chain, whose ancestral table is meant.
        x0: states (B, *) at the table's end, in the model's coordinates; clean data where the table ends at sigma = 0.
        seed: sample k has a stream of its own, keyed (seed, k).
        first_sample: number of the first sample.
        noise: standard normal tensors of x0's shape instead, one for each step from the data up.

    Returns:
        The path (N + 1, B, *) for N rows, in x0's type but at least float32; path[0] is x0.

    Raises:
        DTypeError, ShapeError, DomainError, ConfigError: bad data or noise, or a table whose steps are not Markov.
    """
    points = _points(_table(table))
    a, b = transition_weights(points[:-1], points[1:])
    x = check_samples(x0, "x0").detach()
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if noise is not None:
        check_tape(noise, len(a), x.shape)
    own = stream(check_seed(seed), "path").initial_seed()
    source = (
        SampleNoise(own, check_integer(first_sample, "first_sample", 0, 2**63 - 1))
        if noise is None
        else TapeNoise(noise)
    )
    states = [x]
    for on_x, on_noise in zip(a.tolist(), b.tolist(), strict=True):
        z = torch.empty_like(x)
        source.fill(z)
        states.append(on_x * states[-1] + on_noise * z)
    return torch.stack(states)


def path_log_weight(
    model: ScoreModel,
    path: Tensor,
    table: Tableau | Chain,
    *,
    decoder: Decoder | None = None,
    prior: Gaussian | None = None,
    cond: Condition = None,
    chunk_size: int = 512,
) -> Tensor:
    """Return log p(path)/q(path | x_0) of forward paths, (B,), in nats, float64; nothing is differentiated.

    Minus its mean over paths is the variational bound. For k paths from each datum and weights w of shape (k, B) the
    tighter bound is ``math.log(k) - torch.logsumexp(w, 0)``.

    Args:
        model: the model; its transform is not applied. The network is put into evaluation mode.
        path: (N + 1, B, *), in the model's coordinates; path[0] is at the table's end, path[N] at its start.
        table: N rows of Markov Gaussian steps (ancestral, reverse diffusion, Euler-Maruyama, ...), or a chain, whose
            ancestral table with the small variance is meant; ``chain.ancestral(variance="large")`` is another.
        decoder: p(x_0 | x_1) of a table whose last step draws no noise and ends at sigma = 0; by default
            ``GaussianDecoder()``. Its mean is that step's.
        prior: law of path[N]; by default the one that sampling starts from.
        cond: conditions, each (B, *).
        chunk_size: largest batch given to the network at once.

    Returns:
        log w: p is a density of path[0] in the model's coordinates (add ``transform.log_abs_det`` for the data's), and
        a probability with a ``LevelsDecoder``.

    Raises:
        ConfigError: a table that remembers, repeats noise, goes upwards or draws no noise above the last step.
        DTypeError, ShapeError, DomainError: a path of another shape or number of states, not finite, and so on. All
            before any call of the network. SolverError: a prediction that is not finite.
    """
    steps = _table(table)
    points = _points(steps)
    if check_floating(path, "path", empty=True).ndim < 2 or len(path) != len(points.t):
        raise ShapeError(
            f"path must have shape ({len(points.t)}, B, *), one state for each point of {steps.name!r} from its end "
            f"up, got {tuple(path.shape)}; make one with forward_path"
        )
    model, _ = check_model_and_data(model, path[0], "path[0]")
    check_event(model.moments, path[0].shape, "path[0]")
    check_samples(path, "path", empty=True)
    cond = check_condition(cond, path.shape[1], path.device)
    chunk_size = check_integer(chunk_size, "chunk_size", 1)
    closing = _closing(steps, decoder)
    if closing is not None:
        closing.check(path[0], model.transform)
    if steps.spread and model.variance != "learned":
        raise ConfigError(f"{steps.name!r} needs a model with variance='learned'; this one has fixed variances")
    law = choose_prior(model, points[-1], steps.prior_std, prior)
    path = path.detach().to(torch.promote_types(path.dtype, torch.float32))
    weights = torch.zeros(path.shape[1], dtype=torch.float64, device="cpu")
    with in_mode(model, training=False), torch.no_grad():
        for part in chunks(path.shape[1], chunk_size):
            found = _weigh_paths(model, path[:, part], steps, closing, law, select(cond, part))
            weights[part] = check_outcome(found, "the log weight").to("cpu", torch.float64)
    return weights


def _weigh_paths(
    model: ScoreModel, path: Tensor, table: Tableau, decoder: Decoder | None, prior: Gaussian, cond: Condition
) -> Tensor:
    """Return the log weights of some paths; sums are taken in float64, so that the states count as they stand."""
    prepared = model.prepare(table.points, path[-1], cond)
    a, b = prepared.weights(table.prediction)
    points = _points(table)
    on_x, spread = (w.tolist() for w in transition_weights(points[:-1], points[1:]))
    work, last = working_dtype(path.device), len(table.rows)
    size = math.prod(path.shape[2:])
    total = prior.log_prob(path[-1].to(work))
    for k, row in enumerate(table.rows):
        late, early = (path[j].to(work) for j in (last - k, last - k - 1))
        on_state, on_prediction = row.state[0], row.state[1] if len(row.state) > 1 else 0.0
        output, fraction = prepared.outputs(k, path[last - k])
        mean = (on_state + on_prediction * a[k]) * late + on_prediction * b[k] * output.to(work)
        forward = spread[last - k - 1]
        total = total + event_sum((late - on_x[last - k - 1] * early).square()) / (2 * forward**2)
        total = total + size * (0.5 * math.log(2 * math.pi) + math.log(forward))
        if row.draws:
            total = total - gaussian_nats(early - mean, _log_std(row, fraction, early))
        else:
            assert decoder is not None
            total = total - decoder.nats(early, mean, choose_std(decoder, row.at.point()), model.transform)
    return total


def _log_std(row: Row, fraction: Tensor | None, x: Tensor) -> Tensor | float:
    """Return the log standard deviation of a step's noise: a number, or of x's shape and type where it is learned."""
    if row.spread is None:
        return math.log(abs(row.noise[0]))
    assert fraction is not None
    small, large = (math.log(std) for std in row.spread)
    return small + (large - small) * fraction.to(x)


def _table(table: object) -> Tableau:
    """Return the table if its steps are Markov, Gaussian and lead down; ConfigError otherwise."""
    if isinstance(table, Chain):
        table = table.ancestral()
    if not isinstance(table, Tableau):
        raise DTypeError(
            f"table must be a Tableau or a chain, got {type(table).__name__}; a solver makes one on times: "
            "solvers.ancestral()(sde, times)"
        )
    if not table.rows:
        raise ConfigError(f"{table.name!r} has no rows, hence no path")
    for row in table.rows:
        if row.anchor is not None or len(row.state) > 2 or len(row.noise) > 1 or table.lift != (1.0, 0.0):
            raise ConfigError(
                f"a path's weight needs steps that depend on the state alone, and {table.name!r} has stages, memory "
                "or repeated noise; take a one-stage table, e.g. solvers.ancestral(), reverse_diffusion() or "
                "euler_maruyama()"
            )
    knots = [*(row.at for row in table.rows), table.end]
    if knots[0] != table.start or any(low.log_snr >= high.log_snr for low, high in itertools.pairwise(knots)):
        raise ConfigError(f"{table.name!r} does not lead from noise to data step by step; leave out restarts and churn")
    return table


def _closing(table: Tableau, decoder: Decoder | None) -> Decoder | None:
    """Return the decoder of the last step, None where that step draws noise of its own."""
    silent = [k for k, row in enumerate(table.rows) if not row.draws]
    if not silent:
        if decoder is not None:
            raise ConfigError(f"the last step of {table.name!r} draws noise of its own; leave out decoder=")
        return None
    if silent != [len(table.rows) - 1] or table.end.sigma > 0:
        raise ConfigError(
            f"row {silent[0]} of {table.name!r} draws no noise, so that its step has no density; take eta > 0, and "
            "only a step into sigma = 0 may be without"
        )
    return check_decoder(decoder)


def _points(table: Tableau) -> Point:
    """Return the points of a path: the table's end, then its calls upwards; fields of shape (N + 1,)."""
    upwards = torch.arange(len(table.rows) - 1, -1, -1, device="cpu")
    return Point.joined([table.end.point().of_each(1)[0], table.points[upwards]])
