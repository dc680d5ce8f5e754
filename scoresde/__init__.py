"""scoresde: score-based generative modelling with stochastic differential equations, in PyTorch.

A diffusion is two curves (``VPSDE``, ``VESDE``, ...), a model is one affine readout of a network (``ScoreModel``), a
sampler is a table of numbers (``solvers``, ``Tableau``). ``sample`` runs them.
"""

from scoresde import solvers
from scoresde.chains import DDPM, SMLD
from scoresde.diffusions import EDMSDE, VESDE, VPSDE, CosineVPSDE, RectifiedFlow, SubVPSDE
from scoresde.diffusions.gaussian import Gaussian, Moments
from scoresde.diffusions.sde import SDE, GaussianSDE, ReverseSDE
from scoresde.diffusions.tabulated import TabulatedSDE
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
from scoresde.likelihood import (
    Bound,
    GaussianDecoder,
    LevelsDecoder,
    continuous_elbo,
    forward_path,
    path_log_weight,
    variational_bound,
)
from scoresde.likelihood.fokker_planck import Densities, evolve_density
from scoresde.models.energy import EnergyModel
from scoresde.models.exact import EmpiricalModel, GaussianMixtureModel, GaussianModel
from scoresde.models.score_model import Prediction, ScoreModel
from scoresde.sampling import bridge
from scoresde.sampling.encode import decode, encode
from scoresde.sampling.executor import Step
from scoresde.sampling.kernels import MALA, Langevin
from scoresde.sampling.langevin import langevin
from scoresde.sampling.sample import SampleResult, sample
from scoresde.solvers import ProbabilityFlow, Solver, grids
from scoresde.solvers.build import build_table
from scoresde.solvers.tableau import Tableau
from scoresde.training import EMA, TrainResult, fit, losses
from scoresde.training.losses import (
    denoising_score_matching,
    held_out_loss,
    implicit_score_matching,
    sliced_score_matching,
)
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
    "Bound",
    "CheckpointError",
    "Compose",
    "ConfigError",
    "CosineVPSDE",
    "DTypeError",
    "DataError",
    "Densities",
    "Dequantise",
    "DomainError",
    "EmpiricalModel",
    "EnergyModel",
    "Gaussian",
    "GaussianDecoder",
    "GaussianMixtureModel",
    "GaussianModel",
    "GaussianSDE",
    "Langevin",
    "LevelsDecoder",
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
    "continuous_elbo",
    "decode",
    "denoising_score_matching",
    "encode",
    "evolve_density",
    "fit",
    "forward_path",
    "grids",
    "held_out_loss",
    "implicit_score_matching",
    "langevin",
    "losses",
    "path_log_weight",
    "sample",
    "sliced_score_matching",
    "solvers",
    "variational_bound",
]
