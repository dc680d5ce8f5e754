"""What a network may predict: the parameterisations of the literature as targets (p, q); ``model`` has the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from scoresde.diffusions.point import Pair, Point
from scoresde.diffusions.targets import TARGETS

__all__ = ["PARAMETERIZATIONS", "Parameterization"]


@dataclass(frozen=True)
class Parameterization:
    """What a network predicts: its target (p, q) at a point, and the scale of its input.

    Args:
        name: its name.
        target: (point, sigma_data) -> (p, q).
        sigma_data: the data's standard deviation d in c_in = 1/sqrt(alpha^2 d^2 + sigma^2); None for c_in = 1.
        scale_free: whether (p, q) is the same at equal log-SNR under every SDE, so that no time is needed.
    """

    name: str
    target: Callable[[Point, float], Pair]
    sigma_data: float | None = 1.0
    scale_free: bool = True


def _edm(p: Point, d: float) -> Pair:
    w = torch.hypot(p.sigma, d * p.alpha)
    return p.sigma / (d * w), -d * p.alpha / w


def _scaled_score(p: Point, d: float) -> Pair:
    return torch.zeros_like(p.alpha), -p.r / p.sigma


PARAMETERIZATIONS: dict[str, Parameterization] = {
    "noise": Parameterization("noise", lambda p, d: TARGETS["noise"](p)),
    "data": Parameterization("data", lambda p, d: TARGETS["data"](p)),
    "v": Parameterization("v", lambda p, d: TARGETS["v"](p)),
    "score": Parameterization("score", _scaled_score),
    "velocity": Parameterization("velocity", lambda p, d: TARGETS["velocity"](p), scale_free=False),
    "edm": Parameterization("edm", _edm, sigma_data=0.5),
}
