"""Bridges to the general solvers of torchsde, scipy and torchdiffeq, as solvers like the others.

``TorchSDE`` integrates the reverse family of any SDE, also of one without alpha and sigma; ``simulate`` runs any SDE
forwards. ``ScipyODE`` and ``TorchDiffEq`` integrate the probability flow. None of the three packages is imported before
a solver is made.
"""

from scoresde.sampling.bridge.equations import ScipyODE, TorchDiffEq
from scoresde.sampling.bridge.paths import TorchSDE, simulate

__all__ = ["ScipyODE", "TorchDiffEq", "TorchSDE", "simulate"]
