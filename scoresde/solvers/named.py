"""The published names: one dict, used by ``sample(solver="...")`` and by the command line.

Some methods are published under several names; ``ALIASES`` has those that are the same function here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

from scoresde.errors.names import check_choice
from scoresde.solvers.adaptive import ProbabilityFlow
from scoresde.solvers.ancestral import ancestral, ddim, euler_ancestral, reverse_diffusion
from scoresde.solvers.exponential import (
    dpm_solver_2,
    dpm_solver_3,
    dpmpp_2s,
    dpmpp_3s,
    exponential_euler,
    exponential_rk2,
    exponential_rk3,
    seeds_1,
    seeds_2,
    seeds_3,
)
from scoresde.solvers.jumps import dpmpp_2s_ancestral, edm
from scoresde.solvers.langevin import annealed_langevin
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
from scoresde.solvers.runge_kutta import euler, euler_maruyama, heun, midpoint, ralston, rk3, rk4, sra1
from scoresde.solvers.solver import Solver

__all__ = ["ALIASES", "DEFAULT", "SOLVERS", "SolverName", "by_name"]

# fmt: off
SolverName = Literal[
    "ancestral", "annealed_langevin", "ddim", "deis", "dpm_solver_2", "dpm_solver_3", "dpmpp_2m", "dpmpp_2m_sde",
    "dpmpp_2s", "dpmpp_2s_ancestral", "dpmpp_3m", "dpmpp_3m_sde", "dpmpp_3s", "edm", "euler", "euler_ancestral",
    "euler_heun", "euler_maruyama", "exponential_ab", "exponential_euler", "exponential_rk2", "exponential_rk3",
    "flow_ab", "flow_abm", "heun", "ipndm", "lms", "midpoint", "milstein", "probability_flow", "ralston", "res",
    "reverse_diffusion", "rk3", "rk4", "sa_solver", "seeds_1", "seeds_2", "seeds_3", "sra1", "unipc",
]
# fmt: on
"""The names, as a type."""

DEFAULT: SolverName = "flow_abm"
"""The solver of ``sample`` where none is named."""

# fmt: off
SOLVERS: dict[str, Callable[[], Solver | ProbabilityFlow]] = {
    build.__name__: build
    for build in (
        ancestral, annealed_langevin, ddim, deis, dpm_solver_2, dpm_solver_3, dpmpp_2m, dpmpp_2m_sde, dpmpp_2s,
        dpmpp_2s_ancestral, dpmpp_3m, dpmpp_3m_sde, dpmpp_3s, edm, euler, euler_ancestral, euler_maruyama,
        exponential_ab, exponential_euler, exponential_rk2, exponential_rk3, flow_ab, flow_abm, heun, ipndm, lms,
        midpoint, ralston, reverse_diffusion, rk3, rk4, sa_solver, seeds_1, seeds_2, seeds_3, sra1, unipc,
    )
}
# fmt: on

ALIASES: dict[str, Callable[[], Solver | ProbabilityFlow]] = {
    # The noise of the reverse family does not depend on the state: what sets these two apart is 0.
    "euler_heun": euler_maruyama,
    "milstein": euler_maruyama,
    # Zhang et al. 2023, "Improved order analysis and design of exponential integrator", arXiv:2308.02157.
    "res": exponential_rk2,
}
SOLVERS |= {"probability_flow": ProbabilityFlow, **ALIASES}


def by_name(name: str) -> Solver | ProbabilityFlow:
    """Return the solver of a published name with its default options; ConfigError with the nearest match if unknown."""
    check_choice("solver", name, SOLVERS)
    return _build_once(name)


@functools.cache
def _build_once(name: str) -> Solver | ProbabilityFlow:
    return SOLVERS[name]()
