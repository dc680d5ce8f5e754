"""The Fokker-Planck equation: exact laws, orders, mass, walls, reading."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from densities import F64, DoubleWell, Linear, distance, exact, mixture, normal
from helpers import SDES, slope
from scipy import linalg

from scoresde import (
    VESDE,
    VPSDE,
    DomainError,
    ShapeError,
    evolve_density,
)


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
