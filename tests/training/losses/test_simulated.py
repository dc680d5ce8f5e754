"""Losses on simulated paths: their targets and minimisers against identities and exact scores."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from noisy import F64, GROWTH, SWIRL, UNEVEN, WELL, SquareRoot
from torch import Tensor

from scoresde import SDE, VPSDE, ConfigError, DomainError, ScoreModel, SDEModel, SolverError, fit, losses
from scoresde.nn import MLP
from scoresde.noise import normal, stream
from scoresde.training.losses.simulated import _carry

Z = 4.9  # two-sided chance of 1e-6


def nothing(x: Tensor, c_noise: Tensor) -> Tensor:
    return torch.zeros_like(x)


def z_score(values: Tensor) -> float:
    return float(values.mean() / values.std() * math.sqrt(len(values)))


CASES: dict[str, tuple[SDE, Callable[[Tensor], Tensor]]] = {
    "well": (WELL, lambda z: -1 + 0.3 * z[:, :1]),
    "growth": (GROWTH, lambda z: (0.2 + 0.2 * z[:, :1]).exp()),
    "swirl": (SWIRL, lambda z: 0.5 * z),
    "root": (SquareRoot(t_min=1e-3, t_max=1.0), lambda z: 1 + 0.2 * z[:, :1].clamp(-3, 3)),
}


@pytest.mark.parametrize("carry", [True, False], ids=["carried", "local"])
@pytest.mark.parametrize("case", CASES)
def test_the_target_is_the_score_on_average(case: str, carry: bool) -> None:
    """Stein's identity, E[score phi] = -E[d phi/dx], for three functions phi, early and late."""
    sde, data = CASES[case]
    x0 = data(normal((8000, 2), stream(0, case), dtype=F64))
    loss = losses.SimulatedLoss("reverse", steps=40, picks=2, carry=carry)
    found = loss.pick(SDEModel(nothing, sde), x0, stream(1, case))
    assert found.x.shape == (16_000, x0.shape[1])
    late = found.t > 0.3
    for which in (late, ~late):
        x, w = found.x[which], found.target[which]
        for i in range(x.shape[1]):
            y = x[:, i]
            for phi, slope in ((torch.ones_like(y), torch.zeros_like(y)), (y, torch.ones_like(y)), (y.sin(), y.cos())):
                assert abs(z_score(w[:, i] * phi + slope)) < Z


def test_carrying_is_the_change_of_variables_to_third_order() -> None:
    """x -> x + e sin x in each coordinate: the score W becomes (W - d log J)/J with J = 1 + e cos x."""
    x, w = (normal((50, 1), stream(0, key), dtype=F64) for key in "xw")
    errors = []
    for e in (0.1, 0.05):
        point = x.clone().requires_grad_()
        jacobian = 1 + e * x.cos()
        exact = (w + e * x.sin() / jacobian) / jacobian
        errors.append(float((_carry(e * point.sin(), point, w, stream(1)) - exact).norm()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(3, abs=0.3)
    twisted = torch.tensor([[0.0, 0.3], [-0.2, 0.1]], dtype=F64)
    point, w = normal((9, 2), stream(2), dtype=F64).requires_grad_(), normal((9, 2), stream(3), dtype=F64)
    step = torch.eye(2, dtype=F64) - 0.01 * twisted.T + 1e-4 * (twisted @ twisted).T
    torch.testing.assert_close(_carry(0.01 * point @ twisted.T, point, w, stream(1)), w @ step.T)


def test_a_carried_target_has_far_less_noise_than_a_local_one() -> None:
    for case in ("well", "swirl", "growth"):
        sde, data = CASES[case]
        x0 = data(normal((2000, 2), stream(0, case), dtype=F64))
        noise = []
        for carry in (True, False):
            loss = losses.SimulatedLoss("reverse", steps=40, carry=carry)
            found = loss.pick(SDEModel(nothing, sde), x0, stream(1, case))
            noise.append(float((found.unit * found.target)[found.t > 0.3].square().mean()))
        assert noise[0] < 0.4 * noise[1], case


def test_under_a_linear_drift_the_carried_target_is_that_of_denoising() -> None:
    """-(x_t - mean)/variance of x_t | x_0 has the least noise there is, 1/variance, up to what theta is estimated."""
    found = losses.SimulatedLoss("reverse", steps=200).pick(
        SDEModel(nothing, UNEVEN), torch.zeros(4000, 2, dtype=F64), stream(0)
    )
    late = found.t > 0.5
    span = found.t[late].tolist()
    variance = torch.stack([UNEVEN.law(0.0, 0.0, tau - UNEVEN.t_min)[1] for tau in span])
    exact = -found.x[late] / variance
    assert float((found.target[late] * exact).mean(0).div(exact.square().mean(0)).sub(1).abs().max()) < 0.05
    assert float((found.target[late][:, 0] - exact[:, 0]).square().mean() / exact[:, 0].square().mean()) < 0.3


def first(x: Tensor, c_noise: Tensor) -> Tensor:
    return torch.sin(x + 0.1 * c_noise[:, None])


def second(x: Tensor, c_noise: Tensor) -> Tensor:
    return 0.3 * x - 0.2


@pytest.mark.parametrize("kind", ["implicit", "sliced"])
@pytest.mark.parametrize("name", ["growth", "uneven"])
def test_losses_differ_as_the_distances_from_the_exact_score(kind: str, name: str) -> None:
    """Between two networks; the states of the loss are picked again with the same generator."""
    sde = {"growth": GROWTH, "uneven": UNEVEN}[name]
    z = normal((8000, 2), stream(0, name), dtype=F64)
    x0 = (0.2 + 0.2 * z[:, :1]).exp() if name == "growth" else 0.5 + 0.4 * z
    models = [SDEModel(net, sde) for net in (first, second)]
    loss = losses.SimulatedLoss(kind, steps=100, picks=2)
    picked = loss.pick(models[0], x0, stream(2))
    if name == "growth":
        exact = GROWTH.score(picked.x, picked.t)
    else:
        laws = [UNEVEN.law(0.5, 0.16, t - UNEVEN.t_min) for t in picked.t.tolist()]
        mean, variance = (torch.stack(part) for part in zip(*laws, strict=True))
        exact = -(picked.x - mean) / variance
    gaps = [(picked.unit * (model(picked.x, picked.t) - exact)).square().mean(1) for model in models]
    wanted = (gaps[0] - gaps[1]).reshape(2, -1).mean(0)
    got = (loss(models[0], x0, stream(2)) - loss(models[1], x0, stream(2))).detach()
    assert abs(float(wanted.mean())) > 0.05
    # On states of the chain, which is within a few per cent of the SDE.
    assert abs(float((got - wanted).mean())) < Z * float((got - wanted).std()) / math.sqrt(len(got)) + 0.05 * abs(
        float(wanted.mean())
    )


def test_the_reverse_loss_is_least_at_the_exact_score() -> None:
    """Of all multiples and shifts of the exact output, against least squares on the same states."""
    x0 = 0.5 + 0.4 * normal((6000, 2), stream(0), dtype=F64)

    def exact(y: Tensor, c_noise: Tensor, by: float = 1.0) -> Tensor:
        tau = (-c_noise).exp() * (UNEVEN.t_max - UNEVEN.t_min)
        laws = [UNEVEN.law(0.5, 0.16, t) for t in tau.tolist()]
        mean, variance = (torch.stack(part) for part in zip(*laws, strict=True))
        score = -(y - mean) / variance
        equilibrium = -2 * UNEVEN.rates * y / UNEVEN.sizes.square()
        return by * UNEVEN.sizes * tau.sqrt()[:, None] * (score - equilibrium)

    loss = losses.SimulatedLoss("reverse", steps=60, picks=1)
    values = [loss(SDEModel(lambda y, c, by=by: exact(y, c, by), UNEVEN), x0, stream(3)) for by in (0.7, 1.0, 1.3)]
    assert z_score(values[0] - values[1]) > Z
    assert z_score(values[2] - values[1]) > Z
    curve = [float(v.mean()) for v in values]
    lowest = 1 + 0.15 * (curve[0] - curve[2]) / (curve[0] - 2 * curve[1] + curve[2])
    assert lowest == pytest.approx(1, abs=0.1)


class Runaway(SDE):
    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        return x**3

    def diffusion(self, t: Tensor | float) -> Tensor:
        return torch.ones_like(torch.as_tensor(t))


def test_bad_objectives_and_paths_are_refused() -> None:
    x = normal((8, 1), stream(0))
    with pytest.raises(ConfigError, match="unknown objective 'revers'; did you mean 'reverse'"):
        fit(SDEModel(MLP(1, width=4, depth=1), WELL), x, steps=1, objective="revers", progress=False)
    with pytest.raises(ConfigError, match=r"simulates paths of an SDEModel\(net, sde\); the marginals of a ScoreModel"):
        fit(ScoreModel(MLP(1, width=4, depth=1), VPSDE()), x, steps=1, objective="sliced", progress=False)
    with pytest.raises(ConfigError, match="unknown objective 'denoise'"):
        losses.SimulatedLoss("denoise")
    with pytest.raises(DomainError, match="steps must be at least 2"):
        losses.SimulatedLoss(steps=1)
    with pytest.raises(ConfigError, match=r"simulates paths of an SDEModel\(net, sde\), got ScoreModel"):
        losses.SimulatedLoss()(ScoreModel(MLP(1, width=4, depth=1), VPSDE()), x, stream(0))
    with pytest.raises(SolverError, match="not finite within 20 steps; take more"):
        losses.SimulatedLoss("implicit", steps=20)(SDEModel(nothing, Runaway(t_max=9.0)), 3 + x, stream(0))
    with pytest.raises(SolverError, match="carries states away from there, so that no step is small enough"):
        fit(SDEModel(MLP(1, width=4, depth=1), Runaway(t_max=9.0)), 3 + x, steps=1, progress=False)
