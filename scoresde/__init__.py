"""scoresde: score-based generative modelling with stochastic differential equations, in PyTorch.

A diffusion is two curves (``VPSDE``, ``VESDE``, ...), a model is one affine readout of a network (``ScoreModel``), a
sampler is a table of numbers (``solvers``, ``Tableau``). ``sample`` runs them.

Every name of the core is here, and every room is an attribute: ``scoresde.solvers``, ``scoresde.nn``,
``scoresde.plots``, ... Rooms that the core does not need load when they are first asked for.
"""

from typing import TYPE_CHECKING

from scoresde import likelihood, solvers, training, transforms
from scoresde.chains.ddpm import DDPM
from scoresde.chains.smld import SMLD
from scoresde.diffusions.cosine import CosineVPSDE
from scoresde.diffusions.doob import ConditionedSDE
from scoresde.diffusions.gaussian import Gaussian, Moments
from scoresde.diffusions.grouped import GroupedSDE
from scoresde.diffusions.learned import LearnedSchedule
from scoresde.diffusions.levels import EDMSDE, VESDE, RectifiedFlow
from scoresde.diffusions.linear import LinearSDE
from scoresde.diffusions.matrix import MatrixSDE
from scoresde.diffusions.sde import SDE, GaussianSDE, ReverseSDE
from scoresde.diffusions.tabulated import TabulatedSDE
from scoresde.diffusions.vp import VPSDE, SubVPSDE
from scoresde.errors.kinds import (
    CheckpointError,
    ConfigError,
    DataError,
    DomainError,
    DTypeError,
    ProcessError,
    ScoreSDEError,
    ShapeError,
    SolverError,
    TrainingWarning,
    UnstableSamplerWarning,
)
from scoresde.likelihood.action import most_probable_path, onsager_machlup
from scoresde.likelihood.amortised import SBIPosterior
from scoresde.likelihood.bound import Bound
from scoresde.likelihood.chain import variational_bound
from scoresde.likelihood.colour import colour
from scoresde.likelihood.continuous import continuous_elbo
from scoresde.likelihood.decoders import GaussianDecoder, LevelsDecoder
from scoresde.likelihood.flow import LogLikelihood, bits_per_dim, log_likelihood
from scoresde.likelihood.fokker_planck.densities import Densities
from scoresde.likelihood.fokker_planck.evolve import evolve_density
from scoresde.likelihood.latent import LatentBound, latent_elbo
from scoresde.likelihood.linear import linear_elbo
from scoresde.likelihood.paths import forward_path, path_log_weight
from scoresde.likelihood.ratios import Classification, classify, log_likelihood_ratio
from scoresde.likelihood.starts import Dequantisation
from scoresde.models import guidance
from scoresde.models.adapters import adapt
from scoresde.models.diffusers_files import from_diffusers
from scoresde.models.energy import EnergyModel
from scoresde.models.exact import EmpiricalModel, GaussianMixtureModel, GaussianModel
from scoresde.models.guidance.combine import CombinedModel, guided, product
from scoresde.models.guidance.posteriors import posterior
from scoresde.models.guidance.tilt import tilted
from scoresde.models.latent import EncoderDecoder, Latent
from scoresde.models.linear_exact import LinearMixtureModel
from scoresde.models.linear_model import LinearModel
from scoresde.models.mapped import MappedModel, map_prediction
from scoresde.models.prediction import Prediction
from scoresde.models.score_model import ScoreModel
from scoresde.models.sde_model import SDEModel
from scoresde.sampling import bridge
from scoresde.sampling.edit import denoise, edit, impute
from scoresde.sampling.encode import decode, encode
from scoresde.sampling.export import SamplingModule
from scoresde.sampling.interpolate import interpolate
from scoresde.sampling.inverse import DAPS, Replacement, SplitGibbs, sample_posterior
from scoresde.sampling.kernels import MALA, Langevin
from scoresde.sampling.langevin import langevin
from scoresde.sampling.part import Step
from scoresde.sampling.particles import Particles, correct
from scoresde.sampling.picard import Picard
from scoresde.sampling.problem import PosteriorSamples
from scoresde.sampling.processes import processes
from scoresde.sampling.sample import SampleResult, sample
from scoresde.sampling.samplers import Sampler
from scoresde.sampling.schedulers import to_diffusers
from scoresde.sampling.shards import read_shards, write_shards
from scoresde.sampling.stepper import Stepper
from scoresde.sampling.tuning.calibrate import calibrate
from scoresde.sampling.tuning.choose import select
from scoresde.sampling.tuning.tune import tune
from scoresde.sampling.twisted import TwistedSMC
from scoresde.solvers import grids
from scoresde.solvers.adaptive import ProbabilityFlow
from scoresde.solvers.block_build import build_blocks
from scoresde.solvers.build import build_table
from scoresde.solvers.solver import Solver
from scoresde.solvers.tableau import Tableau
from scoresde.training import losses
from scoresde.training.ema import EMA
from scoresde.training.fit import fit
from scoresde.training.losses.denoising import denoising_score_matching
from scoresde.training.losses.held_out import held_out_loss
from scoresde.training.losses.implicit import implicit_score_matching, sliced_score_matching
from scoresde.training.losses.linear import linear_score_matching
from scoresde.training.result import TrainResult
from scoresde.transforms.affine import Affine
from scoresde.transforms.compose import Compose
from scoresde.transforms.orthogonal import Cosine, Haar, ZeroVelocity
from scoresde.transforms.pixels import Dequantise, Logit
from scoresde.transforms.relative import RelativePlaces

if TYPE_CHECKING:
    from scoresde import data, metrics, nn, plots
    from scoresde.sampling.compare import compare

__version__ = "0.2.0"

__all__ = [
    "DAPS",
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
    "Classification",
    "CombinedModel",
    "Compose",
    "ConditionedSDE",
    "ConfigError",
    "Cosine",
    "CosineVPSDE",
    "DTypeError",
    "DataError",
    "Densities",
    "Dequantisation",
    "Dequantise",
    "DomainError",
    "EmpiricalModel",
    "EncoderDecoder",
    "EnergyModel",
    "Gaussian",
    "GaussianDecoder",
    "GaussianMixtureModel",
    "GaussianModel",
    "GaussianSDE",
    "GroupedSDE",
    "Haar",
    "Langevin",
    "Latent",
    "LatentBound",
    "LearnedSchedule",
    "LevelsDecoder",
    "LinearMixtureModel",
    "LinearModel",
    "LinearSDE",
    "LogLikelihood",
    "Logit",
    "MappedModel",
    "MatrixSDE",
    "Moments",
    "Particles",
    "Picard",
    "PosteriorSamples",
    "Prediction",
    "ProbabilityFlow",
    "ProcessError",
    "RectifiedFlow",
    "RelativePlaces",
    "Replacement",
    "ReverseSDE",
    "SBIPosterior",
    "SDEModel",
    "SampleResult",
    "Sampler",
    "SamplingModule",
    "ScoreModel",
    "ScoreSDEError",
    "ShapeError",
    "Solver",
    "SolverError",
    "SplitGibbs",
    "Step",
    "Stepper",
    "SubVPSDE",
    "Tableau",
    "TabulatedSDE",
    "TrainResult",
    "TrainingWarning",
    "TwistedSMC",
    "UnstableSamplerWarning",
    "ZeroVelocity",
    "adapt",
    "bits_per_dim",
    "bridge",
    "build_blocks",
    "build_table",
    "calibrate",
    "classify",
    "colour",
    "compare",
    "continuous_elbo",
    "correct",
    "data",
    "decode",
    "denoise",
    "denoising_score_matching",
    "edit",
    "encode",
    "evolve_density",
    "fit",
    "forward_path",
    "from_diffusers",
    "grids",
    "guidance",
    "guided",
    "held_out_loss",
    "implicit_score_matching",
    "impute",
    "interpolate",
    "langevin",
    "latent_elbo",
    "likelihood",
    "linear_elbo",
    "linear_score_matching",
    "log_likelihood",
    "log_likelihood_ratio",
    "losses",
    "map_prediction",
    "metrics",
    "most_probable_path",
    "nn",
    "onsager_machlup",
    "path_log_weight",
    "plots",
    "posterior",
    "processes",
    "product",
    "read_shards",
    "sample",
    "sample_posterior",
    "select",
    "sliced_score_matching",
    "solvers",
    "tilted",
    "to_diffusers",
    "training",
    "transforms",
    "tune",
    "variational_bound",
    "write_shards",
]


def __getattr__(name: str) -> object:
    """Load a room, or a name of one, that the core does without."""
    if name == "compare":
        from scoresde.sampling.compare import compare

        return compare
    if name in ("data", "metrics", "nn", "plots"):
        import scoresde.data
        import scoresde.metrics
        import scoresde.nn
        import scoresde.plots  # noqa: F401 they put themselves among the globals

        return globals()[name]
    raise AttributeError(f"module 'scoresde' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List every public name, loaded or not."""
    return sorted({*globals(), *__all__})
