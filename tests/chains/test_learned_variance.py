"""The learned variance through the real sampler."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import Net, gaussian
from learned import CHAIN, F64, TAPE, X, constant, learned, run, smooth
from torch import Tensor
from watchers import NoSync

from scoresde import (
    DDPM,
    SMLD,
    VESDE,
    VPSDE,
    ConfigError,
    ScoreModel,
    SolverError,
    Tableau,
    build_table,
    sample,
    solvers,
)
from scoresde.noise import TapeNoise
from scoresde.sampling.executor import _compiled, execute
from scoresde.sampling.part import Step
from scoresde.solvers.rows import Knot

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
