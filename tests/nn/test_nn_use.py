"""Networks in use: made again from their configuration, types, first weights, labels, training, faults."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable

import pytest
import torch
from network_cases import CASES, awake, build, distance, inputs
from torch import nn

from scoresde import VPSDE, ScoreModel, sample
from scoresde.errors import ConfigError, DomainError, DTypeError, ShapeError
from scoresde.nn import MLP, NETWORKS, DiT, MagnitudeUNet, UNet, drop_labels
from scoresde.nn.embeddings import fourier_features
from scoresde.noise import integers, normal, stream


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

    net = NETWORKS[name](3)
    assert list(net.config) == [p for p in inspect.signature(type(net)).parameters if p != "self"]
    assert type(net) is NETWORKS[name]


@pytest.mark.parametrize("case", ["mlp", "residual steps", "magnitudes", "patches", "points"])
def test_a_model_of_it_is_saved_and_loaded_and_samples(case, tmp_path):
    model = ScoreModel(build(case, torch.float32), VPSDE(), predicts="v")
    model.save(tmp_path / "model")
    again = ScoreModel.load(tmp_path / "model")
    assert again.net.config == model.net.config
    options = {"steps": 2, "cond": {"label": torch.tensor([0, 3])}, "seed": 0}
    x = sample(model, (2, *CASES[case][1]), **options)
    assert torch.equal(sample(again, (2, *CASES[case][1]), **options), x)
    assert not torch.equal(sample(again, (2, *CASES[case][1]), steps=2, seed=0), x)


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


@pytest.mark.parametrize("case", ["mlp", "images", "residual signals", "patches of signals"])
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
    "label unasked": (
        lambda: MLP(3)(torch.zeros(2, 3), ZERO, ZERO.long()),
        ConfigError,
        "takes no conditions; build it with classes=n",
    ),
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


@pytest.mark.parametrize("make", [UNet, MagnitudeUNet, lambda c: DiT(c, width=16, heads=2)])
def test_a_grid_without_places_is_no_sample(make: Callable[[int], nn.Module]) -> None:
    with pytest.raises(ShapeError, match=r"x must have shape \(B, 1, H, W\), got \(2, 1, 0, 4\); reshape x"):
        make(1)(torch.zeros(2, 1, 0, 4), torch.zeros(2))
