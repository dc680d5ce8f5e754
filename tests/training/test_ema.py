"""The average of the weights does not stagnate, and never mixes with the weights themselves."""

from __future__ import annotations

import math

import pytest
import torch
from small_models import same, weights
from torch import nn

from scoresde import ConfigError, DomainError
from scoresde.nn import MLP
from scoresde.noise import normal, stream
from scoresde.training import EMA
from scoresde.training.ema import choose_stride


class One(nn.Module):
    def __init__(self, value: float, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), value, dtype=dtype))
        self.register_buffer("b", torch.tensor([7.0]))


def value(ema: EMA) -> float:
    return float(ema.base[0].double() + ema.offset[0].double())


@pytest.mark.parametrize(
    ("target", "dtype", "reference"),
    [(1.0005, torch.float32, 1.000496595873), (2.0, torch.bfloat16, 1.993263737389)],
)
def test_average_near_one_reaches_its_reference(target: float, dtype: torch.dtype, reference: float) -> None:
    module = One(1.0, dtype)
    ema = EMA(module, 0.9999)
    with torch.no_grad():
        module.p.fill_(target)
    for _ in range(50_000):
        ema.update()
    assert value(ema) == pytest.approx(reference, abs=5e-9)


@pytest.mark.parametrize("every", [1, 4, 5])
@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_average_of_moving_weights_is_the_float64_recursion(decay: float, warmup: bool, every: int) -> None:
    net = MLP(2, width=8, depth=1)
    ema = EMA(net, decay, warmup=warmup, every=every)
    exact = {name: p.detach().double() for name, p in net.named_parameters()}
    # With a warm-up every one of the first 64 steps counts: a short run has an average of its own.
    beginning = 64 // every * every if warmup else 0
    for k in range(300):
        with torch.no_grad():
            for j, p in enumerate(net.parameters()):
                p.add_(0.1 * normal(p.shape, stream(k, j)))
        ema.update()
        stride = 1 if k < beginning else every
        if (k + 1) % stride == 0:
            d = (min(decay, (1 + k) / (10 + k)) if warmup else decay) ** stride
            exact = {name: d * exact[name] + (1 - d) * p.detach().double() for name, p in net.named_parameters()}
        if k in (0, 6, 63, 70):
            assert all(torch.allclose(v.double(), exact[name], 1e-6, 1e-6) for name, v in ema.state_dict().items())
            assert ema.time == (k + 1) // stride * stride
    for name, averaged in ema.state_dict().items():
        torch.testing.assert_close(averaged.double(), exact[name], rtol=1e-6, atol=1e-6)
    for i, name in enumerate(ema.names):
        torch.testing.assert_close(ema.base[i].double() + ema.offset[i], exact[name], rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize(("decay", "steps"), [(0.0, 1), (0.99, 1), (0.995, 2), (0.999, 8), (0.9999, 8)])
def test_one_update_moves_an_average_by_a_hundredth_at_most(decay: float, steps: int) -> None:
    assert choose_stride(decay) == steps


def test_a_strided_average_has_the_mean_age_of_a_dense_one() -> None:
    # Weights that grow by one a step: the average lags by its mean age, d/(1 - d) steps, and m/2 more or less.
    module = One(0.0, torch.float64)
    dense, strided = EMA(module, 0.99), EMA(module, 0.99, every=4)
    for k in range(4000):
        with torch.no_grad():
            module.p.fill_(float(k))
        dense.update()
        strided.update()
    assert 3999 - value(dense) == pytest.approx(99, abs=1e-6)
    assert value(strided) == pytest.approx(value(dense), abs=2)


def test_raw_and_averaged_weights_never_mix() -> None:
    net = MLP(2, width=8, depth=1)
    first = weights(net)
    ema = EMA(net, 0.5)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)
    ema.update()
    raw = weights(net)
    half = [0.5 * (a + b) for a, b in zip(first, raw, strict=True)]
    made = ema.copy()
    assert same(weights(net), raw)
    for a, b in zip(weights(made), half, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)

    def fail_inside() -> None:
        with ema.applied():
            assert same(weights(net), weights(made))
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert same(weights(net), raw)
    with torch.no_grad():
        next(made.parameters()).zero_()
    assert same(weights(net), raw)


def test_average_keeps_buffers_frozen_and_tied_parameters() -> None:
    module = One(1.0)
    module.frozen = nn.Parameter(torch.tensor([3.0]), requires_grad=False)
    module.tied = module.p
    ema = EMA(module, 0.5)
    with torch.no_grad():
        module.p.fill_(2.0)
        module.b.fill_(8.0)
    ema.update()
    assert {name: float(v) for name, v in ema.state_dict().items()} == {"p": 1.5, "b": 8.0, "frozen": 3.0, "tied": 1.5}


def test_changed_parameters_are_refused() -> None:
    module = One(1.0)
    ema = EMA(module, 0.9)
    module.p = nn.Parameter(torch.ones(1))
    with pytest.raises(ConfigError, match=r"parameters are not the 1 that the average began with .*make a new EMA"):
        ema.state_dict()
    ema = EMA(module, 0.9)
    module.p.data = torch.ones(1)
    for _ in range(63):
        ema.update()
    with pytest.raises(ConfigError, match="make a new EMA"):
        ema.update()


@pytest.mark.parametrize("decay", [1.0, -0.1, math.nan, 2])
def test_decay_outside_its_interval_is_refused(decay: float) -> None:
    with pytest.raises(DomainError, match=r"decay must lie in \[0, 1\), got"):
        EMA(One(1.0), decay)
