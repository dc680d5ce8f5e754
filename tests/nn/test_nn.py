"""The networks: what their output depends on and what it does not, and that a configuration makes them again."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.errors import ConfigError, DomainError, DTypeError, ShapeError
from scoresde.nn import MLP, NETWORKS, UNet, drop_labels
from scoresde.nn.embeddings import fourier_features
from scoresde.noise import integers, normal, stream

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
        net(torch.cat([x[:1] + 1e-3, x[1:]]), c_noise, label),
        net(x, torch.cat([c_noise[:1] + 1e-2, c_noise[1:]]), label),
        net(x, c_noise, torch.cat([(label[:1] + 1) % 4, label[1:]])),
    ):
        assert distance(changed[0], before[0]) > 1e-6
        assert distance(changed[1:], before[1:]) < 1e-12


@pytest.mark.parametrize("case", ["mlp", "images", "signals"])
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


@pytest.mark.parametrize("case", ["images", "odd images", "prime images", "signals", "volumes"])
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
    assert torch.equal(flat(x, c_noise), shaped(x.reshape(4, 2, 3), c_noise).flatten(1))


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


@pytest.mark.parametrize("case", CASES)
def test_configuration_makes_the_network_again(case):
    net = CASES[case][0](seed=7)
    config = json.loads(json.dumps(net.config))
    copy = NETWORKS[type(net).__name__](**config)
    assert copy.config == net.config
    fresh, first = copy.state_dict(), net.state_dict()
    assert list(fresh) == list(first)
    assert all(torch.equal(fresh[k], first[k]) for k in first), "the seed does not fix the first weights"
    awake(net, seed=8)
    x, c_noise, label = (v.float() if v.is_floating_point() else v for v in inputs(case))
    other = NETWORKS[type(net).__name__](**(config | {"seed": 9}))
    assert not torch.equal(awake(other, seed=8)(x, c_noise, label), net(x, c_noise, label))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x, c_noise, label), net(x, c_noise, label))


@pytest.mark.parametrize("name", NETWORKS)
def test_configuration_names_every_argument(name):
    import inspect

    net = {"MLP": MLP(3), "UNet": UNet(1)}[name]
    assert list(net.config) == [p for p in inspect.signature(type(net)).parameters if p != "self"]
    assert type(net) is NETWORKS[name]


@pytest.mark.parametrize("case", CASES)
def test_starts_at_zero_and_every_weight_learns(case):
    net = CASES[case][0]().double()
    x, c_noise, label = inputs(case, batch=24)
    label[::5] = -1
    assert not net(x, c_noise, label).any()
    for name, p in net.named_parameters():
        if name.endswith(("second.weight", "output.weight")) or name.startswith(("second", "skip")):
            assert not p.any(), f"{name}: a block must start as the identity"
    awake(net)
    net(x, c_noise, label).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert float(p.grad.abs().max()) > 1e-9, name


def test_first_weights_have_the_stated_law():
    net = UNet(1, width=32, multipliers=(1, 4))
    for layer in (net.conditioning.mix, net.level.inner.level.before[0].first, net.modulation):
        weight, inputs_of_one = layer.weight.detach().double(), layer.weight[0].numel()
        n = weight.numel()
        assert float(weight.abs().max()) <= inputs_of_one**-0.5
        # Mean and mean square of n uniform numbers, at 6 standard deviations.
        scaled = weight * inputs_of_one**0.5
        assert abs(float(scaled.mean())) < 6 * math.sqrt(1 / 3 / n)
        assert abs(float(scaled.square().mean()) - 1 / 3) < 6 * math.sqrt(4 / 45 / n)
        assert not layer.bias.any()


def test_networks_are_made_where_the_caller_says():
    with torch.device("meta"):
        net = UNet(1, width=8, classes=3)
    assert {p.device.type for p in net.parameters()} == {"meta"}
    here = UNet(1, width=8, classes=3)
    net = net.to_empty(device="cpu")
    net.load_state_dict(here.state_dict())
    x, c_noise = normal((2, 1, 6, 6), stream(5)), torch.zeros(2)
    assert torch.equal(awake(net)(x, c_noise), awake(here)(x, c_noise))


@pytest.mark.parametrize("case", CASES)
def test_types(case):
    exact, single = build(case), build(case, torch.float32)
    x, c_noise, label = inputs(case)
    x = x.bfloat16().double()  # so that every type below holds the same numbers
    c_noise = c_noise.float().double()
    reference = exact(x, c_noise, label)
    scale = float(reference.detach().abs().max())
    assert reference.dtype == torch.float64
    assert distance(single(x.float(), c_noise.float(), label), reference) < 1e-4 * scale
    half = single(x.bfloat16(), c_noise.float(), label)
    assert half.dtype == torch.bfloat16
    assert distance(half.double(), reference) < 2**-7 * scale
    low = build(case, torch.bfloat16)(x.bfloat16(), c_noise.float(), label)
    assert low.dtype == torch.bfloat16
    assert distance(low.double(), reference) < 0.2 * scale


def test_noise_level_is_not_rounded_to_the_network_type():
    # Next to 11 bf16 knows only multiples of 1/16.
    net = build("images", torch.bfloat16)
    x = normal((1, 1, 8, 8), stream(6), dtype=torch.bfloat16)
    outputs = [net(x, torch.tensor([11 + shift])) for shift in (0.0, 0.02)]
    assert torch.tensor([11.02]).bfloat16() == 11
    assert distance(*outputs) > 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-13)])
def test_features_are_the_formula(dtype, tolerance):
    c = torch.tensor([-40.0, -12.25, 0.0, 1e-3, 3.5, 16.0, 40.0], dtype=dtype)
    got = fourier_features(c, frequencies=9)
    assert got.dtype == dtype
    for i, k in itertools.product(range(len(c)), range(9)):
        angle = 2.0 ** (-6 + k) * float(c[i])
        assert abs(float(got[i, k]) - math.sin(angle)) < tolerance
        assert abs(float(got[i, 9 + k]) - math.cos(angle)) < tolerance


def test_features_tell_every_noise_level_apart():
    c = torch.linspace(-40, 40, 801, dtype=torch.float64)
    features = fourier_features(c)
    gaps = torch.cdist(features, features) + 10 * torch.eye(801, dtype=torch.float64)
    assert float(gaps.min()) > 0.05
    assert fourier_features(c.bfloat16()).dtype == torch.float32


def test_dropped_labels():
    label = integers(10, (20_000,), stream(7))
    kept = label.clone()
    assert torch.equal(drop_labels(label, 0.0, stream(8)), label)
    assert bool((drop_labels(label, 1.0, stream(8)) == -1).all())
    dropped = drop_labels(label, 0.1, stream(9))
    assert torch.equal(label, kept)
    assert torch.equal(dropped, drop_labels(label, 0.1, stream(9)))
    gone = dropped == -1
    assert torch.equal(dropped[~gone], label[~gone])
    # 5.2 standard deviations of the binomial law: a false alarm in five million.
    assert abs(int(gone.sum()) - 2000) < 5.2 * math.sqrt(20_000 * 0.1 * 0.9)
    assert torch.equal(drop_labels(label.int(), 0.1, stream(9)), dropped.int())


def test_training_mode_draws_nothing():
    for case in CASES:
        net = build(case)
        x, c_noise, label = inputs(case)
        assert torch.equal(net.train()(x, c_noise, label), net.train()(x, c_noise, label))
        assert torch.equal(net.train()(x, c_noise, label), net.eval()(x, c_noise, label))


@pytest.mark.parametrize("case", ["mlp", "images"])
def test_learns_what_depends_on_everything(case):
    net = CASES[case][0]()
    x, c_noise, label = inputs(case, batch=32)
    x, c_noise = x.float(), c_noise.float()
    factor = (torch.tensor([1.0, -1.0, 0.5, 2.0])[label] * torch.tanh(c_noise)).reshape(-1, *(1,) * (x.ndim - 1))
    target = factor * x.abs()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    losses = []
    for _ in range(120):
        loss = (net(x, c_noise, label) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(float(target.square().mean()))
    assert losses[-1] < 0.1 * losses[0]


ZERO = torch.zeros(2)
IMAGE = torch.zeros(2, 3, 8, 8)
FAULTS = {
    "sample": (lambda: MLP(5)(torch.zeros(2, 4), ZERO), ShapeError, r"\(B, 5\), got \(2, 4\); MLP\(\(4,\)\)"),
    "channels": (lambda: UNet(1)(IMAGE, ZERO), ShapeError, r"\(B, 1, H, W\), got \(2, 3, 8, 8\); UNet\(3, dims=2\)"),
    "dimensions": (lambda: UNet(3, dims=1)(IMAGE, ZERO), ShapeError, r"\(B, 3, W\), got .*; UNet\(3, dims=2\)"),
    "vector": (lambda: UNet(1)(torch.zeros(2, 64), ZERO), ShapeError, "got .2, 64.; reshape x"),
    "c_noise": (lambda: UNet(3)(IMAGE, torch.zeros(())), ShapeError, r"c_noise must have shape \(2,\).* got \(\)"),
    "few c_noise": (
        lambda: MLP(5)(torch.zeros(3, 5), ZERO),
        ShapeError,
        r"c_noise must have shape \(3,\).* got \(2,\)",
    ),
    "label shape": (
        lambda: UNet(3, classes=2)(IMAGE, ZERO, torch.zeros(2, 1, dtype=torch.int64)),
        ShapeError,
        r"label must have shape \(2,\).* got \(2, 1\)",
    ),
    "label type": (lambda: UNet(3, classes=2)(IMAGE, ZERO, ZERO), DTypeError, r"float32.*label.long\(\)"),
    "label too high": (
        lambda: UNet(3, classes=2)(IMAGE, ZERO, torch.tensor([0, 2])),
        DomainError,
        r"0\.\.1, or be -1 .* from 0 to 2",
    ),
    "label too low": (
        lambda: MLP(3, classes=2)(torch.zeros(2, 3), ZERO, torch.tensor([0, -2])),
        DomainError,
        "from -2 to 0",
    ),
    "label unasked": (lambda: MLP(3)(torch.zeros(2, 3), ZERO, ZERO.long()), ConfigError, "classes=None.*classes=n"),
    "dims": (lambda: UNet(1, dims=4), DomainError, r"dims must be in \[1, 3\], got 4"),
    "no level": (lambda: UNet(1, multipliers=()), ConfigError, "at least one level"),
    "no such level": (lambda: UNet(1, attention=(3,)), DomainError, r"attention must be in \[0, 2\], got 3"),
    "heads": (lambda: UNet(1, width=6, heads=4, multipliers=(1,)), ConfigError, "heads=4 must divide the 6.*heads=2"),
    "width": (lambda: MLP(2, width=0), DomainError, "width must be at least 1, got 0"),
    "size": (lambda: MLP((2, 0)), DomainError, "event_shape"),
    "classes": (lambda: MLP(2, classes=0), DomainError, "classes must be at least 1, got 0"),
    "fractions": (lambda: UNet(1, width=1.5), DTypeError, "width must be an integer"),
    "seed": (lambda: MLP(2, seed=-1), DomainError, "seed"),
    "probability": (lambda: drop_labels(torch.zeros(2).long(), 1.5, stream(0)), DomainError, "probability.* got 1.5"),
    "no integers": (lambda: drop_labels(ZERO, 0.5, stream(0)), DTypeError, r"label.long\(\)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_name_what_was_got_and_the_cure(fault):
    call, error, message = FAULTS[fault]
    with pytest.raises(error, match=message):
        call()
