"""What every Gaussian diffusion derives from its two curves: transitions, posteriors, priors, reverse SDEs; faults."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scoresde import (
    VESDE,
    VPSDE,
    CosineVPSDE,
    DomainError,
    DTypeError,
    GaussianSDE,
    Moments,
    ShapeError,
    SubVPSDE,
    TabulatedSDE,
)
from scoresde.diffusions.named import DIFFUSIONS
from scoresde.diffusions.point import Point
from scoresde.diffusions.sde import posterior_weights, transition_weights
from scoresde.noise import normal, stream

F64 = torch.float64
BAYES = json.loads((Path(__file__).parents[1] / "reference" / "bayes.json").read_text(encoding="utf-8"))


class Cosine(GaussianSDE):
    """A user's own diffusion: two lines, and everything else is derived."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(t * math.pi / 2)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t * math.pi / 2)


class EDM(GaussianSDE):
    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t


KNOTS = torch.linspace(0.01, 0.95, 30, dtype=F64)
SDES = {
    "vp": VPSDE(),
    "sub_vp": SubVPSDE(),
    "ve": VESDE(),
    "cosine": Cosine(t_max=0.95),
    "edm": EDM(t_min=0.002, t_max=80.0),
    "tabulated": TabulatedSDE(KNOTS, Cosine().log_snr(KNOTS), -KNOTS),
}
every_sde = pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
fractions = st.lists(st.floats(0.02, 1.0), min_size=3, max_size=3, unique_by=lambda u: round(u * 50))


def between(sde: GaussianSDE, u: float) -> float:
    return sde.t_min + (sde.t_max - sde.t_min) * u


# ---------------------------------------------------------------------------------------------------------------------
# Transition and posterior


@pytest.mark.parametrize("row", BAYES, ids=[f"{r['kind']}-{i % 8}" for i, r in enumerate(BAYES)])
def test_transition_and_posterior_match_references(row: dict) -> None:
    sde = DIFFUSIONS[row["kind"]](**row["options"])
    s, t = row["s"], row["t"]
    gap = float(sde.log_snr(t) - sde.log_snr(s))
    # Both come from the difference of two rounded log_snr.
    tolerance = 1e-12 + (0 if math.isinf(gap) else 4e-16 * abs(float(sde.log_snr(s))) / abs(gap))
    got = [*sde.transition_weights(s, t), *sde.posterior_weights(s, t)]
    for name, value in zip(("a", "b", "on_xt", "on_x0", "std"), got, strict=True):
        assert float(value) == pytest.approx(row[name], rel=tolerance, abs=0), name


@every_sde
@given(fractions)
def test_chapman_kolmogorov(sde: GaussianSDE, three: list[float]) -> None:
    s, t, u = (between(sde, f) for f in sorted(three))
    (a1, b1), (a2, b2), (a, b) = (sde.transition_weights(*pair) for pair in ((s, t), (t, u), (s, u)))
    assert float(a) == pytest.approx(float(a1 * a2), rel=1e-13)
    assert float(b.square()) == pytest.approx(float((a2 * b1).square() + b2.square()), rel=1e-11)
    # From s the marginal at s leads to the marginal at t.
    p, q = sde.at(s), sde.at(t)
    assert float(q.alpha) == pytest.approx(float(a1 * p.alpha), rel=1e-13)
    assert float(q.sigma.square()) == pytest.approx(float((a1 * p.sigma).square() + b1.square()), rel=1e-11)


@every_sde
@settings(max_examples=20)
@given(fractions, st.floats(-2, 2), st.floats(-2, 2))
def test_posterior_is_bayes_rule_on_a_grid(sde: GaussianSDE, two: list[float], clean: float, z: float) -> None:
    """Normalise q(x_t | x_s) q(x_s | x_0), evaluated through the public functions, on 4001 points of x_s."""
    s, t, _ = (between(sde, f) for f in sorted(two))
    x0 = torch.full((1, 1), clean, dtype=F64)
    x_t = sde.perturb(x0, t, torch.full((1, 1), z, dtype=F64))
    mean, std = sde.posterior(x0, x_t, s, t)
    x_s = mean + std * torch.linspace(-9, 9, 4001, dtype=F64)[:, None]
    center, spread = sde.marginal(x0, s)
    moved, noise = sde.transition(x_s, s, t)
    log_density = -0.5 * ((x_s - center) / spread).square() - 0.5 * ((x_t - moved) / noise).square()
    weight = torch.softmax(log_density, 0)
    measured = (weight * x_s).sum()
    assert float(((weight * (x_s - mean)).sum()) / std) == pytest.approx(0.0, abs=1e-7)
    assert float((weight * (x_s - measured).square()).sum() / std.square()) == pytest.approx(1.0, abs=1e-7)


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), Cosine(), EDM(t_min=0.002, t_max=80.0)], ids=repr)
def test_posterior_at_zero_is_clean_data(sde: GaussianSDE) -> None:
    x0, x_t = torch.tensor([[1.0], [-2.0]], dtype=F64), torch.tensor([[7.0], [0.1]], dtype=F64)
    mean, std = sde.posterior(x0, x_t, 0.0, torch.tensor([0.5, 0.9], dtype=F64))
    assert torch.equal(mean, x0)
    assert torch.equal(std, torch.zeros(2, dtype=F64))
    mean, std = sde.transition(x0, 0.0, 0.5)
    expected, spread = sde.marginal(x0, 0.5)
    torch.testing.assert_close(mean, expected, rtol=1e-15, atol=0)
    assert torch.equal(std, spread)


@pytest.mark.parametrize(
    "sde", [*(kind() for kind in DIFFUSIONS.values()), CosineVPSDE(t_max=1.0), SDES["tabulated"], Cosine()], ids=repr
)
def test_from_a_time_to_itself_nothing_happens(sde: GaussianSDE) -> None:
    """Also where alpha or sigma is 0, and between neighbours, whose log_snr may be in the wrong order by rounding."""
    inner = torch.rand(400, generator=torch.Generator().manual_seed(0), dtype=F64) * (sde.t_max - sde.t_min) + sde.t_min
    t = torch.cat([inner, torch.tensor([0.0, sde.t_min, sde.t_max], dtype=F64)])
    for weights, expected in (
        (sde.transition_weights(t, t), (1.0, 0.0)),
        (sde.posterior_weights(t, t), (1.0, 0.0, 0.0)),
    ):
        for got, value in zip(weights, expected, strict=True):
            assert torch.equal(got, torch.full_like(t, value))
            assert not bool(torch.signbit(got).any())
    x, other = torch.tensor([[1.5, -0.5]], dtype=F64), torch.tensor([[7.0, 8.0]], dtype=F64)
    for at in (sde.t_min, 0.5 * (sde.t_min + sde.t_max), sde.t_max):
        for mean, std in (sde.transition(x, at, at), sde.posterior(other, x, at, at)):
            assert torch.equal(mean, x)
            assert float(std) == 0.0
    after = inner.nextafter(t[-1])
    for weights in (sde.transition_weights(inner, after), sde.posterior_weights(inner, after)):
        assert all(bool(torch.isfinite(w).all()) and bool((w >= 0).all()) for w in weights)
    low = torch.tensor(2.0, dtype=F64)
    early, late = (
        Point(*(torch.tensor(v, dtype=F64) for v in (0.3, 0.8, 0.6)), level) for level in (low, low.nextafter(t[2]))
    )
    for weights in (transition_weights(early, late), transition_weights(late, early), posterior_weights(early, late)):
        assert all(bool(torch.isfinite(w)) for w in weights)
    # Times in the wrong order have no law.
    assert bool(torch.isnan(sde.transition_weights(inner, 0.99 * inner)[1]).all())


def test_ve_at_zero_keeps_sigma_min() -> None:
    """The convention: x_0 + sigma_min z at t = 0, so the posterior there is not a point."""
    sde = VESDE()
    one = torch.ones(1, 1, dtype=F64)
    mean, std = sde.posterior(one, one, 0.0, 1.0)
    assert float(mean) == pytest.approx(1.0, rel=1e-12)
    assert float(std) == pytest.approx(0.01 * math.sqrt(1 - (0.01 / 50) ** 2), rel=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Drift, diffusion and marginals


@every_sde
@given(st.floats(0.0, 1.0), st.floats(0.0, 3.0))
def test_drift_and_diffusion_move_the_marginal(sde: GaussianSDE, u: float, variance: float) -> None:
    """d/dt (alpha^2 v + sigma^2) = 2 f (alpha^2 v + sigma^2) + g^2, and g^2 = sigma^2 d log nu^2/dt."""
    t = torch.tensor(between(sde, u), dtype=F64)
    moved = torch.func.grad(lambda t: sde.alpha(t).square() * variance + sde.sigma(t).square())(t)
    total = sde.alpha(t).square() * variance + sde.sigma(t).square()
    grown = 2 * sde.drift_rate(t) * total, sde.diffusion(t).square()
    scale = float(grown[0].abs() + grown[1])
    assert float(moved) == pytest.approx(float(sum(grown)), rel=0, abs=1e-12 * scale)
    clock = torch.func.grad(lambda t: 2 * (sde.sigma(t) / sde.alpha(t)).log())(t)
    assert float(sde.diffusion(t).square()) == pytest.approx(float(sde.sigma(t).square() * clock), rel=1e-10)
    x = torch.tensor([[2.0, -1.0]], dtype=F64)
    torch.testing.assert_close(sde.drift(x, t), sde.alpha_rate(t) / sde.alpha(t) * x, rtol=1e-12, atol=1e-300)


def test_own_sde_gets_everything_right() -> None:
    sde, t = Cosine(t_max=0.95), torch.linspace(0.01, 0.95, 50, dtype=F64)
    angle = t * math.pi / 2
    closed = {
        "log_snr": -2 * angle.tan().log(),
        "alpha_rate": -math.pi / 2 * angle.sin(),
        "sigma_rate": math.pi / 2 * angle.cos(),
        "drift_rate": -math.pi / 2 * angle.tan(),
        "diffusion": (math.pi * angle.tan()).sqrt(),
    }
    for name, expected in closed.items():
        torch.testing.assert_close(getattr(sde, name)(t), expected, rtol=1e-12, atol=1e-14, msg=name)
    log_snr = torch.linspace(-5, 30, 200, dtype=F64)
    expected = 2 / math.pi * torch.atan((-log_snr / 2).exp())
    torch.testing.assert_close(sde.time(log_snr), expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(sde.time(log_snr.float()), expected.float(), rtol=2e-6, atol=0)
    for bad in (-6.0, math.nan):
        with pytest.raises(
            DomainError, match=rf"log_snr must be at least -5\.\d+, reached at t_max = 0\.95; got {bad:g}"
        ):
            sde.time(bad)


def test_own_sde_is_differentiable_in_its_parameters() -> None:
    class Power(GaussianSDE):
        exponent = torch.tensor(2.0, dtype=F64, requires_grad=True)

        def alpha(self, t: Tensor) -> Tensor:
            return torch.ones_like(t)

        def sigma(self, t: Tensor) -> Tensor:
            return t**self.exponent

    sde, t = Power(), torch.tensor(0.5, dtype=F64)
    # g^2 = 2 k t^(2k - 1), whose derivative in k is 2 t^(2k-1) (1 + 2 k log t).
    (slope,) = torch.autograd.grad(sde.diffusion(t).square(), sde.exponent)
    assert float(slope) == pytest.approx(2 * 0.5**3 * (1 + 4 * math.log(0.5)), rel=1e-12)
    with torch.inference_mode():
        assert float(sde.diffusion(t).square()) == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize("shape", [(4,), (4, 2), (4, 1, 2), (4, 3, 5, 2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_perturb_scales_each_sample_by_its_own_time(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    sde, t = VPSDE(), torch.tensor([1e-5, 0.1, 0.5, 1.0], dtype=F64)
    x0, noise = (normal(shape, stream(0, k), dtype=dtype) for k in range(2))
    before = x0.clone(), noise.clone()
    got, (mean, std) = sde.perturb(x0, t, noise), sde.marginal(x0, t)
    assert got.dtype == mean.dtype == std.dtype == dtype
    assert std.shape == (4,)
    for k in range(4):
        alpha, sigma = float(sde.alpha(t[k])), float(sde.sigma(t[k]))
        exact = alpha * x0[k].to(F64) + sigma * noise[k].to(F64)
        # Coefficients, products and sum are each rounded once.
        bound = 3 * torch.finfo(dtype).eps * ((alpha * x0[k]).abs() + (sigma * noise[k]).abs()).to(F64) + 1e-7
        assert bool(((got[k].to(F64) - exact).abs() <= bound).all())
        # A vectorised exponential may differ in its last bit with the size of the batch.
        rounding = 4 * torch.finfo(dtype).eps
        alone = sde.perturb(x0[k : k + 1], float(t[k]), noise[k : k + 1])[0]
        torch.testing.assert_close(alone, got[k], rtol=rounding, atol=rounding)
    assert torch.equal(x0, before[0])
    assert torch.equal(noise, before[1])


def test_prior() -> None:
    zero = torch.zeros(3, dtype=F64)
    for sde, std in ((VPSDE(), 1.0), (SubVPSDE(), 1.0), (VESDE(), 50.0), (Cosine(t_max=0.5), math.sqrt(0.5))):
        prior = sde.prior()
        assert float(prior.mean) == 0.0
        assert float(prior.variance) == pytest.approx(std**2, rel=1e-12)
    assert float(VESDE().prior(0.5).variance) == pytest.approx(0.5, rel=1e-12)
    root = torch.tensor([[1.0, 0, 0], [0.5, 2.0, 0], [-1.0, 0.3, 0.1]], dtype=F64)
    mean, covariance = zero + torch.tensor([1.0, -2.0, 0.5], dtype=F64), root @ root.T
    prior = VPSDE().prior(0.3, Moments.exact(mean, covariance))
    p = VPSDE().at(0.3)
    total = p.alpha**2 * covariance + p.sigma**2 * torch.eye(3, dtype=F64)
    law = torch.distributions.MultivariateNormal(p.alpha * mean, total)
    x = normal((5, 3), stream(1), dtype=F64)
    torch.testing.assert_close(prior.log_prob(x), law.log_prob(x), rtol=1e-12, atol=0)


@every_sde
def test_describe_contains_the_numbers(sde: GaussianSDE) -> None:
    lines = sde.describe().splitlines()
    assert repr(sde) in lines[0]
    table = torch.tensor([[float(word) for word in line.split()] for line in lines[2:7]], dtype=F64)
    t = torch.linspace(sde.t_min, sde.t_max, 5, dtype=F64)
    expected = torch.stack(
        [t, *(getattr(sde, n)(t) for n in ("alpha", "sigma", "log_snr", "drift_rate", "diffusion"))], 1
    )
    torch.testing.assert_close(table, expected, rtol=1e-5, atol=0)
    assert f"standard deviation {float(sde.prior_std(sde.t_max)):g}" in lines[7]


# ---------------------------------------------------------------------------------------------------------------------
# Faults

X = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("t", "error", "message"),
    [
        (torch.tensor([1, 1, 1]), DTypeError, "t must be floating for a continuous SDE, got torch.int64; see DDPM"),
        (torch.ones(3, 1), ShapeError, r"t must have shape \(\) or \(3,\), got \(3, 1\)"),
        (torch.ones(2), ShapeError, r"t must have shape \(\) or \(3,\), got \(2,\)"),
        (torch.ones(1), ShapeError, r"t must have shape \(\) or \(3,\), got \(1,\)"),
        (0.0, DomainError, r"t must lie in \[1e-05, 1\], got 0"),
        (torch.tensor([0.5, 1.1, 0.5]), DomainError, r"t must lie in \[1e-05, 1\], got 1\.1"),
        (math.nan, DomainError, r"t must lie in \[1e-05, 1\], got nan"),
        (torch.tensor(-0.5), DomainError, r"t must lie in \[1e-05, 1\], got -0\.5"),
    ],
)
def test_bad_times(t: Tensor | float, error: type[Exception], message: str) -> None:
    sde = VPSDE()
    for call in (
        lambda: sde.marginal(X, t),
        lambda: sde.perturb(X, t, X),
        lambda: sde.drift(X, t),
        lambda: sde.transition(X, 1e-5, t),
        lambda: sde.posterior(X, X, 1e-5, t),
    ):
        with pytest.raises(error, match=message):
            call()


def test_bad_states() -> None:
    sde = VPSDE()
    with pytest.raises(DTypeError, match=r"x0 must be a torch.Tensor, got list; use torch.as_tensor\(x0\)"):
        sde.perturb([1.0], 0.5, X)
    with pytest.raises(DTypeError, match=r"noise must be a torch.Tensor, got float"):
        sde.perturb(X, 0.5, 1.0)
    with pytest.raises(ShapeError, match=r"noise must have the shape \(3, 2\) of x0, got \(2, 3\)"):
        sde.perturb(X, 0.5, X.T)
    with pytest.raises(
        DTypeError, match=r"x0 must have a real floating dtype, got torch\.int64; convert it with x0\.float"
    ):
        sde.marginal(X.long(), 0.5)
    with pytest.raises(ShapeError, match=r"x0 and x_t must agree, got shapes \(3, 2\) and \(1, 2\)"):
        sde.posterior(X, X[:1], 0.1, 0.5)
    with pytest.raises(DomainError, match=re.escape("s must not exceed t, got s = 0.6 and t = 0.5; swap them")):
        sde.posterior(X, X, 0.6, 0.5)
    with pytest.raises(DomainError, match=re.escape("s must lie in [1e-05, 1], got 1e-06")):
        sde.transition(X, 1e-6, 0.5)


def test_float32_ends_and_empty_batches_are_legal() -> None:
    sde = VPSDE(t_min=1e-3)
    ends = torch.tensor([1e-3, 1.0], dtype=torch.float32)
    assert sde.check_time(ends).dtype == F64
    mean, std = sde.marginal(torch.zeros(0, 2), torch.zeros(0))
    assert mean.shape == (0, 2)
    assert std.shape == (0,)


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
def test_a_notebook_shows_the_curves_that_describe_does(sde):
    page = sde._repr_html_()
    assert page.count("<tr>") == 6
    names, *rows = sde.describe().splitlines()[1:-1]
    for cell in names.replace("d log alpha/dt", "").split():
        assert f"<th>{cell}</th>" in page
    for row in rows:
        assert "<tr>" + "".join(f"<td>{cell}</td>" for cell in row.split()) + "</tr>" in page
