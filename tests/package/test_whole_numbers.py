"""NumPy's numbers and tensors without dimensions serve wherever Python's do, and leave the same behind."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from scoresde import (
    DDPM,
    SMLD,
    VESDE,
    VPSDE,
    Affine,
    Dequantise,
    GaussianModel,
    Langevin,
    Logit,
    ScoreModel,
    build_table,
    evolve_density,
    fit,
    grids,
    held_out_loss,
    log_likelihood,
    sample,
    select,
    solvers,
    tune,
    variational_bound,
)
from scoresde.data import lennard_jones, moons, time_series
from scoresde.diffusions.named import sde_to_dict
from scoresde.nn import MLP, UNet

Make = Callable[[Any], Any]
# What a number of each make is, and what a float32 is: 0.25 in all of them.
MAKES: dict[str, tuple[Make, Make]] = {
    "NumPy": (np.int64, np.float32),
    "small NumPy": (np.uint8, np.float16),
    "arrays": (np.array, np.array),
    "tensors": (torch.tensor, torch.tensor),
}
MODEL = GaussianModel(sde=VPSDE(), mean=torch.zeros(2), covariance=torch.eye(2))
CHAIN = DDPM.linear(50)
X = torch.linspace(-1, 1, 6).reshape(3, 2)


def normal_density(x: torch.Tensor) -> torch.Tensor:
    return (-0.5 * x[:, 0].square()).exp() / math.sqrt(2 * math.pi)


def learned(i: Make, f: Make) -> dict[str, torch.Tensor]:
    model = ScoreModel(MLP(i(2), width=i(8), depth=i(1), seed=i(1)), VPSDE())
    done = fit(
        model,
        moons(i(64), seed=i(1)),
        steps=i(4),
        batch_size=i(8),
        learning_rate=f(0.25),
        warmup=i(1),
        clip_norm=f(0.5),
        ema_decay=f(0.5),
        weight_decay=f(0.125),
        seed=i(3),
        save_every=i(2),
        log_every=i(2),
        progress=False,
    )
    json.dumps(done.log)
    return dict(done.model.net.state_dict())  # type: ignore[union-attr]


USES: dict[str, Callable[[Make, Make], object]] = {
    "diffusions": lambda i, f: json.dumps(sde_to_dict(VPSDE(beta_min=f(0.25), beta_max=i(16)))),
    "levels": lambda i, f: json.dumps(sde_to_dict(VESDE(sigma_min=f(0.25), sigma_max=i(50)))),
    "chains": lambda i, f: DDPM.linear(i(30)).betas,
    "levels of noise": lambda i, f: SMLD.geometric(i(10)).sigmas,
    "a place in a chain": lambda i, f: CHAIN.marginal(X, i(7))[0],
    "tables": lambda i, f: build_table(VPSDE(), "unipc", steps=i(6)).to_json(),
    "solvers": lambda i, f: build_table(VPSDE(), solvers.unipc(order=i(2)), steps=i(6)).to_json(),
    "eta": lambda i, f: build_table(VPSDE(), solvers.ddim(eta=f(0.25)), steps=i(6)).to_json(),
    "grids": lambda i, f: grids.karras(rho=i(7))(VPSDE(), i(5)),
    "samples": lambda i, f: sample(MODEL, (i(4), i(2)), steps=i(5), seed=i(3), progress=False),
    "a number of samples": lambda i, f: sample(MODEL, i(4), steps=i(5), first_sample=i(2), seed=0),
    "seeds": lambda i, f: sample(MODEL, (2, 2), steps=4, seeds=[i(3), i(4)]),
    "kernels": lambda i, f: sample(MODEL, (4, 2), steps=4, seed=0, kernels=[Langevin(snr=f(0.25), steps=i(2))]),
    "likelihood": lambda i, f: log_likelihood(MODEL, X, probes=i(1), seed=i(2)).each,
    "bounds": lambda i, f: variational_bound(MODEL, CHAIN, X, seed=i(2)).per_sample,
    "losses": lambda i, f: held_out_loss(MODEL, X, seed=i(2), chunk_size=i(2)).mean,
    "densities": lambda i, f: (
        evolve_density(
            VPSDE(),
            normal_density,
            [(f(-8.0), f(8.0), i(64))],
            torch.tensor([0.5, 0.75], dtype=torch.float64),
            steps=i(3),
        ).values
    ),
    "data": lambda i, f: time_series(i(3), length=i(8), channels=i(2), noise=f(0.25)),
    "clusters": lambda i, f: lennard_jones(i(3), i(2), temperature=f(0.5), trap=f(0.25), sweeps=i(2)),
    "transforms": lambda i, f: json.dumps(Dequantise(i(16), f(0.0), f(0.25)).to_dict()),
    "intervals": lambda i, f: json.dumps(Logit(f(0.125), i(0), f(2.0)).to_dict()),
    "scales": lambda i, f: json.dumps(Affine(f(0.25), (f(2.0), f(1.0))).to_dict()),
    "times": lambda i, f: MODEL(X, f(0.25)).data,
    "a report": lambda i, f: json.dumps(sample(MODEL, 2, steps=2, seed=i(3), full_output=True).seed),
    "networks": lambda i, f: json.dumps(UNet(i(1), dims=i(2), width=i(8), classes=i(3)).config),
    "training": learned,
    "select": lambda i, f: select(MODEL, i(4), samples=i(8), seed=i(1)).table.to_json(),
    "tune": lambda i, f: tune(MODEL, i(3), samples=i(16), iterations=i(2), starts=i(1), keep=False).table.to_json(),
}


def same(a: object, b: object) -> bool:
    if isinstance(a, dict):
        assert isinstance(b, dict)
        return all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("use", USES)
def test_a_number_of_any_make_does_what_pythons_does(use: str, make: str) -> None:
    assert same(USES[use](*MAKES[make]), USES[use](int, float))
