"""Training: ``fit`` for data in memory, ``Trainer`` for one step of your own loop, ``EMA`` for averaged weights.

``fit_autoencoder`` trains what gives the codes of a latent diffusion.
"""

from scoresde.training.autoencoder import fit_autoencoder
from scoresde.training.ema import EMA
from scoresde.training.fit import TrainResult, fit
from scoresde.training.loop import Record
from scoresde.training.rates import DECAYS
from scoresde.training.trainer import Objective, Trainer

__all__ = ["DECAYS", "EMA", "Objective", "Record", "TrainResult", "Trainer", "fit", "fit_autoencoder"]
