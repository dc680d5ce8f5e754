"""The empirical model against a mixture of points; energy models against exact densities."""

from __future__ import annotations

import pytest
import torch

from scoresde import (
    VESDE,
    VPSDE,
    DomainError,
    GaussianMixtureModel,
    GaussianModel,
    ScoreModel,
    ShapeError,
    denoising_score_matching,
    sample,
)
from scoresde.models.energy import EnergyModel
from scoresde.models.exact import EmpiricalModel
from scoresde.noise import normal, stream

DATA = normal((50, 2, 3), stream(0, "data"), dtype=torch.float64)
X = normal((9, 2, 3), stream(0, "x"), dtype=torch.float64)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["VP", "VE"])
@pytest.mark.parametrize("t", [1e-5, 1e-2, 0.3, 1.0])
@pytest.mark.parametrize("chunk_size", [1, 7, 4096])
def test_empirical_is_a_mixture_of_points(sde, t, chunk_size):
    model = EmpiricalModel(sde=sde, data=DATA, chunk_size=chunk_size)
    mixture = GaussianMixtureModel(sde=sde, weights=torch.ones(50), means=DATA, std=0.0)
    x = sde.perturb(DATA[:9], t, X)
    torch.testing.assert_close(model(x, t).data, mixture(x, t).data, rtol=1e-10, atol=1e-10)


def test_empirical_samples_are_training_points():
    model = EmpiricalModel(sde=VPSDE(), data=DATA)
    x = sample(model, (40, 2, 3), steps=200, solver="ancestral", seed=0, dtype=torch.float64)
    nearest = torch.cdist(x.flatten(1), DATA.flatten(1)).min(1).values
    assert float(nearest.max()) < 1e-6


def test_empirical_memory_is_that_of_one_chunk():
    sizes = []

    class Watched(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                sizes.append(out.numel())
            return out

    model = EmpiricalModel(sde=VPSDE(), data=DATA.repeat(100, 1, 1), chunk_size=10)
    with Watched():
        model(X, 0.5)
    # 9 samples against 5000 points are 45 000 distances; a chunk holds 90, its points 60 numbers.
    assert max(sizes) <= 5000


@pytest.mark.parametrize(("data", "error"), [(DATA[:0], ShapeError), (DATA / 0, DomainError)])
def test_empirical_refuses(data, error):
    with pytest.raises(error, match="data"):
        EmpiricalModel(sde=VPSDE(), data=data)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["VP", "VE"])
def test_energy_gives_the_score(sde):
    exact = GaussianModel(sde=sde, mean=torch.zeros(3, dtype=torch.float64), covariance=torch.tensor(0.25))

    def energy(x, log_snr):
        # x is normalised to alpha^2 + sigma^2 = 1 there: -log N(x; 0, alpha^2/4 + sigma^2) up to a constant.
        variance = 0.25 * torch.sigmoid(log_snr) + torch.sigmoid(-log_snr)
        return 0.5 * x.square().sum(1) / variance

    model, x = EnergyModel(energy, sde), X[:, 0]
    for t in (1e-3, 0.4, 1.0):
        torch.testing.assert_close(model(x, t).score, exact(x, t).score, rtol=1e-9, atol=1e-9)
        law = exact.moments.at(float(sde.alpha(t)), float(sde.sigma(t)))
        difference = model.energy(x, t) - model.energy(x[:1], t)
        torch.testing.assert_close(difference, law.log_prob(x[:1]) - law.log_prob(x), rtol=1e-9, atol=1e-9)


def test_energy_trains_and_samples_under_no_grad():
    with torch.random.fork_rng():
        net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    model = EnergyModel(lambda x, c: net(x).squeeze(1), VPSDE())
    model(X[:, 0], 0.5).score.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in list(net.parameters())[:3])
    twin = ScoreModel.from_callable(lambda x, t: model(x, t).score, VPSDE())
    a, b = (sample(m, (5, 3), steps=6, seed=0, dtype=torch.float64) for m in (model, twin))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_energy_must_be_one_number_a_sample():
    with pytest.raises(ShapeError, match="one number a sample"):
        EnergyModel(lambda x, c: x, VPSDE())(X[:, 0], 0.5)


@pytest.mark.parametrize(
    "model",
    [
        GaussianModel(sde=VPSDE(), mean=torch.zeros(2), covariance=torch.eye(2)),
        GaussianMixtureModel(sde=VPSDE(), weights=torch.ones(1), means=torch.zeros(1, 2), std=1.0),
        EmpiricalModel(sde=VPSDE(), data=torch.zeros(3, 2)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_samples_of_another_size_are_named(model: ScoreModel) -> None:
    for use in (model, lambda x, t: denoising_score_matching(model, x, t=t, generator=stream(0))):
        with pytest.raises(ShapeError, match=r"x must have samples of 2 numbers, .* got shape \(5, 3\)"):
            use(torch.zeros(5, 3), 0.5)
