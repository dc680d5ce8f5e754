"""Langevin dynamics towards any density: its exact biased law, the Metropolis test that takes the bias away, levels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import gaussian
from scipy import stats
from torch import Tensor

from scoresde import (
    VESDE,
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    EnergyModel,
    SampleResult,
    ShapeError,
    SolverError,
    langevin,
    sample,
    solvers,
)
from scoresde.noise import SampleNoise

F64 = torch.float64
X = torch.linspace(-1.6, 1.5, 12, dtype=F64).reshape(6, 2)


def energy(x: Tensor) -> Tensor:
    """Two wells in each coordinate, about one unit deep."""
    return (x**2 - 1).square().reshape(len(x), -1).sum(1)


def score(x: Tensor) -> Tensor:
    return -4 * x * (x**2 - 1)


@pytest.mark.parametrize("step", [0.05, 0.4, 1.1])
def test_the_law_on_a_gaussian_is_the_biased_one(step: float) -> None:
    """The weights of x and of every draw, read off the function: an AR(1) whose stationary variance is known."""
    mean, variance, n = 0.7, 0.6, 5
    unit = torch.eye(n + 2, dtype=F64)
    out = langevin(lambda x: -(x - mean) / variance, unit[1], step, n, noise=list(unit[2:]))
    constant, weights = out[0], (out - out[0])[1:]
    shrink = 1 - step / variance
    expected = [shrink**n, *(math.sqrt(2 * step) * shrink ** (n - 1 - k) for k in range(n))]
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-12, atol=1e-14)
    assert float(constant) == pytest.approx(mean * (1 - shrink**n), rel=1e-12)
    stationary = variance / (1 - step / (2 * variance))
    after = shrink ** (2 * n) * stationary + float(weights[1:].square().sum())
    assert after == pytest.approx(stationary, rel=1e-12)


def test_steps_are_those_of_the_formula_and_each_is_seen() -> None:
    tape = [torch.sin(3 * k + X) for k in range(4)]
    seen: list[Tensor] = []
    start = X.clone()
    out = langevin(score, X, 0.03, 4, noise=tape, on_step=lambda k, x: seen.append(x.clone() if k == len(seen) else x))
    x = X
    for z, state in zip(tape, seen, strict=True):
        x = x + 0.03 * score(x) + math.sqrt(0.06) * z
        torch.testing.assert_close(state, x, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(out, x, rtol=1e-13, atol=1e-14)
    assert torch.equal(X, start)


def test_seeds_give_each_sample_a_stream_of_its_own() -> None:
    """Draw 0 is a start state's, as in ``sample``; the steps' draws follow; half types come back as they were."""
    source = SampleNoise(5)
    source.rewind(1)
    tape = [torch.empty_like(X) for _ in range(6)]
    for z in tape:
        source.fill(z)
    assert torch.equal(langevin(score, X, 0.02, 3, seed=5), langevin(score, X, 0.02, 3, noise=tape[:3]))
    options = {"energy": energy, "full_output": True}
    for given in (None, score):
        result = langevin(given, X, 0.2, 3, seed=5, **options)
        assert torch.equal(result.x, langevin(given, X, 0.2, 3, noise=tape, **options).x)
        assert (result.seed, result.nfe.tolist()) == (5, [4] * 6)
    assert torch.equal(langevin(score, X[:2], 0.02, 3, seed=5), langevin(score, X, 0.02, 3, seed=5)[:2])
    for extra in ({}, {"energy": energy}):
        generator = torch.Generator().manual_seed(2)
        first = langevin(score, X, 0.1, 2, generator=generator, **extra)
        assert torch.equal(first, langevin(score, X, 0.1, 2, generator=torch.Generator().manual_seed(2), **extra))
        assert not torch.equal(first, langevin(score, X, 0.1, 2, generator=generator, **extra))
        assert langevin(score, X.half(), 0.1, 2, seed=0, **extra).dtype == torch.float16
        result = langevin(score, X, 0.1, 2, full_output=True, **extra)
        assert torch.equal(langevin(score, X, 0.1, 2, seed=result.seed, **extra), result.x)


def test_metropolis_by_hand() -> None:
    """Six tested steps, written out with the densities themselves; every sample refuses some and accepts some."""
    step = 0.35
    tape = [torch.cos(7 * k * X + k) * (1.1 if k % 2 == 0 else 1.5) for k in range(12)]
    seen: list[Tensor] = []
    result = langevin(
        None, X, step, 6, energy=energy, noise=tape, full_output=True, on_step=lambda k, x: seen.append(x.clone())
    )
    assert isinstance(result, SampleResult)
    x, count = X, torch.zeros(6, dtype=torch.long)

    def transition(a: Tensor, b: Tensor) -> Tensor:
        return (-(b - a - step * score(a)).square().sum(1) / (4 * step)).exp()

    for k in range(6):
        proposal = x + step * score(x) + math.sqrt(2 * step) * tape[2 * k]
        ratio = (energy(x) - energy(proposal)).exp() * transition(proposal, x) / transition(x, proposal)
        taken = torch.special.ndtr(tape[2 * k + 1][:, 0]) < ratio
        x, count = torch.where(taken[:, None], proposal, x), count + taken
        torch.testing.assert_close(seen[k], x, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(result.x, x, rtol=1e-12, atol=1e-13)
    assert torch.equal(result.accepted, count)
    assert torch.equal(result.rejected, 6 - count)
    assert 6 <= int(count.sum()) <= 30


def double_well() -> tuple[np.ndarray, np.ndarray]:
    """The distribution function of exp(-(x^2 - 1)^2) on a fine grid."""
    x = np.linspace(-3.0, 3.0, 60_001)
    p = np.exp(-((x**2 - 1) ** 2))
    cdf = np.concatenate([[0.0], np.cumsum((p[1:] + p[:-1]) / 2)])
    return x, cdf / cdf[-1]


def test_the_tested_steps_keep_a_density_that_is_no_gaussian() -> None:
    """From exact draws, ten steps so large that untested ones leave the law: Kolmogorov and Smirnov's statistic."""
    grid, cdf = double_well()

    def p_value(seed: int, count: int, step: float = 0.15, **options: object) -> tuple[float, float]:
        start = torch.empty(count, 1, dtype=F64)
        SampleNoise(seed).fill(start)
        start = torch.from_numpy(np.interp(torch.special.ndtr(start).numpy(), cdf, grid))
        result = langevin(score, start, step, 10, seed=seed, full_output=True, **options)
        test = stats.kstest(result.x[:, 0].numpy(), lambda x: np.interp(x, grid, cdf))
        return float(test.pvalue), float(result.accepted.double().mean()) / 10

    n = 10_000
    # Stage one at 1e-3; on rejection a fresh seed, eight times the samples and 1e-5.
    p, acceptance = p_value(1, n, energy=energy)
    assert p > 1e-3 or p_value(2, 8 * n, energy=energy)[0] > 1e-5
    assert 0.3 < acceptance < 0.9
    assert p_value(1, n, 0.05)[0] < 1e-6  # at 0.15 untested steps leave for infinity


def test_levels_are_those_of_the_annealed_solver() -> None:
    model, times = gaussian(VPSDE()), torch.tensor([0.9, 0.5, 0.1], dtype=F64)
    x = torch.linspace(-1, 1, 5, dtype=F64)
    seen = []
    got = langevin(model, x, 0.2, 3, times=times, seed=4, on_step=lambda k, x: seen.append(k))
    solver = solvers.annealed_langevin(repeats=3, step=0.2)
    expected = sample(model, x_init=x, solver=solver, times=times, seed=4, final="sample")
    assert torch.equal(got, expected)
    assert seen == list(range(9))


def test_a_model_at_a_fixed_time_is_a_density_like_others() -> None:
    """The energy of an EnergyModel, and its score, in the model's coordinates."""
    sde = VESDE(sigma_min=0.05, sigma_max=5.0)
    model = EnergyModel(lambda x, c: 0.5 * (x / torch.sigmoid(-c)[:, None].sqrt()).square().sum(1), sde)
    tape = [torch.sin(3 * k + X) for k in range(4)]
    got = langevin(None, X, 0.01, 2, energy=lambda x: model.energy(x, 0.5), noise=tape)
    variance = float(sde.sigma(0.5)) ** 2
    by_hand = langevin(
        lambda x: -x / variance, X, 0.01, 2, energy=lambda x: 0.5 * x.square().sum(1) / variance, noise=tape
    )
    torch.testing.assert_close(got, by_hand, rtol=1e-9, atol=1e-10)


TIMES = torch.tensor([0.9, 0.5], dtype=F64)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: langevin(score, X.long(), 0.1, 1), DTypeError, "x must have a real floating dtype"),
        (lambda: langevin(score, X / 0, 0.1, 1), DomainError, "x has 12 non-finite values"),
        (lambda: langevin(score, X, 0.0, 1), DomainError, r"step must lie in \(0, inf\)"),
        (lambda: langevin(score, X, 0.1, 0), DomainError, "n must be at least 1"),
        (lambda: langevin(gaussian(), X, 0.1, 1), ConfigError, "a ScoreModel and times= go together"),
        (lambda: langevin(score, X, 0.1, 1, times=TIMES), ConfigError, "a ScoreModel and times= go together"),
        (lambda: langevin(gaussian(), X, 2.0, 1, times=TIMES), DomainError, r"step must lie in \(0, 2\)"),
        (lambda: langevin(gaussian(), X, 0.1, 1, times=TIMES, energy=energy), ConfigError, "energy is that of one"),
        (lambda: langevin(None, X, 0.1, 1), DTypeError, "score must be a function of x"),
        (lambda: langevin(score, X, 0.1, 1, cond={}), DTypeError, "cond= goes with a ScoreModel"),
        (lambda: langevin(score, X, 0.1, 1, energy=3), DTypeError, "energy must be a function"),
        (lambda: langevin(None, X, 0.1, 1, energy=lambda x: x), ShapeError, "energy must return one number a sample"),
        (lambda: langevin(lambda x: x[:, :1], X, 0.1, 1, energy=energy), ShapeError, "the score must have the shape"),
        (lambda: langevin(lambda x: x[:, :1], X, 0.1, 1), ShapeError, "must return x's shape"),
        (lambda: langevin(None, X, 0.1, 1, energy=energy, seed=0, noise=[]), ConfigError, "one source of randomness"),
        (lambda: langevin(None, X, 0.1, 1, energy=energy, noise=[X]), ShapeError, "holds 1 tensors, 2 are needed"),
        (lambda: langevin(None, X, 0.1, 1, energy=energy, noise=[X[:1]] * 2), ShapeError, r"noise\[0\] has shape"),
        (lambda: langevin(None, X, 0.1, 1, energy=energy, generator=3), DTypeError, "generator must be a torch"),
        (lambda: langevin(score, X, 0.1, 1, noise=[]), ShapeError, "noise holds 0 tensors"),
        (
            lambda: langevin(score, 50 * X, 1.0, 12, seed=0),
            SolverError,
            "not finite with step = 1: lower",
        ),
    ],
)
def test_faults(call, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        call()


def test_a_step_that_diverges_is_refused_by_the_test() -> None:
    """Where a proposal has no finite density the sample stays."""
    far = 50 * X
    assert torch.equal(langevin(None, far, 1e150, 3, energy=energy, seed=0), far)
