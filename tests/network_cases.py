"""Built-in networks of every kind, awake and with inputs, for the tests of what they compute."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scoresde.nn import EGNN, MLP, DiT, MagnitudeUNet, UNet
from scoresde.noise import integers, normal, stream

STEPS = {"multipliers": (1, 2), "attention": (1,), "resample": "residual", "rescale_skips": True}
# Name, network, shape of a sample. Heads, groups and levels differ, no two sizes are alike.
CASES = {
    "mlp": (lambda **kw: MLP(5, width=24, depth=2, classes=4, **kw), (5,)),
    "mlp of arrays": (lambda **kw: MLP((2, 3), width=16, depth=1, classes=4, **kw), (2, 3)),
    "mlp of numbers": (lambda **kw: MLP((), width=16, depth=2, classes=4, **kw), ()),
    "signals": (lambda **kw: UNet(2, dims=1, width=8, multipliers=(1, 2), classes=4, **kw), (2, 11)),
    "images": (lambda **kw: UNet(1, width=8, attention=(1,), heads=2, classes=4, **kw), (1, 8, 8)),
    "odd images": (lambda **kw: UNet(3, width=8, blocks=2, multipliers=(1, 3), classes=4, **kw), (3, 5, 9)),
    "prime images": (lambda **kw: UNet(1, width=8, attention=(0, 2), classes=4, **kw), (1, 7, 7)),
    "pixels": (lambda **kw: UNet(1, width=4, classes=4, **kw), (1, 1, 1)),
    "volumes": (lambda **kw: UNet(1, dims=3, width=4, multipliers=(2, 1), classes=4, **kw), (1, 4, 3, 5)),
    "residual steps": (lambda **kw: UNet(2, width=8, **STEPS, heads=2, classes=4, **kw), (2, 7, 6)),
    "residual signals": (lambda **kw: UNet(1, dims=1, width=8, **STEPS, classes=4, **kw), (1, 9)),
    "magnitudes": (lambda **kw: MagnitudeUNet(1, width=8, attention=(1,), heads=2, classes=4, **kw), (1, 7, 8)),
    "magnitudes of signals": (
        lambda **kw: MagnitudeUNet(2, dims=1, width=8, blocks=2, multipliers=(1, 2), classes=4, **kw),
        (2, 11),
    ),
    "magnitudes of volumes": (
        lambda **kw: MagnitudeUNet(1, dims=3, width=4, multipliers=(2, 1), classes=4, **kw),
        (1, 4, 3, 5),
    ),
    "patches": (lambda **kw: DiT(2, width=16, depth=2, heads=2, classes=4, **kw), (2, 6, 5)),
    "patches of signals": (lambda **kw: DiT(1, dims=1, patch=3, width=16, depth=2, classes=4, **kw), (1, 10)),
    "points": (lambda **kw: EGNN(3, features=2, width=16, depth=2, classes=4, **kw), (6, 5)),
    "places": (lambda **kw: EGNN(2, width=16, depth=2, centred=True, classes=4, **kw), (5, 2)),
}


def awake(net: nn.Module, seed: int = 0) -> nn.Module:
    """Replace the zeros that a network starts with, so that every part of it matters."""
    generator = stream(seed, "awake")
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.copy_(0.3 * normal(p.shape, generator))
    return net


def build(case: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    return awake(CASES[case][0]()).to(dtype)


def inputs(case: str, batch: int = 6, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = stream(seed, case)
    x = normal((batch, *CASES[case][1]), generator, dtype=torch.float64)
    c_noise = 8 * normal((batch,), generator, dtype=torch.float64)
    return x, c_noise, integers(4, (batch,), generator)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


def orthogonal(n: int, *, reflect: bool) -> Tensor:
    """A turn in n dimensions, with a reflection or without, in float64."""
    q, _ = torch.linalg.qr(normal((n, n), stream(2), dtype=torch.float64))
    if (float(torch.linalg.det(q)) < 0) is not reflect:
        q = q * torch.tensor([-1.0] + [1.0] * (n - 1), dtype=torch.float64)
    return q


def turn(x: Tensor, q: Tensor) -> Tensor:
    """Turn the places of points, the first entries, and leave their features."""
    n = len(q)
    return torch.cat([x[..., :n] @ q.T.to(x), x[..., n:]], 2)
