"""Every network bears forward-mode, reverse-mode and second derivatives: against finite differences in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scoresde import VPSDE, ScoreModel, log_likelihood, nn
from scoresde.nn import NETWORKS
from scoresde.noise import normal, stream
from scoresde.ops import jacobian_products, plain_attention

CASES: dict[str, tuple[torch.nn.Module, tuple[int, ...]]] = {
    "MLP": (nn.MLP(5, width=16, depth=2, classes=3), (5,)),
    "UNet": (nn.UNet(2, width=8, multipliers=(1, 2), attention=(0, 1), classes=3), (2, 6, 5)),
    "UNet, residual": (
        nn.UNet(2, width=8, multipliers=(1, 2), resample="residual", rescale_skips=True, classes=3),
        (2, 6, 5),
    ),
    "MagnitudeUNet": (nn.MagnitudeUNet(2, width=8, multipliers=(1, 2), attention=(0,), classes=3), (2, 6, 5)),
    "DiT": (nn.DiT(2, width=16, depth=2, heads=2, classes=3), (2, 4, 5)),
    "DiT, 1": (nn.DiT(1, dims=1, width=16, depth=1, heads=2), (1, 7)),
    "EGNN": (nn.EGNN(3, features=1, width=16, depth=2, classes=3), (4, 4)),
    "UNet, 1": (nn.UNet(1, dims=1, width=8, multipliers=(1, 2)), (1, 9)),
    "UNet, 3": (nn.UNet(1, dims=3, width=8, multipliers=(1, 2)), (1, 4, 4, 3)),
}
STEP = 1e-5


def function(name: str) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return a network with weights that do something, as a function of x in float64, and an x."""
    net, event = CASES[name]
    draw = stream(7, name)
    with torch.no_grad():
        for p in net.double().parameters():
            p += 0.1 * normal(tuple(p.shape), draw, dtype=torch.float64)
    c_noise = torch.tensor([-1.0, 2.0], dtype=torch.float64)
    cond = {} if net.classes is None else {"label": torch.tensor([0, 2])}
    return lambda x: net(x, c_noise, **cond), normal((2, *event), draw, dtype=torch.float64)


def directions(x: Tensor) -> list[Tensor]:
    return [normal(tuple(x.shape), stream(8, k), dtype=torch.float64) for k in range(3)]


def test_no_network_is_left_out() -> None:
    assert {name.split(",")[0] for name in CASES} == set(NETWORKS)


# torch's own forward mode compiles decompositions at its first use.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("name", CASES)
def test_derivatives_are_those_of_finite_differences(name: str) -> None:
    f, x = function(name)
    u, v, w = directions(x)
    difference = (f(x + STEP * v) - f(x - STEP * v)) / (2 * STEP)
    with plain_attention():
        _, forward = torch.func.jvp(f, (x,), (v,))
    torch.testing.assert_close(forward, difference, rtol=1e-6, atol=1e-7)
    _, backwards = torch.func.vjp(f, x)
    torch.testing.assert_close((backwards(u)[0] * v).sum(), (u * difference).sum(), rtol=1e-6, atol=1e-7)

    def gradient(y: Tensor) -> Tensor:
        with plain_attention():
            return torch.func.vjp(f, y)[1](u)[0]

    second = (gradient(x + STEP * w) - gradient(x - STEP * w)) / (2 * STEP)
    _, twice = torch.func.vjp(gradient, x)
    torch.testing.assert_close((twice(v)[0] * w).sum(), (v * second).sum(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_products_are_those_of_the_jacobian_and_have_gradients(name: str) -> None:
    f, x = function(name)
    u, v, w = (torch.sign(d) for d in directions(x))
    _, (one, other) = jacobian_products(f, x.requires_grad_(True), (u, v))
    with torch.no_grad():
        for got, e in ((one, u), (other, v)):
            exact = ((f(x + STEP * e) - f(x - STEP * e)) / (2 * STEP) * e).flatten(1).sum(1)
            torch.testing.assert_close(got.detach(), exact, rtol=1e-6, atol=1e-6)
        near = [jacobian_products(f, (x + sign * STEP * w).detach(), (u,))[1][0].sum() for sign in (1, -1)]
    (slope,) = torch.autograd.grad(one.sum(), x)
    torch.testing.assert_close((slope * w).sum(), (near[0] - near[1]) / (2 * STEP), rtol=1e-5, atol=1e-5)


def test_products_in_a_narrow_type_and_of_a_view_without_grad_mode() -> None:
    """Sums of bfloat16 products keep the digits of their terms; a view that says it needs a gradient has its own."""
    x = torch.linspace(-1, 1, 2048).reshape(1, -1)
    _, (product,) = jacobian_products(lambda y: 1.0078125 * y, x.bfloat16(), (torch.ones(2048).bfloat16(),))
    assert product.dtype == torch.float32
    assert float(product) == pytest.approx(1.0078125 * 2048, rel=1e-6)
    leaf = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        _, (product,) = jacobian_products(lambda y: y**3, leaf[:, :2], (torch.ones(2, dtype=torch.float64),))
    assert product.tolist() == [6.0, 6.0]


def test_the_likelihood_of_a_u_net_has_gradients() -> None:
    """On the CPU, through its attention."""
    net, _ = CASES["UNet, 1"]
    model = ScoreModel(net.double(), VPSDE())
    x = torch.linspace(-1, 1, 18, dtype=torch.float64).reshape(2, 1, 9).requires_grad_(True)
    got = log_likelihood(model, x, probes=2, draws=1, solver="midpoint", steps=2, differentiable=True)
    (slope,) = torch.autograd.grad(got.values.sum(), x)
    assert bool((slope.abs() > 0).all())
