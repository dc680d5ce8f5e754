"""Doob's h-transform: Gaussian bridges, boxes, and an h of one's own, against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath
import pytest
import torch
from noisy import F64, WELL
from torch import Tensor

from scoresde import EDMSDE, VPSDE, ConditionedSDE, ConfigError, DomainError, DTypeError, ShapeError, evolve_density
from scoresde.diffusions.doob import _log_between
from scoresde.diffusions.sde import GaussianSDE
from scoresde.noise import TapeNoise, normal, stream
from scoresde.sampling import bridge

INF = math.inf
SDES = {"brownian": EDMSDE(0.01, 1.5), "ornstein-uhlenbeck": VPSDE(0.5, 3.0)}
every_sde = pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())


def exact_bridge(sde: GaussianSDE, x: float, y: float, s: float, u: float, end: float) -> tuple[float, float]:
    """Mean and variance of x_u | x_s = x, x_end = y: two Gaussian transitions, by Bayes."""
    (a, b), (c, d) = (sde.transition_weights(*pair) for pair in ((s, u), (u, end)))
    precision = 1 / b**2 + c**2 / d**2
    return float((a * x / b**2 + c * y / d**2) / precision), float(1 / precision)


@every_sde
def test_a_bridge_to_a_point_has_the_exact_law_at_every_time(sde: GaussianSDE) -> None:
    """The Euler steps are affine: their law is read off the simulation, and converges with order 1 to the bridge's."""
    pytest.importorskip("torchsde")
    x, y, s, u = 0.7, -1.2, 0.1, 0.6 * sde.t_max
    conditioned = ConditionedSDE.to_point(sde, torch.tensor([y]))
    errors = []
    for count in (50, 200):
        times = torch.linspace(s, u, count + 1, dtype=F64)
        start = torch.zeros(2 + count, 1, dtype=F64)
        start[1] = 1.0
        tape = [(torch.arange(2 + count) == k + 2).to(F64)[:, None] for k in range(count)]
        out = bridge.simulate(conditioned, start, times, method="euler", noise=TapeNoise(tape))[-1, :, 0]
        weights = torch.cat([out[:1], out[1:] - out[0]])
        mean, variance = weights[0] + weights[1] * x, weights[2:].square().sum()
        exact = exact_bridge(sde, x, y, s, u, sde.t_max)
        errors.append(math.hypot(float(mean) - exact[0], float(variance) - exact[1]))
    assert errors[1] < 0.02
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15)


@every_sde
def test_a_path_to_a_point_arrives(sde: GaussianSDE) -> None:
    pytest.importorskip("torchsde")
    y = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    conditioned = ConditionedSDE.to_point(sde, y, at=0.9)
    assert (conditioned.t_min, conditioned.t_max) == (sde.t_min, 0.9)
    times = torch.cat([torch.linspace(0.1, 0.89, 40), torch.tensor([0.899, 0.89999, 0.9])]).to(F64)
    end = bridge.simulate(conditioned, torch.zeros(2, 2), times, method="euler", seed=0)[-1]
    torch.testing.assert_close(end, y, rtol=0, atol=0.03)


BOXES = {"interval": (-0.5, 0.4), "half-space": (0.3, INF), "other half-space": (-INF, -1.0), "far": (8.0, 9.0)}


@every_sde
@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES.keys())
def test_h_of_a_box_solves_the_backward_equation(sde: GaussianSDE, box: tuple[float, float]) -> None:
    """dL/dt + f L' + g^2/2 (L'' + L'^2) = 0 for L = log h."""
    conditioned = ConditionedSDE.to_box(sde, *box)
    x = torch.linspace(-2, 2, 9, dtype=F64)[:, None].requires_grad_()
    t, step = torch.tensor(0.4, dtype=F64), 1e-5
    log_h = conditioned.log_h(x, t)
    (slope,) = torch.autograd.grad(log_h.sum(), x, create_graph=True)
    (curve,) = torch.autograd.grad(slope.sum(), x)
    rate = (conditioned.log_h(x, t + step) - conditioned.log_h(x, t - step))[:, None] / (2 * step)
    f, g = sde.drift(x, t), float(sde.diffusion(t))
    rest = (rate + f * slope + 0.5 * g**2 * (curve + slope.square())).detach()
    rate = rate.detach()
    assert float((rest.abs() / (1 + rate.abs())).max()) < 1e-6
    torch.testing.assert_close(conditioned.drift(x, t), f + g**2 * slope)


def test_the_density_of_paths_into_a_half_line_is_the_exact_one() -> None:
    """p(x_u | x_T > c) is p(x_u) h(x_u, u), divided by its integral, for Gaussian x_s."""
    sde, c = SDES["ornstein-uhlenbeck"], 0.8
    conditioned = ConditionedSDE.to_box(sde, c, INF)

    def density(x: Tensor, t: float) -> Tensor:
        a, b = (float(w) for w in sde.transition_weights(0.05, t))
        p = torch.distributions.Normal(-0.5 * a, math.sqrt(0.3**2 * a**2 + b**2)).log_prob(x[:, 0]).exp()
        late, noise = (float(w) for w in sde.transition_weights(t, 1.0))
        return p * torch.special.ndtr((late * x[:, 0] - c) / noise)

    line = torch.linspace(-3.5, 4.5, 20_001, dtype=F64)[:, None]
    whole = float(torch.trapezoid(density(line, 0.05), line[:, 0]))
    found = evolve_density(
        conditioned, lambda x: density(x, 0.05) / whole, [(-3.5, 4.5, 400)], torch.tensor([0.05, 0.5, 0.8], dtype=F64)
    )
    for t, p in zip((0.5, 0.8), found.values[1:], strict=True):
        exact = density(found.axes[0][:, None], t) / whole
        assert float((p - exact).abs().sum()) * found.volume < 8e-3


def test_an_h_of_ones_own_conditions_any_sde() -> None:
    """log h = x^2/2 adds g^2 x to the drift, also where x is float32 or carries a graph."""
    conditioned = ConditionedSDE(WELL, lambda x, t: 0.5 * x.square().sum(1))
    assert (conditioned.t_min, conditioned.t_max) == (WELL.t_min, WELL.t_max)
    x = normal((3, 1), stream(0)).requires_grad_()
    drift = conditioned.drift(x, 0.5)
    torch.testing.assert_close(drift, x - x**3 + 0.49 * x)
    (slope,) = torch.autograd.grad(drift.sum(), x)
    torch.testing.assert_close(slope, 1.49 - 3 * x.detach() ** 2)
    assert float(conditioned.diffusion(0.5)) == 0.7


@pytest.mark.parametrize(("u", "v"), [(-1.0, 2.0), (30.0, 31.0), (-41.0, -40.0), (5.0, 5.0 + 1e-9), (-2.0, 50.0)])
def test_the_log_of_a_normal_probability_does_not_cancel(u: float, v: float) -> None:
    with mpmath.workdps(900):
        exact = float(mpmath.log((mpmath.erfc(u / mpmath.sqrt(2)) - mpmath.erfc(v / mpmath.sqrt(2))) / 2))
    got = float(_log_between(torch.tensor(u, dtype=F64), torch.tensor(v, dtype=F64)))
    # Between near neighbours the difference of the ends is rounded, and with it the logarithm.
    assert got == pytest.approx(exact, rel=1e-12, abs=1e-6 if v - u < 1e-6 else 1e-13)


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: ConditionedSDE.to_point(WELL, torch.zeros(1)), ConfigError, "no closed form; give log_h="),
        (lambda: ConditionedSDE.to_box(VPSDE(), 1.0, 0.0), DomainError, "low must be below high"),
        (lambda: ConditionedSDE.to_box(VPSDE(), math.nan, 0.0), DomainError, "low must be numbers or infinite"),
        (lambda: ConditionedSDE.to_point(VPSDE(), torch.tensor([INF])), DomainError, "point must be finite"),
        (lambda: ConditionedSDE.to_point(VPSDE(), torch.zeros(1), at=2.0), DomainError, "at must lie in"),
        (lambda: ConditionedSDE("VP", torch.exp), DTypeError, "forward must be an SDE"),
        (lambda: ConditionedSDE(WELL, 3.0), DTypeError, "log_h must be a function"),
        (
            lambda: ConditionedSDE.to_point(VPSDE(), torch.zeros(3)).drift(torch.zeros(2, 2), 0.5),
            ShapeError,
            r"the end must have the event \(2,\)",
        ),
        (lambda: ConditionedSDE(WELL, lambda x, t: x).drift(torch.zeros(2, 1), 0.5), ShapeError, r"shape \(2,\), got"),
    ],
)
def test_bad_ends_are_refused(make: Callable[[], object], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        make()
