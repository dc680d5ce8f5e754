r"""The variational bound of a chain: a diffusion read as a hierarchical variational autoencoder.

With indices 0 ... n - 1 after clean data x (``chains.base``), the encoder q fixed and the decoder p given by the model,

    -log p(x) <= KL(q(x_{n-1} | x) || prior)                                             prior
               + sum_{i=1}^{n-1} E KL(q(x_{i-1} | x_i, x) || p(x_{i-1} | x_i))           terms[i]
               + E[-log p(x | x_0)],                                                     terms[0], by a decoder

all expectations over q(x_i | x) alone. Both laws of a layer are Gaussian. Their means differ by c (x - x_hat), with the
data prediction x_hat, c = alpha_{i-1} (1 - e^D) and D = log_snr_i - log_snr_{i-1}; their variances are
s^2 = sigma_{i-1}^2 (1 - e^D) and S^2 = s^2 e^{2 rho}, where rho is 0 ("small"), log(b_i/s) ("large"), or v log(b_i/s)
with the network's v for each coordinate ("learned"):

    KL = sum over coordinates of rho + (e^{-2 rho} - 1)/2 + e^{-2 rho} (SNR_{i-1} - SNR_i)/2 (x - x_hat)^2,

since (c/s)^2 = SNR_{i-1} - SNR_i; it is D times the loss ``losses.ChainLoss.bound``. With the small variance only the
last term is left.

Source: Sohl-Dickstein et al. 2015, "Deep unsupervised learning using nonequilibrium thermodynamics"; Ho et al. 2020,
"Denoising diffusion probabilistic models", eq. 5; Nichol and Dhariwal 2021, eq. 15.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scoresde.chains.base import Chain
from scoresde.diffusions.gaussian import Gaussian
from scoresde.errors.kinds import ConfigError, DTypeError
from scoresde.errors.names import check_choice
from scoresde.errors.tensors import check_outcome
from scoresde.errors.values import check_integer
from scoresde.likelihood.bound import Bound, Task, assemble_bound, choose_prior, measure_prior
from scoresde.likelihood.decoders import Decoder
from scoresde.models.checks import check_score_model
from scoresde.models.prediction import Condition, in_mode
from scoresde.models.score_model import ScoreModel
from scoresde.solvers.ancestral import VARIANCES, Variance
from scoresde.training.losses.chain import ChainLoss

__all__ = ["variational_bound"]


def variational_bound(
    model: ScoreModel,
    chain: Chain,
    x0: Tensor,
    *,
    variance: Variance = "small",
    decoder: Decoder | None = None,
    prior: Gaussian | None = None,
    indices: int | None = None,
    cond: Condition = None,
    seed: int = 0,
    generator: torch.Generator | None = None,
    noise: Sequence[Tensor] | None = None,
    chunk_size: int = 512,
) -> Bound:
    """Return the variational bound on -log p(x_0) of a chain's ancestral sampler, in nats; nothing is differentiated.

    Args:
        model: the model, trained on the chain or under any SDE: it is asked at the knots' log-SNR. The network is put
            into evaluation mode.
        chain: a ``DDPM`` or an ``SMLD``.
        x0: data (B, *), in the data's units: the model's transform is applied.
        variance: of p(x_{i-1} | x_i), "small" (the posterior's), "large" (the transition's), or "learned" by a model
            with ``variance="learned"``. The decoder states its own.
        decoder: p(x | x_0); by default ``GaussianDecoder()``, or ``LevelsDecoder`` for data on levels.
        prior: law of the noisiest state, in the model's coordinates; by default the one that sampling starts from.
        indices: how many of the n - 1 layers to draw for each sample, evenly spread, at most n - 1; all by default.
        cond: conditions, each (B, *).
        seed: names the noise and the indices: the same seed gives the same, whatever ``chunk_size``.
        generator: on the data's device, instead of the seed.
        noise: standard normal tensors of x0's shape instead of drawn ones: the reconstruction's first, then one for
            each layer (or draw) from index 1 up.
        chunk_size: largest batch given to the network at once.

    Raises:
        DTypeError, ShapeError, DomainError, ConfigError: a model, chain, data, decoder, prior or option of the wrong
            type, shape or range; data off the decoder's levels. All before any call of the network. SolverError: a
            prediction that is not finite, with its t and the share of such samples.
    """
    model = check_score_model(model)
    if not isinstance(chain, Chain):
        raise DTypeError(
            f"chain must be a DDPM or an SMLD, got {type(chain).__name__}; DDPM.from_sde(sde, n) makes one, and "
            "continuous_elbo takes an SDE"
        )
    check_choice("variance", variance, VARIANCES)
    layers = len(chain) - 1
    draws = layers if indices is None else check_integer(indices, "indices", min(1, layers), layers)
    task = Task(
        model,
        x0,
        decoder=decoder,
        cond=cond,
        repeats=draws,
        seed=seed,
        generator=generator,
        noise=noise,
        chunk_size=chunk_size,
    )
    if variance == "learned" and model.variance != "learned":
        raise ConfigError("variance='learned' needs a model with variance='learned'; this one has fixed variances")
    points = chain.points
    top = measure_prior(choose_prior(model, points[-1], chain.prior_std, prior), task.y, points[-1])
    if len(top) == 0:
        return assemble_bound(task, top, top, torch.full((len(chain),), torch.nan, dtype=torch.float64, device="cpu"))
    with in_mode(model, training=False), torch.no_grad():
        reconstruction = task.reconstruction(points[1])
        index = (1 + (task.places() * layers).long()).clamp_max(layers)
        values = _layers(task, chain, index, variance)
    count = torch.bincount(index.reshape(-1), minlength=len(chain)).double()
    terms = torch.zeros_like(count).index_add(0, index.reshape(-1), values.reshape(-1)) / count
    terms[0] = reconstruction.mean()
    return assemble_bound(task, top, reconstruction + values.sum(0) * (layers / max(1, draws)), terms)


def _layers(task: Task, chain: Chain, index: Tensor, variance: Variance) -> Tensor:
    """Return the KL divergences of the layers ``index`` (draws, B), of its shape, float64 on the CPU."""
    loss = ChainLoss.bound(chain, variance=variance)
    values = torch.zeros(index.shape, dtype=torch.float64, device="cpu")
    for draws, part, y, z, cond in task.drawn(len(index)):
        i = index[draws, part]
        nats = task.size * loss(task.model, y, cond=cond, index=i.reshape(-1), noise=z)
        check_outcome(nats, "the bound's layer", chain.points.t[i.reshape(-1)])
        values[draws, part] = nats.to("cpu", torch.float64).reshape(i.shape)
    return values
