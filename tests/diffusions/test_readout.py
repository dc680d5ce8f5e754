"""The affine readout between predictions: its defining equations, its limits, and where there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scoresde import VESDE, VPSDE, ConfigError, DomainError
from scoresde.diffusions.point import Pair, Point
from scoresde.diffusions.targets import TARGETS, target, view

F64 = torch.float64
KINDS = tuple(TARGETS)


@dataclass(frozen=True)
class Rates:
    """An SDE of which nothing but its rates is known."""

    alpha: float
    sigma: float

    def alpha_rate(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.alpha)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.sigma)


def point(alpha: float, sigma: float, rates: tuple[float, float] = (-0.7, 1.3)) -> Point:
    a, s = (torch.tensor(c, dtype=F64) for c in (alpha, sigma))
    return Point(torch.tensor(0.5, dtype=F64), a, s, 2 * (a.log() - s.log()), Rates(*rates))


scales = st.floats(-4, 4).map(lambda u: 10**u)
points = st.builds(point, scales, scales, st.tuples(st.floats(-50, -0.01), st.floats(0.01, 50)))


@given(points, st.sampled_from(KINDS), st.sampled_from(KINDS))
def test_views_satisfy_their_two_equations(p: Point, known: str, wanted: str) -> None:
    """P = a x + b F for every x_0 and z: a alpha + b p = p' and a sigma + b q = q'."""
    (f, g), (f_wanted, g_wanted) = target(known, p), target(wanted, p)
    a, b = view((f, g), (f_wanted, g_wanted), p)
    for scale, weight, goal in ((p.alpha, f, f_wanted), (p.sigma, g, g_wanted)):
        size = float((a * scale).abs() + (b * weight).abs() + goal.abs())
        # What p' q - q' p loses when its two terms nearly cancel, it loses of their size.
        lost = float(((f_wanted * g).abs() + (g_wanted * f).abs()) / (p.alpha * g - p.sigma * f).abs() * scale)
        assert float(a * scale + b * weight) == pytest.approx(float(goal), rel=0, abs=4e-15 * (size + lost))


@given(points, st.sampled_from(KINDS), st.sampled_from(KINDS))
def test_a_view_and_back_is_the_identity(p: Point, known: str, wanted: str) -> None:
    f, w = target(known, p), target(wanted, p)
    (a, b), (a_back, b_back) = view(f, w, p), view(w, f, p)
    assert float(b_back * b) == pytest.approx(1.0, rel=1e-13)
    size = sum(
        float(((x[0] * y[1]).abs() + (x[1] * y[0]).abs()) / (p.alpha * y[1] - p.sigma * y[0]).abs())
        for x, y in ((f, w), (w, f))
    )
    assert float(a_back + b_back * a) == pytest.approx(0.0, abs=1e-14 * (size * (1 + float(b_back.abs())) + 1e-300))


@given(st.floats(0.05, 20.0), st.floats(0.05, 20.0), st.sampled_from(KINDS), st.sampled_from(KINDS))
def test_views_solve_the_two_by_two_system(alpha: float, sigma: float, known: str, wanted: str) -> None:
    p = point(alpha, sigma)
    known_pair, wanted_pair = (torch.stack(target(kind, p)).numpy() for kind in (known, wanted))
    matrix = np.array([[alpha, sigma], known_pair])
    expected = np.linalg.solve(matrix.T, wanted_pair)
    a, b = view(target(known, p), target(wanted, p), p)
    bound = 1e-14 * np.linalg.cond(matrix) * np.abs(expected).max()
    np.testing.assert_allclose([float(a), float(b)], expected, rtol=0, atol=bound)


def test_a_kind_seen_as_itself_is_itself() -> None:
    p = VPSDE().at(torch.linspace(1e-3, 1, 20, dtype=F64))
    for kind in KINDS:
        a, b = view(target(kind, p), target(kind, p), p)
        assert bool((a.abs() == 0).all())
        assert bool((b == 1).all())


# From the literature: the data, the noise and the score out of what the network predicts.
LITERATURE = {
    # Ho et al. 2020, eq. 9 and 15.
    ("noise", "data"): lambda p: (1 / p.alpha, -p.sigma / p.alpha),
    ("data", "noise"): lambda p: (1 / p.sigma, -p.alpha / p.sigma),
    # Song et al. 2021: score = -noise/sigma; Tweedie's formula.
    ("noise", "score"): lambda p: (0 * p.alpha, -1 / p.sigma),
    ("score", "data"): lambda p: (1 / p.alpha, p.sigma**2 / p.alpha),
    # Salimans and Ho 2022, appendix D (alpha^2 + sigma^2 = 1).
    ("v", "data"): lambda p: (p.alpha, -p.sigma),
    ("v", "noise"): lambda p: (p.sigma, p.alpha),
    ("data", "v"): lambda p: (p.alpha / p.sigma, -1 / p.sigma),
    ("noise", "v"): lambda p: (-p.sigma / p.alpha, 1 / p.alpha),
}


@pytest.mark.parametrize(("known", "wanted"), LITERATURE)
def test_views_are_the_literatures(known: str, wanted: str) -> None:
    p = VPSDE().at(torch.linspace(1e-3, 1, 50, dtype=F64))
    for got, expected in zip(view(target(known, p), target(wanted, p), p), LITERATURE[known, wanted](p), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=0)


def test_velocity_is_the_probability_flow() -> None:
    """dx/dt = f x - g^2 score/2 (Song et al. 2021, eq. 13)."""
    for sde in (VPSDE(), VESDE()):
        t = torch.linspace(1e-3, 1, 50, dtype=F64)
        p = sde.at(t)
        a, b = view(target("score", p), target("velocity", p), p)
        torch.testing.assert_close(a, sde.drift_rate(t) + 0 * a, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(b, -0.5 * sde.diffusion(t).square(), rtol=1e-10, atol=0)


# ---------------------------------------------------------------------------------------------------------------------
# The ends

# Finite limits (a, b) at alpha = 0, sigma = 2 and at alpha = 3, sigma = 0 with rates (-0.7, 1.3); the others have none.
AT_NOISE = {
    ("data", "noise"): (0.5, 0.0),
    ("data", "v"): (0.0, -1.0),
    ("data", "score"): (-0.25, 0.0),
    ("data", "flow"): (0.5, -1.0),
    ("data", "velocity"): (0.65, -0.7),
    ("v", "data"): (0.0, -1.0),
    ("v", "noise"): (0.5, 0.0),
    ("v", "score"): (-0.25, 0.0),
    ("v", "flow"): (0.5, 1.0),
    ("v", "velocity"): (0.65, 0.7),
    ("flow", "data"): (0.5, -1.0),
    ("flow", "noise"): (0.5, 0.0),
    ("flow", "v"): (-0.5, 1.0),
    ("flow", "score"): (-0.25, 0.0),
    ("flow", "velocity"): (0.3, 0.7),
    ("velocity", "data"): (1.3 / 1.4, -1 / 0.7),
    ("velocity", "noise"): (0.5, 0.0),
    ("velocity", "v"): (-1.3 / 1.4, 1 / 0.7),
    ("velocity", "score"): (-0.25, 0.0),
    ("velocity", "flow"): (0.5 - 1.3 / 1.4, 1 / 0.7),
    ("noise", "score"): (0.0, -0.5),
    ("score", "noise"): (0.0, -2.0),
}
AT_DATA = {
    ("noise", "data"): (1 / 3, 0.0),
    ("noise", "v"): (0.0, 1.0),
    ("noise", "flow"): (-1 / 3, 1.0),
    ("noise", "velocity"): (-0.7 / 3, 1.3),
    ("v", "data"): (1 / 3, 0.0),
    ("v", "noise"): (0.0, 1.0),
    ("v", "flow"): (-1 / 3, 1.0),
    ("v", "velocity"): (-0.7 / 3, 1.3),
    ("flow", "data"): (1 / 3, 0.0),
    ("flow", "noise"): (1 / 3, 1.0),
    ("flow", "v"): (1 / 3, 1.0),
    ("flow", "velocity"): (0.2, 1.3),
    ("velocity", "data"): (1 / 3, 0.0),
    ("velocity", "noise"): (0.7 / 3 / 1.3, 1 / 1.3),
    ("velocity", "v"): (0.7 / 3 / 1.3, 1 / 1.3),
    ("velocity", "flow"): (-1 / 3 + 0.7 / 3 / 1.3, 1 / 1.3),
}
ENDS = {"noise": (point(0.0, 2.0), AT_NOISE), "data": (point(3.0, 0.0), AT_DATA)}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(("known", "wanted"), list(permutations(KINDS, 2)))
def test_limits_at_the_ends(end: str, known: str, wanted: str) -> None:
    p, limits = ENDS[end]
    if (known, wanted) in limits:
        got = view(target(known, p), target(wanted, p), p)
        assert [float(c) for c in got] == pytest.approx(limits[known, wanted], rel=1e-14, abs=1e-300)
    else:
        with pytest.raises(DomainError, match="has no finite value"):
            view(target(known, p), target(wanted, p), p)


def test_the_message_names_the_time_and_the_cure() -> None:
    t = torch.tensor([0.5, 1.0], dtype=F64)
    p = Point(t, torch.tensor([0.6, 0.0], dtype=F64), torch.tensor([0.8, 1.0], dtype=F64), t)
    with pytest.raises(
        DomainError,
        match=r"the data prediction has no finite value at t = 1, where alpha = 0 and sigma = 1; "
        r"stay inside \(t_min, t_max\) or train another prediction \(data, v and velocity are finite at both ends\)",
    ):
        view(target("noise", p), target("data", p), p, "the data prediction")


def test_unknown_kinds_and_missing_rates() -> None:
    p = VPSDE().at(torch.linspace(0.1, 1, 3, dtype=F64))
    with pytest.raises(ConfigError, match=r"unknown prediction 'nose'; did you mean 'noise'\? choices: data, flow"):
        target("nose", p)
    with pytest.raises(DomainError, match="a velocity needs the rates of an SDE; this point carries none"):
        target("velocity", replace(p, owner=None))


def test_parts_of_points() -> None:
    p = VPSDE().at(torch.linspace(0.1, 1, 5, dtype=F64))
    part: Point = p[1:3]
    assert torch.equal(part.alpha, p.alpha[1:3])
    assert torch.equal(part.log_snr, p.log_snr[1:3])
    assert float(p[2].sigma) == float(p.sigma[2])
    torch.testing.assert_close(part.rates[1], p.rates[1][1:3], rtol=1e-14, atol=0)
    pair: Pair = target("v", VESDE().at(1.0))
    assert math.hypot(*map(float, pair)) == pytest.approx(1.0, rel=1e-15)
