"""Denoising, editing and filling in, against exact laws of Gaussian data."""

from __future__ import annotations

import math

import pytest
import torch

from scoresde import EDMSDE, VPSDE, Affine, ConfigError, DomainError, DTypeError, GaussianModel, denoise, edit, impute
from scoresde.models.guidance import PiGDM
from scoresde.noise import normal, stream
from scoresde.sampling import edit as module

MEAN, VARIANCE, N = 0.7, 0.4, 4000


def prior(sde=None) -> GaussianModel:
    return GaussianModel(sde=sde or VPSDE(), mean=torch.tensor([MEAN]), covariance=torch.tensor([VARIANCE]))


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("scale", [None, 3.0])
def test_denoising_draws_from_the_posterior(sde, scale: float | None) -> None:
    model, std = prior(sde), 0.8
    unit = scale or 1.0
    if scale is not None:
        model.transform = Affine(1.0, scale)
    shift = 0.0 if scale is None else 1.0
    y = torch.full((N, 1), 1.9)
    got = denoise(model, y, noise_std=std, steps=40, seed=1).double()
    variance = VARIANCE * unit**2
    gain = variance / (variance + std**2)
    mean = shift + MEAN * unit
    assert float(got.mean()) == pytest.approx(mean + gain * (1.9 - mean), abs=0.05 * unit)
    assert float(got.std()) == pytest.approx(math.sqrt(variance * (1 - gain)), rel=0.06)


def test_an_edit_keeps_more_the_weaker_it_is() -> None:
    x = MEAN + math.sqrt(VARIANCE) * normal((500, 1), stream(0))
    kept = []
    for strength in (0.1, 0.4, 1.0):
        y = edit(prior(), x, strength=strength, seed=2)
        assert float(y.std()) == pytest.approx(math.sqrt(VARIANCE), rel=0.15)
        kept.append(float(torch.corrcoef(torch.stack([x[:, 0], y[:, 0]]))[0, 1]))
    assert kept[0] > 0.8 > kept[1] > kept[2]
    assert abs(kept[2]) < 0.15


def test_gaps_are_filled_in_from_what_is_known() -> None:
    """Two correlated coordinates: the missing one has its conditional law, the known one comes back as it was."""
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    model = GaussianModel(sde=VPSDE(), mean=torch.zeros(2, dtype=torch.float64), covariance=covariance)
    x = torch.tensor([[1.5, math.nan], [math.nan, -1.0], [0.3, 0.4], [math.nan, math.nan]])
    got = impute(model, x, draws=1500, method=PiGDM("moments"), steps=30, solver="dpmpp_2m", seed=3)
    assert got.shape == (4, 1500, 2)
    assert bool((got[0, :, 0] == 1.5).all())
    assert bool((got[2] == x[2]).all())
    for row, column, mean in ((0, 1, 1.2), (1, 0, -0.8)):
        assert float(got[row, :, column].mean()) == pytest.approx(mean, abs=0.06)
        assert float(got[row, :, column].std()) == pytest.approx(0.6, rel=0.08)
    assert float(torch.corrcoef(got[3].T)[0, 1]) == pytest.approx(0.8, abs=0.05)


def test_what_is_known_is_told_with_a_little_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    usual = module.posterior

    def posterior(*args: object, noise_std: float, **options: object) -> object:
        told.append(noise_std)
        return usual(*args, noise_std=noise_std, **options)

    monkeypatch.setattr(module, "posterior", posterior)
    model = GaussianModel(sde=VPSDE(), mean=torch.zeros(2), covariance=torch.ones(2))
    x = torch.tensor([[1.0, math.nan], [-1.0, math.nan]])
    impute(model, x, steps=2)
    impute(model, x, steps=2, noise_std=0.5)
    assert told == [pytest.approx(0.03), 0.5]


def test_what_does_not_suit_is_refused() -> None:
    model = prior()
    with pytest.raises(DomainError, match="noise_std must be a level of the SDE"):
        denoise(model, torch.zeros(2, 1), noise_std=1e9)
    with pytest.raises(DomainError, match=r"strength must lie in \(0, 1\]"):
        edit(model, torch.zeros(2, 1), strength=0.0)
    with pytest.raises(DTypeError, match="real floating"):
        impute(model, torch.zeros(2, 1, dtype=torch.long))
    with pytest.raises(DomainError, match="non-finite"):
        impute(model, torch.full((2, 1), math.inf))
    wide = GaussianModel(sde=VPSDE(), mean=torch.zeros(2, 1), covariance=torch.ones(2, 1))
    wide.transform = Affine((0.0, 0.0), (1.0, 2.0))
    with pytest.raises(ConfigError, match="stretches coordinates differently"):
        denoise(wide, torch.zeros(2, 2, 1), noise_std=0.5)
