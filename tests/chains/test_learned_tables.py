"""Tables and networks of a learned variance, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import Net
from learned import CHAIN, X, constant, learned, smooth
from torch import nn

from scoresde import (
    VESDE,
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    ScoreModel,
    ShapeError,
    Tableau,
    sample,
    solvers,
)
from scoresde.models import checkpoint
from scoresde.nn import MLP, UNet
from scoresde.noise import normal, stream
from scoresde.solvers.rows import Knot, Row

# ---------------------------------------------------------------------------------------------------------------------
# The table


def test_tables_keep_their_spread() -> None:
    table = CHAIN.ancestral(variance="learned")
    again = Tableau.from_json(table.to_json())
    assert again == table
    assert again.rows[0].spread == table.rows[0].spread
    older = json.loads(CHAIN.ancestral().to_json())
    for row in older["rows"]:
        del row["spread"]
    assert Tableau.from_json(json.dumps(older)) == CHAIN.ancestral()
    assert "to" in str(table).splitlines()[2]
    assert table.stochastic
    assert table.spread
    assert not CHAIN.ancestral().spread
    short = replace(table, rows=table.rows[:-1], end=table.rows[-1].at)
    assert short.without_last_noise().rows[-1].spread is None
    assert not short.without_last_noise().rows[-1].draws
    assert short.denoised().rows[:-1] == short.rows


def test_a_law_needs_a_fraction() -> None:
    table = CHAIN.ancestral(variance="learned")
    with pytest.raises(ConfigError, match=r"depends on the network; take its table.at_fraction\(v\)"):
        table.law()
    with pytest.raises(ConfigError, match="depends on the network"):
        table.affine_map()
    for v, variance in ((0.0, "small"), (1.0, "large")):
        assert table.at_fraction(v).rows == CHAIN.ancestral(variance=variance).rows
    assert CHAIN.ddim().at_fraction(0.3) == CHAIN.ddim()
    with pytest.raises(DomainError, match="fraction must lie in"):
        table.at_fraction(math.nan)
    with pytest.raises(DTypeError, match="fraction must be a number"):
        table.at_fraction("v")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spread": (0.2, 0.3)}, "noise\\[0\\] is small"),
        ({"spread": (0.1, 0.0)}, "both positive and finite"),
        ({"spread": (0.1, math.inf)}, "both positive and finite"),
        ({"spread": (0.1, 0.3), "noise": ()}, "noise\\[0\\] is small"),
        ({"spread": (0.1, 0.3), "anchor": (1.0,)}, "the new state is the anchor"),
    ],
    ids=str,
)
def test_spreads_that_mean_nothing(change: dict, message: str) -> None:
    top, end = Knot(1.0, 0.6, 0.8), Knot(0.5, 0.8, 0.6)
    row = Row(top, (1.0, 0.1), noise=(0.1,))
    with pytest.raises(ConfigError, match=message):
        Tableau("odd", "data", (replace(row, **change),), top, end, 1.0)


def test_a_spread_draw_is_not_used_again() -> None:
    top, end = Knot(1.0, 0.6, 0.8), Knot(0.5, 0.8, 0.6)
    plain = Row(top, (1.0, 0.1), noise=(0.1,))
    spread, again = replace(plain, spread=(0.1, 0.2)), replace(plain, noise=(0.1, 0.2))
    for rows in ((spread, again), (plain, spread, replace(plain, noise=(0.0, 0.3)))):
        with pytest.raises(ConfigError, match="uses a draw again that an earlier row has spread"):
            Tableau("odd", "data", rows, top, end, 1.0)
    Tableau("even", "data", (spread, plain, again), top, end, 1.0)
    Tableau("even", "data", (spread, plain, replace(plain, noise=(0.1, 0.2, 0.0))), top, end, 1.0)


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_other_reverse_processes_learn_none(eta: float) -> None:
    with pytest.raises(DomainError, match="the learned variance belongs to eta = 1"):
        solvers.ancestral(variance="learned", eta=eta)


# ---------------------------------------------------------------------------------------------------------------------
# The model


def test_a_prediction_has_both_halves() -> None:
    model = learned(lambda x, c: 0.25 * x)
    seen = model(X, 0.3)
    torch.testing.assert_close(seen.variance_fraction, 0.25 * X, rtol=0, atol=1e-7)
    plain = ScoreModel(smooth, VPSDE())(X, 0.3)
    assert plain.variance_fraction is None
    for name in ("data", "noise", "score", "v", "velocity"):
        assert torch.equal(getattr(seen, name), getattr(plain, name))
    assert model(X[:0], 0.3).variance_fraction.shape == (0, 3)
    assert torch.equal(model.outputs(X, torch.ones(4), None)[0], smooth(X, torch.ones(4)))
    moved = model.with_sde(VESDE())
    assert moved.variance == "learned"
    assert moved(X, 0.3).variance_fraction is not None


@pytest.mark.parametrize("event", [(2,), (2, 5), (2, 4, 4), (2, 2, 3, 4)], ids=str)
def test_halves_are_channels(event: tuple[int, ...]) -> None:
    x = normal((3, *event), stream(0))
    seen = ScoreModel(lambda x, c: torch.cat([x, 2 * x - 1], 1), VPSDE(), variance="learned")(x, 0.5)
    assert torch.equal(seen.noise, x)
    torch.testing.assert_close(seen.variance_fraction, x, rtol=0, atol=1e-6)


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match=r"x must be \(B, C, \*\) where the variance is learned, got \(4,\)"):
        learned(constant(0.5))(torch.zeros(4), 0.5)
    net = Net()
    with pytest.raises(ShapeError, match=r"must be \(B, C, \*\)"):
        sample(ScoreModel(net, VPSDE(), variance="learned"), (4,), solver="ancestral", seed=0)
    assert net.calls == []
    with pytest.raises(ShapeError, match=r"must return shape \(4, 6\), twice x's channels.*; got \(4, 3\)"):
        ScoreModel(smooth, VPSDE(), variance="learned")(X, 0.5)
    with pytest.raises(ShapeError, match=r"got \(4, 6\); pass variance=\"learned\""):
        ScoreModel(lambda x, c: torch.cat([x, x], 1), VPSDE())(X, 0.5)
    with pytest.raises(ConfigError, match="unknown variance of a model 'learnt'; did you mean 'learned'"):
        ScoreModel(smooth, VPSDE(), variance="learnt")


@pytest.mark.parametrize(
    "make", [lambda **k: MLP((2, 3), width=8, depth=1, **k), lambda **k: UNet(2, dims=1, width=8, **k)]
)
def test_networks_with_more_channels_hold_those_with_fewer(make: Callable[..., nn.Module]) -> None:
    """The first channels are the ordinary network's, with its part linear in x; the others have their own weights."""
    plain, wide = make(), make(out_channels=4)
    with torch.no_grad():
        for k, p in enumerate(plain.parameters()):
            p.copy_(0.3 * normal(p.shape, stream(k)))
        theirs = wide.state_dict()
        for name, p in plain.state_dict().items():
            theirs[name][: len(p)].copy_(p)
    x, c = normal((3, 2, 3), stream(9)), torch.tensor([-2.0, 0.0, 3.0])
    out = wide(x, c)
    assert out.shape == (3, 4, 3)
    torch.testing.assert_close(out[:, :2], plain(x, c))
    assert not out[:, 2:].any()
    assert wide.config["out_channels"] == 4
    with pytest.raises(DomainError, match="out_channels must be at least 2, got 1"):
        make(out_channels=1)


def test_an_event_without_channels_takes_no_more_of_them() -> None:
    with pytest.raises(ConfigError, match="out_channels needs an event_shape with a first size"):
        MLP((), out_channels=2)


@pytest.mark.parametrize(
    "net", [MLP((3,), width=8, out_channels=6), UNet(3, width=8, out_channels=6)], ids=["mlp", "unet"]
)
def test_a_checkpoint_keeps_the_learned_variance(tmp_path: Path, net: nn.Module) -> None:
    with torch.no_grad():
        for k, p in enumerate(net.parameters()):
            p.add_(0.1 * normal(p.shape, stream(k)))
    model = ScoreModel(net, VPSDE(), variance="learned")
    model.save(tmp_path / "m")
    loaded = ScoreModel.load(tmp_path / "m")
    assert loaded.variance == "learned"
    x = X if isinstance(net, MLP) else normal((2, 3, 4, 4), stream(1))
    assert torch.equal(loaded(x, 0.4).variance_fraction, model(x, 0.4).variance_fraction)
    model.with_sde(VESDE()).save(tmp_path / "other")
    assert ScoreModel.load(tmp_path / "other").variance == "learned"


def test_an_older_checkpoint_has_a_fixed_variance(tmp_path: Path) -> None:
    documents, tensors = ScoreModel(MLP(3, width=8), VPSDE()).contents()
    del documents["model"]["variance"]
    del documents["model"]["network"]["config"]["out_channels"]
    checkpoint.write(tmp_path, documents, tensors)
    assert ScoreModel.load(tmp_path).variance == "fixed"
