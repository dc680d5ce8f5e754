"""Models with every public option of every network come back from a checkpoint, and answer as before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import filled
from torch import Tensor, nn

from scoresde import (
    DDPM,
    EDMSDE,
    SMLD,
    VESDE,
    VPSDE,
    Affine,
    Compose,
    CosineVPSDE,
    Dequantise,
    GaussianSDE,
    Latent,
    Logit,
    Moments,
    RectifiedFlow,
    ScoreModel,
    SubVPSDE,
)
from scoresde.models.parameterization import PARAMETERIZATIONS
from scoresde.models.saving_parts import take_apart_whole
from scoresde.nn import EGNN, MLP, Autoencoder, DiT, MagnitudeUNet, UNet
from scoresde.noise import integers, normal, stream

# Network, event, and whether it takes channels beside x and a learned variance.
NETWORKS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...], bool]] = {
    "MLP": (lambda **kw: MLP(4, width=8, depth=0, **kw), (4,), True),
    "MLP of arrays": (lambda **kw: MLP((2, 3), width=8, depth=2, seed=2**64 - 1, **kw), (2, 3), True),
    "MLP of numbers": (lambda **kw: MLP((), width=8, depth=1, **kw), (), False),
    "UNet": (lambda **kw: UNet(2, width=4, multipliers=(1, 2), attention=(0,), heads=2, **kw), (2, 4, 3), True),
    "UNet with residual steps": (
        lambda **kw: UNet(1, dims=1, width=4, heads=1, resample="residual", rescale_skips=True, blocks=2, **kw),
        (1, 7),
        True,
    ),
    "UNet of volumes": (lambda **kw: UNet(1, dims=3, width=4, multipliers=(1,), heads=4, **kw), (1, 2, 3, 2), True),
    "MagnitudeUNet": (lambda **kw: MagnitudeUNet(1, width=4, multipliers=(1, 2), heads=2, **kw), (1, 4, 4), True),
    "DiT": (lambda **kw: DiT(2, patch=3, width=16, depth=1, heads=2, **kw), (2, 4, 4), True),
    "DiT of signals": (lambda **kw: DiT(1, dims=1, patch=1, width=8, depth=2, heads=1, **kw), (1, 5), True),
    "EGNN": (lambda **kw: EGNN(2, features=1, width=8, depth=2, **kw), (4, 3), False),
    "EGNN, centred": (lambda **kw: EGNN(3, width=8, depth=1, centred=True, **kw), (3, 3), False),
}
CONDITIONS: list[dict[str, object]] = [
    {},
    {"classes": 3},
    {"context_features": 2},
    {"classes": {"digit": 3, "style": 2}, "context_features": {"weather": 1}},
]
SDES: list[GaussianSDE] = [
    VPSDE(),
    VESDE(1e-3, 1e4),
    SubVPSDE(beta_max=5),
    CosineVPSDE(),
    EDMSDE(),
    RectifiedFlow(),
    DDPM.linear(50).sde(),
    DDPM.cosine(20).sde(),
    SMLD.geometric(10).sde(),
]


def transforms(event: tuple[int, ...]) -> list[object]:
    coder = filled(Autoencoder(1, 1, dims=1, width=4, multipliers=(1, 2), std=0.5))
    channels = tuple(float(k + 1) for k in range(event[0])) if event else 2
    codes = Latent(coder, Affine(1, 3)) if len(event) == 2 and event[0] == 1 else Affine()
    return [
        None,
        Affine(channels, 10**18),
        Compose(()),
        Compose((Affine(0.5, 2), Compose((Affine(),)))),
        Dequantise(256, 0, 255),
        Logit(0.01, -(10**17), 10**17),
        codes,
    ]


def make(k: int, name: str, predicts: str) -> tuple[ScoreModel, dict[str, Tensor]]:
    build, event, channels = NETWORKS[name]
    told = dict(CONDITIONS[k % len(CONDITIONS)])
    learned = channels and k % 3 == 0
    if channels and k % 2:
        told["concat_channels"] = 1
    if learned:
        told["out_channels"] = 2 * event[0]
    net = filled(build(**told), k)
    generator = stream(k, "options")
    cond = {}
    for one, (option, count) in net.kinds.items():
        shape = {"classes": (2,), "context_features": (2, count), "concat_channels": (2, count, *event[1:])}[option]
        cond[one] = integers(count, shape, generator) if option == "classes" else normal(shape, generator)
    model = ScoreModel(
        net.bfloat16() if k % 5 == 4 else net,
        SDES[k % len(SDES)],
        predicts=predicts,
        condition_on=("log_snr", "time")[k % 2],
        sigma_data=(None, 0.3, 2)[k % 3],
        moments=None if k % 4 == 0 else Moments(torch.zeros(event), torch.ones(event)),
        transform=transforms(event)[k % 7],
        variance="learned" if learned else "fixed",
    )
    model.dropout = {one: 0.5 for one in net.kinds} if k % 3 else None
    model.class_names = {"digit": ("0", "é", "\u202e")} if "digit" in net.kinds else None
    return (model.with_sde(SDES[(k + 1) % len(SDES)]) if k % 3 == 1 else model), cond


@pytest.mark.parametrize("predicts", PARAMETERIZATIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_option_comes_back(name: str, predicts: str, tmp_path: Path) -> None:
    """Options go round at different paces, so that over the cases most pairs of them meet."""
    place = [*NETWORKS].index(name) + len(NETWORKS) * [*PARAMETERIZATIONS].index(predicts)
    # A prediction that says nothing where alpha is 0 takes the next diffusion that does not reach it.
    for k in range(place, place + 28 * len(SDES), 28):
        try:
            model, cond = make(k, name, predicts)
            break
        except ValueError:
            continue
    model.save(tmp_path)
    again = ScoreModel.load(tmp_path)
    documents = [json.loads(json.dumps(take_apart_whole(one)[0])) for one in (model, again)]
    assert documents[0] == documents[1]
    x = normal((2, *NETWORKS[name][1]), stream(k))
    t = 0.5 * (model.sde.t_min + model.sde.t_max)
    with torch.no_grad():
        views = [one(x, t, cond or None) for one in (model.eval(), again)]
    for kind in ("data", "noise"):
        assert torch.equal(views[0].view(kind), views[1].view(kind))
    if model.variance == "learned":
        assert torch.equal(views[0].variance_fraction, views[1].variance_fraction)
