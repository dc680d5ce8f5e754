"""Conditions of the built-in networks: classes, vectors, values beside x; what is missing, null or wrong."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scoresde import VPSDE, ConfigError, DomainError, DTypeError, ScoreModel, ShapeError, fit, sample
from scoresde.nn import EGNN, MLP, DiT, MagnitudeUNet, UNet, drop_conditions
from scoresde.noise import normal, stream

B = 6
GIVEN = {"classes": {"digit": 10, "style": 3}, "context_features": {"weather": 4}, "concat_channels": {"known": 1}}
NETS = {
    "MLP": (lambda: MLP(3, width=16, depth=1, **GIVEN), (3,)),
    "MLP of images": (lambda: MLP((2, 4, 4), width=16, depth=1, **GIVEN), (2, 4, 4)),
    "UNet": (lambda: UNet(2, width=8, multipliers=(1, 2), **GIVEN), (2, 4, 4)),
    "MagnitudeUNet": (lambda: MagnitudeUNet(2, width=8, multipliers=(1, 2), **GIVEN), (2, 4, 4)),
    "DiT": (lambda: DiT(2, width=16, depth=1, heads=2, **GIVEN), (2, 4, 3)),
    "EGNN": (lambda: EGNN(3, width=16, depth=2, **{k: v for k, v in GIVEN.items() if "concat" not in k}), (4, 3)),
    "UNet of series": (lambda: UNet(2, dims=1, width=8, multipliers=(1,), **GIVEN), (2, 6)),
}


def awake(net: torch.nn.Module) -> torch.nn.Module:
    """Give every weight a value, so that everything counts."""
    with torch.no_grad():
        for k, p in enumerate(net.parameters()):
            p += 0.3 * normal(tuple(p.shape), stream(3, k))
    return net


def conditions(event: tuple[int, ...], n: int = B) -> dict[str, Tensor]:
    draw = stream(1, "conditions")
    return {
        "digit": torch.arange(n) % 10,
        "style": torch.arange(n) % 3,
        "weather": normal((n, 4), draw),
        "known": normal((n, 1, *event[1:]), draw),
    }


@pytest.mark.parametrize("name", NETS)
def test_every_condition_counts_and_only_for_its_own_sample(name: str) -> None:
    make, event = NETS[name]
    net = awake(make())
    x, c, cond = normal((B, *event), stream(0)), torch.linspace(-5, 5, B), conditions(event)
    cond = {key: value for key, value in cond.items() if key in net.condition_names}
    out = net(x, c, **cond).detach()
    for key, value in cond.items():
        changed = value.clone()
        changed[2] = (value[2] + 1) % 3 if key in ("digit", "style") else value[2] + 1.0
        other = net(x, c, **{**cond, key: changed}).detach()
        moved = (other - out).flatten(1).abs().amax(1)
        assert float(moved[2]) > 1e-3, key
        assert float(moved[[0, 1, 3, 4, 5]].max()) < 1e-5, key


@pytest.mark.parametrize("name", NETS)
def test_what_is_not_given_is_null_and_what_is_missing_has_no_value(name: str) -> None:
    make, event = NETS[name]
    net = awake(make())
    x, c, cond = normal((B, *event), stream(0)), torch.linspace(-5, 5, B), conditions(event)
    cond = {key: value for key, value in cond.items() if key in net.condition_names}
    nulls = drop_conditions(cond, dict.fromkeys(cond, 1.0), {key: stream(0, key) for key in cond})
    assert all(
        bool((value == -1).all() if not value.is_floating_point() else value.isnan().all()) for value in nulls.values()
    )
    torch.testing.assert_close(net(x, c, **nulls), net(x, c), rtol=1e-5, atol=1e-5)
    known = cond["weather"].clone()
    known[:, 1] = math.nan
    partly = net(x, c, **{**cond, "weather": known}).detach()
    assert bool(partly.isfinite().all())
    # A missing value is told from a value of 0.
    zero = cond["weather"].clone()
    zero[:, 1] = 0.0
    assert float((net(x, c, **{**cond, "weather": zero}).detach() - partly).abs().max()) > 1e-3
    for p in net.parameters():
        p.grad = None
    net(x, c, **{**cond, "weather": known}).square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)


def test_conditions_are_dropped_each_by_its_own_draw() -> None:
    n = 4000
    cond = {"label": torch.arange(n), "context": torch.ones(n, 2), "kept": torch.ones(n, 1)}
    got = drop_conditions(cond, {"label": 0.3, "context": 0.5}, {key: stream(0, key) for key in cond})
    no_label, no_context = got["label"] == -1, got["context"].isnan()
    assert torch.equal(no_context[:, 0], no_context[:, 1])  # the whole vector, or nothing of it
    assert torch.equal(got["kept"], cond["kept"])
    for share, where in ((0.3, no_label), (0.5, no_context[:, 0]), (0.15, no_label & no_context[:, 0])):
        assert abs(float(where.double().mean()) - share) < 6 * math.sqrt(share * (1 - share) / n)


def test_a_trained_network_knows_its_context_and_travels(tmp_path: Path) -> None:
    """x = context + 0.1 z: samples follow a context that was held out, and the checkpoint keeps all of it."""
    draw = stream(4)
    context = normal((2000, 1), draw)
    data = context + 0.1 * normal((2000, 1), draw)
    model = ScoreModel(MLP(1, width=32, depth=2, context_features=1), VPSDE(), predicts="v")
    fitted = fit(
        model, data, steps=600, cond={"context": context}, cond_dropout={"context": 0.2}, progress=False, seed=0
    ).model
    wanted = torch.linspace(-1.5, 1.5, 200)[:, None]
    x = sample(fitted, 200, cond={"context": wanted}, steps=12, seed=0)
    assert float((x - wanted).abs().median()) < 0.2
    free = sample(fitted, 400, steps=12, seed=0)  # the null: the law of all data
    assert 0.7 < float(free.std()) < 1.4
    assert fitted.dropout == {"context": 0.2}
    fitted.save(tmp_path / "model")
    again = ScoreModel.load(tmp_path / "model")
    assert again.dropout == {"context": 0.2}
    assert torch.equal(sample(again, 200, cond={"context": wanted}, steps=12, seed=0), x)


def net() -> MLP:
    return MLP(3, width=8, depth=1, classes=4, context_features=2, concat_channels=1)


FAULTS = {
    "name": ({"contxt": torch.zeros(2, 2)}, ConfigError, "unknown condition 'contxt'; did you mean 'context'"),
    "length": ({"context": torch.zeros(2, 3)}, ShapeError, r"context must have shape \(2, 2\)"),
    "type": ({"context": torch.zeros(2, 2, dtype=torch.long)}, DTypeError, "context must be a floating tensor"),
    "class": ({"label": torch.zeros(2)}, DTypeError, r"convert it with label.long\(\)"),
    "beside": ({"concat": torch.zeros(2, 2)}, ShapeError, r"concat must have shape \(2, 1\) for x of shape \(2, 3\)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_condition_is_refused_before_the_first_call(fault: str) -> None:
    cond, kind, words = FAULTS[fault]
    network, calls = net(), []
    network.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(kind, match=words):
        sample(ScoreModel(network, VPSDE()), (2, 3), cond=cond, steps=2)
    assert calls == []


def test_options_that_name_conditions_badly_are_refused() -> None:
    with pytest.raises(ConfigError, match="context_features names 'label', which classes names, too"):
        MLP(3, classes=2, context_features={"label": 2})
    for name in ("x", "c_noise", "self", 1, "two words"):
        with pytest.raises(ConfigError, match="must name conditions by words such as 'label', got "):
            MLP(3, classes={name: 2})
    with pytest.raises(ConfigError, match="cannot be named 'mix'"):
        MLP(3, classes={"mix": 2})
    with pytest.raises(DomainError, match="context_features must be at least 1"):
        MLP(3, context_features=0)
    with pytest.raises(ConfigError, match="concat_channels needs an event_shape"):
        MLP((), concat_channels=1)
    with pytest.raises(ConfigError, match="unknown condition 'labl'"):
        drop_conditions({"label": torch.arange(3)}, {"labl": 0.1}, {})


def test_a_network_takes_floating_x_and_tensors_alone() -> None:
    network, x, c_noise = net(), torch.zeros(2, 3), torch.zeros(2)
    with pytest.raises(DTypeError, match=r"x must have a real floating dtype, got torch.int64"):
        network(x.long(), c_noise)
    with pytest.raises(DTypeError, match=r"label must be a tensor, got \[0, 1\]"):
        network(x, c_noise, label=[0, 1])
