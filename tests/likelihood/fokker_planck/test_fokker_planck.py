"""The Fokker-Planck solver: exact laws, orders, positivity and mass; one density for three processes; samplers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from helpers import SDES, slope
from scipy import linalg, stats
from torch import Tensor

from scoresde import (
    SDE,
    VESDE,
    VPSDE,
    ConfigError,
    Densities,
    DomainError,
    DTypeError,
    GaussianMixtureModel,
    RectifiedFlow,
    ShapeError,
    SolverError,
    evolve_density,
    plots,
    sample,
)
from scoresde.noise import SampleNoise

F64 = torch.float64
Density = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Linear(SDE):
    """dx = A (x - m) dt + g dw."""

    matrix: tuple[tuple[float, ...], ...] = ((-1.0,),)
    centre: tuple[float, ...] = (0.0,)
    g: float = 1.0

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        return (x - torch.tensor(self.centre, dtype=x.dtype)) @ torch.tensor(self.matrix, dtype=x.dtype).T

    def diffusion(self, t: Tensor | float) -> Tensor:
        return self.g * torch.ones_like(torch.as_tensor(t))


@dataclass(frozen=True, eq=False)
class DoubleWell(SDE):
    """Two wells of depth 1/(2 g^2) at -1 and 1."""

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        return x - x**3

    def diffusion(self, t: Tensor | float) -> Tensor:
        return 0.7 * torch.ones_like(torch.as_tensor(t))


def normal(mean: Tensor, covariance: Tensor) -> Density:
    law = torch.distributions.MultivariateNormal(mean, covariance, validate_args=False)
    return lambda x: law.log_prob(x).exp()


def mixture(sde: SDE, d: int = 1) -> GaussianMixtureModel:
    means = torch.tensor([[-1.0, 0.3], [0.8, -0.4]], dtype=F64)[:, :d]
    return GaussianMixtureModel(sde=sde, weights=torch.tensor([0.3, 0.7]), means=means, std=0.4)


def exact(model: GaussianMixtureModel, t: float) -> Density:
    return lambda x: model.log_prob(x, t).exp()


def distance(got: Densities, k: int, density: Density) -> float:
    """Sum of absolute differences of probability at the k-th time."""
    x = torch.stack(torch.meshgrid(*got.axes, indexing="ij"), -1).reshape(-1, len(got.axes))
    return float((got.values[k].reshape(-1) - density(x)).abs().sum()) * got.volume


def test_the_stationary_law_of_a_linear_drift_is_exact() -> None:
    """On cells of six tenths of a standard deviation and over steps of any size."""
    line = Linear(matrix=((-0.8,),), centre=(0.3,), g=1.3, t_max=100.0)
    law = normal(torch.tensor([0.3], dtype=F64), torch.tensor([[1.3**2 / 1.6]], dtype=F64))
    got = evolve_density(line, law, [(-6.0, 6.0, 20)], torch.tensor([0.1, 1.0, 90.0], dtype=F64), steps=2)
    torch.testing.assert_close(got.values[1:], got.values[:1].expand(2, -1), rtol=1e-10, atol=1e-13)
    plane = Linear(matrix=((-0.8, 0.0), (0.0, -2.0)), centre=(0.0, 0.2), g=1.0, t_max=100.0)
    law = normal(torch.tensor([0.0, 0.2], dtype=F64), torch.diag(torch.tensor([1 / 1.6, 0.25], dtype=F64)))
    box = [(-5.0, 5.0, 24), (-3.0, 3.5, 28)]
    got = evolve_density(plane, law, box, torch.tensor([0.1, 90.0], dtype=F64), steps=3)
    torch.testing.assert_close(got.values[1], got.values[0], rtol=1e-10, atol=1e-13)


CASES = {
    "vp forward": (SDES["vp"], False, (0.02, 0.4), 5.0),
    "ve forward": (VESDE(sigma_min=0.05, sigma_max=3.0), False, (0.1, 0.8), 12.0),
    "vp reverse": (SDES["vp"], True, (0.9, 0.05), 5.0),
    "ve reverse": (VESDE(sigma_min=0.05, sigma_max=3.0), True, (0.8, 0.1), 12.0),
}


@pytest.mark.parametrize("case", CASES)
def test_order_two_in_the_cells(case: str) -> None:
    """Against the exact marginals of a mixture."""
    sde, reverse, times, half = CASES[case]
    model = mixture(sde)
    process = sde.reverse(model) if reverse else sde
    counts = [round(half * c) for c in (12, 20, 32)]
    errors = []
    for count in counts:
        got = evolve_density(
            process, exact(model, times[0]), [(-half, half, count)], torch.tensor(times, dtype=F64), tolerance=3e-5
        )
        errors.append(distance(got, 1, exact(model, times[1])))
    assert slope(errors, counts) == pytest.approx(2.0, abs=0.15), errors
    assert errors[-1] < 2e-3


@pytest.mark.parametrize(("name", "reverse"), [("vp", False), ("vp", True), ("sub_vp", False)])
def test_order_two_in_time(name: str, reverse: bool) -> None:
    """Against many steps on the same cells."""
    sde = SDES[name]
    model = mixture(sde)
    process, times = (sde.reverse(model), (0.5, 0.2)) if reverse else (sde, (0.2, 0.5))
    box, ends = [(-5.0, 5.0, 100)], torch.tensor(times, dtype=F64)
    best = evolve_density(process, exact(model, times[0]), box, ends, steps=400).values[1]
    counts, errors = [20, 40, 80], []
    for steps in counts:
        got = evolve_density(process, exact(model, times[0]), box, ends, steps=steps)
        assert got.steps == steps
        errors.append(float((got.values[1] - best).abs().sum()) * got.volume)
    assert slope(errors, counts) == pytest.approx(2.0, abs=0.2), errors


def test_one_density_for_three_processes() -> None:
    """Forward SDE, reverse SDE and probability flow have the exact mixture's marginals at every time.

    The flow has no diffusion of its own; its error is of order two in the cells as the others' is.
    """
    sde = VPSDE()
    model = mixture(sde)
    times = torch.tensor([0.01, 0.1, 0.3, 0.6, 1.0], dtype=F64)
    options = {"box": [(-6.0, 6.0, 600)], "tolerance": 3e-4}
    forward = evolve_density(sde, exact(model, 0.01), times=times, **options)
    backward = evolve_density(sde.reverse(model), exact(model, 1.0), times=times.flip(0), **options)
    half = evolve_density(sde.reverse(model, eta=0.5), exact(model, 1.0), times=times.flip(0), **options)
    for k, t in enumerate(times.tolist()):
        for got, place in ((forward, k), (backward, 4 - k), (half, 4 - k)):
            assert distance(got, place, exact(model, t)) < 1e-3, (t, place)
    for ends in (times, times.flip(0)):
        errors = []
        for count in (150, 300):
            flow = evolve_density(
                sde.reverse(model, eta=0.0), exact(model, float(ends[0])), [(-6.0, 6.0, count)], ends, tolerance=3e-4
            )
            errors.append([distance(flow, k, exact(model, float(ends[k]))) for k in range(1, 5)])
        assert max(errors[-1]) < 6e-3, errors
        for row in np.array(errors).T[np.array(errors[0]) > 1e-3]:  # below, the time steps' error shows
            assert slope(list(row), [150, 300]) == pytest.approx(2.0, abs=0.4), errors


def moments(sde: Linear, mean: np.ndarray, covariance: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance after a time t, from matrix exponentials (Van Loan's block form for the noise)."""
    a, d = np.array(sde.matrix), len(mean)
    flow = linalg.expm(a * t)
    block = linalg.expm(np.block([[-a, sde.g**2 * np.eye(d)], [np.zeros((d, d)), a.T]]) * t)
    noise = block[d:, d:].T @ block[:d, d:]
    return np.array(sde.centre) + flow @ (mean - np.array(sde.centre)), flow @ covariance @ flow.T + noise


def test_a_rotating_drift_in_the_plane() -> None:
    """Neither direction's flow commutes with the other's: the exact Gaussian, and the splitting's order."""
    sde = Linear(matrix=((-1.0, 2.5), (-2.5, -1.0)), centre=(0.2, 0.0), g=0.8)
    mean, covariance = np.array([1.2, 0.3]), np.array([[0.3, 0.1], [0.1, 0.15]])
    start = normal(torch.from_numpy(mean), torch.from_numpy(covariance))
    times = torch.tensor([0.1, 0.6], dtype=F64)
    box = [(-2.6, 4.0, 66), (-3.8, 3.2, 70)]
    best = evolve_density(sde, start, box, times, steps=160)
    counts, errors = [10, 20, 40], []
    for steps in counts:
        got = evolve_density(sde, start, box, times, steps=steps)
        errors.append(float((got.values[1] - best.values[1]).abs().sum()) * got.volume)
    assert slope(errors, counts) == pytest.approx(2.0, abs=0.2), errors
    mean, covariance = moments(sde, mean, covariance, 0.5)
    law = normal(torch.from_numpy(mean), torch.from_numpy(covariance))
    fine = evolve_density(sde, start, [(low, high, 2 * n) for low, high, n in box], times, steps=40)
    assert slope([distance(best, 1, law), distance(fine, 1, law)], [1, 2]) == pytest.approx(2.0, abs=0.25)
    np.testing.assert_allclose(fine.mean[1].numpy(), mean, atol=2e-3)
    np.testing.assert_allclose(fine.variance[1].numpy(), np.diag(covariance), atol=4e-3)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_mixture_in_the_plane(reverse: bool) -> None:
    sde = VPSDE()
    model = mixture(sde, 2)
    times = (0.6, 0.05) if reverse else (0.05, 0.6)
    process = sde.reverse(model) if reverse else sde
    box = [(-4.5, 4.5, 90), (-4.4, 4.6, 100)]
    got = evolve_density(process, exact(model, times[0]), box, torch.tensor(times, dtype=F64), tolerance=3e-3)
    assert distance(got, 1, exact(model, times[1])) < (0.02 if reverse else 0.004)


def test_mass_and_positivity_at_any_step() -> None:
    """A block of probability with sharp edges, steps far too long for accuracy, a drift that is not linear."""
    p = torch.zeros(200, dtype=F64)
    p[90:105] = 1.0
    p /= p.sum() * 0.03
    for steps in (1, 2, 7, 40):
        got = evolve_density(
            DoubleWell(), p, [(-3.0, 3.0, 200)], torch.tensor([1e-3, 0.3, 1.0], dtype=F64), steps=steps
        )
        torch.testing.assert_close(got.mass, torch.ones(3, dtype=F64), rtol=1e-12, atol=0)
        assert float(got.values.min()) >= 0
    plane = torch.zeros(40, 40, dtype=F64)
    plane[15:25, 10:22] = 1.0
    plane /= plane.sum() * 0.15**2
    got = evolve_density(DoubleWell(), plane, [(-3.0, 3.0, 40)] * 2, torch.tensor([1e-3, 0.6], dtype=F64), steps=2)
    torch.testing.assert_close(got.mass, torch.ones(2, dtype=F64), rtol=1e-12, atol=0)
    assert float(got.values.min()) >= 0


@pytest.mark.parametrize("g", [0.0, 0.05])
def test_little_noise_or_none(g: float) -> None:
    """The drift alone carries a Gaussian, in both directions of x and through x = 0; a block stays positive."""
    sde = Linear(matrix=((0.9,),), centre=(0.4,), g=g)
    mean, covariance = np.array([0.1]), np.array([[0.09]])
    start = normal(torch.from_numpy(mean), torch.from_numpy(covariance))
    times, errors, counts = torch.tensor([0.1, 0.9], dtype=F64), [], [80, 160]
    law = normal(*map(torch.from_numpy, moments(sde, mean, covariance, 0.8)))
    for count in counts:
        got = evolve_density(sde, start, [(-4.0, 4.0, count)], times, tolerance=1e-4)
        errors.append(distance(got, 1, law))
    # With a little noise |P| passes 5 between the two grids, and the additional diffusion is left in where it is below.
    assert slope(errors, counts) == pytest.approx(2.0, abs=0.5), errors
    assert errors[-1] < 6e-3
    block = torch.zeros(160, dtype=F64)
    block[70:90] = 1.0
    for steps in (1, 5, 30):
        got = evolve_density(sde, block, [(-4.0, 4.0, 160)], times, steps=steps)
        assert float(got.values.min()) >= 0
        torch.testing.assert_close(got.mass, torch.ones(2, dtype=F64), rtol=1e-12, atol=0)
        torch.testing.assert_close(got.mean[1], 0.4 + math.exp(0.72) * (got.mean[0] - 0.4), rtol=0, atol=0.5 / steps)


def test_walls_reflect() -> None:
    """Pure diffusion between walls: the cosine modes decay at their rates."""
    sde = Linear(matrix=((0.0,),), g=0.9)
    box, times = [(0.0, 1.0, 80)], torch.tensor([0.1, 0.3], dtype=F64)
    with pytest.raises(DomainError, match=r"box\[0\] is too small at t = 0.1: the density at its border is 1 of"):
        evolve_density(sde, lambda x: 1 + 0.6 * torch.cos(math.pi * x[:, 0]), box, times)
    got = evolve_density(sde, lambda x: 1 + 0.6 * torch.cos(math.pi * x[:, 0]), box, times, walls=True, tolerance=1e-5)
    decay = math.exp(-0.5 * 0.81 * math.pi**2 * 0.2)
    assert distance(got, 1, lambda x: 1 + 0.6 * decay * torch.cos(math.pi * x[:, 0])) < 2e-4


def test_a_double_well_settles_in_its_boltzmann_law() -> None:
    """exp(-2 U/g^2) with U = x^4/4 - x^2/2."""
    got = evolve_density(
        DoubleWell(t_max=200.0),
        normal(torch.tensor([-1.0], dtype=F64), torch.tensor([[0.05]], dtype=F64)),
        [(-3.0, 3.0, 150)],
        torch.tensor([0.01, 1.0, 199.0], dtype=F64),
    )
    axis = got.axes[0]
    law = torch.exp(-2 * (axis**4 / 4 - axis**2 / 2) / 0.49)
    law /= law.sum() * got.volume
    assert float((got.values[2] - law).abs().sum()) * got.volume < 1e-3
    assert float(got.mean[1, 0]) < -0.7  # still in the well where it started


def test_reading_a_density() -> None:
    covariance = torch.tensor([[0.5, 0.2], [0.2, 0.4]], dtype=F64)
    start = normal(torch.tensor([0.3, -0.2], dtype=F64), covariance)
    sde = Linear(matrix=((-1.0, 0.0), (0.0, -1.0)))
    got = evolve_density(sde, start, [(-4.0, 4.0, 80), (-3.5, 3.5, 70)], torch.tensor([0.1, 0.2], dtype=F64))
    assert got.values.shape == (2, 80, 70)
    torch.testing.assert_close(got.mean[0], torch.tensor([0.3, -0.2], dtype=F64), atol=1e-5, rtol=0)
    torch.testing.assert_close(got.variance[0], torch.diag(covariance), atol=1e-5, rtol=0)
    torch.testing.assert_close(got.marginal(1)[0].sum() * 0.1, torch.ones((), dtype=F64))
    one = normal(torch.tensor([-0.2], dtype=F64), torch.tensor([[0.4]], dtype=F64))
    torch.testing.assert_close(got.marginal(1)[0], one(got.axes[1][:, None]), atol=1e-5, rtol=0)
    # At centres and kept times it is the values themselves, between them the mean, outside zero.
    a, b = float(got.axes[0][40]), float(got.axes[1][30])
    points = torch.tensor([[a, b], [a + 0.05, b], [9.0, 0.0]], dtype=F64)
    here = got.at(points, 0.15)
    pair = got.values[:, 40:42, 30].mean(0)
    torch.testing.assert_close(here, torch.stack([pair[0], pair.mean(), torch.zeros(())]).double(), rtol=1e-10, atol=0)
    torch.testing.assert_close(got.at(points[:1], 0.1), got.values[0, 40, 30][None])
    torch.testing.assert_close(got.at(points[:1], 0.2), got.values[1, 40, 30][None])
    down = evolve_density(
        sde.reverse(lambda x, t: -x, eta=0.5), start, [(-4.0, 4.0, 80)] * 2, torch.tensor([0.2, 0.19], dtype=F64)
    )
    torch.testing.assert_close(down.at(points[:1], 0.2), start(points[:1]), rtol=0.01, atol=0)
    with pytest.raises(ShapeError, match=r"x must have shape \(B, 2\)"):
        got.at(points[:, :1], 0.1)
    with pytest.raises(DomainError, match=r"t must lie in \[0.1, 0.2\]"):
        got.at(points, 0.3)


# ---------------------------------------------------------------------------------------------------------------------
# Samplers against the density


def p_value(states: Tensor, got: Densities, k: int) -> float:
    """Kolmogorov and Smirnov's test of states (B,) against the k-th density."""
    h = float(got.axes[0][1] - got.axes[0][0])
    edges = np.append(got.axes[0].numpy() - h / 2, float(got.axes[0][-1]) + h / 2)
    cdf = np.concatenate([[0.0], np.cumsum(got.values[k].numpy()) * h])
    return float(stats.kstest(states.numpy(), lambda x: np.interp(x, edges, cdf)).pvalue)


def agree(draw: Callable[[int, int], Tensor], got: Densities, count: int) -> None:
    """Test the states that ``draw(seed, count)`` returns, (T, B), at every time of the densities.

    Stage one at 1e-3 for all times together; on rejection a fresh seed, eight times the samples and 1e-5.
    """
    times = len(got.times)
    first = min(p_value(x, got, k) for k, x in enumerate(draw(1, count))) * times
    assert first > 1e-3 or min(p_value(x, got, k) for k, x in enumerate(draw(2, 8 * count))) * times > 1e-5


def test_the_reverse_sde_is_sampled_from_its_density() -> None:
    """Euler-Maruyama's states on the way, not only at the end."""
    sde = VPSDE()
    model = mixture(sde)
    grid = torch.linspace(1.0, 0.02, 401, dtype=F64)
    kept = [0, 200, 320, 400]
    got = evolve_density(sde.reverse(model), exact(model, 1.0), [(-6.0, 6.0, 600)], grid[kept], tolerance=3e-4)

    def draw(seed: int, count: int) -> Tensor:
        start = torch.empty(count, 1, dtype=F64)
        SampleNoise(seed).fill(start)
        edges = got.axes[0].numpy()
        cdf = np.cumsum(got.values[0].numpy()) * got.volume
        start = torch.from_numpy(np.interp(torch.special.ndtr(start).numpy(), cdf, edges + got.volume / 2))
        result = sample(
            model,
            x_init=start,
            solver="euler_maruyama",
            times=grid,
            seed=seed,
            final="sample",
            trajectory=True,
            full_output=True,
        )
        return result.trajectory[kept, :, 0]

    agree(draw, got, 3000)


def test_an_sde_of_ones_own_is_simulated_from_its_density() -> None:
    """A double well, forward from a narrow start, by Euler and Maruyama's steps written here."""
    sde = DoubleWell()
    step, count = 0.0025, 400
    times = torch.tensor([1e-5, 100 * step, count * step], dtype=F64)
    start = normal(torch.tensor([0.2], dtype=F64), torch.tensor([[0.04]], dtype=F64))
    got = evolve_density(sde, start, [(-3.0, 3.0, 300)], times, tolerance=3e-4)

    def draw(seed: int, n: int) -> Tensor:
        noise = SampleNoise(seed)
        z = torch.empty(n, 1, dtype=F64)
        noise.fill(z)
        x, kept = 0.2 + 0.2 * z, []
        for k in range(count + 1):
            if k in (0, 100, count):
                kept.append(x[:, 0])
            noise.fill(z)
            x = x + step * sde.drift(x, 0.0) + 0.7 * math.sqrt(step) * z
        return torch.stack(kept)

    agree(draw, got, 3000)


# ---------------------------------------------------------------------------------------------------------------------
# Faults


class Singular(Linear):
    """A diffusion that is infinite at t = 0.5."""

    def diffusion(self, t: Tensor | float) -> Tensor:
        return (0.5 - torch.as_tensor(t)).abs().rsqrt()


class Wild(Linear):
    """A drift that is infinite at x = 0."""

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        return 1 / (x * 0)


class Wrong(Linear):
    """A drift of another shape."""

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        return x[:, :0]


def call(sde: object = None, start: object = None, box: object = ((-5.0, 5.0, 100),), times=(0.1, 0.5), **options):
    law = normal(torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64) * 0.5)
    given = torch.tensor(times, dtype=F64) if isinstance(times, tuple) else times
    return evolve_density(Linear() if sde is None else sde, law if start is None else start, box, given, **options)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"sde": 3}, DTypeError, "sde must be an SDE"),
        ({"box": 3}, DTypeError, "box must be"),
        ({"box": [(0.0, 1.0)]}, DTypeError, "box must be"),
        ({"box": [(0.0, 1.0, 50)] * 3}, ShapeError, "box must have one or two axes, got 3"),
        ({"box": [(1.0, 1.0, 50)]}, DomainError, r"box\[0\]\[1\] must lie in \(1, inf\)"),
        ({"box": [(0.0, 1.0, 4)]}, DomainError, r"box\[0\]\[2\] must be at least 8"),
        ({"times": (0.1,)}, ShapeError, "times must be a tensor of at least two times"),
        ({"times": [0.1, 0.2]}, ShapeError, "times must be a tensor of at least two times"),
        ({"times": (0.1, 0.3, 0.2)}, DomainError, "times must increase or decrease strictly"),
        ({"times": (0.1, 3.0)}, DomainError, r"t must lie in \[1e-05, 1\], got 3"),
        ({"times": (0.5, 0.1)}, ConfigError, "times must increase for Linear.*pass sde.reverse"),
        ({"sde": Linear().reverse(lambda x, t: -x)}, ConfigError, "times must decrease for ReverseSDE"),
        ({"tolerance": 0.0}, DomainError, r"tolerance must lie in \(0, inf\)"),
        ({"steps": 0}, DomainError, "steps must be at least 1"),
        ({"start": 3}, DTypeError, "start must be a tensor or a function"),
        ({"start": lambda x: x}, ShapeError, r"start must return one density for each point, \(100,\)"),
        ({"start": torch.ones(99)}, ShapeError, r"start must have the shape \(100,\)"),
        ({"start": torch.ones(100)}, DomainError, "its integral 10; use a larger box"),
        ({"start": torch.linspace(-0.1, 0.3, 100)}, DomainError, "its least value is -0.1"),
        ({"start": torch.full((100,), math.nan)}, DomainError, "start has 100 non-finite values"),
        ({"box": [(-2.0, 2.0, 100)], "walls": False}, DomainError, "integral 0.995|too small at t = 0.1"),
        ({"box": [(-50.0, 50.0, 100)]}, DomainError, r"box\[0\] is too coarse at t = 0.1: the density fills 2.5 cells"),
        ({"sde": Singular(), "steps": 2}, DomainError, "the diffusion is inf at t = 0.5; keep the times away"),
        ({"sde": Wild(), "steps": 2}, DomainError, "the drift is not finite in the box"),
        ({"sde": Wrong()}, ShapeError, r"drift must have x's shape \(99, 1\), got"),
        ({"sde": Linear(g=30.0)}, DomainError, r"box\[0\] is too small at t = 0.5"),
    ],
)
def test_faults(options: dict[str, object], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        call(**options)


def test_a_reverse_density_narrower_than_the_cells_is_refused() -> None:
    model = GaussianMixtureModel(sde=VPSDE(), weights=torch.ones(1), means=torch.zeros(1, 1, dtype=F64), std=0.02)
    with pytest.raises(DomainError, match=r"too coarse at t = 0.0001: .* or stop at a later time"):
        evolve_density(
            VPSDE().reverse(model), exact(model, 1.0), [(-5.0, 5.0, 100)], torch.tensor([1.0, 1e-4], dtype=F64)
        )
    with pytest.raises(DomainError, match="the diffusion is inf at t = "):
        evolve_density(RectifiedFlow(), exact(model, 0.2), [(-5.0, 5.0, 200)], torch.tensor([0.5, 1.0], dtype=F64))


def test_a_hopeless_tolerance_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoresde.likelihood.fokker_planck.evolve.MOST_STEPS", 20)
    with pytest.raises(SolverError, match=r"20 time steps reached only t = .*raise tolerance"):
        call(Linear(g=1.2), tolerance=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# The picture


def test_the_picture_has_the_density_and_the_paths_where_they_belong() -> None:
    sde = VPSDE()
    model = mixture(sde)
    times = torch.tensor([1.0, 0.5, 0.1], dtype=F64)
    got = evolve_density(sde.reverse(model), exact(model, 1.0), [(-5.0, 5.0, 100)], times)
    ends, states = torch.tensor([1.0, 0.3, 0.1]), torch.tensor([[0.1, -1.0], [0.4, -2.0], [0.8, -1.1]])
    figure = plots.density_over_time(got, {"one": (ends, states), "other": (ends[:2], states[:2, :1])})
    first, second, bar = figure.axes
    for panel, name, lines in ((first, "one", 2), (second, "other", 1)):
        assert panel.get_title() == name
        assert panel.get_xlim() == pytest.approx((1.0, 0.1))  # in the order of the computation
        assert len(panel.lines) == lines
        low, high = panel.get_ylim()
        assert -4.5 < low < -3
        assert 3 < high < 4.5
    np.testing.assert_allclose(first.lines[1].get_xdata(), [1.0, 0.3, 0.1], rtol=1e-6)
    np.testing.assert_allclose(first.lines[1].get_ydata(), [-1.0, -2.0, -1.1], rtol=1e-6)
    mesh = first.collections[0]
    np.testing.assert_allclose(np.asarray(mesh.get_array()).reshape(100, 3), got.values.numpy().T)
    np.testing.assert_allclose(mesh.get_coordinates()[0, :, 0], times)
    np.testing.assert_allclose(mesh.get_coordinates()[:, 0, 1], got.axes[0])
    assert "density" in bar.get_ylabel()
    alone = plots.density_over_time(got, title="alone")
    assert [axes.get_title() for axes in alone.axes] == ["alone", ""]
    with pytest.raises(DTypeError, match="densities must be what evolve_density returns, got Tensor"):
        plots.density_over_time(got.values)
    with pytest.raises(ShapeError, match=r"must be times .* and states .*, got \(3,\) and \(2, 2\)"):
        plots.density_over_time(got, {"one": (ends, states[:2])})
    plane = Densities((got.axes[0],) * 2, times, torch.ones(3, 100, 100), 1)
    with pytest.raises(ShapeError, match="densities must have one dimension"):
        plots.density_over_time(plane)
