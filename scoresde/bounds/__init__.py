"""Bounds on -log p: the variational bound of a chain, its continuous limit, and the weights of simulated paths."""

from scoresde.bounds.chain import variational_bound
from scoresde.bounds.common import Bound
from scoresde.bounds.continuous import continuous_elbo
from scoresde.bounds.decoders import Decoder, GaussianDecoder, LevelsDecoder
from scoresde.bounds.paths import forward_path, path_log_weight

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
