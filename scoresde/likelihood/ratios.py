r"""Likelihoods compared: of two models at the same data, and of the classes of one.

Both are differences of estimates that share their noise: the same signs of the probes, the same draws of noise and
times, so that what the noise adds to both is gone. Errors are those of the differences, from draw to draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from tqdm.auto import tqdm

from scoresde.errors.kinds import ConfigError, DTypeError, ShapeError, show
from scoresde.errors.names import check_choice
from scoresde.errors.tensors import check_numbers, check_samples
from scoresde.errors.values import check_flag, check_integer, check_mapping
from scoresde.likelihood.continuous import continuous_elbo
from scoresde.likelihood.decoders import Decoder
from scoresde.likelihood.flow import LogLikelihood, log_likelihood
from scoresde.models.checks import check_model, check_score_model
from scoresde.models.prediction import Condition, Predictor
from scoresde.noise import check_seed, stream
from scoresde.solvers.adaptive import FlowSolver
from scoresde.solvers.solver import Solver

__all__ = ["Classification", "classify", "log_likelihood_ratio"]

By = Literal["bound", "flow"]


def log_likelihood_ratio(
    a: Predictor,
    b: Predictor,
    x: Tensor,
    *,
    probes: int | None = None,
    groups: Tensor | None = None,
    draws: int | None = None,
    solver: str | Solver | FlowSolver | None = None,
    steps: int | None = None,
    cond: Condition = None,
    seed: int = 0,
    chunk_size: int = 256,
) -> LogLikelihood:
    """Return log p_a(x) - log p_b(x) of two models, with common probes.

    Its ``values`` and their ``standard_error`` are of the difference, as are ``prior_mismatch`` and ``truncation``;
    ``solver_error`` and ``nfe`` are sums, and ``latent`` is a's.

    Args:
        a: a model.
        b: another, of the same data.
        x: data (B, *), in the data's units.
        probes: see ``log_likelihood``, as for all that follow.
        groups: of the coordinates.
        draws: of the signs.
        solver: of both flows.
        steps: of a fixed solver.
        cond: conditions of both.
        seed: of the signs.
        chunk_size: largest batch given to a network at once.

    Raises:
        ShapeError, DTypeError, DomainError, ConfigError, SolverError: as ``log_likelihood``.
    """
    check_model(b)
    first, second = (
        log_likelihood(
            model,
            x,
            probes=probes,
            groups=groups,
            draws=draws,
            solver=solver,
            steps=steps,
            cond=cond,
            seed=seed,
            chunk_size=chunk_size,
        )
        for model in (a, b)
    )
    return LogLikelihood(
        each=first.each - second.each,
        solver_error=first.solver_error + second.solver_error,
        prior_mismatch=first.prior_mismatch - second.prior_mismatch,
        truncation=first.truncation - second.truncation,
        nfe=first.nfe + second.nfe,
        latent=first.latent,
        exact=first.exact,
        discrete=False,
    )


@dataclass(frozen=True, eq=False)
class Classification:
    """What a class-conditional model says of the classes of data.

    Args:
        labels: the classes, (K, ...).
        each: log p(x | y) or its bound, of each draw, (draws, B, K), in nats, float64.
        log_prior: log p(y), (K,).
    """

    labels: Tensor
    each: Tensor
    log_prior: Tensor

    @property
    def probabilities(self) -> Tensor:
        """p(y | x) by Bayes' rule from the mean over the draws, (B, K)."""
        return torch.softmax(self.each.mean(0) + self.log_prior, 1)

    @property
    def standard_error(self) -> Tensor:
        """Of the probabilities, (B, K): by the jackknife over the draws; NaN for one draw."""
        draws = len(self.each)
        if draws < 2:
            return torch.full(self.each.shape[1:], math.nan, dtype=torch.float64, device="cpu")
        without = (self.each.sum(0) - self.each) / (draws - 1)
        return torch.softmax(without + self.log_prior, 2).std(0, correction=0) * math.sqrt(draws - 1)

    @property
    def predicted(self) -> Tensor:
        """The most probable class of each sample, (B, ...), one of ``labels``."""
        return self.labels[self.probabilities.argmax(1)]

    def __repr__(self) -> str:
        draws, batch, classes = self.each.shape
        return f"<Classification of {batch} samples into {classes} classes, {draws} draws>"


def _read_labels(labels: object) -> Tensor:
    """Return classes as a tensor of their own type."""
    check_numbers(tuple(labels) if isinstance(labels, range) else labels, "labels")
    return labels if isinstance(labels, Tensor) else torch.as_tensor(labels, device="cpu")


def classify(
    model: Predictor,
    x: Tensor,
    labels: Tensor | Sequence[int],
    *,
    key: str = "label",
    by: By = "bound",
    draws: int = 4,
    samples: int = 16,
    probes: int | None = None,
    solver: str | Solver | FlowSolver | None = None,
    steps: int | None = None,
    decoder: Decoder | None = None,
    log_prior: Tensor | None = None,
    cond: Condition = None,
    seed: int = 0,
    chunk_size: int = 512,
    progress: bool = False,
) -> Classification:
    """Return p(y | x) of a class-conditional model, p(x | y) p(y) normalised over the classes.

    log p(x | y) is the continuous bound or the flow's likelihood, with the same noise for every class (Li et al. 2023,
    arXiv:2303.16203; Clark and Jaini 2023, arXiv:2303.15233).

    Args:
        model: takes the condition ``key``.
        x: data (B, *), in the data's units.
        labels: the classes, (K,) integers, or values of another condition, (K, ...).
        key: the condition's name.
        by: "bound" asks the network ``draws`` x ``samples`` times for a class, "flow" integrates.
        draws: independent estimates, whose spread gives the standard error.
        samples: draws of noise and time in each estimate of the bound.
        probes: of the flow, see ``log_likelihood``; exact divergences need one draw.
        solver: of the flow.
        steps: of a fixed solver.
        decoder: of the bound, see ``continuous_elbo``.
        log_prior: log p(y), (K,); equal by default.
        cond: other conditions, each (B, *).
        seed: of all noise.
        chunk_size: largest batch given to the network at once.
        progress: show a bar over the classes.

    Raises:
        ConfigError: no class, an unknown ``by``, options of the other one. ShapeError, DTypeError, DomainError: bad
            data or conditions, before any call of the network.
    """
    known, classes = check_model(model), _read_labels(labels)
    data = check_samples(x, "x")
    check_choice("way to classify", by, get_args(By))
    if classes.ndim == 0 or len(classes) == 0:
        raise ConfigError("labels must name at least one class, e.g. range(10)")
    strange = {"probes": probes, "solver": solver, "steps": steps} if by == "bound" else {"decoder": decoder}
    if given := [name for name, value in strange.items() if value is not None]:
        raise ConfigError(f"classify(by={by!r}) takes no {', '.join(given)}; leave it out")
    draws = check_integer(draws, "draws", 1)
    check_seed(seed)
    check_flag(progress, "progress")
    if not isinstance(key, str):
        raise DTypeError(f"key must be the name of a condition, got {show(key)}", parameter="key")
    cond = None if cond is None else check_mapping(cond, "cond", "tensors")
    share = (
        torch.zeros(len(classes), dtype=torch.float32, device="cpu")
        if log_prior is None
        else check_numbers(log_prior, "log_prior")
    )
    if share.shape != (len(classes),):
        raise ShapeError(f"log_prior must have shape ({len(classes)},), one for each class, got {tuple(share.shape)}")
    found = []
    for value in tqdm(classes, desc="classes", disable=not progress, leave=False):
        told = {**(cond or {}), key: value.to(data.device).expand(len(data), *value.shape)}
        if by == "flow":
            result = log_likelihood(
                known,
                data,
                probes=probes,
                draws=None if probes is None else draws,
                solver=solver,
                steps=steps,
                cond=told,
                seed=seed,
                chunk_size=chunk_size,
            )
            found.append(result.each.T)
        else:
            bounds = [
                continuous_elbo(
                    check_score_model(known),
                    known.sde,
                    data,
                    decoder=decoder,
                    samples=samples,
                    cond=told,
                    seed=stream(seed, "classify", k).initial_seed(),
                    chunk_size=chunk_size,
                )
                for k in range(draws)
            ]
            found.append(-torch.stack([bound.per_sample for bound in bounds]))
    return Classification(classes, torch.stack(found, 2), torch.log_softmax(share.double(), 0))
