"""Losses: score matching by denoising, implicit and sliced, objectives on a chain, weights, laws of the time."""

from scoresde.losses.chain import ChainLoss, ImportanceIndices
from scoresde.losses.denoising import denoising_score_matching
from scoresde.losses.held_out import HeldOutLoss, held_out_loss
from scoresde.losses.implicit import implicit_score_matching, sliced_score_matching
from scoresde.losses.times import TIMES, TimeLaw, TimeSampler, log_normal
from scoresde.losses.weights import WEIGHTS, Weight, edm, min_snr, p2, sigmoid

__all__ = [
    "TIMES",
    "WEIGHTS",
    "ChainLoss",
    "HeldOutLoss",
    "ImportanceIndices",
    "TimeLaw",
    "TimeSampler",
    "Weight",
    "denoising_score_matching",
    "edm",
    "held_out_loss",
    "implicit_score_matching",
    "log_normal",
    "min_snr",
    "p2",
    "sigmoid",
    "sliced_score_matching",
]
