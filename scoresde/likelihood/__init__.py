"""Bounds on -log p: the variational bound of a chain, its continuous limit, and the weights of simulated paths."""

from scoresde.likelihood.bound import Bound
from scoresde.likelihood.chain import variational_bound
from scoresde.likelihood.continuous import continuous_elbo
from scoresde.likelihood.decoders import Decoder, GaussianDecoder, LevelsDecoder
from scoresde.likelihood.paths import forward_path, path_log_weight

__all__ = [
    "Bound",
    "Decoder",
    "GaussianDecoder",
    "LevelsDecoder",
    "continuous_elbo",
    "forward_path",
    "path_log_weight",
    "variational_bound",
]
