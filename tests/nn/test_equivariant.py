"""The network of points: how its output moves with the cloud, its formulas, and that it learns."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from network_cases import awake, distance, orthogonal, turn
from torch import Tensor
from torch.nn import functional as F

from scoresde import VPSDE, ScoreModel, ShapeError, fit, losses
from scoresde.nn import EGNN
from scoresde.noise import normal, permutation, stream

DOUBLE = torch.float64
C = torch.tensor([-6.0, 0.0, 4.0], dtype=DOUBLE)
KINDS = {
    "places": {"coordinates": 3},
    "centred": {"coordinates": 3, "centred": True},
    "features": {"coordinates": 3, "features": 2},
    "plane": {"coordinates": 2, "features": 1, "centred": True},
}


def make(kind: str, dtype: torch.dtype = DOUBLE) -> tuple[EGNN, Tensor]:
    net = awake(EGNN(width=16, depth=3, **KINDS[kind])).to(dtype)
    return net, normal((3, 7, net.coordinates + net.features), stream(1, kind), dtype=DOUBLE).to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (DOUBLE, 1e-12)], ids=["32", "64"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_output_turns_with_the_cloud(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    net, x = make(kind, dtype)
    out = net(x, C)
    size = tolerance * float(out.detach().abs().max())
    for reflect in (False, True):
        q = orthogonal(net.coordinates, reflect=reflect)
        assert distance(net(turn(x, q), C), turn(out, q)) < size
        assert distance(turn(out, q), out) > 0.01
    order = permutation(7, stream(3))
    assert distance(net(x[:, order], C), out[:, order]) < size
    # A translation: nothing, or the part of it that is linear in the mean place.
    step = torch.zeros(x.shape[2], dtype=dtype)
    step[: net.coordinates] = torch.tensor([1.5, -0.7, 0.4])[: net.coordinates]
    moved = net(x + step, C) - out
    if net.centred:
        assert distance(moved, torch.zeros_like(moved)) < size
        assert float(out.detach()[..., : net.coordinates].mean(1).abs().max()) < size
    else:
        c_2 = net.skip(net.conditioning(C, {}))[:, -1]
        assert distance(moved, (c_2[:, None, None] * step).expand_as(moved)) < 2 * size
        assert float(c_2.detach().abs().min()) > 1e-3


def test_the_network_is_the_formula() -> None:
    """Point by point and pair by pair."""
    net, x = make("features")
    e = net.conditioning(C, {})
    terms = net.modulation(e).reshape(3, -1, 2, 16)

    def norm(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        centred = h - h.mean()
        return (1 + scale) * centred / (centred.square().mean() + 1e-5).sqrt() + shift

    for b in range(3):
        middle = x[b, :, :3].mean(0)
        start = [row[:3] - middle for row in x[b]]
        places, h = list(start), [net.input(row[3:]) for row in x[b]]
        for i, layer in enumerate(net.layers):
            n = [norm(v, *terms[b, i]) for v in h]
            moved, told = [], []
            for p in range(7):
                step, sum_of_messages = torch.zeros(3, dtype=DOUBLE), torch.zeros(16, dtype=DOUBLE)
                for o in range(7):
                    r = places[p] - places[o]
                    d = torch.stack([torch.log(1 + 16.0**k * r.dot(r)) for k in range(3)])
                    seen = layer.own(n[p]) + layer.other(n[o]) + layer.distance(d)
                    message = F.silu(layer.message(F.silu(seen)))
                    step = step + r / torch.sqrt(1 + r.dot(r)) * layer.move(message) / 7
                    sum_of_messages = sum_of_messages + message / 7
                moved.append(places[p] + step)
                told.append(h[p] + layer.second(F.silu(layer.keep(n[p]) + layer.take(sum_of_messages))))
            places, h = moved, told
        c_1, c_3, c_2 = net.skip(e[b])
        for p in range(7):
            place = c_1 * start[p] + c_2 * middle + places[p] - start[p]
            features = c_3 * x[b, p, 3:] + net.output(norm(h[p], *terms[b, -1]))
            assert distance(torch.cat([place, features]), net(x, C)[b, p]) < 1e-12


def test_points_that_coincide_have_finite_derivatives_of_two_orders() -> None:
    for kind in KINDS:
        net, _ = make(kind)
        x = torch.ones(3, 4, net.coordinates + net.features, dtype=DOUBLE, requires_grad=True)
        (slope,) = torch.autograd.grad(net(x, C).square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(slope.square().sum(), x)
        assert bool(slope.isfinite().all())
        assert bool(second.isfinite().all())
    one = make("centred")[0]
    assert not one(torch.ones(3, 1, 3, dtype=DOUBLE), C).any()  # a cloud of one point has no shape


def test_it_learns_the_shape_of_a_cloud_in_every_position() -> None:
    """Rhombi of sides 1 and diagonals 1 and sqrt(3), turned at random: clouds that it never saw are as good."""
    shape = torch.tensor([[math.sqrt(0.75), 0.0], [-math.sqrt(0.75), 0.0], [0.0, 0.5], [0.0, -0.5]])
    angle = math.pi * normal((400,), stream(5))
    turns = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).reshape(-1, 2, 2)
    data = shape @ turns.mT  # (400, 4, 2)
    net = EGNN(2, width=32, depth=2, centred=True)
    model = ScoreModel(net, VPSDE(), predicts="data")
    zero = losses.held_out_loss(ScoreModel(EGNN(2, width=32, depth=2, centred=True), VPSDE(), predicts="data"), data)
    fitted = fit(model, data[:200], steps=150, batch_size=64, learning_rate=5e-3, progress=False, seed=0).model
    held = losses.held_out_loss(fitted, data[200:], seed=1)
    assert held.mean < 0.5 * zero.mean


def test_another_layout_is_refused_with_a_cure() -> None:
    with pytest.raises(ShapeError, match=r"x must have shape \(B, N, 5\), 3 coordinates and 2 features .*\(2, 5, 7\)"):
        EGNN(3, features=2)(torch.zeros(2, 5, 7), torch.zeros(2))
    with pytest.raises(ShapeError, match="one or more points"):
        EGNN(3)(torch.zeros(2, 0, 3), torch.zeros(2))


def test_float16_knows_clouds_of_any_usual_size() -> None:
    """256 times the square of a distance of 16 is no number of float16."""
    net = awake(EGNN(2, width=8, depth=2))
    x, c_noise = 40 * normal((3, 4, 2), stream(5)), torch.zeros(3)
    expected = net(x, c_noise)
    half = copy.deepcopy(net).half()(x.half(), c_noise)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), expected, rtol=0.02, atol=0.5)
