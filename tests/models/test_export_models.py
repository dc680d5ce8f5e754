"""torch.export and torch.compile of a model's call: the same numbers, and no value is looked at on the way."""

from __future__ import annotations

import pytest
import torch
from checkpoints import filled
from torch import Tensor, nn

from scoresde import (
    EDMSDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    DomainError,
    GaussianModel,
    GaussianSDE,
    RectifiedFlow,
    ScoreModel,
    SubVPSDE,
    map_prediction,
)
from scoresde.models.prediction import Predictor
from scoresde.nn import MLP, UNet
from scoresde.noise import normal, stream


class Call(nn.Module):
    """What a deployed program asks of a model."""

    def __init__(self, model: Predictor, kind: str, *, labelled: bool = False) -> None:
        super().__init__()
        self.model, self.kind, self.labelled = model.eval(), kind, labelled

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return self.model(x, t, {"label": label} if self.labelled else None).view(self.kind)


MLP_SHAPE, UNET_SHAPE = (4, 3), (4, 2, 6, 5)
LABEL = torch.tensor([0, 1, 2, -1])


def inputs(shape: tuple[int, ...], sde: GaussianSDE, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    t = sde.t_min + (0.9 * sde.t_max - sde.t_min) * torch.tensor([0.1, 0.3, 0.6, 1.0]) / (1 + seed)
    return normal(shape, stream(seed, "x")), t, LABEL


def mlp() -> nn.Module:
    return filled(MLP(3, width=8, depth=1, classes=3))


def unet() -> nn.Module:
    return filled(UNet(2, width=8, multipliers=(1, 2), classes=3))


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE(), CosineVPSDE(), EDMSDE(), RectifiedFlow()], ids=str)
def test_a_call_exported_under_every_sde(sde: GaussianSDE) -> None:
    check(Call(ScoreModel(mlp(), sde, predicts="v"), "data"), MLP_SHAPE)


@pytest.mark.parametrize("kind", ["data", "noise", "score", "velocity"])
@pytest.mark.parametrize("predicts", ["noise", "edm", "velocity"])
def test_every_view_exported(predicts: str, kind: str) -> None:
    check(Call(ScoreModel(mlp(), VPSDE(), predicts=predicts), kind), MLP_SHAPE)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("network", [mlp, unet])
def test_both_networks_exported(network: object, labelled: bool, strict: bool) -> None:
    shape = MLP_SHAPE if network is mlp else UNET_SHAPE
    check(Call(ScoreModel(network(), VPSDE(), predicts="edm"), "data", labelled=labelled), shape, strict=strict)


def test_a_mapped_model_one_under_another_sde_and_an_exact_one_exported() -> None:
    model = ScoreModel(mlp(), VPSDE())
    check(Call(map_prediction(model, lambda p: p.data.clamp(-1, 1)), "noise"), MLP_SHAPE)
    check(Call(model.with_sde(VESDE()), "data"), MLP_SHAPE)
    check(Call(GaussianModel(sde=VPSDE(), mean=torch.ones(3), covariance=torch.eye(3) + 0.5), "score"), MLP_SHAPE)


def check(call: Call, shape: tuple[int, ...], *, strict: bool = False) -> None:
    sde = call.model.sde
    program = torch.export.export(call, inputs(shape, sde, 0), strict=strict).module()
    with torch.no_grad():
        for seed in (0, 1):
            given = inputs(shape, sde, seed)
            torch.testing.assert_close(program(*given), call(*given), rtol=1e-6, atol=1e-6)


def test_a_compiled_call_is_one_graph_and_still_the_model() -> None:
    call = Call(ScoreModel(mlp(), VPSDE()), "data", labelled=True)
    given = inputs(MLP_SHAPE, VPSDE(), 0)
    compiled = torch.compile(call, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*given), call(*given), rtol=1e-6, atol=1e-6)
    # Outside a traced graph the checks of values stand.
    with pytest.raises(DomainError, match="t must lie in"):
        call(given[0], torch.full((4,), 2.0), LABEL)
