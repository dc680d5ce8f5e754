"""Learned variance: what the network's second half does, in the model, in a row, in the loop and in a checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Net, gaussian
from torch import Tensor, nn
from watchers import NoSync

from scoresde import (
    DDPM,
    SMLD,
    VESDE,
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    ScoreModel,
    ShapeError,
    SolverError,
    Tableau,
    build_table,
    sample,
    solvers,
)
from scoresde.models import checkpoint
from scoresde.nn import MLP, UNet
from scoresde.noise import TapeNoise, normal, stream
from scoresde.sampling.executor import _compiled, execute
from scoresde.sampling.part import Step
from scoresde.solvers.rows import Knot, Row

F64 = torch.float64
X = torch.linspace(-1.5, 1.5, 12).reshape(4, 3)
TAPE = [torch.cos(3.0 * k + 2 * X) for k in range(40)]
CHAIN = DDPM.cosine(7)
Fraction = Callable[[Tensor, Tensor], Tensor]


class Wide(nn.Module):
    """A network F with a second half that says v(x, c_noise)."""

    def __init__(self, net: Callable[..., Tensor], fraction: Fraction) -> None:
        super().__init__()
        self.net, self.fraction = net, fraction

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        v = self.fraction(x, c_noise).expand_as(x)
        return torch.cat([self.net(x, c_noise), 2 * v - 1], 1)


def smooth(x: Tensor, c_noise: Tensor) -> Tensor:
    return torch.tanh(x + 0.1 * c_noise.reshape(-1, *(1,) * (x.ndim - 1)).to(x))


def constant(v: float) -> Fraction:
    return lambda x, c: torch.full_like(x, v)


def learned(fraction: Fraction, net: Callable[..., Tensor] = smooth, **options: object) -> ScoreModel:
    return ScoreModel(Wide(net, fraction), options.pop("sde", VPSDE()), variance="learned", **options)


def run(model: ScoreModel, table: Tableau, x: Tensor = X, **options: object) -> Tensor:
    out = sample(model, x_init=x, solver=table, final="sample", noise=[z.to(x) for z in TAPE], **options)
    assert isinstance(out, Tensor)
    return out


# ---------------------------------------------------------------------------------------------------------------------
# The sampler


@pytest.mark.parametrize("v", [0.0, 1.0])
@pytest.mark.parametrize(
    "options", [{}, {"differentiable": True}, {"chunk_size": 3}, {"on_nonfinite": "freeze"}], ids=str
)
@pytest.mark.parametrize("build", ["chain", "smld", "solver"])
def test_the_ends_are_the_small_and_the_large_variance_to_the_last_bit(build: str, options: dict, v: float) -> None:
    def table(variance: str) -> Tableau:
        if build == "solver":
            return build_table(VESDE(), solvers.ancestral(variance=variance), steps=6)
        return (CHAIN if build == "chain" else SMLD.geometric(7)).ancestral(variance=variance)

    x = 50 * X if build != "chain" else X
    expected = run(ScoreModel(smooth, VPSDE()), table("large" if v else "small"), x)
    assert torch.equal(run(learned(constant(v)), table("learned"), x, **options), expected)
    assert not torch.equal(run(learned(constant(1 - v)), table("learned"), x, **options), expected)


@pytest.mark.parametrize("v", [-0.3, 0.0, 0.4999, 0.5, 0.7, 1.0, 1.2])
def test_the_law_at_a_constant_fraction_is_the_hand_written_recursion(v: float) -> None:
    """Gaussian data, Ho's means and Nichol and Dhariwal's equation 15, from the betas alone."""
    mean, variance, chain = 0.7, 0.25, DDPM.cosine(9)
    exact = gaussian(chain.sde(), mean, variance)
    model = learned(constant(v), exact.net, sde=exact.sde, predicts=exact.parameterization)
    bar = torch.cumprod(1 - chain.betas, 0).tolist()
    before, beta = [1.0, *bar[:-1]], chain.betas.tolist()
    weights = np.eye(2 + len(beta))  # of the state on 1, on the start state and on each draw
    x = weights[1]
    for k, i in enumerate(reversed(range(len(beta)))):
        gain = math.sqrt(bar[i]) * variance / (bar[i] * variance + 1 - bar[i])
        data = mean * weights[0] + gain * (x - math.sqrt(bar[i]) * mean * weights[0])
        x = (
            math.sqrt(1 - beta[i]) * (1 - before[i]) / (1 - bar[i]) * x
            + math.sqrt(before[i]) * beta[i] / (1 - bar[i]) * data
        )
        if i:
            small = beta[i] * (1 - before[i]) / (1 - bar[i])
            x = x + math.exp(0.5 * (v * math.log(beta[i]) + (1 - v) * math.log(small))) * weights[2 + k]
    table = chain.ancestral(variance="learned")
    unit = torch.eye(1 + len(beta), dtype=F64)[:, :, None]
    out = sample(model, x_init=unit[:, 0], noise=list(unit[:, 1:].unbind(1)), solver=table, final="sample")
    none = sample(model, x_init=unit[:1, 0] * 0, noise=list(unit[:1, 1:].unbind(1)), solver=table, final="sample")
    got = np.array([float(none), *(out - none).flatten().tolist()])
    np.testing.assert_allclose(got, x, rtol=1e-11, atol=1e-13)
    assert got[-1] == 0.0
    law = table.at_fraction(v).law(mean, variance, (0.0, 1.0))
    np.testing.assert_allclose(law, (got[0], (got[1:] ** 2).sum()), rtol=1e-12)


def test_every_coordinate_has_a_variance_of_its_own() -> None:
    """A fraction that depends on x, on the time and on the coordinate, against the chain's own reverse law."""
    chain = DDPM.linear(30, beta_end=0.3)

    def fraction(x: Tensor, c: Tensor) -> Tensor:
        return torch.sigmoid(3 * x + 0.2 * c[:, None]) * torch.tensor([-0.4, 0.9, 1.3]).to(x)

    model, x = learned(fraction), X.double()
    state = x
    for k, i in enumerate(reversed(range(len(chain)))):
        seen = model.at(state, chain.points[i + 1])
        mean, std = chain.reverse(seen.data, state, i, variance="learned", fraction=seen.variance_fraction)
        state = mean + std * TAPE[k].double() if i else mean
    torch.testing.assert_close(run(model, chain.ancestral(variance="learned"), x), state, rtol=1e-11, atol=1e-12)


def test_strided_and_denoised_tables() -> None:
    table = CHAIN.ancestral(variance="learned", steps=3)
    assert [row.spread is None for row in table.rows] == [False, False, True]
    assert table.rows[-1].noise == ()
    late, early = CHAIN.strided(3).points[torch.tensor([3, 2])], CHAIN.strided(3).points[torch.tensor([2, 1])]
    gone = -torch.expm1(late.log_snr - early.log_snr)
    expected = torch.stack([early.sigma * gone.sqrt(), late.sigma * gone.sqrt()], 1)
    np.testing.assert_allclose([row.spread for row in table.rows[:2]], expected.numpy(), rtol=1e-14)
    built = build_table(VPSDE(), solvers.ancestral(variance="learned"), steps=5)
    assert [row.spread is None for row in built.rows] == [False] * 4 + [True]
    assert built.order == solvers.ancestral(variance="large")(VPSDE(), torch.tensor([1.0, 0.5])).order


def test_out_of_no_signal() -> None:
    """alpha = 0 at the start: the small variance is sigma_s^2, the large one sigma_t^2."""
    knots = [Knot(1.0, 0.0, 1.0), Knot(0.5, 0.6, 0.8)]
    table = solvers.ancestral(variance="learned")(_Zero(), torch.tensor([1.0, 0.5], dtype=F64))
    assert (table.start.alpha, table.end) == (0.0, knots[1])
    assert table.rows[0].spread == pytest.approx((0.8, 1.0))


class _Zero(VPSDE):
    """A line in alpha that starts at 0."""

    def alpha(self, t: Tensor | float) -> Tensor:
        return (1 - torch.as_tensor(t, dtype=F64)) * 1.2

    def sigma(self, t: Tensor | float) -> Tensor:
        return (1 - self.alpha(t) ** 2).sqrt()

    def log_snr(self, t: Tensor | float) -> Tensor:
        return 2 * (self.alpha(t).log() - self.sigma(t).log())


def test_gradients_reach_the_fraction() -> None:
    table, x = CHAIN.ancestral(variance="learned"), X.double()

    def end(v: Tensor) -> Tensor:
        return run(learned(lambda state, c: v), table, x, differentiable=True)

    v = torch.tensor([0.2, 0.6, 1.4], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(end, (v,), rtol=1e-6)
    assert float(torch.autograd.grad(end(v).sum(), v)[0].abs().min()) > 1e-3


def test_the_loop_waits_for_no_device() -> None:
    table, seen = CHAIN.ancestral(variance="learned"), list[Tensor]()
    for x in (X.clone(), torch.empty(4, 3, device="meta")):
        prepared = learned(lambda state, c: torch.sigmoid(state)).prepare(table.points, x)
        prepared.weights(table.prediction)
        with NoSync():
            out = execute(
                table,
                prepared,
                x,
                TapeNoise([z.to(x.device) for z in TAPE], 1),
                observers=[lambda step: seen.append(step.prediction.variance_fraction)],
            )
        assert out.shape == x.shape
    assert [v.shape for v in seen] == [X.shape] * 14


def test_a_long_table_needs_no_more_memory() -> None:
    sizes = []
    for n in (5, 50):
        table = DDPM.cosine(n).ancestral(variance="learned")
        sizes.append(_compiled(table, (0.5,) * n, (0.5,) * n).size)
    assert sizes[0] == sizes[1]


def test_what_an_observer_sees() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def watch(step: Step) -> None:
        assert step.prediction.variance_fraction is not None
        seen.append((step.prediction.x.sin(), step.prediction.variance_fraction))

    run(learned(lambda x, c: x.sin()), CHAIN.ancestral(variance="learned"), on_step=watch)
    assert len(seen) == len(CHAIN)
    for expected, got in seen:
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_a_half_network_serves_a_wide_state() -> None:
    """Its v is rounded to bf16, which is all that differs."""

    def net(x: Tensor, c_noise: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x), torch.full_like(x, 0.3)], 1)

    class Narrow(Net):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return net(x, c_noise)

    table = CHAIN.ancestral(variance="learned")
    half = run(ScoreModel(Narrow(dtype=torch.bfloat16), VPSDE(), variance="learned"), table)
    v = (float(torch.tensor(0.3, dtype=torch.bfloat16)) + 1) / 2
    torch.testing.assert_close(half, run(learned(constant(v), lambda x, c: 0 * x), table), rtol=1e-5, atol=1e-6)
    # A float32 network under a float64 state costs its own rounding only, not the coefficient's.
    single = run(ScoreModel(Narrow(), VPSDE(), variance="learned"), table, X.double())
    v = float((torch.tensor(0.3) + 1) / 2)
    expected = run(learned(constant(v), lambda x, c: 0 * x), table, X.double())
    torch.testing.assert_close(single, expected, rtol=1e-12, atol=1e-13)


def test_a_fraction_that_is_no_number_is_found() -> None:
    with pytest.raises(SolverError, match="step 0 of ancestral"):
        run(learned(lambda x, c: torch.where(x == x[1, 1], math.nan, 0.3)), CHAIN.ancestral(variance="learned"))


def test_a_model_without_a_learned_variance_is_refused_before_any_call() -> None:
    net = Net()
    for table in (CHAIN.ancestral(variance="learned"), build_table(VPSDE(), solvers.ancestral(variance="learned"))):
        with pytest.raises(ConfigError, match=r'takes its variance from the network.*variance="learned"\), or use the'):
            run(ScoreModel(net, VPSDE()), table)
    assert net.calls == []
    # The other way round there is nothing to refuse: the second half is not read.
    assert torch.equal(run(learned(constant(0.4)), CHAIN.ddim()), run(ScoreModel(smooth, VPSDE()), CHAIN.ddim()))


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
