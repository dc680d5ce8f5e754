"""Training under linear SDEs: the loss by hand, the bound of exact models, what fit and a checkpoint do."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest
import torch
from linear_cases import SDES, draw, exact, moments
from torch import Tensor

from scoresde import (
    SDE,
    VPSDE,
    ConfigError,
    Cosine,
    DTypeError,
    GaussianModel,
    GroupedSDE,
    Haar,
    LinearMixtureModel,
    LinearModel,
    LinearSDE,
    MatrixSDE,
    ScoreModel,
    SDEModel,
    ShapeError,
    ZeroVelocity,
    continuous_elbo,
    denoising_score_matching,
    fit,
    linear_elbo,
    linear_score_matching,
    losses,
    nn,
    sample,
)
from scoresde.noise import normal, stream


@pytest.mark.parametrize("predicts", ["noise", "data"])
@pytest.mark.parametrize("name", ["rates", "matrix"])
def test_the_loss_is_its_formula(name: str, predicts: str) -> None:
    sde = SDES[name]

    def net(x: Tensor, c_noise: Tensor) -> Tensor:
        return torch.tanh(x) * (1 + 0.01 * c_noise[:, None])

    model = LinearModel(net, sde, predicts=predicts)  # type: ignore[arg-type]
    x0, z = draw(4, 3, key="x0"), draw(4, 3, key="z")
    t = torch.tensor([0.05, 0.2, 0.5, 0.9], dtype=torch.float64)
    own = linear_score_matching(model, x0, t=t, noise=z)
    nats = linear_score_matching(model, x0, t=t, noise=z, weight="likelihood")
    for i in range(4):
        point = sde.at(t[i])
        mean, roots = (sde.blocks.dense(maps, (3,)) for maps in (point.mean, point.root))
        noise = sde.blocks.dense(sde.coefficients(t[i])[1], (3,))
        x = mean @ x0[i] + roots @ z[i]
        c_in = 1 / torch.diagonal(mean.square().sum(1).diag_embed() + (roots @ roots.T)).sqrt()
        output = net((c_in * x)[None], sde.log_snr(t[i : i + 1]))[0]
        error = output - (z[i] if predicts == "noise" else x0[i])
        assert float(own[i]) == pytest.approx(float(error.square().mean()), rel=1e-9)
        on_score = -torch.linalg.inv(roots).T @ error
        if predicts == "data":
            on_score = torch.linalg.solve(roots @ roots.T, mean @ error)
        assert float(nats[i]) == pytest.approx(0.5 * float(on_score @ noise @ on_score) / 3, rel=1e-7)


def test_equal_rates_have_the_scalar_losses_and_bound() -> None:
    linear = LinearModel(nn.MLP(2, width=8, depth=1), GroupedSDE.with_rates((1.0, 1.0)))
    scalar = ScoreModel(nn.MLP(2, width=8, depth=1), VPSDE())
    x0, z, t = draw(6, 2, key="x0").float(), draw(6, 2, key="z").float(), torch.linspace(0.1, 0.9, 6)
    for name in ("simple", "likelihood"):
        one = linear_score_matching(linear, x0, t=t, noise=z, weight=name)  # type: ignore[arg-type]
        two = denoising_score_matching(scalar, x0, t=t, noise=z, weight=name)  # type: ignore[arg-type]
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    a, b = linear_elbo(linear, x0, samples=4), continuous_elbo(scalar, VPSDE(), x0, samples=4)
    torch.testing.assert_close(a.per_sample, b.per_sample, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["rates", "blur", "levels", "matrix"])
def test_the_bound_of_an_exact_model_is_its_entropy(name: str) -> None:
    model = exact(name)
    event = tuple(moments(model).mean.shape)
    x = model.sample_data(1000, stream(1)).double()
    bound = linear_elbo(model, x, samples=8, seed=2)
    size, law = math.prod(event), moments(model)
    covariance = (law.basis * law.variance) @ law.basis.T  # type: ignore[operator]
    truth = torch.distributions.MultivariateNormal(law.mean.reshape(-1), covariance)
    excess = bound.per_sample + truth.log_prob(x.reshape(len(x), -1))
    # What the ends cut off is positive, and small but where the coarse group ends at alpha = 0.0066.
    assert abs(float(excess.mean())) < 0.03 + 5 * float(excess.std()) / math.sqrt(len(x))
    assert bound.size == size
    # A model that errs is bounded worse, by what its score errs.
    worse = LinearModel(lambda y, c_noise: torch.zeros_like(y), SDES[name], moments=law)
    assert float(linear_elbo(worse, x[:500], samples=8).total) > float(bound.total) + 0.1


def test_the_bound_knows_the_data_s_unit() -> None:
    one = LinearModel(nn.MLP((1, 4), width=8, depth=1), GroupedSDE.levels((1, 4), (0.5,)), drop=False)
    x = draw(20, 1, 4, key="x").float()
    plain = linear_elbo(one, Haar(1).forward(x), samples=4)
    one.transform = Haar(1)
    torch.testing.assert_close(linear_elbo(one, x, samples=4).per_sample, plain.per_sample, rtol=1e-4, atol=1e-4)


def test_fit_trains_saves_and_loads(tmp_path: Path) -> None:
    sde = GroupedSDE.with_rates((0.5, 2.0))
    source = LinearMixtureModel(
        sde=sde, weights=torch.ones(1), means=torch.zeros(1, 2), covariances=torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    )
    x = source.sample_data(2000, stream(3))
    model = LinearModel(nn.MLP(2, width=32, depth=1), sde)
    result = fit(
        model,
        x,
        steps=250,
        batch_size=128,
        learning_rate=5e-3,
        held_out=x[:200],
        folder=tmp_path / "run",
        progress=False,
    )
    assert float(result.losses[-50:].mean()) < 0.75 * float(result.losses[:10].mean())
    y = sample(result.model, 2000, solver="ancestral", steps=50, seed=0)
    assert abs(float(torch.corrcoef(y.T)[0, 1]) - 0.8) < 0.15
    loaded = ScoreModel.load(tmp_path / "run")
    assert isinstance(loaded, LinearModel)
    assert isinstance(loaded.linear, LinearSDE)
    twin = sample(loaded, 20, solver="ancestral", steps=5, seed=0)
    assert torch.equal(twin, sample(result.model, 20, solver="ancestral", steps=5, seed=0))
    again = fit(
        LinearModel(nn.MLP(2, width=32, depth=1), sde),
        x,
        steps=260,
        batch_size=128,
        learning_rate=5e-3,
        held_out=x[:200],
        folder=tmp_path / "run",
        resume="change",
        progress=False,
    )
    assert again.steps == 260


def test_langevin_is_trained_on_positions_and_gives_positions() -> None:
    sde = MatrixSDE.langevin()
    x = 0.5 * normal((1000, 2), stream(5)) + 1
    model = LinearModel(nn.MLP(4, width=32, depth=1), sde)
    trained = fit(
        model, x, steps=150, batch_size=128, learning_rate=5e-3, transform=ZeroVelocity(), progress=False
    ).model
    y = sample(trained, 1000, solver="ancestral", steps=40, seed=0)
    assert y.shape == (1000, 2)
    assert float((y.mean(0) - 1).abs().max()) < 0.25
    # The network's first half is known to be 0 and no part of the loss.
    assert isinstance(trained, LinearModel)
    with torch.no_grad():
        prediction = trained(torch.zeros(3, 4), 0.5)
    assert float(prediction.output[:, :2].abs().max()) == 0.0
    assert float(prediction.data[:, 2:].abs().max()) < 1e-5


class Halves(torch.nn.Module):
    """A network without weights that sees any size."""

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return 0.5 * x


def test_samples_of_one_batch_have_boxes_of_their_own() -> None:
    sde = GroupedSDE.levels((1, 4, 4), (0.5,))
    model = LinearModel(Halves(), sde)
    x0, z = draw(4, 1, 4, 4, key="x0"), draw(4, 1, 4, 4, key="z")
    t = torch.tensor([0.3, 0.8, 0.4, 0.9], dtype=torch.float64)
    got = linear_score_matching(model, x0, t=t, noise=z)
    whole = linear_score_matching(LinearModel(Halves(), sde, drop=False), x0, t=t, noise=z)
    torch.testing.assert_close(got[::2], whole[::2])
    for i in (1, 3):
        point = sde.at(t[i])
        mean, roots = (sde.blocks.spread(maps)[:, :2, :2] for maps in (point.mean, point.root))
        x = (mean * x0[i, :, :2, :2] + roots * z[i, :, :2, :2]) / (mean.square() + roots.square()).sqrt()
        want = (0.5 * x - z[i, :, :2, :2]).square().sum() / 16
        assert float(got[i]) == pytest.approx(float(want), rel=1e-9)


def test_a_network_sees_images_through_a_basis() -> None:
    sde = GroupedSDE.blurring((1, 4, 4), blur=0.0)
    images = LinearModel(Halves(), sde, basis=Cosine())
    plain = LinearModel(Halves(), sde)
    seen: list[Tensor] = []

    def net(x: Tensor, c_noise: Tensor) -> Tensor:
        seen.append(x)
        return x.square()

    y, t = draw(2, 1, 4, 4, key="y"), 0.3
    # 0.5 x is the same in every basis; a square is not.
    torch.testing.assert_close(images(y, t).noise, plain(y, t).noise)
    turned = LinearModel(net, sde, basis=Cosine())(y, t)
    point = sde.at(t)
    scale = (point.mean.square() + point.covariance)[0, 0, 0].sqrt()
    torch.testing.assert_close(seen[0], Cosine().inverse(y / scale))
    torch.testing.assert_close(turned.noise, Cosine().forward(seen[0].square()))


def test_bad_linear_models_are_refused() -> None:
    sde, net = GroupedSDE.with_rates((1.0, 2.0)), nn.MLP(2, width=4, depth=1)
    with pytest.raises(DTypeError, match="a GaussianSDE takes a ScoreModel"):
        LinearModel(net, VPSDE())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="prediction under a linear SDE"):
        LinearModel(net, sde, predicts="velocity")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="prediction under a linear SDE"):
        LinearModel(net, SDES["matrix"], predicts="v")
    with pytest.raises(DTypeError, match="basis must be"):
        LinearModel(net, sde, basis=ZeroVelocity())
    with pytest.raises(DTypeError, match="drop"):
        LinearModel(net, sde, drop="yes")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="as many with data as without"):
        LinearModel(net, MatrixSDE(-torch.eye(3), start=torch.tensor([0.0, 0.0, 1.0])))
    model = LinearModel(net, sde)
    with pytest.raises(ShapeError, match="the event"):
        linear_score_matching(model, torch.zeros(2, 3), t=0.5, noise=torch.zeros(2, 3))
    with pytest.raises(ConfigError, match="weight under a linear SDE"):
        linear_score_matching(model, torch.zeros(2, 2), weight="v", t=0.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="time sampler under a linear SDE"):
        losses.LinearLoss(times="importance")
    with pytest.raises(DTypeError, match="takes denoising_score_matching"):
        linear_score_matching(ScoreModel(net, VPSDE()), torch.zeros(2, 2), t=0.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs a diffusion of one alpha and sigma"):
        denoising_score_matching(model, torch.zeros(2, 2), t=0.5, noise=torch.zeros(2, 2))
    with pytest.raises(ConfigError, match="weight under a linear SDE"):
        fit(model, torch.zeros(9, 2), steps=1, weight="v", progress=False)
    with pytest.raises(ConfigError, match="hold no data"):
        linear_elbo(LinearModel(nn.MLP(4, width=4, depth=1), MatrixSDE.langevin()), torch.zeros(2, 4))
    assert isinstance(GaussianModel(sde=VPSDE(), mean=torch.zeros(2), covariance=torch.eye(2)), ScoreModel)
    with pytest.raises(ShapeError, match="means must be"):
        LinearMixtureModel(sde=sde, weights=torch.ones(2), means=torch.zeros(1, 2), covariances=torch.eye(2))
    with pytest.raises(ShapeError, match="covariances must have shape"):
        LinearMixtureModel(sde=sde, weights=torch.ones(1), means=torch.zeros(1, 2), covariances=torch.eye(3))
    with pytest.raises(ConfigError, match="no weights to save"):
        exact("rates").save("nowhere")


class Well(SDE):
    """The double well."""

    def drift(self, x: Tensor, t: object) -> Tensor:
        return x - x**3

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.full_like(t, 0.7)


def test_only_a_scalar_diffusion_is_calibrated_where_that_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("scoresde.training.fit"), "COST", 0)
    monkeypatch.setattr(importlib.import_module("scoresde.sampling.tuning.calibrate"), "RUNGS", (3,))
    x = normal((40, 2), stream(8))

    def net() -> nn.MLP:
        return nn.MLP(2, width=4, depth=1)

    for model, calibrated in (
        (ScoreModel(net(), VPSDE()), True),
        (LinearModel(net(), GroupedSDE.with_rates((1.0, 2.0))), False),
        (SDEModel(net(), Well()), False),
    ):
        result = fit(model, x, steps=2, batch_size=8, progress=False)
        assert (result.model.calibration is not None) == calibrated
