"""scoresde: score-based generative modelling with stochastic differential equations, in PyTorch.

A diffusion is two curves (``VPSDE``, ``VESDE``, ...), a model is one affine readout of a network (``ScoreModel``), a
sampler is a table of numbers (``solvers``, ``Tableau``). ``sample`` runs them.
"""

from scoresde import bridge, grids, losses, solvers
from scoresde.analytic import EmpiricalModel, GaussianMixtureModel, GaussianModel
from scoresde.chains import DDPM, SMLD
from scoresde.coding import decode, encode
from scoresde.energy import EnergyModel
from scoresde.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DomainError,
    DTypeError,
    ScoreSDEError,
    ShapeError,
    SolverError,
)
from scoresde.executor import Step
from scoresde.gaussian import Gaussian, Moments
from scoresde.kernels import MALA, Langevin
from scoresde.losses import denoising_score_matching, held_out_loss, implicit_score_matching, sliced_score_matching
from scoresde.model import Prediction, ScoreModel
from scoresde.sampling import SampleResult, build_table, sample
from scoresde.schedules import EDMSDE, VESDE, VPSDE, CosineVPSDE, RectifiedFlow, SubVPSDE
from scoresde.sde import SDE, GaussianSDE, ReverseSDE
from scoresde.solvers import ProbabilityFlow, Solver
from scoresde.tableau import Tableau
from scoresde.tabulated import TabulatedSDE
from scoresde.training import EMA, TrainResult, fit
from scoresde.transforms import Affine, Compose, Dequantise, Logit

__version__ = "0.1.0"

__all__ = [
    "DDPM",
    "EDMSDE",
    "EMA",
    "MALA",
    "SDE",
    "SMLD",
    "VESDE",
    "VPSDE",
    "Affine",
    "CheckpointError",
    "Compose",
    "ConfigError",
    "CosineVPSDE",
    "DTypeError",
    "DataError",
    "Dequantise",
    "DomainError",
    "EmpiricalModel",
    "EnergyModel",
    "Gaussian",
    "GaussianMixtureModel",
    "GaussianModel",
    "GaussianSDE",
    "Langevin",
    "Logit",
    "Moments",
    "Prediction",
    "ProbabilityFlow",
    "RectifiedFlow",
    "ReverseSDE",
    "SampleResult",
    "ScoreModel",
    "ScoreSDEError",
    "ShapeError",
    "Solver",
    "SolverError",
    "Step",
    "SubVPSDE",
    "Tableau",
    "TabulatedSDE",
    "TrainResult",
    "bridge",
    "build_table",
    "decode",
    "denoising_score_matching",
    "encode",
    "fit",
    "grids",
    "held_out_loss",
    "implicit_score_matching",
    "losses",
    "sample",
    "sliced_score_matching",
    "solvers",
]
