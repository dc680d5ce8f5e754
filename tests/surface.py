"""The public surface: every function and class of the core with arguments that are right, and a run of little cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import scoresde
from scoresde import VPSDE, GaussianModel, Moments, ScoreModel, build_table, grids, guidance, metrics, nn, solvers
from scoresde.noise import normal, stream

X = normal((6, 2), stream(0))
GAUSSIAN = GaussianModel(sde=VPSDE(), mean=torch.zeros(2), covariance=torch.eye(2))
MODEL = ScoreModel(nn.MLP(2, width=4, depth=1, classes=3), VPSDE(), moments=Moments.of(X))
LINEAR = scoresde.LinearModel(nn.MLP(2, width=4, depth=1), scoresde.GroupedSDE.with_rates((1.0, 2.0)))
CHAIN = scoresde.DDPM.linear(30)
TIMES = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
BETAS = torch.linspace(1e-4, 0.02, 50)
TABLE = build_table(VPSDE(), "ddim", steps=3)
SDES = ("VPSDE", "SubVPSDE", "VESDE", "EDMSDE", "CosineVPSDE", "RectifiedFlow")
CODER = nn.Autoencoder(1, dims=1, width=4, multipliers=(1, 1))
CODED = normal((4, 1, 8), stream(2))
LATENT = ScoreModel(
    nn.MLP((4, 4), width=4, depth=1),
    VPSDE(),
    moments=Moments.of(normal((4, 4, 4), stream(3))),
    transform=scoresde.Latent(CODER),
)
OPTIONS = ("Langevin", "MALA", "ProbabilityFlow", "SplitGibbs", "DAPS", "Replacement", "TwistedSMC", "GaussianDecoder")


def down(x: Tensor, t: object = None) -> Tensor:
    return -x


def energy(x: Tensor, c_noise: object = None) -> Tensor:
    return 0.5 * x.square().sum(1)


class Plain(scoresde.SDE):
    """An SDE of a user's own."""

    def drift(self, x: Tensor, t: object) -> Tensor:
        return -x

    def diffusion(self, t: Any) -> Tensor:
        return torch.ones_like(torch.as_tensor(t))


def keep(prediction: scoresde.Prediction) -> Tensor:
    return prediction.data


def bell(x: Tensor) -> Tensor:
    return (-0.5 * x[:, 0].square()).exp() / math.sqrt(2 * math.pi)


Entry = tuple[Callable[..., object], dict[str, Any]]


def core() -> dict[str, Entry]:
    """Return the names of ``scoresde`` itself, and what they are made of."""
    model_x = {"model": GAUSSIAN, "x": X}
    heun = {"solver": "heun", "steps": 2}
    measured = {"model": GAUSSIAN, "y": X[0, :1], "noise_std": 0.1}
    right: dict[str, dict[str, Any]] = {
        **{name: {} for name in (*SDES, *OPTIONS, "Affine", "Logit", "RelativePlaces")},
        "Latent": {"autoencoder": CODER},
        "latent_elbo": {"model": LATENT, "x": CODED},
        "EncoderDecoder": {"encoder": down, "decoder": down},
        "DDPM.linear": {"n": 30},
        "DDPM.cosine": {"n": 9},
        "DDPM.sigmoid": {"n": 9},
        "DDPM.from_sde": {"sde": VPSDE(), "n": 9},
        "DDPM.from_betas": {"betas": BETAS},
        "SMLD.geometric": {"n": 9},
        "SMLD.from_sde": {"sde": scoresde.VESDE(), "n": 9},
        "TabulatedSDE": {"t": TIMES.flip(0), "log_snr": torch.tensor([3.0, 0.0, -3.0])},
        "LearnedSchedule": {"units": 3},
        "Affine.standardise": {"x": X},
        "Affine.from_range": {"low": 0.0, "high": 1.0},
        "Dequantise": {"levels": 4},
        "LevelsDecoder": {"levels": 4},
        "Dequantisation": {"levels": 4},
        "Compose": {"parts": (scoresde.Affine(),)},
        "Moments.of": {"x": X},
        "Moments.exact": {"mean": torch.zeros(2), "covariance": torch.eye(2)},
        "GaussianModel": {"sde": VPSDE(), "mean": torch.zeros(2), "covariance": torch.eye(2)},
        "GaussianMixtureModel": {"sde": VPSDE(), "weights": torch.ones(6), "means": X, "std": 0.1},
        "EmpiricalModel": {"sde": VPSDE(), "data": X},
        "ScoreModel": {"net": nn.MLP(2, width=4, depth=1), "sde": VPSDE()},
        "Cosine": {},
        "Haar": {},
        "ZeroVelocity": {},
        "GroupedSDE": {"sdes": (VPSDE(),), "index": torch.zeros(2, dtype=torch.long)},
        "GroupedSDE.with_rates": {"rates": (1.0, 2.0)},
        "GroupedSDE.blurring": {"size": (1, 4)},
        "GroupedSDE.levels": {"size": (1, 4), "ends": (0.5,)},
        "MatrixSDE": {"matrix": -torch.eye(2)},
        "MatrixSDE.langevin": {},
        "LinearModel": {"net": nn.MLP(2, width=4, depth=1), "sde": LINEAR.sde},
        "LinearMixtureModel": {
            "sde": LINEAR.sde,
            "weights": torch.ones(1),
            "means": torch.zeros(1, 2),
            "covariances": torch.eye(2),
        },
        "build_blocks": {"sde": LINEAR.sde, "solver": "ddim", "steps": 2},
        "linear_elbo": {"model": LINEAR, "x0": X, "samples": 2},
        "ScoreModel.from_callable": {"function": down, "sde": VPSDE()},
        "EnergyModel": {"net": energy, "sde": VPSDE()},
        "SDEModel": {"net": nn.MLP(2, width=4, depth=1), "sde": Plain()},
        "ConditionedSDE": {"forward": VPSDE(), "log_h": energy},
        "ConditionedSDE.to_point": {"sde": VPSDE(), "point": torch.zeros(2)},
        "ConditionedSDE.to_box": {"sde": VPSDE(), "low": 0.0, "high": 1.0},
        "adapt": {"net": down, "time": "sigma", "predicts": "data"},
        "map_prediction": {"model": GAUSSIAN, "change": keep},
        "guided": {"model": MODEL, "scale": 2.0},
        "product": {"models": [GAUSSIAN]},
        "posterior": {**measured, "operator": torch.tensor([True, False]), "event": (2,)},
        "tilted": {"model": GAUSSIAN, "log_factor": energy},
        "build_table": {"sde": VPSDE(), "solver": "ddim"},
        "sample": {"model": GAUSSIAN, "shape": 3, "steps": 2, "seed": 0},
        "encode": {**model_x, **heun},
        "decode": {"model": GAUSSIAN, "z": X, **heun},
        "denoise": {"model": GAUSSIAN, "y": X, "noise_std": 0.5, "steps": 2},
        "edit": {**model_x, "steps": 2},
        "impute": {"model": GAUSSIAN, "x": torch.where(X > 1, math.nan, X), "steps": 2},
        "interpolate": {"model": GAUSSIAN, "a": X[:1], "b": X[1:2], "n": 3, **heun},
        "langevin": {"score": down, "x": X, "step": 0.1, "n": 2, "seed": 0},
        "sample_posterior": {**measured, "operator": torch.ones(1, 2), "n": 2, "steps": 2},
        "correct": {"model": scoresde.product([GAUSSIAN]), "n": 2, "steps": 2},
        "compare": {
            "model": GAUSSIAN,
            "samplers": [scoresde.Sampler("h", solvers.heun(), 2)],
            "metrics": {},
            "samples": 2,
            "progress": False,
        },
        "Sampler": {"name": "a", "solver": solvers.heun()},
        "SamplingModule": {"model": GAUSSIAN, "shape": (2, 2), "steps": 2},
        "Stepper": {"table": TABLE},
        "bits_per_dim": {"log_p": torch.zeros(2), "event_shape": (2,)},
        "variational_bound": {"model": GAUSSIAN, "chain": CHAIN, "x0": X, "indices": 2},
        "continuous_elbo": {"model": GAUSSIAN, "sde": VPSDE(), "x0": X, "samples": 2},
        "log_likelihood": {**model_x, **heun},
        "log_likelihood_ratio": {"a": GAUSSIAN, "b": GAUSSIAN, "x": X, **heun},
        "classify": {"model": MODEL, "x": X, "labels": [0, 1], "draws": 1, "samples": 1},
        "colour": {**model_x, "k": 2, "intervals": 2},
        "forward_path": {"table": CHAIN, "x0": X},
        "path_log_weight": {"model": GAUSSIAN, "path": scoresde.forward_path(CHAIN, X), "table": CHAIN},
        "onsager_machlup": {"sde": VPSDE(), "path": torch.stack([X, X, X]), "times": TIMES.flip(0)},
        "most_probable_path": {"sde": VPSDE(), "start": X, "end": X + 1, "times": TIMES.flip(0)},
        "Picard": {"solver": "ddim"},
        "evolve_density": {
            "sde": VPSDE(),
            "start": bell,
            "box": [(-8.0, 8.0, 64)],
            "times": torch.tensor([0.5, 0.7], dtype=torch.float64),
            "steps": 2,
        },
    }
    return {name: (find(name), options) for name, options in right.items()}


def find(name: str) -> Callable[..., Any]:
    """Return what a name of ``scoresde``, with dots, stands for."""
    found: Any = scoresde
    for part in name.split("."):
        found = getattr(found, part)
    return found


def rooms() -> dict[str, Entry]:
    """Return the functions of the rooms."""
    options: Mapping[str, dict[str, Any]] = {
        "grids.curve": {"levels": [0.9, 0.1], "shares": [0.0, 1.0]},
        "grids.knots": {"times": TIMES},
        "solvers.churned": {"solver": solvers.heun(), "churn": 1.0},
        "solvers.restart": {"solver": solvers.heun(), "t_min": 0.1, "t_max": 0.5},
        "solvers.by_name": {"name": "heun"},
        "solvers.runge_kutta": {"method": solvers.Butcher("m", ((), (0.5,)), (0.0, 1.0), 2)},
        "metrics.floor": {"metric": metrics.energy_distance, "reference": X, "size": 2, "repeats": 2},
        "metrics.frechet_distance": {"features_x": X, "features_y": X},
        "metrics.frechet_distance_of_moments": {
            "mean_x": torch.zeros(2),
            "covariance_x": torch.eye(2),
            "mean_y": torch.zeros(2),
            "covariance_y": torch.eye(2),
        },
        "metrics.two_sample_test": {"x": X, "y": X + 1, "permutations": 9},
        "metrics.sliced_wasserstein": {"x": X, "y": X + 1, "projections": 4},
        "guidance.Blur": {"kernel": torch.ones(3) / 3},
        "guidance.Downsample": {"factor": 2},
        "guidance.Fourier": {"keep": torch.tensor([True, False])},
        "guidance.Linear": {"function": down},
        "guidance.Mask": {"keep": torch.tensor([True, False])},
        "guidance.Matrix": {"matrix": torch.eye(2)},
        "guidance.Nonlinear": {"function": torch.exp},
        "nn.MLP": {"event_shape": 2},
        "nn.UNet": {"channels": 1, "width": 8, "multipliers": (1,)},
    }
    made = dict(options)
    for room in (grids, solvers, guidance, metrics):
        for one in room.__all__:
            name = f"{room.__name__.rpartition('.')[2]}.{one}"
            usual = {"x": X, "y": X + 1} if room is metrics else {}
            made.setdefault(name, usual)
    return {
        name: (find(name), given)
        for name, given in made.items()
        if callable(find(name)) and name not in ELSEWHERE and not isinstance(find(name), dict)
    }


# Records, results, bases of others' classes, and functions without options.
ELSEWHERE = {
    *("grids.Grid", "grids.check_times", "solvers.Solver", "solvers.Butcher", "solvers.AdditiveNoise", "solvers.Entry"),
    *("solvers.list", "guidance.Method", "guidance.Operator", "guidance.Measured", "metrics.Classifier"),
    *("metrics.Comparison", "metrics.Floor", "metrics.TwoSampleTest", "solvers.FlowSolver", "solvers.SolverName"),
}

SURFACE: dict[str, Entry] = {**core(), **rooms()}
