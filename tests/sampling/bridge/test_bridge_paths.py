"""Paths of the bridge through ``sample``: batches, ends, calls and conditions."""

from __future__ import annotations

import pytest
import torch
from bridge_laws import (
    F64,
    LINEAR,
    Relaxation,
    line,
    mixture,
    scaled,
    tape,
)
from helpers import Net
from torch import Tensor

from scoresde import (
    VPSDE,
    Gaussian,
    ProbabilityFlow,
    ScoreModel,
    sample,
)
from scoresde.noise import GeneratorNoise, stream
from scoresde.sampling import bridge
from scoresde.sampling.bridge.paths import DRAWS
from scoresde.solvers import grids

# ---------------------------------------------------------------------------------------------------------------------
# Randomness, ends, options


SHAPE = (5, 2)


def path(model: ScoreModel, **options: object) -> Tensor:
    method = options.pop("method", "euler")
    return sample(model, SHAPE, **{"solver": bridge.TorchSDE(method), "steps": 8, "dtype": F64, "seed": 4} | options)


@pytest.mark.parametrize("method", DRAWS)
def test_a_sample_is_the_same_in_any_batch(method: str) -> None:
    model = mixture(VPSDE())
    whole = path(model, method=method)
    assert torch.equal(whole, path(model, method=method))
    assert not torch.equal(whole, path(model, method=method, seed=5))
    torch.testing.assert_close(path(model, method=method, chunk_size=2), whole, rtol=1e-12, atol=1e-12)
    alone = sample(model, (1, 2), solver=bridge.TorchSDE(method), steps=8, dtype=F64, seed=4, first_sample=3)
    torch.testing.assert_close(alone[0], whole[3], rtol=1e-12, atol=1e-12)
    own = sample(model, SHAPE, solver=bridge.TorchSDE(method), steps=8, dtype=F64, seeds=[7, 1, 7, 9, 2])
    assert torch.equal(own[0], own[2])
    assert not torch.equal(own[0], own[1])


def test_simulate_and_sample_walk_the_same_path() -> None:
    model, times = mixture(VPSDE()), line(1.0, 0.01, 6)
    x = scaled(model.sde, SHAPE)
    states = bridge.simulate(model.sde.reverse(model), x, times, method="srk", seed=8)
    r = sample(
        model,
        x_init=x,
        solver=bridge.TorchSDE("srk"),
        times=times,
        seed=8,
        final="sample",
        trajectory=True,
        full_output=True,
    )
    assert torch.equal(states[0], x)
    torch.testing.assert_close(states[-1], r.x, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(states, r.trajectory, rtol=1e-13, atol=1e-13)
    assert r.times == tuple(times.tolist())
    # Substeps are steps: every second state of a grid twice as fine.
    half = bridge.simulate(model.sde.reverse(model), x, times[::2], method="srk", substeps=2, seed=8)
    torch.testing.assert_close(half, states[::2], rtol=1e-9, atol=1e-9)
    generator = stream(1)
    again = [bridge.simulate(LINEAR, x, line(0.1, 1, 3), noise=GeneratorNoise(g)) for g in (generator, stream(1))]
    assert torch.equal(*again)


def test_what_final_does_to_a_path() -> None:
    model, times = mixture(VPSDE()), line(1.0, 0.01, 6)
    x, noise = scaled(model.sde, SHAPE), tape(SHAPE, 6)
    runs = {
        final: sample(
            model, x_init=x, noise=noise, solver=bridge.TorchSDE(), times=times, final=final, full_output=True
        )
        for final in ("sample", "mean", "denoise")
    }
    torch.testing.assert_close(runs["denoise"].x, model(runs["sample"].x, 0.01).data, rtol=1e-12, atol=1e-12)
    assert runs["denoise"].times == (*times.tolist(), 0.0)
    assert [int(r.nfe[0]) for r in runs.values()] == [6, 6, 7]
    before = sample(model, x_init=x, noise=noise, solver=bridge.TorchSDE(), times=times[:-1], final="sample")
    mean = before - model.sde.reverse(model).drift(before, times[-2]) * (times[-2] - times[-1])
    torch.testing.assert_close(runs["mean"].x, mean, rtol=1e-12, atol=1e-12)
    # With steps= the last interval is the jump to clean data; dt is the longest step.
    counts = [
        int(sample(model, SHAPE, seed=0, solver=bridge.TorchSDE(dt=dt), full_output=True, **more).nfe[0])
        for dt, more in ((None, {"steps": 7}), (None, {"steps": 7, "final": "sample"}), (0.1, {}), (0.3, {}))
    ]
    assert counts == [7, 7, 11, 5]
    grid = sample(model, SHAPE, seed=0, solver=bridge.TorchSDE(), times=grids.log_snr(5), full_output=True)
    assert grid.times[:-1] == tuple(grids.log_snr(4)(model.sde).tolist())


def test_srk_evaluates_each_stage_once() -> None:
    net = Net(dtype=F64)
    r = sample(ScoreModel(net, VPSDE()), SHAPE, solver=bridge.TorchSDE("srk"), steps=6, seed=0, full_output=True)
    assert len(net.calls) == int(r.nfe[0]) == 5 * 3 + 1


def test_own_sde_with_prior_and_condition() -> None:
    class WithPrior(Relaxation):
        def prior(self, t: Tensor | float | None = None, moments: object = None) -> Gaussian:
            return Gaussian(torch.tensor(float(t)), torch.tensor(0.0))

    seen = []

    def score(x: Tensor, t: Tensor, shift: Tensor) -> Tensor:
        seen.append((t.dtype, t.shape, float(t[0])))
        return -(x - shift[:, None])

    sde, shift = WithPrior(t_min=0.1, t_max=1.2), torch.tensor([0.0, 5.0, 0.0])
    options = {"sde": sde, "cond": {"shift": shift}, "final": "sample", "seed": 0}
    x = sample(score, (3, 1), solver=bridge.TorchSDE(dt=0.1), **options)
    one = sample(score, (3, 1), solver=bridge.TorchSDE(dt=0.1), **options | {"cond": {"shift": shift[:1].expand(3)}})
    torch.testing.assert_close(x[[0, 2]], one[[0, 2]])
    assert float((x - one)[1].abs()) > 1
    assert seen[0] == (torch.float32, (3,), pytest.approx(1.2))
    start = sample(score, (3, 1), solver=ProbabilityFlow(), times=torch.tensor([1.2]), **options)
    torch.testing.assert_close(start, torch.full((3, 1), 1.2))
