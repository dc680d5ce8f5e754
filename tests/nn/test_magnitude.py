"""What keeps magnitudes: the rules, one by one and through a whole network, and training with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from network_cases import awake, build, distance, inputs
from torch import Tensor

from scoresde import EMA, VPSDE, ScoreModel
from scoresde.nn import MagnitudeUNet
from scoresde.nn.magnitude import (
    UnitAttention,
    UnitBlock,
    UnitConditioning,
    UnitMap,
    join,
    unit,
    unit_silu,
    unit_sum,
)
from scoresde.noise import normal, stream
from scoresde.training import Trainer

MAPS = UnitMap | torch.nn.Embedding


def magnitude(x: Tensor) -> float:
    return float(x.detach().square().mean().sqrt())


def rows(net: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [part.weight for part in net.modules() if isinstance(part, MAPS)]


def test_each_rule_keeps_the_magnitude_of_unit_inputs() -> None:
    draw = stream(0)
    a, b = (normal((400, n, 9), draw, dtype=torch.float64) for n in (30, 10))
    assert magnitude(unit_silu(a)) == pytest.approx(1, abs=0.01)
    assert magnitude(unit_sum(a, a.flip(0))) == pytest.approx(1, abs=0.01)
    # Both parts count alike, whatever their numbers of channels.
    both = join(a, b)
    assert magnitude(both) == pytest.approx(1, abs=0.01)
    left, right = both.split([30, 10], 1)
    assert float(left.square().sum() / right.square().sum()) == pytest.approx(1, abs=0.05)
    assert distance(unit(3 * a).square().mean(1), torch.ones(400, 9, dtype=torch.float64)) < 1e-7
    assert not unit(torch.zeros(2, 3)).any()
    for part in (net := MagnitudeUNet(3, width=32, multipliers=(1,))).modules():
        if isinstance(part, UnitMap) and part.weight.shape[0] > 1:
            x = normal((64, part.weight.shape[1], *(16,) * part.dims), draw)
            assert magnitude(part(x)[(..., *(slice(1, -1),) * part.dims)]) == pytest.approx(1, abs=0.1)
    vector = net.conditioning(torch.linspace(-20, 20, 200), {})
    assert vector.detach().square().mean(1).sqrt().mean() == pytest.approx(1, abs=0.1)


def test_magnitudes_are_kept_through_the_depth_of_a_network() -> None:
    net = MagnitudeUNet(3, width=32, blocks=2, multipliers=(1, 2, 2), attention=(1,), classes=10)
    seen: list[float] = []
    for part in net.modules():
        if isinstance(part, UnitBlock | UnitAttention | UnitConditioning):
            part.register_forward_hook(lambda _, __, out: seen.append(magnitude(out)))
    out = net(normal((4, 3, 16, 16), stream(0)), torch.linspace(-10, 10, 4), torch.tensor([0, 5, 9, -1]))
    assert len(seen) == 1 + 2 * 2 * 3 + 2 + 1 + 4
    assert 0.8 < min(seen) < max(seen) < 1.1
    assert not out.detach().any()


def test_the_length_of_weights_counts_for_nothing_and_gradients_are_perpendicular_to_them() -> None:
    net = build("magnitudes")
    x, c_noise, label = inputs("magnitudes")
    before = net(x, c_noise, label)
    before.square().sum().backward()
    for weight in rows(net):
        w, g = weight.detach().flatten(1), weight.grad.flatten(1)
        assert float(g.norm()) > 1e-9
        assert float(((w * g).sum(1).abs() / (w.norm(dim=1) * g.norm())).max()) < 1e-12
    with torch.no_grad():
        for k, weight in enumerate(rows(net)):
            factor = normal((len(weight),), stream(1, k), dtype=torch.float64).exp()
            weight *= factor.reshape(-1, *(1,) * (weight.ndim - 1))
    assert distance(net(x, c_noise, label), before) < 1e-12 * float(before.detach().abs().max())
    net.normalise_()
    for weight in rows(net):
        assert distance(weight.flatten(1).square().mean(1), torch.ones(len(weight), dtype=torch.float64)) < 1e-12
    assert distance(net(x, c_noise, label), before) < 1e-12 * float(before.detach().abs().max())


def test_it_learns_with_its_weights_at_magnitude_one_and_the_average_follows(tmp_path: Path) -> None:
    """A loop of a user's own, as ``normalise_`` says: after the optimiser's step, before the average moves."""
    net = MagnitudeUNet(1, dims=1, width=8, multipliers=(1, 2), classes=4)
    x, c_noise, label = (v.float() if v.is_floating_point() else v for v in inputs("patches of signals", batch=32))
    target = (torch.tensor([1.0, -1.0, 0.5, 2.0])[label] * torch.tanh(c_noise))[:, None, None] * x.abs()
    optimizer, average = torch.optim.Adam(net.parameters(), lr=2e-2), EMA(net, 0.9, warmup=True)
    losses = []
    for _ in range(100):
        loss = (net(x, c_noise, label) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        net.normalise_()
        average.update()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(float(target.square().mean()))  # of a network that answers 0
    assert losses[-1] < 0.1 * losses[0]
    assert all(magnitude(weight) == pytest.approx(1, abs=1e-5) for weight in rows(net))
    averaged = average.copy()
    assert float((averaged(x, c_noise, label) - target).detach().square().mean()) < 0.2 * losses[0]
    model = ScoreModel(averaged, VPSDE(), predicts="v")
    model.save(tmp_path / "model")
    again = ScoreModel.load(tmp_path / "model")
    assert torch.equal(again.net(x, c_noise, label), averaged(x, c_noise, label))


def test_the_trainer_bears_it_and_without_normalising_weights_grow() -> None:
    data = normal((16, 1, 8), stream(3))
    grown = []
    for normalise in (True, False):
        net = awake(MagnitudeUNet(1, dims=1, width=8, multipliers=(1,)))
        trainer = Trainer(ScoreModel(net, VPSDE(), predicts="v"), learning_rate=2e-2, ema_decay=0.9)
        if not normalise:
            trainer.normalised = None
        for _ in range(20):
            trainer(data)
        trainer.ema.state_dict()  # which would refuse weights that are no longer those it began with
        grown.append(max(magnitude(weight) for weight in rows(net)))
    assert grown[0] == pytest.approx(1, abs=1e-5)
    assert grown[1] > 1.01


def test_training_restores_the_lengths_after_every_step() -> None:
    """Whatever the optimiser did, each stored weight has the magnitude that it began with."""
    net = MagnitudeUNet(1, dims=1, width=8, multipliers=(1, 2))
    trainer = Trainer(ScoreModel(net, VPSDE(), predicts="v"), learning_rate=0.1)
    for _ in range(3):
        trainer(torch.ones(4, 1, 8))
    after = [p.detach().clone() for p in net.parameters()]
    net.normalise_()
    for p, known in zip(net.parameters(), after, strict=True):
        torch.testing.assert_close(p.detach(), known, rtol=1e-6, atol=1e-7)
