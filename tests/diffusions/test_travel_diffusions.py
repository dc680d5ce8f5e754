"""SDEs, points and laws that travel: pickled, copied, written by torch.save, they are the same to the bit."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from helpers import tabulated
from torch import Tensor

from scoresde import Gaussian, GaussianSDE, Moments, TabulatedSDE
from scoresde.diffusions.named import DIFFUSIONS
from scoresde.diffusions.sde import curve
from scoresde.noise import normal, stream

F64 = torch.float64


def through_pickle(thing: object) -> object:
    return pickle.loads(pickle.dumps(thing))


def through_a_file(thing: object) -> object:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {"pickle": through_pickle, "deepcopy": copy.deepcopy, "torch.save": through_a_file}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


class Own(GaussianSDE):
    """A user's own, with curves that are lambdas: a class travels by its name."""

    alpha = curve(lambda self, t: torch.ones_like(t))
    sigma = curve(lambda self, t: 0.01 + 10 * t**2)


def score(x: Tensor, t: Tensor) -> Tensor:
    return -x


SDES: dict[str, GaussianSDE] = {
    **{name: kind() for name, kind in DIFFUSIONS.items()},
    "tabulated": tabulated(),
    "tabulated VP": TabulatedSDE(torch.tensor([0.1, 0.5, 1.0]), torch.tensor([5.0, 0.0, -5.0])),
    "own": Own(t_min=1e-3),
}


@every_way
@pytest.mark.parametrize("name", SDES)
def test_an_sde_has_the_same_curves_afterwards(name: str, way: Callable[[object], object]) -> None:
    sde = SDES[name]
    other = way(sde)
    assert (type(other), repr(other)) == (type(sde), repr(sde))
    t = torch.linspace(sde.t_min, 0.99 * sde.t_max, 7, dtype=F64)
    for attribute in ("alpha", "sigma", "log_snr", "alpha_rate", "sigma_rate", "diffusion", "drift_rate", "prior_std"):
        assert torch.equal(getattr(other, attribute)(t), getattr(sde, attribute)(t)), attribute
    assert torch.equal(other.time(sde.log_snr(t)), sde.time(sde.log_snr(t)))
    point = way(sde.at(t))
    assert torch.equal(point.rates[1], sde.sigma_rate(t))
    reverse = sde.reverse(score, eta=0.5)
    x = normal((7, 2), stream(0), dtype=F64)
    assert torch.equal(way(reverse).drift(x, t), reverse.drift(x, t))


@every_way
def test_laws_are_the_same_afterwards(way: Callable[[object], object]) -> None:
    x = normal((30, 4), stream(0), dtype=F64)
    moments, law = Moments.of(x), Gaussian(torch.zeros(4, dtype=F64), torch.ones((), dtype=F64))
    assert torch.equal(way(moments).covariance, moments.covariance)
    assert torch.equal(way(law).log_prob(x), law.log_prob(x))
    assert repr(way(moments)) == repr(moments)
