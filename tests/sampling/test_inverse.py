"""Samplers of posteriors against exact ones: Gaussian data, where they are exact or tend to it; evidence; refusals."""

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
    DTypeError,
    GaussianMixtureModel,
    GaussianModel,
    GaussianSDE,
    RectifiedFlow,
    posterior,
    sample_posterior,
)
from scoresde.models.guidance import Mask, Matrix, Nonlinear
from scoresde.models.guidance.methods import PiGDM
from scoresde.noise import normal, stream
from scoresde.sampling.inverse import DAPS, Replacement, SplitGibbs
from scoresde.sampling.twisted import _Law

D, M, STD, N = 4, 2, 0.3, 3000
DRAW = stream(11)
ROOT = normal((D, D), DRAW, dtype=torch.float64)
COVARIANCE = ROOT @ ROOT.T / D + 0.05 * torch.eye(D, dtype=torch.float64)
MEAN = normal((D,), DRAW, dtype=torch.float64)
A = normal((M, D), DRAW, dtype=torch.float64)
Y = A @ MEAN + 0.8


def prior(sde: GaussianSDE) -> GaussianModel:
    return GaussianModel(sde=sde, mean=MEAN, covariance=COVARIANCE)


def moments(std: float = STD) -> tuple[Tensor, Tensor, float]:
    """Return mean and covariance of x given y, and log p(y)."""
    spread = A @ COVARIANCE @ A.T + std**2 * torch.eye(M, dtype=torch.float64)
    gain = COVARIANCE @ A.T @ torch.linalg.inv(spread)
    evidence = torch.distributions.MultivariateNormal(A @ MEAN, spread).log_prob(Y)
    return MEAN + gain @ (Y - A @ MEAN), COVARIANCE - gain @ A @ COVARIANCE, float(evidence)


def errors(x: Tensor) -> tuple[float, float]:
    """Return the largest errors of means and of covariances, in units of the posterior's."""
    mean, covariance, _ = moments()
    scale = covariance.diagonal().sqrt()
    x = x.double()
    return (
        float(((x.mean(0) - mean) / scale).abs().max()),
        float(((torch.cov(x.T) - covariance) / torch.outer(scale, scale)).abs().max()),
    )


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE(), RectifiedFlow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("steps", [10, 60])
def test_twisted_particles_are_exact_on_gaussian_data(sde: GaussianSDE, steps: int) -> None:
    found = sample_posterior(prior(sde), Matrix(A), Y, N, noise_std=STD, method="smc", steps=steps)
    mean, covariance = errors(found.x)
    assert mean < 6 / math.sqrt(N)
    assert covariance < 12 / math.sqrt(N)
    assert found.log_evidence == pytest.approx(moments()[2], abs=0.02)
    assert found.ess is not None
    assert float(found.ess.min()) > 0.98 * N  # rounding, and the last level's likelihood
    assert found.nfe == steps + 1


def test_a_move_of_the_particles_has_the_law_that_weighs_it() -> None:
    """One coordinate: K is N(mean, V - B^2/S); its own moments, and P/K averages to 1 under K."""
    model = GaussianModel(sde=VPSDE(), mean=torch.zeros(1), covariance=torch.tensor([0.5]))
    inside = posterior(model, Matrix(torch.tensor([[2.0]])), torch.zeros(1), noise_std=1.5)
    n, nu, after = 40_000, 1.0, 0.4
    level = _Law(model.moments, inside.measured, torch.zeros(n, 1)).at(nu)
    state, data, rest = (torch.full((n, 1), value, dtype=torch.float64) for value in (0.3, 0.2, 0.7))
    moved, ratio = level.move(state, data, rest, after, (0, "test", 0))
    a, c = 1 - after**2, 0.5 / 1.5
    spread = 1.5**2 + 4 * c
    variance = a * after**2 + a**2 * c - (a * c * 2) ** 2 / spread
    mean = (1 - a) * 0.3 + a * (0.2 + c * 2 / spread * 0.7)
    assert float(moved.mean()) == pytest.approx(mean, abs=6 * math.sqrt(variance / n))
    assert float(moved.var()) == pytest.approx(variance, rel=6 * math.sqrt(2 / n))
    assert float(ratio.exp().mean()) == pytest.approx(1.0, abs=0.05)


def test_exact_measurements_and_the_datas_own_units() -> None:
    model = prior(VPSDE())
    model.transform = Affine(2.0, 0.5)
    keep = torch.tensor([True, False, True, False])
    y = torch.tensor([2.3, 1.7])
    found = sample_posterior(model, Mask(keep), y, 400, noise_std=0.0, method="smc", steps=40)
    torch.testing.assert_close(found.x[:, keep], y.expand(400, 2), rtol=0, atol=0.02)
    assert float(found.x[:, ~keep].std()) > 0.05


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE()], ids=lambda s: type(s).__name__)
def test_split_gibbs_tends_to_the_posterior(sde: GaussianSDE) -> None:
    """For a fixed rho the law of u is the posterior under N(m, C + rho^2): its error falls with rho."""
    found = []
    for last in (1.0, 0.1):
        method = SplitGibbs(inner=12, first=max(1.0, last), last=last)
        found.append(errors(sample_posterior(prior(sde), Matrix(A), Y, N, noise_std=STD, method=method, steps=360).x))
    assert found[0][1] > 0.3
    assert found[1][0] < 0.2
    assert found[1][1] < 0.25


def test_daps_and_the_models_by_one_call() -> None:
    """DAPS is biased; it is near. A model's method is exact here, up to its solver."""
    mean, covariance = errors(
        sample_posterior(prior(VPSDE()), Matrix(A), Y, N, noise_std=STD, method="daps", steps=150).x
    )
    assert mean < 0.3
    assert covariance < 0.8
    found = sample_posterior(
        prior(VPSDE()), Matrix(A), Y, N, noise_std=STD, method=PiGDM("moments"), steps=40, solver="dpmpp_2m"
    )
    mean, covariance = errors(found.x)
    assert mean < 0.1
    assert covariance < 0.2
    assert found.nfe == 40
    assert found.log_evidence is None


@pytest.mark.parametrize("name", ["replacement", "repaint"])
def test_replacement_keeps_what_was_seen(name: str) -> None:
    found = sample_posterior(
        prior(VPSDE()),
        Mask(torch.tensor([True, False, False, True])),
        torch.tensor([0.5, -0.2]),
        64,
        noise_std=0.0,
        method=name,
        steps=50,
    )
    seen = found.x[:, [0, 3]]
    assert float((seen - torch.tensor([0.5, -0.2])).abs().mean()) < 0.1
    assert float(found.x[:, 1].std()) > 0.1
    assert found.nfe <= 60


def test_a_mixture_gets_its_weights_from_particles() -> None:
    """One coordinate of two is seen: modes weighed by how well they explain it."""
    means = torch.tensor([[-1.0, -2.0], [1.0, 2.0]], dtype=torch.float64)
    model = GaussianMixtureModel(sde=VPSDE(), weights=torch.tensor([0.5, 0.5]), means=means, std=0.3)
    y, std = torch.tensor([0.15], dtype=torch.float64), 0.5
    found = sample_posterior(model, Matrix(torch.tensor([[1.0, 0.0]])), y, 4000, noise_std=std, method="smc", steps=100)
    wide = math.hypot(0.3, std)
    logs = -0.5 * (y - means[:, 0]) ** 2 / wide**2
    share = float(torch.softmax(logs, 0)[1])
    assert float((found.x[:, 1] > 0).double().mean()) == pytest.approx(share, abs=0.05)
    exact = float(torch.logsumexp(logs + math.log(0.5) - math.log(wide * math.sqrt(2 * math.pi)), 0))
    assert found.log_evidence == pytest.approx(exact, abs=0.1)
    assert found.log_evidence_error is not None
    assert 0.005 < found.log_evidence_error < 0.05
    assert abs(found.log_evidence - exact) < 5 * found.log_evidence_error


@pytest.mark.parametrize("method", [SplitGibbs(inner=8, langevin=60), DAPS(langevin=60)], ids=["gibbs", "daps"])
def test_what_is_not_linear_walks(method) -> None:
    """One coordinate, y = x^3: the posterior by quadrature."""
    model = GaussianModel(sde=VPSDE(), mean=torch.tensor([0.5]), covariance=torch.tensor([0.5]))
    y, std = torch.tensor([1.5], dtype=torch.float64), 0.4
    grid = torch.linspace(-3, 4, 7001, dtype=torch.float64)
    mass = torch.softmax(-0.5 * (grid - 0.5) ** 2 / 0.5 - 0.5 * (y - grid**3) ** 2 / std**2, 0)
    mean = float((mass * grid).sum())
    spread = math.sqrt(float((mass * (grid - mean) ** 2).sum()))
    found = sample_posterior(model, Nonlinear(lambda x: x**3), y, 1500, noise_std=std, method=method, steps=160).x
    assert abs(float(found.mean()) - mean) < 0.1
    assert abs(float(found.std()) - spread) < 0.1


def test_runs_repeat() -> None:
    for method in ("smc", "gibbs", "daps", "replacement", "mmps"):
        one, two, other = (
            sample_posterior(prior(VPSDE()), Matrix(A), Y, 5, noise_std=STD, method=method, steps=20, seed=seed).x
            for seed in (1, 1, 2)
        )
        assert torch.equal(one, two), method
        assert not torch.equal(one, other), method


FAULTS: dict[str, tuple[Callable[[], object], str]] = {
    "method": (
        lambda: sample_posterior(prior(VPSDE()), Matrix(A), Y, 2, noise_std=0.1, method="gibs"),
        "unknown posterior method 'gibs'; did you mean 'gibbs'",
    ),
    "solver": (
        lambda: sample_posterior(prior(VPSDE()), Matrix(A), Y, 2, noise_std=0.1, method="smc", solver="ddim"),
        "TwistedSMC has a solver of its own",
    ),
    "particles": (
        lambda: sample_posterior(prior(VPSDE()), lambda x: x**2, MEAN, 2, noise_std=0.1, method="smc"),
        "TwistedSMC needs a linear operator; use one of mmps",
    ),
    "replacement": (
        lambda: sample_posterior(prior(VPSDE()), lambda x: x**2, MEAN, 2, noise_std=0.1, method=Replacement()),
        "Replacement needs a linear operator; use one of mmps",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_does_not_suit_is_refused(name: str) -> None:
    call, words = FAULTS[name]
    with pytest.raises(ConfigError, match=words):
        call()


def test_a_method_of_its_own_needs_a_measurement() -> None:
    model = GaussianModel(sde=VPSDE(), mean=torch.zeros(2), covariance=torch.eye(2))
    with pytest.raises(DTypeError, match="y must be"):
        sample_posterior(model, torch.ones(1, 2), None, noise_std=1.0, n=1, steps=1, seed=0, method=SplitGibbs())
