"""The networks: what their output depends on and what it does not, and that a configuration makes them again."""

from __future__ import annotations

import math

import pytest
import torch
from network_cases import CASES, awake, build, distance, inputs
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.nn import MLP, UNet
from scoresde.noise import normal, stream

SPACES = [name for name in CASES if not name.startswith(("mlp", "pixels", "po", "pl"))]


@pytest.mark.parametrize("case", CASES)
def test_a_sample_does_not_depend_on_its_batch(case):
    net = build(case)
    x, c_noise, label = inputs(case)
    label[2] = -1
    together = net(x, c_noise, label)
    alone = torch.cat([net(x[k : k + 1], c_noise[k : k + 1], label[k : k + 1]) for k in range(len(x))])
    assert together.shape == x.shape
    assert distance(together, alone) < 1e-12
    assert net(x[:0], c_noise[:0], label[:0]).shape == x[:0].shape


@pytest.mark.parametrize("case", CASES)
def test_output_depends_on_each_input_of_its_own_sample_alone(case):
    net = build(case)
    x, c_noise, label = inputs(case)
    before = net(x, c_noise, label)
    for changed in (
        net(torch.cat([1.001 * x[:1], x[1:]]), c_noise, label),
        net(x, torch.cat([c_noise[:1] + 1e-2, c_noise[1:]]), label),
        net(x, c_noise, torch.cat([(label[:1] + 1) % 4, label[1:]])),
    ):
        assert distance(changed[0], before[0]) > 1e-6
        assert distance(changed[1:], before[1:]) < 1e-12


@pytest.mark.parametrize(
    "case", ["mlp", "images", "signals", "residual steps", "magnitudes", "patches", "points", "places"]
)
def test_output_is_not_bounded_far_out(case):
    # The noise of an x far out is nearly x: norms must not hide how far it is.
    net = build(case)
    x, c_noise, label = inputs(case)
    outputs = [net(size * x, c_noise, label) for size in (1e4, 2e4)]
    ratio = outputs[1].flatten(1).norm(dim=1) / outputs[0].flatten(1).norm(dim=1)
    assert distance(ratio, torch.full_like(ratio, 2.0)) < 0.02


@pytest.mark.parametrize("case", CASES)
def test_no_label_is_the_null_class(case):
    net = build(case)
    x, c_noise, label = inputs(case)
    null = net(x, c_noise)
    assert distance(net(x, c_noise, torch.full_like(label, -1)), null) < 1e-12
    for k in range(4):
        assert distance(net(x, c_noise, torch.full_like(label, k)), null) > 1e-3
    assert distance(net(x, c_noise, label), net(x, c_noise, label.int())) == 0


@pytest.mark.parametrize("case", SPACES)
def test_every_place_sees_every_place(case):
    net = build(case)
    x, c_noise, label = inputs(case, batch=1)
    first, last = (0,) * x.ndim, (0,) + (-1,) * (x.ndim - 1)
    for source, sink in ((first, last), (last, first)):
        x.requires_grad_(True)
        (gradient,) = torch.autograd.grad(net(x, c_noise, label)[sink], x)
        assert abs(float(gradient[source])) > 1e-8
        assert bool(gradient.all())


def thin(weight: Tensor) -> Tensor:
    """The part of a convolution's kernel that a last dimension of size 1 meets, zeros being around it."""
    return weight[..., weight.shape[-1] // 2]


@pytest.mark.parametrize("dims", [2, 3])
def test_a_last_dimension_of_size_one_is_no_dimension(dims):
    options = {"width": 8, "multipliers": (1, 2, 2), "attention": (1,), "heads": 2}
    wide = awake(UNet(2, dims=dims, **options)).double()
    narrow = UNet(2, dims=dims - 1, **options).double()
    needed = narrow.state_dict()
    narrow.load_state_dict({k: v if v.shape == needed[k].shape else thin(v) for k, v in wide.state_dict().items()})
    generator = stream(2)
    x = normal((3, 2, 9, 6)[: dims + 1], generator, dtype=torch.float64)
    c_noise = torch.tensor([-5.0, 0.0, 9.0])
    assert distance(wide(x[..., None], c_noise)[..., 0], narrow(x, c_noise)) < 1e-12


def test_transposed_kernels_serve_transposed_images():
    net = awake(UNet(2, width=8, multipliers=(1, 2, 4), attention=(0, 1))).double()
    other = awake(UNet(2, width=8, multipliers=(1, 2, 4), attention=(0, 1))).double()
    other.load_state_dict({k: v.transpose(2, 3) if v.ndim == 4 else v for k, v in net.state_dict().items()})
    x = normal((2, 2, 5, 9), stream(3), dtype=torch.float64)
    c_noise = torch.tensor([-3.0, 4.0])
    assert distance(net(x, c_noise), other(x.transpose(2, 3), c_noise).transpose(2, 3)) < 1e-12
    assert distance(net(x, c_noise), net(x.transpose(2, 3), c_noise).transpose(2, 3)) > 1e-3


def test_shape_of_an_event_is_only_a_reshape():
    flat, shaped = awake(MLP(6, seed=3)), awake(MLP((2, 3), seed=3))
    x, c_noise = normal((4, 6), stream(4)), torch.arange(4.0)
    assert distance(flat(x, c_noise), shaped(x.reshape(4, 2, 3), c_noise).flatten(1)) < 1e-5


def vector(net: nn.Module, c_noise: Tensor, label: Tensor) -> Tensor:
    """The conditioning vector, from the weights and the module's formulas."""
    angle = c_noise[:, None] * 2.0 ** (-6 + 8 * torch.arange(32, dtype=torch.float64) / 31)
    features = torch.cat([angle.sin(), angle.cos()], dim=1)
    own = net.conditioning
    return F.silu(own.mix(F.silu(own.features(features))) + own.label.weight[label + 1])


def test_mlp_is_the_formula():
    net = build("mlp")
    x, c_noise, label = inputs("mlp")
    scales_and_shifts = net.modulation(vector(net, c_noise, label)).reshape(6, 3, 2, 24)

    def norm(h: Tensor, i: int) -> Tensor:
        centred = h - h.mean(1, keepdim=True)
        unit = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        return (1 + scales_and_shifts[:, i, 0]) * unit + scales_and_shifts[:, i, 1]

    h = net.input(x)
    for i in range(2):
        h = h + net.second[i](F.silu(net.first[i](norm(h, i))))
    expected = net.output(F.silu(norm(h, 2))) + net.skip(vector(net, c_noise, label)) * x
    assert distance(expected, net(x, c_noise, label)) < 1e-12


def test_unet_is_the_formula():
    net = awake(UNet(3, width=8, blocks=2, multipliers=(1, 3), attention=(1,), classes=4)).double()
    x, c_noise, label = inputs("odd images")
    outer = net.level
    down, inner = outer.inner.down, outer.inner.level
    middle = inner.inner
    order = [*outer.before, *inner.before, middle.first, middle.second, *inner.after, *outer.after]
    terms = dict(zip(order, net.modulation(vector(net, c_noise, label)).split(net.splits, 1), strict=True))

    def block(layer: nn.Module, h: Tensor) -> Tensor:
        scale, shift = terms[layer][..., None, None].chunk(2, 1)
        inside = layer.modulated_norm(layer.first(F.silu(layer.norm(h))))
        return layer.skip(h) + layer.second(F.silu((1 + scale) * inside + shift))

    def attend(layer: nn.Module, h: Tensor) -> Tensor:
        out = torch.zeros_like(h)
        for b, image in enumerate(layer.norm(h)):
            q, k, v = layer.project(image.flatten(1).T).chunk(3, 1)
            heads = zip(q.chunk(4, 1), k.chunk(4, 1), v.chunk(4, 1), strict=True)
            mixed = [(a @ c.T / math.sqrt(a.shape[1])).softmax(1) @ d for a, c, d in heads]
            out[b] = layer.output(torch.cat(mixed, 1)).T.reshape(image.shape)
        return h + out

    first = block(outer.before[0], net.input(x))
    second = block(outer.before[1], first)
    third = attend(inner.attend_before[0], block(inner.before[0], down(second)))
    fourth = attend(inner.attend_before[1], block(inner.before[1], third))
    h = block(middle.second, attend(middle.attention, block(middle.first, fourth)))
    h = attend(inner.attend_after[0], block(inner.after[0], torch.cat([h, fourth], 1)))
    h = attend(inner.attend_after[1], block(inner.after[1], torch.cat([h, third], 1)))
    rows, columns = torch.arange(5) * 3 // 5, torch.arange(9) * 5 // 9
    h = h[:, :, rows][:, :, :, columns]
    h = block(outer.after[0], torch.cat([h, second], 1))
    h = block(outer.after[1], torch.cat([h, first], 1))
    expected = net.output(F.silu(net.norm(h))) + net.skip(vector(net, c_noise, label))[..., None, None] * x
    assert distance(expected, net(x, c_noise, label)) < 1e-12
