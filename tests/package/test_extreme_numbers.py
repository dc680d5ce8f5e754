"""Numbers at the ends of what floats hold: a finite result, or an error that names the argument."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from scoresde import (
    DDPM,
    EDMSDE,
    MALA,
    SMLD,
    VESDE,
    VPSDE,
    Affine,
    CosineVPSDE,
    Dequantise,
    DomainError,
    DTypeError,
    GaussianDecoder,
    GaussianModel,
    GaussianSDE,
    Langevin,
    Latent,
    Logit,
    Moments,
    RectifiedFlow,
    ScoreModel,
    ScoreSDEError,
    ShapeError,
    SolverError,
    SubVPSDE,
    build_table,
    colour,
    continuous_elbo,
    denoise,
    encode,
    fit,
    forward_path,
    grids,
    held_out_loss,
    map_prediction,
    path_log_weight,
    sample,
    solvers,
    tune,
    variational_bound,
)
from scoresde.noise import normal, stream

# fmt: off
EXTREMES = (0.0, -1.0, 5e-324, 1e-320, 1e-300, 1e-151, 1e-150, 1e-15, 1 - 1e-16, 1e15, 1e149, 1e151, 1e300, 1e308,
            math.nan, math.inf, -math.inf, 10**400, -(10**400))
# fmt: on
GAUSSIAN = GaussianModel(sde=VPSDE(), mean=torch.zeros(2), covariance=torch.eye(2))
X = normal((8, 2), stream(0))


def finite(*values: Tensor | float) -> None:
    for value in values:
        assert bool(torch.isfinite(torch.as_tensor(value, dtype=torch.float64)).all()), value


def use_sde(sde: GaussianSDE) -> None:
    t = torch.tensor([sde.t_min, 0.5 * (sde.t_min + sde.t_max), sde.t_max * (1 - 1e-3)], dtype=torch.float64)
    t = t.clamp_min(sde.t_min)
    p = sde.at(t)
    finite(p.alpha, p.sigma, p.log_snr, sde.alpha_rate(t), sde.sigma_rate(t), sde.diffusion(t), sde.time(p.log_snr))
    finite(torch.as_tensor(sde.prior_std(sde.t_max)), build_table(sde, "dpmpp_2m", steps=4).affine_map())


def use_grid(grid: grids.Grid) -> None:
    for sde in (VPSDE(), VESDE(), RectifiedFlow()):
        times = grid(sde, 10)
        finite(times)
        assert bool((times.diff() < 0).all())


def use_transform(transform: Affine | Logit | Dequantise) -> None:
    low, high = getattr(transform, "low", 0.0), getattr(transform, "high", 1.0)
    for dtype in (torch.float64, torch.float32):
        try:
            x = torch.tensor([[low + 0.01 * (high - low), high - 0.01 * (high - low)]], dtype=dtype)
            x = torch.tensor([[low, high]], dtype=dtype) if isinstance(transform, Dequantise) else x
            y = transform.forward(x, stream(0))
            finite(y, transform.inverse(y), transform.log_abs_det(x, stream(0)))
        except ScoreSDEError as error:
            assert "\n" not in str(error)  # noqa: PT017


def use_table(solver: solvers.Solver) -> None:
    table = build_table(VPSDE(), solver, steps=4)
    finite(*table.law())


def use_kernel(kernel: Langevin | MALA) -> None:
    assert kernel.calls
    if isinstance(kernel, Langevin):
        sample(GAUSSIAN, 3, steps=3, seed=0, kernels=[kernel])


def use_decoder(decoder: GaussianDecoder) -> None:
    finite(continuous_elbo(GAUSSIAN, VPSDE(), X, decoder=decoder, samples=2).per_sample)


Use = Callable[..., object]
CHURN = "churn s_min s_max s_noise"
CASES: dict[str, tuple[Use, Use, str]] = {
    "VPSDE": (VPSDE, use_sde, "beta_min beta_max t_min t_max"),
    "SubVPSDE": (SubVPSDE, use_sde, "beta_min beta_max t_min t_max"),
    "VESDE": (VESDE, use_sde, "sigma_min sigma_max t_min t_max"),
    "EDMSDE": (EDMSDE, use_sde, "sigma_min sigma_max"),
    "CosineVPSDE": (CosineVPSDE, use_sde, "offset t_min t_max"),
    "RectifiedFlow": (RectifiedFlow, use_sde, "t_min t_max"),
    "grids.uniform": (grids.uniform, use_grid, "power"),
    "grids.karras": (grids.karras, use_grid, "rho"),
    "grids.log_snr": (lambda **k: grids.log_snr(**{"centre": 0.0, "width": 1.0, **k}), use_grid, "centre width"),
    "grids.rectified": (grids.rectified, use_grid, "power"),
    "grids.diffused": (grids.diffused, use_grid, "power"),
    "Logit": (Logit, use_transform, "epsilon low high"),
    "Dequantise": (lambda **k: Dequantise(4, **k), use_transform, "low high"),
    "Affine": (Affine, use_transform, "shift scale"),
    "ddim": (solvers.ddim, use_table, "eta"),
    "dpmpp_2m": (solvers.dpmpp_2m, use_table, "eta"),
    "churn": (
        lambda **k: solvers.churned(solvers.heun(), **{"churn": 4.0, **k}),
        use_table,
        "churn s_min s_max s_noise",
    ),
    "Langevin": (Langevin, use_kernel, "snr"),
    "MALA": (MALA, use_kernel, "snr"),
    "GaussianDecoder": (GaussianDecoder, use_decoder, "std"),
    "DDPM.linear": (
        lambda **k: DDPM.linear(9, **k),
        lambda chain: finite(chain.ancestral().affine_map()),
        "beta_start beta_end",
    ),
    "DDPM.cosine": (
        lambda **k: DDPM.cosine(9, **k),
        lambda chain: finite(chain.ancestral().affine_map()),
        "offset max_beta",
    ),
    "SMLD.geometric": (
        lambda **k: SMLD.geometric(9, **k),
        lambda chain: finite(chain.ancestral().affine_map()),
        "sigma_min sigma_max",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_extreme_number_gives_a_finite_result_or_names_its_argument(name: str) -> None:
    make, use, arguments = CASES[name]
    for argument in arguments.split():
        for value in EXTREMES:
            try:
                use(make(**{argument: value}))
            except ScoreSDEError as error:
                assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: VESDE(1e-300, 1e300), "sigma_min must be of a size between 1e-150 and 1e\\+150"),
        (lambda: VESDE(t_max=100.0), "sigma\\(t_max\\) must be at most"),
        (lambda: VPSDE(beta_max=1e15), "integral of beta up to t_max must be at most 1400"),
        (lambda: VPSDE(t_min=1 - 1e-16), "t_max must be at least"),
        (lambda: grids.karras(rho=1e308), "rho must be of a size"),
        (lambda: grids.karras(rho=1e149)(VPSDE(), 10), r"karras \(rho = 1e\+149\) with 10 steps hardly falls at t ="),
        (lambda: grids.uniform(power=1e-15)(VPSDE(), 10), r"power 1e-15 with 10 steps hardly falls at t = 1:"),
        (lambda: Logit(epsilon=1e-6, low=0, high=1e-320), "high must lie at least 1e-150 above low"),
        (lambda: MALA(snr=1e300), "snr must be of a size"),
        (lambda: Affine(scale=10**400), "scale must lie in"),
    ],
)
def test_the_error_names_the_argument(make: Callable[[], object], words: str) -> None:
    with pytest.raises(DomainError, match=words):
        make()


def test_a_type_without_numbers_in_the_interval_is_named() -> None:
    transform = Logit(low=0.0, high=1e-100)
    x = torch.tensor([[2e-101, 7e-101]], dtype=torch.float64)
    torch.testing.assert_close(transform.inverse(transform.forward(x)), x, rtol=1e-9, atol=0)
    for use in (transform.forward, transform.inverse, transform.log_abs_det):
        with pytest.raises(DTypeError, match=r"float32 have no numbers in \[0, 1e-100\]"):
            use(x.float())
    with pytest.raises(DomainError, match=r"where \(x - shift\)/scale is a number of torch.float32"):
        Affine(scale=1e-60).forward(torch.ones(2, 1))
    torch.testing.assert_close(Affine(scale=1e-60).forward(x), x * 1e60, rtol=1e-12, atol=0)


# --- moments


def test_a_covariance_that_is_none_is_refused() -> None:
    mean = torch.zeros(2)
    for covariance, words in (
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "positive semi-definite, its smallest eigenvalue is -1"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), r"must be symmetric; take \(C \+ C.T\)/2"),
        (torch.tensor([1.0, -0.5]), "positive semi-definite, its smallest variance is -0.5"),
        (torch.tensor(-1.0), "smallest variance is -1"),
        (torch.tensor([1.0, math.nan]), "covariance must be finite"),
    ):
        for make in (
            lambda c=covariance: Moments.exact(mean, c),
            lambda c=covariance: GaussianModel(sde=VPSDE(), mean=mean, covariance=c),
        ):
            with pytest.raises(DomainError, match=words):
                make()
    with pytest.raises(DomainError, match="mean must be finite"):
        Moments.exact(torch.tensor([math.inf, 0.0]), torch.eye(2))
    with pytest.raises(DTypeError, match="mean must be a tensor, or numbers in sequences of one length, got"):
        Moments.exact(["0"], torch.eye(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_the_rounding_of_a_product_is_no_asymmetry(dtype: torch.dtype) -> None:
    """A covariance of rank 2 in 6 coordinates, made by products in its type: eigenvalues of -rounding are 0."""
    u = torch.linalg.qr(normal((6, 6), stream(3), dtype=torch.float64))[0]
    values = torch.tensor([3.0, 1.0, 0, 0, 0, 0], dtype=torch.float64)
    covariance = ((u.to(dtype) * values.to(dtype)) @ u.T.to(dtype)).to(dtype)
    moments = Moments.exact(torch.zeros(6), covariance)
    assert float(moments.variance.min()) >= 0
    error = (moments.covariance - (u * values) @ u.T).abs().max()
    assert float(error) < 20 * torch.finfo(dtype).eps


# --- networks that return NaN, and data far off


class Broken(nn.Module):
    """NaN for the samples whose first coordinate is positive, where log_snr is below ``most``."""

    def __init__(self, most: float = math.inf) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.most = most

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        bad = (x[:, :1] > 0) & (c_noise.reshape(-1, 1) < self.most)
        return torch.where(bad, math.nan, self.weight * x)


def broken(most: float = math.inf) -> ScoreModel:
    return ScoreModel(Broken(most), VPSDE(), moments=Moments.of(X))


CHAIN = DDPM.from_sde(VPSDE(), 20)
PATH = forward_path(CHAIN, X)
NAN_USES: dict[str, tuple[Callable[[ScoreModel], object], str]] = {
    "elbo": (lambda m: continuous_elbo(m, VPSDE(), X, samples=3), "the reconstruction at t = 1e-05 is not finite in "),
    "bound": (lambda m: variational_bound(m, CHAIN, X), "the reconstruction at t = .* is not finite in "),
    "paths": (lambda m: path_log_weight(m, PATH, CHAIN), "the log weight is not finite in "),
    "colours": (lambda m: colour(m, X, 2, intervals=2), "not finite"),
    "denoise": (lambda m: denoise(m, X, noise_std=0.5, steps=3), "step 0 of"),
}


@pytest.mark.parametrize("name", NAN_USES)
def test_a_network_that_returns_nan_is_named_and_not_its_result(name: str) -> None:
    use, words = NAN_USES[name]
    with pytest.raises(SolverError, match=words) as caught:
        use(broken())
    assert "%" in str(caught.value)


def test_the_time_and_the_share_are_those_of_the_samples() -> None:
    """Above a noise level alone: the reconstruction is sound, and the integral names a time above it."""
    model = broken(most=2.0)
    with pytest.raises(SolverError, match=r"the loss at t = ([0-9.e-]+) is not finite in ([0-9.]+)%") as caught:
        continuous_elbo(model, VPSDE(), X, samples=4)
    t = float(str(caught.value).split("t = ")[1].split()[0])
    assert float(VPSDE().log_snr(t)) < 2.01
    with pytest.raises(SolverError, match="the bound's layer at t = "):
        variational_bound(model, CHAIN, X, chunk_size=8)


class Coder(nn.Module):
    """A coder whose encoder or decoder answers NaN for every other sample."""

    variational = False

    def __init__(self, broken: str) -> None:
        super().__init__()
        self.broken = broken

    def spoil(self, x: Tensor, name: str) -> Tensor:
        x = x.clone()
        x[::2] = math.nan if name == self.broken else x[::2]
        return x

    def posterior(self, x: Tensor) -> tuple[Tensor, None]:
        return self.spoil(x, "encoder"), None

    def decode(self, z: Tensor) -> Tensor:
        return self.spoil(z, "decoder")


def test_a_coder_that_answers_nan_is_named_and_not_the_data() -> None:
    at_code, at_data = (
        ScoreModel(broken().net, VPSDE(), transform=Latent(Coder(name))) for name in ("encoder", "decoder")
    )
    for use in (
        lambda m: m.transform.encode(X),
        lambda m: encode(m, X, solver="heun", steps=2),
        lambda m: fit(m, X, steps=1, progress=False),
        lambda m: Latent.standardise(m.transform.autoencoder, X),
    ):
        with pytest.raises(SolverError, match=r"the code is not finite in 50.0% of the samples, since the encoder's"):
            use(at_code)
    sound = map_prediction(at_data, lambda p: torch.zeros_like(p.x))
    with pytest.raises(SolverError, match=r"the decoded sample is not finite in 50.0% of the samples, since the decod"):
        sample(sound, (8, 2), solver="ddim", steps=2, seed=0)


def test_a_loss_of_one_sample_has_no_error() -> None:
    assert math.isnan(held_out_loss(GAUSSIAN, X[:1]).standard_error)
    assert held_out_loss(GAUSSIAN, X[:1], repeats=2).standard_error > 0


@pytest.mark.parametrize("event", [(0,), (2, 0)])
def test_samples_without_a_number_are_refused_and_no_samples_are_none(event: tuple[int, ...]) -> None:
    model = ScoreModel.from_callable(lambda x, t: -x, VPSDE())
    empty = torch.zeros(3, *event)
    for use in (
        lambda: sample(model, (3, *event), steps=2),
        lambda: encode(model, empty),
        lambda: continuous_elbo(model, VPSDE(), empty),
        lambda: variational_bound(model, CHAIN, empty),
        lambda: Affine.standardise(empty),
        lambda: Moments.exact(torch.zeros(event), torch.ones(event)),
        lambda: held_out_loss(model, empty),
    ):
        with pytest.raises(ShapeError, match=r"hold no number|is empty"):
            use()
    assert sample(GAUSSIAN, (0, 2), steps=2).shape == (0, 2)
    assert encode(GAUSSIAN, X[:0], solver="heun", steps=2).shape == (0, 2)


def test_steps_are_placed_from_where_alpha_is_0() -> None:
    """There log_snr is minus infinity, and no logarithm of the level is taken."""
    model = GaussianModel(sde=RectifiedFlow(), mean=torch.zeros(2), covariance=torch.eye(2))
    found = tune(model, 2, start="flow_abm", samples=7, iterations=1, keep=False, method="dynamic")
    assert float(found.table.start.t) == 1.0
    finite(*found.table.law())


def test_data_whose_squares_overflow_are_refused_before_the_network() -> None:
    model = broken()
    far = torch.full((3, 2), 1e30)
    for use in (lambda x: continuous_elbo(model, VPSDE(), x), lambda x: variational_bound(model, CHAIN, x)):
        with pytest.raises(DomainError, match=r"x0 reaches 1e\+30 .* whose square is no number of torch.float32"):
            use(far)
    wide = GaussianModel(
        sde=VPSDE(), mean=torch.zeros(2, dtype=torch.float64), covariance=1e60 * torch.eye(2, dtype=torch.float64)
    )
    finite(continuous_elbo(wide, VPSDE(), far.double(), samples=2).per_sample)
    finite(variational_bound(wide, CHAIN, far.double()).per_sample)
