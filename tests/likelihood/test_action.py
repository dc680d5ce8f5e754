"""The action of paths, against densities of Gaussian chains, and paths of least action, against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import slope
from scipy.integrate import solve_bvp, solve_ivp
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from scoresde import (
    SDE,
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    GaussianMixtureModel,
    ShapeError,
    SolverError,
    forward_path,
    path_log_weight,
    solvers,
)
from scoresde.diffusions.sde import transition_weights
from scoresde.likelihood import most_probable_path, onsager_machlup
from scoresde.noise import normal, stream

F64 = torch.float64
RULES = ["ito", "stratonovich"]
# Neither symmetric nor normal: its drift has no potential.
TURN = torch.tensor([[-0.7, 1.1], [-0.4, -1.6]], dtype=F64)
SHIFT = torch.tensor([0.3, -0.5], dtype=F64)
TIMES = torch.tensor([0.1, 0.25, 0.3, 0.55, 0.9, 1.0], dtype=F64)


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=F64)


@dataclass(frozen=True, eq=False)
class Drift(SDE):
    """Any drift, with the diffusion g (1 + t)."""

    field: Callable[[Tensor], Tensor]
    g: float = 0.6

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        return self.field(x)

    def diffusion(self, t: Tensor | float) -> Tensor:
        return self.g * (1 + torch.as_tensor(t))


@dataclass(frozen=True, eq=False)
class Constant(Drift):
    """Any drift, with a constant diffusion."""

    def diffusion(self, t: Tensor | float) -> Tensor:
        return torch.full_like(torch.as_tensor(t), self.g)


def linear(x: Tensor) -> Tensor:
    return x @ TURN.T + SHIFT


def well(x: Tensor) -> Tensor:
    """Minus the gradient of (x^2 - 1)^2/4."""
    return x - x**3


def chain(rule: str, sde: SDE, times: Tensor, x0: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return mean and covariance of the states after x0, (N D,) and (N D, N D), of the linear chain that a rule makes.

    The third is the log of the Jacobian that exp(-h/2 div f) stands for, less that.
    """
    eye, size = torch.eye(2, dtype=F64), 2 * (len(times) - 1)
    mean, spread = torch.zeros(size, dtype=F64), torch.zeros(size, size, dtype=F64)  # x = mean + spread z
    extra, x, on_z = 0.0, x0, torch.zeros(2, size, dtype=F64)
    for i, (t, s) in enumerate(pairwise(times)):
        h = s - t
        g = sde.diffusion(t if rule == "ito" else (t + s) / 2) * h.sqrt()
        early, late = (eye + h * TURN, eye) if rule == "ito" else (eye + h / 2 * TURN, eye - h / 2 * TURN)
        fresh = torch.zeros(2, size, dtype=F64)
        fresh[:, 2 * i : 2 * i + 2] = g * eye
        x, on_z = torch.linalg.solve(late, early @ x + h * SHIFT), torch.linalg.solve(late, early @ on_z + fresh)
        mean[2 * i : 2 * i + 2], spread[2 * i : 2 * i + 2] = x, on_z
        extra += float(torch.linalg.slogdet(late)[1] + (h / 2 * TURN.trace() if rule != "ito" else 0.0))
    return mean, spread @ spread.T, extra


def log_width(sde: SDE, times: Tensor, rule: str, size: int) -> Tensor:
    at = times[:-1] if rule == "ito" else (times[1:] + times[:-1]) / 2
    return 0.5 * size * (2 * math.pi * sde.diffusion(at) ** 2 * times.diff()).log().sum()


@pytest.mark.parametrize("rule", RULES)
def test_the_action_is_minus_the_log_density_of_the_rules_own_chain(rule: str) -> None:
    sde = Drift(linear)
    path = normal((len(TIMES), 3, 2), stream(0, "path"), dtype=F64)
    path[0] = vector(0.4, -1.0)
    mean, covariance, extra = chain(rule, sde, TIMES, path[0, 0])
    exact = MultivariateNormal(mean, covariance).log_prob(path[1:].transpose(0, 1).reshape(3, -1))
    found = -onsager_machlup(sde, path, TIMES, rule=rule) - log_width(sde, TIMES, rule, 2)
    torch.testing.assert_close(found + extra, exact, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("rule", RULES)
def test_both_tend_to_the_exact_density_of_an_ornstein_uhlenbeck_path(rule: str) -> None:
    """In the mean over its paths, which is a trace for a quadratic action, at order one in the step."""
    k, g, errors, counts = 1.3, 0.8, list[float](), (8, 16, 32, 64)
    sde = Constant(lambda x: -k * x, g)
    for n in counts:
        t = torch.linspace(0.2, 1.0, n + 1, dtype=F64)
        s = t[1:] - t[0]
        covariance = g**2 / (2 * k) * ((-k * (s[:, None] - s).abs()).exp() - (-k * (s[:, None] + s)).exp())
        law = MultivariateNormal(torch.zeros(n, dtype=F64), covariance)

        def action(inner: Tensor, t: Tensor = t) -> Tensor:
            return onsager_machlup(sde, torch.cat([torch.zeros(1, dtype=F64), inner])[:, None, None], t, rule=rule)[0]

        still = torch.zeros(n, dtype=F64)
        form = torch.autograd.functional.hessian(action, still)
        mean = float(-0.5 * (form * covariance).sum() - action(still) - log_width(sde, t, rule, 1))
        errors.append(-float(law.entropy()) - mean)
    assert slope(errors, counts) == pytest.approx(1.0, abs=0.1)
    assert abs(errors[-1]) < 0.02


def test_both_agree_on_paths_of_the_sde_as_the_step_shrinks() -> None:
    """The square of a step is g^2 h in the mean, and off by as much: over N steps that leaves N^(-1/2)."""
    sde, fine = Constant(well, 0.8, t_max=3.0), 1024
    t = torch.linspace(0.1, 2.1, fine + 1, dtype=F64)
    x = [torch.full((400, 1), -0.5, dtype=F64)]
    for z in normal((fine, 400, 1), stream(1, "steps"), dtype=F64):
        x.append(x[-1] + 2 / fine * well(x[-1]) + 0.8 * math.sqrt(2 / fine) * z)
    path, off, counts = torch.stack(x), list[float](), (1024, 256, 64)
    for n in counts:
        one, two = (onsager_machlup(sde, path[:: fine // n], t[:: fine // n], rule=rule) for rule in RULES)
        off.append(float((one - two).square().mean().sqrt()))
    assert slope(off, counts) == pytest.approx(0.5, abs=0.12)
    assert off[0] < 0.15


def test_differences_of_actions_are_girsanovs_ratio_whose_mean_is_one() -> None:
    g, h, n, paths = 0.7, 0.05, 20, 20_000
    one, two = Constant(well, g, t_max=2.0), Constant(lambda x: -0.5 * x, g, t_max=2.0)
    t = 0.1 + h * torch.arange(n + 1, dtype=F64)
    x = [torch.full((paths, 1), 0.3, dtype=F64)]
    for z in normal((n, paths, 1), stream(2, "steps"), dtype=F64):
        x.append(x[-1] + h * well(x[-1]) + g * math.sqrt(h) * z)
    path = torch.stack(x)
    ratio = onsager_machlup(one, path, t) - onsager_machlup(two, path, t)
    f, other, moves = well(path[:-1]), -0.5 * path[:-1], path.diff(dim=0)
    girsanov = ((other - f) * moves / g**2 - (other**2 - f**2) * h / (2 * g**2)).sum((0, 2))
    torch.testing.assert_close(ratio, girsanov, rtol=1e-10, atol=1e-10)
    weight = ratio.exp()
    assert abs(float(weight.mean()) - 1) < 4.5 * float(weight.std()) / math.sqrt(paths)
    assert abs(float((weight * path[-1, :, 0]).mean()) - 0.3 * (1 - 0.5 * h) ** n) < 4.5 * float(weight.std()) / 100


def test_log_weights_of_paths_are_made_of_actions() -> None:
    sde = VPSDE()
    model = GaussianMixtureModel(sde=sde, weights=vector(1, 2), means=vector(-1, 0.8)[:, None], std=0.4)
    times = vector(1.0, 0.8, 0.5, 0.3, 0.1)
    table = solvers.euler_maruyama()(sde, times)
    path = forward_path(table, vector(0.2, -0.7, 1.1)[:, None], seed=3)
    late = model.moments.at(float(sde.alpha(1.0)), float(sde.sigma(1.0)))
    reverse = sde.reverse(model)
    back = -onsager_machlup(reverse, path.flip(0), times)
    back = back - 0.5 * (2 * math.pi * sde.diffusion(times[:-1]) ** 2 * times.diff().abs()).log().sum()
    a, b = transition_weights(sde.at(times.flip(0)[:-1]), sde.at(times.flip(0)[1:]))
    forward = Normal(a[:, None, None] * path[:-1], b[:, None, None]).log_prob(path[1:]).sum((0, 2))
    expected = late.log_prob(path[-1]) + back - forward
    torch.testing.assert_close(path_log_weight(model, path, table), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [1, 3])
def test_in_equilibrium_a_path_and_its_reversal_are_equally_likely(size: int) -> None:
    """To rounding by the midpoint rule: its sum of x dx telescopes. The reverse SDE runs down in time."""
    k, g = 1.7, 0.9
    sde = Constant(lambda x: -k * x, g)
    law = Normal(vector(0), vector(g / math.sqrt(2 * k)))
    path = normal((len(TIMES), 4, size), stream(4, "path"), dtype=F64)
    ahead = law.log_prob(path[0]).sum(1) - onsager_machlup(sde, path, TIMES, rule="stratonovich")
    reverse = sde.reverse(lambda x, t: -2 * k / g**2 * x)
    back = law.log_prob(path[-1]).sum(1) - onsager_machlup(reverse, path.flip(0), TIMES.flip(0), rule="stratonovich")
    torch.testing.assert_close(ahead, back, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("rule", RULES)
def test_gradients_reach_the_path_and_what_the_drift_holds(rule: str) -> None:
    """The rate of least action of an Ornstein-Uhlenbeck path is in closed form."""
    path = normal((len(TIMES), 5, 2), stream(5, "path"), dtype=F64).requires_grad_()
    rate = torch.tensor(0.8, dtype=F64, requires_grad=True)
    sde = Constant(lambda x: -rate * x, 0.5)
    action = onsager_machlup(sde, path, TIMES, rule=rule)
    on_rate, on_path = torch.autograd.grad(action.sum(), (rate, path), create_graph=True)
    at = path[:-1] if rule == "ito" else (path[1:] + path[:-1]) / 2
    h = TIMES.diff()[:, None, None]
    expected = ((path.diff(dim=0) + rate * at * h) * at / 0.25).sum() - (0.0 if rule == "ito" else 5 * h.sum())
    torch.testing.assert_close(on_rate, expected)
    assert on_path.abs().min() > 0
    with torch.no_grad():
        assert not onsager_machlup(sde, path, TIMES, rule=rule).requires_grad
    assert not onsager_machlup(Constant(well), path.detach(), TIMES, rule=rule).requires_grad


@pytest.mark.parametrize("event", [(), (1,), (2, 3)])
def test_any_event_and_type(event: tuple[int, ...]) -> None:
    path = normal((len(TIMES), 4, *event), stream(6, "path"), dtype=F64)
    sde = Drift(lambda x: torch.sin(2 * x))
    for rule in RULES:
        alone = sum(
            onsager_machlup(sde, path.reshape(len(TIMES), 4, -1)[:, :, k : k + 1], TIMES, rule=rule)
            for k in range(math.prod(event))
        )
        found = onsager_machlup(sde, path, TIMES, rule=rule)
        assert found.dtype == F64
        torch.testing.assert_close(found, alone, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(onsager_machlup(sde, path.float(), TIMES, rule=rule), alone, rtol=1e-4, atol=1e-3)
    assert onsager_machlup(sde, path[:, :0], TIMES).shape == (0,)


# --- paths of least action


def instanton(t: Tensor) -> Tensor:
    """The solution of x' = V'(x) = x^3 - x from -1, uphill, to 0."""
    return -1 / (1 + (2 * t).exp()).sqrt()


@pytest.mark.parametrize(("rule", "g", "order"), [("ito", 0.5, 1), ("stratonovich", 1e-5, 2)])
def test_weak_noise_climbs_by_the_instanton(rule: str, g: float, order: int) -> None:
    """x' = +V' uphill, whose action is 2 (V(end) - V(start))/g^2."""
    sde, errors, counts = Constant(well, g, t_max=10.0), list[float](), (30, 60, 120)
    for n in counts:
        t = torch.linspace(1.0, 7.0, n + 1, dtype=F64)
        exact = instanton(t - 4)
        path = most_probable_path(sde, exact[:1, None], exact[-1:, None], t, rule=rule)
        errors.append(float((path[:, 0, 0] - exact).abs().max()))
    assert slope(errors, counts) == pytest.approx(order, abs=0.12)
    height = [(x**2 - 1) ** 2 / 4 for x in exact[[0, -1]].tolist()]
    action = float(onsager_machlup(sde, path, t, rule=rule)) * g**2
    assert action == pytest.approx(2 * (height[1] - height[0]), rel=2e-3)


@pytest.mark.parametrize(("start", "end"), [(-1.0, 1.0), (-1.3, 0.6)])
def test_noise_that_is_not_weak_follows_the_euler_lagrange_equation(start: float, end: float) -> None:
    """x'' = d/dx [V'^2/2 - g^2/2 V''], solved by scipy."""
    g, errors, counts = 0.7, list[float](), (40, 80, 160)
    sde = Constant(well, g, t_max=10.0)

    def equation(t: np.ndarray, y: np.ndarray) -> np.ndarray:
        x = y[0]
        return np.stack([y[1], (x**3 - x) * (3 * x**2 - 1) - g**2 / 2 * 6 * x])

    for n in counts:
        t = torch.linspace(0.5, 3.5, n + 1, dtype=F64)
        path = most_probable_path(sde, vector(start)[:, None], vector(end)[:, None], t)[:, 0, 0]
        mesh, near = t.numpy(), path.numpy()  # the equation has other solutions, which are no minima
        exact = solve_bvp(
            equation,
            lambda a, b: np.array([a[0] - start, b[0] - end]),
            mesh,
            np.stack([near, np.gradient(near, mesh)]),
            tol=1e-8,
            max_nodes=10_000,
        )
        assert exact.success
        errors.append(float(np.abs(path.numpy() - exact.sol(mesh)[0]).max()))
    assert slope(errors, counts) == pytest.approx(2, abs=0.15)
    assert errors[-1] < 2e-4


@pytest.mark.parametrize("rule", RULES)
def test_under_a_linear_drift_it_is_the_mean_of_the_chain_between_its_ends(rule: str) -> None:
    """Also where the drift has no potential, the steps differ and the noise changes; a batch is as good as one."""
    sde, start, end = Drift(linear), vector(0.4, -1.0), vector(-0.8, 0.9)
    mean, covariance, _ = chain(rule, sde, TIMES, start)
    pull = torch.linalg.solve(covariance[-2:, -2:], end - mean[-2:])
    exact = torch.cat([start, mean + covariance[:, -2:] @ pull]).reshape(-1, 2)
    ends = torch.stack([start, start]), torch.stack([end, end + 1])
    path = most_probable_path(sde, *ends, TIMES, rule=rule)
    torch.testing.assert_close(path[:, 0], exact, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(path[:, 1], most_probable_path(sde, start[None], end[None] + 1, TIMES, rule=rule)[:, 0])


@pytest.mark.parametrize("rule", RULES)
def test_nothing_near_by_is_of_less_action(rule: str) -> None:
    """The gradient on every state between the ends is that of rounding, in units of the steps' own."""
    sde, t = Constant(well, 0.5, t_max=5.0), torch.linspace(1.0, 4.0, 31, dtype=F64)
    path = most_probable_path(sde, vector(-1.2, -0.5)[:, None], vector(0.7, 1.5)[:, None], t, rule=rule)
    path.requires_grad_()
    (gradient,) = torch.autograd.grad(onsager_machlup(sde, path, t, rule=rule).sum(), path)
    assert float(gradient[1:-1].abs().max()) < 1e-9 / (0.5**2 * 0.1)
    assert float(gradient[[0, -1]].abs().min()) > 0.1


def bent(x: Tensor) -> Tensor:
    """Minus the gradient of (a^2 - 1)^2/4 + (b + s (a^2 - 1))^2: wells at (-1, 0) and (1, 0), a saddle at (0, s)."""
    a, off = x[:, 0], x[:, 1] + 0.4 * (x[:, 0] ** 2 - 1)
    return -torch.stack([a**3 - a + 1.6 * a * off, 2 * off], 1)


def test_in_the_plane_it_goes_over_the_saddle_along_the_steepest_line() -> None:
    sde, g = Constant(bent, 0.01, t_max=20.0), 0.01
    t = torch.linspace(1.0, 19.0, 201, dtype=F64)
    path = most_probable_path(sde, vector(-1, 0)[None], vector(1, 0)[None], t)
    down = solve_ivp(
        lambda _, y: bent(torch.from_numpy(y)[None])[0].numpy(), (0, 16), [-1e-4, 0.4], rtol=1e-9, atol=1e-11
    )
    line = torch.from_numpy(down.y.T)
    left = path[path[:, 0, 0] < 0][:, 0]
    assert float(torch.cdist(left, line).min(1).values.max()) < 0.02
    assert float(torch.cdist(path[:, 0], vector(0, 0.4)[None]).min()) < 0.02
    assert float(onsager_machlup(sde, path, t, rule="stratonovich")) * g**2 == pytest.approx(2 * 0.25, rel=5e-3)


def test_the_guess_says_on_which_side_of_a_hill_it_passes() -> None:
    def hill(x: Tensor) -> Tensor:
        """Minus the gradient of 2 exp(-2 |x|^2)."""
        return 8 * x * (-2 * x.square().sum(1, keepdim=True)).exp()

    sde, t = Constant(hill, 0.3, t_max=5.0), torch.linspace(1.0, 4.0, 41, dtype=F64)
    start, end = vector(-1.5, 0)[None], vector(1.5, 0)[None]
    line = torch.linspace(-1.5, 1.5, 41, dtype=F64)
    sides = [
        most_probable_path(sde, start, end, t, guess=torch.stack([line, side * (1 - line.abs() / 1.5)], 1)[:, None])
        for side in (1.0, -1.0)
    ]
    assert sides[0][20, 0, 1] > 0.3
    torch.testing.assert_close(sides[0] * vector(1, -1), sides[1], rtol=1e-7, atol=1e-7)


def test_a_reverse_sde_has_its_most_probable_path_too() -> None:
    """Down in time; of a Gaussian with the prior's variance, whose reverse drift is a Brownian motion's with a pull."""
    sde = VPSDE()
    reverse = sde.reverse(lambda x, t: -x)
    t = torch.linspace(0.9, 0.2, 30, dtype=F64)
    path = most_probable_path(reverse, vector(1.0)[:, None], vector(-0.5)[:, None], t)
    back = most_probable_path(sde, vector(-0.5)[:, None], vector(1.0)[:, None], t.flip(0))
    torch.testing.assert_close(path.flip(0), back, rtol=1e-8, atol=1e-8)


def test_types_of_the_ends() -> None:
    t = torch.linspace(0.2, 1.0, 5, dtype=F64)
    path = most_probable_path(Constant(well), torch.zeros(3, 1), torch.ones(3, 1), t)
    assert (path.dtype, path.shape, path.requires_grad) == (torch.float32, (5, 3, 1), False)
    half = most_probable_path(
        Constant(well), torch.zeros(3, dtype=torch.float16), torch.ones(3, dtype=F64)[:3].half(), t
    )
    assert (half.dtype, half.shape) == (torch.float32, (5, 3))
    torch.testing.assert_close(half, path[..., 0])
    assert most_probable_path(Constant(well), torch.zeros(0, 1), torch.ones(0, 1), t).shape == (5, 0, 1)


# --- bad input


def test_bad_input_of_an_action() -> None:
    path = torch.zeros(len(TIMES), 2, 1)
    sde = Constant(well)
    with pytest.raises(ConfigError, match="did you mean 'ito'"):
        onsager_machlup(sde, path, TIMES, rule="itto")
    with pytest.raises(ShapeError, match=r"path must have shape \(6, B, \*\), a state for each of the times, got"):
        onsager_machlup(sde, path[1:], TIMES)
    with pytest.raises(ShapeError, match="at least two"):
        onsager_machlup(sde, path[:1], TIMES[:1])
    with pytest.raises(DomainError, match=r"path has 1 non-finite values"):
        onsager_machlup(sde, path.index_fill(0, torch.tensor([2]), math.nan)[:, :1], TIMES)
    with pytest.raises(DomainError, match=r"times must increase.*use times\.flip\(0\)"):
        onsager_machlup(sde, path, TIMES.flip(0))
    with pytest.raises(DomainError, match=r"times must decrease.*use times\.flip\(0\)"):
        onsager_machlup(sde.reverse(lambda x, t: -x), path, TIMES)
    with pytest.raises(DomainError, match=r"the diffusion is 0 at t = 1.*take eta > 0"):
        onsager_machlup(sde.reverse(lambda x, t: -x, eta=0.0), path, TIMES.flip(0))
    with pytest.raises(DTypeError, match="sde must be an SDE"):
        onsager_machlup(well, path, TIMES)
    with pytest.raises(DTypeError, match="path must"):
        onsager_machlup(sde, path.tolist(), TIMES)
    with pytest.raises(ShapeError, match="drift must have x's shape"):
        onsager_machlup(Constant(lambda x: x.sum(1)), path, TIMES)


def test_bad_input_of_a_path() -> None:
    sde, start, end = Constant(well), torch.zeros(2, 1), torch.ones(2, 1)
    with pytest.raises(ShapeError, match=r"end must have the shape \(2, 1\) of start, got \(3, 1\)"):
        most_probable_path(sde, start, torch.ones(3, 1), TIMES)
    with pytest.raises(ShapeError, match="at least three"):
        most_probable_path(sde, start, end, TIMES[:2])
    with pytest.raises(ShapeError, match=r"guess must have shape \(6, 2, 1\)"):
        most_probable_path(sde, start, end, TIMES, guess=torch.zeros(6, 1, 1))
    with pytest.raises(ShapeError, match="at most 256 coordinates"):
        most_probable_path(sde, torch.zeros(1, 300), torch.ones(1, 300), TIMES)
    with pytest.raises(DomainError, match="end has 2 non-finite"):
        most_probable_path(sde, start, end * math.inf, TIMES)
    with pytest.raises(ConfigError, match="unknown rule"):
        most_probable_path(sde, start, end, TIMES, rule="middle")
    with pytest.raises(SolverError, match="the action of a path is not finite"):
        most_probable_path(Constant(lambda x: x.log()), start - 2, end, TIMES)
