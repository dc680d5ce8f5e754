"""Solvers: pure functions (sde, times) -> Tableau, and the adaptive probability flow."""

from scoresde.solvers.adaptive import ProbabilityFlow
from scoresde.solvers.ancestral import ancestral, ddim, euler_ancestral, reverse_diffusion
from scoresde.solvers.block_build import splitting
from scoresde.solvers.catalogue import Entry, markdown
from scoresde.solvers.catalogue import catalogue as list
from scoresde.solvers.exponential import (
    dpm_solver_2,
    dpm_solver_3,
    dpmpp_2s,
    dpmpp_3s,
    exponential,
    exponential_euler,
    exponential_rk2,
    exponential_rk3,
    seeds_1,
    seeds_2,
    seeds_3,
)
from scoresde.solvers.jumps import churned, dpmpp_2s_ancestral, edm, restart
from scoresde.solvers.langevin import annealed_langevin, corrector_only
from scoresde.solvers.multistep import multistep
from scoresde.solvers.named import SOLVERS, SolverName, by_name
from scoresde.solvers.published import (
    deis,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    dpmpp_3m_sde,
    exponential_ab,
    flow_ab,
    flow_abm,
    ipndm,
    lms,
    sa_solver,
    unipc,
)
from scoresde.solvers.runge_kutta import (
    AdditiveNoise,
    Butcher,
    euler,
    euler_maruyama,
    heun,
    midpoint,
    ralston,
    rk3,
    rk4,
    runge_kutta,
    sra1,
)
from scoresde.solvers.solver import Solver

# As ``named.ALIASES`` has it.
milstein = euler_heun = euler_maruyama
res = exponential_rk2

# fmt: off
__all__ = [
    "SOLVERS", "AdditiveNoise", "Butcher", "Entry", "ProbabilityFlow", "Solver", "SolverName", "ancestral",
    "annealed_langevin", "by_name", "churned", "corrector_only", "ddim", "deis", "dpm_solver_2", "dpm_solver_3",
    "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2s", "dpmpp_2s_ancestral", "dpmpp_3m", "dpmpp_3m_sde", "dpmpp_3s", "edm",
    "euler", "euler_ancestral", "euler_heun", "euler_maruyama", "exponential", "exponential_ab",
    "exponential_euler", "exponential_rk2", "exponential_rk3", "flow_ab", "flow_abm", "heun", "ipndm", "list",
    "lms", "markdown", "midpoint", "milstein", "multistep", "ralston", "res", "restart", "reverse_diffusion", "rk3",
    "rk4", "runge_kutta", "sa_solver", "seeds_1", "seeds_2", "seeds_3", "splitting", "sra1", "unipc",
]
# fmt: on
