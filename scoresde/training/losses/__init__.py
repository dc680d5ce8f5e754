"""Losses: score matching by denoising, implicit, sliced and on simulated paths, on a chain; weights, laws of times."""

from scoresde.training.losses.chain import ChainLoss, ImportanceIndices
from scoresde.training.losses.denoising import denoising_score_matching
from scoresde.training.losses.held_out import HeldOutLoss, held_out_loss
from scoresde.training.losses.implicit import implicit_score_matching, sliced_score_matching
from scoresde.training.losses.linear import LinearLoss, linear_score_matching
from scoresde.training.losses.simulated import SimulatedLoss
from scoresde.training.losses.times import TIMES, TimeLaw, TimeSampler, TimesName, log_normal
from scoresde.training.losses.weights import WEIGHTS, Weight, WeightName, edm, min_snr, p2, sigmoid

__all__ = [
    "TIMES",
    "WEIGHTS",
    "ChainLoss",
    "HeldOutLoss",
    "ImportanceIndices",
    "LinearLoss",
    "SimulatedLoss",
    "TimeLaw",
    "TimeSampler",
    "TimesName",
    "Weight",
    "WeightName",
    "denoising_score_matching",
    "edm",
    "held_out_loss",
    "implicit_score_matching",
    "linear_score_matching",
    "log_normal",
    "min_snr",
    "p2",
    "sigmoid",
    "sliced_score_matching",
]
