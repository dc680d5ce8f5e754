"""Training: ``fit`` for data of any kind, ``Trainer`` for one step of your own loop, ``EMA`` for averaged weights.

``fit_autoencoder`` trains what gives the codes of a latent diffusion.
"""

from scoresde.training.autoencoder import fit_autoencoder
from scoresde.training.averages import rebuild_average
from scoresde.training.ema import EMA
from scoresde.training.fit import fit
from scoresde.training.log import Record
from scoresde.training.rates import DECAYS
from scoresde.training.result import TrainResult
from scoresde.training.trainable import Objective
from scoresde.training.trainer import Trainer

__all__ = [
    "DECAYS",
    "EMA",
    "Objective",
    "Record",
    "TrainResult",
    "Trainer",
    "fit",
    "fit_autoencoder",
    "rebuild_average",
]
