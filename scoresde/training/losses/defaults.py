r"""What a training takes that names no weight or no times: one table, for ``fit`` and for the command line.

The weight is the error of what the network itself gives, as the literature has it for each prediction, or bounded: no
noise level rules the loss. The times are uniform in t unless they then hardly reach where a sampler asks: what a
network gives for the data is heard literally in the last step, at a log-SNR far beyond most of those times.

A parameterisation of your own is trained as v is, whose error is that of data of variance 1 turned by an angle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from scoresde.diffusions.cosine import CosineVPSDE
from scoresde.diffusions.learned import LearnedSchedule
from scoresde.diffusions.levels import EDMSDE, VESDE
from scoresde.diffusions.sde import GaussianSDE
from scoresde.diffusions.vp import SubVPSDE
from scoresde.models.score_model import ScoreModel
from scoresde.training.losses.times import TimeLaw, TimeSampler, TimesName
from scoresde.training.losses.weights import Weight, WeightName, edm

__all__ = ["choose_loss", "describe_loss", "name_loss"]

Names = tuple[WeightName, TimesName]

USUAL: Final[Mapping[str, Names]] = {
    "noise": ("simple", "low_discrepancy"),
    "score": ("simple", "low_discrepancy"),
    "data": ("bounded", "cauchy"),
    "v": ("v", "low_discrepancy"),
    "velocity": ("velocity", "low_discrepancy"),
    "edm": ("edm", "low_discrepancy"),
}
# Few of the uniform times of CosineVPSDE fall where next to no signal is left, where an error of the noise is large in
# the data, and few of SubVPSDE's at middling levels. Those of EDMSDE are uniform noise levels, nearly all far above the
# data. Under VESDE sigma', and with it the velocity, spans decades.
UNDER: Final[Mapping[type[GaussianSDE], Mapping[str, Names]]] = {
    CosineVPSDE: {"noise": ("simple", "cauchy")},
    SubVPSDE: {"noise": ("simple", "cauchy")},
    EDMSDE: {
        "noise": ("simple", "cauchy"),
        "score": ("simple", "cauchy"),
        "v": ("v", "edm"),
        "velocity": ("simple", "cauchy"),
        "edm": ("edm", "edm"),
    },
    # A schedule is learned from the bound.
    LearnedSchedule: dict.fromkeys(USUAL, ("likelihood", "low_discrepancy")),
    VESDE: {"velocity": ("simple", "low_discrepancy")},
}


def name_loss(predicts: str, sde: GaussianSDE) -> Names:
    """Return the names of the weight and of the times that suit a prediction, by its name, under a diffusion."""
    # What a function predicts that is read literally is the same thing.
    kind = predicts.removeprefix("literal ")
    kind = kind if kind in USUAL else "v"
    return UNDER.get(type(sde), {}).get(kind, USUAL[kind])


def choose_loss(
    model: ScoreModel, weight: WeightName | Weight | None, times: TimesName | TimeSampler | None
) -> tuple[WeightName | Weight, TimesName | TimeSampler]:
    """Return the weight and the times that are given, and for None those that suit the model."""
    how = model.parameterization
    usual, law = name_loss(how.name, model.sde)
    own: WeightName | Weight = usual if usual != "edm" or how.sigma_data is None else edm(how.sigma_data)
    return own if weight is None else weight, law if times is None else times


def describe_loss(model: ScoreModel, weight: object, times: object) -> dict[str, str]:
    """Return the names of a weight and of times as they were given, None for those that suit the model."""
    usual, law = name_loss(model.parameterization.name, model.sde)
    given = usual if weight is None else weight, law if times is None else times
    names = (one if isinstance(one, str) else one.name if isinstance(one, TimeLaw) else "your own" for one in given)
    return dict(zip(("weight", "times"), names, strict=True))
