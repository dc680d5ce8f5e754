r"""The bound in continuous time: an integral over log-SNR.

Let a chain's layers become ever finer between two fixed ends, lambda_1 = log_snr(t_min) and lambda_0 = log_snr(t_max).
The layers' (SNR_{i-1} - SNR_i)/2 |x - x_hat|^2 become

    -log p(x) <= KL(q(x_{t_max} | x) || prior) + 1/2 int_{lambda_0}^{lambda_1} e^lambda E|x - x_hat|^2 d lambda
                 + E[-log p(x | x_{t_min})],

and e^{lambda/2} |x - x_hat| is the error of the noise prediction, so that the integrand is the loss under the weight
"simple" times the dimension; in uniform t it is the weight "likelihood". x_hat depends on x_t/alpha_t and lambda alone.
The prior's term depends on lambda_0 alone too where the prior has the data's moments. The bound is then the same under
every schedule between equal ends.

With the exact model it *is* -log p in the limit lambda_1 -> infinity with the exact prior: averaged over the data, the
integrand is half the derivative of the mutual information of x and x_t (Guo, Shamai and Verdu 2005), and the decoder of
variance (sigma/alpha)^2 closes what is left.

Source: Kingma et al. 2021, "Variational diffusion models"; Song, Durkan et al. 2021, "Maximum likelihood training of
score-based diffusion models".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scoresde.diffusions.gaussian import Gaussian
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.kinds import ConfigError, DTypeError
from scoresde.errors.tensors import check_outcome
from scoresde.errors.values import check_integer
from scoresde.likelihood.bound import Bound, Task, assemble_bound, choose_prior, measure_prior
from scoresde.likelihood.decoders import Decoder
from scoresde.models.checks import check_score_model
from scoresde.models.prediction import Condition, in_mode
from scoresde.models.score_model import ScoreModel
from scoresde.training.losses.denoising import denoising_score_matching

__all__ = ["continuous_elbo"]


def continuous_elbo(
    model: ScoreModel,
    sde: GaussianSDE,
    x0: Tensor,
    *,
    decoder: Decoder | None = None,
    prior: Gaussian | None = None,
    samples: int = 16,
    cond: Condition = None,
    seed: int = 0,
    generator: torch.Generator | None = None,
    noise: Sequence[Tensor] | None = None,
    chunk_size: int = 512,
) -> Bound:
    """Return the continuous-time bound on -log p(x_0), i.e. minus the ELBO, in nats; nothing is differentiated.

    Args:
        model: the model, trained under any SDE. The network is put into evaluation mode.
        sde: the diffusion; its t_min and t_max are the ends of the integral.
        x0: data (B, *), in the data's units: the model's transform is applied.
        decoder: p(x | x_{t_min}); by default ``GaussianDecoder()``, or ``LevelsDecoder`` for data on levels.
        prior: law of x_{t_max}, in the model's coordinates; by default the one that sampling starts from.
        samples: draws of noise and log-SNR for each sample, one in each of so many equal parts of the integral.
        cond: conditions, each (B, *).
        seed: names the noise and the times: the same seed gives the same, whatever ``chunk_size``.
        generator: on the data's device, instead of the seed.
        noise: standard normal tensors of x0's shape instead of drawn ones: the reconstruction's, then one for each of
            ``samples``.
        chunk_size: largest batch given to the network at once.

    Raises:
        ConfigError: an SDE that reaches alpha = 0. DTypeError, ShapeError, DomainError: a model, SDE, data, decoder,
            prior or option of the wrong type, shape or range. All before any call of the network. SolverError: a
            prediction that is not finite, with its t and the share of such samples.
    """
    model = check_score_model(model)
    if not isinstance(sde, GaussianSDE):
        raise DTypeError(f"sde must be a GaussianSDE, got {type(sde).__name__}; a chain belongs to variational_bound")
    high, low = (float(sde.log_snr(t)) for t in (sde.t_min, sde.t_max))
    if low == -torch.inf:
        raise ConfigError(
            f"the integral over log_snr begins at minus infinity, since {sde!r} reaches alpha = 0; "
            f"{sde.how_to_end_earlier}"
        )
    task = Task(
        model,
        x0,
        decoder=decoder,
        cond=cond,
        repeats=check_integer(samples, "samples", 1),
        seed=seed,
        generator=generator,
        noise=noise,
        chunk_size=chunk_size,
    )
    start, end = sde.at(sde.t_max), sde.at(sde.t_min)
    top = measure_prior(choose_prior(model, start, float(sde.prior_std(sde.t_max)), prior), task.y, start)
    if len(top) == 0:
        return assemble_bound(task, top, top, torch.full((samples + 1,), torch.nan, dtype=torch.float64, device="cpu"))
    own = model if sde is model.sde else model.with_sde(sde)
    with in_mode(model, training=False), torch.no_grad():
        reconstruction = task.reconstruction(end)
        t = sde.time(high + (low - high) * task.places()).clamp(sde.t_min, sde.t_max)
        values = torch.zeros_like(t)
        for draws, part, y, z, cond_here in task.drawn(samples):
            at = t[draws, part]
            loss = denoising_score_matching(own, y, weight="simple", t=at.reshape(-1), noise=z, cond=cond_here)
            check_outcome(loss, "the loss", at.reshape(-1))
            values[draws, part] = loss.to("cpu", torch.float64).reshape(at.shape)
    values *= 0.5 * (high - low) * task.size / samples
    terms = torch.cat([reconstruction.mean()[None], values.mean(1)])
    return assemble_bound(task, top, reconstruction + values.sum(0), terms)
