r"""What the bounds share: the result, the prior's term, the noise, and the loop over draws.

A bound is a mean over draws of noise. Each sample gets r draws; draw k of sample b sits at the place

    u_{k,b} = (k + v_b)/r  in [0, 1),      v_b = (v + b/B) mod 1 in a random order, v uniform,

so that every sample meets each of r equal strata once, and the r B places together are evenly spaced (low
discrepancy; Kingma et al. 2021, "Variational diffusion models"). Each u_{k,b} is uniform on its stratum: no bias.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.diffusions.gaussian import Gaussian
from scoresde.diffusions.point import Point
from scoresde.errors.kinds import DomainError, DTypeError
from scoresde.errors.tensors import check_outcome
from scoresde.errors.values import check_integer
from scoresde.likelihood.decoders import Decoder, LevelsDecoder, check_decoder, find_levels
from scoresde.likelihood.figures import PerSample
from scoresde.models.checks import check_data_event, check_density, check_model_and_data
from scoresde.models.prediction import Condition, Predictor, check_condition
from scoresde.models.score_model import ScoreModel
from scoresde.noise import (
    GeneratorNoise,
    NoiseSource,
    SampleNoise,
    TapeNoise,
    check_generator,
    check_seed,
    check_tape,
    permutation,
    stream,
    uniform,
)
from scoresde.ops import chunks, working_dtype

__all__ = ["Bound", "Task", "assemble_bound", "choose_prior", "measure_prior"]


@dataclass(frozen=True, eq=False, repr=False)
class Bound(PerSample):
    """An upper bound on -log p(x_0), in nats: minus the evidence lower bound.

    Without a transform, -log p is that of the data's density, in the data's unit; with one, its log |det| is taken off,
    so that it still is. After ``Dequantise`` it is the density of the dequantised data: that of the levels' probability
    is larger by -log(width) for each coordinate. With a ``LevelsDecoder`` it is minus the log of the levels'
    probability. ``total`` is prior + terms.sum() - log_abs_det, where every index was drawn.

    Args:
        per_sample: one unbiased estimate for each sample, (B,), float64.
        prior: mean of the KL divergence of the noisiest state's law from the prior.
        terms: means by layer, terms[0] the reconstruction. For a chain (n,), the KL of index i at i, NaN where an index
            was not drawn; in continuous time (samples + 1,), the integral's equal parts, from the data's end on.
        log_abs_det: mean of the transform's log |det|; 0 without one, or where the data are levels.
        size: number of coordinates of an event.
        discrete: whether it bounds minus the log of a probability, not of a density.
        levels: where it bounds a density and the data lie on levels, the decoder that bounds their probability.
    """

    prior: float
    terms: Tensor
    log_abs_det: float
    size: int
    discrete: bool
    levels: LevelsDecoder | None = None

    def _figures(self) -> dict[str, str]:
        if len(self.per_sample) == 0:
            return {"of": "no samples"}
        said = f"not the probability of the data's levels, which decoder={self.levels} bounds"
        return {
            **({} if self.levels is None else {"of a density,": said}),
            "total": f"{self.total:.6g} +- {self.standard_error:.2g} nats",
            "bits per dim": f"{self.bits_per_dim:.4g}",
            "prior": f"{self.prior:.4g}",
            "reconstruction": f"{self.reconstruction:.4g}",
            "samples": str(len(self.per_sample)),
        }

    @property
    def reconstruction(self) -> float:
        """Mean of minus the log of the decoder's probability (density): L_0."""
        return float(self.terms[0])

    @property
    def bits_per_dim(self) -> float:
        """total/(D log 2)."""
        return self.total / (self.size * math.log(2))


class Task:
    """Data in the model's coordinates with everything that was checked, and the loop over draws.

    Raises (at construction, before any call of the network):
        DTypeError, ShapeError, DomainError, ConfigError: a model that is no ScoreModel, data of another event, other
            type or not finite, on another device, bad conditions, seeds, generators or recorded noise.
    """

    def __init__(
        self,
        model: ScoreModel,
        x0: Tensor,
        *,
        decoder: Decoder | None,
        cond: Condition,
        repeats: int,
        seed: int,
        generator: torch.Generator | None,
        noise: Sequence[Tensor] | None,
        chunk_size: int,
    ) -> None:
        """Check, transform the data and choose the source of noise."""
        check_density(model)
        self.model, x = check_model_and_data(model, x0, "x0")
        check_data_event(self.model, x.shape, "x0")
        self.repeats = repeats
        self.decoder = check_decoder(decoder)
        self.chunk_size = check_integer(chunk_size, "chunk_size", 1)
        self.cond = check_condition(cond, len(x), x.device)
        if generator is not None:
            check_generator(generator, x.device, "the data")
        self._generator = generator
        self._seed = check_seed(seed)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        self.y, self.log_abs_det = x, torch.zeros(len(x), dtype=torch.float64, device="cpu")
        transform = self.model.transform
        if transform is not None:
            draw = self._stream("transform", x.device)
            state = draw.get_state()
            self.y = transform.forward(x, draw)
            if not self.decoder.discrete:
                draw.set_state(state)
                self.log_abs_det = transform.log_abs_det(x, draw).to("cpu", torch.float64)
        self.decoder.check(self.y, transform)
        spread = transform is not None and transform.random
        self.levels = None if self.decoder.discrete or spread else find_levels(x)
        self.size = math.prod(self.y.shape[1:])
        _check_size(self.y, self.size)
        self.source = self._noise(noise)

    def _stream(self, name: str, device: torch.device | str = "cpu") -> torch.Generator:
        """Return the caller's generator, or the seed's on ``device``."""
        return self._generator or stream(self._seed, "bound", name, device=device)

    def _noise(self, noise: Sequence[Tensor] | None) -> NoiseSource:
        if noise is not None:
            check_tape(noise, self.repeats + 1, self.y.shape)
            return TapeNoise(noise)
        if self._generator is not None:
            return GeneratorNoise(self._generator)
        # A stream of its own: data sampled with the same seed must not meet the noise they were made of.
        return SampleNoise(stream(self._seed, "bound", "noise").initial_seed())

    def places(self) -> Tensor:
        """Return u of shape (repeats, B) in [0, 1), float64 on the CPU; see the module's docstring."""
        batch, draw = len(self.y), self._stream("places")
        first = uniform((1,), draw, dtype=working_dtype(draw.device)).cpu()
        v = (torch.arange(batch, dtype=torch.float64, device="cpu") / batch + first).remainder(1.0)
        v = v[permutation(batch, draw).cpu()]
        return (torch.arange(self.repeats, dtype=torch.float64, device="cpu")[:, None] + v) / self.repeats

    def drawn(self, repeats: int) -> Iterator[tuple[slice, slice, Tensor, Tensor, Condition]]:
        """Yield (draws, samples, y, z, cond) in batches of at most ``chunk_size``: draws x samples, flattened."""
        batch, event = len(self.y), self.y.shape[1:]
        together = max(1, self.chunk_size // batch)
        for draws in chunks(repeats, together):
            count = draws.stop - draws.start
            z = torch.empty((count, *self.y.shape), dtype=self.y.dtype, device=self.y.device)
            for row in z:
                self.source.fill(row)
            for part in chunks(batch, self.chunk_size):
                y, noise = self.y[part].expand(z[:, part].shape).reshape(-1, *event), z[:, part].reshape(-1, *event)
                cond = None
                if self.cond is not None:
                    cond = {k: v[part].repeat(count, *(1,) * (v.ndim - 1)) for k, v in self.cond.items()}
                yield draws, part, y, noise, cond

    def reconstruction(self, point: Point) -> Tensor:
        """Return minus the decoder's log probability of the data, (B,), with one draw of the state at ``point``."""
        values, std = torch.zeros(len(self.y), dtype=torch.float64, device="cpu"), choose_std(self.decoder, point)
        for _, part, y, z, cond in self.drawn(1):
            x = float(point.alpha) * y + float(point.sigma) * z
            mean = self.model.at(x, point, cond).data
            nats = self.decoder.nats(y, mean, std, self.model.transform)
            values[part] = check_outcome(nats, "the reconstruction", point.t.expand(len(y))).to("cpu", torch.float64)
        return values


def _check_size(y: Tensor, size: int) -> None:
    """Raise DomainError for data whose squared errors could not be summed in their type."""
    limit = math.sqrt(torch.finfo(y.dtype).max / (4 * max(1, size)))
    largest = float(y.abs().max()) if y.numel() else 0.0
    if not largest <= limit:
        raise DomainError(
            f"x0 reaches {largest:.3g} in the model's coordinates, whose square is no number of {y.dtype}",
            parameter="x0",
            got=largest,
            allowed=f"values up to {limit:.3g}",
            cure="give the model a transform, e.g. Affine.standardise(data), or the data in float64",
        )


def assemble_bound(task: Task, prior: Tensor, layers: Tensor, terms: Tensor) -> Bound:
    """Put a result together from the prior's term (B,), the sum of the layers (B,), and the layers' means."""
    return Bound(
        per_sample=prior + layers - task.log_abs_det,
        prior=float(prior.mean()),
        terms=terms,
        log_abs_det=float(task.log_abs_det.mean()),
        size=task.size,
        discrete=task.decoder.discrete,
        levels=task.levels,
    )


def choose_std(decoder: Decoder, point: Point) -> float:
    """Return the decoder's standard deviation, sigma/alpha at ``point`` where none is stated."""
    return float(point.sigma / point.alpha) if decoder.std is None else decoder.std


def choose_prior(model: Predictor, point: Point, std: float, prior: Gaussian | None) -> Gaussian:
    """Return the law that sampling starts from: the caller's, that of the data's moments, or N(0, std^2)."""
    if prior is not None:
        if not isinstance(prior, Gaussian):
            raise DTypeError(f"prior must be a Gaussian, got {type(prior).__name__}; e.g. Gaussian(mean, variance)")
        return prior
    if model.moments is not None:
        return model.moments.at(float(point.alpha), float(point.sigma))
    return Gaussian(
        torch.zeros((), dtype=torch.float64, device="cpu"), torch.tensor(std**2, dtype=torch.float64, device="cpu")
    )


def measure_prior(prior: Gaussian, y: Tensor, point: Point) -> Tensor:
    """Return KL(N(alpha y, sigma^2) || prior) for data y (B, *) at one point, (B,), float64 on the CPU.

    It is the cross entropy -log prior(alpha y) + sigma^2/2 tr(C^{-1}) less the entropy D/2 log(2 pi e sigma^2).
    """
    mean = y.to("cpu", torch.float64) * point.alpha
    size, variance = math.prod(y.shape[1:]), float(point.sigma) ** 2
    spread = prior.variance.to(mean)
    inverse = float(spread.reciprocal().sum()) * (size if spread.ndim == 0 else 1)
    entropy = 0.5 * size * (1 + math.log(2 * math.pi * variance))
    return -prior.log_prob(mean) + 0.5 * variance * inverse - entropy
