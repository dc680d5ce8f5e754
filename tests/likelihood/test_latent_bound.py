"""The bound of a latent diffusion, where everything is known: probabilistic principal components.

x = W z + m + s e with orthogonal columns of W: q(z | x) is the posterior if its mean is M^{-1} W^T (x - m) and its
variances are s^2/diag M, M = W^T W + s^2, and log p(x) is that of N(m, W W^T + s^2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from scoresde import (
    VPSDE,
    Affine,
    ConfigError,
    EncoderDecoder,
    GaussianModel,
    Latent,
    RectifiedFlow,
    ScoreModel,
    ShapeError,
    SolverError,
    latent_elbo,
    log_likelihood,
)
from scoresde.nn import MLP, Autoencoder
from scoresde.noise import normal, stream

F64 = torch.float64
W = torch.linalg.qr(normal((5, 2), stream(1, "loadings"), dtype=F64)).Q * torch.tensor([2.0, 0.7], dtype=F64)
CENTRE, STD = torch.linspace(-1.0, 2.0, 5, dtype=F64), 0.3
LAW = MultivariateNormal(CENTRE, W @ W.T + STD**2 * torch.eye(5, dtype=F64))
THEN = Affine((0.4, -1.0), (2.0, 0.8))


@dataclass(frozen=True, eq=False)
class Components:
    """The autoencoder of principal components, whose encoder may be wrong by a shift and a factor of the variance."""

    shift: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=F64))
    factor: float = 1.0
    variational: bool = True

    @property
    def log_std(self) -> Tensor:
        return torch.tensor(math.log(STD), dtype=F64)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        m = (W.T @ W).diagonal() + STD**2
        mean = (x - CENTRE) @ W / m + self.shift
        return mean, (self.factor * STD**2 / m).log().expand_as(mean)

    def decode(self, z: Tensor) -> Tensor:
        return z @ W.T + CENTRE


def model_of(coder: object, then: Affine | None = THEN) -> GaussianModel:
    """The exact model of codes N(0, 1), in the coordinates of ``then``."""
    shift, scale = (torch.tensor(v, dtype=F64) for v in ((0.0, 0.0), (1.0, 1.0)))
    if then is not None:
        shift, scale = torch.tensor(then.shift, dtype=F64), torch.tensor(then.scale, dtype=F64)
    model = GaussianModel(sde=VPSDE(), mean=-shift / scale, covariance=scale**-2)
    model.transform = Latent(coder, then)
    return model


def draw(n: int) -> Tensor:
    z, e = (normal((n, k), stream(0, "components", k), dtype=F64) for k in (2, 5))
    return z @ W.T + CENTRE + STD * e


@pytest.mark.parametrize("then", [None, THEN], ids=["codes", "scaled codes"])
def test_the_bound_is_log_p_for_every_draw_where_the_encoder_is_the_posterior(then: Affine | None) -> None:
    model, x = model_of(Components(), then), draw(40)
    expected = -LAW.log_prob(x)
    found = latent_elbo(model, x, log_density=model.log_prob, seed=3)
    torch.testing.assert_close(found.per_sample, expected, rtol=0, atol=1e-10)
    assert found.total == pytest.approx(found.reconstruction - found.entropy + found.codes, abs=1e-12)
    assert found.bits_per_dim == pytest.approx(found.total / (5 * math.log(2)), abs=1e-12)
    codes = model.in_its_own_coordinates()
    flow = latent_elbo(model, x, log_density=lambda y: log_likelihood(codes, y).values, seed=4)
    torch.testing.assert_close(flow.per_sample, expected, rtol=0, atol=2e-3)


def test_a_wrong_encoder_is_told_its_divergence_from_the_posterior() -> None:
    """KL(N(m + d, f v) || N(m, v)) = 1/2 sum_k (d_k^2/v_k + f - 1 - log f), the same for every datum."""
    shift, factor, x = torch.tensor([0.05, -0.2], dtype=F64), 1.7, draw(20_000)
    variance = STD**2 / ((W.T @ W).diagonal() + STD**2)
    divergence = 0.5 * float((shift.square() / variance + factor - 1 - math.log(factor)).sum())
    model = model_of(Components(shift, factor))
    excess = latent_elbo(model, x, log_density=model.log_prob, seed=0).per_sample + LAW.log_prob(x)
    error = float(excess.std()) / len(x) ** 0.5
    assert error < 0.03 * divergence
    # Five standard errors: a false alarm in 1.7 million runs.
    assert float(excess.mean()) == pytest.approx(divergence, abs=5 * error)


def test_the_bound_of_the_codes_is_that_of_the_diffusion() -> None:
    """With the exact model the continuous bound is tight in the mean over the data, but for the end at t_min."""
    model, x = model_of(Components()), draw(4000)
    found = latent_elbo(model, x, seed=1)
    excess = found.per_sample + LAW.log_prob(x)
    error = float(excess.std()) / len(x) ** 0.5
    assert error < 0.1
    assert float(excess.mean()) == pytest.approx(0.0, abs=5 * error + 1e-3)


def test_the_codes_are_bounded_under_another_diffusion() -> None:
    model, x = model_of(Components()).with_sde(RectifiedFlow()), draw(50)
    with pytest.raises(ConfigError, match=r"reaches alpha = 0, .* no beginning; pass sde=VPSDE"):
        latent_elbo(model, x)
    expected = latent_elbo(model_of(Components()), x).per_sample
    torch.testing.assert_close(latent_elbo(model, x, sde=VPSDE()).per_sample, expected, rtol=0, atol=1e-6)


def test_the_draws_of_a_sample_are_its_own() -> None:
    model, x = model_of(Components(factor=1.5)), draw(7)
    whole = latent_elbo(model, x, log_density=model.log_prob, seed=2).per_sample
    parts = latent_elbo(model, x, log_density=model.log_prob, seed=2, chunk_size=2).per_sample
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        latent_elbo(model, x[:3], log_density=model.log_prob, seed=2).per_sample, whole[:3], rtol=0, atol=1e-12
    )
    assert float((latent_elbo(model, x, log_density=model.log_prob, seed=3).per_sample - whole).abs().min()) > 1e-6
    assert len(latent_elbo(model, x[:0]).per_sample) == 0


def test_what_has_no_bound_is_refused_with_what_has() -> None:
    x = draw(3)
    plain = model_of(EncoderDecoder(lambda x: x[:, :2], lambda z: z @ W.T))
    for call in (lambda: latent_elbo(plain, x), lambda: log_likelihood(plain, x)):
        with pytest.raises(ConfigError, match="no change of variables; take a variational autoencoder"):
            call()
    with pytest.raises(ConfigError, match=r"latent_elbo\(model, x\) bounds log p"):
        log_likelihood(model_of(Components()), x)
    with pytest.raises(ConfigError, match=r"no Latent transform.*continuous_elbo"):
        latent_elbo(plain.in_its_own_coordinates(), x)
    with pytest.raises(ShapeError, match="one number a sample"):
        latent_elbo(model_of(Components()), x, log_density=lambda y: y)
    guarded = model_of(Components(variational=False))
    with pytest.raises(ConfigError, match="no change of variables"):
        latent_elbo(guarded, x)


def test_data_of_another_type_than_the_autoencoder_have_the_same_bound() -> None:
    coder = Autoencoder(1, 2, width=4, multipliers=(1, 2))
    model = ScoreModel(MLP((2, 2, 2), width=4), VPSDE(), transform=Latent(coder, Affine(0.1, 0.5)))
    x = normal((3, 1, 4, 4), stream(4))
    single, double = latent_elbo(model, x), latent_elbo(model, x.double())
    torch.testing.assert_close(double.per_sample, single.per_sample, rtol=1e-5, atol=1e-3)


def test_a_bound_that_is_no_number_is_raised() -> None:
    model, x = model_of(Components()), draw(4)
    with pytest.raises(SolverError, match=r"the bound is not finite in 25.0% of the samples"):
        latent_elbo(model, x, log_density=lambda y: torch.tensor([0.0, 0.0, math.nan, 0.0]))
