"""p(theta | x) of a network that is told the observation, with the methods of the package sbi's posteriors.

sbi's diagnostics (``run_sbc``, ``run_tarp``, expected coverage) and plots ask a posterior for samples and densities by
these names (https://sbi.readthedocs.io). Nothing of it is imported here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Self

from torch import Tensor

from scoresde.errors.kinds import ConfigError, DTypeError, ShapeError
from scoresde.errors.tensors import check_floating, check_samples
from scoresde.errors.values import check_callable, check_integer, check_sizes, check_text
from scoresde.likelihood.flow import log_likelihood
from scoresde.models.checks import check_model
from scoresde.models.prediction import Predictor
from scoresde.sampling.sample import sample
from scoresde.solvers.named import DEFAULT
from scoresde.solvers.solver import Solver

__all__ = ["SBIPosterior"]


class SBIPosterior:
    """The posterior of parameters theta given an observation x, as the package sbi calls it.

    ``run_sbc(thetas, xs, SBIPosterior(model, "context"))`` checks our sampler with sbi's diagnostics.

    Args:
        model: a model of theta that takes the observation as a condition; its moments say the shape of theta.
        key: that condition's name, "context" or "concat" for instance.
        encode: what the network is told of observations (n, *), e.g. their standardised values; themselves by default.
        solver: of the samples.
        steps: of the solver.
        chunk_size: samples of one call.

    Raises:
        DTypeError, ConfigError: no model, or one that knows no moments, no name, no function. DomainError: numbers
            out of range.
    """

    def __init__(
        self,
        model: Predictor,
        key: str,
        *,
        encode: Callable[[Tensor], Tensor] | None = None,
        solver: str | Solver = DEFAULT,
        steps: int = 50,
        chunk_size: int = 4096,
    ) -> None:
        self.model, self.key, self.encode = check_model(model), check_text(key, "key"), encode
        check_callable(encode, "encode", "of observations (n, *)")
        if self.model.moments is None:
            raise ConfigError("the model knows no moments, so no shape of theta; pass ScoreModel(..., moments=...)")
        self.event = tuple(self.model.moments.mean.shape)
        self.solver, self.steps = solver, check_integer(steps, "steps", 1)
        self.chunk_size = check_integer(chunk_size, "chunk_size", 1)
        self.default_x: Tensor | None = None

    def set_default_x(self, x: Tensor) -> Self:
        """Keep an observation, (1, *) or (D,), for calls that name none, and return this object."""
        self.default_x = self._one(x)
        return self

    def sample(
        self,
        sample_shape: Sequence[int] = (),
        x: Tensor | None = None,
        show_progress_bars: bool = False,
        *,
        seed: int | None = None,
    ) -> Tensor:
        """Return draws of theta given one observation, (*sample_shape, *theta).

        Args:
            sample_shape: how many.
            x: the observation, (1, *) or (D,); the default one by default.
            show_progress_bars: show a bar.
            seed: of the draws; by default another one in every call.
        """
        drawn = self.sample_batched(sample_shape, self._one(x), show_progress_bars, seed=seed)
        return drawn.squeeze(-1 - len(self.event))

    def sample_batched(
        self,
        sample_shape: Sequence[int],
        x: Tensor,
        show_progress_bars: bool = False,
        *,
        seed: int | None = None,
    ) -> Tensor:
        """Return draws of theta given each of n observations x (n, *), (*sample_shape, n, *theta); see ``sample``."""
        sample_shape = check_sizes(sample_shape, "sample_shape")
        told, draws = self._tell(x), math.prod(sample_shape)
        out = sample(
            self.model,
            (draws * len(told), *self.event),
            solver=self.solver,
            steps=self.steps,
            cond={self.key: told.repeat(draws, *(1,) * (told.ndim - 1))},
            chunk_size=self.chunk_size,
            seed=seed,
            progress=show_progress_bars,
        )
        return out.reshape(*sample_shape, len(told), *self.event)

    def log_prob(self, theta: Tensor, x: Tensor | None = None) -> Tensor:
        """Return log p(theta | x) of the probability flow in nats, (n,), for theta (n, *) and one observation."""
        check_floating(theta, "theta")
        batch = theta[None] if theta.ndim == len(self.event) else theta
        return self.log_prob_batched(batch[:, None], self._one(x))[:, 0]

    # What sbi asks of posteriors that it does not know: here it is normalised.
    potential = log_prob

    def log_prob_batched(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return log p(theta | x), (S, n), for theta (S, n, *) and observations x (n, *)."""
        told = self._tell(x)
        if check_floating(theta, "theta").shape[1:] != (len(told), *self.event):
            raise ShapeError(
                f"theta must hold events of {self.event} for {len(told)} observations, got {tuple(theta.shape)}"
            )
        cond = {self.key: told.repeat(len(theta), *(1,) * (told.ndim - 1))}
        found = log_likelihood(self.model, theta.flatten(0, 1), cond=cond, chunk_size=self.chunk_size)
        return found.values.reshape(theta.shape[:2])

    def _tell(self, x: Tensor) -> Tensor:
        check_samples(x, "x")
        return x if self.encode is None else self.encode(x)

    def _one(self, x: Tensor | None) -> Tensor:
        given = self.default_x if x is None else x
        if given is None:
            raise ConfigError("no observation: pass x=, or set_default_x(x) first")
        if not isinstance(given, Tensor):
            raise DTypeError(f"x must be a tensor, got {type(given).__name__}")
        batch = given[None] if given.ndim == 1 else given
        if batch.ndim < 2 or len(batch) != 1:
            raise ShapeError(f"x must be one observation, (1, *) or (D,), got {tuple(given.shape)}; see sample_batched")
        return batch

    def __repr__(self) -> str:
        return f"SBIPosterior({self.model!r}, {self.key!r}, solver={self.solver!r}, steps={self.steps})"
