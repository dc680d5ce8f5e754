"""Bounds: bad input is refused before any call."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from exact_bounds import vector
from helpers import Net, gaussian
from torch import Tensor

from scoresde import (
    DDPM,
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    GaussianDecoder,
    GaussianModel,
    LevelsDecoder,
    RectifiedFlow,
    ScoreModel,
    ShapeError,
    continuous_elbo,
    variational_bound,
)

# ---------------------------------------------------------------------------------------------------------------------
# Faults


def silent() -> ScoreModel:
    """A model whose network must not be called."""

    def act(x: Tensor, k: int) -> Tensor:
        raise AssertionError("the network was called")

    return ScoreModel(Net(act), VPSDE())


def three() -> GaussianModel:
    return GaussianModel(sde=VPSDE(), mean=torch.zeros(3), covariance=torch.ones(3))


X = torch.zeros(3, 2)
FAULTS: dict[str, tuple[type[Exception], str, Callable[[], object]]] = {
    "model": (DTypeError, "ScoreModel", lambda: variational_bound(lambda x, t: x, DDPM.linear(25), X)),
    "chain": (DTypeError, "continuous_elbo", lambda: variational_bound(silent(), VPSDE(), X)),
    "sde": (DTypeError, "variational_bound", lambda: continuous_elbo(silent(), DDPM.linear(25), X)),
    "integers": (DTypeError, "x0", lambda: variational_bound(silent(), DDPM.linear(25), torch.zeros(3, 2).long())),
    "nan": (DomainError, "x0 has 1", lambda: continuous_elbo(silent(), VPSDE(), torch.tensor([[0.0, math.nan]]))),
    "event": (ShapeError, "event", lambda: variational_bound(three(), DDPM.linear(25), X)),
    "variance": (ConfigError, "small", lambda: variational_bound(silent(), DDPM.linear(25), X, variance="smal")),
    "indices": (DomainError, "indices", lambda: variational_bound(silent(), DDPM.linear(25), X, indices=25)),
    "no indices": (DomainError, "indices", lambda: variational_bound(silent(), DDPM.linear(25), X, indices=0)),
    "samples": (DomainError, "samples", lambda: continuous_elbo(silent(), VPSDE(), X, samples=0)),
    "chunk": (DomainError, "chunk_size", lambda: continuous_elbo(silent(), VPSDE(), X, chunk_size=0)),
    "seed": (DomainError, "seed", lambda: continuous_elbo(silent(), VPSDE(), X, seed=-1)),
    "generator": (DTypeError, "generator", lambda: continuous_elbo(silent(), VPSDE(), X, generator=3)),
    "tape": (ShapeError, "holds 2", lambda: variational_bound(silent(), DDPM.linear(25), X, noise=[X, X])),
    "tape's shape": (ShapeError, r"noise\[0\]", lambda: continuous_elbo(silent(), VPSDE(), X, noise=[X[:1]] * 17)),
    "cond": (ShapeError, "cond", lambda: continuous_elbo(silent(), VPSDE(), X, cond={"label": torch.zeros(2)})),
    "prior": (DTypeError, "Gaussian", lambda: variational_bound(silent(), DDPM.linear(25), X, prior=1.0)),
    "alpha 0": (ConfigError, "lower t_max", lambda: continuous_elbo(gaussian(), RectifiedFlow(), vector(0.1))),
    "decoder": (DTypeError, "LevelsDecoder", lambda: variational_bound(silent(), DDPM.linear(25), X, decoder=0.1)),
    "std": (DomainError, "std", lambda: GaussianDecoder(0.0)),
    "levels": (DomainError, "levels", lambda: LevelsDecoder(1)),
    "range": (DomainError, "below high", lambda: LevelsDecoder(4, 1.0, 1.0)),
    "levels' std": (DomainError, "std", lambda: LevelsDecoder(4, std=-1.0)),
    "off the levels": (
        DomainError,
        "on the 4 levels",
        lambda: variational_bound(silent(), DDPM.linear(25), X, decoder=LevelsDecoder(4)),
    ),
    "outside": (
        DomainError,
        "on the 3 levels",
        lambda: variational_bound(silent(), DDPM.linear(25), X + 2, decoder=LevelsDecoder(3)),
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_bad_input_is_refused_before_any_call(case: str) -> None:
    kind, message, call = FAULTS[case]
    with pytest.raises(kind, match=message):
        call()


def test_learned_variance_needs_a_model_that_learns_it() -> None:
    with pytest.raises(ConfigError, match="learned"):
        variational_bound(silent(), DDPM.linear(25), X, variance="learned")


class Turned:
    """A transform that mixes the coordinates."""

    random = False

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return -x

    def inverse(self, y: Tensor) -> Tensor:
        return -y


def test_levels_need_a_transform_that_increases() -> None:
    model = silent()
    model.transform = Turned()
    with pytest.raises(DomainError, match="increases"):
        variational_bound(model, DDPM.linear(25), X, decoder=LevelsDecoder(3))
