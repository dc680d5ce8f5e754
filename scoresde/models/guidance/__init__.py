"""Models made of models: guidance, products, tilts, clamps, and posteriors of inverse problems.

``guided``, ``product``, ``tilted`` and ``posterior`` are in ``scoresde`` itself; here is what they are given:
operators, methods, and what may be done to a data prediction.
"""

from __future__ import annotations

from scoresde.models.guidance.clamp import Clamp, DynamicThreshold
from scoresde.models.guidance.methods import DDNM, DDRM, DPS, METHODS, MMPS, TMPD, DiffPIR, Method, PiGDM
from scoresde.models.guidance.operators import (
    Blur,
    Downsample,
    Fourier,
    Grey,
    Linear,
    Mask,
    Matrix,
    Nonlinear,
    Operator,
)

__all__ = [
    "DDNM",
    "DDRM",
    "DPS",
    "METHODS",
    "MMPS",
    "TMPD",
    "Blur",
    "Clamp",
    "DiffPIR",
    "Downsample",
    "DynamicThreshold",
    "Fourier",
    "Grey",
    "Linear",
    "Mask",
    "Matrix",
    "Method",
    "Nonlinear",
    "Operator",
    "PiGDM",
]
