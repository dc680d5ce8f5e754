"""Solvers: pure functions (sde, times) -> Tableau, and the adaptive probability flow."""

from scoresde.ode import ProbabilityFlow
from scoresde.solvers.ancestral import ancestral, ddim, euler_maruyama, reverse_diffusion
from scoresde.solvers.base import Solver
from scoresde.solvers.langevin import annealed_langevin, corrector_only
from scoresde.solvers.multistep import multistep
from scoresde.solvers.named import SOLVERS, by_name, dpmpp_2m
from scoresde.solvers.singlestep import Butcher, heun, runge_kutta

__all__ = [
    "SOLVERS",
    "Butcher",
    "ProbabilityFlow",
    "Solver",
    "ancestral",
    "annealed_langevin",
    "by_name",
    "corrector_only",
    "ddim",
    "dpmpp_2m",
    "euler_maruyama",
    "heun",
    "multistep",
    "reverse_diffusion",
    "runge_kutta",
]
