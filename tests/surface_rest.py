"""The rest of the public surface, what trains, tunes, draws, reads files and keeps state: arguments that are right.

The arguments are made anew for each call where the call changes what it is given.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from surface import CHAIN, CODED, CODER, GAUSSIAN, LINEAR, MODEL, TABLE, TIMES, X, bell, down
from torch import Tensor

import scoresde
from scoresde import VPSDE, ScoreModel, data, grids, guidance, losses, metrics, plots, solvers, training
from scoresde import nn as networks
from scoresde.noise import normal, stream

Arguments = Mapping[str, Any]
Entry = tuple[Callable[..., object], Arguments | Callable[[], Arguments]]

MIXTURE = scoresde.GaussianMixtureModel(sde=VPSDE(), weights=torch.ones(2), means=X[:2], std=0.3)
PICTURES = normal((4, 1, 8, 8), stream(5))


def fresh() -> ScoreModel:
    return ScoreModel(networks.MLP(2, width=4, depth=1), VPSDE())


def rows() -> list[metrics.Comparison]:
    return [metrics.Comparison(sampler="a", nfe=2.0, seconds=1.0, samples=9, distances={"energy_distance": 0.1})]


def trained() -> dict[str, Any]:
    """Options under which a training is over at once."""
    return {"data": X, "steps": 1, "batch_size": 2, "calibrate": False, "progress": False}


def shift(x: Tensor, generator: torch.Generator) -> Tensor:
    return x + 1


def own(model: ScoreModel, x: Tensor, generator: torch.Generator, cond: object) -> Tensor:
    return model(x, 0.5).data.square().sum(1)


TUNING = {"steps": 2, "samples": 4, "tolerance": 0.1}


def training_room() -> dict[str, Entry]:
    """What trains and what it needs."""
    loss = {"model": MODEL, "x0": X}
    chain_loss = losses.ChainLoss.simple(CHAIN)
    indices = losses.ImportanceIndices(5)
    law = losses.TIMES["uniform"]
    return {
        "fit": (scoresde.fit, lambda: {"model": fresh(), **trained()}),
        "training.Trainer": (training.Trainer, lambda: {"model": fresh()}),
        "training.Trainer.__call__": (training.Trainer(fresh()), {"x0": X}),
        "training.fit_autoencoder": (
            training.fit_autoencoder,
            lambda: {
                "autoencoder": networks.Autoencoder(1, dims=1, width=4, multipliers=(1, 1)),
                "data": CODED,
                "steps": 1,
                "batch_size": 2,
                "progress": False,
            },
        ),
        "EMA": (scoresde.EMA, {"module": networks.MLP(2, width=4, depth=1)}),
        "held_out_loss": (scoresde.held_out_loss, {"model": MODEL, "data": X}),
        "denoising_score_matching": (scoresde.denoising_score_matching, {**loss, "generator": stream(0)}),
        "implicit_score_matching": (scoresde.implicit_score_matching, {"model": MODEL, "x": X, "t": 0.5}),
        "sliced_score_matching": (
            scoresde.sliced_score_matching,
            {"model": MODEL, "x": X, "t": 0.5, "generator": stream(0)},
        ),
        "losses.edm": (losses.edm, {}),
        "losses.min_snr": (losses.min_snr, {}),
        "losses.p2": (losses.p2, {}),
        "losses.sigmoid": (losses.sigmoid, {}),
        "losses.log_normal": (losses.log_normal, {"mean": 0.0, "std": 1.0}),
        "losses.LinearLoss": (losses.LinearLoss, {}),
        "linear_score_matching": (
            scoresde.linear_score_matching,
            {"model": LINEAR, "x0": X, "generator": stream(0), "t": 0.5},
        ),
        "losses.SimulatedLoss": (losses.SimulatedLoss, {}),
        "losses.ImportanceIndices": (losses.ImportanceIndices, {"n": 5}),
        "losses.ImportanceIndices.update": (
            indices.update,
            {"index": torch.tensor([0, 1]), "losses": torch.ones(2)},
        ),
        "losses.TimeLaw": (losses.TimeLaw, {"name": "a", "quantile": lambda sde, u: u}),
        "losses.TimeLaw.__call__": (law, {"n": 4, "sde": VPSDE(), "generator": stream(0)}),
        "losses.ChainLoss": (losses.ChainLoss, {"chain": CHAIN, "on_simple": 1.0, "on_bound": 0.0}),
        "losses.ChainLoss.simple": (losses.ChainLoss.simple, {"chain": CHAIN}),
        "losses.ChainLoss.bound": (losses.ChainLoss.bound, {"chain": CHAIN}),
        "losses.ChainLoss.hybrid": (losses.ChainLoss.hybrid, {"chain": CHAIN}),
        "losses.ChainLoss.__call__": (chain_loss, {**loss, "generator": stream(0)}),
    }


def tuning() -> dict[str, Entry]:
    """What looks for a table."""
    return {
        "select": (scoresde.select, {"model": GAUSSIAN, **TUNING}),
        "tune": (scoresde.tune, {"model": GAUSSIAN, **TUNING, "iterations": 1, "starts": 1, "keep": False}),
        "calibrate": (scoresde.calibrate, {"model": GAUSSIAN, "samples": 2, "keep": False, "tolerance": 0.1}),
    }


def network_room() -> dict[str, Entry]:
    """Networks."""
    small: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "EGNN": (networks.EGNN, {"coordinates": 2, "width": 4, "depth": 1}),
        "Autoencoder": (networks.Autoencoder, {"channels": 1, "width": 4, "multipliers": (1,)}),
        "DiT": (networks.DiT, {"channels": 1, "width": 8, "depth": 1, "heads": 1}),
        "MagnitudeUNet": (networks.MagnitudeUNet, {"channels": 1, "width": 4, "multipliers": (1,)}),
    }
    return {
        **{f"nn.{name}": entry for name, entry in small.items()},
        "nn.count": (networks.count, {"net": networks.MLP(2, width=4, depth=1), "event_shape": 2}),
        "nn.drop_labels": (
            networks.drop_labels,
            {"label": torch.tensor([0, 1]), "probability": 0.5, "generator": stream(0)},
        ),
        "nn.drop_conditions": (
            networks.drop_conditions,
            {"cond": {"a": torch.ones(3, 1)}, "shares": {"a": 0.5}, "generator": {"a": stream(0)}},
        ),
    }


def transform_room() -> dict[str, Entry]:
    """Transforms, augmentations, and their calls."""
    t = scoresde.transforms
    made: dict[str, Entry] = {
        "transforms.RandomCrop": (t.RandomCrop, {"size": (4, 4)}),
        "transforms.RandomFlip": (t.RandomFlip, {}),
        "transforms.RandomCrop.__call__": (t.RandomCrop((4, 4)), {"x": PICTURES, "generator": stream(0)}),
        "transforms.RandomFlip.__call__": (t.RandomFlip(), {"x": PICTURES, "generator": stream(0)}),
        "transforms.transform_from_dict": (t.transform_from_dict, {"config": scoresde.Affine().to_dict()}),
        "Latent.standardise": (scoresde.Latent.standardise, {"autoencoder": CODER, "data": CODED}),
        "Latent.encode": (scoresde.Latent(CODER).encode, {"x": CODED}),
        "EncoderDecoder.posterior": (scoresde.EncoderDecoder(down, down).posterior, {"x": X}),
        "EncoderDecoder.decode": (scoresde.EncoderDecoder(down, down).decode, {"z": X}),
    }
    inside = X.sigmoid()
    for name, one, x in (
        ("Affine", scoresde.Affine(0.5, 2.0), X),
        ("Logit", scoresde.Logit(), inside),
        ("Dequantise", scoresde.Dequantise(2), X.sign()),
        ("Compose", scoresde.Compose((scoresde.Affine(),)), X),
        ("Latent", scoresde.Latent(CODER), CODED),
    ):
        made[f"{name}.forward"] = (one.forward, {"x": x, "generator": stream(0)})
        made[f"{name}.inverse"] = (one.inverse, {"y": one.forward(x, stream(0))})
        if name != "Latent":
            made[f"{name}.log_abs_det"] = (one.log_abs_det, {"x": x, "generator": stream(0)})
        if name not in ("Latent", "Compose"):
            made[f"{name}.from_dict"] = (type(one).from_dict, {"config": one.to_dict()})
    both = scoresde.Compose((scoresde.Affine(),))
    made["Compose.from_dict"] = (scoresde.Compose.from_dict, {"config": both.to_dict()})
    return made


def data_room() -> dict[str, Entry]:
    """Data sets that are made, and readers of files."""
    made: dict[str, Entry] = {
        f"data.{name}": (getattr(data, name), {"n": 5})
        for name in ("checkerboard", "eight_gaussians", "moons", "pinwheel", "swiss_roll", "two_spirals")
    }
    return made | {
        "data.time_series": (data.time_series, {"n": 3, "length": 8}),
        "data.lennard_jones": (data.lennard_jones, {"n": 2, "points": 3, "sweeps": 2}),
        "data.lennard_jones_energy": (data.lennard_jones_energy, {"x": torch.eye(3)[None]}),
        "data.molecules": (data.molecules, {"n": 2, "sweeps": 1}),
        "data.bonded": (data.bonded, {"places": torch.eye(3)[None], "kinds": torch.zeros(1, 3, dtype=torch.long)}),
        "data.digits": (data.digits, {}),
        "data.tabular": (data.tabular, {}),
        "data.photographs": (data.photographs, {"patch": 8, "count": 2}),
        "data.arrays_from_file": (data.arrays_from_file, {"path": "x.npy"}),
        "data.labels_from_file": (data.labels_from_file, {"path": "labels.npy"}),
        "data.table_from_file": (data.table_from_file, {"path": "x.csv"}),
        "data.images_from_folder": (data.images_from_folder, {"path": "pictures"}),
    }


def plot_room() -> dict[str, Entry]:
    """Figures."""
    figure = functools.cache(lambda: plots.scatter(X))
    line = torch.linspace(-4, 4, 41, dtype=torch.float64)
    density = scoresde.Densities((line,), TIMES[:2].flip(0), torch.stack([bell(line[:, None])] * 2), 3)
    log = [{"step": k, "loss": 1.0 / k, "seconds": 1.0 * k} for k in (1, 2, 3)]
    return {
        "plots.animation": (plots.animation, {"frames": [X, X + 1], "path": "a.gif"}),
        "plots.comparison": (plots.comparison, {"rows": rows()}),
        "plots.density": (plots.density, {"x": X}),
        "plots.density_over_time": (plots.density_over_time, {"densities": density}),
        "plots.errors": (plots.errors, {"panels": {"a": {"b": ([1, 2], [0.1, 0.2])}}}),
        "plots.histogram": (plots.histogram, {"values": {"a": X[:, 0]}}),
        "plots.image_grid": (plots.image_grid, {"images": PICTURES}),
        "plots.ranking": (plots.ranking, {"rows": {"a": {"b": 1.0}}}),
        "plots.read_log": (plots.read_log, {"path": "log.jsonl"}),
        "plots.save": (plots.save, lambda: {"figure": figure(), "path": "f.png"}),
        "plots.scatter": (plots.scatter, {"x": X}),
        "plots.schedules": (plots.schedules, {"sdes": [VPSDE()]}),
        "plots.tableau": (plots.tableau, {"table": TABLE}),
        "plots.training": (plots.training, {"log": log}),
    }


def files() -> dict[str, Entry]:
    """Folders of models and of samples."""
    return {
        "ScoreModel.save": (MODEL.save, {"folder": "saved"}),
        "ScoreModel.load": (ScoreModel.load, {"folder": "c"}),
        "from_diffusers": (scoresde.from_diffusers, {"folder": "unet"}),
        "write_shards": (
            scoresde.write_shards,
            {"folder": "shards", "n": 2, "draw": lambda rows: torch.zeros(rows.stop - rows.start, 2)},
        ),
        "read_shards": (scoresde.read_shards, {"folder": "shards"}),
        "training.rebuild_average": (training.rebuild_average, {"folder": "run", "sigma_rel": 0.05}),
    }


def bridges() -> dict[str, Entry]:
    """What runs elsewhere: other libraries' integrators and SBI's posteriors."""
    bridge = scoresde.bridge
    net = networks.MLP(2, width=4, depth=1, context_features=2)
    sbi = scoresde.SBIPosterior(ScoreModel(net, VPSDE(), moments=scoresde.Moments.of(X)), "context", steps=2)
    return {
        "bridge.ScipyODE": (bridge.ScipyODE, {}),
        "bridge.TorchDiffEq": (bridge.TorchDiffEq, {}),
        "bridge.TorchSDE": (bridge.TorchSDE, {}),
        "bridge.simulate": (bridge.simulate, {"sde": VPSDE(), "x0": X, "times": TIMES.flip(0), "seed": 0}),
        "SBIPosterior": (scoresde.SBIPosterior, {"model": sbi.model, "key": "context"}),
        "SBIPosterior.sample": (sbi.sample, {"sample_shape": (2,), "x": X[:1], "seed": 0}),
        "SBIPosterior.set_default_x": (sbi.set_default_x, {"x": X[:1]}),
    }


def methods() -> dict[str, Entry]:
    """Methods of what is public."""
    sde = VPSDE()
    x_t = {"x0": X, "t": 0.5}
    steps = {"s": 0.3, "t": 0.5}
    prior = sde.prior()
    CHAIN.sde()
    densities = scoresde.evolve_density(
        sde, bell, [(-8.0, 8.0, 64)], torch.tensor([0.5, 0.7], dtype=torch.float64), steps=2
    )
    reverse = sde.reverse(down)
    stepper = scoresde.Stepper(TABLE)
    out: dict[str, Entry] = {
        "GaussianSDE.at": (sde.at, {"t": 0.5}),
        "GaussianSDE.time": (sde.time, {"log_snr": 0.5}),
        "GaussianSDE.drift": (sde.drift, {"x": X, "t": 0.5}),
        "GaussianSDE.marginal": (sde.marginal, x_t),
        "GaussianSDE.perturb": (sde.perturb, {**x_t, "noise": X}),
        "GaussianSDE.transition_weights": (sde.transition_weights, steps),
        "GaussianSDE.transition": (sde.transition, {"x_s": X, **steps}),
        "GaussianSDE.posterior_weights": (sde.posterior_weights, steps),
        "GaussianSDE.posterior": (sde.posterior, {"x0": X, "x_t": X, **steps}),
        "GaussianSDE.prior": (sde.prior, {}),
        "GaussianSDE.reverse": (sde.reverse, {"model": down}),
        "GaussianSDE.starting_at": (sde.starting_at, {"t_min": 0.1}),
        "ReverseSDE": (scoresde.ReverseSDE, {"forward": sde, "model": down}),
        "ReverseSDE.drift": (reverse.drift, {"x": X, "t": 0.5}),
        "Gaussian": (scoresde.Gaussian, {"mean": torch.zeros(2), "variance": torch.ones(2)}),
        "Gaussian.from_noise": (prior.from_noise, {"z": X}),
        "Gaussian.log_prob": (prior.log_prob, {"x": X}),
        "Moments": (scoresde.Moments, {"mean": torch.zeros(2), "variance": torch.ones(2)}),
        "Moments.of_parts": (scoresde.Moments.of_parts, {"x": [X], "event": (2,)}),
        "GaussianModel.sample_data": (GAUSSIAN.sample_data, {"n": 3, "generator": stream(0)}),
        "GaussianModel.log_prob": (GAUSSIAN.log_prob, {"x": X}),
        "GaussianModel.flow": (GAUSSIAN.flow, {"x": X, "t": 0.5, "s": 0.1}),
        "GaussianMixtureModel.sample_data": (MIXTURE.sample_data, {"n": 3, "generator": stream(0)}),
        "GaussianMixtureModel.log_prob": (MIXTURE.log_prob, {"x": X}),
        "EnergyModel.energy": (
            scoresde.EnergyModel(lambda x, c: x[:, 0] if x.ndim > 1 else x, sde).energy,
            {"x": X, "t": 0.5},
        ),
        "ScoreModel.__call__": (MODEL, {"x": X, "t": 0.5, "cond": None}),
        "ScoreModel.with_sde": (MODEL.with_sde, {"sde": sde}),
        "MappedModel": (scoresde.MappedModel, {"model": GAUSSIAN, "change": lambda p: p.data}),
        "CombinedModel.with_sde": (scoresde.guided(MODEL, 2.0).with_sde, {"sde": sde}),
        "Prediction.view": (MODEL(X, 0.5).view, {"kind": "noise"}),
        "DDPM": (scoresde.DDPM, {"log_alphas": torch.tensor([-0.1, -0.2], dtype=torch.float64)}),
        "SMLD": (scoresde.SMLD, {"sigmas": torch.tensor([0.1, 1.0], dtype=torch.float64)}),
        "DDPM.strided": (CHAIN.strided, {"steps": 3}),
        "DDPM.ancestral": (CHAIN.ancestral, {}),
        "DDPM.ddim": (CHAIN.ddim, {}),
        "SMLD.annealed_langevin": (scoresde.SMLD.geometric(9).annealed_langevin, {}),
        "DDPM.check_index": (CHAIN.check_index, {"index": 3, "x": X}),
        "DDPM.marginal": (CHAIN.marginal, {"x0": X, "index": 3}),
        "DDPM.perturb": (CHAIN.perturb, {"x0": X, "index": 3, "noise": X}),
        "DDPM.transition": (CHAIN.transition, {"x_before": X, "index": 3}),
        "DDPM.posterior": (CHAIN.posterior, {"x0": X, "x_i": X, "index": 3}),
        "Tableau.at_fraction": (TABLE.at_fraction, {"fraction": 0.5}),
        "Tableau.affine_map": (TABLE.affine_map, {}),
        "Tableau.law": (TABLE.law, {}),
        "Tableau.error_weights": (TABLE.error_weights, {}),
        "Tableau.amplification": (TABLE.amplification, {}),
        "Tableau.from_json": (scoresde.Tableau.from_json, {"text": TABLE.to_json()}),
        "Solver.__call__": (solvers.heun(), {"sde": sde, "times": TIMES}),
        "Grid.__call__": (grids.karras(), {"sde": sde, "steps": 3}),
        "grids.check_times": (grids.check_times, {"sde": sde, "times": TIMES}),
        "Stepper.start": (stepper.start, {"z": X}),
        "Stepper.begin": (stepper.begin, {"x": X}),
        "Particles.samples": (
            scoresde.correct(scoresde.product([GAUSSIAN]), 3, steps=2, seed=0).samples,
            {"n": 2, "seed": 0},
        ),
        "Densities.marginal": (densities.marginal, {"axis": 0}),
        "Densities.at": (densities.at, {"x": torch.zeros(3, 1), "t": 0.5}),
        "guidance.Blur.gaussian": (guidance.Blur.gaussian, {"std": 1.0}),
        "to_diffusers": (scoresde.to_diffusers, {"solver": "ddim", "betas": CHAIN.betas, "n": 30}),
    }
    return out


REST: dict[str, Entry] = {
    **training_room(),
    **tuning(),
    **network_room(),
    **transform_room(),
    **data_room(),
    **plot_room(),
    **files(),
    **bridges(),
    **methods(),
}
