"""The exact laws of linear SDEs, against the differential equations of mean and covariance and against Bayes."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from linear_cases import EVENTS, SDES, covariance, draw, full
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from torch import Tensor

from scoresde import (
    VESDE,
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    GroupedSDE,
    LinearSDE,
    MatrixSDE,
    Moments,
    ScoreModel,
    ShapeError,
    nn,
)
from scoresde.diffusions.blocks import Block, Blocks, root
from scoresde.diffusions.linear_targets import hybrid_target, target_maps, view_maps
from scoresde.diffusions.named import linear_from_dict, sde_to_dict

TIMES = torch.tensor([0.02, 0.1, 0.39, 0.41, 0.8, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("name", SDES)
def test_mean_and_covariance_solve_their_differential_equations(name: str) -> None:
    sde = SDES[name]
    point = sde.at(TIMES)
    groups, k = point.mean.shape[-3:-1]
    first = sde.at(torch.tensor(1e-2, dtype=torch.float64))

    def change(t: float, y: np.ndarray) -> np.ndarray:
        drift, noise = (c.numpy() for c in sde.coefficients(torch.tensor(t, dtype=torch.float64)))
        mean, spread = y.reshape(2, groups, k, k)
        pulled = drift @ spread
        return np.stack([drift @ mean, pulled + pulled.swapaxes(1, 2) + noise]).ravel()

    start = torch.stack([first.mean, first.covariance]).numpy().ravel()
    # The rate of a group jumps where it comes to rest: the interval is cut there.
    ends = [1e-2, 0.4, 1.0] if name == "levels" else [1e-2, 1.0]
    for low, high in itertools.pairwise(ends):
        inside = (low < TIMES) & (high >= TIMES)
        times = [*TIMES[inside].tolist(), *([] if high == 1.0 else [high])]
        found = solve_ivp(
            change, (low + 1e-13, high - 1e-13), start, "DOP853", np.minimum(times, high - 1e-13), rtol=1e-9, atol=1e-10
        )
        start = found.y[:, -1]
        mean, spread = found.y.T[: int(inside.sum())].reshape(-1, 2, groups, k, k).swapaxes(0, 1)
        assert np.abs(mean - point.mean[inside].numpy()).max() < 1e-6
        assert np.abs(spread - point.covariance[inside].numpy()).max() < 1e-6


def test_a_matrix_is_an_exponential_and_its_noise_an_integral() -> None:
    sde, b = SDES["matrix"], float(VPSDE().integral(0.3))
    assert isinstance(sde, MatrixSDE)
    matrix = sde.matrix.numpy()
    mean, roots = sde.maps(torch.tensor(0.3, dtype=torch.float64))
    np.testing.assert_allclose(mean[0].numpy(), expm(b * matrix), atol=1e-13)
    # With the noise -(F + F^T) what the signal loses is noise: 1 - M M^T.
    np.testing.assert_allclose(
        (roots @ roots.mT)[0].numpy(), np.eye(3) - expm(b * matrix) @ expm(b * matrix).T, atol=1e-12
    )


def test_langevin_is_the_closed_form_of_its_paper() -> None:
    # Dockhorn et al. 2022, appendix B.1, for mass 1/4, Gamma = 1: with B the integral of beta,
    # M = e^{-2B} [[2B + 1, 4B], [-B, 1 - 2B]], and the covariance tends to diag(1, 1/4).
    sde = MatrixSDE.langevin(velocity=0.04)
    t = torch.tensor(0.2, dtype=torch.float64)
    b = float(sde.integral(t))
    mean, roots = sde.maps(t)
    np.testing.assert_allclose(
        mean[0].numpy(), math.exp(-2 * b) * np.array([[2 * b + 1, 4 * b], [-b, 1 - 2 * b]]), atol=1e-14
    )
    own, start = mean[0], torch.tensor([0.0, 0.01], dtype=torch.float64)
    stationary = torch.diag(torch.tensor([1.0, 0.25], dtype=torch.float64))
    want = stationary - own @ (stationary - torch.diag(start)) @ own.T
    torch.testing.assert_close((roots @ roots.mT)[0], want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", SDES)
def test_transitions_compose_and_posteriors_are_bayes(name: str) -> None:
    sde = SDES[name]
    s, t = torch.tensor([0.1, 0.3, 0.39], dtype=torch.float64), torch.tensor([0.3, 0.7, 0.4], dtype=torch.float64)
    early, late = sde.at(s), sde.at(t)
    onward, fresh = sde.transition_maps(s, t)
    torch.testing.assert_close(onward @ early.mean, late.mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(onward @ early.covariance @ onward.mT + fresh, late.covariance, rtol=1e-9, atol=1e-12)
    # Bayes, from precisions.
    on_xt, on_x0, spread = sde.posterior_maps(early, late)
    safe = fresh + 1e-300
    if name != "levels":  # where a group rests it has no fresh noise to divide by
        precision = torch.linalg.inv(early.covariance) + onward.mT @ torch.linalg.inv(safe) @ onward
        want = torch.linalg.inv(precision)
        torch.testing.assert_close(spread, want, rtol=1e-6, atol=1e-10)
        torch.testing.assert_close(on_xt, want @ onward.mT @ torch.linalg.inv(safe), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(on_x0 + on_xt @ late.mean, early.mean, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("name", SDES)
def test_the_reverse_family_with_the_data_known_keeps_the_law(name: str, eta: float) -> None:
    sde = SDES[name]
    ends = torch.linspace(1.0, 0.05, 12, dtype=torch.float64)
    late, early = sde.at(ends[:-1]), sde.at(ends[1:])
    on_x, on_data, on_noise = sde.frozen_maps(late, early, eta)
    spread = on_x @ late.covariance @ on_x.mT + on_noise @ on_noise.mT
    torch.testing.assert_close(spread, early.covariance, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(on_data + on_x @ late.mean, early.mean, rtol=1e-10, atol=1e-12)
    # Its linear part solves Psi' = (F + (1 + eta^2)/2 Q Sigma^{-1}) Psi: two short steps against the rate between.
    middle, h = 0.5, 1e-4
    near = sde.at(torch.tensor([middle + h, middle - h], dtype=torch.float64))
    psi = sde.frozen_maps(near[:1], near[1:], eta)[0][0]
    at = torch.tensor(middle, dtype=torch.float64)
    drift, noise = sde.coefficients(at)
    rate = drift + 0.5 * (1 + eta**2) * noise @ torch.linalg.inv(sde.at(at).covariance)
    want = torch.eye(psi.shape[-1], dtype=torch.float64) - 2 * h * rate
    assert float((psi - want).abs().max()) < 40 * h**2 * max(1.0, float(rate.abs().max())) ** 2


def test_the_mean_log_snr_falls_and_is_inverted() -> None:
    for sde in SDES.values():
        t = torch.linspace(2 * sde.t_min, 1.0, 50, dtype=torch.float64)
        values = sde.log_snr(t)
        assert bool((values.diff() < 0).all())
        torch.testing.assert_close(sde.time(values), t, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(sde.clock.log_snr(t), values)
    rates, one = GroupedSDE.with_rates((1.0, 1.0)), VPSDE()
    torch.testing.assert_close(rates.log_snr(TIMES), one.log_snr(TIMES), rtol=1e-13, atol=1e-13)


def test_blurring_is_the_heat_equation_on_images_and_vp_where_nothing_blurs() -> None:
    sharp = GroupedSDE.blurring((1, 4, 4), blur=0.0)
    mean, roots = sharp.maps(TIMES)
    vp = VPSDE().at(TIMES)
    torch.testing.assert_close(mean[..., 0, 0], vp.alpha[:, None].expand(-1, mean.shape[1]), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(roots[..., 0, 0], vp.sigma[:, None].expand(-1, mean.shape[1]), rtol=1e-12, atol=0.0)
    blurred = GroupedSDE.blurring((1, 8), blur=2.0, floor=1e-6)
    point = blurred.at(torch.tensor(1.0, dtype=torch.float64))
    tau, k = 2.0, torch.arange(8, dtype=torch.float64)
    want = (-0.5 * VPSDE().integral(torch.tensor(1.0, dtype=torch.float64)) - tau * (math.pi * k / 8).square()).exp()
    got = blurred.blocks.spread(point.mean)[0]
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-8)


def test_groups_of_several_kinds_of_diffusion_are_their_own_curves() -> None:
    sde = GroupedSDE((VPSDE(t_max=0.5), VESDE(t_min=1e-5)), torch.tensor([0, 1, 0]))
    mean, roots = sde.maps(TIMES)
    end = VPSDE(t_max=0.5).at(TIMES.clamp_max(0.5))
    torch.testing.assert_close(mean[:, 0, 0, 0], end.alpha)
    torch.testing.assert_close(roots[:, 1, 0, 0], VESDE(t_min=1e-5).sigma(TIMES))
    assert sde.kept(0.7) == (3,)  # no leading box
    assert GroupedSDE.levels((2, 8, 8), (0.3, 0.6)).kept(0.31) == (2, 4, 4)
    assert GroupedSDE.levels((2, 8, 8), (0.3, 0.6)).kept(0.6) == (2, 4, 4)
    assert GroupedSDE.levels((2, 8, 8), (0.3, 0.6)).kept(0.61) == (2, 2, 2)
    assert GroupedSDE.levels((2, 8, 8), (0.3, 0.6)).kept(0.3) == (2, 8, 8)


@pytest.mark.parametrize("name", SDES)
def test_perturbation_prior_and_drift_act_on_events(name: str) -> None:
    sde, event = SDES[name], EVENTS[name]
    event = (2 * event[0],) if name == "langevin" else event
    size = math.prod(event)
    x, z = draw(5, *event, key="x"), draw(5, *event, key="z")
    t = torch.tensor([0.1, 0.2, 0.3, 0.5, 0.9], dtype=torch.float64)
    point = sde.at(t)
    got = sde.perturb(x, t, z)
    for i in range(5):
        mean, roots = (sde.blocks.dense(maps[i], event) for maps in (point.mean, point.root))
        want = mean @ x[i].reshape(-1) + roots @ z[i].reshape(-1)
        torch.testing.assert_close(got[i].reshape(-1), want)
        drift = sde.blocks.dense(sde.coefficients(t)[0][i], event)
        torch.testing.assert_close(sde.drift(x, t)[i].reshape(-1), drift @ x[i].reshape(-1))
    law = Moments.exact(draw(*event, key="m"), covariance(size))
    prior, mean = sde.prior(0.5, law), sde.blocks.dense(point.mean[3], event)
    want = mean @ law.covariance @ mean.T + sde.blocks.dense(point.covariance[3], event)
    torch.testing.assert_close(full(prior), want)
    torch.testing.assert_close(prior.mean.reshape(-1), mean @ law.mean.reshape(-1))
    plain = sde.prior(0.5)
    own = torch.distributions.MultivariateNormal(
        torch.zeros(size, dtype=torch.float64), sde.blocks.dense(point.covariance[3], event)
    )
    torch.testing.assert_close(plain.log_prob(x), own.log_prob(x.reshape(5, -1)))
    torch.testing.assert_close(
        plain.from_noise(z)[0].reshape(-1), sde.blocks.dense(point.root[3], event) @ z[0].reshape(-1)
    )
    variances = Moments(law.mean, draw(*event, key="v").square())
    mixed = sde.prior(0.5, variances)
    want = mean @ torch.diag(variances.variance.reshape(-1)) @ mean.T + sde.blocks.dense(point.covariance[3], event)
    torch.testing.assert_close(full(mixed), want)


@pytest.mark.parametrize("name", SDES)
def test_every_view_is_read_from_every_prediction(name: str) -> None:
    sde = SDES[name]
    point, k = sde.at(TIMES), sde.blocks.parts
    x0, z = draw(len(TIMES), sde.blocks.groups, k, 1, key="x0"), draw(len(TIMES), sde.blocks.groups, k, 1, key="z")
    if name == "langevin":
        x0[..., 1, :] = 0.0
    x = point.mean @ x0 + point.root @ z
    pairs = {kind: target_maps(kind, point) for kind in ("data", "noise", "score", "velocity")}
    known = dict(pairs)
    if name == "langevin":
        known["hybrid"] = hybrid_target(1, point)
    if name in ("langevin", "levels"):
        # Where noise enters the velocity alone the flow says one number of two, and where a group rests none.
        with pytest.raises(DomainError, match="no finite value"):
            view_maps(known.pop("velocity"), pairs["data"], point)
    for (first, have), (second, want) in itertools.product(known.items(), pairs.items()):
        a, b = view_maps(have, want, point)
        output, expected = (p @ x0 + q @ z for p, q in (have, want))
        error = (a @ x + b @ output - expected).abs().max() / (1 + expected.abs().max())
        assert float(error) < 1e-7, (first, second)
    score = pairs["score"][1] @ z
    torch.testing.assert_close(score, -torch.linalg.solve(point.covariance, point.root @ z), rtol=1e-6, atol=1e-6)


def test_blocks_are_maps_that_multiply_and_add_like_numbers() -> None:
    blocks = Blocks(2)
    a, b = (Block(blocks, draw(1, 2, 2, key=key)) for key in "ab")
    x, y = draw(4, 6, key="x"), draw(4, 6, key="y")
    dense = [blocks.dense(one.maps, (6,)) for one in (a, b)]
    whole = a * b + 2.0
    assert isinstance(whole, Block)
    torch.testing.assert_close(whole.times(x), x @ (dense[0] @ dense[1] + 2 * torch.eye(6, dtype=torch.float64)).T)
    out = torch.empty_like(x)
    assert (0.5 * a).times(x, out) is out  # type: ignore[union-attr]
    torch.testing.assert_close(a.add_to(y.clone(), x), y + x @ dense[0].T)
    assert a * 0.0 == 0.0
    assert 0.0 + a is a
    index = torch.tensor([[0, 1], [1, 2]])
    grouped = Blocks(1, index)
    own = Block(grouped, draw(3, 1, 1, key="g"))
    z = draw(4, 2, 2, key="z")
    torch.testing.assert_close(own.times(z), z * own.maps[:, 0, 0][index])
    torch.testing.assert_close(grouped.shares(), torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64))
    many = draw(5, 3, 3, key="c")
    torch.testing.assert_close(root(many @ many.mT) @ root(many @ many.mT), many @ many.mT)


def test_json_gives_back_equal_sdes() -> None:
    for sde in SDES.values():
        twin = linear_from_dict(json.loads(json.dumps(sde_to_dict(sde))))
        assert type(twin) is type(sde)
        for one, two in zip(sde.maps(TIMES), twin.maps(TIMES), strict=True):
            assert torch.equal(one, two)
        assert (twin.t_min, twin.t_max) == (sde.t_min, sde.t_max)
    with pytest.raises(ConfigError, match="unknown linear SDE"):
        linear_from_dict({"kind": "MatrxSDE"})
    with pytest.raises(ConfigError, match="JSON cannot rebuild"):
        GroupedSDE((VESDE(),), torch.zeros(2, dtype=torch.long)).to_dict()


def test_gradients_reach_a_learned_matrix() -> None:
    matrix = torch.tensor([[-0.5, 0.2], [-0.3, -0.6]], dtype=torch.float64, requires_grad=True)
    sde = MatrixSDE(matrix)
    mean, roots = sde.maps(torch.tensor([0.3], dtype=torch.float64))
    loss = mean.square().sum() + roots.exp().sum()
    (gradient,) = torch.autograd.grad(loss, matrix)
    h = 1e-6

    def value(change: Tensor) -> float:
        mean, roots = MatrixSDE(matrix.detach() + change).maps(torch.tensor([0.3], dtype=torch.float64))
        return float(mean.square().sum() + roots.exp().sum())

    for i, j in itertools.product(range(2), repeat=2):
        change = torch.zeros(2, 2, dtype=torch.float64)
        change[i, j] = h
        assert float(gradient[i, j]) == pytest.approx((value(change) - value(-change)) / (2 * h), rel=1e-6)


def test_bad_linear_sdes_are_refused() -> None:
    eye = torch.eye(2, dtype=torch.float64)
    with pytest.raises(ShapeError, match="matrix must be a square matrix"):
        MatrixSDE(torch.zeros(2, 3))
    with pytest.raises(DomainError, match="matrix must be finite"):
        MatrixSDE(torch.full((2, 2), math.nan))
    with pytest.raises(DomainError, match=r"smallest eigenvalue is -1 \(it is -\(F \+ F\^T\); pass noise=\)"):
        MatrixSDE(0.5 * eye)
    with pytest.raises(DomainError, match="must be symmetric"):
        MatrixSDE(-eye, torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ShapeError, match=r"noise must be \(2, 2\)"):
        MatrixSDE(-eye, torch.eye(3))
    with pytest.raises(DomainError, match="never reaches some direction"):
        MatrixSDE(-eye, torch.diag(torch.tensor([1.0, 0.0])))
    with pytest.raises(ShapeError, match="start must have 2 variances"):
        MatrixSDE(-eye, start=torch.zeros(3))
    with pytest.raises(DomainError, match="start must hold variances"):
        MatrixSDE(-eye, start=torch.tensor([0.0, -1.0]))
    with pytest.raises(DTypeError, match="sdes must be a tuple of GaussianSDEs"):
        GroupedSDE((), torch.zeros(2, dtype=torch.long))
    with pytest.raises(DTypeError, match="index must be a tensor of integers"):
        GroupedSDE((VPSDE(),), torch.zeros(2))
    with pytest.raises(DomainError, match="index must name each of the groups 0 to 1"):
        GroupedSDE((VPSDE(), VPSDE()), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ConfigError, match="one t_min"):
        GroupedSDE((VPSDE(), VPSDE(t_min=1e-3)), torch.tensor([0, 1]))
    with pytest.raises(DomainError, match=r"rates\[1\] must lie in \(0, inf\)"):
        GroupedSDE.with_rates((1.0, 0.0))
    with pytest.raises(ShapeError, match="got none"):
        GroupedSDE.with_rates(())
    with pytest.raises(DomainError, match="do not decrease"):
        GroupedSDE.levels((1, 8), (0.6, 0.3))
    with pytest.raises(ShapeError, match="multiples of 4"):
        GroupedSDE.levels((1, 6), (0.3, 0.6))
    with pytest.raises(ShapeError, match="size must be"):
        GroupedSDE.blurring((8,))
    with pytest.raises(DomainError, match="floor"):
        GroupedSDE.blurring((1, 8), floor=0.0)
    with pytest.raises(ShapeError, match="the event"):
        SDES["rates"].drift(torch.zeros(2, 4), 0.5)
    with pytest.raises(ShapeError, match="a multiple of 3"):
        SDES["matrix"].drift(torch.zeros(2, 4), 0.5)
    with pytest.raises(ConfigError, match="linear map and no number"):
        SDES["matrix"].diffusion(0.5)
    with pytest.raises(DomainError, match="s must not exceed t"):
        SDES["matrix"].transition(torch.zeros(2, 3), 0.5, 0.2)
    with pytest.raises(DTypeError, match="see LinearModel"):
        ScoreModel(nn.MLP(3, width=4, depth=1), SDES["rates"])  # type: ignore[arg-type]
    assert isinstance(SDES["rates"], LinearSDE)
