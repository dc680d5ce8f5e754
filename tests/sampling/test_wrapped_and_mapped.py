"""Models in the wrappers of other tools, and models made of models, wherever a model is taken."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import gaussian
from torch import Tensor, nn

from scoresde import (
    VPSDE,
    Moments,
    Sampler,
    SamplingModule,
    ScoreModel,
    compare,
    decode,
    encode,
    interpolate,
    langevin,
    map_prediction,
    sample,
    solvers,
)
from scoresde.nn import MLP
from scoresde.noise import normal, stream

X = normal((4, 2), stream(0))
LEVELS = torch.tensor([0.5, 0.3, 0.1], dtype=torch.float64)


def network() -> ScoreModel:
    net = MLP(2, width=8, depth=1)
    for k, p in enumerate(net.parameters()):
        p.data += 0.05 * normal(p.shape, stream(1, k))
    return ScoreModel(net, VPSDE(), moments=Moments.of(normal((30, 2), stream(2))))


USES: dict[str, Callable[[object], Tensor]] = {
    "sample": lambda model: sample(model, 4, steps=3, seed=0),
    "sample, adaptive": lambda model: sample(model, 4, solver="probability_flow", seed=0),
    "sample, another SDE": lambda model: sample(model, 4, sde=VPSDE(0.2, 10.0), steps=3, seed=0),
    "encode": lambda model: encode(model, X, solver="heun", steps=4),
    "decode": lambda model: decode(model, X, solver="heun", steps=4),
    "interpolate": lambda model: interpolate(model, X, -X, 3, solver="heun", steps=4)[0],
    "langevin": lambda model: langevin(model, X, 0.1, 2, times=LEVELS, seed=0),
    "compare": lambda model: compare(model, [Sampler("a", solvers.ddim(), 3)], {}, samples=4, progress=False)[1][0],
    "module": lambda model: SamplingModule(model, (4, 2), steps=3)(X),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel], ids=["compile", "dp"])
def test_a_wrapped_model_is_the_model(wrap: Callable[[nn.Module], nn.Module], use: str) -> None:
    model = network()
    torch.testing.assert_close(USES[use](wrap(model)), USES[use](model), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("use", USES)
def test_the_identity_map_of_a_model_is_the_model(use: str) -> None:
    model = network()
    same = map_prediction(model, lambda prediction: prediction.noise, predicts="noise")
    torch.testing.assert_close(USES[use](same), USES[use](model), rtol=1e-4, atol=1e-4)


def test_a_clip_is_seen_by_every_table_and_by_the_flow() -> None:
    exact = gaussian(mean=3.0, variance=4.0)
    clipped = map_prediction(exact, lambda prediction: prediction.data.clamp(2.5, 3.5))
    for solver in ("ddim", "flow_abm", "ancestral", "dpmpp_2m", "pc:10", "heun"):
        steps = None if ":" in solver else 20
        x = sample(clipped, 500, solver=solver, steps=steps, seed=0, dtype=torch.float64)
        assert 2.5 - 5e-3 <= float(x.min()) < 2.6, solver  # the last step is a mix of data predictions
        assert 3.4 < float(x.max()) <= 3.5 + 5e-3, solver
    x = sample(clipped, 500, solver="probability_flow", seed=0, dtype=torch.float64)
    assert 2.4 < float(x.min()) < 2.6
