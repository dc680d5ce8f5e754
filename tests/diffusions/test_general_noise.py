"""Noise that depends on the state or on the coordinate: its reverse, its density, its paths."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from helpers import slope
from noisy import F64, GROWTH, UNEVEN, Coupled, SquareRoot
from torch import Tensor

from scoresde import SDE, ConfigError, DTypeError, SDEModel, ShapeError, evolve_density
from scoresde.nn import MLP
from scoresde.noise import TapeNoise, normal, stream
from scoresde.sampling import bridge
from scoresde.training.losses.simulated import SimulatedLoss

BOX = [(0.05, 16.0, 800)]


def density_error(sde: SDE, early: float, late: float) -> float:
    """Of the Fokker-Planck equation from one time to another, in probability."""
    start = evolve_density(
        sde, lambda x: GROWTH.density(x[:, 0], early), BOX, torch.tensor([early, late], dtype=F64), tolerance=2e-4
    )
    return float((start.values[-1] - GROWTH.density(start.axes[0], late)).abs().sum()) * start.volume


@pytest.mark.parametrize("eta", [1.0, 0.0, 0.5])
def test_the_reverse_of_multiplicative_noise_has_the_exact_density(eta: float) -> None:
    """Of geometric Brownian motion, whose law is log-normal; without d g^2/dx, or with another share, it has not."""
    reverse = GROWTH.reverse(GROWTH.score, eta)
    assert density_error(reverse, 1.0, 0.1) < 8e-3
    assert float(reverse.diffusion_at(torch.full((1, 1), 2.0), 0.5)) == pytest.approx(eta)


def test_the_density_of_multiplicative_noise_is_log_normal() -> None:
    assert density_error(GROWTH, 0.1, 1.0) < 4e-3


def test_the_divergence_of_the_noise_is_its_derivative() -> None:
    x = normal((5, 2), stream(0, "x"), dtype=F64)
    sde, h = Coupled(), 1e-5
    found = sde.diffusion_divergence(x, 0.5)
    for i in range(2):
        step = h * torch.eye(2, dtype=F64)[i]
        up, down = (sde.diffusion_at(x + sign * step, 0.5)[:, i].square() for sign in (1, -1))
        torch.testing.assert_close(found[:, i], (up - down) / (2 * h), rtol=1e-8, atol=1e-8)
    assert float(UNEVEN.diffusion_divergence(x, 0.5).abs().max()) == 0
    x = x[:, :1].abs() + 0.1
    assert not GROWTH.diffusion_divergence(x, 0.5).requires_grad
    (curve,) = torch.autograd.grad(GROWTH.diffusion_divergence(x.requires_grad_(), 0.5).sum(), x)
    torch.testing.assert_close(curve, torch.full_like(x, 0.5))
    torch.testing.assert_close(GROWTH.diffusion_divergence(x, 0.5), 0.5 * x)


def test_equilibrium_of_the_square_root_process_is_its_gamma_law() -> None:
    """shape 2 a b/s^2, rate 2 a/s^2: the score of the readout is that of the law."""
    from scoresde.models.sde_model import equilibrium_score

    x = torch.linspace(0.1, 3, 7, dtype=F64)[:, None]
    gamma = torch.distributions.Gamma(torch.tensor(4 / 0.36, dtype=F64), torch.tensor(4 / 0.36, dtype=F64))
    point = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(gamma.log_prob(point).sum(), point)
    torch.testing.assert_close(equilibrium_score(SquareRoot(), x, torch.tensor(0.5)), score, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("method", "order"), [("euler", 0.5), ("milstein", 1.0), ("srk", 1.5)])
def test_strong_orders_under_multiplicative_noise(method: str, order: float) -> None:
    """The end depends on the driving path through w_T alone, x_T = x_0 exp((r - s^2/2) T + s w_T)."""
    pytest.importorskip("torchsde")
    errors, counts, span, draws = [], (10, 20, 40, 80), 0.9, 2 if method == "srk" else 1
    x = torch.ones(400, 1, dtype=F64)
    for count in counts:
        tape = [normal(x.shape, stream(1, method, count, k), dtype=F64) for k in range(draws * count)]
        times = torch.linspace(0.1, 1.0, count + 1, dtype=F64)
        end = bridge.simulate(GROWTH, x, times, method=method, noise=TapeNoise(tape))[-1]
        w = math.sqrt(span / count) * torch.stack(tape[::draws]).sum(0)
        exact = x * ((GROWTH.rate - GROWTH.spread**2 / 2) * span + GROWTH.spread * w).exp()
        errors.append(float((end - exact).square().mean().sqrt()))
    assert slope(errors, counts) == pytest.approx(order, abs=0.15)


def test_a_size_of_noise_for_each_coordinate_gives_each_its_law() -> None:
    """The affine map of the Euler steps, read off the simulation, against the recursion of each coordinate."""
    pytest.importorskip("torchsde")
    count, span = 200, 0.8
    unit = torch.eye(1 + count, dtype=F64)[:, :, None].expand(-1, -1, 2)
    times = torch.linspace(0.1, 0.9, count + 1, dtype=F64)
    out = bridge.simulate(UNEVEN, unit[0], times, method="euler", noise=TapeNoise(list(unit[1:])))[-1]
    h = span / count
    decay = 1 - h * UNEVEN.rates
    torch.testing.assert_close(out[0], decay**count, rtol=1e-12, atol=0)
    powers = decay[None] ** torch.arange(count - 1, -1, -1, dtype=F64)[:, None]
    torch.testing.assert_close(out[1:], powers * UNEVEN.sizes * math.sqrt(h), rtol=1e-11, atol=0)
    _, variance = UNEVEN.law(0.0, 0.0, span)
    torch.testing.assert_close(out[1:].square().sum(0), variance, rtol=1e-2, atol=0)


class Silent(SDE):
    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        return -x


def test_noise_that_is_not_written_or_no_function_of_time_is_refused() -> None:
    with pytest.raises(DTypeError, match=r"Silent says nothing of its noise; write diffusion\(self, t\), or"):
        Silent()
    with pytest.raises(ConfigError, match=r"Growth is no function of t alone; ask diffusion_at\(x, t\)"):
        GROWTH.diffusion(0.5)


@pytest.mark.parametrize(
    ("drift", "noise", "match"),
    [
        (lambda x, t: 0, lambda x, t: 0.5 + 0 * x, r"drift must have x's shape \(4, 2\), got 0, which is no tensor"),
        (lambda x, t: x[:, 0], lambda x, t: 0.5 + 0 * x, r"drift must have x's shape \(4, 2\), got shape \(4,\)"),
        (lambda x, t: x[:1], lambda x, t: 0.5 + 0 * x, r"drift must have x's shape \(4, 2\), got shape \(1, 2\)"),
        (lambda x, t: -x, lambda x, t: torch.ones(1, 4, 2), r"broadcasts to x's \(4, 2\), got shape \(1, 4, 2\)"),
        (lambda x, t: -x, lambda x, t: 0.5, "diffusion_at must have a shape that broadcasts .* got 0.5, which is no"),
        (lambda x, t: -x, lambda x, t: torch.ones(3), r"broadcasts to x's \(4, 2\), got shape \(3,\)"),
    ],
)
def test_a_drift_or_a_noise_of_another_kind_is_named_wherever_it_is_used(
    drift: Callable, noise: Callable, match: str
) -> None:
    own = {"drift": lambda self, x, t: drift(x, t), "diffusion_at": lambda self, x, t: noise(x, t)}
    sde = type("Own", (SDE,), own)()
    x = normal((4, 2), stream(0, "x"))
    uses = [
        lambda: SimulatedLoss(steps=3)(SDEModel(MLP(2), sde), x, stream(0)),
        lambda: SDEModel(MLP(2), sde)(x, 0.5),
        lambda: bridge.simulate(sde, x, torch.tensor([0.1, 0.2]), method="euler", noise=TapeNoise([x, x])),
        lambda: sde.reverse(lambda x, t: -x).drift(x, 0.5),
    ]
    for use in uses:
        with pytest.raises(ShapeError, match=match):
            use()


def test_a_diffusion_that_is_a_number_is_told_how_to_be_a_tensor() -> None:
    sde = type("Own", (SDE,), {"drift": lambda self, x, t: -x, "diffusion": lambda self, t: 0.5})()
    with pytest.raises(ShapeError, match=r"diffusion must return a tensor of t's shape, got 0.5; take 0.5 \+ 0 \* t"):
        sde.diffusion_at(torch.zeros(4, 2), 0.5)
