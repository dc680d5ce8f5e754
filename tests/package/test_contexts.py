"""What is called under torch's contexts works there, or says which one to leave."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scoresde import (
    VPSDE,
    Affine,
    ConfigError,
    Dequantise,
    EnergyModel,
    GaussianModel,
    ScoreModel,
    continuous_elbo,
    fit,
    log_likelihood,
    sample,
    tune,
)
from scoresde.data import digits, moons
from scoresde.likelihood.decoders import find_levels
from scoresde.nn import MLP
from scoresde.noise import normal, stream
from scoresde.training import Trainer

X = moons(64)


class Well(torch.nn.Module):
    """An energy, one number a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return 0.5 * self.weight * x.square().sum(1)


def make() -> ScoreModel:
    return ScoreModel(MLP(2, width=8, depth=1), VPSDE())


def test_training_without_gradients_around_it_is_training() -> None:
    inside, outside = make(), make()
    expected = fit(outside, X, steps=6, progress=False)
    trainer = Trainer(make())
    with torch.no_grad():
        assert bool(torch.isfinite(trainer(X)))
        done = fit(inside, X, steps=6, progress=False)
        assert not torch.is_grad_enabled()
    assert torch.equal(done.losses, expected.losses)
    for a, b in zip(done.model.net.parameters(), expected.model.net.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("made_inside", [False, True])
def test_inference_mode_is_named_before_anything_changes(made_inside: bool) -> None:
    model = make()
    with torch.inference_mode():
        model = make() if made_inside else model
        with pytest.raises(ConfigError, match=r"training differentiates, which torch.inference_mode\(\) forbids"):
            fit(model, X, steps=6, progress=False)
    assert model.moments is None
    if made_inside:
        for use in (lambda: fit(model, X, steps=6, progress=False), lambda: tune(model, 3, samples=8, event=(2,))):
            with pytest.raises(ConfigError, match=r"was made under torch.inference_mode\(\), .*; make it outside"):
                use()


def test_what_differentiates_names_the_context_and_the_cure_works() -> None:
    gaussian = GaussianModel(sde=VPSDE(), mean=torch.zeros(2), covariance=torch.eye(2))
    energy = EnergyModel(Well(), VPSDE())
    uses = (lambda: log_likelihood(gaussian, X[:3]), lambda: sample(energy, (2, 2), steps=2, seed=0))
    for use in uses:
        with torch.inference_mode(), pytest.raises(ConfigError, match=r"torch.no_grad\(\) does as well"):
            use()
        with torch.no_grad():
            use()
    with torch.inference_mode():
        assert bool(torch.isfinite(sample(gaussian, (2, 2), steps=4, seed=0)).all())


def bound(x: Tensor, **options: object) -> str:
    model = GaussianModel(sde=VPSDE(), mean=torch.zeros(x.shape[1:]), covariance=torch.eye(x[0].numel()))
    model.transform = options.pop("transform", None)
    return repr(continuous_elbo(model, VPSDE(), x, samples=1, **options))


def test_a_bound_of_data_on_levels_says_that_its_number_is_a_densitys() -> None:
    x = digits().images[:40]
    said = bound(x)
    decoder = find_levels(x)
    assert decoder is not None
    assert (decoder.levels, decoder.low, decoder.high) == (17, -1.0, 1.0)
    assert f"of a density, not the probability of the data's levels, which decoder={decoder} bounds" in said
    assert "density" not in bound(x, decoder=decoder)
    assert "density" not in bound(x, transform=Dequantise(17))
    assert "density" in bound(x, transform=Affine(0.5, 2.0))
    assert "density" not in bound(normal((40, 1, 8, 8), stream(0)))


@pytest.mark.parametrize(
    ("x", "levels"),
    [
        (torch.arange(256.0).repeat(20) / 255, 256),
        (torch.tensor([0.0, 1.0]).repeat(50), 2),
        (torch.tensor([-1.0, 0.0, 2.0]).repeat(50), 4),
        (torch.tensor([0.0, 1.0, 2.5001]).repeat(50), None),
        (torch.arange(300.0).repeat(20), None),
        (torch.ones(100), None),
        (torch.arange(10.0), None),
        (1e7 + torch.arange(10.0).repeat(10), None),
    ],
)
def test_levels_are_found_where_there_are_some(x: Tensor, levels: int | None) -> None:
    found = find_levels(x)
    assert (None if found is None else found.levels) == levels
