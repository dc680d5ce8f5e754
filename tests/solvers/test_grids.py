"""Time grids: each against its own formula, exact ends, strict order; a user's times and what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scoresde import (
    EDMSDE,
    VESDE,
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    GaussianSDE,
    ShapeError,
    SubVPSDE,
    build_table,
    solvers,
)
from scoresde.solvers import grids
from scoresde.solvers.grids import Grid, check_times

F64 = torch.float64


class Cosine(GaussianSDE):
    """alpha(1) = 6e-17 on floats, and log_snr by automatic means."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(t * math.pi / 2)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t * math.pi / 2)


class Flow(GaussianSDE):
    """Rectified flow: alpha is exactly 0 at t = 1."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t


SDES = {
    "vp": VPSDE(),
    "sub_vp": SubVPSDE(t_min=1e-3),
    "ve": VESDE(t_max=0.9),
    "cosine": Cosine(t_min=0.01, t_max=0.99),
    "flow": Flow(t_min=0.01, t_max=0.95),
}
every_sde = pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())


def nu(sde: GaussianSDE, t: Tensor) -> Tensor:
    return sde.sigma(t) / sde.alpha(t)


def shifted(sde: GaussianSDE, t: Tensor) -> Tensor:
    """Log(1 + nu^2) above its value at t_min."""
    return torch.log1p(nu(sde, t) ** 2) - torch.log1p(nu(sde, torch.tensor(sde.t_min, dtype=F64)) ** 2)


# The variable in which each grid is uniform, from alpha and sigma alone.
GRIDS: dict[str, tuple[Grid, Callable[[GaussianSDE, Tensor], Tensor]]] = {
    "uniform": (grids.uniform(), lambda sde, t: t),
    "power": (grids.uniform(power=2.5), lambda sde, t: t ** (1 / 2.5)),
    "log_snr": (grids.log_snr(), lambda sde, t: (sde.alpha(t) / sde.sigma(t)).log()),
    "log_snr, centred": (
        grids.log_snr(centre=3.0, width=4.5),
        lambda sde, t: ((2 * (sde.alpha(t) / sde.sigma(t)).log() - 3.0) / 4.5).asinh(),
    ),
    "karras": (grids.karras(), lambda sde, t: nu(sde, t) ** (1 / 7)),
    "karras-3": (grids.karras(rho=3), lambda sde, t: nu(sde, t) ** (1 / 3)),
    "rectified": (grids.rectified(), lambda sde, t: sde.sigma(t) / (sde.alpha(t) + sde.sigma(t))),
    "rectified-3": (grids.rectified(power=3), lambda sde, t: (sde.sigma(t) / (sde.alpha(t) + sde.sigma(t))) ** (1 / 3)),
    "diffused": (grids.diffused(), lambda sde, t: shifted(sde, t) ** (1 / 4)),
    "diffused-2": (grids.diffused(power=2), lambda sde, t: shifted(sde, t) ** (1 / 2)),
}
every_grid = pytest.mark.parametrize(("grid", "variable"), GRIDS.values(), ids=GRIDS.keys())


@every_sde
@every_grid
@pytest.mark.parametrize("steps", [1, 2, 7, 50, 1000])
def test_grids_are_uniform_in_their_variable(
    grid: Grid, variable: Callable[[GaussianSDE, Tensor], Tensor], steps: int, sde: GaussianSDE
) -> None:
    times = grid(sde, steps)
    assert times.dtype == F64
    assert times.shape == (steps + 1,)
    assert float(times[0]) == sde.t_max
    assert float(times[-1]) == sde.t_min
    assert bool((times.diff() < 0).all())
    u = variable(sde, times)
    ends = variable(sde, torch.tensor([sde.t_max, sde.t_min], dtype=F64))
    expected = ends[0] + (ends[1] - ends[0]) * torch.arange(steps + 1, dtype=F64) / steps
    relative = 1e-7 if "diffused" in grid.name else 1e-9  # near its end, taking b_min off costs this check digits
    torch.testing.assert_close(u, expected, rtol=relative, atol=1e-12 * float(ends.abs().max()))
    assert torch.equal(check_times(sde, times), times)


def test_karras_is_the_published_formula() -> None:
    """Karras et al. 2022, eq. 5, with t = sigma."""

    class EDM(GaussianSDE):
        def alpha(self, t: Tensor) -> Tensor:
            return torch.ones_like(t)

        def sigma(self, t: Tensor) -> Tensor:
            return t

    got = grids.karras(17)(EDM(t_min=0.002, t_max=80.0))
    low, high = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
    expected = [(high + i / 17 * (low - high)) ** 7 for i in range(18)]
    assert got.tolist() == pytest.approx(expected, rel=1e-12)


@every_grid
def test_no_steps_and_fixed_steps(grid: Grid, variable: object) -> None:
    sde = VPSDE()
    assert grid(sde, 0).tolist() == [1.0]
    assert grid(sde, 1).tolist() == [1.0, 1e-5]
    with pytest.raises(ConfigError, match=rf"the grid '{grid.name[:6]}.*' needs a number of steps; pass steps="):
        grid(sde)
    for bad, error, message in (
        (-1, DomainError, "steps must be at least 0, got -1"),
        (2.0, DTypeError, r"steps must be an integer, got 2\.0 of type float"),
        (True, DTypeError, "steps must be an integer, got True of type bool"),
    ):
        with pytest.raises(error, match=message):
            grid(sde, bad)


def test_a_grid_may_fix_its_steps() -> None:
    sde = VPSDE()
    for make in (grids.uniform, grids.karras, grids.log_snr, grids.rectified):
        assert torch.equal(make(9)(sde), make()(sde, 9))
        assert torch.equal(make(9)(sde, 4), make()(sde, 4))


def test_the_rectified_grid_reaches_where_alpha_is_zero() -> None:
    sde = Flow(t_min=0.1)
    torch.testing.assert_close(grids.rectified()(sde, 9), grids.uniform()(sde, 9), rtol=1e-12, atol=0)
    for grid in (grids.log_snr(), grids.karras()):
        times = grid(sde, 9)
        assert float(times[0]) == 1.0
        assert float(times[-1]) == 0.1
        assert bool((times.diff() < 0).all())
    # After the first step the grid is uniform in log_snr from -10, VPSDE's own end.
    gaps = sde.log_snr(grids.log_snr()(sde, 9))[1:].diff()
    torch.testing.assert_close(gaps, gaps.mean().expand(8), rtol=1e-9, atol=0)
    assert float(sde.log_snr(grids.log_snr()(sde, 9))[1]) - float(gaps[0]) == pytest.approx(-10)


def test_even_is_uniform_in_t_unless_t_is_the_noise_level() -> None:
    for sde in (VPSDE(), VESDE(), SubVPSDE(), Cosine(t_min=0.01, t_max=0.99)):
        assert torch.equal(grids.even()(sde, 9), grids.uniform()(sde, 9))
    sde = EDMSDE()
    assert torch.equal(grids.even(9)(sde), grids.diffused(power=2)(sde, 9))
    # A hundred steps of Euler-Maruyama: seven times the variance on a grid uniform in t.
    table = solvers.euler_maruyama()
    error = {
        grid.name: build_table(sde, replace(table, grid=grid), steps=100).law(0.3, 0.25)[1] / 0.25 - 1
        for grid in (table.grid, grids.uniform())
    }
    assert error["even"] < 0.02
    assert error["uniform"] > 5


def test_bad_options() -> None:
    with pytest.raises(DomainError, match=r"rho must lie in \(0, inf\), got 0"):
        grids.karras(rho=0)
    with pytest.raises(DomainError, match=r"power must lie in \(0, inf\), got -1"):
        grids.uniform(power=-1)
    with pytest.raises(DomainError, match=r"width must lie in \(0, inf\), got 0"):
        grids.log_snr(width=0.0)
    with pytest.raises(DomainError, match=r"centre must lie in \(-inf, inf\), got nan"):
        grids.log_snr(centre=math.nan, width=1.0)


# ---------------------------------------------------------------------------------------------------------------------
# Knots


@given(st.integers(2, 300), st.data())
def test_knots_are_strided_evenly(count: int, data: st.DataObject) -> None:
    times = torch.linspace(1 / count, 1, count, dtype=F64)
    steps = data.draw(st.integers(1, count - 1))
    got = grids.knots(times)(VPSDE(), steps)
    assert got.shape == (steps + 1,)
    assert bool((got.diff() < 0).all())
    assert (float(got[0]), float(got[-1])) == (float(times[-1]), float(times[0]))
    index = (got * count).round().long() - 1
    assert torch.equal(times[index], got)
    ideal = (count - 1) * (1 - torch.arange(steps + 1, dtype=F64) / steps)
    assert float((index - ideal).abs().max()) <= 0.5 + 1e-9


def test_all_knots_and_too_many() -> None:
    times = torch.tensor([0.1, 0.5, 0.6, 1.0])
    assert torch.equal(grids.knots(times)(VPSDE(), 3), times.to(F64).flip(0))
    with pytest.raises(DomainError, match="steps must be at most 3, the number of intervals of the chain, got 4"):
        grids.knots(times)(VPSDE(), 4)


# ---------------------------------------------------------------------------------------------------------------------
# A user's times


def test_sound_times_pass() -> None:
    sde = VPSDE(t_min=1e-3)
    for times in (
        torch.tensor([1.0, 0.5, 1e-3]),
        torch.tensor([1.0, 0.5, 0.0], dtype=F64),
        torch.tensor([0.7]),
        torch.tensor([0.5, 0.25], dtype=torch.bfloat16),
    ):
        got = check_times(sde, times)
        assert got.dtype == F64
        assert torch.equal(got, times.to(F64))


@pytest.mark.parametrize(
    ("times", "error", "message"),
    [
        ([1.0, 0.5], DTypeError, "times must be a floating tensor or a Grid, got list"),
        (torch.tensor([3, 2]), DTypeError, r"times must be a floating tensor or a Grid, got torch\.int64"),
        (torch.ones(2, 2), ShapeError, r"times must be a vector of at least one time, got shape \(2, 2\)"),
        (torch.tensor(1.0), ShapeError, r"times must be a vector of at least one time, got shape \(\)"),
        (torch.zeros(0), ShapeError, r"times must be a vector of at least one time, got shape \(0,\)"),
        (torch.tensor([1.0, math.nan, 0.5]), DomainError, "times has a NaN at index 1"),
        (torch.tensor([0.1, 0.5, 1.0]), DomainError, r"these increase: use times\.flip\(0\)"),
        (torch.tensor([1.0, 0.5, 0.5, 0.1]), DomainError, r"times repeats 0\.5; make the grid in float64"),
        (torch.tensor([1.0, 0.2, 0.5, 0.1]), DomainError, "times must decrease; it rises at index 2"),
        (torch.tensor([1.5, 0.5]), DomainError, r"times must lie in \[1e-05, 1\], got 1\.5"),
        (torch.tensor([1.0, 1e-7]), DomainError, r"times must lie in \[1e-05, 1\], got 1e-07"),
        (torch.tensor([1.0, -0.5]), DomainError, r"times must lie in \[1e-05, 1\], got -0\.5"),
        (torch.tensor([math.inf, 0.5]), DomainError, r"times must lie in \[1e-05, 1\], got inf"),
    ],
)
def test_bad_times(times: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_times(VPSDE(), times)
