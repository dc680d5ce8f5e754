"""The published names: one dict literal, used by ``sample(solver="...")`` and by the command line."""

from __future__ import annotations

import functools
from collections.abc import Callable

from scoresde.errors import unknown
from scoresde.ode import ProbabilityFlow
from scoresde.solvers.ancestral import ancestral, ddim, euler_maruyama, reverse_diffusion
from scoresde.solvers.base import Solver
from scoresde.solvers.langevin import annealed_langevin
from scoresde.solvers.multistep import multistep
from scoresde.solvers.singlestep import heun

__all__ = ["SOLVERS", "by_name", "dpmpp_2m"]


def dpmpp_2m(*, eta: float = 0.0) -> Solver:
    """Return DPM-Solver++(2M) as published; eta = 1 is its SDE form.

    Source: Lu et al. 2022, "DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models", alg. 2.
    """
    return multistep(order=2, eta=eta, coefficients="midpoint", name="dpmpp_2m")


SOLVERS: dict[str, Callable[[], Solver | ProbabilityFlow]] = {
    "ancestral": ancestral,
    "annealed_langevin": annealed_langevin,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": lambda: dpmpp_2m(eta=1.0),
    "euler_maruyama": euler_maruyama,
    "heun": heun,
    "probability_flow": ProbabilityFlow,
    "reverse_diffusion": reverse_diffusion,
}


@functools.cache
def by_name(name: str) -> Solver | ProbabilityFlow:
    """Return the solver of a published name with its default options; ConfigError with the nearest match if unknown."""
    if name not in SOLVERS:
        raise unknown("solver", name, SOLVERS)
    return SOLVERS[name]()
