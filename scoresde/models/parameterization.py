"""What a network may predict: the parameterisations of the literature as targets (p, q).

``score_model`` has the table of formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from scoresde.diffusions.point import Pair, Point
from scoresde.diffusions.targets import TARGETS, target, unknown_kind
from scoresde.errors.names import is_name
from scoresde.errors.values import check_number

__all__ = ["PARAMETERIZATIONS", "Parameterization", "Predicts", "find_parameterization", "literal_parameterization"]

Predicts = Literal["noise", "data", "v", "score", "velocity", "edm"]


@dataclass(frozen=True)
class Parameterization:
    """What a network predicts: its target (p, q) at a point, and the scale of its input.

    Args:
        name: its name.
        target: (point, sigma_data) -> (p, q); a function of a module, where the model is to be pickled.
        sigma_data: the data's standard deviation d in c_in = 1/sqrt(alpha^2 d^2 + sigma^2); None for c_in = 1.
        scale_free: whether (p, q) is the same at equal log-SNR under every SDE, so that no time is needed.
    """

    name: str
    target: Callable[[Point, float], Pair]
    sigma_data: float | None = 1.0
    scale_free: bool = True


@dataclass(frozen=True)
class _Plain:
    """The target of a kind of ``targets.TARGETS``, whatever sigma_data is."""

    kind: str

    def __call__(self, point: Point, sigma_data: float) -> Pair:
        return target(self.kind, point)


def _edm(p: Point, d: float) -> Pair:
    w = torch.hypot(p.sigma, d * p.alpha)
    return p.sigma / (d * w), -d * p.alpha / w


def _scaled_score(p: Point, d: float) -> Pair:
    return torch.zeros_like(p.alpha), -p.r / p.sigma


PARAMETERIZATIONS: dict[str, Parameterization] = {
    "noise": Parameterization("noise", _Plain("noise")),
    "data": Parameterization("data", _Plain("data")),
    "v": Parameterization("v", _Plain("v")),
    "score": Parameterization("score", _scaled_score),
    "velocity": Parameterization("velocity", _Plain("velocity"), scale_free=False),
    "edm": Parameterization("edm", _edm, sigma_data=0.5),
}


def find_parameterization(predicts: str | Parameterization, sigma_data: float | None) -> Parameterization:
    """Return a parameterisation by its name, or ``predicts`` itself if it is one, with ``sigma_data`` if given.

    Raises:
        ConfigError: an unknown name, with what it is called here. DTypeError, DomainError: sigma_data not positive.
    """
    if not isinstance(predicts, Parameterization):
        if not is_name(predicts, PARAMETERIZATIONS):
            raise unknown_kind("parameterisation", predicts, PARAMETERIZATIONS)
        predicts = PARAMETERIZATIONS[predicts]
    if sigma_data is None:
        return predicts
    return replace(predicts, sigma_data=check_number(sigma_data, "sigma_data", 0.0, open_low=True))


def literal_parameterization(kind: str) -> Parameterization:
    """Return what a function predicts that is read literally: no scale of its input, and times of its own SDE.

    Args:
        kind: a key of ``targets.TARGETS``; ConfigError for any other.
    """
    if not is_name(kind, TARGETS):
        raise unknown_kind("prediction", kind, TARGETS)
    return Parameterization(f"literal {kind}", _Plain(kind), sigma_data=None, scale_free=False)
