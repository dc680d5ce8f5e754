"""Posteriors against exact ones: Gaussian data, invertible and empty operators; operators against their matrices."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scoresde import (
    EDMSDE,
    VPSDE,
    Affine,
    ConfigError,
    DomainError,
    DTypeError,
    GaussianModel,
    GaussianSDE,
    Logit,
    ProbabilityFlow,
    RectifiedFlow,
    ScoreModel,
    ShapeError,
    log_likelihood,
    map_prediction,
    posterior,
    sample,
)
from scoresde.models.guidance import Blur, Downsample, Fourier, Grey, Linear, Mask, Matrix, Nonlinear
from scoresde.models.guidance.methods import DDNM, DDRM, DPS, METHODS, MMPS, TMPD, DiffPIR, PiGDM, solve
from scoresde.models.guidance.operators import Operator
from scoresde.noise import normal, stream

D, M, STD = 4, 2, 0.3
DRAW = stream(11)
ROOT = normal((D, D), DRAW, dtype=torch.float64)
COVARIANCE = ROOT @ ROOT.T / D + 0.05 * torch.eye(D, dtype=torch.float64)
MEAN = normal((D,), DRAW, dtype=torch.float64)
A = normal((M, D), DRAW, dtype=torch.float64)
Y = normal((M,), DRAW, dtype=torch.float64)
X = normal((5, D), DRAW, dtype=torch.float64)
EXACT = (MMPS(iterations=60, tolerance=1e-15), PiGDM("moments"))


def prior(sde: GaussianSDE) -> GaussianModel:
    return GaussianModel(sde=sde, mean=MEAN, covariance=COVARIANCE)


def exact(sde: GaussianSDE, a: Tensor = A, y: Tensor = Y, std: float = STD) -> GaussianModel:
    """The exact model of x_0 given y."""
    gain = COVARIANCE @ a.T @ torch.linalg.inv(a @ COVARIANCE @ a.T + std**2 * torch.eye(len(a), dtype=torch.float64))
    covariance = COVARIANCE - gain @ a @ COVARIANCE
    return GaussianModel(sde=sde, mean=MEAN + gain @ (y - a @ MEAN), covariance=0.5 * (covariance + covariance.T))


@pytest.mark.parametrize("method", EXACT, ids=["mmps", "pigdm"])
@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE(), RectifiedFlow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("share", [0.05, 0.4, 0.9])
def test_gaussian_posteriors_are_exact(sde: GaussianSDE, share: float, method) -> None:
    t = sde.t_min + share * (sde.t_max - sde.t_min)
    model = posterior(prior(sde), Matrix(A), Y, noise_std=STD, method=method)
    got, wanted = model(X, t), exact(sde)(X, t)
    torch.testing.assert_close(got.data, wanted.data, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(got.score, wanted.score, rtol=1e-8, atol=1e-8)
    # Under another SDE at equal log-SNR, and every sample at a time of its own.
    other, point = VPSDE(0.3, 15.0), VPSDE(0.3, 15.0).at(torch.linspace(0.1, 0.8, 5, dtype=torch.float64))
    moved = model.with_sde(other).at(X, point).data
    torch.testing.assert_close(moved, exact(other).at(X, point).data, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("method", EXACT, ids=["mmps", "pigdm"])
def test_at_no_signal_at_all(method) -> None:
    """The rectified flow starts at alpha = 0, where J is 0 and (sigma^2/alpha) J has no value of its own."""
    sde = RectifiedFlow()
    got = posterior(prior(sde), Matrix(A), Y, noise_std=STD, method=method)(X, 1.0).data
    torch.testing.assert_close(got, exact(sde)(X, 1.0).data, rtol=0, atol=2e-3)


def test_one_measurement_makes_row_sums_exact() -> None:
    model = posterior(prior(VPSDE()), Matrix(A[:1]), Y[:1], noise_std=STD, method=TMPD())
    wanted = exact(VPSDE(), A[:1], Y[:1])(X, 0.4).data
    torch.testing.assert_close(model(X, 0.4).data, wanted, rtol=1e-8, atol=1e-10)


INVERTIBLE = torch.eye(D, dtype=torch.float64) + 0.3 * ROOT


@pytest.mark.parametrize(
    "method", [MMPS(60, 1e-15), PiGDM("moments"), DiffPIR(), DDNM(), DDRM()], ids=lambda m: type(m).__name__
)
def test_an_exact_measurement_of_everything_gives_the_data_back(method) -> None:
    wanted = torch.linalg.solve(INVERTIBLE, torch.ones(D, dtype=torch.float64))
    model = posterior(
        prior(VPSDE()), Matrix(INVERTIBLE), torch.ones(D, dtype=torch.float64), noise_std=0.0, method=method
    )
    for t in (0.1, 0.5, 1.0):
        torch.testing.assert_close(model(X, t).data, wanted.expand(5, D), rtol=1e-6, atol=1e-6)


def test_one_number_is_the_covariance_of_isotropic_data() -> None:
    sde, v = VPSDE(), 0.6
    model = GaussianModel(sde=sde, mean=MEAN, covariance=v * torch.eye(D, dtype=torch.float64))
    shifts = [
        posterior(model, Matrix(A), Y, noise_std=STD, method=method)(X, 0.4).data
        for method in (PiGDM(v), PiGDM("moments"))
    ]
    torch.testing.assert_close(*shifts, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("std", [0.0, 0.5])
def test_a_measurement_of_nothing_gives_the_prior(name: str, std: float) -> None:
    nothing = posterior(prior(VPSDE()), Matrix(torch.zeros(M, D)), Y, noise_std=std, method=name)
    torch.testing.assert_close(nothing(X, 0.4).data, prior(VPSDE())(X, 0.4).data, rtol=1e-10, atol=1e-10)


def test_the_formulas_of_the_others() -> None:
    """Each by matrices, with J = alpha C_t^{-1} ..., for Gaussian data."""
    sde, t = VPSDE(), 0.4
    point = sde.at(t)
    alpha, sigma = float(point.alpha), float(point.sigma)
    base = prior(sde)(X, t).data
    rest = Y - base @ A.T
    covariance = torch.linalg.inv(
        torch.linalg.inv(COVARIANCE) + alpha**2 / sigma**2 * torch.eye(D, dtype=torch.float64)
    )
    nu2 = (sigma / alpha) ** 2
    r2 = 0.5 * nu2 / (0.5 + nu2)
    eye = torch.eye(M, dtype=torch.float64)
    wanted = {
        "pigdm": rest @ torch.linalg.inv(STD**2 * eye + r2 * A @ A.T) @ A @ covariance,
        "dps": 2 * (rest / rest.norm(dim=1, keepdim=True)) @ A @ covariance,
        "diffpir": nu2 * rest @ torch.linalg.inv(STD**2 * eye + nu2 * A @ A.T) @ A,
        "ddnm": min(1.0, math.sqrt(nu2) / STD) * rest @ torch.linalg.pinv(A).T,
    }
    for name, shift in wanted.items():
        got = posterior(prior(sde), Matrix(A), Y, noise_std=STD, method=name)(X, t).data
        torch.testing.assert_close(got, base + shift, rtol=1e-8, atol=1e-9, msg=name)
    got = posterior(prior(sde), Matrix(A), Y, noise_std=STD, method=PiGDM(1.0))(X, t).data
    published = rest @ torch.linalg.inv(STD**2 * eye + sigma**2 / (alpha**2 + sigma**2) * A @ A.T) @ A @ covariance
    torch.testing.assert_close(got, base + published, rtol=1e-8, atol=1e-9)
    u, s, vt = torch.linalg.svd(A, full_matrices=False)
    for noise in (0.01, 5.0):
        ratio = math.sqrt(nu2) * s / noise
        share = torch.where(ratio >= 1, 1.0, math.sqrt(1 - 0.85**2) * ratio)
        got = posterior(prior(sde), Matrix(A), Y, noise_std=noise, method="ddrm")(X, t).data
        torch.testing.assert_close(got, base + (rest @ u * share / s) @ vt, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("solver", ["dpmpp_2m", "flow_abm", "ancestral", "heun"])
def test_every_table_samples_the_posterior(solver: str) -> None:
    law = exact(VPSDE())
    model = posterior(prior(VPSDE()), Matrix(A), Y, noise_std=STD, method=PiGDM("moments"))
    x = sample(model, 2000, solver=solver, steps=100 if solver == "ancestral" else 40, seed=0, dtype=torch.float64)
    torch.testing.assert_close(x.mean(0), law.moments.mean, rtol=0, atol=0.12)
    full = law.moments.basis @ law.moments.variance.diag() @ law.moments.basis.T
    torch.testing.assert_close(torch.cov(x.T), full, rtol=0, atol=0.15)


def test_the_flow_and_likelihood_run_on_a_posterior() -> None:
    law = exact(VPSDE())
    model = posterior(prior(VPSDE()), Matrix(A), Y, noise_std=STD, method=MMPS(20, 1e-13))
    x = law.sample_data(3, stream(4)).double()
    tight = ProbabilityFlow(1e-6, 1e-6)
    got = log_likelihood(model, x, solver=tight).values
    torch.testing.assert_close(got, law.log_prob(x), rtol=0, atol=0.05)
    fine = sample(model, x_init=normal((3, D), stream(5), dtype=torch.float64), solver=tight)
    assert bool(fine.isfinite().all())


@pytest.mark.parametrize("method", ["mmps", "pigdm", "tmpd", PiGDM("moments")], ids=str)
def test_an_error_of_the_network_stays_an_error(method) -> None:
    """A noise prediction that is off by 0.02 sin(3 x): where alpha is small its Jacobian says nothing of C."""
    base = prior(VPSDE())
    off = map_prediction(base, lambda p: p.noise + 0.02 * torch.sin(3 * p.x), "noise")
    options = {"steps": 30, "seed": 0, "dtype": torch.float64}
    x, clean = (
        sample(posterior(one, Matrix(A), Y, noise_std=0.05, method=method), 200, **options) for one in (off, base)
    )
    assert float((x - clean).abs().max()) < float(clean.abs().max())


def test_measurements_are_in_the_datas_own_units_and_each_samples_own() -> None:
    sde = VPSDE()
    model = prior(sde)
    model.transform = Affine(3.0, 2.0)
    a, y = A, Y + 1.0
    # x = 2 z + 3: A x = 2 A z + 3 A 1.
    inside = exact(sde, 2 * a, y - 3 * a.sum(1))
    got = posterior(model, Matrix(a), y, noise_std=STD, method=MMPS(60, 1e-15))
    torch.testing.assert_close(got(X, 0.5).data, inside(X, 0.5).data, rtol=1e-8, atol=1e-9)
    own = posterior(model, Matrix(a), None, noise_std=STD, method=MMPS(60, 1e-15))
    rows = torch.stack([y, y + 1, y - 2, y, y])
    together = own(X, 0.5, {"measurement": rows}).data
    torch.testing.assert_close(together[0], got(X, 0.5).data[0], rtol=1e-8, atol=1e-9)
    alone = own(X[2:3], 0.5, {"measurement": rows[2:3]}).data
    torch.testing.assert_close(together[2:3], alone, rtol=1e-8, atol=1e-9)


def test_what_is_not_linear_is_taken_at_the_prediction() -> None:
    """One coordinate, y = x^2: the Jacobian 2 D stands for A."""
    sde, std = VPSDE(), 0.2
    model = GaussianModel(sde=sde, mean=torch.tensor([1.0]), covariance=torch.tensor([0.3]))
    y, x = torch.tensor([2.0], dtype=torch.float64), X[:, :1]
    got = posterior(model, Nonlinear(lambda x: x**2), y, noise_std=std, method=MMPS(10, 1e-14))(x, 0.3).data
    data = model(x, 0.3).data
    point = sde.at(0.3)
    spread = 1 / (1 / 0.3 + float((point.alpha / point.sigma) ** 2))
    slope = 2 * data
    shift = spread * slope / (std**2 + slope**2 * spread) * (y - data**2)
    torch.testing.assert_close(got, data + shift, rtol=1e-6, atol=1e-7)
    # A linear operator behind a transform that is not.
    model.transform = Logit()
    other = posterior(model, Linear(lambda x: 2 * x), torch.tensor([0.8]), noise_std=std)
    assert bool(other(x, 0.3).data.isfinite().all())


# ---------------------------------------------------------------------------------------------------------------------
# Operators

EVENT = (2, 6, 4)
OPERATORS: dict[str, Operator] = {
    "mask": Mask(torch.arange(24).reshape(6, 4) % 3 == 0),
    "matrix": Matrix(normal((5, 48), stream(1), dtype=torch.float64)),
    "blur": Blur(normal((3, 3), stream(2), dtype=torch.float64)),
    "downsample": Downsample(2),
    "grey": Grey((0.3, 0.7)),
    "mean grey": Grey(),
    "fourier": Fourier(torch.arange(24).reshape(6, 4) % 5 < 2),
    "linear": Linear(lambda x: x.roll(1, -1) - 2 * x),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_adjoint_and_singular_values_are_the_matrix(name: str) -> None:
    operator = OPERATORS[name]
    x = normal((3, *EVENT), stream(3), dtype=torch.float64)
    y = operator(x)
    u = normal(tuple(y.shape), stream(4), dtype=torch.float64)
    back = operator.adjoint(u, EVENT)
    torch.testing.assert_close((y * u).flatten(1).sum(1), (x * back).flatten(1).sum(1), rtol=1e-10, atol=1e-10)
    model = GaussianModel(sde=VPSDE(), mean=torch.zeros(EVENT), covariance=torch.ones(EVENT))
    measured = posterior(model, operator, y[0], noise_std=0.1).measured
    left, values, right = measured.decompose(x)
    again = (x.flatten(1) @ right.T * values) @ left.T
    torch.testing.assert_close(again, y.flatten(1), rtol=1e-9, atol=1e-9)


def test_operators_are_what_their_names_say() -> None:
    x = normal((2, *EVENT), stream(3), dtype=torch.float64)
    kernel = normal((3, 5), stream(5), dtype=torch.float64)
    got = Blur(kernel)(normal((1, 1, 6, 7), stream(6), dtype=torch.float64))
    image = normal((1, 1, 6, 7), stream(6), dtype=torch.float64)
    padded = torch.zeros(6, 7, dtype=torch.float64)
    padded[:3, :5] = kernel
    padded = padded.roll((-1, -2), (0, 1))
    by_fft = torch.fft.ifft2(torch.fft.fft2(image) * torch.fft.fft2(padded)).real
    torch.testing.assert_close(got, by_fft, rtol=1e-10, atol=1e-10)
    assert float(Blur.gaussian(0.8).kernel.sum()) == pytest.approx(1.0)
    torch.testing.assert_close(Downsample(2)(x)[:, :, 0, 0], x[:, :, :2, :2].mean((2, 3)))
    everything = Fourier(torch.ones(6, 4, dtype=torch.bool))(x)
    torch.testing.assert_close(everything.square().sum((1, 2)), x.square().sum((1, 2, 3)))


def test_conjugate_gradients_solve_row_by_row() -> None:
    matrices = torch.stack([ROOT @ ROOT.T + (k + 1) * torch.eye(D, dtype=torch.float64) for k in range(3)])
    b = X[:3]
    got = solve(lambda v: torch.einsum("bij,bj->bi", matrices, v), b, 50, 1e-14)
    torch.testing.assert_close(got, torch.linalg.solve(matrices, b), rtol=1e-9, atol=1e-10)
    # A direction whose curvature is not above the least ends it, where it would be divided by nearly nothing.
    weak = torch.tensor([1.0, 1e-3], dtype=torch.float64)
    ones = torch.ones(1, 2, dtype=torch.float64)
    assert float(solve(lambda v: weak * v, ones, 50, 1e-12).max()) == pytest.approx(1000.0)
    assert float(solve(lambda v: weak * v, ones, 50, 1e-12, least=0.1).max()) < 10
    assert torch.equal(solve(lambda v: 0 * v, b, 10, 1e-8), torch.zeros_like(b))


def bare() -> ScoreModel:
    return ScoreModel.from_callable(lambda x, t: -x, VPSDE())


FAULTS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "shape of y": (
        lambda: posterior(prior(VPSDE()), Matrix(A), Y[:1], noise_std=0.1),
        ShapeError,
        r"y must have the shape \(2,\)",
    ),
    "shape of A": (
        lambda: posterior(prior(VPSDE()), Matrix(A[:, :3]), Y, noise_std=0.1),
        ShapeError,
        "does not fit events of 4",
    ),
    "noise": (lambda: posterior(prior(VPSDE()), Matrix(A), Y, noise_std=-0.1), DomainError, "noise_std must"),
    "finite": (lambda: posterior(prior(VPSDE()), Matrix(A), Y * math.nan, noise_std=0.1), DomainError, "non-finite"),
    "method": (
        lambda: posterior(prior(VPSDE()), Matrix(A), Y, noise_std=0.1, method="mpps"),
        ConfigError,
        "unknown posterior method 'mpps'; did you mean 'mmps'",
    ),
    "able": (
        lambda: posterior(prior(VPSDE()), lambda x: x**2, X[0], noise_std=0.1, method="ddrm"),
        ConfigError,
        "DDRM needs a linear operator .*; use one of mmps, pigdm, tmpd, dps, diffpir",
    ),
    "linear": (
        lambda: posterior(prior(VPSDE()), Linear(lambda x: x**2), X[0], noise_std=0.1),
        ConfigError,
        r"Linear is not linear; pass the function as Nonlinear\(function\)",
    ),
    "too much noise": (
        lambda: posterior(prior(VPSDE()), Matrix(A), Y, noise_std=1e300),
        DomainError,
        r"noise_std must lie in \[0, 1e\+100\], got 1e\+300",
    ),
    "operator": (lambda: posterior(prior(VPSDE()), "mask", Y, noise_std=0.1), DTypeError, "operator must be one of"),
    "event": (
        lambda: posterior(ScoreModel.from_callable(lambda x, t: x, VPSDE()), Matrix(A), Y, noise_std=0.1),
        ConfigError,
        "pass event=, the shape of one sample",
    ),
    "none": (
        lambda: sample(posterior(prior(VPSDE()), Matrix(A), None, noise_std=0.1), 2),
        ConfigError,
        "no measurement is given",
    ),
    "mask": (lambda: Mask(torch.zeros(3, dtype=torch.bool)), ConfigError, "nothing is seen"),
    "type": (lambda: Mask(torch.zeros(3)), DTypeError, "keep must be a bool tensor"),
    "kernel": (lambda: Blur(torch.ones(2, 2)), ShapeError, "odd sizes"),
    "moments": (
        lambda: posterior(
            ScoreModel.from_callable(lambda x, t: -x, VPSDE()),
            Matrix(A),
            Y,
            noise_std=0.1,
            method=PiGDM("moments"),
            event=(D,),
        )(X, 0.5),
        ConfigError,
        "needs a model that knows its data's moments",
    ),
    "zeta": (lambda: DPS(0.0), DomainError, "zeta must"),
    "variance": (lambda: PiGDM(0.0), DomainError, "covariance must"),
    "covariance": (lambda: PiGDM("moment"), ConfigError, "unknown covariance 'moment'; did you mean 'moments'"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_does_not_suit_is_refused(name: str) -> None:
    call, kind, words = FAULTS[name]
    with pytest.raises(kind, match=words):
        call()
