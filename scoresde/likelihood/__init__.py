"""Likelihood: log p along the flow, the bounds of a chain and in continuous time, the weights of simulated paths."""

from scoresde.likelihood.action import most_probable_path, onsager_machlup
from scoresde.likelihood.amortised import SBIPosterior
from scoresde.likelihood.bound import Bound
from scoresde.likelihood.chain import variational_bound
from scoresde.likelihood.colour import colour
from scoresde.likelihood.continuous import continuous_elbo
from scoresde.likelihood.decoders import Decoder, GaussianDecoder, LevelsDecoder
from scoresde.likelihood.flow import LogLikelihood, bits_per_dim, log_likelihood
from scoresde.likelihood.latent import LatentBound, latent_elbo
from scoresde.likelihood.linear import linear_elbo
from scoresde.likelihood.paths import forward_path, path_log_weight
from scoresde.likelihood.ratios import Classification, classify, log_likelihood_ratio
from scoresde.likelihood.starts import Dequantisation

__all__ = [
    "Bound",
    "Classification",
    "Decoder",
    "Dequantisation",
    "GaussianDecoder",
    "LatentBound",
    "LevelsDecoder",
    "LogLikelihood",
    "SBIPosterior",
    "bits_per_dim",
    "classify",
    "colour",
    "continuous_elbo",
    "forward_path",
    "latent_elbo",
    "linear_elbo",
    "log_likelihood",
    "log_likelihood_ratio",
    "most_probable_path",
    "onsager_machlup",
    "path_log_weight",
    "variational_bound",
]
