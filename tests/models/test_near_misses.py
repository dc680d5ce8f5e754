"""What a newcomer writes, and the word that the error gives back; short lines that say what an object is."""

from __future__ import annotations

import functools

import pytest
import torch
from checkpoints import Own, filled
from torch import Tensor, nn

from scoresde import (
    VESDE,
    VPSDE,
    Affine,
    ConfigError,
    CosineVPSDE,
    DTypeError,
    EnergyModel,
    Gaussian,
    GaussianMixtureModel,
    GaussianModel,
    Moments,
    ScoreModel,
    SubVPSDE,
    map_prediction,
    sample,
)
from scoresde.models.networks import condition_names
from scoresde.nn import MLP, UNet

X = torch.zeros(3, 2)
LABEL = torch.tensor([0, 1, 1])


@pytest.mark.parametrize(
    ("word", "right"),
    [
        ("eps", "noise"),
        ("epsilon", "noise"),
        ("Epsilon", "noise"),
        ("x0", "data"),
        ("sample", "data"),
        ("v_prediction", "v"),
        ("flow", "velocity"),
    ],
)
def test_what_others_call_a_prediction_names_ours(word: str, right: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown parameterisation '{word}'; it is called '{right}' here; "):
        ScoreModel(Own(2), VPSDE(), predicts=word)
    if word != "flow":
        with pytest.raises(ConfigError, match=f"unknown prediction '{word}'; it is called '{right}' here"):
            ScoreModel.from_callable(Own(2), VPSDE(), predicts=word)
    if word not in ("flow", "sample"):
        with pytest.raises(ConfigError, match=f"it is called '{right}' here"):
            ScoreModel(Own(2), VPSDE())(X, 0.5).view(word)


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ("vp", r"e\.g\. VPSDE\(\), got 'vp'"),
        ("sub-vp", r"e\.g\. SubVPSDE\(\)"),
        ("VESDE", r"e\.g\. VESDE\(\)"),
        ("rectified_flow", r"e\.g\. RectifiedFlow\(\)"),
        ("something", r"e\.g\. VPSDE\(\)"),
        (3, r"e\.g\. VPSDE\(\), got 3"),
        (CosineVPSDE, r"e\.g\. CosineVPSDE\(\), got <class"),
    ],
)
def test_an_sde_by_its_name_or_class(given: object, right: str) -> None:
    for attempt in (lambda: ScoreModel(Own(2), given), lambda: ScoreModel(Own(2), VPSDE()).with_sde(given)):
        with pytest.raises(DTypeError, match=f"sde must be a GaussianSDE, {right}"):
            attempt()


def test_a_condition_by_itself_says_where_it_goes() -> None:
    for model in (
        ScoreModel(MLP(2, classes=3), VPSDE()),
        map_prediction(ScoreModel(Own(2), VPSDE()), lambda p: p.data),
    ):
        with pytest.raises(TypeError, match=r'pass cond=\{"label": label\}, got label= by itself'):
            model(X, 0.5, label=LABEL)
        with pytest.raises(DTypeError, match=r'pass cond=\{"a": a, "b": b\}, got a, b= by itself'):
            model(X, 0.5, a=LABEL, b=LABEL)


class Calls:
    """Counts its calls; each test says what its signature is."""

    count = 0

    def add(self, x: Tensor) -> Tensor:
        self.count += 1
        return x


def test_a_condition_that_the_network_does_not_take_is_refused_before_any_call() -> None:
    calls = Calls()

    class Takes(nn.Module):
        def forward(
            self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, *, mask: Tensor | None = None
        ) -> Tensor:
            return calls.add(x)

    model = ScoreModel(Takes(), VPSDE())
    wrong = {"lable": LABEL}
    for attempt in (lambda: model(X, 0.5, wrong), lambda: sample(model, (3, 2), cond=wrong)):
        with pytest.raises(ConfigError, match=r"unknown condition 'lable'; did you mean 'label'\? choices: label"):
            attempt()
    assert calls.count == 0
    model(X, 0.5, {"label": LABEL, "mask": LABEL})
    with pytest.raises(ConfigError, match="cond has 'label', and the network takes no conditions"):
        ScoreModel(lambda x, c: calls.add(x), VPSDE())(X, 0.5, {"label": LABEL})
    assert calls.count == 1
    with pytest.raises(ConfigError, match=r"one of scoresde\.nn takes label= if it is built with classes=n"):
        ScoreModel(MLP(2), VPSDE())(X, 0.5, {"label": LABEL})
    with pytest.raises(ConfigError, match="unknown condition 'y'; choices: label"):
        ScoreModel(MLP(2, classes=3), VPSDE())(X, 0.5, {"y": LABEL})
    with pytest.raises(ConfigError, match="takes no conditions"):
        EnergyModel(lambda x, c: x.square().sum(1), VPSDE())(X, 0.5, {"y": LABEL})


def anything(x: Tensor, c_noise: Tensor, **cond: Tensor) -> Tensor:
    return x


def two(x: Tensor, c_noise: Tensor, text: Tensor, /, image: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize(
    ("net", "names"),
    [
        (anything, None),
        (torch.add, None),  # a builtin without a signature that Python knows
        (two, {"image"}),
        (functools.partial(two, image=LABEL), {"image"}),
        (MLP(2), set()),
        (MLP(2, classes=3), {"label"}),
        (UNet(1, classes=3, width=4), {"label"}),
        (Own(2), set()),
    ],
)
def test_the_conditions_of_a_network(net: object, names: set[str] | None) -> None:
    assert condition_names(net) == names


# ---------------------------------------------------------------------------------------------------------------------
# A function with a transform, and the same model elsewhere


def test_a_function_with_a_transform_samples_in_the_datas_units() -> None:
    exact = GaussianModel(sde=VPSDE(), mean=torch.zeros(2), covariance=torch.ones(2))
    model = ScoreModel.from_callable(
        lambda x, t: exact(x, t).score, VPSDE(), moments=exact.moments, transform=Affine(100.0, 10.0)
    )
    x = sample(model, (2000, 2), seed=0)
    assert abs(float(x.mean()) - 100) < 1
    assert abs(float(x.std()) - 10) < 0.5
    with pytest.raises(DTypeError, match=r"transform must be one of scoresde\.transforms"):
        ScoreModel.from_callable(Own(2), VPSDE(), transform=3)


def test_an_exact_model_under_another_sde_is_still_one() -> None:
    model = GaussianModel(sde=VPSDE(), mean=torch.ones(2), covariance=torch.tensor(0.25))
    other = model.with_sde(VESDE())
    fresh = GaussianModel(sde=VESDE(), mean=torch.ones(2), covariance=torch.tensor(0.25))
    assert isinstance(other, GaussianModel)
    x = torch.full((3, 2), 2.0, dtype=torch.float64)
    torch.testing.assert_close(other.flow(x, 0.8, 0.2), fresh.flow(x, 0.8, 0.2), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(other(x, 0.3).score, fresh(x, 0.3).score, rtol=1e-12, atol=1e-12)
    # Each wrapper has attributes and parts of its own; the network is shared.
    other.moments, other.transform = None, Affine(1.0)
    assert (model.moments is not None, model.transform) == (True, None)
    assert other.net is model.net
    other.net = Own(2)
    assert other.net is not model.net
    other.eval()
    assert model.training


def test_an_energy_model_under_another_sde_has_its_energy() -> None:
    model = EnergyModel(lambda x, c: 0.5 * x.square().sum(1), VPSDE())
    x = torch.full((3, 2), 2.0)
    # E(x/r): under VE r = sqrt(1 + sigma^2).
    r = float(VESDE().at(0.5).r)
    torch.testing.assert_close(model.with_sde(VESDE()).energy(x, 0.5), torch.full((3,), 4.0 / r**2))


# ---------------------------------------------------------------------------------------------------------------------
# Lines


def test_a_model_is_one_line() -> None:
    net = MLP(2, width=8, depth=1)
    count = sum(p.numel() for p in net.parameters())
    model = ScoreModel(net, SubVPSDE(), predicts="v", moments=Moments.of(torch.tensor([[0.0, 1.0], [2.0, 3.0]])))
    assert repr(model) == f"ScoreModel(MLP of {count:,} parameters, {SubVPSDE()!r}, predicts='v', event (2,))"
    other = ScoreModel(two, VPSDE(), variance="learned", transform=Affine(1.0)).with_sde(VESDE())
    line = f'trained under {VPSDE()!r}, variance="learned", {Affine(1.0)!r})'
    assert repr(other) == f"ScoreModel(two, {VESDE()!r}, predicts='noise', {line}"
    assert repr(ScoreModel.from_callable(two, VPSDE())) == f"ScoreModel(two, {VPSDE()!r}, predicts='literal score')"
    assert repr(EnergyModel(two, VPSDE())) == f"EnergyModel(the gradient of two, {VPSDE()!r}, predicts='score')"
    # The layers are the network's to print.
    assert "Linear(in_features=2" in repr(model.net)


def test_exact_models_laws_and_predictions_are_one_line() -> None:
    mean = torch.tensor([1.0, -2.0])
    model = GaussianModel(sde=VPSDE(), mean=mean, covariance=torch.tensor([4.0, 9.0]))
    assert repr(model) == f"GaussianModel({VPSDE()!r}, event (2,))"
    mixture = GaussianMixtureModel(sde=VPSDE(), weights=torch.ones(1), means=mean[None], std=1.0)
    assert repr(mixture) == f"GaussianMixtureModel({VPSDE()!r}, event (2,))"
    words = "event (2,), diagonal covariance, mean -2 to 1, standard deviation 2 to 3"
    assert repr(model.moments) == f"Moments({words})"
    assert repr(model.law) == f"Gaussian({words})"
    full = Moments.exact(mean, 4 * torch.eye(2))
    assert repr(full) == "Moments(event (2,), full covariance, mean -2 to 1, standard deviation 2)"
    one = Gaussian(torch.zeros(()), torch.ones(()))
    assert repr(one) == "Gaussian(event (), diagonal covariance, mean 0, standard deviation 1)"
    views = "Prediction(data, noise, score, v and velocity, each (3, 2)"
    assert repr(model(X, 0.5)) == f"{views}, at t = 0.5)"
    assert repr(model(X, torch.tensor([0.75, 0.25, 0.5]))) == f"{views}, at t = 0.25 to 0.75)"
    assert repr(model(X[:0], torch.zeros(0))) == views.replace("3, 2", "0, 2") + ")"


def test_a_notebook_shows_the_model_and_its_curves() -> None:
    model = ScoreModel(filled(Own(2)), VPSDE())
    page = model._repr_html_()
    assert "Own of 2 parameters" in page
    assert page.endswith(VPSDE()._repr_html_())
    assert "<lambda>" not in ScoreModel(lambda x, c: x, VPSDE())._repr_html_()
