r"""The bound of a latent diffusion: the autoencoder's evidence lower bound with the model in the place of its prior.

With q(z | x) = N(m, e^l), p(x | z) = N(D(z), s^2) and a density p(z) of codes (``models.latent``),

    log p(x) >= E_q[log p(x | z) - log q(z | x) + log p(z)].

For every z the three together are log p(x) - log(q(z | x)/p(z | x)): where q is the posterior the bound is log p(x)
itself, for each draw of z. That is why log q is taken at the draw, and not its mean, which is known: near the optimum
the three vary together. Of a diffusion, log p(z) is bounded from below in its turn, by minus
``continuous_elbo``, or is that of its flow, ``log_likelihood``. p(z) is a density in the unit of the codes: T, with
which the model brings them to unit variance, is taken into account.

A diffusion of independent noise added to z is what Vahdat, Kreis and Kautz 2021 (arXiv:2106.05931) train by this bound,
together with the autoencoder; here the two are trained one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from scoresde.diffusions.named import check_sde
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.kinds import ConfigError, ShapeError
from scoresde.errors.tensors import check_outcome, check_samples
from scoresde.errors.values import check_callable, check_integer
from scoresde.likelihood.continuous import continuous_elbo
from scoresde.likelihood.decoders import event_sum, gaussian_nats
from scoresde.likelihood.figures import PerSample
from scoresde.models.checks import check_model, check_score_model
from scoresde.models.latent import Coder, Latent
from scoresde.models.prediction import Predictor, in_mode
from scoresde.noise import SampleNoise, check_seed, stream
from scoresde.ops import chunks

__all__ = ["LatentBound", "latent_elbo"]

LogDensity = Callable[[Tensor], Tensor]


@runtime_checkable
class VariationalCoder(Coder, Protocol):
    """A variational autoencoder that knows its decoder's scale."""

    @property
    def log_std(self) -> Tensor:
        """The log of s, 0-d or of the data's event."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class LatentBound(PerSample):
    """An upper bound on -log p(x), in nats, of a latent diffusion; ``total`` is reconstruction - entropy + codes.

    Args:
        per_sample: one unbiased estimate for each sample, (B,), float64.
        reconstruction: mean of -log p(x | z).
        entropy: mean of -log q(z | x).
        codes: mean of -log p(z), or of its bound.
        size: number of coordinates of a datum.
    """

    reconstruction: float
    entropy: float
    codes: float
    size: int

    def _figures(self) -> dict[str, str]:
        return {
            "total": f"{self.total:.6g} +- {self.standard_error:.2g} nats",
            "bits per dim": f"{self.bits_per_dim:.4g}",
            "reconstruction": f"{self.reconstruction:.4g}",
            "entropy of q": f"{self.entropy:.4g}",
            "codes": f"{self.codes:.4g}",
            "samples": str(len(self.per_sample)),
        }

    @property
    def bits_per_dim(self) -> float:
        """total/(D log 2); of data on levels of width w add -log2 w, that of the dequantised data's probability."""
        return self.total / (self.size * math.log(2))


def latent_elbo(
    model: Predictor,
    x: Tensor,
    *,
    sde: GaussianSDE | None = None,
    log_density: LogDensity | None = None,
    seed: int = 0,
    chunk_size: int = 256,
) -> LatentBound:
    """Return the bound on -log p(x) of a latent diffusion, in nats, with one draw of q(z | x) for each sample.

    Args:
        model: a model whose transform is ``Latent`` with a variational autoencoder.
        x: data (B, *), in the data's units.
        sde: under which the codes are bounded, by default the model's; one that reaches alpha = 0 has no bound.
        log_density: a function, codes y (B, *) in the model's coordinates -> log p(y) (B,) in nats; by default minus
            ``continuous_elbo`` of the model of codes, ``model.in_its_own_coordinates()``. That of the flow is
            ``lambda y: log_likelihood(model.in_its_own_coordinates(), y).values``.
        seed: of the draws; those of sample k are its own, keyed (seed, k).
        chunk_size: largest batch given to the networks at once.

    Raises:
        ConfigError: a model of data, or of codes that have no law; an autoencoder that does not know its scale; an SDE
            that reaches alpha = 0. All before any call of a network.
        DTypeError, ShapeError, DomainError: x is no finite floating (B, *), densities that are not (B,).
    """
    known = check_model(model)
    transform = known.transform
    if not isinstance(transform, Latent):
        raise ConfigError("the model has no Latent transform: it is one of the data; use continuous_elbo(model, ...)")
    coder = transform.autoencoder
    if not transform.random:
        transform.log_abs_det(x)
    if not isinstance(coder, VariationalCoder):
        raise ConfigError("the autoencoder must know log_std, the log of its decoder's standard deviation")
    data = check_samples(x, "x").detach()
    size = check_integer(chunk_size, "chunk_size", 1)
    seed = check_seed(seed)
    check_callable(log_density, "log_density", "of codes y (B, *) -> log p(y) (B,)")
    density = _Bounded(known, sde, seed, size) if log_density is None else log_density
    none = torch.zeros(0, dtype=torch.float64, device="cpu")
    reconstruction, entropy, codes = [none], [none], []
    with in_mode(known, training=False), torch.no_grad():
        for rows in chunks(len(data), size):
            part = transform.place(data[rows].to(torch.promote_types(data.dtype, torch.float32)))
            mean, log_variance = coder.posterior(part)
            if log_variance is None:
                raise ConfigError("a variational autoencoder must give a log variance, got None")
            noise = torch.empty(mean.shape, dtype=torch.float32, device="cpu")
            SampleNoise(seed, rows.start).fill(noise)
            z = mean + (0.5 * log_variance).exp() * noise.to(mean)
            reconstruction.append(gaussian_nats(part - coder.decode(z), coder.log_std).cpu())
            entropy.append(0.5 * event_sum(noise.to(mean).square() + math.log(2 * math.pi) + log_variance).cpu())
            codes.append(z)
    return _assemble(torch.cat(reconstruction), torch.cat(entropy), codes, transform, density, math.prod(x.shape[1:]))


class _Bounded:
    """Minus the continuous bound of a model of codes, whose noise is none of the noise that made them."""

    def __init__(self, model: Predictor, sde: GaussianSDE | None, seed: int, chunk_size: int) -> None:
        self.model = check_score_model(model).in_its_own_coordinates()
        self.sde = check_sde(model.sde if sde is None else sde)
        if float(self.sde.alpha(self.sde.t_max)) == 0:
            raise ConfigError(
                f"{self.sde!r} reaches alpha = 0, where the integral of the bound has no beginning",
                cure="pass sde=VPSDE(), which asks the network at the same noise levels, or log_density=",
            )
        self.seed = stream(seed, "latent").initial_seed() & (2**63 - 1)
        self.chunk_size = chunk_size

    def __call__(self, y: Tensor) -> Tensor:
        return -continuous_elbo(self.model, self.sde, y, seed=self.seed, chunk_size=self.chunk_size).per_sample


def _assemble(
    reconstruction: Tensor, entropy: Tensor, codes: list[Tensor], transform: Latent, density: LogDensity, size: int
) -> LatentBound:
    if not codes:
        return LatentBound(reconstruction, math.nan, math.nan, math.nan, size)
    z, then = torch.cat(codes), transform.then
    y = z if then is None else then.forward(z)
    found: object = density(y)
    if not isinstance(found, Tensor) or found.shape != (len(z),):
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ShapeError(f"log_density must return one number a sample, ({len(z)},), got {got}")
    nats = -found.detach().to("cpu", torch.float64)
    nats = nats if then is None else nats - then.log_abs_det(z).to("cpu", torch.float64)
    total = check_outcome(reconstruction - entropy + nats, "the bound")
    return LatentBound(total, float(reconstruction.mean()), float(entropy.mean()), float(nats.mean()), size)
