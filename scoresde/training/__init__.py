"""Training: ``fit`` for data in memory, ``Trainer`` for one step of your own loop, ``EMA`` for averaged weights."""

from scoresde.training.average import EMA
from scoresde.training.loop import DECAYS, TrainResult, fit
from scoresde.training.run import Record
from scoresde.training.step import Objective, Trainer

__all__ = ["DECAYS", "EMA", "Objective", "Record", "TrainResult", "Trainer", "fit"]
